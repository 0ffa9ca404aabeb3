"""Photos and masks read once: labels decided for the set as a whole, pixels at training size in memory-mapped files."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
from numpy.lib.format import open_memmap
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from carvana.listing import Pair
from carvana.masks import Facts, Labels, MaskRule, decide_rule, explain_size, find_oddities, measure_fits, read_labels
from carvana.pictures import area_average, read_image, read_orientation

CACHE_VERSION = 4  # part of each cache's key: raise it when cached pixels change meaning


def read_pair(
    pair: Pair, width: int, height: int, decide: Callable[[dict[Path, Labels]], MaskRule] = decide_rule
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Facts]:
    """Read a pair at training size.

    Args:
        pair: The files.
        width, height: Training size in pixels.
        decide: Tells from what the mask holds which of its values are car.

    Returns:
        Photo (height, width, 3), uint8; coverage (height, width), uint8, 255 where a pixel is all car; known (height,
        width), uint8, 255 where all of a pixel is known, else 0; what is noteworthy.

    Raises:
        ValueError: If a file is broken, the two differ in size, or the mask is grey.
    """
    image, native_size = read_image(pair.image_path, target_size=lambda *_: (height, width))
    labels, orientation = read_labels(pair.mask_path), read_orientation(pair.image_path)
    rule = decide({pair.mask_path: labels})
    mask, known = rule.apply(labels)
    if mask.shape != native_size:
        raise ValueError(explain_size(pair.mask_path, mask.shape, native_size, orientation))
    image = area_average(image, width, height)
    coverage = area_average(mask.view(np.uint8) * np.uint8(255), width, height)
    share = np.count_nonzero(mask) / mask.size
    has_outline = 0 < share < 1 and known is None  # else it ends at what is unknown
    facts = Facts(
        pair.mask_path,
        dataclasses.replace(labels, index=None),
        kinds=rule.classify(labels),
        size=native_size,
        share=share,
        in_corners=bool(mask[[0, 0, -1, -1], [0, -1, 0, -1]].all()),
        fits=measure_fits(image, coverage, orientation) if has_outline else (0, 0, 0),
    )
    all_known = np.ones_like(coverage) if known is None else area_average(known.astype(np.float32), width, height)
    return image, coverage, (all_known > 0.999) * np.uint8(255), facts


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
    facts: list[Facts | None] = [None] * len(pairs)
    problems: list[str] = []

    def guess(masks: dict[Path, Labels]) -> MaskRule:
        try:
            return decide_rule(masks, car_value, unknown_value)
        except ValueError:  # the set will decide, or complain
            return MaskRule([], [])

    def read(row: int, decide: Callable = guess) -> None:
        try:
            *pixels, facts[row] = read_pair(pairs[row], width, height, decide)
            store(row, *pixels)
        except (OSError, ValueError) as error:
            problems.append(str(error))

    # Threads do: Pillow and OpenCV decode outside Python's lock.
    bar = dict(desc=label, disable=quiet, leave=False, file=sys.stderr)
    thread_map(read, range(len(pairs)), max_workers=os.cpu_count(), tqdm_class=tqdm, **bar)
    read_facts = [fact for fact in facts if fact]
    try:
        rule = decide_rule({fact.mask_path: fact.labels for fact in read_facts}, car_value, unknown_value)
    except ValueError as error:
        return None, read_facts, [*sorted(problems), str(error)]
    for row, fact in enumerate(facts):
        if fact and fact.kinds != rule.classify(fact.labels):  # a file alone may suggest another rule than its set
            read(row, lambda _: rule)
    return rule, [fact for fact in facts if fact], sorted(problems)


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

    images = property(lambda cache: cache.open_array("images"))
    coverage = property(lambda cache: cache.open_array("coverage"))
    known = property(lambda cache: cache.open_array("known") if cache.values[1] else None)

    def open_array(self, name: str) -> np.ndarray:
        return np.load(self.path / f"{name}.npy", mmap_mode="r")

    @functools.cached_property
    def report(self) -> dict:
        """What was found when the files were read: the rule of the masks, warnings, notes."""
        return json.loads((self.path / "report.json").read_text("utf-8"))

    def load_mask(self, row: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a mask (H, W), bool, at full resolution, and where it is known (H, W), bool, or None for everywhere."""
        return MaskRule(**self.report["rule"]).apply(read_labels(self.pairs[row].mask_path))

    @property
    def fingerprint(self) -> str:
        """Names and sizes of the files in a hash; times are left out, since a fresh copy of the data has new ones."""
        rows = [[pair.name, stat[0], stat[2]] for pair, stat in zip(self.pairs, self.stats)]
        return hash_values([*rows, *filter(None, self.values)])

    def is_whole(self) -> bool:
        """Tell whether all files are there and none was damaged or cut short afterwards."""
        try:
            arrays = [array for array in (self.images, self.coverage, self.known) if array is not None]
            return "rule" in self.report and all(len(array) == len(self.pairs) for array in arrays)
        except (OSError, ValueError, EOFError):
            return False


