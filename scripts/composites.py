"""Paste cars in front of other scenes: pairs that teach a network what a car looks like outside the studio.

    python scripts/composites.py --scene-dir streets --output data/composites

Each composite is one or two cars with exact masks, mirrored, resized, recoloured, lit like the scene and with a soft
shadow below, as a camera or a web page would have left the photo. Put photos and masks beside your others and train.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from carvana.files import PROJECT_DIR, run_command, write_file
from carvana.masks import load_mask
from carvana.pictures import load_image
from carvana.settings import Count, Fraction, PathSetting, Whole, parse_settings, settings_class
from tqdm import tqdm

from data import require_pairs


@settings_class
class Settings:
    """The settings of a set of composites."""

    output: PathSetting  # gets train/ and train_masks/
    image_dir: PathSetting = PROJECT_DIR / "data/train"  # photos of cars
    mask_dir: PathSetting = PROJECT_DIR / "data/train_masks"  # their exact masks
    scene_dir: PathSetting | None = None  # photos to paste into; None: plain backgrounds and noise alone
    scene_mask_dir: PathSetting | None = None  # <scene>.png: 255 where it shows cars, 128 where nobody knows
    count: Count = 1000  # composites to make
    plain: Fraction = 0.3  # fraction of them on white, black, gradients and noise instead of a scene
    width: Count = 576  # pixels
    height: Count = 384  # likewise
    seed: Whole = 0  # the composites follow from it


def compose(cars: list, scene: tuple | None, height: int, width: int, rng: np.random.Generator):
    """Paste cars into a scene, the last one in front.

    Args:
        cars: Photos (h, w, 3), uint8, with alpha (h, w), float32 in [0, 1].
        scene: Photo (H, W, 3) and label (H, W), uint8, with 255 car, 128 unknown, 0 background; None for a plain one.

    Returns:
        Photo (height, width, 3) and label (height, width), both uint8.
    """
    if scene is None:
        picture, label = plain_background(height, width, rng), np.zeros((height, width), np.uint8)
    else:
        picture, label = crop_scene(*scene, height, width, rng)
    picture = picture.astype(np.float32)
    for number, (photo, alpha) in enumerate(cars):
        scale = np.exp(rng.uniform(*np.log((0.5, 1.45)))) if number == len(cars) - 1 else rng.uniform(0.2, 0.6)
        photo, alpha = place_car(photo, alpha, height, width, scale * width / photo.shape[1], rng)
        if rng.random() < 0.7:
            add_shadow(picture, alpha, rng)
        alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.4, 1.1))
        picture += (recolour(photo, alpha, picture, rng) - picture) * alpha[..., None]
        label = np.where(alpha > 0.5, np.uint8(255), label)
    return degrade(picture.clip(0, 255).astype(np.uint8), rng), label


def plain_background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a wall and floor of plain colour, a gradient, or noise from smooth to foliage: (height, width, 3), uint8."""
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = rng.uniform(0, 255, 3)
    if rng.random() < 0.45:
        if rng.random() < 0.7:
            picture[:] = rng.choice([255.0, 255.0, 245.0, 0.0, 20.0, 128.0, 200.0])
        if rng.random() < 0.6:
            ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None] ** rng.uniform(0.5, 2)
            picture += ramp * rng.uniform(-90, 60)
        if rng.random() < 0.35:
            picture[int(height * rng.uniform(0.35, 0.75)) :] += rng.uniform(-60, 60)
            if rng.random() < 0.5:
                picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(1, 30))
    else:
        for cells in (2, *rng.integers((3, 12, 64), (12, 64, 256))):
            noise = rng.normal(0, rng.uniform(3, 40), (cells, cells, 3)).astype(np.float32)
            if rng.random() < 0.5:
                noise[:] = noise[..., :1]
            picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    picture += rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0, 4))
    return picture.clip(0, 255).astype(np.uint8)


def crop_scene(scene: np.ndarray, label: np.ndarray, height: int, width: int, rng: np.random.Generator):
    """Resize a random part of a scene to (height, width): of a few parts the one with the least car in it."""
    scale = min(label.shape[0] / height, label.shape[1] / width) * rng.uniform(0.45, 1.0)
    h, w = int(height * scale), int(width * scale)
    corners = [(rng.integers(label.shape[0] - h + 1), rng.integers(label.shape[1] - w + 1)) for _ in range(6)]
    parts = [(slice(y, y + h), slice(x, x + w)) for y, x in corners]
    part = min(parts, key=lambda part: np.count_nonzero(label[part]))
    scene = cv2.resize(scene[part], (width, height), interpolation=cv2.INTER_CUBIC)
    label = cv2.resize(label[part], (width, height), interpolation=cv2.INTER_NEAREST)
    step = rng.choice((-1, 1))  # mirrored or not
    return scene[:, ::step], label[:, ::step]


def place_car(photo: np.ndarray, alpha: np.ndarray, height: int, width: int, scale: float, rng: np.random.Generator):
    """Set a car, resized, now and then mirrored or cut off, into an empty photo (height, width, 3) and alpha."""
    x, y, w, h = cv2.boundingRect((alpha > 0.02).view(np.uint8))
    box, step = (slice(y, y + h), slice(x, x + w)), rng.choice((-1, 1))
    w, h = max(4, int(w * scale * np.exp(rng.normal(0, 0.04)))), max(4, int(h * scale))
    methods = (cv2.INTER_AREA, cv2.INTER_AREA) if scale < 1 else (cv2.INTER_CUBIC, cv2.INTER_LINEAR)
    outside = 0.18 if rng.random() < 0.25 else 0.0
    room_x, room_y = width - w, height - h
    x = int(rng.uniform(min(0, room_x) - outside * w, max(0, room_x) + outside * w))
    y = int(room_y * (rng.beta(2.2, 1.4) if room_y > 0 else rng.uniform(0.2, 0.8)) + outside * h * rng.uniform(-0.5, 1))
    move = np.float32([[1, 0, x], [0, 1, y]])
    photo, alpha = (
        cv2.warpAffine(cv2.resize(picture[box][:, ::step], (w, h), interpolation=method), move, (width, height))
        for picture, method in zip((photo, alpha), methods)
    )
    return photo, alpha


