"""From photos and masks on disk to batches: pairs, split by car, cache, augmentation.

python scripts/data.py check       goes through your files and says what must be mended
python scripts/data.py download    brings the competition's photos and masks through Kaggle
"""

import hashlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from carvana.augmentation import make_transform, replace_background
from carvana.cache import Cache, build_cache, colour_statistics, read_pair, read_set
from carvana.files import PROJECT_DIR, run_command
from carvana.listing import (
    NAMING,
    NAMING_RULE,
    GroupBy,
    Pair,
    describe_files,
    index_by_name,
    is_own_result,
    list_files,
    print_report,
)
from carvana.masks import count, find_oddities
from carvana.pictures import IMAGE_SUFFIXES, MASK_SUFFIXES
from carvana.settings import PathSetting
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = ["Cache", "CarDataset", "EpochBatches", "Pair", "build_cache", "colour_statistics", "read_pair"]

# ------------------------------------------------------------------------------------------------------------ pairs


def split_name(name: str, group_by: GroupBy = "name") -> tuple[str, int]:
    """Tell car and view from a photo's name.

    Example:
        >>> split_name("0123456789ab_07"), split_name("my car")
        (('0123456789ab', 7), ('my car', 0))
        >>> split_name("film1_0042", "prefix"), split_name("garage/42", "folder")
        (('film1', 0), ('garage', 0))
    """
    folder, _, stem = name.rpartition("/")
    match = re.fullmatch(r"([0-9a-f]{12})_(0[1-9]|1[0-6])", stem)
    if group_by == "folder":
        return folder, 0
    if match:
        return match[1], int(match[2])
    return (re.sub(r"[\W_]*\d+\D*$", "", name) if group_by == "prefix" else name), 0


def find_pairs(
    image_dir: Path | str, mask_dir: Path | str, group_by: GroupBy = "name"
) -> tuple[list[Pair], list[Path], list[Path]]:
    """Match photos and masks by name; with `group_by="folder"` sub-folders are read, too.

    Returns:
        The pairs, sorted by name, and the photos and the masks left over. Results of this program are neither.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If two files of one folder share a name.
    """
    recursive = group_by == "folder"
    photos = [path for path in list_files(image_dir, IMAGE_SUFFIXES, recursive) if not is_own_result(path)]
    images = index_by_name(photos, image_dir)
    masks = index_by_name(list_files(mask_dir, MASK_SUFFIXES, recursive), mask_dir)
    pairs = []
    for name, path in images.items():
        mask = masks.get(f"{name}_mask") or masks.get(name)
        if mask not in (None, path):
            pairs.append(Pair(name, path, mask, *split_name(name, group_by)))
    used = {path for pair in pairs for path in (pair.image_path, pair.mask_path)}
    left_photos = [path for path in photos if path not in used]
    used.update(left_photos)  # in a folder of both
    return pairs, left_photos, [path for path in masks.values() if path not in used]


def require_pairs(image_dir: Path | str, mask_dir: Path | str, group_by: GroupBy = "name") -> list[Pair]:
    """Find pairs for training, saying on stderr what is left out and how photos are grouped.

    Raises:
        ValueError: If no photo has a mask.
    """
    pairs, images, masks = found = find_pairs(image_dir, mask_dir, group_by)
    notes, lonely = describe_files(Path(image_dir), Path(mask_dir), *found, group_by)
    if not pairs:
        raise ValueError(
            f"{image_dir} and {mask_dir} must hold at least one photo with its mask, got {count(len(images), 'photo')} "
            f"and {count(len(masks), 'mask')} without a partner. {' '.join([*lonely, *notes, NAMING_RULE])}"
        )
    for sentence in [*notes, *lonely]:
        print(f"note: {sentence}", file=sys.stderr)
    return pairs


