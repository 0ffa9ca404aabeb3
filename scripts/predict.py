"""Cut cars out of photos with a trained network.

    python scripts/predict.py my_photos --output cutouts
    python scripts/predict.py car.jpg --outputs cutout --background "#e0e0e0"
    torchrun --nproc-per-node 2 scripts/predict.py my_photos          several processes share the photos
    python scripts/predict.py data/test --submission submission.csv   for Kaggle
    python scripts/predict.py --export carvana-unet.onnx              for other programs

A photo `<name>.jpg` gives, at full resolution, `<name>_mask.png` (0 and 255), `<name>_cutout.png` (transparent) and
`<name>_overlay.jpg`; predictions.csv says how much of each photo is car. The same command goes on where it was stopped.

In Python:

    from predict import Segmenter
    probability = Segmenter()(image)
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
from carvana.pictures import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    decode_runs,
    encode_runs,
    load_image,
    open_picture,
    read_image,
    upsample,
)
from carvana.rows import append_row, start_table
from carvana.segmenter import DEFAULT_WEIGHTS, Segmenter, measure_uncertainty, to_logit
from carvana.weights import find_weights
from tqdm import tqdm

from data import split_name


@dataclass(frozen=True)
class Settings:
    """What to predict; each field is also an option of the command line."""

    photos: tyro.conf.Positional[tuple[Path, ...]] = ()  # photos, or folders of them with all their sub-folders
    output: Path = PROJECT_DIR / "predictions"  # folder for the results; sub-folders stay as they are
    outputs: tuple[Literal["mask", "cutout", "overlay"], ...] = (
        "mask",
        "cutout",
        "overlay",
    )  # what to write of each photo
    background: str | None = None  # also write <name>_background.jpg: white, #rrggbb, or a photo's path
    shadow: bool = False  # keep the shadow that the car casts on the floor; one is drawn where the photo shows none
    crop: tuple[str, ...] | None = None  # crop cut-out and background to the car, or around it to a shape such as 4:3
    main_car: bool = False  # keep the largest car alone
    format: Literal["png", "webp"] = "png"  # of cut-outs; webp is about a tenth of the size, not lossless
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
    name: str  # output's path below the output folder, without `_mask.png`; also its name in the table


def find_photos(inputs: Iterable[Path], output: Path | None) -> list[Photo]:
    """List the photos of files and folders, sub-folders included, sorted; what is left out is said on stderr.

    Hidden files, `output` and results of this program, wherever they lie, are no photos.

    Raises:
        FileNotFoundError: If an input does not exist.
        ValueError: If there is no photo, results would lie among the photos, or two photos would share a result's name.
    """
    photos, unread, own = [], [], []
    for path in inputs:
        if not path.exists():
            raise FileNotFoundError(f"{printable(path)} does not exist. Name a photo, or a folder of photos.")
        if path.is_dir() and output and path.resolve() == output.resolve():
            raise ValueError(f"output must be another folder than that of the photos, got {path} for both.")
        for file in list_tree(path, output) if path.is_dir() else [path]:
            if is_own_result(file):
                own.append(file)
            elif path.is_dir() and file.suffix.lower() not in IMAGE_SUFFIXES:
                unread.append(file)
            else:
                name = file.relative_to(path) if path.is_dir() else Path(file.name)
                photos.append(Photo(file, name.with_suffix("").as_posix()))
    left_out = [printable(say_unread(unread, "", "photos"))] if unread else []
    left_out += [printable(say_own_results(own))] if own else []
    if not photos:
        raise ValueError(f"{printable(' '.join(map(str, inputs)))} must hold photos, got none. {' '.join(left_out)}")
    for sentence in left_out:
        print(f"note: {sentence}", file=sys.stderr)
    return list({photo.path: photo for photo in photos}.values())  # a photo named twice is done once


def list_tree(folder: Path, output: Path | None) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders, sorted; hidden ones and those of `output` are left out."""
    for parent, folders, files in os.walk(folder):
        parent = Path(parent)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not (output and (parent / name).resolve() == output.resolve())
        )
        yield from (parent / name for name in sorted(files) if not name.startswith("."))


def require_unique(photos: Iterable[Photo], name_of: Callable[[Photo], str], advice: str) -> None:
    """Raise a ValueError if two photos would share a result's name."""
    names: dict[str, Path] = {}
    for photo in photos:
        other = names.setdefault(name_of(photo).casefold(), photo.path)  # some file systems take A and a for one name
        if other != photo.path:
            raise ValueError(
                f"{printable(other)} and {printable(photo.path)} would write results of one name. {advice}"
            )


def submission_name(photo: Photo) -> str:
    """Return the name that Kaggle knows a photo by: the file's alone, whatever folder it lies in."""
    return printable(f"{photo.path.stem}.jpg")


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
) -> list:
    """Write a photo's results; return its row of the table, without the name."""
    paths = output_paths(photo, settings)
    # The network always sees the photo decoded at a fraction of its size: the mask does not depend on what is written.
    image, native_size = read_image(photo.path, target_size=segmenter.fit)
    small = segmenter.logits(image, native_size)
    logits = upsample(keep_main_car(small, threshold) if settings.main_car else small, *native_size)
    if set(paths) != {"mask"} and image.shape[:2] != native_size:
        image = load_image(photo.path)
    share, uncertainty = np.count_nonzero(logits > to_logit(threshold)) / logits.size, measure_uncertainty(small)
    pictures = make_pictures(image, logits, threshold, paths, background, settings.shadow, read_crop(settings.crop))
    del image, logits  # which `make_pictures` lets go of when it has used them
    for kind, pixels in pictures:
        write_file(paths[kind], encode_picture(pixels, paths[kind].suffix))
        del pixels
    warning = warn(share, uncertainty, segmenter.description.uncertainty_limit)
    return [f"{share:.4f}", f"{uncertainty:.1f}", warning]


