"""How much memory do training and prediction take at their peak?

    python benchmarks/memory.py

Each number is the peak of a process of its own: two training steps at 480x320, batch 16; then predict.py on more and
more photos, which should not change it. This is resident memory, for training on a GPU what PyTorch has allocated
there.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import baseline
import common
import torch
from carvana import machine
from prediction import choose_weights, our_prediction
from train_step import make_our_step, random_batch


def baseline_training(
    base_width: int, batch_size: int, width: int, height: int, device: str = "auto"
) -> Iterator[float]:
    """Yield the peak in MiB of two steps."""
    yield 0.0
    device = machine.choose_device(device)
    images, coverage = random_batch(batch_size, width, height)
    step = baseline.make_step(base_width, device.type)
    for _ in range(2):
        step(images.permute(0, 3, 1, 2).float().div(255), (coverage > 127).float().unsqueeze(1))
    yield machine.peak_memory_mib(device)


def our_training(
    base_width: int, batch_size: int, width: int, height: int, device: str = "auto", options: dict = {}
) -> Iterator[float]:
    """Yield the peak in MiB of two steps; `options` are settings of train.py."""
    yield 0.0
    images, coverage = random_batch(batch_size, width, height)
    step = make_our_step(base_width, device, options)
    for _ in range(2):
        step(images, coverage)
    yield machine.peak_memory_mib(machine.choose_device(device))


def prediction_peak(photos: list[Path], weights: Path, work_dir: Path) -> Iterator[float]:
    """Yield the peak in MiB of predicting masks of all photos."""
    yield 0.0
    steps = our_prediction(photos, weights, ("mask",), work_dir)
    next(steps), next(steps)
    yield machine.peak_memory_mib(torch.device("cpu"))


def main(settings: common.Settings) -> None:
    device = machine.choose_device("auto").type
    for ways in [(4, 2, 48, 32)] if settings.quick else [(16, 16, 480, 320), (64, 16, 480, 320)]:
        base_width, batch_size, width, height = ways
        measured = common.measure_pairs(baseline_training, our_training, ways, settings.pairs, anew=True)
        setting = f"{width}x{height}, base width {base_width}, batch {batch_size}, {device}"
        common.report(settings.results, "peak memory of training", setting, "MiB", measured, less_is_better=True)

    weights, many = choose_weights(settings), settings.work_dir / "many"
    drawn = common.drawn_photos(settings.work_dir, 8, 480, 320)
    for n in (8, 16) if settings.quick else (104, 1000, 10_000):
        shutil.rmtree(many, ignore_errors=True)
        many.mkdir()
        photos = [many / f"{number:05d}.jpg" for number in range(n)]
        for number, photo in enumerate(photos):
            photo.hardlink_to(drawn[number % len(drawn)].image_path)
        measured = common.measure_pairs(None, prediction_peak, (photos, weights, settings.work_dir), 1)
        setting = f"{n} photos of 480x320, {os.cpu_count()} cores"
        common.report(settings.results, "peak memory of prediction", setting, "MiB", measured)


if __name__ == "__main__":
    common.run(main)