def group_word(pairs: Sequence[Pair], group_by: GroupBy = "name") -> str:
    """Return what the split keeps together, in the plural: cars, or what is known instead."""
    if group_by == "folder":
        return "folders"
    return "cars" if all(pair.view for pair in pairs) else "photos" if group_by == "name" else "groups"


def limit_cars(pairs: list[Pair], limit: int | None) -> list[Pair]:
    """Keep whole cars, in the order of their names, while they are at most `limit` photos together."""
    if limit is None:
        return pairs
    kept: list[Pair] = []
    for car in sorted({pair.car for pair in pairs}):
        views = [pair for pair in pairs if pair.car == car]
        if len(kept) + len(views) > limit:
            break
        kept += views
    if not kept:
        raise ValueError(f"limit must leave room for a whole car, got {limit}. The first car has {len(views)} photos.")
    return kept


def split_cars(cars: Sequence[str], validation_share: float, seed: int) -> set[str]:
    """Choose the validation cars: a function of the cars' names and the seed alone.

    Each car is ranked by a hash of its own, so one car more or less does not reshuffle the others.

    Raises:
        ValueError: If there are not at least two cars to divide.
    """
    cars = sorted(set(cars))
    if len(cars) < 2:
        raise ValueError(
            f"training must have at least 2 cars, one of them to validate on, got {len(cars)}. Add photos of another "
            "car, raise limit, or name test_image_dir and test_mask_dir."
        )
    n_validation = min(max(1, round(validation_share * len(cars))), len(cars) - 1)
    return set(sorted(cars, key=lambda car: hashlib.sha256(f"{seed}/{car}".encode()).digest())[:n_validation])


# ---------------------------------------------------------------------------------------------------------- batches


