"""From photos and masks on disk to batches: pairs, split by car, cache, augmentation.

python scripts/data.py check       goes through your files and says what must be mended
python scripts/data.py download    brings the competition's photos and masks through Kaggle
"""

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import filelock
import numpy as np
import torch
from carvana.arrays import map_threads, reserve_array
from carvana.backgrounds import replace_background
from carvana.files import PROJECT_DIR, run_command
from carvana.listing import NAMING, NAMING_RULE, describe_files, is_own_result, list_files, match_names
from carvana.masks import (
    Facts,
    MaskRule,
    count,
    decide_rule,
    explain_size,
    find_oddities,
    gather_facts,
    guess_rule,
    read_labels,
)
from carvana.pictures import IMAGE_SUFFIXES, MASK_SUFFIXES, area_average, read_image, read_orientation
from torch.utils.data import DataLoader, Dataset, Sampler

# albumentations asks the internet for a newer release when it is imported; a laptop on a train need not wait for that.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

CACHE_VERSION = 3  # part of each cache's key: raise it when cached pixels change meaning
GroupBy = Literal["name", "folder", "prefix"]


# ------------------------------------------------------------------------------------------------------------ pairs


@dataclass(frozen=True)
class Pair:
    """A photo, its true mask, and the car and view that the photo shows."""

    name: str  # the photo's name without its ending, with its sub-folder; predictions carry it on
    image_path: Path
    mask_path: Path
    car: str  # photos of one car are never split
    view: int  # 1 to 16, or 0 where the name is not Carvana's


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
    images = index_by_name(
        [path for path in list_files(image_dir, IMAGE_SUFFIXES, recursive) if not is_own_result(path)], image_dir
    )
    masks = index_by_name(list_files(mask_dir, MASK_SUFFIXES, recursive), mask_dir)
    matches = {name: path for name, path in match_names(images, masks).items() if path != images[name]}
    pairs = [Pair(name, images[name], mask, *split_name(name, group_by)) for name, mask in matches.items()]
    used = {*matches.values()} | {pair.image_path for pair in pairs}
    lonely_masks = [path for path in masks.values() if path not in used and path not in images.values()]
    return pairs, [path for path in images.values() if path not in used], lonely_masks


def index_by_name(paths: Sequence[Path], folder: Path | str) -> dict[str, Path]:
    """Index files by their name below `folder`, without its ending."""
    names: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in names:
            raise ValueError(
                f"{path} and {names[name].name} share one name, so it is not clear which belongs to the pair. "
                "Move one of them away."
            )
        names[name] = path
    return names


def describe_groups(pairs: Sequence[Pair], group_by: GroupBy) -> list[str]:
    """Say what counts as a car where names do not tell."""
    unnamed = sum(not pair.view for pair in pairs)
    if group_by != "name" or not unnamed:
        return []
    return [
        f"{count(unnamed, 'photo')} not named like Carvana's (<12 hex digits>_<01 to 16>): each counts as a car of its own. "
        "If several show one car, keep them together: --group-by prefix (film1_0001, film1_0002) or --group-by folder"
    ]


def require_pairs(image_dir: Path | str, mask_dir: Path | str, group_by: GroupBy = "name") -> list[Pair]:
    """Find pairs for training, saying on stderr what is left out and how photos are grouped.

    Raises:
        ValueError: If no photo has a mask.
    """
    pairs, images, masks = find_pairs(image_dir, mask_dir, group_by)
    left_out, lonely = describe_files(Path(image_dir), Path(mask_dir), images, masks, group_by == "folder")
    if not pairs:
        raise ValueError(
            f"{image_dir} and {mask_dir} must hold at least one photo with its mask, got {count(len(images), 'photo')} and "
            f"{count(len(masks), 'mask')} without a partner. {' '.join([*lonely, *left_out, NAMING_RULE])}"
        )
    for sentence in [*left_out, *lonely, *describe_groups(pairs, group_by)]:
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


# ------------------------------------------------------------------------------------------------------------ cache


