"""Measure masks at full resolution: how large cars are, how long their outline is, what labels of a size allow.

    python memory/measure_masks.py --mask-dir data/train_masks

writes experiments/masks.json, numbers alone. The upper bound of a size is the mean Dice of true labels downsampled to
it, upsampled again and thresholded at one half: once as coverage (area average), once thresholded before, too.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np

PROJECT_DIR = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT_DIR / "scripts"))

from carvana.files import run_command, write_file
from carvana.listing import list_files
from carvana.machine import map_photos
from carvana.masks import load_mask
from carvana.metrics import dice
from carvana.pictures import MASK_SUFFIXES, area_average, upsample
from carvana.settings import Count, PathSetting, parse_settings, settings_class

SIZES = ((240, 160), (480, 320), (960, 640))  # width, height in pixels


@settings_class
class Settings:
    """Which masks to measure."""

    mask_dir: PathSetting = PROJECT_DIR / "data/train_masks"  # masks at full resolution
    limit: Count = 256  # at most so many, spread evenly


def measure(path: Path) -> dict[str, float]:
    """Measure one mask: the car's fraction of it, its outline in pixels, and the upper bounds of each size."""
    mask = load_mask(path)
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    numbers = dict(height=mask.shape[0], width=mask.shape[1], share=float(mask.mean()))
    numbers["outline"] = sum(cv2.arcLength(line, True) for line in outlines)
    for width, height in SIZES:
        coverage = area_average(mask.view(np.uint8) * np.uint8(255), width, height).astype(np.float32)
        hard = np.where(coverage > 127, np.float32(255), np.float32(0))
        for name, label in (("coverage", coverage), ("hard", hard)):
            numbers[f"{name}_{width}x{height}"] = dice(upsample(label, *mask.shape) > 127.5, mask)
    return numbers


def main(settings: Settings) -> None:
    paths = list_files(settings.mask_dir, MASK_SUFFIXES)
    if not paths:
        raise ValueError(f"{settings.mask_dir} must hold masks, got none.")
    paths = [paths[index] for index in np.linspace(0, len(paths) - 1, min(settings.limit, len(paths))).astype(int)]
    rows = map_photos(measure, paths)
    numbers = dict(n_masks=len(rows)) | {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    numbers |= dict(share_low=min(row["share"] for row in rows), share_high=max(row["share"] for row in rows))
    text = json.dumps(numbers, indent=1)
    write_file(PROJECT_DIR / "experiments/masks.json", text.encode())
    print(text)


if __name__ == "__main__":
    run_command(lambda args: main(parse_settings(Settings, args, __doc__)))
