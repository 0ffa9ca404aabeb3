"""Predict the 16 views of a synthetic car: the pictures of the report, since the competition's photos may not be shown.

    python memory/studio_views.py --weights experiments/baseline/best.safetensors

writes experiments/studio_views.csv (view, Dice), memory/studio_views.png and memory/studio_extremes.png.
"""

import sys
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT_DIR / "scripts"))

from carvana.drawing import area_fit, draw_errors, draw_mask, draw_sheet, save_picture
from carvana.files import run_command, write_table
from carvana.metrics import dice
from carvana.segmenter import Segmenter
from carvana.settings import Count, PathSetting, Whole, parse_settings, settings_class
from carvana.studio.camera import shoot_car


@settings_class
class Settings:
    """Whose prediction of which car."""

    weights: PathSetting = PROJECT_DIR / "experiments/baseline/best.safetensors"  # the network
    studio_seed: Whole = 2026  # decides the car and its room
    width: Count = 960  # size of the photos in pixels
    height: Count = 640  # likewise


def main(settings: Settings) -> None:
    segmenter, views = Segmenter(settings.weights), []
    for shot in shoot_car(settings.studio_seed, 0, settings.width, settings.height, 0.3, range(1, 17)):
        mask, prediction = shot.mask > 0, segmenter(shot.photo) > segmenter.threshold
        views.append((dice(prediction, mask), shot.view, area_fit(shot.photo, 320), mask, prediction))
    write_table(PROJECT_DIR / "experiments/studio_views.csv", [dict(view=view[1], dice=view[0]) for view in views])

    title = lambda view: f"view {view[1]:02d}: Dice {view[0]:.4f}"
    groups = [views[start : start + 4] for start in range(0, len(views), 4)]
    sheet = [([title(view) for view in group], [draw_errors(*view[2:]) for view in group]) for group in groups]
    save_picture(PROJECT_DIR / "memory/studio_views.png", draw_sheet(sheet))
    extremes = []
    for label, view in (("best", max(views)), ("worst", min(views))):
        _, _, photo, mask, prediction = view
        height, width = photo.shape[:2]
        pictures = [photo, draw_mask(mask, width, height), draw_mask(prediction, width, height)]
        extremes.append((f"{label}, {title(view)}", [*pictures, draw_errors(photo, mask, prediction)]))
    captions = ["photo", "truth", "prediction", "red: false car, blue: missed"]
    save_picture(PROJECT_DIR / "memory/studio_extremes.png", draw_sheet(extremes, captions))
    print(f"mean Dice {sum(view[0] for view in views) / len(views):.4f} of {len(views)} views")


if __name__ == "__main__":
    run_command(lambda args: main(parse_settings(Settings, args, __doc__)))
