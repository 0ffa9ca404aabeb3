"""A data set of drawn cars, and the settings of a run of seconds: for tests, and for benchmarks to be tried on."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def draw_cars(
    folder: Path, n_cars: int = 3, n_views: int = 4, width: int = 96, height: int = 64, grain: int = 1
) -> Path:
    """Draw ellipses on noise of `grain` pixels in Carvana's layout: train/<car>_<view>.jpg, train_masks/..._mask.gif.

    Returns:
        The folder.
    """
    rng = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "train_masks").mkdir(exist_ok=True)
    for number in range(n_cars):
        for view in range(1, n_views + 1):
            name = f"{number + 1:012x}_{view:02d}"
            noise = rng.integers(90, 130, (height // grain, width // grain, 3), np.uint8)
            photo = Image.fromarray(noise).resize((width, height))
            mask = Image.new("P", (width, height))
            mask.putpalette([0, 0, 0, 255, 255, 255])
            x, y = rng.integers(width // 4, width // 3), rng.integers(height // 4, height // 3)
            ellipse = (x, y, width - x + view, height - y + view)
            ImageDraw.Draw(photo).ellipse(ellipse, tuple(rng.integers(150, 255, 3).tolist()))
            ImageDraw.Draw(mask).ellipse(ellipse, 1)
            photo.save(folder / "train" / f"{name}.jpg", quality=95)
            mask.save(folder / "train_masks" / f"{name}_mask.gif")
    return folder


def tiny_run(cars: Path, folder: Path, **changes) -> dict:
    """Settings, as keywords of train.Config, of a run of seconds on one core; it leaves its files in `folder`."""
    settings = dict(
        train_image_dir=cars / "train",
        train_mask_dir=cars / "train_masks",
        validation_share=0.34,
        image_width=48,
        image_height=32,
        base_width=4,
        batch_size=3,
        epochs=2,
        device="cpu",
        precision="float32",
        workers=0,
        checkpoint_dir=folder / "checkpoints",
        prediction_dir=folder / "predictions",
        cache_dir=folder / "cache",
    )
    return settings | changes
