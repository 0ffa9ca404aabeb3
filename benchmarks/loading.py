"""How fast do photos reach the network: in the first pass over full-resolution files, and in every later epoch?

    python benchmarks/loading.py
    python benchmarks/loading.py --photos data/train --masks data/train_masks       the competition's photos

First pass, a thread a core, new processes each time, files that the system holds in memory. Baseline: Pillow decodes
photo and mask whole and resizes them. Ours: build_cache, which also writes the result to disk.

Later epochs, one thread, seconds of the processor. Baseline: decode, resize and augment each time. Ours: augment what
the cache holds, with new backgrounds as in train.py.
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import baseline
import common
import cv2
import torch
import train
from carvana import machine

from data import CarDataset, EpochBatches, Pair, build_cache, make_loader, require_pairs


@dataclass(frozen=True)
class Settings(common.Settings):
    """What to measure."""

    photos: Path | None = None  # folder of photos; None renders synthetic ones
    masks: Path | None = None  # their masks


def baseline_pass(pairs: list[Pair], width: int, height: int, cache_dir: Path) -> Iterator[float]:
    """Measure pairs per second."""

    def work() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda pair: baseline.read_pair(pair, width, height), pairs))

    return common.rates(len(pairs), work)


def our_pass(pairs: list[Pair], width: int, height: int, cache_dir: Path) -> Iterator[float]:
    """Measure pairs per second, once: the second pass would find the cache."""
    machine.keep_memory()  # as in train.py
    cv2.setNumThreads(1)
    shutil.rmtree(cache_dir, ignore_errors=True)
    return common.rates(len(pairs), lambda: build_cache(pairs, width, height, cache_dir, quiet=True))


def baseline_epoch(pairs: list[Pair], width: int, height: int, cache_dir: Path, n_epochs: int) -> Iterator[float]:
    """Measure images per second of one pass over the pairs."""
    keep_to_one_core()
    loader = baseline.make_loader(pairs, width, height, batch_size=8, workers=0)
    next(iter(loader))
    return common.rates(len(pairs), lambda: sum(1 for _ in loader), time.process_time)


def our_epoch(pairs: list[Pair], width: int, height: int, cache_dir: Path, n_epochs: int) -> Iterator[float]:
    """Measure images per second of some passes over the pairs."""
    keep_to_one_core()
    cache = build_cache(pairs, width, height, cache_dir, quiet=True)
    batches, epochs = EpochBatches(list(range(len(pairs))), 8, shuffle=True), itertools.count()
    loader = make_loader(CarDataset(cache, augment=True, background=train.Config.background), batches, workers=0)

    def work() -> None:
        for _ in range(n_epochs):
            batches.start(next(epochs))
            for _ in loader:
                pass

    next(iter(loader))
    return common.rates(n_epochs * len(pairs), work, time.process_time)


def keep_to_one_core() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main(settings: Settings) -> None:
    if (settings.photos is None) != (settings.masks is None):
        raise ValueError("photos and masks must be named together, got one of them.")
    if settings.photos is None:
        pairs, kind = common.studio_photos(settings), "synthetic"
    else:
        pairs, kind = require_pairs(settings.photos, settings.masks), f"of {settings.photos}"
    for pair in pairs:
        pair.image_path.read_bytes(), pair.mask_path.read_bytes()
    for width, height in [(48, 32)] if settings.quick else [(240, 160), (480, 320)]:
        ways = (pairs, width, height, settings.work_dir / "cache_benchmark")
        measured = common.measure_pairs(baseline_pass, our_pass, ways, settings.pairs, anew=True)
        setting = f"{len(pairs)} pairs {kind} to {width}x{height}, {os.cpu_count()} cores"
        common.report(settings.results, "first pass into the cache", setting, "pairs/s", measured)
        ways = (*ways, 1 if settings.quick else 40)
        measured = common.measure_pairs(baseline_epoch, our_epoch, ways, settings.pairs)
        setting = f"photos {kind} at {width}x{height}, augmented, one core, CPU time"
        common.report(settings.results, "data of a later epoch", setting, "images/s", measured)


if __name__ == "__main__":
    common.run(main, Settings)
