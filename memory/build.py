"""Build memory.pdf, the report of the study, from its committed rows.

    python memory/build.py

Every number that was measured is read from experiments/; nothing is filled in where a row is missing. Equal rows give an equal file.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parents[1]
MEMORY_DIR = Path(__file__).resolve().parent
sys.path.insert(0, str(PROJECT_DIR / "scripts"))

import figures  # noqa: E402
import leak  # noqa: E402
from carvana import files  # noqa: E402
from unet import UNet  # noqa: E402

import experiments  # noqa: E402

NEEDS = {  # what the report is made of, and the command that makes it
    **{f"{name}/run.json": "python scripts/experiments.py" for name in experiments.GRID},
    "leak_by_car/run.json": "python memory/leak.py",
    "leak_by_image/run.json": "python memory/leak.py",
    "masks.json": "python memory/measure_masks.py",
    "studio_views.csv": "python memory/studio_views.py",
}
PAGES = (
    "studio_views.png",
    "studio_extremes.png",
    "conclusions.typ",
)  # beside the text: pictures, and what the numbers say


@dataclass(frozen=True)
class Settings:
    """Where the rows are and where the report goes."""

    results_dir: Path = PROJECT_DIR / "experiments"  # rows of the study
    output: Path = PROJECT_DIR / "memory.pdf"  # the report; a name that ends in {p}.png gives pages as pictures


def find_missing(results_dir: Path) -> list[str]:
    """Name what is missing, with the command that makes it."""
    missing: dict[str, list[str]] = {}
    for name, command in NEEDS.items():
        if not (results_dir / name).exists():
            missing.setdefault(command, []).append(name)
    parts = [f"{' and '.join(names)} (`{command}`)" for command, names in missing.items()]
    return parts + [f"memory/{name}" for name in PAGES if not (MEMORY_DIR / name).exists()]


def paper_sizes(side: int, depth: int = 4) -> list[int]:
    """Follow a square photo through the paper's network, whose convolutions are not padded: side after each pair of them.

    Example:
        >>> paper_sizes(572)
        [568, 280, 136, 64, 28, 52, 100, 196, 388]
    """
    sizes = []
    for level in range(depth + 1):
        side = (side if level == 0 else side // 2) - 4
        sizes.append(side)
    for _ in range(depth):
        side = 2 * side - 4
        sizes.append(side)
    return sizes


def count_parameters(kernel_size: int, base_width: int) -> dict[str, int]:
    """Count a network's parameters by what they belong to."""
    network = UNet(base_width=base_width, kernel_size=kernel_size)
    counts = dict(convolutions=0, up_convolutions=0, batch_norm=0, head=0)
    for name, parameter in network.named_parameters():
        if name.startswith("head"):
            kind = "head"
        elif name.startswith("up_convolutions"):
            kind = "up_convolutions"
        else:
            kind = "convolutions" if parameter.dim() == 4 else "batch_norm"
        counts[kind] += parameter.numel()
    return counts


def sign(value: float, digits: int = 2) -> str:
    """Write a number with its sign, with a true minus.

    Example:
        >>> sign(-1.25), sign(0.5)
        ('−1.25', '+0.50')
    """
    return f"{value:+.{digits}f}".replace("-", "−")


