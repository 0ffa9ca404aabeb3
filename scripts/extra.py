"""What surrounds training: checkpoints, metrics, the score card, pictures, and one way for commands to fail."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import pickletools
import re
import sys
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from carvana.files import run_command, sync_folder, write_file  # noqa: F401  run_command: until all import it from there
from carvana.masks import load_mask
from carvana.pictures import upsample
from PIL import Image, ImageDraw, ImageFont
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from unet import UNet, check_settings, count_values

from data import Cache

EDGE_PIXELS = 5  # half the width of the band round the true edge in which edge_dice looks
N_BOOTSTRAP = 2000
TENSOR_NAMES = {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2"} | {
    f"torch.{kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")
}  # all that the pickle of a checkpoint may call


# ------------------------------------------------------------------------------------------------------ checkpoints


def write_table(path: Path | str, rows: list[dict]) -> None:
    """Write rows as a CSV file, whole or not at all; the first row's keys are the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `write_file` whose process was killed; those of living processes stay."""
    for path in folder.glob("*.tmp"):
        match = re.fullmatch(r".+\.(\d{1,7})\.tmp", path.name)
        if match and os.name == "posix":  # elsewhere there is no harmless way to ask whether a process lives
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                path.unlink(missing_ok=True)
            except PermissionError:  # it lives, and is another user's
                pass


def previous_path(path: Path | str) -> Path:
    """Name the checkpoint before this one: last.pt has last.previous.pt beside it."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def digest(value: object, n_values: int | None = None, n_bytes: int | None = None) -> str:
    """Hash tensors and plain values, in dictionaries and lists, by their content.

    Args:
        value: What to hash.
        n_values: At most so many values may be met: in a forged file lists that hold each other grow beyond all bounds.
        n_bytes: Likewise for the bytes of tensors, which may be views of a single number.

    Raises:
        TypeError: If there is anything else: a file that held it could not be loaded safely.
        ValueError: If there is more than allowed.
    """
    sha = hashlib.sha256()
    left = dict(values=n_values, bytes=n_bytes)

    def spend(what: str, amount: int) -> None:
        if left[what] is not None:
            left[what] -= amount
            if left[what] < 0:
                raise ValueError("it claims to hold more than its own size")

    def update(value: object) -> None:
        spend("values", 1)
        if isinstance(value, Tensor):
            spend("bytes", value.nbytes)
            tensor = value.detach().cpu().contiguous()
            sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, dict):
            sha.update(b"{")
            for key in value:
                update(key)
                update(value[key])
            sha.update(b"}")
        elif isinstance(value, (list, tuple)):
            sha.update(b"[")
            for item in value:
                update(item)
            sha.update(b"]")
        elif value is None or type(value) in (bool, int, float, str):
            sha.update(repr(value).encode() + b";")
        else:
            raise TypeError(f"a checkpoint must hold tensors and plain values only, got {type(value).__name__}")

    update(value)
    return sha.hexdigest()


def save_checkpoint(
    path: Path | str, state: dict, keep_previous: bool = False, mirror_dir: Path | str | None = None
) -> None:
    """Save tensors and plain values with a checksum, whole or not at all.

    Args:
        path: The file.
        state: Dictionaries and lists of tensors, numbers, strings, True, False and None.
        keep_previous: Keep the file that stood there as `<name>.previous.pt`.
        mirror_dir: A second folder, such as a mounted Drive, which gets a copy. When it fails, that is said and
            training goes on: the first copy is safe.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save({**state, "checksum": digest(state)}, buffer)
    content = buffer.getbuffer()
    staged = path.with_name(path.name + ".new")
    write_file(staged, content)
    if keep_previous and path.exists():
        os.replace(path, previous_path(path))
    os.replace(staged, path)
    sync_folder(path.parent)
    mirror_file(path, mirror_dir)


def mirror_file(path: Path, mirror_dir: Path | str | None) -> None:
    """Copy a whole file to a second folder, if there is one."""
    if mirror_dir is None:
        return
    with mirror_may_fail():
        write_file(Path(mirror_dir) / path.name, path.read_bytes())


@contextlib.contextmanager
def mirror_may_fail():
    """When the mirror fails, say so and go on: the first copy is safe."""
    try:
        yield
    except OSError as error:
        print(f"warning: the mirror failed: {error}", file=sys.stderr)


