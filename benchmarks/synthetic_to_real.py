"""Train on studio photos alone, score on real ones: is the studio a toy?

    python benchmarks/synthetic_to_real.py --real-dir ~/carvana --cars 256 --epochs 20

`--real-dir` holds train/ and train_masks/. None of its photos is trained on, and none chooses the epoch or the threshold: the
network that is scored is the one that did best on studio cars set aside. Scores are taken at the real photos' own size.
Scoring 4,128 photos of 959x640 takes about as long as one epoch over as many.
"""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

PROJECT_DIR = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT_DIR / "scripts"))
import extra
import train
from carvana.masks import load_mask
from carvana.pictures import upsample
from studio import make_studio

from data import build_cache, limit_cars, require_pairs


@dataclass(frozen=True)
class Settings:
    """What to train and what to score on."""

    real_dir: Path  # folder of the real photos: train/ and train_masks/
    cars: int = 256  # studio cars, 16 photos each
    stray: float = 1.0  # how far the studio strays from one room, 0 to 1
    studio_seed: int = 0  # other cars, other rooms
    width: int = 480  # size of the studio's photos and of training, pixels, multiples of 16
    height: int = 320  # likewise
    base_width: int = 16  # channels of the network's first convolution
    epochs: int = 10  # how often each studio photo is seen
    batch_size: int = 16  # photos a step
    background: float = train.Config.background  # share of the training photos that get a new background
    seed: int = 0  # of the training
    limit: int | None = None  # score at most so many real photos, whole cars; for a quick try
    device: str = "auto"  # cuda, mps, cpu, or auto
    weights: Path | None = None  # score these weights (best.pt, .safetensors) instead of training
    work_dir: Path = PROJECT_DIR / "data/synthetic_to_real"  # studio photos, cache, checkpoints, pictures


def tell_errors(prediction: np.ndarray, mask: np.ndarray) -> dict[str, int]:
    """Count the wrong pixels of one photo by kind.

    Args:
        prediction: (height, width), bool.
        mask: (height, width), bool, True on the car.

    Returns:
        Pixels of: `edge`, both kinds at most 1 % of the width from the true edge; beyond that `missed` car by where it lies in the
        car's height (upper or lower half), and `false` car beside or above the car, or below the height of its middle: floor and shadow.
    """
    reach = max(1, round(0.01 * mask.shape[1]))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    mask8 = mask.astype(np.uint8)
    edge = cv2.dilate(mask8, disc) != cv2.erode(mask8, disc, borderValue=1)
    rows = np.flatnonzero(mask.any(1))
    lower = (
        np.arange(len(mask))[:, None] > (rows.min() + rows.max()) / 2 if len(rows) else np.ones((len(mask), 1), bool)
    )
    wrong = {"missed": mask & ~prediction & ~edge, "false": prediction & ~mask & ~edge}
    counts = {"edge": int(np.count_nonzero((prediction != mask) & edge))}
    for kind, pixels in wrong.items():
        counts[f"{kind}_upper"], counts[f"{kind}_lower"] = (
            int(np.count_nonzero(pixels & ~lower)),
            int(np.count_nonzero(pixels & lower)),
        )
    return counts


def main(settings: Settings) -> None:
    started = time.perf_counter()
    real = limit_cars(require_pairs(settings.real_dir / "train", settings.real_dir / "train_masks"), settings.limit)
    studio_dir = (
        settings.work_dir
        / f"studio_{settings.width}x{settings.height}_seed{settings.studio_seed}_stray{settings.stray:g}_cars{settings.cars}"
    )
    make_studio(studio_dir, settings.cars, settings.width, settings.height, settings.studio_seed, stray=settings.stray)
    studio_seconds = time.perf_counter() - started
    config = train.Config(
        train_image_dir=studio_dir / "train",
        train_mask_dir=studio_dir / "train_masks",
        image_width=settings.width,
        image_height=settings.height,
        base_width=settings.base_width,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        background=settings.background,
        seed=settings.seed,
        device=settings.device,
        checkpoint_dir=settings.work_dir / "checkpoints",
        prediction_dir=settings.work_dir / "predictions",
        cache_dir=settings.work_dir / "cache",
    )
    weights = settings.weights
    if weights is None:
        train.train(config)
        weights = config.checkpoint_dir / "best.pt"
    network, description = extra.load_network(weights)
    config = replace(config, image_width=description["image_width"], image_height=description["image_height"])

    device = train.choose_device(config.device)
    precision = train.choose_precision(config.precision, device)
    network = network.to(device)
    cache = build_cache(real, config.image_width, config.image_height, config.cache_dir)
    studio_cache = train.prepare_data(config, quiet=True)[0]
    mean_mask = np.mean(
        [row / np.float32(255) for row in studio_cache.coverage[:: max(1, len(studio_cache.pairs) // 512)]], axis=0
    )
    errors: dict[str, int] = {}
    pixels = 0

    def predictions():
        nonlocal pixels
        for row, _, logits in train.predict_rows(network, cache, list(range(len(real))), config, device, precision):
            mask = load_mask(real[row].mask_path)
            pixels += mask.size
            for kind, count in tell_errors(upsample(logits, *mask.shape) > 0, mask).items():
                errors[kind] = errors.get(kind, 0) + count
            yield row, logits

    rows = extra.score_images(predictions(), cache, mean_mask)
    card = extra.summarise(rows)
    print(extra.format_score_card(card))
    by_car: dict[str, list[float]] = {}
    for row in rows:
        by_car.setdefault(row["car"], []).append(row["dice"])
    car_dice = np.array([np.mean(values) for values in by_car.values()])
    worst = sorted(rows, key=lambda row: row["dice"])[:10]
    examples = {
        real_row: logits
        for real_row, _, logits in train.predict_rows(
            network,
            cache,
            [n for n, pair in enumerate(real) if pair.name in {row["name"] for row in worst[:6]}],
            config,
            device,
            precision,
        )
    }
    extra.save_picture(config.prediction_dir / "worst_real.png", extra.draw_predictions(list(examples.items()), cache))
    total = max(1, sum(errors.values()))
    report = {
        "real_dice": f"{card['dice']:.5f}",
        "real_dice_low": f"{card['dice_low']:.5f}",
        "real_dice_high": f"{card['dice_high']:.5f}",
        "real_photos": card["n_images"],
        "real_cars": card["n_cars"],
        "cars_below_0.9": int((car_dice < 0.9).sum()),
        "worst_car_dice": f"{car_dice.min():.5f}",
        "median_car_dice": f"{np.median(car_dice):.5f}",
        "wrong_pixels": f"{sum(errors.values()) / pixels:.5f}",
        **{f"wrong_{kind}": f"{count / total:.3f}" for kind, count in sorted(errors.items())},
        "worst_photos": " ".join(f"{row['name']}={row['dice']:.3f}" for row in worst),
        "worst_picture": config.prediction_dir / "worst_real.png",
        "studio_seconds": f"{studio_seconds:.1f}",
        "seconds": f"{time.perf_counter() - started:.1f}",
        "cpu_cores": os.cpu_count(),
        "device": train.device_name(device),
    }
    print("---")
    for key, value in report.items():
        print(f"{key + ':':<20}{value}")


if __name__ == "__main__":
    import tyro

    extra.run_command(lambda args: main(tyro.cli(Settings, args=args, description=__doc__)))
