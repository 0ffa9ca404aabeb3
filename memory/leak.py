"""Measure the leak of a split by image: the same photos scored by two trainings that differ in one thing.

    python memory/leak.py --train-image-dir data/train --train-mask-dir data/train_masks

A tenth of the cars is chosen, and of each of them four views to score on. One training sees no photo of these cars;
the other sees their remaining views, in place of as many photos of other cars. Both see equally many photos, for as
many steps, with the same seed, and are scored on the same photos with their last weights: what remains between them
is what a split by image gives away.

Leaves experiments/leak_by_car and experiments/leak_by_image, which build.py compares. Photos are linked, not copied.
"""

import shutil
import sys
from pathlib import Path

import numpy as np

PROJECT_DIR = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT_DIR / "scripts"))

import train
from carvana.files import run_command
from carvana.settings import Count, PathSetting, Whole, parse_settings, settings_class

import experiments
from data import Pair, limit_cars, require_pairs, split_cars

LINK_DIR = PROJECT_DIR / "data/leak"  # gets folders of links to the photos
TEST_VIEWS = 4  # photos of each chosen car that are scored; the leaking training sees its others


@settings_class
class Settings:
    """The data, and a training small enough to be made twice."""

    train_image_dir: PathSetting = train.Config.train_image_dir  # photos
    train_mask_dir: PathSetting = train.Config.train_mask_dir  # their masks
    image_width: Count = 144  # training size in pixels
    image_height: Count = 96  # likewise
    base_width: Count = 8  # channels of the first convolution
    epochs: Count = 10  # how often each photo is seen
    limit: Count | None = None  # use at most so many photos, whole cars; for a quick try
    seed: Whole = 0  # of the choice of cars and views, and of both trainings


def divide(pairs: list[Pair], seed: int) -> dict[str, list[Pair]]:
    """Choose photos to score on (`test`) and to train on (`by_car`, `by_image`), equally many of the latter.

    Raises:
        ValueError: If the cars have too few views, or the other cars too few photos to give up.
    """
    chosen = split_cars([pair.car for pair in pairs], validation_share=0.1, seed=seed)
    rng = np.random.default_rng(seed)
    test, siblings = [], []
    for car in sorted(chosen):
        views = [pair for pair in pairs if pair.car == car]
        if len(views) <= TEST_VIEWS:
            raise ValueError(f"cars must have over {TEST_VIEWS} photos, got one with {len(views)}. Add its others.")
        order = rng.permutation(len(views))
        test += [views[index] for index in sorted(order[:TEST_VIEWS])]
        siblings += [views[index] for index in sorted(order[TEST_VIEWS:])]
    others = [pair for pair in pairs if pair.car not in chosen]
    if len(others) <= len(siblings):
        raise ValueError(f"other cars must have over {len(siblings)} photos, got {len(others)}. Add photos.")
    kept = [others[index] for index in sorted(rng.permutation(len(others))[len(siblings) :])]
    return dict(test=test, by_car=others, by_image=kept + siblings)


def link_pairs(pairs: list[Pair], folder: Path) -> None:
    """Make `folder`/train and `folder`/train_masks of links to the pairs' files, and of nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    for pair in pairs:
        for name, path in (("train", pair.image_path), ("train_masks", pair.mask_path)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / path.name).symlink_to(path.resolve())


def main(settings: Settings) -> None:
    pairs = limit_cars(require_pairs(settings.train_image_dir, settings.train_mask_dir), settings.limit)
    for name, part in divide(pairs, settings.seed).items():
        link_pairs(part, LINK_DIR / name)
    shared = {key: getattr(settings, key) for key in ("image_width", "image_height", "base_width", "epochs", "seed")}
    shared |= dict(test_image_dir=LINK_DIR / "test/train", test_mask_dir=LINK_DIR / "test/train_masks")
    configs = []
    for name in ("by_car", "by_image"):
        result_dir = PROJECT_DIR / f"experiments/leak_{name}"
        data_dirs = dict(train_image_dir=LINK_DIR / name / "train", train_mask_dir=LINK_DIR / name / "train_masks")
        result_dirs = dict(checkpoint_dir=result_dir, prediction_dir=result_dir / "pictures")
        configs.append(train.Config(**shared, **data_dirs, **result_dirs))
    failed = experiments.run_all(configs)
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed, see above. The same command tries again.")


if __name__ == "__main__":
    run_command(lambda args: main(parse_settings(Settings, args, __doc__)))