def collect_numbers(results_dir: Path) -> dict:
    """Turn rows into the text's numbers, rounded as they are printed."""
    runs = experiments.load_study(results_dir)
    table = experiments.compare(runs)
    by_name = {row["name"]: row for row in table}
    base, facts = by_name["baseline"], runs[0].facts
    first = runs[0]
    shared = facts["settings"]
    card = facts["score_card"]
    rows = []
    for row in table:
        compared = row["difference"] != ""
        rows.append(
            dict(
                name=experiments.tell_change(row["name"], row).replace("baseline: ", ""),
                rate=f"{row['learning_rate']:g}",
                batch=str(row["batch_size"]),
                kernel=str(row["kernel_size"]),
                epochs=str(row["epochs"]),
                parameters=f"{row['parameters']:,}",
                gflop=f"{row['gflop']:.2f}",
                seconds=f"{row['seconds_per_epoch']:.0f}",
                memory=f"{row['peak_memory_mib']:.0f}" if row["peak_memory_mib"] != "" else "–",
                best=f"{row['best_dice']:.4f}",
                best_interval=f"{row['best_low']:.4f}–{row['best_high']:.4f}",
                last=f"{row['last_dice']:.4f}",
                last_interval=f"{row['last_low']:.4f}–{row['last_high']:.4f}",
                difference=sign(1e3 * row["difference"]) if compared else "",
                interval=f"{sign(1e3 * row['difference_low'])} to {sign(1e3 * row['difference_high'])}"
                if compared
                else "",
                verdict=row["verdict"],
                per_seed=row["difference_per_seed"],
                seeds=str(row["seeds"]),
            )
        )
    kernel = by_name["kernel_5"]
    narrow, wide = (count_parameters(size, shared["base_width"]) for size in (experiments.BASELINE["kernel_size"], 5))
    masks = json.loads((results_dir / "masks.json").read_text())
    leaked = leak.measure_leak(results_dir)
    leak_facts = experiments.load_run(results_dir / "leak_by_car").facts
    views = experiments.read_table(results_dir / "studio_views.csv")
    best_view, worst_view = max(views, key=lambda row: row["dice"]), min(views, key=lambda row: row["dice"])
    by_view: dict[float, float] = {}
    for view in sorted({row["view"] for row in first.dice}):
        values = [row["last"] for row in first.dice if row["view"] == view]
        by_view[view] = sum(values) / len(values)
    sizes = paper_sizes(572)
    average_epochs = 1 / (1 - shared["ema_decay"]) / -(-facts["n_train_photos"] // base["batch_size"])
    return dict(
        rows=rows,
        differing=[row["name"] for row in rows if row["verdict"] == "differs"],
        alike=[row["name"] for row in rows if row["verdict"] == "noise"],
        untold=[row["name"] for row in rows if row["verdict"] == "too few cars"],
        seeds=max(row["seeds"] for row in table),
        study=dict(
            width=shared["image_width"],
            height=shared["image_height"],
            base_width=shared["base_width"],
            epochs=shared["epochs"],
            n_train=f"{facts['n_train_photos']:,}",
            n_validation=facts["n_validation_photos"],
            n_cars=facts["n_validation_cars"],
            n_steps=f"{-(-facts['n_train_photos'] // base['batch_size']):,}",
            photo_size=" and ".join(facts["photo_sizes"]).replace("x", "×"),
            device=facts["device"],
            precision=facts["precision"],
            torch=facts["torch"],
            commit=facts["commit"] or "none",
            weight_decay=f"{shared['weight_decay']:g}",
            warmup=f"{100 * shared['warmup']:g}",
            ema=f"{shared['ema_decay']:g}",
            ema_epochs=f"{average_epochs:.1f}",
            background=f"{100 * shared['background']:g}",
            validation=f"{100 * shared['validation_share']:g}",
        ),
        base=dict(
            parameters=f"{base['parameters']:,}",
            gflop=f"{base['gflop']:.2f}",
            last=f"{base['last_dice']:.4f}",
            low=f"{base['last_low']:.4f}",
            high=f"{base['last_high']:.4f}",
            best=f"{base['best_dice']:.4f}",
            ceiling=f"{card['ceiling']:.4f}",
            edge=f"{card['edge_dice']:.4f}",
            accuracy=f"{card['accuracy']:.4f}",
            black_accuracy=f"{card['black_accuracy']:.4f}",
            mean_mask=f"{card['mean_mask_dice']:.4f}",
            best_epoch=facts["best_epoch"],
            first_dice=f"{first.history[0]['val_dice']:.4f}",
            best_view=int(max(by_view, key=by_view.get)),
            best_view_dice=f"{max(by_view.values()):.4f}",
            worst_view=int(min(by_view, key=by_view.get)),
            worst_view_dice=f"{min(by_view.values()):.4f}",
            worst_photo=f"{min(row['last'] for row in first.dice):.4f}",
        ),
        kernel=dict(
            parameters=f"{kernel['parameters'] / base['parameters']:.2f}",
            gflop=f"{kernel['gflop'] / base['gflop']:.2f}",
            seconds=f"{kernel['seconds_per_epoch'] / base['seconds_per_epoch']:.2f}",
            difference=sign(1e3 * kernel["difference"]),
            interval=f"{sign(1e3 * kernel['difference_low'])} to {sign(1e3 * kernel['difference_high'])}",
            verdict=kernel["verdict"],
            field_3=receptive_field(3),
            field_5=receptive_field(5),
        ),
        counts={
            f"{key}_{size}": f"{value:,}" for size, counts in ((3, narrow), (5, wide)) for key, value in counts.items()
        },
        paper=dict(sizes=sizes, kept=f"{100 * sizes[-1] ** 2 / 572**2:.0f}"),
        masks={key: f"{value:.4f}" for key, value in masks.items() if key.startswith(("coverage", "hard"))}
        | dict(
            n=int(masks["n_masks"]),
            width=int(masks["width"]),
            height=int(masks["height"]),
            share=f"{100 * masks['share']:.1f}",
            share_low=f"{100 * masks['share_low']:.1f}",
            share_high=f"{100 * masks['share_high']:.1f}",
            outline=f"{masks['outline']:,.0f}",
            black=f"{100 * (1 - masks['share']):.0f}",
            pixel_cost=f"{masks['outline'] / (2 * masks['share'] * masks['width'] * masks['height']):.4f}",
        ),
        leak=dict(
            by_car=f"{leaked['by_car']:.4f}",
            by_image=f"{leaked['by_image']:.4f}",
            difference=sign(1e3 * leaked["difference"]),
            interval=f"{sign(1e3 * leaked['low'])} to {sign(1e3 * leaked['high'])}",
            hidden=f"{100 * leaked['errors_hidden']:.0f}",
            real=leaked["low"] > 0,
            width=leak_facts["settings"]["image_width"],
            height=leak_facts["settings"]["image_height"],
            base_width=leak_facts["settings"]["base_width"],
            epochs=leak_facts["settings"]["epochs"],
            n_train=f"{leak_facts['n_train_photos']:,}",
            n_test=leak_facts["n_validation_photos"],
            n_cars=leak_facts["n_validation_cars"],
        ),
        studio=dict(
            mean=f"{sum(row['dice'] for row in views) / len(views):.4f}",
            best_view=int(best_view["view"]),
            best=f"{best_view['dice']:.4f}",
            worst_view=int(worst_view["view"]),
            worst=f"{worst_view['dice']:.4f}",
        ),
    )


def receptive_field(kernel_size: int, depth: int = 4) -> int:
    """Tell how many pixels of a photo, side by side, can reach one pixel of the bottleneck's output.

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


def build(settings: Settings) -> None:
    """Write figures, numbers and report.

    Raises:
        ValueError: If rows, pictures or conclusions are missing.
        RuntimeError: If Typst is not installed or refuses the text.
    """
    try:
        import typst
    except ModuleNotFoundError:
        raise RuntimeError(
            "Typst must be installed to build the report. Run `pip install -r requirements-memory.txt`."
        ) from None
    missing = find_missing(settings.results_dir)
    if missing:
        raise ValueError(
            f"{settings.results_dir} must hold all rows of the report; it lacks {', '.join(missing)}. Make these first."
        )
    build_dir = MEMORY_DIR / "build"
    runs = experiments.load_study(settings.results_dir)
    files.write_file(build_dir / "numbers.json", json.dumps(collect_numbers(settings.results_dir), indent=1).encode())
    shared = runs[0].facts["settings"]
    experiments.draw_curves(build_dir / "curves.svg", runs)
    experiments.draw_differences(build_dir / "differences.svg", experiments.compare(runs))
    network = [shared[key] for key in ("base_width", "image_width", "image_height", "kernel_size")]
    figures.draw_network(build_dir / "network.svg", *network)
    configs = experiments.list_configs(experiments.Settings(epochs=shared["epochs"]))
    figures.draw_schedule(build_dir / "schedule.svg", configs, runs[0].facts["n_train_photos"])
    figures.draw_views(build_dir / "views.svg", runs[0])
    figures.draw_cars(build_dir / "cars.svg", runs[0])
    options = dict(root=str(PROJECT_DIR), ignore_system_fonts=True, timestamp=0)
    try:
        if "{p}" in settings.output.name:
            typst.compile(str(MEMORY_DIR / "memory.typ"), output=str(settings.output), format="png", ppi=80, **options)
        else:
            files.write_file(settings.output, typst.compile(str(MEMORY_DIR / "memory.typ"), format="pdf", **options))
    except typst.TypstError as error:
        raise RuntimeError(f"memory/memory.typ cannot be set ({error}).") from error
    print(f"{settings.output}: built from {len(runs)} runs")


if __name__ == "__main__":
    import tyro

    files.run_command(lambda args: build(tyro.cli(Settings, args=args, description=__doc__)))
