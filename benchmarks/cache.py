"""How fast is the first pass over native files?

    python benchmarks/cache.py

Textbook: Pillow decodes photo and mask whole and resizes them. Ours: build_cache, which also writes the result to disk. Both
with a thread a core, in a new process each time, on files that the system holds in memory: the studio's, or those of two
folders, such as the competition's with --photos data/train --masks data/train_masks.
"""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import cv2
import textbook
from carvana import machine

from data import Pair, build_cache, require_pairs


def textbook_pass(pairs: list[Pair], width: int, height: int, cache_dir: Path) -> Iterator[float]:
    """Yield pairs per second."""
    yield 0.0
    while True:
        started = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(lambda pair: textbook.read_pair(pair, width, height), pairs):
                pass
        yield len(pairs) / (time.perf_counter() - started)


def our_pass(pairs: list[Pair], width: int, height: int, cache_dir: Path) -> Iterator[float]:
    """Yield pairs per second."""
    machine.keep_memory()  # as in train.py, this too
    cv2.setNumThreads(1)
    yield 0.0
    while True:
        shutil.rmtree(cache_dir, ignore_errors=True)
        started = time.perf_counter()
        build_cache(pairs, width, height, cache_dir, quiet=True)
        yield len(pairs) / (time.perf_counter() - started)


def main() -> None:
    arguments = common.parse_arguments(__doc__, cars=3, photos=None, masks=None)
    question = "first pass into the cache"
    if arguments.photos and arguments.masks:
        pairs, question = require_pairs(arguments.photos, arguments.masks), f"{question}, photos of {arguments.photos}"
    elif arguments.photos or arguments.masks:
        raise ValueError("photos and masks must be named together, got one of them.")
    else:
        pairs = common.studio_photos(arguments.work_dir, arguments.cars, arguments.quick)
    for pair in pairs:
        pair.image_path.read_bytes(), pair.mask_path.read_bytes()
    for width, height in [(48, 32)] if arguments.quick else [(240, 160), (480, 320)]:
        ways = (pairs, width, height, arguments.work_dir / "cache_benchmark")
        measured = common.measure_pairs(textbook_pass, our_pass, ways, arguments.pairs, anew=True)
        setting = f"{len(pairs)} native pairs to {width}x{height}, {os.cpu_count()} cores"
        common.report(arguments.results, question, setting, "pairs/s", measured)


if __name__ == "__main__":
    common.run(main)
