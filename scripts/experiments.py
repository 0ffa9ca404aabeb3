"""Run the study: a baseline and five trainings that differ from it in one setting each, scored alike and compared.

    python scripts/experiments.py --seeds 3                                                 a GPU
    python scripts/experiments.py --base-width 16 --image-width 240 --image-height 160      two CPU cores
    python scripts/experiments.py --only rate_1e-4                                          the baseline and one other
    python scripts/experiments.py --show                                                    table and figures alone

Start it again to go on: finished runs are skipped, a half-finished one is resumed. Each run leaves in
experiments/<name>/ what train.py leaves in checkpoint_dir, and what can be shared, since it names no photo and no
folder: run.json (settings, cost, scores), history.csv and dice.csv (a row a photo, cars as numbers). From these alone
come results.csv, curves.svg and differences.svg.
"""

import contextlib
import csv
import dataclasses
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import extra
import numpy as np
import torch
import train
from carvana import machine
from carvana.files import PROJECT_DIR, run_command, write_file, write_table
from carvana.metrics import bootstrap_interval
from carvana.segmenter import Segmenter
from carvana.settings import Count, Fraction, PathSetting, parse_settings, settings_class
from carvana.weights import build_network
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from unet import UNet

# The first run is the baseline; each other one differs from it in what its line says.
GRID = {
    "baseline": dict(learning_rate=1e-3, batch_size=8, kernel_size=3),
    "rate_3e-3": dict(learning_rate=3e-3),
    "rate_3e-4": dict(learning_rate=3e-4),
    "rate_1e-4": dict(learning_rate=1e-4),
    "batch_16": dict(batch_size=16),
    "kernel_5": dict(kernel_size=5),
}
BASELINE = GRID["baseline"]
MIN_CARS = 5  # fewer cars give no interval that deserves its name


@settings_class
class Settings:
    """What all runs of the study share."""

    train_image_dir: PathSetting = train.Config.train_image_dir  # photos, of which some cars are set aside to score on
    train_mask_dir: PathSetting = train.Config.train_mask_dir  # their masks
    validation_share: Fraction = train.Config.validation_share  # fraction of the cars set aside
    limit: Count | None = None  # use at most so many photos, whole cars; for a quick try
    image_width: int = train.Config.image_width  # training size in pixels; 240x160 on a CPU
    image_height: int = train.Config.image_height  # likewise
    base_width: int = train.Config.base_width  # channels of the first convolution; 16 on a CPU
    epochs: Count = 10  # how often each photo is seen
    only: tuple[str, ...] = ()  # names of the runs to compare with the baseline; all of them by default
    seeds: Count = 1  # trainings of each kind: each seed draws weights, order and validation cars anew
    device: str = "auto"  # cuda, mps, cpu, or auto
    output_dir: PathSetting = PROJECT_DIR / "experiments"  # gets a folder for each run
    cache_dir: PathSetting = train.Config.cache_dir  # decoded photos; may be deleted at any time
    show: bool = False  # only make the table and the figures of the runs that are finished

    def __post_init__(self):
        for name in self.only:
            if name not in GRID:
                raise ValueError(f"only must be names of {', '.join(GRID)}, got {name}.")


# ---------------------------------------------------------------------------------------------------------- the runs


def list_configs(settings: Settings) -> list[train.Config]:
    """Return the settings of each training, the baseline first, seed after seed.

    Raises:
        ValueError: If a setting is out of its range.
    """
    shared = {field.name for field in dataclasses.fields(settings)} & {f.name for f in dataclasses.fields(train.Config)}
    configs = []
    for seed in range(settings.seeds):
        for name, change in GRID.items():
            if settings.only and name not in ("baseline", *settings.only):
                continue
            folder = settings.output_dir / (f"{name}_seed{seed}" if seed else name)
            own = dict(seed=seed, checkpoint_dir=folder, prediction_dir=folder / "pictures")
            configs.append(train.Config(**{key: getattr(settings, key) for key in shared}, **BASELINE | change, **own))
    return configs


