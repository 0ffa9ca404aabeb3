"""Build memory.pdf, the report of the study, from its committed rows.

    python memory/build.py

Every number that was measured is read from experiments/; nothing is filled in where a row is missing. Equal rows give
an equal file.
"""

import json
import sys
from collections import Counter
from operator import itemgetter
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT_DIR / "scripts"))

import figures
from carvana.files import run_command, write_file
from carvana.metrics import bootstrap_interval
from carvana.settings import PathSetting, parse_settings, settings_class
from unet import UNet

import experiments

MEMORY_DIR, RESULT_DIR = PROJECT_DIR / "memory", PROJECT_DIR / "experiments"


@settings_class
class Settings:
    """Where the report goes."""

    output: PathSetting = PROJECT_DIR / "memory.pdf"  # a name that ends in {p}.png gives pages as pictures


def receptive_field(kernel_size: int, depth: int = 4) -> int:
    """Return how many pixels of a photo, side by side, can reach one pixel of the bottleneck's output.

    Example:
        >>> receptive_field(3)
        140
    """
    convolutions = sum(2 * (kernel_size - 1) * 2**level for level in range(depth + 1))
    pooling = sum(2**level for level in range(depth))
    return 1 + convolutions + pooling


def count_parameters(kernel_size: int, base_width: int) -> dict[str, int]:
    """Count a network's parameters by what they belong to: up_convolutions, head, convolutions, batch_norm."""
    counts = Counter()
    for name, parameter in UNet(base_width=base_width, kernel_size=kernel_size).named_parameters():
        part, other = name.split(".")[0], "convolutions" if parameter.dim() == 4 else "batch_norm"
        counts[part if part in ("up_convolutions", "head") else other] += parameter.numel()
    return counts


def measure_leak() -> dict:
    """Compare the trainings split by car and by photo: last Dice, and their difference with its 95 % CI over cars."""
    by_car, by_image = (experiments.load_run(RESULT_DIR / name) for name in ("leak_by_car", "leak_by_image"))
    differences = experiments.subtract(by_image, by_car)
    low, high = bootstrap_interval(differences.tolist(), [photo["car"] for photo in by_car.dice])
    numbers = dict(difference=float(differences.mean()), difference_low=low, difference_high=high)
    numbers |= dict(by_car=by_car.facts["last_dice"], by_image=by_image.facts["last_dice"])
    names = dict(n_photos="n_validation_photos", n_cars="n_validation_cars")
    names |= dict(settings="settings", n_train_photos="n_train_photos")
    return numbers | {name: by_car.facts[fact] for name, fact in names.items()}


def collect_numbers(runs: list[experiments.Run]) -> dict:
    """Return what memory.typ prints; it does the rounding."""
    baseline, table, by_dice = runs[0], experiments.compare(runs), itemgetter("dice")
    for row in table:
        row["change"] = experiments.describe(row["name"], row)
    width = baseline.facts["settings"]["base_width"]
    dice_of = figures.group_dice(baseline, "view")
    views = [dict(view=int(view), dice=sum(dice) / len(dice)) for view, dice in dice_of.items()]
    studio = [dict(row, view=int(row["view"])) for row in experiments.read_table(RESULT_DIR / "studio_views.csv")]
    studio_mean = sum(map(by_dice, studio)) / len(studio)
    return dict(
        table=table,
        facts=baseline.facts,
        first_dice=baseline.history[0]["val_dice"],
        best_view=max(views, key=by_dice),
        worst_view=min(views, key=by_dice),
        worst_photo=min(photo["last"] for photo in baseline.dice),
        counts=[dict(kernel_size=size, **count_parameters(size, width)) for size in (3, 5)],
        receptive_field=[receptive_field(size) for size in (3, 5)],
        leak=measure_leak(),
        studio=dict(mean=studio_mean, best=max(studio, key=by_dice), worst=min(studio, key=by_dice)),
    )


def build(settings: Settings) -> None:
    """Write figures, numbers and report.

    Raises:
        OSError, ValueError: If rows are missing or damaged.
        RuntimeError: If Typst is not installed or refuses the text.
    """
    try:
        import typst
    except ModuleNotFoundError:
        raise RuntimeError("typst must be installed, got none. Run `pip install -r requirements-memory.txt`.") from None
    runs = experiments.load_study(RESULT_DIR)
    numbers, build_dir = collect_numbers(runs), MEMORY_DIR / "build"
    write_file(build_dir / "numbers.json", json.dumps(numbers, indent=1).encode())
    chosen = numbers["facts"]["settings"]
    figures.draw_network(build_dir / "network.svg", chosen["base_width"], chosen["image_width"], chosen["image_height"])
    figures.draw_schedule(build_dir / "schedule.svg", chosen["epochs"], numbers["facts"]["n_train_photos"])
    figures.draw_views(build_dir / "views.svg", runs[0])
    figures.draw_cars(build_dir / "cars.svg", runs[0])
    source, options = str(MEMORY_DIR / "memory.typ"), dict(root=str(PROJECT_DIR), ignore_system_fonts=True, timestamp=0)
    try:
        if settings.output.suffix == ".png":
            typst.compile(source, output=str(settings.output), format="png", ppi=80, **options)
        else:
            write_file(settings.output, typst.compile(source, format="pdf", **options))
    except typst.TypstError as error:
        raise RuntimeError(f"memory/memory.typ could not be set ({error}).") from error
    print(f"{settings.output}: built from {len(runs)} runs")


if __name__ == "__main__":
    run_command(lambda args: build(parse_settings(Settings, args, __doc__)))
