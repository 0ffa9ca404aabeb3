"""Run the study: a baseline and five trainings that differ from it in one setting each, scored alike and compared with their noise.

    python scripts/experiments.py --seeds 3                                                 a GPU
    python scripts/experiments.py --base-width 16 --image-width 240 --image-height 160      two CPU cores
    python scripts/experiments.py --show                                                    table and figures, no training

Start it again to go on: finished runs are skipped, a half-finished one resumes exactly. Each run leaves in experiments/<name>/ what
train.py leaves in checkpoint_dir, and beside it what can be shared, since it names no photo and no folder: run.json (settings, cost,
scores), history.csv and dice.csv (a row a photo, cars as numbers). From these alone come results.csv, curves.svg and differences.svg.
"""

import contextlib
import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import extra
import numpy as np
import torch
import train
from carvana import files, machine, metrics
from carvana.segmenter import Segmenter
from carvana.weights import build_network, load_network
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from unet import UNet

from data import PROJECT_DIR

# The grid: the first run is the baseline, each other one differs from it in what its line says.
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


@dataclass(frozen=True)
class Settings:
    """What all runs of the study share."""

    train_image_dir: Path = train.Config.train_image_dir  # photos; a tenth of the cars is set aside to score on
    train_mask_dir: Path = train.Config.train_mask_dir  # their masks
    image_width: int = train.Config.image_width  # training size in pixels; 240x160 on a CPU
    image_height: int = train.Config.image_height  # likewise
    base_width: int = train.Config.base_width  # channels of the first convolution; 16 on a CPU
    epochs: int = 10  # how often each photo is seen
    limit: int | None = None  # use at most so many photos, whole cars; for a quick try
    seeds: int = 1  # trainings of each kind: each seed draws weights, order and validation cars anew
    equal: Literal["epochs", "steps"] = (
        "epochs"  # steps: train the other batch size once more, for as many steps as the baseline
    )
    device: str = "auto"  # cuda, mps, cpu, or auto
    output_dir: Path = PROJECT_DIR / "experiments"  # gets a folder for each run
    cache_dir: Path = train.Config.cache_dir  # decoded photos; may be deleted at any time
    show: bool = False  # only make the table and the figures of the runs that are finished

    def __post_init__(self):
        if not 1 <= self.seeds <= 100:
            raise ValueError(f"seeds must be from 1 to 100, got {self.seeds}.")


# ------------------------------------------------------------------------------------------------------------ the runs


def list_configs(settings: Settings) -> list[train.Config]:
    """Turn grid and settings into the settings of each training, the baseline first, seed after seed.

    Raises:
        ValueError: If a setting is out of its range.
    """
    runs = {name: (settings.epochs, {**BASELINE, **change}) for name, change in GRID.items()}
    if settings.equal == "steps":
        for name, (epochs, chosen) in list(runs.items()):
            if chosen["batch_size"] != BASELINE["batch_size"]:
                equal_epochs = max(1, round(epochs * chosen["batch_size"] / BASELINE["batch_size"]))
                runs[f"{name}_equal_steps"] = (equal_epochs, chosen)
    shared = (
        "train_image_dir",
        "train_mask_dir",
        "image_width",
        "image_height",
        "base_width",
        "limit",
        "device",
        "cache_dir",
    )
    configs = []
    for seed in range(settings.seeds):
        for name, (epochs, chosen) in runs.items():
            folder = settings.output_dir / (f"{name}_seed{seed}" if seed else name)
            configs.append(
                train.Config(
                    **{key: getattr(settings, key) for key in shared},
                    **chosen,
                    epochs=epochs,
                    seed=seed,
                    checkpoint_dir=folder,
                    prediction_dir=folder / "pictures",
                )
            )
    return configs


def shareable(config: train.Config) -> dict:
    """Return the settings that decide the result, without folders."""
    return extra.settings_of_result(config)


def check_same_run(folder: Path, before: dict, config: train.Config) -> None:
    """Raise a ValueError if the folder holds a run of other settings: it would be taken for the one that is asked for."""
    before = {**shareable(train.Config()), **before}
    for key, value in shareable(config).items():
        if before[key] != value:
            raise ValueError(
                f"{folder} must hold a run with {key} {value}, got {before[key]}. Delete it, or name another --output-dir."
            )


