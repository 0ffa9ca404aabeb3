"""Photograph synthetic cars: a data set in Carvana's layout, for a first run without Kaggle.

    python scripts/studio.py --cars 16 --size 480x320 --output data/studio --seed 0

writes `train/<car>_<01..16>.jpg` and `train_masks/<car>_<01..16>_mask.gif`: each car on a turntable before a fixed
camera, 22.5 degrees further from view to view, 01 from the front. Masks are exact, thresholded at half of a pixel's
coverage. A car depends on the seed and its number alone: a larger set begins with the smaller one, and interrupted work
goes on.
"""

import hashlib
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from carvana.files import PROJECT_DIR, run_command, write_file
from carvana.studio import light
from carvana.studio.camera import shoot_car
from PIL import Image
from tqdm import tqdm


@dataclass(frozen=True)
class Settings:
    """What to photograph."""

    cars: int = 16  # how many cars, 16 photos each
    size: str = "480x320"  # width x height of a photo in pixels, up to Carvana's own 1918x1280
    output: Path = PROJECT_DIR / "data/studio"  # folder that receives train/ and train_masks/
    seed: int = 0  # the same seed gives the same cars, whatever the number of workers
    workers: int | None = None  # processes; by default one a core, and a single one for a tiny set
    stray: float = 0.3  # how far room, lights and camera stray from one studio, 0 to 1; more to train for other photos


def name_car(seed: int, number: int) -> str:
    """Return the twelve hex digits under which car `number` (from 0) of a seed is filed."""
    return hashlib.sha256(f"studio {seed} {number}".encode()).hexdigest()[:12]


def list_paths(output: Path, car: str, view: int) -> tuple[Path, Path]:
    """Return where a view's photo and mask are filed."""
    return output / "train" / f"{car}_{view:02d}.jpg", output / "train_masks" / f"{car}_{view:02d}_mask.gif"


def write_car(output: Path, seed: int, number: int, width: int, height: int, stray: float) -> None:
    """Write the photos and masks of one car that are not there yet."""
    places = {view: list_paths(output, name_car(seed, number), view) for view in range(1, light.VIEWS + 1)}
    missing = [view for view, paths in places.items() if not all(path.exists() for path in paths)]
    for shot in shoot_car(seed, number, width, height, stray, missing) if missing else ():
        mask = Image.frombytes("P", (width, height), shot.mask.tobytes())
        mask.putpalette([0, 0, 0, 255, 255, 255])
        pictures = ((Image.fromarray(shot.photo), "JPEG", {"quality": shot.quality}), (mask, "GIF", {}))
        for path, (picture, kind, options) in zip(places[shot.view], pictures):
            content = BytesIO()
            picture.save(content, kind, **options)
            write_file(path, content.getvalue())


def check_settings(
    output: Path, cars: int, width: int, height: int, seed: int, workers: int | None, stray: float
) -> None:
    """Refuse what cannot be photographed.

    Raises:
        ValueError: For a setting out of range, or a folder of photos of another size.
        RuntimeError: If the ray tracer is not installed.
    """
    if light.EmbreeScene is None:
        raise RuntimeError("embreex must be installed, got none. Run `pip install -r requirements-studio.txt`.")
    if cars < 1:
        raise ValueError(f"cars must be at least 1, got {cars}.")
    if not (32 <= width <= 1918 and 32 <= height <= 1280):
        raise ValueError(f"size must be from 32x32 to 1918x1280 (width x height), got {width}x{height}.")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}.")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}. Leave it out to use every core.")
    if not 0 <= stray <= 1:
        raise ValueError(f"stray must be from 0 to 1, got {stray}.")
    for photo in (list_paths(output, name_car(seed, number), 1)[0] for number in range(cars)):
        if photo.exists():
            with Image.open(photo) as image:
                if image.size != (width, height):
                    raise ValueError(
                        f"{photo} must be of {width}x{height} pixels to be added to, got {image.width}x{image.height}. "
                        "Name another --output."
                    )


def make_studio(
    output: Path | str,
    cars: int,
    width: int,
    height: int,
    seed: int = 0,
    workers: int | None = None,
    stray: float = Settings.stray,
    progress: bool = True,
) -> Path:
    """Write a data set of synthetic cars in Carvana's layout and return its folder; whole files already there are kept.

    Args:
        output: Folder that receives train/ and train_masks/.
        width, height: Size of a photo in pixels.
        workers: Processes, None for one a core; the files do not depend on it.
        progress: Show a progress bar.

    Raises:
        ValueError, RuntimeError: As `check_settings`.
        OSError: If files cannot be written.
    """
    output = Path(output)
    check_settings(output, cars, width, height, seed, workers, stray)
    for leftover in output.glob("train*/*.tmp"):  # of a killed process
        leftover.unlink()
    if workers is None:  # starting processes costs as much as some 60 photos of 96x64
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = cores if cars * light.VIEWS * width * height > 3_000_000 else 1
    jobs = [(output, seed, number, width, height, stray) for number in range(cars)]
    with tqdm(total=cars * light.VIEWS, desc="studio", unit="photo", disable=not progress) as bar:
        if min(workers, cars) == 1:
            for job in jobs:
                write_car(*job)
                bar.update(light.VIEWS)
            return output
        # Ctrl-C is the parent's affair: it drops the cars not begun and waits for those that are.
        ignore = (signal.signal, (signal.SIGINT, signal.SIG_IGN))
        pool = ProcessPoolExecutor(min(workers, cars), multiprocessing.get_context("spawn"), *ignore)
        try:
            for done in as_completed([pool.submit(write_car, *job) for job in jobs]):
                done.result()
                bar.update(light.VIEWS)
        finally:
            pool.shutdown(cancel_futures=True)
    return output


def main(settings: Settings) -> None:
    """Run the command."""
    width, _, height = settings.size.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"size must be width x height such as 480x320, got {settings.size}.")
    rest = settings.seed, settings.workers, settings.stray
    make_studio(settings.output, settings.cars, int(width), int(height), *rest)
    print(f"{settings.cars * light.VIEWS} photos and masks of {settings.cars} cars in {settings.output}")


if __name__ == "__main__":
    import tyro

    run_command(lambda args: main(tyro.cli(Settings, args=args, description=__doc__)))
