"""Cut cars out of photos with a trained network.

    python scripts/predict.py my_photos --output cutouts
    python scripts/predict.py car.jpg --outputs cutout --background "#e0e0e0"
    torchrun --nproc-per-node 2 scripts/predict.py my_photos          several processes share the photos
    python scripts/predict.py data/test --submission submission.csv   for Kaggle
    python scripts/predict.py --export carvana-unet.onnx              for other programs

A photo `<name>.jpg` gives, at full resolution, `<name>_mask.png` (0 and 255), `<name>_cutout.png` (transparent) and
`<name>_overlay.jpg`; predictions.csv says how much of each photo is car. The same command goes on where it was stopped.
"""

import errno
import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import tyro
from carvana.cutout import ENDINGS, encode_picture, keep_main_car, make_pictures, read_background, read_crop, warn
from carvana.files import PROJECT_DIR, run_command, write_file
from carvana.listing import is_own_result, say_own_results, say_unread
from carvana.machine import choose_device, keep_memory, n_cores
from carvana.masks import count, name_some
from carvana.pictures import IMAGE_FORMATS, IMAGE_SUFFIXES, encode_runs, load_image, open_picture, read_image, upsample
from carvana.rows import append_row, start_table
from carvana.segmenter import DEFAULT_WEIGHTS, Segmenter, measure_uncertainty, to_logit
from carvana.weights import find_weights
from tqdm import tqdm

from data import split_name

Output = Literal["mask", "cutout", "overlay"]


@dataclass(frozen=True)
class Settings:
    """What to predict; each field is also an option of the command line."""

    photos: tyro.conf.Positional[tuple[Path, ...]] = ()  # photos, or folders of them with all their sub-folders
    output: Path = PROJECT_DIR / "predictions"  # folder for the results; sub-folders stay as they are
    outputs: tuple[Output, ...] = ("mask", "cutout", "overlay")  # what to write of each photo
    background: str | None = None  # also write <name>_background.jpg: white, #rrggbb, or a photo's path
    shadow: bool = False  # keep the shadow that the car casts on the floor; one is drawn where the photo shows none
    crop: tuple[str, ...] | None = None  # crop cut-out and background to the car, or around it to a shape such as 4:3
    main_car: bool = False  # keep the largest car alone
    format: Literal["png", "webp"] = "png"  # of cut-outs; webp is not lossless, and a twelfth of the size
    weights: Path = DEFAULT_WEIGHTS  # .safetensors, of a training too, or a short name such as street
    threshold: float | None = None  # probability from which a pixel is car; None: the one tuned on validation cars
    tta: bool = False  # average with the mirrored view: twice the time, slightly more exact
    overwrite: bool = False  # make anew what is already there
    device: str = "auto"  # cuda, mps, cpu, or auto for the first of these that is there
    submission: Path | None = None  # write only this file of run-length rows for Kaggle
    export: Path | None = None  # write only this ONNX file of the network


# ----------------------------------------------------------------------------------------------------------- photos


@dataclass(frozen=True)
class Photo:
    """A photo to predict and what its results are called."""

    path: Path
    name: str  # output's path below the output folder, without `_mask.png`
    row: str  # name in the table; Kaggle knows a photo by its file's name alone, whatever folder it lies in


def find_photos(settings: Settings) -> list[Photo]:
    """List the photos of files and folders, sub-folders included; what is left out is said on stderr.

    Hidden files, the output folder and results of this program, wherever they lie, are no photos.

    Raises:
        FileNotFoundError: If an input does not exist.
        ValueError: If there is no photo, results would lie among the photos, or two photos would share a result's name.
    """
    if not settings.photos:
        raise ValueError("photos must name a photo or a folder, got none. Try `python scripts/predict.py my_photos`.")
    photos, unread, own = {}, [], []
    output = None if settings.submission else settings.output.resolve()
    for path in settings.photos:
        if not path.exists():
            raise FileNotFoundError(f"{printable(path)} does not exist. Name a photo, or a folder of photos.")
        if path.resolve() == output:
            raise ValueError(f"output must be another folder than that of the photos, got {path} for both.")
        folder = path if path.is_dir() else path.parent
        for file in list_tree(path, output) if path == folder else [path]:
            if is_own_result(file):
                own.append(file)
            elif path == folder and file.suffix.lower() not in IMAGE_SUFFIXES:
                unread.append(file)
            else:
                name = file.relative_to(folder).with_suffix("")
                row = f"{name.name}.jpg" if settings.submission else name.as_posix()
                photos[file] = Photo(file, name.as_posix(), printable(row))  # a photo named twice is done once
    left_out = [printable(say_unread(unread, "", "photos"))] if unread else []
    left_out += [printable(say_own_results(own))] if own else []
    if not photos:
        named = printable(" ".join(map(str, settings.photos)))
        raise ValueError(f"{named} must hold photos, got none. {' '.join(left_out)}")
    for sentence in left_out:
        print(f"note: {sentence}", file=sys.stderr)

    first: dict[str, Path] = {}
    for photo in photos.values():
        other = first.setdefault(photo.row.casefold(), photo.path)  # some file systems take A and a for one name
        if other != photo.path:
            both = f"{printable(other)} and {printable(photo.path)}"
            raise ValueError(f"{both} would get results of one name. Rename one, or predict one folder at a time.")
    return list(photos.values())


