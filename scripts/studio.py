"""Photograph synthetic cars: a data set in Carvana's layout, for a first run without Kaggle.

    python scripts/studio.py --cars 16 --size 480x320 --output data/studio --seed 0

writes `train/<car>_<01..16>.jpg` and `train_masks/<car>_<01..16>_mask.gif`: each car on a turntable before a fixed
camera, 22.5 degrees further from view to view, 01 from the front. Masks are exact, thresholded at half of a pixel's
coverage. A car depends on the seed and its number alone: a larger set begins with the smaller one, and interrupted work
goes on.
"""

import functools
import hashlib
import io
import multiprocessing
import os
import re
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from carvana.files import PROJECT_DIR, run_command, write_file
from carvana.pictures import load_image
from carvana.settings import Count, Fraction, PathSetting, Whole, parse_settings, settings_class
from carvana.studio import light
from carvana.studio.camera import shoot_car
from PIL import Image
from tqdm import tqdm


@settings_class
class Settings:
    """What to photograph."""

    cars: Count = 16  # how many cars, 16 photos each
    size: str = "480x320"  # width x height of a photo in pixels, up to Carvana's own 1918x1280
    output: PathSetting = PROJECT_DIR / "data/studio"  # folder that receives train/ and train_masks/
    seed: Whole = 0  # the same seed gives the same cars, whatever the number of workers
    workers: Count | None = None  # processes; by default one a core, and a single one for a tiny set
    stray: Fraction = 0.3  # how far room, lights and camera stray from one studio; more to train for other photos

    def __post_init__(self):
        size = re.fullmatch(r"(\d+)x(\d+)", self.size)
        if not size or not (32 <= int(size[1]) <= 1918 and 32 <= int(size[2]) <= 1280):
            raise ValueError(f"size must be width x height from 32x32 to 1918x1280, got {self.size}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height of a photo in pixels."""
        width, height = map(int, self.size.split("x"))
        return width, height

    def paths(self, number: int, view: int) -> tuple[Path, Path]:
        """Return where photo and mask of a view of car `number` (from 0) are filed."""
        name = f"{hashlib.sha256(f'studio {self.seed} {number}'.encode()).hexdigest()[:12]}_{view:02d}"
        return self.output / f"train/{name}.jpg", self.output / f"train_masks/{name}_mask.gif"


def write_car(settings: Settings, number: int) -> None:
    """Write the photos and masks of one car that are not there yet."""
    paths = {view: settings.paths(number, view) for view in range(1, light.VIEWS + 1)}
    missing = [view for view, pair in paths.items() if not all(path.exists() for path in pair)]
    for shot in shoot_car(settings.seed, number, *settings.shape, settings.stray, missing) if missing else ():
        mask = Image.frombytes("P", settings.shape, shot.mask.tobytes())
        mask.putpalette([0, 0, 0, 255, 255, 255])
        photo_path, mask_path = paths[shot.view]
        write_picture(photo_path, Image.fromarray(shot.photo), "JPEG", quality=shot.quality)
        write_picture(mask_path, mask, "GIF")


def write_picture(path: Path, picture: Image.Image, kind: str, **options) -> None:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    write_file(path, content.getvalue())


def make_studio(settings: Settings) -> None:
    """Write a data set of synthetic cars in Carvana's layout; whole files already there are kept.

    Raises:
        ValueError: For a folder with photos of another size.
        RuntimeError: If the ray tracer is not installed.
        OSError: If files cannot be written.
    """
    if light.EmbreeScene is None:
        raise RuntimeError("embreex must be installed, got none. Run `pip install -r requirements-studio.txt`.")
    width, height = settings.shape
    photo = settings.paths(0, 1)[0]
    if photo.exists() and (size := load_image(photo).shape)[:2] != (height, width):
        raise ValueError(f"{photo} must be of {settings.size} pixels, got {size[1]}x{size[0]}. Name another --output.")
    workers = settings.workers
    if workers is None:  # starting processes costs as much as some 60 photos of 96x64
        n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = n_cores if settings.cars * light.VIEWS * width * height > 3_000_000 else 1
    workers = min(workers, settings.cars)
    # Ctrl-C is the parent's affair: it drops the cars not begun and waits for those that are.
    ignore = (signal.signal, (signal.SIGINT, signal.SIG_IGN))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), *ignore) as pool:
        each = map if workers == 1 else pool.map  # the pool starts no process before it is asked to
        for _ in tqdm(each(functools.partial(write_car, settings), range(settings.cars)), "cars", settings.cars):
            pass
    print(f"{settings.cars * light.VIEWS} photos and masks of {settings.cars} cars in {settings.output}")


if __name__ == "__main__":
    run_command(lambda args: make_studio(parse_settings(Settings, args, __doc__)))
