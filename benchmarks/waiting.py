"""What share of a training epoch is spent waiting for data?

    python benchmarks/waiting.py

Textbook: its loader with 2 worker processes before its own step. Ours: a run of train.py, whose cache is there already. Base
width 16, since a larger network would hide the waiting.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import common
import textbook
import train
from carvana import machine

from data import Pair


def textbook_share(pairs: list[Pair], width: int, height: int, base_width: int, work_dir: Path) -> Iterator[float]:
    """Yield the share of one epoch in which the network waits, in percent."""
    device = machine.choose_device("auto").type
    step = textbook.make_step(base_width, device)
    loader = textbook.make_loader(pairs, width, height, batch_size=8, augment=common.version_of("albumentations") != "")
    yield 0.0
    while True:
        seconds, waited = textbook.train_epoch(loader, step)
        yield 100 * waited / seconds


def our_share(pairs: list[Pair], width: int, height: int, base_width: int, work_dir: Path) -> Iterator[float]:
    """Yield the share of the second of two epochs, in percent: the first one starts the workers, if there are any."""
    config = train.Config(
        train_image_dir=pairs[0].image_path.parent,
        train_mask_dir=pairs[0].mask_path.parent,
        image_width=width,
        image_height=height,
        base_width=base_width,
        epochs=2,
        augment=common.version_of("albumentations") != "",
        checkpoint_dir=work_dir / "checkpoints",
        prediction_dir=work_dir / "predictions",
        cache_dir=work_dir / "cache",
    )
    yield 0.0
    while True:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            summary = train.train(config)
        yield 100 * float(summary["data_wait"])


def main() -> None:
    arguments = common.parse_arguments(__doc__, cars=3)
    pairs = common.studio_photos(arguments.work_dir, arguments.cars, arguments.quick)
    settings = [(48, 32, 4)] if arguments.quick else [(240, 160, 16)]
    for width, height, base_width in settings:
        measured = common.measure_pairs(
            textbook_share, our_share, (pairs, width, height, base_width, arguments.work_dir), arguments.pairs
        )
        setting = f"{width}x{height}, base width {base_width}, batch 8, {machine.choose_device('auto').type}"
        common.report(
            arguments.results, "share of an epoch waiting for data", setting, "percent", measured, less_is_better=True
        )


if __name__ == "__main__":
    common.run(main)