def plain(config: train.Config) -> dict:
    """Return the settings that decide a run's result, as a JSON file holds them."""
    return json.loads(json.dumps(extra.settings_of_result(config)))


def run_all(configs: list[train.Config]) -> list[str]:
    """Carry out what is not finished, one run after the other, and return the names of those that failed.

    Raises:
        ValueError: If photos are broken, or a folder holds a run of other settings or on other photos.
    """
    for config in configs:  # everything is looked at before hours are spent
        cache, *_ = train.prepare_data(config, quiet=config is not configs[0])
        if (config.checkpoint_dir / "run.json").exists():
            facts = load_run(config.checkpoint_dir).facts
            before = {**facts["settings"], "data_fingerprint": facts["data_fingerprint"]}
            now = {**plain(config), "data_fingerprint": cache.fingerprint}
            for key, value in now.items():
                if before[key] != value:
                    raise ValueError(
                        f"{config.checkpoint_dir} must hold a run with {key} {value}, got {before[key]}. "
                        "Delete it, or name another --output-dir."
                    )
    failed = []
    for number, config in enumerate(configs, start=1):
        name = config.checkpoint_dir.name
        if (config.checkpoint_dir / "run.json").exists():
            print(f"{number} of {len(configs)}: {name}, finished before", flush=True)
            continue
        print(f"{number} of {len(configs)}: {name}", flush=True)
        # In a process of its own: its crash loses no other run, and its peak memory is its own.
        process = machine.process_context().Process(target=enter, args=(config,))
        process.start()
        process.join()
        if process.exitcode:
            failed.append(name)
            print(f"{name} ended with code {process.exitcode}", file=sys.stderr, flush=True)
    return failed


def enter(config: train.Config) -> None:
    """Carry out one run as a command of its own."""
    run_command(lambda _: carry_out(config), [])


def carry_out(config: train.Config) -> None:
    """Train as far as is still to do, score the last weights too, and describe the run in run.json and dice.csv."""
    folder = config.checkpoint_dir
    started = (folder / extra.LAST).exists() or (folder / extra.PREVIOUS).exists()
    was_trained = (folder / "history.csv").exists() and len(read_table(folder / "history.csv")) == config.epochs
    summary = train.train(dataclasses.replace(config, load_model=started))

    cache, train_rows, rows = train.prepare_data(config, quiet=True)
    history, best = read_table(folder / "history.csv"), read_table(folder / "scores.csv")
    last = score_last(config, cache, rows)
    number_of = {car: number for number, car in enumerate(sorted({pair.car for pair in cache.pairs}), start=1)}
    photos = [
        dict(car=number_of[ours["car"]], view=int(ours["view"]), best=ours["dice"], last=theirs["dice"])
        for ours, theirs in zip(best, last, strict=True)
    ]
    write_table(folder / "dice.csv", photos)
    device = machine.choose_device(config.device)
    facts = dict(
        settings=plain(config),
        data_fingerprint=cache.fingerprint,
        n_train_photos=len(train_rows),
        n_validation_photos=len(rows),
        photo_sizes=sorted({read_size(cache.pairs[row].image_path) for row in rows}),
        n_validation_cars=len({cache.pairs[row].car for row in rows}),
        parameters=int(summary["parameters"]),
        gflop=count_flop(config) / 1e9,
        seconds_per_epoch=float(np.median([row["seconds"] for row in history])),
        # A process that only scored says nothing about training's memory.
        peak_memory_mib=None if was_trained else float(summary["peak_memory_mib"]),
        best_epoch=int(max(history, key=lambda row: row["val_dice"])["epoch"]),
        best_dice=float(np.mean([row["best"] for row in photos])),
        last_dice=float(np.mean([row["last"] for row in photos])),
        score_card=json.loads((folder / "score_card.json").read_text()),
        device=machine.device_name(device),
        precision=str(machine.choose_precision(config.precision, device)).removeprefix("torch."),
        torch=torch.__version__,
        commit=read_commit(),
    )
    write_file(folder / "run.json", json.dumps(facts, indent=1).encode())