class CarDataset(Dataset):
    """Samples of a cache, augmented as a function of (seed, epoch, row) alone: no worker count or resume changes them.

    Args:
        cache: The cached pairs.
        seed: The run's seed.
        augment: Flip, move, recolour; off for validation.
        background: Fraction of the samples that get letters and boxes behind the car, half of them another wall, too.
        scale_range: Least and largest factor by which a photo is resized.
    """

    def __init__(
        self,
        cache: Cache,
        seed: int = 0,
        augment: bool = False,
        background: float = 0.0,
        scale_range: tuple[float, float] = (0.9, 1.1),
    ):
        self.cache, self.seed, self.augment, self.background = cache, seed, augment, background
        self.scale_range = scale_range
        self.arrays = self.transform = None  # opened where they are used: a worker process has its own

    def __len__(self) -> int:
        return len(self.cache.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Return photo (height, width, 3), coverage and known (height, width), all uint8, and row, for (epoch, row).

        known is 255 where the label is known, else 0; there coverage means nothing.
        """
        epoch, row = key
        if self.arrays is None:
            self.arrays = self.cache.images, self.cache.coverage, self.cache.known
        image, coverage = (np.array(array[row]) for array in self.arrays[:2])
        known = np.full_like(coverage, 255) if self.arrays[2] is None else np.array(self.arrays[2][row])
        if self.augment:
            rng = np.random.default_rng((self.seed, epoch, row))
            if rng.random() < self.background:
                image = replace_background(image, np.maximum(coverage, 255 - known), rng)
            if self.transform is None:
                self.transform = make_transform(self.scale_range)
            for change in self.transform.transforms:  # Compose.set_random_seed would give all one seed
                change.set_random_seed(int(rng.integers(2**31)))
            masks = [coverage] if self.arrays[2] is None else [coverage, known]
            augmented = self.transform(image=image, masks=masks)
            image, coverage = augmented["image"], augmented["masks"][0]
            if self.arrays[2] is not None:
                known = (augmented["masks"][1] == 255).astype(np.uint8) * np.uint8(255)
        return image, coverage, known, row


class EpochBatches(Sampler):
    """Batches of (epoch, row) keys; the order of an epoch is a function of (seed, epoch) alone.

    The rows are divided into batches of nearly equal size, at most `batch_size` each: every row is seen once an epoch
    and no small batch is left at the end, whose batch norm statistics would be poor. Process `rank` of `world_size`
    gets its part of each batch, so that all processes together see what one alone would see.
    """

    def __init__(
        self,
        rows: Sequence[int],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        if len(rows) == 0:
            raise ValueError("there must be at least one photo to make batches of, got none.")
        self.n_batches = -(-len(rows) // batch_size)
        if world_size > len(rows) // self.n_batches:
            raise ValueError(
                f"batch_size must give each of {world_size} processes a photo, got {batch_size} for {len(rows)} photos."
                " Raise batch_size or start fewer processes."
            )
        self.rows, self.seed, self.shuffle, self.rank, self.world_size = np.array(rows), seed, shuffle, rank, world_size
        self.start(epoch=0)

    def start(self, epoch: int, first_batch: int = 0) -> None:
        """Choose where the next iteration begins: a resumed run leaves out the batches that it has seen."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return self.n_batches

    def batch_length(self, batch: int) -> int:
        """Count the photos of a batch over all processes."""
        return len(self.rows) // self.n_batches + (batch < len(self.rows) % self.n_batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.rows
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
        for batch in np.array_split(order, self.n_batches)[self.first_batch :]:
            yield [(self.epoch, int(row)) for row in np.array_split(batch, self.world_size)[self.rank]]


def make_loader(dataset: CarDataset, batches: EpochBatches, workers: int, pin_memory: bool = False) -> DataLoader:
    """Load batches of photos (n, height, width, 3), coverage and known (n, height, width), all uint8, and rows."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        # Not forked, PyTorch's default on Linux: this process has threads by now, and a fork may hang.
        multiprocessing_context="spawn" if workers else None,
    )


def start_worker(worker: int) -> None:
    """Give each worker process one thread: they share the machine with each other and with the network."""
    # Ctrl-C, `timeout` and torchrun signal the whole group of processes; the trainer answers, and needs its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


# --------------------------------------------------------------------------------------------------------- commands


def check(
    train_image_dir: PathSetting = PROJECT_DIR / "data/train",
    train_mask_dir: PathSetting = PROJECT_DIR / "data/train_masks",
    group_by: GroupBy = "name",
    car_value: tuple[str, ...] = (),
    unknown_value: tuple[str, ...] = (),
) -> int:
    """Go through photos and masks and report what must be mended; return 1 if anything must, else 0.

    {NAMING}

    Args:
        train_image_dir: Folder of photos.
        train_mask_dir: Folder of masks.
        group_by: What is kept on one side of the split: photos of one car as Carvana names them, of one sub-folder, or
            of one name up to its last number (film1_0001 and film1_0002).
        car_value: Values of the car in the masks: class numbers (1) or colours (#800000); else the brighter of two.
        unknown_value: Values of pixels of which nothing is known (128).
    """
    pairs, *lone_files = find_pairs(train_image_dir, train_mask_dir, group_by)
    left_out, lonely = describe_files(Path(train_image_dir), Path(train_mask_dir), pairs, *lone_files, group_by)
    rule, facts, problems = read_set(pairs, 240, 160, car_value, unknown_value, label="checking")
    warnings, notes = find_oddities(facts, rule) if rule and facts else ([], [])
    word = group_word(pairs, group_by)
    print(f"pairs:    {len(pairs)}" + (f" of {len({pair.car for pair in pairs})} {word}" if word != "photos" else ""))
    problems += [*lonely, NAMING_RULE] if lonely or not pairs else []
    print_report(facts if rule else [], left_out + notes, warnings, problems)
    return 1 if problems else 0


check.__doc__ = check.__doc__.replace("{NAMING}", NAMING)

if __name__ == "__main__":
    import tyro
    from carvana.download import download

    run_command(lambda args: tyro.extras.subcommand_cli_from_dict({"check": check, "download": download}, args=args))