def recolour(photo: np.ndarray, alpha: np.ndarray, scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Repaint a car now and then, and light it like its scene: (height, width, 3), float32 in [0, 255]."""
    if rng.random() < 0.4:
        hue, saturation, value = cv2.split(cv2.cvtColor(photo, cv2.COLOR_RGB2HSV))
        hue = ((hue.astype(int) + rng.integers(180)) % 180).astype(np.uint8)
        if rng.random() < 0.5:  # more colour, where there is any
            saturation = np.where(saturation > 12, cv2.add(saturation, int(rng.integers(120))), saturation)
        photo = cv2.cvtColor(cv2.merge((hue, saturation, value)), cv2.COLOR_HSV2RGB)
    photo = photo.astype(np.float32)
    if (alpha > 0.5).any():
        mean, light = photo[alpha > 0.5].mean(axis=0), scene.mean(axis=(0, 1))
        cast = (light - light.mean()) * rng.uniform(0, 0.8)
        photo = (photo - mean) * rng.uniform(0.7, 1.25) + mean + cast
        photo += (light.mean() - mean.mean()) * rng.uniform(0, 0.6) + rng.uniform(-25, 25)
    return photo.clip(0, 255)


def add_shadow(picture: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> None:
    """Darken the floor, in place, by the car's outline, squashed towards its lower edge and blurred."""
    _, top, _, size = cv2.boundingRect((alpha > 0.5).view(np.uint8))
    if size < 8:
        return
    bottom, squash, shear = top + size, rng.uniform(0.12, 0.4), rng.uniform(-0.5, 0.5)
    matrix = np.float32([[1, shear, -shear * bottom], [0, squash, bottom * (1 - squash) + size * rng.uniform(0, 0.05)]])
    shadow = cv2.warpAffine(alpha, matrix, alpha.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    shadow = cv2.GaussianBlur(shadow, (0, 0), max(1.0, size * rng.uniform(0.01, 0.12)))
    picture *= (1 - shadow * np.float32(rng.uniform(0.2, 0.85)))[..., None]


def degrade(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Do what cameras, phones and web pages do to a photo (height, width, 3), uint8."""
    import albumentations as A  # slow to import

    resizing = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_CUBIC}
    changes = [
        A.RandomGamma((60, 160), p=0.5),
        A.MultiplicativeNoise((0.85, 1.15), per_channel=True, p=0.4),  # white balance
        A.ColorJitter((1, 1), (1, 1), saturation=(0.2, 1.4), hue=(0, 0), p=0.4),
        A.GaussianBlur(sigma_limit=(0.3, 1.8), p=0.35),
        A.Downscale((0.3, 0.9), resizing, p=0.4),
        A.GaussNoise((1 / 255, 9 / 255), p=0.4),
        A.ImageCompression(quality_range=(30, 94), p=0.5),
    ]
    for change in changes:  # with one seed for all, all would happen or none
        change.set_random_seed(int(rng.integers(2**31)))
        photo = change(image=photo)["image"]
    return photo


def load_scene(path: Path, mask_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Read a scene and its label, all background where there is no mask."""
    photo = load_image(path)
    label = np.zeros(photo.shape[:2], np.uint8)
    if mask_dir is not None and (mask_path := mask_dir / f"{path.stem}.png").exists():
        label = cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE)
        if label is None or label.shape != photo.shape[:2]:
            raise ValueError(f"{mask_path} must be an 8-bit PNG of the size of {path.name}. Save it anew.")
    return photo, label


def make_composite(number: int, settings: Settings, pairs: list, scenes: list[Path]) -> None:
    """Write composite `number`, a function of it and the seed alone, unless it is there already."""
    name = f"composite-{number:06d}"
    photo_path, label_path = settings.output / f"train/{name}.jpg", settings.output / f"train_masks/{name}.png"
    if label_path.exists():
        return
    rng = np.random.default_rng((settings.seed, number))
    chosen = [pairs[rng.integers(len(pairs))] for _ in range(2 if rng.random() < 0.15 else 1)]
    cars = [(load_image(pair.image_path), load_mask(pair.mask_path).astype(np.float32)) for pair in chosen]
    scene = None
    if scenes and rng.random() >= settings.plain:
        scene = load_scene(scenes[rng.integers(len(scenes))], settings.scene_mask_dir)
    photo, label = compose(cars, scene, settings.height, settings.width, rng)
    write_file(photo_path, cv2.imencode(".jpg", photo[..., ::-1])[1].tobytes())
    write_file(label_path, cv2.imencode(".png", label)[1].tobytes())


def main(settings: Settings) -> None:
    """Make the composites on all cores."""
    pairs = require_pairs(settings.image_dir, settings.mask_dir)
    scenes = sorted(settings.scene_dir.glob("[!.]*.*")) if settings.scene_dir is not None else []
    if settings.scene_dir is not None and not scenes:
        raise ValueError(f"{settings.scene_dir} must hold photos of scenes, got none.")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(lambda number: make_composite(number, settings, pairs, scenes), range(settings.count))
        for _ in tqdm(jobs, "composites", settings.count):
            pass
    print(f"{settings.count} composites in {settings.output}")


if __name__ == "__main__":
    run_command(lambda args: main(parse_settings(Settings, args, __doc__)))