def check_same_photos(folder: Path, run: dict, fingerprint: str) -> None:
    if run["data_fingerprint"] != fingerprint:
        raise ValueError(
            f"{folder} must hold a run on these photos, got one on others. Delete it, or name another --output-dir."
        )


def run_all(configs: list[train.Config]) -> list[str]:
    """Carry out what is not finished, one run after the other.

    Returns:
        The names of the runs that failed; the others are done.

    Raises:
        ValueError: If photos are broken, or a folder holds a run of other settings or on other photos.
        RuntimeError: If a training that outlived an earlier start still uses a folder.
    """
    for config in configs:  # everything is looked at before hours are spent
        folder = config.checkpoint_dir
        # Decoding here keeps its memory out of the training's peak.
        fingerprint = train.prepare_data(config, quiet=config is not configs[0])[0].fingerprint
        if (folder / "run.json").exists():
            run = load_run(folder)
            check_same_run(folder, run.facts["settings"], config)
            check_same_photos(folder, run.facts, fingerprint)
        elif (folder / extra.LAST).exists() and (folder / "settings.json").exists():
            check_same_run(folder, json.loads((folder / "settings.json").read_text()), config)
    failed = []
    for number, config in enumerate(configs, start=1):
        folder = config.checkpoint_dir
        label = f"{number} of {len(configs)}: {folder.name}"
        if (folder / "run.json").exists():
            print(f"{label}, finished before", flush=True)
            continue
        with files.lock_folder(folder):
            pass
        print(label, flush=True)
        code = run_in_own_process(config)
        if code:
            failed.append(folder.name)
            print(f"{folder.name} ended with code {code}; going on with the next", file=sys.stderr, flush=True)
    return failed


def run_in_own_process(config: train.Config) -> int:
    """Train, score and describe one run in a process of its own, so that its crash loses no other and its peak memory is its own.

    Returns:
        The process's exit code. When this process is asked to stop, the training saves first.
    """
    process = machine.process_context().Process(target=enter_process, args=(config,))
    handler_before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        process.start()
        process.join()
    except BaseException:
        process.terminate()
        process.join()
        raise
    finally:
        signal.signal(signal.SIGTERM, handler_before)
    return process.exitcode


def enter_process(config: train.Config) -> None:
    if hasattr(
        os, "setpgrp"
    ):  # Ctrl-C reaches the study alone, which asks the training to stop: a second signal would end it unsaved
        os.setpgrp()
    files.run_command(lambda _: carry_out(config), [])


def carry_out(config: train.Config) -> None:
    """Train as far as is still to do, score the last weights too, and describe the run in run.json, dice.csv and history.csv."""
    folder = config.checkpoint_dir
    summary_path = folder / "summary.json"  # what train() returned: proof that the training is done
    started = (folder / extra.LAST).exists() or (folder / extra.PREVIOUS).exists()
    if not (started and summary_path.exists()):
        summary_path.unlink(missing_ok=True)
        config = dataclasses.replace(config, load_model=started)
        summary = {key: str(value) for key, value in train.train(config).items()}
        files.write_file(summary_path, json.dumps(summary).encode())
    summary = json.loads(summary_path.read_text())

    cache, train_rows, validation_rows = train.prepare_data(config, quiet=True)
    history, best_rows = read_table(folder / "history.csv"), read_table(folder / "scores.csv")
    best_epoch = max(history, key=lambda row: row["val_dice"])["epoch"]  # the first of equals, as in training
    # Where the last epoch was the best, both files hold the same weights.
    last_rows = best_rows if best_epoch == config.epochs else score_last(config, cache, validation_rows)
    number_of = {car: number for number, car in enumerate(sorted({pair.car for pair in cache.pairs}), start=1)}
    files.write_table(
        folder / "dice.csv",
        [
            dict(
                car=number_of[best["car"]],
                view=int(best["view"]),
                best=best["dice"],
                last=last["dice"],
                ceiling=best["upper_bound"],
            )
            for best, last in zip(best_rows, last_rows, strict=True)
        ],
    )
    device = machine.choose_device(config.device)
    described = load_network(folder / extra.BEST)[1].trained
    run = dict(
        settings=shareable(config),
        data_fingerprint=cache.fingerprint,
        n_train_photos=len(train_rows),
        n_validation_photos=len(validation_rows),
        photo_sizes=sorted({tell_size(cache.pairs[row].image_path) for row in validation_rows}),  # width x height
        n_validation_cars=len({cache.pairs[row].car for row in validation_rows}),
        parameters=int(summary["parameters"]),
        gflop=count_flop(config) / 1e9,
        seconds_per_epoch=float(np.median([row["seconds"] for row in history])),
        # A process that only scored, because the training was done, says nothing about training's memory.
        peak_memory_mib=float(summary["peak_memory_mib"]),
        best_epoch=int(best_epoch),
        best_dice=float(np.mean([row["dice"] for row in best_rows])),
        last_dice=float(np.mean([row["dice"] for row in last_rows])),
        score_card=json.loads((folder / "score_card.json").read_text()),
        device=described["device"],
        precision=str(machine.choose_precision(config.precision, device)).removeprefix("torch."),
        torch=described["torch"],
        commit=tell_commit(),
    )
    files.write_file(folder / "run.json", json.dumps(run, indent=1).encode())


