"""Predict the 16 views of a car that nobody owns: the pictures of the report, since photos of the competition may not be shown.

    python memory/studio_views.py --weights experiments/baseline/best.safetensors

Leaves experiments/studio_views.csv (view, Dice), memory/studio_views.png and memory/studio_extremes.png.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PROJECT_DIR = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT_DIR / "scripts"))

import extra  # noqa: E402
from carvana import drawing, files  # noqa: E402
from carvana.masks import load_mask  # noqa: E402
from carvana.pictures import load_image  # noqa: E402
from carvana.segmenter import Segmenter  # noqa: E402
from studio import make_studio  # noqa: E402

from data import require_pairs  # noqa: E402


@dataclass(frozen=True)
class Settings:
    """Whose prediction of which car."""

    weights: Path = PROJECT_DIR / "experiments/baseline/best.safetensors"  # the network
    studio_seed: int = 2026  # the car and the room that it stands in
    width: int = 960  # size of the studio's photos in pixels
    height: int = 640  # likewise
    studio_dir: Path = PROJECT_DIR / "data/studio_views"  # gets the photos
    table: Path = PROJECT_DIR / "experiments/studio_views.csv"  # gets the Dice of each view
    picture_dir: Path = PROJECT_DIR / "memory"  # gets the pictures


def main(settings: Settings) -> None:
    segmenter = Segmenter(settings.weights)
    make_studio(settings.studio_dir, 1, settings.width, settings.height, settings.studio_seed)
    views = []
    for pair in require_pairs(settings.studio_dir / "train", settings.studio_dir / "train_masks"):
        photo, mask = load_image(pair.image_path), load_mask(pair.mask_path)
        prediction = segmenter(photo) > segmenter.threshold
        views.append(
            dict(view=pair.view, dice=extra.dice(prediction, mask), photo=photo, mask=mask, prediction=prediction)
        )
    files.write_table(settings.table, [dict(view=view["view"], dice=view["dice"]) for view in views])

    def small(photo: np.ndarray) -> np.ndarray:
        return drawing.area_fit(photo, 320)

    sheet = []
    for start in range(0, len(views), 4):
        group = views[start : start + 4]
        titles = [f"view {view['view']:02d}: Dice {view['dice']:.4f}" for view in group]
        sheet.append(
            (titles, [drawing.draw_errors(small(view["photo"]), view["mask"], view["prediction"]) for view in group])
        )
    drawing.save_picture(settings.picture_dir / "studio_views.png", drawing.draw_sheet(sheet))
    extremes = []
    for label, view in (
        ("best", max(views, key=lambda view: view["dice"])),
        ("worst", min(views, key=lambda view: view["dice"])),
    ):
        photo = small(view["photo"])
        height, width = photo.shape[:2]
        pictures = [photo, *(drawing.draw_mask(view[key], width, height) for key in ("mask", "prediction"))]
        pictures.append(drawing.draw_errors(photo, view["mask"], view["prediction"]))
        extremes.append((f"{label}: view {view['view']:02d}, Dice {view['dice']:.4f}", pictures))
    captions = ["photo", "truth", "prediction", "red: false car, blue: missed"]
    drawing.save_picture(settings.picture_dir / "studio_extremes.png", drawing.draw_sheet(extremes, captions))
    print(f"mean Dice {np.mean([view['dice'] for view in views]):.4f} of {len(views)} views")


if __name__ == "__main__":
    import tyro

    files.run_command(lambda args: main(tyro.cli(Settings, args=args, description=__doc__)))