def list_tree(folder: Path, output: Path | None) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders, sorted; hidden ones and those of `output` are left out."""
    for parent, folders, files in os.walk(folder):
        parent = Path(parent)
        folders[:] = sorted(name for name in folders if name[0] != "." and (parent / name).resolve() != output)
        yield from (parent / name for name in sorted(files) if name[0] != ".")


def check_submission(photos: list[Photo]) -> None:
    """Say on stderr, before hours are spent, why Kaggle would refuse a submission of these photos."""
    if len(photos) != N_SUBMISSION:
        print(f"warning: a submission must have {N_SUBMISSION:,} photos, got {len(photos):,}.", file=sys.stderr)
    others = [photo.path for photo in photos if not split_name(photo.path.stem)[1]]
    if others:
        what = f"{count(len(others), 'photo')} not named like Carvana's (<12 hex digits>_<01 to 16>.jpg)"
        print(f"warning: {what}: {printable(name_some(path.name for path in others))}.", file=sys.stderr)


def printable(path: Path | str) -> str:
    """Show a path on one line, whatever its name is made of."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(path))


def map_bounded(function: Callable, items: Iterable, n_threads: int, cost: Callable, limit: float) -> Iterator:
    """Map in order with threads, so that neither many items nor large ones take more memory than a few.

    Args:
        cost: Estimates the memory in bytes that an item takes while it is worked on.
        limit: Bytes that the items being worked on may take together; an item that takes more is worked on alone.
    """
    with ThreadPoolExecutor(n_threads) as pool:
        waiting = deque()
        taken = lambda: sum(bytes_ for future, bytes_ in waiting if not future.done())
        try:
            for item in items:
                wanted = cost(item)
                while waiting and (len(waiting) > 2 * n_threads or taken() and taken() + wanted > limit):
                    yield waiting.popleft()[0].result()
                waiting.append((pool.submit(function, item), wanted))
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------- results

MEMORY = 3 * 2**30  # bytes that the command takes at most, for photos of up to 108 megapixels
BASE_MEMORY = 0.9 * 2**30  # of these, before the first photo
MASK_BYTES, PICTURE_BYTES = 8, 20  # bytes a pixel while a photo is worked on, for its mask alone and for pictures
HEADER = ["photo", "car_share", "uncertainty", "warning"]
N_SUBMISSION = 100_064  # photos in the competition's test set


def output_paths(photo: Photo, settings: Settings) -> dict[str, Path]:
    kinds = [*settings.outputs, *(["background"] if settings.background else [])]
    endings = ENDINGS | {"cutout": f"_cutout.{settings.format}"}
    return {kind: settings.output / (photo.name + endings[kind]) for kind in kinds}


def is_done(photo: Photo, settings: Settings) -> bool:
    """Tell whether all results are there and none is older than the photo."""
    try:
        made = min(path.stat().st_mtime_ns for path in output_paths(photo, settings).values())
        return made >= photo.path.stat().st_mtime_ns
    except (OSError, ValueError):
        return False


def estimate_memory(photo: Photo, settings: Settings) -> int:
    """Estimate the bytes that a photo takes while it is worked on, from the size that its file states."""
    try:
        with open_picture(photo.path, IMAGE_FORMATS, "a photo") as picture:
            n_pixels = picture.width * picture.height
    except (OSError, ValueError):  # which is reported when its turn comes
        return 0
    masks_alone = settings.submission or output_paths(photo, settings).keys() == {"mask"}
    return n_pixels * (MASK_BYTES if masks_alone else PICTURE_BYTES)