def submission_row(photo: Photo, segmenter: Segmenter, threshold: float) -> list[str]:
    """Predict a photo as run lengths, read back and compared."""
    image, native_size = read_image(photo.path, target_size=segmenter.fit)
    mask = upsample(segmenter.logits(image, native_size), *native_size) > to_logit(threshold)
    runs = encode_runs(mask)
    if not np.array_equal(decode_runs(runs, *native_size), mask):
        raise RuntimeError(f"{photo.path}: the run lengths do not give the mask back.")
    return [runs]


# ---------------------------------------------------------------------------------------------------------- command


def predict(settings: Settings) -> int:
    """Predict all photos; return 1 if any of them failed."""
    if settings.export is not None:
        from carvana.export import export_network

        return export_network(settings.weights, settings.export)
    if not settings.photos:
        raise ValueError(
            "photos must name at least one photo or folder, got none. Try `python scripts/predict.py my_photos`."
        )
    if settings.threshold is not None and not 0 < settings.threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {settings.threshold}.")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets them
    n_threads = max(1, n_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if choose_device(settings.device).type == "cpu":
        keep_memory()
    segmenter = Segmenter(settings.weights, settings.device, settings.tta, n_parallel=n_threads)
    # One photo a thread, from file to files, keeps all cores busy better than all cores on one photo.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threshold = settings.threshold or segmenter.threshold
    made_with = dict(
        weights=digest_file(find_weights(settings.weights)),
        threshold=threshold,
        tta=settings.tta,
        background=settings.background,
        shadow=settings.shadow or None,
        crop=read_crop(settings.crop),
        main_car=settings.main_car or None,
    )
    photos = find_photos(settings.photos, None if settings.submission else settings.output)
    if settings.submission:
        require_unique(
            photos, submission_name, "Kaggle knows photos by the names of their files: name one folder of them."
        )
        if rank == 0:
            check_submission(photos)
        table, header, name_of = settings.submission, ["img", "rle_mask"], submission_name
        is_kept = lambda photo: not settings.overwrite
        work = lambda photo: submission_row(photo, segmenter, threshold)
    else:
        require_unique(photos, lambda photo: photo.name, "Rename one of them, or predict them into different folders.")
        table, header, name_of = settings.output / "predictions.csv", HEADER, lambda photo: printable(photo.name)
        background = read_background(settings.background) if settings.background else None
        is_kept = lambda photo: not settings.overwrite and is_done(photo, settings)
        work = lambda photo: predict_photo(photo, segmenter, threshold, settings, background)
    by_name = {name_of(photo): photo for photo in photos[rank::world_size]}
    keep = lambda name: name not in by_name or is_kept(by_name[name])
    done = start_table(table, header, made_with, keep, settings.overwrite)

    def attempt(item: tuple[str, Photo]) -> tuple[str, list | Exception]:
        try:
            return item[0], work(item[1])
        except (OSError, ValueError) as error:
            if getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise  # the next photo would fail likewise
            return item[0], error

    todo = [item for item in by_name.items() if item[0] not in done]
    failures, warnings = {}, {}
    cost = lambda item: estimate_memory(item[1], settings)
    results = map_bounded(attempt, todo, n_threads, cost, MEMORY - BASE_MEMORY)
    for name, result in tqdm(
        results, "predicting", len(todo), unit="photo", disable=rank > 0, leave=False, file=sys.stderr
    ):
        if isinstance(result, Exception):
            failures[name] = printable(result)
            continue
        append_row(table, [name, *result])
        if not settings.submission and result[-1]:
            warnings[name] = f"{result[-1]} (car {float(result[0]):.1%}, uncertainty {result[1]})"
    print_summary(len(todo) - len(failures), len(by_name) - len(todo), failures, warnings, table)
    print(f"network computed by {segmenter.runtime.name}")
    return 1 if failures else 0


def digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def print_summary(
    n_done: int, n_skipped: int, failures: dict[str, str], warnings: dict[str, str], table_path: Path
) -> None:
    skipped = f", {n_skipped} there already" if n_skipped else ""
    print(f"{count(n_done, 'photo')} predicted{skipped}, {len(failures)} failed; how much of each is car: {table_path}")
    for number, (name, warning) in enumerate(warnings.items()):
        if number == 10:
            print(f"warning: {len(warnings) - 10} more photos, see the column `warning`", file=sys.stderr)
            break
        print(f"warning: {name}: {warning}", file=sys.stderr)
    for failure in failures.values():
        print(f"failed: {failure}", file=sys.stderr)


def main(args: list[str]) -> int:
    return predict(tyro.cli(Settings, args=args, description=__doc__))


if __name__ == "__main__":
    run_command(main)
