"""What a training photo is turned into: moved, recoloured, before other backgrounds."""

import os

import cv2
import numpy as np

# albumentations asks the internet for a newer release when it is imported; a laptop on a train need not wait for that.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def make_transform(scale_range: tuple[float, float] = (0.9, 1.1)):
    """Compose the augmentations, on uint8 photo and coverage together."""
    import albumentations

    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(
                scale=scale_range,
                translate_percent=(-0.05, 0.05),
                rotate=(-4, 4),
                # Coverage is a fraction, not a class: the nearest pixel's may be half a pixel off.
                mask_interpolation=cv2.INTER_LINEAR,
                border_mode=cv2.BORDER_REFLECT_101,
                p=0.7,
            ),
            albumentations.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.7),
            albumentations.RGBShift(12, 12, 12, p=0.5),
        ]
    )


def replace_background(image: np.ndarray, coverage: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put letters and boxes behind the car, on its own wall or on coloured noise, from plain to foliage.

    Args:
        image: Photo (height, width, 3), uint8.
        coverage: Coverage (height, width), uint8, 255 = all car.
        rng: Source of randomness.

    Returns:
        Photo (height, width, 3), uint8.
    """
    height, width = coverage.shape
    if rng.random() < 0.5:
        background = image.copy()
    else:
        noisy = np.empty((height, width, 3), np.float32)
        noisy[:] = rng.uniform(0, 255, 3)
        for cells in (2, int(rng.integers(3, 12)), int(rng.integers(12, 64))):
            noise = rng.normal(0, rng.uniform(5, 45), (cells, cells, 3)).astype(np.float32)
            noisy += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        background = noisy.clip(0, 255).astype(np.uint8)
    # Things with sharp edges that are no car: a network that has seen one studio alone takes strange letters for car.
    for _ in range(rng.integers(1, 9)):
        colour = [int(value) for value in rng.integers(0, 256, 3)]
        x, y = int(rng.integers(-width // 8, width)), int(rng.integers(0, height))
        size = int(rng.integers(max(1, height // 16), max(2, height // 2)))
        if rng.random() < 0.7:
            text = "".join(chr(rng.integers(ord("A"), ord("Z") + 1)) for _ in range(rng.integers(1, 7)))
            font = int(rng.choice((cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX)))
            thickness = max(1, size // int(rng.integers(4, 12)))
            scale = cv2.getFontScaleFromHeight(font, size, thickness)
            cv2.putText(background, text, (x, y), font, scale, colour, thickness, cv2.LINE_AA)
        else:
            corner = x + int(rng.integers(1, width)), y + size
            cv2.rectangle(background, (x, y), corner, colour, int(rng.choice((-1, max(1, size // 12)))), cv2.LINE_AA)
    alpha = (coverage.astype(np.float32) / 255)[..., None]
    return (image * alpha + background * (1 - alpha)).astype(np.uint8)