def hash_values(values: list) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def stat_file(path: Path) -> list[int]:
    """Return a file's bytes and its time in ns, zeros where there is none: reading it then says why."""
    try:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns]
    except OSError:
        return [0, 0]


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
    files = [[str(pair.image_path), str(pair.mask_path)] for pair in pairs]
    stats = [stat_file(pair.image_path) + stat_file(pair.mask_path) for pair in pairs]
    values = tuple(car_value), tuple(unknown_value)
    key = hash_values([CACHE_VERSION, width, height, files, stats, values])
    cache = Cache(Path(cache_dir) / f"{width}x{height}-{key}", pairs, stats, values)
    if not cache.is_whole():
        cache.path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache.path.with_name(".lock")):
            if not cache.is_whole():  # unless another process made it while this one waited
                fill_cache(cache, width, height, quiet)
    for kind in () if quiet else ("warning", "note"):
        for sentence in cache.report[f"{kind}s"]:
            print(f"{kind}: {sentence}", file=sys.stderr)
    return cache


def fill_cache(cache: Cache, width: int, height: int, quiet: bool) -> None:
    """Decode the pairs into a folder of another name, which gets its own when all is done."""
    partial = cache.path.with_name(f"{cache.path.name}.partial")
    for leftover in (cache.path, *cache.path.parent.glob("*.partial")):  # of killed processes: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        shape = len(cache.pairs), height, width
        names = ["images", "coverage", "known"] if cache.values[1] else ["images", "coverage"]
        # A mapped file takes its disk space when its pages are written, and a full disk then kills the process.
        needed, free = math.prod(shape) * (len(names) + 2) / 2**20, shutil.disk_usage(partial).free / 2**20
        if free < needed:
            raise OSError(
                f"{cache.path.parent} must have {needed:.1f} MiB free for the cache, got {free:.1f}. Free some space, "
                "or lower image_width and image_height."
            )
        shapes = [(*shape, 3), shape, shape]
        arrays = [open_memmap(partial / f"{name}.npy", "w+", np.uint8, shape) for name, shape in zip(names, shapes)]

        def store(row: int, *pixels: np.ndarray) -> None:
            for array, values in zip(arrays, pixels):
                array[row] = values

        label = f"caching at {width}x{height}"
        rule, facts, problems = read_set(cache.pairs, width, height, *cache.values, store, label, quiet)
        if problems:
            more = f" `python scripts/data.py check` names {len(problems) - 1} more." if problems[1:] else ""
            raise ValueError(problems[0] + more)
        warnings, notes = find_oddities(facts, rule)
        report = dict(rule=dataclasses.asdict(rule), warnings=warnings, notes=notes)
        (partial / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
        for array in arrays:
            array.flush()
        partial.rename(cache.path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def colour_statistics(images: np.ndarray, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Measure mean and standard deviation of each channel, (3,) each in [0, 1], on 256 to 511 photos spread evenly."""
    rows = sorted(rows)[:: max(1, len(rows) // 256)]
    sums = np.zeros((2, 3))
    for row in rows:
        pixels = images[row].reshape(-1, 3) / 255.0
        sums += pixels.mean(axis=0), (pixels**2).mean(axis=0)
    mean, square = sums / len(rows)
    return mean, np.sqrt(np.maximum(square - mean**2, 1e-6))
