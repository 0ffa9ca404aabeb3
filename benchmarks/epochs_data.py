"""How fast do data come in every later epoch?

    python benchmarks/epochs_data.py

Textbook: decode, resize, augment each time. Ours: augment what the cache holds. Both with the same augmentations, in one thread,
as batches of tensors; ours with the share of new backgrounds that train.py has. Seconds are those of the processor, so that other
programs on the machine hardly matter.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import common
import cv2
import textbook
import torch
import train

from data import CarDataset, EpochBatches, Pair, build_cache, make_loader


def keep_to_one_core() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def textbook_epoch(pairs: list[Pair], width: int, height: int, cache_dir: Path, n_images: int) -> Iterator[float]:
    """Yield images per second of one pass over the pairs."""
    keep_to_one_core()
    loader = textbook.make_loader(pairs, width, height, batch_size=8, workers=0)
    next(iter(loader))
    yield 0.0
    while True:
        started = time.process_time()
        for _ in loader:
            pass
        yield len(pairs) / (time.process_time() - started)


def our_epoch(pairs: list[Pair], width: int, height: int, cache_dir: Path, n_images: int) -> Iterator[float]:
    """Yield images per second of passes over the pairs until `n_images` are seen."""
    keep_to_one_core()
    cache = build_cache(pairs, width, height, cache_dir, quiet=True)
    batches = EpochBatches(list(range(len(pairs))), 8, shuffle=True)
    loader = make_loader(CarDataset(cache, augment=True, background=train.Config.background), batches, workers=0)
    next(iter(loader))
    yield 0.0
    epoch = 0
    while True:
        seen, started = 0, time.process_time()
        while seen < n_images:
            epoch += 1
            batches.start(epoch)
            for images, *_ in loader:
                seen += len(images)
        yield seen / (time.process_time() - started)


def main() -> None:
    arguments = common.parse_arguments(__doc__, cars=3)
    pairs = common.studio_photos(arguments.work_dir, arguments.cars, arguments.quick)
    for width, height in [(48, 32)] if arguments.quick else [(240, 160), (480, 320)]:
        ways = (pairs, width, height, arguments.work_dir / "cache", 16 if arguments.quick else 2048)
        measured = common.measure_pairs(textbook_epoch, our_epoch, ways, arguments.pairs)
        common.report(
            arguments.results,
            "data of a later epoch",
            f"{width}x{height}, augmented, one core, CPU time",
            "images/s",
            measured,
        )


if __name__ == "__main__":
    common.run(main)
