"""Arrays on disk that are whole or not there, and work shared among threads."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm


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
    # The bar first: a signal that reaches tqdm while it makes one, here beside busy threads, leaves a half-made bar that complains at exit.
    bar = tqdm(desc=label, total=len(items), disable=quiet, leave=False, file=sys.stderr)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(function, items):
            bar.update()
            yield result
