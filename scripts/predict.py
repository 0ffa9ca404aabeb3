"""Cut cars out of photos with a trained network.

    python scripts/predict.py my_photos --output cutouts
    python scripts/predict.py car.jpg --outputs cutout --background "#e0e0e0"
    torchrun --nproc-per-node 2 scripts/predict.py my_photos          several processes share the photos
    python scripts/predict.py data/test --submission submission.csv   for Kaggle
    python scripts/predict.py --export carvana-unet.onnx              for other programs

A photo `<name>.jpg` gives, at its own size, `<name>_mask.png` (0 and 255), `<name>_cutout.png` (transparent) and
`<name>_overlay.jpg`; predictions.csv tells how much of each photo is car. The same command goes on where it was stopped.

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
from carvana.cutout import ENDINGS, encode_picture, make_pictures, read_background, warn
from carvana.machine import choose_device, keep_memory
from carvana.pictures import IMAGE_SUFFIXES, decode_runs, encode_runs, read_image, upsample
from carvana.segmenter import DEFAULT_WEIGHTS, Segmenter, measure_uncertainty, to_logit
from carvana.tables import Table
from extra import remove_leftovers, run_command, write_file
from tqdm import tqdm

from data import PROJECT_DIR


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
    weights: Path = DEFAULT_WEIGHTS  # .safetensors, of a training too
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
    """List the photos of files and folders, sub-folders included, sorted; hidden files and `output` are left out.

    Raises:
        FileNotFoundError: If an input does not exist.
        ValueError: If there is no photo, results would lie among the photos, or two photos would share a result's name.
    """
    photos = []
    output = output.resolve() if output else None
    for path in inputs:
        if path.is_dir():
            if path.resolve() == output:
                raise ValueError(f"output must be another folder than that of the photos, got {path} for both.")
            for folder, folders, files in os.walk(path):
                folder = Path(folder)
                folders[:] = sorted(
                    name for name in folders if not name.startswith(".") and (folder / name).resolve() != output
                )
                for name in sorted(files):
                    if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                        photos.append(
                            Photo(folder / name, (folder / name).relative_to(path).with_suffix("").as_posix())
                        )
        elif path.exists():
            photos.append(Photo(path, path.stem))
        else:
            raise FileNotFoundError(f"{printable(path)} does not exist. Name a photo, or a folder of photos.")
    if not photos:
        raise ValueError(
            f"{printable(' '.join(map(str, inputs)))} must hold photos ({' '.join(sorted(IMAGE_SUFFIXES))}), got none."
        )
    names: dict[str, Path] = {}
    for photo in photos:
        other = names.setdefault(photo.name.casefold(), photo.path)  # some file systems take A and a for one name
        if other != photo.path:
            raise ValueError(
                f"{printable(other)} and {printable(photo.path)} would write results of one name. Rename one of them, or predict "
                "them into different folders with --output."
            )
    return list({photo.path: photo for photo in photos}.values())  # a photo named twice is done once


def printable(path: Path | str) -> str:
    """Show a path on one line, whatever its name is made of."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(path))


def map_bounded(function: Callable, items: Iterable, n_threads: int) -> Iterator:
    """Map in order with threads, with few results waiting: memory does not grow with the number of items."""
    with ThreadPoolExecutor(n_threads) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * n_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------- results

HEADER = ["photo", "car_share", "doubt", "warning"]


def output_paths(photo: Photo, settings: Settings) -> dict[str, Path]:
    kinds = [*settings.outputs, *(["background"] if settings.background else [])]
    return {kind: settings.output / (photo.name + ENDINGS[kind]) for kind in kinds}


def is_done(photo: Photo, settings: Settings) -> bool:
    """Tell whether all results are there and none is older than the photo."""
    try:
        made = min(path.stat().st_mtime_ns for path in output_paths(photo, settings).values())
        return made >= photo.path.stat().st_mtime_ns
    except (OSError, ValueError):
        return False


def predict_photo(
    photo: Photo, segmenter: Segmenter, threshold: float, settings: Settings, background: np.ndarray | None
) -> list:
    """Write a photo's results; return its row of the table, without the name."""
    paths = output_paths(photo, settings)
    # For the mask alone, a photo decoded at a fraction of its size is enough.
    image, native_size = read_image(photo.path, target_size=segmenter.fit if set(paths) == {"mask"} else None)
    small = segmenter.logits(image, native_size)
    logits = upsample(small, *native_size)
    for kind, picture in make_pictures(image, logits, threshold, paths, background):
        write_file(paths[kind], encode_picture(picture, paths[kind].suffix))
    share, doubt = np.count_nonzero(logits > to_logit(threshold)) / logits.size, measure_uncertainty(small)
    return [f"{share:.4f}", f"{doubt:.1f}", warn(share, doubt)]


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
        weights=digest_file(settings.weights), threshold=threshold, tta=settings.tta, background=settings.background
    )
    photos = find_photos(settings.photos, None if settings.submission else settings.output)[rank::world_size]

    if settings.submission:
        table = Table(settings.submission, ["img", "rle_mask"])
        by_name = {printable(f"{photo.name}.jpg"): photo for photo in photos}
        done = table.start(made_with, lambda name: not (name in by_name and settings.overwrite), settings.overwrite)
        work = lambda photo: submission_row(photo, segmenter, threshold)
    else:
        table = Table(settings.output / "predictions.csv", HEADER)
        background = read_background(settings.background) if settings.background else None
        by_name = {printable(photo.name): photo for photo in photos}
        stays = lambda name: name not in by_name or not settings.overwrite and is_done(by_name[name], settings)
        done = table.start(made_with, stays, settings.overwrite)
        work = lambda photo: predict_photo(photo, segmenter, threshold, settings, background)

    def attempt(item: tuple[str, Photo]) -> tuple[str, list | Exception]:
        try:
            return item[0], work(item[1])
        except (OSError, ValueError) as error:
            if getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise  # the next photo would fail likewise
            return item[0], error

    todo = [item for item in by_name.items() if item[0] not in done]
    for folder in {path.parent for _, photo in todo for path in output_paths(photo, settings).values()}:
        remove_leftovers(folder)
    failures, warnings = {}, {}
    results = map_bounded(attempt, todo, n_threads)
    for name, result in tqdm(
        results, "predicting", len(todo), unit="photo", disable=rank > 0, leave=False, file=sys.stderr
    ):
        if isinstance(result, Exception):
            failures[name] = printable(result)
            continue
        table.append([name, *result])
        if not settings.submission and result[-1]:
            warnings[name] = f"{result[-1]} (car {float(result[0]):.1%}, doubt {result[1]})"
    print_summary(len(todo) - len(failures), len(by_name) - len(todo), failures, warnings, table.path)
    print(f"network computed by {segmenter.runtime.name}")
    return 1 if failures else 0


def n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def print_summary(
    n_done: int, n_skipped: int, failures: dict[str, str], warnings: dict[str, str], table_path: Path
) -> None:
    skipped = f", {n_skipped} were there already" if n_skipped else ""
    print(f"{n_done} photos predicted{skipped}, {len(failures)} failed; how much of each is car: {table_path}")
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