def read_checkpoint(path: Path | str) -> dict:
    """Read one checkpoint, trusting nothing in it.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If the file carries code; it is not run.
        ValueError: If the file is damaged, altered or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Train first, or name another file.")
    try:
        # The archive is of stored, not packed, members, so nothing in it can be larger than the file.
        n_bytes = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members) or (
                sum(member.file_size for member in members) > n_bytes
            ):
                raise ValueError("it claims to hold more than its own size")
            pickles = [member for member in members if member.filename.endswith(".pkl")]
            if len(pickles) != 1 or len({member.filename for member in members}) != len(members):
                raise ValueError("it must hold one table of contents")
            pickled = archive.read(pickles[0])
        code = sorted(foreign_names(pickled))
        if code:
            raise PermissionError(
                f"{path} carries code ({', '.join(code[:3])}), which was not run. Do not use it: checkpoints of this "
                "project hold tensors and plain values only."
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        checksum = state.pop("checksum", None) if isinstance(state, dict) else None
        if checksum is None:
            raise ValueError("it has no checksum, so it is not from this project")
        if checksum != digest(
            state, n_values=len(pickled), n_bytes=n_bytes
        ):  # a value takes at least a byte of the pickle
            raise ValueError("its content does not fit its checksum")
    except (PermissionError, FileNotFoundError):
        raise
    except Exception as error:  # a damaged archive can fail anywhere in zipfile or torch
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged or not a checkpoint of this project ({reason}).") from error
    return state


def foreign_names(pickled: bytes) -> set[str]:
    """List what a pickle would call beyond what tensors need, without running any of it.

    This is stricter than `weights_only=True`, which also lets a file ask for an array of a terabyte.
    """
    names = set()
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "GLOBAL":
            names.add(argument.replace(" ", "."))
        elif operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            names.add(operation.name)
    return names - TENSOR_NAMES


def load_checkpoint(path: Path | str) -> dict:
    """Read a checkpoint or, if it is damaged or missing, the one before it, saying so.

    Raises:
        FileNotFoundError: If neither exists.
        PermissionError: If the file carries code.
        ValueError: If both are damaged.
    """
    path, previous = Path(path), previous_path(path)
    if not path.exists() and not previous.exists():
        raise FileNotFoundError(
            f"{path} does not exist, so there is nothing to go on from. Train without --load-model first."
        )
    try:
        return read_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        if not previous.exists():
            raise
        print(f"{error} Going on from {previous}.", file=sys.stderr)
        return read_checkpoint(previous)


def build_network(description: dict, shapes: dict[str, tuple], path: Path) -> UNet:
    """Build the network that a file describes, once it is certain that the file holds as many numbers as that takes.

    Raises:
        ValueError: If settings are out of range or a tensor is missing, too many or of another shape.
    """
    try:
        settings = {str(key): value for key, value in description["network"].items()}
        check_settings(**settings)
        if count_values(**settings) != sum(math.prod(shape) for shape in shapes.values()):
            raise ValueError("its tensors do not fit the network that it describes")
        network = UNet(**settings)
        width, height, threshold = (description[key] for key in ("image_width", "image_height", "threshold"))
        for side in (width, height):
            if type(side) is not int or not 0 < side <= 16384 or side % 2 ** settings["depth"]:
                raise ValueError(f"image size {width}x{height} is out of range")
        if not (isinstance(threshold, float) and 0 < threshold < 1):
            raise ValueError(f"threshold must be in (0, 1), got {threshold!r}")
        expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        if expected != shapes:
            differing = sorted(set(expected.items()) ^ set(shapes.items()))[0][0]
            raise ValueError(f"tensor {differing} does not fit the network that the file describes")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} does not describe a U-Net of this project ({error}). Use a file that train.py saved."
        ) from error
    return network


def load_network(path: Path | str) -> tuple[UNet, dict]:
    """Rebuild a network from its file alone: .safetensors, or best.pt or last.pt of a training.

    Returns:
        The network in float32, for prediction, on the CPU; and its description: image_width and image_height (pixels)
        at which it was trained, threshold (probability), network (its settings), trained (how).

    Raises:
        FileNotFoundError, PermissionError, ValueError: As `read_checkpoint`.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist. Train first, or name another file.")
        try:
            with safe_open(path, framework="pt") as file:  # it has compared the header with the file's size
                description = json.loads((file.metadata() or {})["description"])
                weights = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged or not a file of this project's weights ({error}).") from error
    else:
        state = read_checkpoint(path)
        description, weights = state.get("description"), state.get("weights")
        if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
            raise ValueError(f"{path} does not hold the weights of a network. Use a file that train.py saved.")
    network = build_network(description, {name: tuple(tensor.shape) for name, tensor in weights.items()}, path)
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    for name, tensor in network.state_dict().items():
        if weights[name].dtype != tensor.dtype or not weights[name].isfinite().all():
            raise ValueError(
                f"{path} must hold finite numbers of the network's types, got others in {name}. Use another file."
            )
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False), description


