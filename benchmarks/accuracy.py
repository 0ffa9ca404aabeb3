"""Does the faster number format cost accuracy?

    python benchmarks/accuracy.py

Trains on studio photos in float32 and in the format that train.py chooses by itself, with the same seed and data, once for each
of `--pairs` seeds, and compares the Dice at the photos' own size.
"""

import contextlib
import io
import statistics
from collections.abc import Iterator
from pathlib import Path

import common
import torch
import train
from carvana import machine

from data import require_pairs


def final_dice(
    photo_dir: Path, size: tuple[int, int], base_width: int, epochs: int, work_dir: Path, precision: str
) -> Iterator[float]:
    """Yield the Dice of one training after the other, seeds 0, 1, 2 ..."""
    yield 0.0
    seed = 0
    while True:
        config = train.Config(
            train_image_dir=photo_dir / "train",
            train_mask_dir=photo_dir / "train_masks",
            image_width=size[0],
            image_height=size[1],
            base_width=base_width,
            epochs=epochs,
            validation_share=0.25,
            seed=seed,
            precision=precision,
            augment=common.version_of("albumentations") != "",
            checkpoint_dir=work_dir / precision / "checkpoints",
            prediction_dir=work_dir / precision / "predictions",
            cache_dir=work_dir / "cache",
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            summary = train.train(config)
        yield float(summary["dice"])
        seed += 1


def main() -> None:
    arguments = common.parse_arguments(__doc__, cars=16, epochs=10)
    if arguments.quick:
        photo_dir = common.studio_photos(arguments.work_dir, 2, quick=True)[0].image_path.parents[1]
        size, base_width, arguments.epochs = (48, 32), 4, 1
    else:
        from studio import make_studio

        photo_dir = arguments.work_dir / f"studio_480x320_cars{arguments.cars}"
        if len(list(photo_dir.glob("train_masks/*.gif"))) != 16 * arguments.cars:
            make_studio(photo_dir, arguments.cars, 480, 320)
        size, base_width = (240, 160), 16
    device = machine.choose_device("auto")
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "float32"}[
        machine.choose_precision("auto", device)
    ]
    run = (photo_dir, size, base_width, arguments.epochs, arguments.work_dir)
    pairs = common.measure_pairs(final_dice, final_dice, (*run, "float32"), arguments.pairs, (*run, precision))
    n_photos = len(require_pairs(photo_dir / "train", photo_dir / "train_masks"))
    setting = (
        f"float32 against {precision}, {size[0]}x{size[1]}, base width {base_width}, {arguments.epochs} epochs of {n_photos} photos, "
        f"{device.type}"
    )
    common.report(arguments.results, "Dice at the photos' own size", setting, "Dice", pairs)
    differences = [ours - other for other, ours in pairs]
    print(
        f"  {precision} minus float32, seed by seed: " + ", ".join(f"{difference:+.5f}" for difference in differences)
    )
    float32 = [value for value, _ in pairs]
    spread = max(float32) - min(float32)
    print(f"  mean {statistics.mean(differences):+.5f}; from seed to seed float32 itself spreads over {spread:.5f}")


if __name__ == "__main__":
    common.run(main)
