"""Build memory.pdf, the report of the study, from its committed rows.

    python memory/build.py

Every number that was measured is read from experiments/; nothing is filled in where a row is missing. Equal rows give
an equal file.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT_DIR / "scripts"))

import figures
from carvana.files import run_command, write_file
from carvana.metrics import bootstrap_interval
from unet import UNet

import experiments

MEMORY_DIR, RESULT_DIR = PROJECT_DIR / "memory", PROJECT_DIR / "experiments"


@dataclass(frozen=True)
class Settings:
    """Where the report goes."""

    output: Path = PROJECT_DIR / "memory.pdf"  # a name that ends in {p}.png gives pages as pictures


def paper_sizes(side: int, depth: int = 4) -> list[int]:
    """Return a square photo's side after each pair of convolutions of the paper's network, which are not padded.

    Example:
        >>> paper_sizes(572)
        [568, 280, 136, 64, 28, 52, 100, 196, 388]
    """
    sizes = [side - 4]
    for level in range(2 * depth):
        sizes.append((sizes[-1] // 2 if level < depth else 2 * sizes[-1]) - 4)
    return sizes


def receptive_field(kernel_size: int, depth: int = 4) -> int:
    """Return how many pixels of a photo, side by side, can reach one pixel of the bottleneck's output.

    Example:
        >>> receptive_field(3)
        140
    """
    field, stride = 1, 1
    for level in range(depth + 1):
        if level:  # pooling
            field, stride = field + stride, 2 * stride
        field += 2 * (kernel_size - 1) * stride
    return field


def count_parameters(kernel_size: int, base_width: int) -> dict[str, int]:
    """Count a network's parameters by what they belong to."""
    counts = dict(convolutions=0, up_convolutions=0, batch_norm=0, head=0)
    for name, parameter in UNet(base_width=base_width, kernel_size=kernel_size).named_parameters():
        kind = name.split(".")[0]
        if kind not in counts:
            kind = "convolutions" if parameter.dim() == 4 else "batch_norm"
        counts[kind] += parameter.numel()
    return counts


def measure_leak(result_dir: Path) -> dict:
    """Compare the two trainings of leak.py: last Dice of each, and their difference with its 95 % CI over cars."""
    by_car, by_image = (experiments.load_run(result_dir / name) for name in ("leak_by_car", "leak_by_image"))
    differences = experiments.subtract(by_image, by_car)
    low, high = bootstrap_interval(differences.tolist(), [photo["car"] for photo in by_car.dice])
    return dict(
        by_car=by_car.facts["last_dice"],
        by_image=by_image.facts["last_dice"],
        difference=float(differences.mean()),
        difference_low=low,
        difference_high=high,
        settings=by_car.facts["settings"],
        n_train_photos=by_car.facts["n_train_photos"],
        n_photos=by_car.facts["n_validation_photos"],
        n_cars=by_car.facts["n_validation_cars"],
    )


def collect_numbers(runs: list[experiments.Run]) -> dict:
    """Return what memory.typ prints; it does the rounding."""
    baseline, table = runs[0], experiments.compare(runs)
    for row in table:
        row["change"] = experiments.describe(row["name"], row)
    width = baseline.facts["settings"]["base_width"]
    dice_of = figures.group_dice(baseline, "view")
    by_view = [dict(view=int(view), dice=sum(dice) / len(dice)) for view, dice in dice_of.items()]
    studio = [dict(row, view=int(row["view"])) for row in experiments.read_table(RESULT_DIR / "studio_views.csv")]
    by_dice = lambda row: row["dice"]
    return dict(
        table=table,
        facts=baseline.facts,
        first_dice=baseline.history[0]["val_dice"],
        best_view=max(by_view, key=by_dice),
        worst_view=min(by_view, key=by_dice),
        worst_photo=min(photo["last"] for photo in baseline.dice),
        counts=[dict(kernel_size=size, **count_parameters(size, width)) for size in (3, 5)],
        receptive_field=[receptive_field(size) for size in (3, 5)],
        paper_sizes=paper_sizes(572),
        leak=measure_leak(RESULT_DIR),
        studio=dict(
            mean=sum(map(by_dice, studio)) / len(studio), best=max(studio, key=by_dice), worst=min(studio, key=by_dice)
        ),
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
        raise RuntimeError(
            "typst must be installed to build the report. Run `pip install -r requirements-memory.txt`."
        ) from None
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
    import tyro

    run_command(lambda args: build(tyro.cli(Settings, args=args, description=__doc__)))