def score_last(config: train.Config, cache, rows: list[int]) -> list[dict]:
    """Score the last weights of a run as train.py scores the best ones: a row a photo."""
    tensors, header = extra.read_run(config.checkpoint_dir)
    last, description = build_network(config.checkpoint_dir, header, extra.select(tensors, "average"))
    segmenter = Segmenter(last, config.device, description=description, n_parallel=machine.n_cores())
    threshold = extra.choose_threshold(segmenter, cache, rows)
    no_baseline = np.zeros((config.image_height, config.image_width), np.float32)
    return extra.score_photos(segmenter, cache, rows, threshold, no_baseline)


def count_flop(config: train.Config) -> int:
    """Count the floating-point operations of one photo's way forward; a training step takes about three times as many.

    Example:
        >>> count_flop(train.Config(image_width=240, image_height=160)) // 10**9
        56
    """
    with torch.device("meta"):
        network = UNet(base_width=config.base_width, kernel_size=config.kernel_size).eval()
        photo = torch.zeros(1, 3, config.image_height, config.image_width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(photo)
    return counter.get_total_flops()


def tell_size(path: Path) -> str:
    with Image.open(path) as photo:
        return f"{photo.width}x{photo.height}"


def tell_commit() -> str | None:
    """Name the commit, with "-dirty" if files differ from it; None outside git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=PROJECT_DIR, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return described.stdout.strip() or None


# ------------------------------------------------------------------------------------------------------------- results


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
        name = folder.name.removesuffix(f"_seed{facts['settings']['seed']}")
        facts["settings"] = {
            **shareable(train.Config()),
            **facts["settings"],
        }  # a setting that is younger than the run was at its default
        return Run(
            name, facts["settings"]["seed"], facts, read_table(folder / "history.csv"), read_table(folder / "dice.csv")
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} does not hold a whole run ({error}). Delete it and run it again.") from error


def load_study(output_dir: Path) -> list[Run]:
    """Read all finished runs of the grid, in its order, and see that they can be compared.

    Raises:
        ValueError: If none is finished or two differ in more than the grid's settings.
    """
    names = [known for name in GRID for known in (name, f"{name}_equal_steps")]
    runs = [load_run(path.parent) for path in sorted(output_dir.glob("*/run.json"))]
    runs = sorted((run for run in runs if run.name in names), key=lambda run: (names.index(run.name), run.seed))
    if not runs:
        raise ValueError(f"{output_dir} must hold a finished run, got none. Run `python scripts/experiments.py` first.")
    may_differ = {*BASELINE, "seed"}
    first = runs[0].facts
    for run in runs[1:]:
        for key, value in {**first["settings"], "data_fingerprint": first["data_fingerprint"]}.items():
            other = run.facts["settings"].get(key, run.facts.get(key))
            if other != value and key not in may_differ and not (key == "epochs" and run.name.endswith("_equal_steps")):
                raise ValueError(
                    f"{output_dir / run.name} and {output_dir / runs[0].name} must share {key}, got {other} and {value}. "
                    "Keep each study in a folder of its own."
                )
    return runs


def compare(runs: list[Run]) -> list[dict]:
    """Make the study's table, a row an experiment, means over its seeds.

    Intervals are 95 %, by bootstrap over cars. The difference is that of the last weights' Dice from the baseline's, photo by photo:
    no epoch was chosen by the photos that it is measured on. Its verdict is "differs" where the interval leaves out zero and, with
    several seeds, each shows the same sign; else "noise". One seed cannot tell a setting from the luck of its training.
    """
    baselines = {run.seed: run for run in runs if run.name == "baseline"}
    table = []
    for name in dict.fromkeys(run.name for run in runs):
        group = [run for run in runs if run.name == name]
        photos = [row for run in group for row in run.dice]
        cars = [row["car"] for row in photos]
        facts = [run.facts for run in group]
        row = dict(name=name, seeds=len(group))
        row |= {key: facts[0]["settings"][key] for key in (*BASELINE, "epochs")} | {
            key: facts[0][key] for key in ("parameters", "gflop")
        }
        row["seconds_per_epoch"] = float(np.mean([fact["seconds_per_epoch"] for fact in facts]))
        memory = [fact["peak_memory_mib"] for fact in facts if fact["peak_memory_mib"] is not None]
        row["peak_memory_mib"] = max(memory) if memory else ""
        for which in ("best", "last"):
            values = [photo[which] for photo in photos]
            row[f"{which}_dice"] = float(np.mean(values))
            row[f"{which}_low"], row[f"{which}_high"] = metrics.bootstrap_interval(values, cars)
        row |= dict(difference="", difference_low="", difference_high="", verdict="", difference_per_seed="")
        paired = [(run, baselines[run.seed]) for run in group if run.seed in baselines]
        if name != "baseline" and paired:
            per_seed = [pair_photos(run, baseline) for run, baseline in paired]
            values = np.concatenate([differences for differences, _ in per_seed])
            means = [float(np.mean(differences)) for differences, _ in per_seed]
            low, high = metrics.bootstrap_interval(values.tolist(), [car for _, cars in per_seed for car in cars])
            agree = all(mean > 0 for mean in means) or all(mean < 0 for mean in means)
            row |= dict(difference=float(np.mean(values)), difference_low=low, difference_high=high)
            row["verdict"] = "differs" if agree and (low > 0 or high < 0) else "noise"
            if len(set(cars)) < MIN_CARS:
                row["verdict"] = "too few cars"
            row["difference_per_seed"] = " ".join(f"{mean:+.5f}" for mean in means)
        table.append(row)
    return table


def pair_photos(run: Run, baseline: Run) -> tuple[np.ndarray, list[str]]:
    """Subtract the baseline's last Dice from the run's, photo by photo: differences (n,) and their cars.

    Raises:
        ValueError: If the two were not scored on the same photos.
    """
    keys = [[(row["car"], row["view"]) for row in one.dice] for one in (run, baseline)]
    if keys[0] != keys[1]:
        raise ValueError(
            f"{run.name} and {baseline.name} must be scored on the same photos, got others. Run both again."
        )
    return np.array([ours["last"] - theirs["last"] for ours, theirs in zip(run.dice, baseline.dice)]), [
        car for car, _ in keys[0]
    ]


def format_table(table: list[dict]) -> str:
    """Lay the study's table out for reading."""
    lines = [
        f"{'run':<22}{'rate':>8}{'batch':>6}{'kernel':>7}{'parameters':>12}{'GFLOP':>8}{'s/epoch':>9}{'MiB':>7}"
        f"{'best Dice':>11}{'last Dice':>11}{'95 % interval':>20}{'difference':>12}{'95 % interval':>22}"
    ]
    for row in table:
        difference = ""
        if row["difference"] != "":
            difference = f"{row['difference']:>+12.5f}{row['difference_low']:>+12.5f} {row['difference_high']:>+9.5f}"
            difference += f"  {row['verdict']}"
        memory = f"{row['peak_memory_mib']:.0f}" if row["peak_memory_mib"] != "" else "-"
        lines.append(
            f"{row['name']:<22}{row['learning_rate']:>8.0e}{row['batch_size']:>6}{row['kernel_size']:>7}{row['parameters']:>12,}"
            f"{row['gflop']:>8.2f}{row['seconds_per_epoch']:>9.1f}{memory:>7}{row['best_dice']:>11.5f}{row['last_dice']:>11.5f}"
            f"{row['last_low']:>12.5f} {row['last_high']:.5f}{difference}"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- figures

# Okabe and Ito's colours, told apart by the colour-blind; marker and dash differ as well.
LOOKS = [
    ("#000000", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#0072B2", "^", "-."),
    ("#009E73", "v", ":"),
    ("#CC79A7", "D", "--"),
    ("#E69F00", "P", "-"),
    ("#56B4E9", "X", "-."),
]


@contextlib.contextmanager
def new_figure(path: Path, width: float, height: float, columns: int = 1):
    """Give figure axes in the study's style and save them as SVG, equal bytes for equal numbers.

    Args:
        path: The SVG file.
        width: Inches.
        height: Inches.
        columns: How many axes stand side by side.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
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
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.subplots(1, columns)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    files.write_file(path, buffer.getvalue())


def tell_change(name: str, row: dict) -> str:
    """Say in words for readers how a run differs from the baseline."""
    if name == "baseline":
        return f"baseline: rate {row['learning_rate']:g}, batch {row['batch_size']}, kernel {row['kernel_size']}"
    words = dict(learning_rate="rate", batch_size="batch", kernel_size="kernel")
    changes = [f"{words[key]} {row[key]:g}" for key in BASELINE if row[key] != BASELINE[key]]
    return ", ".join(changes) + (", equal steps" if name.endswith("_equal_steps") else "")


def draw_curves(path: Path, runs: list[Run]) -> None:
    """Plot loss and Dice on the validation photos at training size, after each epoch, mean over seeds."""
    from matplotlib.ticker import LogFormatter

    with new_figure(path, 7.2, 3.4, columns=2) as (left, right):
        for look, name in enumerate(dict.fromkeys(run.name for run in runs)):
            group = [run for run in runs if run.name == name]
            colour, marker, dash = LOOKS[look % len(LOOKS)]
            shown = dict(
                color=colour, marker=marker, linestyle=dash, label=tell_change(name, group[0].facts["settings"])
            )
            epochs = [row["epoch"] for row in group[0].history]
            left.plot(epochs, np.mean([[row["val_loss"] for row in run.history] for run in group], axis=0), **shown)
            right.plot(
                epochs,
                1e3 * (1 - np.mean([[row["val_dice"] for row in run.history] for run in group], axis=0)),
                **shown,
            )
        left.set(xlabel="epoch", ylabel="validation loss: cross-entropy + 1 - soft Dice", yscale="log")
        right.set(xlabel="epoch", ylabel="1 - validation Dice, in thousandths", yscale="log")
        right.yaxis.set_major_formatter(LogFormatter())
        right.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)
        left.figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=7)


def draw_differences(path: Path, table: list[dict]) -> None:
    """Plot each run's paired difference from the baseline with its interval."""
    rows = [row for row in table if row["difference"] != ""]
    with new_figure(path, 7.2, 0.6 + 0.35 * len(rows)) as axes:
        for height, row in enumerate(reversed(rows)):
            differs = row["verdict"] == "differs"
            colour = "#D55E00" if differs else "#0072B2"
            axes.plot(
                [1e3 * row["difference_low"], 1e3 * row["difference_high"]], [height] * 2, color=colour, linewidth=2
            )
            axes.plot(1e3 * row["difference"], height, "s" if differs else "o", color=colour, markersize=6)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [tell_change(row["name"], row) for row in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(
            "difference of Dice from the baseline, in thousandths, with 95 % interval (squares: more than noise)"
        )


def show(settings: Settings) -> None:
    """Print the table of the finished runs and write results.csv and the figures."""
    runs = load_study(settings.output_dir)
    table = compare(runs)
    files.write_table(settings.output_dir / "results.csv", table)
    print(format_table(table))
    facts = runs[0].facts
    print(
        f"Dice at the photos' own size, {facts['n_validation_photos']} photos of {facts['n_validation_cars']} cars; "
        "intervals by bootstrap over cars; differences of the last weights, photo by photo"
    )
    if max(row["seeds"] for row in table) == 1:
        print("one training of each kind: the intervals do not hold the luck of a training. --seeds 3 measures it.")
    draw_curves(settings.output_dir / "curves.svg", runs)
    if any(row["difference"] != "" for row in table):
        draw_differences(settings.output_dir / "differences.svg", table)
    missing = [name for name in GRID if name not in {run.name for run in runs}]
    if missing:
        print(f"not finished: {', '.join(missing)}")


def main(settings: Settings) -> None:
    """Carry out what is not finished, then show the study."""
    if settings.show:
        return show(settings)
    configs = list_configs(settings)
    failed = run_all(configs)
    if len(failed) < len(configs):
        show(settings)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}. The same command tries them again."
        )


if __name__ == "__main__":
    import tyro

    files.run_command(lambda args: main(tyro.cli(Settings, args=args, description=__doc__)))