def save_weights(path: Path | str, network: UNet, description: dict) -> None:
    """Save a network for others as safetensors: convolutions in 16-bit floats, batch norm and colours in 32, and its
    description as JSON beside them. Such a file cannot carry code."""
    weights = {
        name: (tensor.half() if tensor.dim() == 4 and not name.startswith("colour") else tensor).contiguous().cpu()
        for name, tensor in network.state_dict().items()
    }
    write_file(path, safetensors_bytes(weights, metadata={"format": "pt", "description": json.dumps(description)}))


# ---------------------------------------------------------------------------------------------------------- metrics


def dice(prediction: np.ndarray, mask: np.ndarray) -> float:
    """Dice coefficient of one image, in [0, 1]: 2 |A and B| / (|A| + |B|); 1 if both are empty.

    Args:
        prediction: (height, width), bool.
        mask: (height, width), bool.

    Example:
        >>> dice(np.array([[True, True, False]]), np.array([[True, False, False]]))
        0.6666666666666666
        >>> dice(np.zeros((2, 2), bool), np.zeros((2, 2), bool))
        1.0
    """
    area = np.count_nonzero(prediction) + np.count_nonzero(mask)
    return float(2 * np.count_nonzero(prediction & mask) / area) if area else 1.0


def pixel_accuracy(prediction: np.ndarray, mask: np.ndarray) -> float:
    """Share of the pixels of one image that are right, in [0, 1]. Black alone scores 0.79 on Carvana: read Dice."""
    return float(np.count_nonzero(prediction == mask) / mask.size)


def edge_dice(prediction: np.ndarray, mask: np.ndarray, pixels: int = EDGE_PIXELS) -> float:
    """Dice among the pixels at most `pixels` from the true edge, in [0, 1]; 1 if the mask has no edge."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    mask8 = mask.view(np.uint8)
    # Outside the frame is neither car nor background: it must not grow a band of its own along the border.
    band = cv2.dilate(mask8, disc, borderType=cv2.BORDER_REPLICATE) != cv2.erode(
        mask8, disc, borderType=cv2.BORDER_REPLICATE
    )
    return dice(prediction[band], mask[band])


def score_image(logits: np.ndarray, coverage: np.ndarray, mean_mask: np.ndarray, cache: Cache, row: int) -> dict:
    """Score one validation photo at its own size.

    Args:
        logits: (h, w), float32, at training size.
        coverage: (h, w), uint8: the true coverage, whose enlargement is the best that this size can reach.
        mean_mask: (h, w), float32: mean coverage of the training photos, in [0, 1]; a baseline.
        cache: Where the photo stands.
        row: Its row.
    """
    cache.check_unchanged(row)
    pair = cache.pairs[row]
    mask = load_mask(pair.mask_path)
    enlarged = upsample(logits, *mask.shape)
    prediction = enlarged > 0
    mean_prediction = upsample(mean_mask, *mask.shape) > 0.5
    return dict(
        name=pair.name,
        car=pair.car,
        view=pair.view,
        dice=dice(prediction, mask),
        accuracy=pixel_accuracy(prediction, mask),
        edge_dice=edge_dice(prediction, mask),
        ceiling=dice(upsample(coverage.astype(np.float32), *mask.shape) > 127.5, mask),
        mean_mask_dice=dice(mean_prediction, mask),
        mean_mask_accuracy=pixel_accuracy(mean_prediction, mask),
        black_dice=dice(np.zeros_like(mask), mask),
        black_accuracy=1 - float(mask.mean()),
        share=float(prediction.mean()),
        dice_by_threshold=dice_by_threshold(enlarged, mask),
    )


THRESHOLD_LOGITS = np.arange(-32, 33) / 16  # probabilities 0.12 to 0.88


def dice_by_threshold(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Dice at each of THRESHOLD_LOGITS, from two histograms instead of 65 comparisons."""
    n = len(THRESHOLD_LOGITS)
    bins = np.clip(np.ceil(logits * 16 + 32), 0, n).astype(np.intp)  # bin k: above the first k thresholds
    total = np.bincount(bins.ravel(), minlength=n + 1)[::-1].cumsum()[::-1][1:]
    hits = np.bincount(bins[mask], minlength=n + 1)[::-1].cumsum()[::-1][1:]
    area = total + np.count_nonzero(mask)
    return np.where(area > 0, 2 * hits / np.maximum(area, 1), 1.0)