def read_pair(
    pair: Pair,
    width: int,
    height: int,
    rule: MaskRule | None = None,
    car_value: Sequence[str] = (),
    unknown_value: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Facts]:
    """Read a pair at training size.

    Args:
        pair: The files.
        width, height: Training size in pixels.
        rule: Which values of the mask are car; None for what the two next settings and this file alone suggest.

    Returns:
        Photo (height, width, 3), uint8; coverage (height, width), uint8, 255 where a pixel is all car; known (height,
        width), uint8, 255 where all of a pixel is known, else 0, or None for everywhere; what is noteworthy of the pair.

    Raises:
        ValueError: If a file is broken, the two differ in size, or the mask is grey.
    """
    image, native_size = read_image(pair.image_path, target_size=lambda *_: (height, width))
    labels = read_labels(pair.mask_path)
    rule = rule or guess_rule(pair.mask_path, labels, car_value, unknown_value)
    mask, known = rule.apply(labels)
    orientation = read_orientation(pair.image_path)
    if mask.shape != native_size:
        raise ValueError(explain_size(pair.mask_path, mask.shape, native_size, orientation))
    image = area_average(image, width, height)
    coverage = area_average(mask.view(np.uint8) * np.uint8(255), width, height)
    facts = gather_facts(pair.mask_path, labels, rule, mask, image, coverage, orientation)
    if known is not None:
        known = (area_average(known.astype(np.float32), width, height) > 0.999).astype(np.uint8) * np.uint8(255)
    return image, coverage, known, facts


def read_set(
    pairs: list[Pair],
    width: int,
    height: int,
    car_value: Sequence[str] = (),
    unknown_value: Sequence[str] = (),
    store: Callable = lambda *pixels: None,
    label: str = "reading",
    quiet: bool = False,
) -> tuple[MaskRule | None, list[Facts], list[str]]:
    """Read all pairs, and decide for the set as a whole which values of its masks are car.

    Args:
        store: Called with row, photo, coverage and known of each pair, see `read_pair`.

    Returns:
        The rule of the masks, None if they follow none, what is noteworthy of each pair that could be read, and a sentence for each problem.
    """
    facts: dict[int, Facts] = {}
    problems: list[str] = []

    def read(row: int, rule: MaskRule | None = None) -> None:
        try:
            *pixels, facts[row] = read_pair(pairs[row], width, height, rule, car_value, unknown_value)
            store(row, *pixels)
        except (OSError, ValueError) as error:
            problems.append(str(error))

    for _ in map_threads(read, range(len(pairs)), label, quiet):
        pass
    facts, rule = dict(sorted(facts.items())), None
    try:
        rule = decide_rule({fact.mask_path: fact.labels for fact in facts.values()}, car_value, unknown_value)
    except ValueError as error:
        return rule, [*facts.values()], sorted(problems) + [str(error)]
    # A file alone may suggest another rule than its set: what is read as car there is read again.
    for row in [row for row, fact in facts.items() if fact.kinds != rule.classify(fact.labels)]:
        read(row, rule)
    return rule, [*facts.values()], sorted(problems)