def score_last(config: train.Config, cache, rows: list[int]) -> list[dict]:
    """Score a run's last weights at full resolution and a threshold of one half: neither is chosen by the photos."""
    tensors, header = extra.read_run(config.checkpoint_dir)
    network, description = build_network(config.checkpoint_dir, header, extra.select(tensors, "average"))
    segmenter = Segmenter(network, config.device, description=description, n_parallel=machine.n_cores())
    no_baseline = np.zeros((config.image_height, config.image_width), np.float32)
    return extra.score_photos(segmenter, cache, rows, 0.5, no_baseline)


def count_flop(config: train.Config) -> int:
    """Count the floating-point operations of one photo's forward pass; a training step takes about three times as many.

    Example:
        >>> count_flop(train.Config(image_width=240, image_height=160)) // 10**9
        56
    """
    with torch.device("meta"):
        network = UNet(base_width=config.base_width, depth=config.depth, kernel_size=config.kernel_size).eval()
        photo = torch.zeros(1, 3, config.image_height, config.image_width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(photo)
    return counter.get_total_flops()


def read_size(path: Path) -> str:
    """Return a photo's width x height."""
    with Image.open(path) as photo:
        return f"{photo.width}x{photo.height}"


def read_commit() -> str | None:
    """Return the commit, with "-dirty" if files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--dirty"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True).stdout.strip() or None


# ----------------------------------------------------------------------------------------------------------- results


def read_table(path: Path) -> list[dict]:
    """Read a CSV file; what looks like a number becomes one, but for names of photos and cars."""
    with open(path, newline="") as file:
        return [
            {key: value if key in ("name", "car") or not value else float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder's shareable files."""

    name: str  # of the experiment
    seed: int
    facts: dict  # run.json
    history: list[dict]  # a row an epoch
    dice: list[dict]  # a row a validation photo


def load_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        ValueError: If a file is damaged.
    """
    try:
        facts = json.loads((folder / "run.json").read_text())
        # A setting that is younger than the run was at its default.
        facts["settings"] = {**plain(train.Config()), **facts["settings"]}
        seed = facts["settings"]["seed"]
        history, dice = (read_table(folder / f"{name}.csv") for name in ("history", "dice"))
        return Run(folder.name.removesuffix(f"_seed{seed}"), seed, facts, history, dice)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} does not hold a whole run ({error}). Delete it and run it again.") from error


def load_study(output_dir: Path) -> list[Run]:
    """Read all finished runs of the grid, in its order, and see that they can be compared.

    Raises:
        ValueError: If none is finished or two differ in more than the grid's settings.
    """
    names = list(GRID)
    runs = [load_run(path.parent) for path in sorted(output_dir.glob("*/run.json"))]
    runs = sorted((run for run in runs if run.name in names), key=lambda run: (names.index(run.name), run.seed))
    if not runs:
        raise ValueError(f"{output_dir} must hold a finished run, got none. Run `python scripts/experiments.py` first.")
    common = lambda run: {**run.facts["settings"], "data_fingerprint": run.facts["data_fingerprint"]}
    for run in runs[1:]:
        for key, value in common(runs[0]).items():
            if key not in (*BASELINE, "seed") and common(run)[key] != value:
                raise ValueError(
                    f"{output_dir / run.name} and {output_dir / runs[0].name} must share {key}, got {common(run)[key]} "
                    f"and {value}. Keep each study in a folder of its own."
                )
    return runs


def compare(runs: list[Run]) -> list[dict]:
    """Return the study's table, a row an experiment, means over its seeds.

    Intervals are 95 % CI, cluster bootstrap over cars. The difference is that of the last weights' Dice from the
    baseline's, photo by photo: no epoch is chosen by the photos that it is measured on. Its verdict is "differs"
    where the interval leaves out zero and, with several seeds, each shows the same sign; else "noise". One seed
    cannot tell a setting from the luck of its training.
    """
    baselines = {run.seed: run for run in runs if run.name == "baseline"}
    table = []
    for name in dict.fromkeys(run.name for run in runs):
        group = [run for run in runs if run.name == name]
        photos = [photo for run in group for photo in run.dice]
        cars = [photo["car"] for photo in photos]
        facts = [run.facts for run in group]
        row = dict(name=name, seeds=len(group))
        row |= {key: facts[0]["settings"][key] for key in (*BASELINE, "epochs")}
        row |= {key: facts[0][key] for key in ("parameters", "gflop")}
        row["seconds_per_epoch"] = float(np.mean([fact["seconds_per_epoch"] for fact in facts]))
        row["peak_memory_mib"] = max((fact["peak_memory_mib"] for fact in facts if fact["peak_memory_mib"]), default="")
        for which in ("best", "last"):
            values = [photo[which] for photo in photos]
            row[f"{which}_dice"] = float(np.mean(values))
            row[f"{which}_low"], row[f"{which}_high"] = bootstrap_interval(values, cars)
        row |= dict(difference="", difference_low="", difference_high="", verdict="", difference_per_seed="")
        per_seed = [subtract(run, baselines[run.seed]) for run in group if run.seed in baselines]
        if name != "baseline" and per_seed:
            values, means = np.concatenate(per_seed), [float(np.mean(differences)) for differences in per_seed]
            cars = [photo["car"] for run in group if run.seed in baselines for photo in run.dice]
            low, high = bootstrap_interval(values.tolist(), cars)
            agree = all(mean > 0 for mean in means) or all(mean < 0 for mean in means)
            row |= dict(difference=float(np.mean(values)), difference_low=low, difference_high=high)
            row["verdict"] = "differs" if agree and (low > 0 or high < 0) else "noise"
            if len(set(cars)) < MIN_CARS:
                row["verdict"] = "too few cars"
            row["difference_per_seed"] = " ".join(f"{mean:+.5f}" for mean in means)
        table.append(row)
    return table


def subtract(run: Run, baseline: Run) -> np.ndarray:
    """Return the run's last Dice minus the baseline's (n,), photo by photo.

    Raises:
        ValueError: If the two were not scored on the same photos.
    """
    ours, theirs = ({(photo["car"], photo["view"]): photo["last"] for photo in one.dice} for one in (run, baseline))
    if list(ours) != list(theirs):
        raise ValueError(f"{run.name} and {baseline.name} must be scored on the same photos, got others. Rerun both.")
    return np.array(list(ours.values())) - np.array(list(theirs.values()))


def describe(name: str, row: dict) -> str:
    """Say how a run differs from the baseline.

    Example:
        >>> describe("batch_16", dict(learning_rate=1e-3, batch_size=16, kernel_size=3))
        'batch 16'
    """
    words = dict(learning_rate="learning rate", batch_size="batch", kernel_size="kernel")
    if name == "baseline":
        return "baseline: " + ", ".join(f"{words[key]} {row[key]:g}" for key in BASELINE)
    return ", ".join(f"{words[key]} {row[key]:g}" for key in BASELINE if row[key] != BASELINE[key])


def format_table(table: list[dict]) -> str:
    """Lay the study's table out for reading; differences in thousandths."""
    lines = [f"{'run':<44}{'last Dice':>10}{'95 % CI':>20}{'difference':>12}{'95 % CI':>18}"]
    for row in table:
        line = f"{describe(row['name'], row):<44}{row['last_dice']:>10.5f}"
        line += f"{row['last_low']:>12.5f} {row['last_high']:.5f}"
        if row["difference"] != "":
            low, high = 1e3 * row["difference_low"], 1e3 * row["difference_high"]
            line += f"{1e3 * row['difference']:>+12.3f}{low:>+10.3f} {high:>+7.3f}  {row['verdict']}"
        lines.append(line)
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------- figures

# Okabe and Ito's colours, told apart by the colour-blind; marker and dash differ as well.
LOOKS = [
    ("#000000", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#0072B2", "^", "-."),
    ("#009E73", "v", ":"),
    ("#CC79A7", "D", "--"),
    ("#E69F00", "P", "-"),
]
STYLE = {
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "legend.frameon": False,
    "svg.hashsalt": "study",
}


@contextlib.contextmanager
def new_figure(path: Path, width: float, height: float, columns: int = 1):
    """Yield axes in the study's style, and save them as SVG, equal bytes for equal numbers.

    Args:
        path: The SVG file.
        width, height: Inches.
        columns: How many axes stand side by side.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots(1, columns)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_file(path, buffer.getvalue())


def draw_curves(path: Path, runs: list[Run]) -> None:
    """Plot loss and Dice on the validation photos at training size, after each epoch, mean over seeds."""
    from matplotlib.ticker import LogFormatter

    with new_figure(path, 7.2, 3.4, columns=2) as (left, right):
        for (colour, marker, dash), name in zip(LOOKS, dict.fromkeys(run.name for run in runs)):
            group = [run for run in runs if run.name == name]
            label = describe(name, group[0].facts["settings"])
            look = dict(color=colour, marker=marker, linestyle=dash, label=label)
            epochs = [row["epoch"] for row in group[0].history]
            loss, dice = (
                np.mean([[row[key] for row in run.history] for run in group], axis=0)
                for key in ("val_loss", "val_dice")
            )
            left.plot(epochs, loss, **look)
            right.plot(epochs, 1e3 * (1 - dice), **look)
        left.set(xlabel="epoch", ylabel="validation loss: cross-entropy + 1 - soft Dice", yscale="log")
        right.set(xlabel="epoch", ylabel="1 - validation Dice, in thousandths", yscale="log")
        right.yaxis.set_major_formatter(LogFormatter())
        right.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)
        left.figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=7)


def draw_differences(path: Path, table: list[dict]) -> None:
    """Plot each run's paired difference from the baseline with its interval."""
    rows = [row for row in reversed(table) if row["difference"] != ""]
    with new_figure(path, 7.2, 0.6 + 0.35 * len(rows)) as axes:
        for height, row in enumerate(rows):
            colour, marker = ("#D55E00", "s") if row["verdict"] == "differs" else ("#0072B2", "o")
            ends = [1e3 * row["difference_low"], 1e3 * row["difference_high"]]
            axes.plot(ends, [height] * 2, color=colour, linewidth=2)
            axes.plot(1e3 * row["difference"], height, marker, color=colour, markersize=6)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [describe(row["name"], row) for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("difference of Dice from the baseline, in thousandths, with 95 % CI (squares: more than noise)")


def show(output_dir: Path) -> None:
    """Print the table of the finished runs and write results.csv and the figures."""
    runs = load_study(output_dir)
    table, facts = compare(runs), runs[0].facts
    write_table(output_dir / "results.csv", table)
    draw_curves(output_dir / "curves.svg", runs)
    if any(row["difference"] != "" for row in table):
        draw_differences(output_dir / "differences.svg", table)
    print(format_table(table))
    print(
        f"\nDice of the last weights at full resolution, {facts['n_validation_photos']} photos of "
        f"{facts['n_validation_cars']} cars that no training saw.\nDifferences from the baseline in thousandths, "
        "photo by photo. 95 % CI: cluster bootstrap over cars."
    )
    if max(row["seeds"] for row in table) == 1:
        print("One training of each kind: the intervals do not hold the luck of a training. --seeds 3 measures it.")


def main(settings: Settings) -> None:
    """Carry out what is not finished, then show the study."""
    failed = []
    if not settings.show:
        configs = list_configs(settings)
        failed = run_all(configs)
        if len(failed) == len(configs):
            raise RuntimeError("all runs failed, see above.")
    show(settings.output_dir)
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed, see above. The same command tries again.")


if __name__ == "__main__":
    run_command(lambda args: main(parse_settings(Settings, args, __doc__)))
