"""Photos and masks read once: labels decided for the set as a whole, pixels at training size in memory-mapped files."""

import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import filelock
import numpy as np
from tqdm import tqdm

from carvana.masks import (
    Facts,
    MaskRule,
    decide_rule,
    explain_size,
    find_oddities,
    gather_facts,
    guess_rule,
    read_labels,
)
from carvana.pictures import area_average, read_image, read_orientation

CACHE_VERSION = 3  # part of each cache's key: raise it when cached pixels change meaning


class Pair(Protocol):
    """A photo and its mask."""

    name: str
    image_path: Path
    mask_path: Path


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
        width), uint8, 255 where all of a pixel is known, else 0, or None for everywhere; what is noteworthy.

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
        The rule of the masks, None if they follow none; what is noteworthy of each pair that could be read; a sentence
        for each problem.
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

    The folder gets its name only when it is whole, so that an interrupted build is never taken for one. What looks
    wrong about the masks is printed on stderr each time.

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


def reserve_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Make an .npy file of uint8 with its disk space taken at once: a full disk is then an error here and not a crash
    of the process when a page of the mapped file cannot be written."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    n_bytes = int(np.prod(shape))
    try:
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        elif shutil.disk_usage(path.parent).free < n_bytes:
            raise OSError("too little space")
    except OSError as error:
        raise OSError(
            f"{path.parent.parent} must have {n_bytes / 2**20:.0f} MiB free for the cache ({error.strerror or error}). "
            "Free some space, or lower image_width and image_height."
        ) from error
    return array


def map_threads(function, items: Sequence, label: str, quiet: bool = False) -> Iterator:
    """Map over the machine's cores with a progress bar. Threads do: Pillow and OpenCV decode outside Python's lock."""
    # The bar before the threads: a signal that reaches tqdm while it makes one leaves a half-made bar that complains.
    bar = tqdm(desc=label, total=len(items), disable=quiet, leave=False, file=sys.stderr)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(function, items):
            bar.update()
            yield result


def colour_statistics(images: np.ndarray, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Measure mean and standard deviation of each channel, (3,) each in [0, 1], on 256 to 511 photos spread evenly."""
    rows = sorted(rows)[:: max(1, len(rows) // 256)]
    sums = np.zeros((2, 3))
    for row in rows:
        pixels = images[row].reshape(-1, 3) / 255.0
        sums += pixels.mean(axis=0), (pixels**2).mean(axis=0)
    mean, square = sums / len(rows)
    return mean, np.sqrt(np.maximum(square - mean**2, 1e-6))