def bootstrap_interval(values: Iterable[float], cars: Iterable[str], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over images, by drawing whole cars: the 16 views of a car are not independent."""
    groups: dict[str, list[float]] = {}
    for value, car in zip(values, cars):
        groups.setdefault(car, []).append(value)
    sums = np.array([[sum(group), len(group)] for group in groups.values()])
    drawn = np.random.default_rng(seed).integers(len(sums), size=(N_BOOTSTRAP, len(sums)))
    totals = sums[drawn].sum(axis=1)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    return float(low), float(high)


def score_images(predictions: Iterable[tuple[int, np.ndarray]], cache: Cache, mean_mask: np.ndarray) -> list[dict]:
    """Score validation photos at their own size while the network goes on with the next ones.

    Args:
        predictions: Row and logits (h, w), float32, of each photo.
        cache: The photos' cache.
        mean_mask: Baseline, see `score_image`.

    Returns:
        A row of scores for each photo, sorted by name.
    """
    coverage = cache.coverage
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [
            pool.submit(score_image, logits, np.array(coverage[row]), mean_mask, cache, row)
            for row, logits in predictions
        ]
        return sorted((future.result() for future in futures), key=lambda row: row["name"])


def summarise(rows: list[dict]) -> dict:
    """Make a score card of scored images; the threshold tuned on them leaves their rows."""
    cars = [row["car"] for row in rows]
    card = {
        key: float(np.mean([row[key] for row in rows]))
        for key in rows[0]
        if key not in ("name", "car", "view", "dice_by_threshold")
    }
    card["dice_low"], card["dice_high"] = bootstrap_interval([row["dice"] for row in rows], cars)
    by_threshold = np.mean([row.pop("dice_by_threshold") for row in rows], axis=0)
    # Among equally good thresholds the one nearest to one half.
    best = np.lexsort((np.abs(THRESHOLD_LOGITS), -by_threshold.round(6)))[0]
    card["threshold"] = float(1 / (1 + math.exp(-THRESHOLD_LOGITS[best])))
    card["dice_at_threshold"] = float(by_threshold[best])
    card["n_images"], card["n_cars"] = len(rows), len(set(cars))
    views = sorted({row["view"] for row in rows} - {0})
    card["dice_per_view"] = {
        f"{view:02d}": float(np.mean([row["dice"] for row in rows if row["view"] == view])) for view in views
    }
    return card


def format_score_card(card: dict) -> str:
    """Lay the score card out for reading."""
    lines = [
        f"score card at the photos' own size: {card['n_images']} photos of {card['n_cars']} cars",
        f"  Dice            {card['dice']:.5f}   95 % interval {card['dice_low']:.5f} to {card['dice_high']:.5f}, bootstrap over cars",
        f"  pixel accuracy  {card['accuracy']:.5f}",
        f"  edge Dice       {card['edge_dice']:.5f}   within {EDGE_PIXELS} pixels of the true edge",
        f"  best threshold  {card['threshold']:.3f}     where Dice is {card['dice_at_threshold']:.5f}",
        f"  ceiling         {card['ceiling']:.5f}   Dice of the true coverage at training size, enlarged",
        f"  mean mask       {card['mean_mask_dice']:.5f}   accuracy {card['mean_mask_accuracy']:.5f}",
        f"  all black       {card['black_dice']:.5f}   accuracy {card['black_accuracy']:.5f}",
    ]
    if card["share"] < 0.001:
        lines.append("  warning: the predictions are all background. Train longer, or lower the learning rate.")
    if card["share"] > 0.999:
        lines.append("  warning: the predictions are all car. Train longer, or lower the learning rate.")
    views = [f"{view} {value:.4f}" for view, value in card["dice_per_view"].items()]
    for start in range(0, len(views), 8):
        lines.append(("  Dice per view   " if start == 0 else " " * 18) + "  ".join(views[start : start + 8]))
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------- pictures

FALSE_CAR, MISSED_CAR = (214, 39, 40), (31, 119, 220)  # red and blue, which the colour-blind tell apart
MARGIN, TITLE = 8, 26  # pixels


def draw_errors(photo: np.ndarray, mask: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Paint false car red and missed car blue over a pale photo.

    Args:
        photo: RGB (h, w, 3), uint8, at the size to draw.
        mask: (height, width), bool, at the photo's own size.
        prediction: (height, width), bool, likewise.

    Returns:
        RGB (h, w, 3), uint8.
    """
    grey = photo.astype(np.float32).mean(axis=2, keepdims=True)
    picture = np.repeat(0.45 * grey + 0.55 * 255, 3, axis=2)
    for wrong, colour in ((prediction & ~mask, FALSE_CAR), (~prediction & mask, MISSED_CAR)):
        share = cv2.resize(wrong.astype(np.float32), photo.shape[1::-1], interpolation=cv2.INTER_AREA)
        alpha = np.minimum(1, 2.5 * share)[..., None]  # an error one pixel wide must stay visible when made small
        picture = picture * (1 - alpha) + np.array(colour, np.float32) * alpha
    return picture.astype(np.uint8)


def draw_mask(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """Draw a mask (H, W), bool, as a grey RGB picture (height, width, 3), uint8."""
    small = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
    return np.repeat(small[..., None], 3, axis=2)


def draw_sheet(rows: list[tuple[str | list[str], list[np.ndarray]]], captions: list[str] = []) -> Image.Image:
    """Lay rows of equally large RGB pictures out on white, each row under its title, or each picture under its own."""
    height, width = rows[0][1][0].shape[:2]
    columns = max(len(pictures) for _, pictures in rows)
    top = TITLE if captions else 0
    sheet = Image.new(
        "RGB", (MARGIN + columns * (width + MARGIN), top + len(rows) * (height + TITLE + MARGIN) + MARGIN), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for column, caption in enumerate(captions):
        draw.text((MARGIN + column * (width + MARGIN), MARGIN // 2), caption, "gray", font)
    for number, (title, pictures) in enumerate(rows):
        y = top + number * (height + TITLE + MARGIN)
        for column, text in enumerate([title] if isinstance(title, str) else title):
            draw.text((MARGIN + column * (width + MARGIN), y + 2), text, "black", font)
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (MARGIN + column * (width + MARGIN), y + TITLE))
    return sheet


def save_picture(path: Path | str, picture: Image.Image) -> None:
    """Save a PNG, whole or not at all."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    write_file(path, buffer.getvalue())


def draw_predictions(examples: list[tuple[int, np.ndarray]], cache: Cache) -> Image.Image:
    """Draw photo, truth, prediction and errors of each example (row, logits (h, w)), with its name and Dice."""
    rows = []
    for row, logits in examples:
        mask = load_mask(cache.pairs[row].mask_path)
        prediction = upsample(logits, *mask.shape) > 0
        photo = np.array(cache.images[row])
        height, width = photo.shape[:2]
        pictures = [
            photo,
            draw_mask(mask, width, height),
            draw_mask(prediction, width, height),
            draw_errors(photo, mask, prediction),
        ]
        rows.append((f"{cache.pairs[row].name}   Dice {dice(prediction, mask):.4f}", pictures))
    return draw_sheet(rows, ["photo", "truth", "prediction", "red: false car, blue: missed"])


def draw_views(examples: list[tuple[int, np.ndarray]], cache: Cache) -> Image.Image:
    """Draw the views of one car, four a row: photo, with the true mask (left) and the predicted one under it."""
    rows = []
    for start in range(0, len(examples), 4):
        cells, titles = [], []
        for row, logits in examples[start : start + 4]:
            mask = load_mask(cache.pairs[row].mask_path)
            prediction = upsample(logits, *mask.shape) > 0
            titles.append(f"{cache.pairs[row].name}   Dice {dice(prediction, mask):.4f}")
            photo = area_fit(np.array(cache.images[row]), 320)
            width, height = photo.shape[1] // 2, photo.shape[0] // 2
            masks = np.hstack([draw_mask(mask, width, height), draw_mask(prediction, width, height)])
            cells.append(np.vstack([photo[:, : 2 * width], masks]))
        rows.append((titles, cells))
    return draw_sheet(rows)


def area_fit(photo: np.ndarray, width: int) -> np.ndarray:
    """Resize RGB (h, w, 3), uint8, to an even width, keeping its shape."""
    height = round(photo.shape[0] * width / photo.shape[1] / 2) * 2
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)


def save_curves(path: Path | str, history: list[dict]) -> None:
    """Plot loss and Dice of each epoch."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    epochs = [row["epoch"] for row in history]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(epochs, [row["train_loss"] for row in history], "o-", color="#0072B2", label="training")
    left.plot(epochs, [row["val_loss"] for row in history], "s--", color="#D55E00", label="validation")
    left.set(xlabel="epoch", ylabel="loss (cross-entropy + 1 - soft Dice)", yscale="log")
    left.legend(frameon=False)
    right.plot(epochs, [row["val_dice"] for row in history], "s--", color="#D55E00")
    right.set(xlabel="epoch", ylabel="validation Dice at training size")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    write_file(path, buffer.getvalue())