def predict_photo(
    photo: Photo, segmenter: Segmenter, threshold: float, settings: Settings, background: np.ndarray | None
) -> list[str]:
    """Write a photo's results; return its row of the table, without the name."""
    # The network always sees the photo decoded at a fraction of its size: the mask does not depend on what is written.
    image, size = read_image(photo.path, target_size=segmenter.fit)
    small = segmenter.logits(image, size)
    logits = upsample(keep_main_car(small, threshold) if settings.main_car else small, *size)
    if settings.submission:
        return [encode_runs(logits > to_logit(threshold))]
    share, uncertainty = np.count_nonzero(logits > to_logit(threshold)) / logits.size, measure_uncertainty(small)
    paths = output_paths(photo, settings)
    if set(paths) != {"mask"} and image.shape[:2] != size:
        image = load_image(photo.path)
    pictures = make_pictures(image, logits, threshold, paths, background, settings.shadow, read_crop(settings.crop))
    del image, logits  # which `make_pictures` lets go of when it has used them
    for kind, pixels in pictures:
        write_file(paths[kind], encode_picture(pixels, paths[kind].suffix))
        del pixels
    warning = warn(share, uncertainty, segmenter.description.max_uncertainty)
    return [f"{share:.4f}", f"{uncertainty:.2f}", warning]


# ---------------------------------------------------------------------------------------------------------- command


def predict(settings: Settings) -> int:
    """Predict all photos; return 1 if any of them failed."""
    if settings.export is not None:
        from carvana.export import export_network

        return export_network(settings.weights, settings.export)
    # What a user may have mistyped comes before the seconds that the network takes.
    if settings.threshold is not None and not 0 < settings.threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {settings.threshold}.")
    crop = read_crop(settings.crop)
    background = read_background(settings.background) if settings.background else None
    photos = find_photos(settings)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets them
    if settings.submission and rank == 0:
        check_submission(photos)

    n_threads = max(1, n_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if choose_device(settings.device).type == "cpu":
        keep_memory()
    segmenter = Segmenter(settings.weights, settings.device, settings.tta, n_parallel=n_threads)
    # One photo a thread, from file to files, keeps all cores busy better than all cores on one photo.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threshold = settings.threshold or segmenter.threshold
    with open(find_weights(settings.weights), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    made_with = dict(weights=digest, threshold=threshold, tta=settings.tta, background=settings.background, crop=crop)
    made_with |= dict(shadow=settings.shadow or None, main_car=settings.main_car or None)

    table, header = settings.output / "predictions.csv", HEADER
    if settings.submission:
        table, header = settings.submission, ["img", "rle_mask"]
    by_row = {photo.row: photo for photo in photos[rank::world_size]}
    is_kept = lambda photo: not settings.overwrite and (settings.submission or is_done(photo, settings))
    keep = lambda row: row not in by_row or is_kept(by_row[row])
    done = start_table(table, header, made_with, keep, settings.overwrite)
    todo = [photo for row, photo in by_row.items() if row not in done]

    def attempt(photo: Photo) -> list[str] | Exception:
        try:
            return predict_photo(photo, segmenter, threshold, settings, background)
        except (OSError, ValueError) as error:
            if getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise  # the next photo would fail likewise
            return error

    failures, warnings = [], []
    cost = lambda photo: estimate_memory(photo, settings)
    results = map_bounded(attempt, todo, n_threads, cost, MEMORY - BASE_MEMORY)
    bar = tqdm(results, "predicting", len(todo), unit="photo", disable=rank > 0, leave=False, file=sys.stderr)
    for photo, result in zip(todo, bar):
        if isinstance(result, Exception):
            failures.append(printable(result))
            continue
        append_row(table, [photo.row, *result])
        if not settings.submission and result[-1]:
            share, uncertainty, warning = result
            warnings.append(f"{photo.row}: {warning} (car {float(share):.1%}, uncertainty {uncertainty} %)")
    n_kept = len(by_row) - len(todo)
    kept = f", {n_kept} there already" if n_kept else ""
    predicted = f"{count(len(todo) - len(failures), 'photo')} predicted{kept}, {len(failures)} failed"
    print(f"{predicted}; how much of each is car: {table}")
    print(f"network computed by {segmenter.runtime.name}")
    if len(warnings) > 10:
        warnings[10:] = [f"{len(warnings) - 10} more photos, see the column `warning`"]
    for line in [*(f"warning: {each}" for each in warnings), *(f"failed: {each}" for each in failures)]:
        print(line, file=sys.stderr)
    return 1 if failures else 0


def main(args: list[str]) -> int:
    return predict(tyro.cli(Settings, args=args, description=__doc__))


if __name__ == "__main__":
    run_command(main)
