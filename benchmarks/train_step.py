"""How fast is a training step?

    python benchmarks/train_step.py
    python benchmarks/train_step.py --base-width 16 --width 240       one network, one size

Baseline: float32, plain layout, loss and metric read back each step. Ours: train.train_step with the settings left
alone. Both on the same random photos, already in memory. Base width 64 takes minutes, since a baseline step at 480x320
takes half of one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import baseline
import common
import torch
import train
from carvana import machine


@dataclass(frozen=True)
class Settings(common.Settings):
    """What to measure."""

    base_width: int | None = None  # None: 16 and 64
    width: int | None = None  # 240 or 480; None: both
    batch_size: int = 8


def random_batch(batch_size: int, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make photos (batch, height, width, 3) and coverage (batch, height, width), uint8."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (batch_size, height, width, 3), dtype=torch.uint8)
    coverage = torch.zeros(batch_size, height, width, dtype=torch.uint8)
    coverage[:, height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return images, coverage


def baseline_steps(
    base_width: int, batch_size: int, width: int, height: int, n_steps: int, device: str = "cpu"
) -> Iterator[float]:
    """Measure images per second of `n_steps` steps."""
    step = baseline.make_step(base_width, device)
    images, coverage = random_batch(batch_size, width, height)
    images = images.permute(0, 3, 1, 2).float().div(255).contiguous()
    masks = (coverage > 127).float().unsqueeze(1)
    step(images, masks), step(images, masks)  # memory and kernels settle
    return common.rates(n_steps * batch_size, lambda: [step(images, masks) for _ in range(n_steps)])


def our_steps(
    base_width: int, batch_size: int, width: int, height: int, n_steps: int, device: str = "cpu", options: dict = {}
) -> Iterator[float]:
    """Measure images per second of `n_steps` steps; `options` are settings of train.py."""
    step = make_our_step(base_width, device, options)
    images, coverage = random_batch(batch_size, width, height)
    if device == "cuda":
        images, coverage = images.pin_memory(), coverage.pin_memory()
    for _ in range(3):
        step(images, coverage)
    # The losses are read once, which waits for the device.
    work = lambda: torch.stack([step(images, coverage) for _ in range(n_steps)]).tolist()
    return common.rates(n_steps * batch_size, work)


def make_our_step(base_width: int, device: str, options: dict = {}) -> Callable:
    """Make a function that trains on one batch as train.py does, and returns the loss still on the device."""
    device = machine.choose_device(device)
    machine.prepare(device, deterministic=False)
    config = train.Config(**dict(base_width=base_width, compile="off") | options)
    run = train.start_run(config, device, n_batches=1000)
    run.network.train()
    return lambda images, coverage: train.train_step(run, (images, coverage, torch.full_like(coverage, 255)))


def main(settings: Settings) -> None:
    # Base width, width, height, steps a measurement.
    sizes = [(16, 240, 160, 8), (64, 240, 160, 1), (16, 480, 320, 2), (64, 480, 320, 1)]
    for base_width, width, height, n_steps in [(4, 48, 32, 1)] if settings.quick else sizes:
        if settings.base_width not in (None, base_width) or settings.width not in (None, width):
            continue
        ways = (base_width, settings.batch_size, width, height, n_steps)
        pairs = common.measure_pairs(baseline_steps, our_steps, ways, settings.pairs)
        setting = f"{width}x{height}, base width {base_width}, batch {settings.batch_size}, CPU"
        common.report(settings.results, "training step", setting, "images/s", pairs)


if __name__ == "__main__":
    common.run(main, Settings)
