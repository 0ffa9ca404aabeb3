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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PROJECT_DIR = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT_DIR / "scripts"))

import train
from carvana.files import run_command

import experiments
from data import Pair, limit_cars, require_pairs, split_cars

TEST_VIEWS = 4  # photos of each chosen car that are scored; the leaking training sees its others


@dataclass(frozen=True)
class Settings:
    """The data, and a training small enough to be made twice."""

    train_image_dir: Path = train.Config.train_image_dir  # photos
    train_mask_dir: Path = train.Config.train_mask_dir  # their masks
    image_width: int = 144  # training size in pixels
    image_height: int = 96  # likewise
    base_width: int = 8  # channels of the first convolution
    epochs: int = 10  # how often each photo is seen
    limit: int | None = None  # use at most so many photos, whole cars; for a quick try
    seed: int = 0  # of the choice of cars and views, and of both trainings
    link_dir: Path = PROJECT_DIR / "data/leak"  # gets folders of links to the photos


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
            raise ValueError(
                f"cars must have more than {TEST_VIEWS} photos, got one with {len(views)}. Add its others."
            )
        order = rng.permutation(len(views))
        test += [views[index] for index in sorted(order[:TEST_VIEWS])]
        siblings += [views[index] for index in sorted(order[TEST_VIEWS:])]
    others = [pair for pair in pairs if pair.car not in chosen]
    if len(others) <= len(siblings):
        raise ValueError(f"other cars must have more than {len(siblings)} photos, got {len(others)}. Add photos.")
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
        link_pairs(part, settings.link_dir / name)
    shared = ("image_width", "image_height", "base_width", "epochs", "seed")
    configs = [
        train.Config(
            **{key: getattr(settings, key) for key in shared},
            train_image_dir=settings.link_dir / name / "train",
            train_mask_dir=settings.link_dir / name / "train_masks",
            test_image_dir=settings.link_dir / "test/train",
            test_mask_dir=settings.link_dir / "test/train_masks",
            checkpoint_dir=PROJECT_DIR / f"experiments/leak_{name}",
            prediction_dir=PROJECT_DIR / f"experiments/leak_{name}/pictures",
        )
        for name in ("by_car", "by_image")
    ]
    failed = experiments.run_all(configs)
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed, see above. The same command tries again.")


if __name__ == "__main__":
    import tyro

    run_command(lambda args: main(tyro.cli(Settings, args=args, description=__doc__)))