@dataclass(frozen=True)
class Cache:
    """Photos and labels of `pairs` at training size, decoded once, memory-mapped.

    images: (n, height, width, 3), uint8. coverage: (n, height, width), uint8, 255 = all car. known: (n, height, width),
    uint8, 255 = known, or None where all is known.
    """

    path: Path
    pairs: list[Pair]
    stats: list[list[int]]  # for each pair: bytes and time in ns of photo and of mask, as they were when read
    values: tuple[tuple[str, ...], ...] = ((), ())  # car_value and unknown_value

    @property
    def images(self) -> np.ndarray:
        return np.load(self.path / "images.npy", mmap_mode="r")

    @property
    def coverage(self) -> np.ndarray:
        return np.load(self.path / "coverage.npy", mmap_mode="r")

    @property
    def known(self) -> np.ndarray | None:
        return np.load(self.path / "known.npy", mmap_mode="r") if (self.path / "known.npy").exists() else None

    @functools.cached_property
    def report(self) -> dict:
        """What was found when the files were read: the rule of the masks, warnings, notes."""
        return json.loads((self.path / "report.json").read_text("utf-8"))

    def load_mask(self, row: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a mask (H, W), bool, at full resolution, and where it is known (H, W), bool, or None for everywhere."""
        return MaskRule.from_json(self.report["rule"]).apply(read_labels(self.pairs[row].mask_path))

    @property
    def fingerprint(self) -> str:
        """Names and sizes of the files in a hash; times are left out, since a fresh copy of the data has new ones."""
        rows = [[pair.name, stat[0], stat[2]] for pair, stat in zip(self.pairs, self.stats)]
        return hashlib.sha256(json.dumps([*rows, *filter(None, self.values)]).encode()).hexdigest()[:16]

    def check_whole(self) -> None:
        """Raise a ValueError if the cache's files are gone or cut short."""
        try:
            lengths = len(self.images), len(self.coverage), len(self.report) and len(self.pairs)
        except (OSError, ValueError, EOFError) as error:
            lengths = error
        if lengths != (len(self.pairs),) * 3:
            raise ValueError(
                f"{self.path} must hold {len(self.pairs)} photos and masks, got {lengths}. Delete it: it is made anew."
            )

    def check_unchanged(self, row: int) -> None:
        """Raise a RuntimeError if the files of a pair are no longer those that were cached."""
        pair = self.pairs[row]
        if stat_pair(pair) != self.stats[row]:
            raise RuntimeError(
                f"{pair.image_path} or its mask changed since training began, so they no longer belong to what was "
                "learnt. Put the old files back and go on with --load-model, or train anew."
            )


def stat_pair(pair: Pair) -> list[int]:
    numbers = []
    for path in (pair.image_path, pair.mask_path):
        try:
            stat = path.stat()
        except OSError as error:  # gone, or a link that leads nowhere or in a circle
            raise OSError(
                f"{path} cannot be read ({error.strerror}). Put it back, or move its partner away too."
            ) from error
        numbers += [stat.st_size, stat.st_mtime_ns]
    return numbers


def build_cache(
    pairs: list[Pair],
    width: int,
    height: int,
    cache_dir: Path | str,
    quiet: bool = False,
    car_value: Sequence[str] = (),
    unknown_value: Sequence[str] = (),
) -> Cache:
    """Open the cache of these pairs at this size, building it first where it is missing or a file has changed.

    The folder gets its name only when it is whole, so that an interrupted build is never taken for one. What looks wrong
    about the masks is printed on stderr each time.

    Raises:
        ValueError: If files are broken, or the masks follow no rule.
        OSError: If the disk is too full.
    """
    stats, values = [stat_pair(pair) for pair in pairs], (tuple(car_value), tuple(unknown_value))
    files = [[str(pair.image_path), str(pair.mask_path)] for pair in pairs]
    key = json.dumps([CACHE_VERSION, width, height, files, stats, values])
    path = Path(cache_dir) / f"{width}x{height}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    cache = Cache(path, pairs, stats, values)
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(".lock")):
            if not path.is_dir():  # unless another process made it while this one waited
                fill_cache(cache, width, height, quiet)
    cache.check_whole()
    for kind in () if quiet else ("warning", "note"):
        for sentence in cache.report[f"{kind}s"]:
            print(f"{kind}: {sentence}", file=sys.stderr)
    return cache


def fill_cache(cache: Cache, width: int, height: int, quiet: bool) -> None:
    """Decode the pairs into a folder of another name, which gets its own when all is done."""
    n, partial = len(cache.pairs), cache.path.with_name(f"{cache.path.name}.partial")
    for leftover in cache.path.parent.glob("*.partial"):  # of processes that were killed: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        images = reserve_array(partial / "images.npy", (n, height, width, 3))
        coverage = reserve_array(partial / "coverage.npy", (n, height, width))
        known = reserve_array(partial / "known.npy", (n, height, width)) if cache.values[1] else None

        def store(row: int, image: np.ndarray, covered: np.ndarray, is_known: np.ndarray | None) -> None:
            images[row], coverage[row] = image, covered
            if known is not None:
                known[row] = 255 if is_known is None else is_known

        label = f"caching at {width}x{height}"
        rule, facts, problems = read_set(cache.pairs, width, height, *cache.values, store, label, quiet)
        if problems:
            broken = n - len(facts)
            of = f"{broken} of {n} pairs cannot be read, the first: " if broken else ""
            more = " `python scripts/data.py check` names them all." if broken else ""
            raise ValueError(f"{of}{problems[0]}{more}")
        warnings, notes = find_oddities(facts, rule)
        report = dict(rule=rule.to_json(), warnings=warnings, notes=notes)
        (partial / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
        for array in filter(lambda array: array is not None, (images, coverage, known)):
            array.flush()
        partial.rename(cache.path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
        """Return photo (height, width, 3), coverage and known (height, width), all uint8, and row, for key (epoch, row).

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
            self.transform.set_random_seed(int(rng.integers(2**31)))
            masks = [coverage] if self.arrays[2] is None else [coverage, known]
            augmented = self.transform(image=image, masks=masks)
            image, coverage = augmented["image"], augmented["masks"][0]
            if self.arrays[2] is not None:
                known = (augmented["masks"][1] == 255).astype(np.uint8) * np.uint8(255)
        return image, coverage, known, row


def make_transform(scale_range: tuple[float, float] = (0.9, 1.1)):
    """Compose the augmentations, on uint8 photo and coverage together."""
    import albumentations

    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(
                scale=scale_range,
                translate_percent=(-0.05, 0.05),
                rotate=(-4, 4),
                mask_interpolation=cv2.INTER_LINEAR,  # coverage is a share, not a class: its nearest pixel may be half a pixel off
                border_mode=cv2.BORDER_REFLECT_101,
                p=0.7,
            ),
            albumentations.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.7),
            albumentations.RGBShift(12, 12, 12, p=0.5),
        ]
    )


class EpochBatches(Sampler):
    """Batches of (epoch, row) keys; the order of an epoch is a function of (seed, epoch) alone.

    The rows are divided into batches of nearly equal size, at most `batch_size` each: every row is seen once an epoch
    and no small batch is left at the end, whose batch norm statistics would be poor. Process `rank` of `world_size` gets
    its share of each batch, so that all processes together see what one alone would see.
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
                f"batch_size must give each of {world_size} processes a photo, got {batch_size} for {len(rows)} photos. "
                "Raise batch_size or start fewer processes."
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
    """Load batches of photos (batch, height, width, 3), coverage and known (batch, height, width), all uint8, and rows."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
    )


def start_worker(worker: int) -> None:
    """Give each worker process one thread: they share the machine with each other and with the network."""
    # Ctrl-C, `timeout` and torchrun signal the whole group of processes, but it is for the trainer to answer, which needs its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def colour_statistics(images: np.ndarray, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Measure mean and standard deviation of each channel, (3,) each in [0, 1], on some 256 to 511 photos spread evenly."""
    rows = sorted(rows)[:: max(1, len(rows) // 256)]
    sums = np.zeros((2, 3))
    for row in rows:
        pixels = images[row].reshape(-1, 3) / 255.0
        sums += pixels.mean(axis=0), (pixels**2).mean(axis=0)
    mean, square = sums / len(rows)
    return mean, np.sqrt(np.maximum(square - mean**2, 1e-6))


# --------------------------------------------------------------------------------------------------------- commands


def check(
    train_image_dir: Path = PROJECT_DIR / "data/train",
    train_mask_dir: Path = PROJECT_DIR / "data/train_masks",
    group_by: GroupBy = "name",
    car_value: tuple[str, ...] = (),
    unknown_value: tuple[str, ...] = (),
) -> int:
    """Go through photos and masks and report what must be mended; return 1 if anything must, else 0.

    {NAMING}

    Args:
        train_image_dir: Folder of photos.
        train_mask_dir: Folder of masks.
        group_by: What is kept on one side of the split: photos of one name as Carvana names them, of one sub-folder, or of
            one name up to its last number (film1_0001 and film1_0002).
        car_value: Values of the car in the masks: class numbers (1) or colours (#800000); by default the brighter of two.
        unknown_value: Values of pixels of which nothing is known (128).
    """
    pairs, photos, masks = find_pairs(train_image_dir, train_mask_dir, group_by)
    left_out, lonely = describe_files(Path(train_image_dir), Path(train_mask_dir), photos, masks, group_by == "folder")
    rule, facts, problems = read_set(pairs, 240, 160, car_value, unknown_value, label="checking")
    warnings, notes = find_oddities(facts, rule) if rule and facts else ([], [])
    groups = f" of {len({pair.car for pair in pairs})} {group_word(pairs, group_by)}"
    print(f"pairs:    {len(pairs)}{'' if group_by == 'name' and not all(pair.view for pair in pairs) else groups}")
    for (height, width), number in Counter(fact.size for fact in facts).most_common(5):
        print(f"size:     {width}x{height}, {count(number, 'pair')}")
    if rule and facts:
        shares = [100 * fact.share for fact in facts]
        print(f"car:      {min(shares):.1f} to {max(shares):.1f} % of the photo, mean {np.mean(shares):.1f} %")
    for sentence in [*left_out, *describe_groups(pairs, group_by), *notes]:
        print(f"note:     {sentence}")
    for sentence in warnings:
        print(f"warning:  {sentence}")
    problems += lonely
    if lonely or not pairs:
        problems.append(NAMING_RULE)
    print(f"to mend:  {len(problems)}")
    for problem in problems[:100]:
        print(f"  {problem}")
    if len(problems) > 100:
        print(f"  and {len(problems) - 100} more")
    return 1 if problems else 0


check.__doc__ = check.__doc__.replace("{NAMING}", NAMING)

if __name__ == "__main__":
    import tyro
    from carvana.download import download

    run_command(lambda args: tyro.extras.subcommand_cli_from_dict({"check": check, "download": download}, args=args))
