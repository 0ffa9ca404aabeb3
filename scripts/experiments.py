"""Run the study: a baseline and five trainings that differ from it in one setting each, scored alike and compared.

    python scripts/experiments.py                                                           a GPU
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import extra
import numpy as np
import torch
import train
from carvana import machine
from carvana.files import PROJECT_DIR, run_command, write_file, write_table
from carvana.metrics import MIN_CARS, bootstrap_interval
from carvana.segmenter import Segmenter
from carvana.settings import Count, PathSetting, Whole, parse_settings, settings_class
from carvana.weights import build_network
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


@settings_class
class Settings:
    """What all runs of the study share."""

    train_image_dir: PathSetting = train.Config.train_image_dir  # photos; a tenth of the cars is set aside to score on
    train_mask_dir: PathSetting = train.Config.train_mask_dir  # their masks
    image_width: int = train.Config.image_width  # training size in pixels; 240x160 on a CPU
    image_height: int = train.Config.image_height  # likewise
    base_width: int = train.Config.base_width  # channels of the first convolution; 16 on a CPU
    epochs: Count = 10  # how often each photo is seen
    seed: Whole = 0  # another one, with an --output-dir of its own, shows how far the luck of a training reaches
    device: str = "auto"  # cuda, mps, cpu, or auto
    only: tuple[Literal[*GRID], ...] = ()  # names of the runs to compare with the baseline; all of them by default
    output_dir: PathSetting = PROJECT_DIR / "experiments"  # gets a folder for each run
    cache_dir: PathSetting = train.Config.cache_dir  # decoded photos; may be deleted at any time
    show: bool = False  # only make the table and the figures of the runs that are finished


# ---------------------------------------------------------------------------------------------------------- the runs


def list_configs(settings: Settings) -> list[train.Config]:
    """Return the settings of each training, the baseline first."""
    shared = {key: value for key, value in vars(settings).items() if hasattr(train.Config, key)}
    folders = {name: settings.output_dir / name for name in GRID if name in ("baseline", *(settings.only or GRID))}
    return [
        train.Config(**shared, **BASELINE | GRID[name], checkpoint_dir=folder, prediction_dir=folder / "pictures")
        for name, folder in folders.items()
    ]


def run_all(configs: list[train.Config]) -> None:
    """Carry out what is not finished, one run after the other.

    Raises:
        ValueError: If photos are broken, or a folder holds a run of other settings or on other photos.
        RuntimeError: After the last run, if some failed.
    """
    is_finished = lambda config: (config.checkpoint_dir / "run.json").exists()
    for config in configs:  # everything is looked at before hours are spent
        cache, *_ = train.prepare_data(config, quiet=config is not configs[0])
        before = load_run(config.checkpoint_dir).facts if is_finished(config) else dict(settings={})
        now = {**extra.settings_of_result(config), "data_fingerprint": cache.fingerprint}
        for key, value in {**before, **before["settings"]}.items():
            if now.get(key, value) != value:
                raise ValueError(
                    f"{config.checkpoint_dir} must hold a run with {key} {now[key]}, got {value}. "
                    "Delete it, or name another --output-dir."
                )
    failed = []
    for number, config in enumerate(configs, start=1):
        name = config.checkpoint_dir.name
        print(f"{number} of {len(configs)}: {name}{', finished before' * is_finished(config)}", flush=True)
        if is_finished(config):
            continue
        try:  # in a process of its own: its crash loses no other run, and its peak memory is its own
            with ProcessPoolExecutor(1, machine.process_context()) as pool:
                pool.submit(carry_out, config).result()
        except (OSError, ValueError, RuntimeError) as error:
            failed.append(name)
            print(f"{name} failed: {error}", file=sys.stderr, flush=True)
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed, see above. The same command tries again.")


def carry_out(config: train.Config) -> None:
    """Train as far as is still to do, score the last weights too, and describe the run in run.json and dice.csv."""
    folder = config.checkpoint_dir
    is_resumed = (folder / extra.LAST).exists() or (folder / extra.PREVIOUS).exists()
    summary = train.train(dataclasses.replace(config, load_model=is_resumed))

    cache, train_rows, rows = train.prepare_data(config, quiet=True)
    history, best = read_table(folder / "history.csv"), read_table(folder / "scores.csv")
    cars, last = sorted({pair.car for pair in cache.pairs}), score_last(config, cache, rows)
    photos = [
        dict(car=1 + cars.index(photo["car"]), view=photo["view"], best=each["dice"], last=photo["dice"])
        for each, photo in zip(best, last, strict=True)
    ]
    write_table(folder / "dice.csv", photos)
    device = machine.choose_device(config.device)
    facts = dict(
        settings=extra.settings_of_result(config),
        data_fingerprint=cache.fingerprint,
        n_train_photos=len(train_rows),
        n_validation_photos=len(rows),
        photo_sizes=sorted({"x".join(map(str, cache.load_mask(row)[0].shape[::-1])) for row in rows}),
        n_validation_cars=len({cache.pairs[row].car for row in rows}),
        parameters=int(summary["parameters"]),
        gflop=count_flop(config) / 1e9,
        seconds_per_epoch=float(np.median([row["seconds"] for row in history])),
        # A process that went on may have done no more than score.
        peak_memory_mib=None if is_resumed else float(summary["peak_memory_mib"]),
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


def read_commit() -> str | None:
    """Return the commit, with "-dirty" if files differ from it; None outside git."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.check_output(command, cwd=PROJECT_DIR, stderr=subprocess.DEVNULL, text=True).strip()


def count_flop(config: train.Config) -> int:
    """Count the floating-point operations of one photo's forward pass; a training step takes about three times as many.

    Example:
        >>> count_flop(train.Config(image_width=240, image_height=160)) // 10**9
        56
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = UNet(base_width=config.base_width, depth=config.depth, kernel_size=config.kernel_size).eval()
        network(torch.zeros(1, 3, config.image_height, config.image_width))
    return counter.get_total_flops()


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
    facts: dict  # run.json
    history: list[dict]  # a row an epoch
    dice: list[dict]  # a row a validation photo


def load_run(folder: Path) -> Run:
    """Read a finished run; raise a ValueError if a file is damaged."""
    try:
        facts = json.loads((folder / "run.json").read_text())
        return Run(folder.name, facts, read_table(folder / "history.csv"), read_table(folder / "dice.csv"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} does not hold a whole run ({error}). Delete it and run it again.") from error


def load_study(output_dir: Path) -> list[Run]:
    """Read all finished runs of the grid, the baseline first; raise a ValueError if that is not finished."""
    folders = [output_dir / name for name in GRID if (output_dir / name / "run.json").exists()]
    if output_dir / "baseline" not in folders:
        raise ValueError(f"{output_dir} must hold a finished baseline. Run `python scripts/experiments.py` first.")
    return list(map(load_run, folders))


def compare(runs: list[Run]) -> list[dict]:
    """Return the study's table, a row a run, the baseline first.

    Intervals are 95 % CI, cluster bootstrap over cars. The difference is that of the last weights' Dice from the
    baseline's, photo by photo: no epoch is chosen by the photos that it is measured on. Its verdict is "differs"
    where the interval leaves out zero, else "noise". One training of each kind cannot tell a setting from luck.
    """
    table = []
    for run in runs:
        last, cars = ([photo[key] for photo in run.dice] for key in ("last", "car"))
        row = dict(name=run.name, **{key: run.facts["settings"][key] for key in (*BASELINE, "epochs")})
        costs = ("parameters", "gflop", "seconds_per_epoch", "peak_memory_mib")
        row |= {key: run.facts[key] for key in (*costs, "best_dice", "last_dice")}
        row["last_low"], row["last_high"] = bootstrap_interval(last, cars)
        row |= dict(difference=None, difference_low=None, difference_high=None, verdict=None)
        if run is not runs[0]:
            differences = subtract(run, runs[0])
            low, high = bootstrap_interval(differences.tolist(), cars)
            verdict = "too few cars" if len(set(cars)) < MIN_CARS else "differs" if low > 0 or high < 0 else "noise"
            mean = float(np.mean(differences))
            row |= dict(difference=mean, difference_low=low, difference_high=high, verdict=verdict)
        table.append(row)
    return table


def subtract(run: Run, baseline: Run) -> np.ndarray:
    """Return the run's last Dice minus the baseline's (n,), photo by photo.

    Raises:
        ValueError: If the two were not scored on the same photos.
    """
    ours, theirs = ({(photo["car"], photo["view"]): photo["last"] for photo in one.dice} for one in (run, baseline))
    if ours.keys() != theirs.keys():
        raise ValueError(f"{run.name} and {baseline.name} must be scored on the same photos, got others. Rerun both.")
    return np.array([ours[photo] - theirs[photo] for photo in ours])


def describe(name: str, row: dict) -> str:
    """Say how a run differs from the baseline.

    Example:
        >>> describe("batch_16", dict(learning_rate=1e-3, batch_size=16, kernel_size=3))
        'batch 16'
    """
    words = dict(learning_rate="learning rate", batch_size="batch", kernel_size="kernel")
    texts = [f"{words[key]} {row[key]:g}" for key in BASELINE if name == "baseline" or row[key] != BASELINE[key]]
    return "baseline: " * (name == "baseline") + ", ".join(texts)


# ----------------------------------------------------------------------------------------------------------- figures


@contextlib.contextmanager
def new_figure(path: Path, width: float, height: float, columns: int = 1):
    """Yield axes, `columns` of them side by side, and save them as SVG: inches, the study's style, equal bytes for
    equal numbers."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(fname=Path(__file__).with_suffix(".mplstyle")):
        figure, buffer = Figure(figsize=(width, height), layout="constrained"), io.BytesIO()
        yield figure.subplots(1, columns)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_file(path, buffer.getvalue())


def draw_curves(path: Path, runs: list[Run]) -> None:
    """Plot loss and Dice on the validation photos at training size, after each epoch."""
    from matplotlib.ticker import LogFormatter

    with new_figure(path, 7.2, 3.4, columns=2) as (left, right):
        for run in runs:
            epochs = [row["epoch"] for row in run.history]
            label = describe(run.name, run.facts["settings"])
            left.plot(epochs, [row["val_loss"] for row in run.history], label=label)
            right.plot(epochs, [1e3 * (1 - row["val_dice"]) for row in run.history])
        left.set(xlabel="epoch", ylabel="validation loss: cross-entropy + 1 - soft Dice", yscale="log")
        right.set(xlabel="epoch", ylabel="1 - validation Dice, in thousandths", yscale="log")
        right.yaxis.set_major_formatter(LogFormatter())
        right.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)
        left.figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=7)


def draw_differences(path: Path, table: list[dict]) -> None:
    """Plot each run's paired difference from the baseline with its interval."""
    rows = table[:0:-1]  # all but the baseline, the first on top
    with new_figure(path, 7.2, 0.6 + 0.35 * len(rows)) as axes:
        for height, row in enumerate(rows):
            colour, marker = ("#D55E00", "s") if row["verdict"] == "differs" else ("#0072B2", "o")
            ends = [1e3 * row["difference_low"], 1e3 * row["difference_high"]]
            axes.plot(ends, [height] * 2, "-", color=colour, linewidth=2)
            axes.plot(1e3 * row["difference"], height, marker, color=colour, markersize=6)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [describe(row["name"], row) for row in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("difference of Dice from the baseline, in thousandths, with 95 % CI (squares: more than noise)")


def show(output_dir: Path) -> None:
    """Print the table of the finished runs, differences in thousandths, and write results.csv and the figures."""
    runs = load_study(output_dir)
    table, facts = compare(runs), runs[0].facts
    write_table(output_dir / "results.csv", table)
    draw_curves(output_dir / "curves.svg", runs)
    draw_differences(output_dir / "differences.svg", table)
    print(f"{'run':<52}{'last Dice':>7}{'95 % CI':>17}{'difference':>18}{'95 % CI':>14}")
    for row in table:
        line = "{last_dice:12.5f}{last_low:12.5f} {last_high:.5f}".format(**row)
        if row is not table[0]:
            values = [1e3 * row[key] for key in ("difference", "difference_low", "difference_high")]
            line += "{:+12.3f}{:+10.3f} {:+7.3f}  ".format(*values) + row["verdict"]
        print(f"{describe(row['name'], row):<49}{line}")
    print(
        f"\nDice of the last weights at full resolution, {facts['n_validation_photos']} photos of "
        f"{facts['n_validation_cars']} cars that no training saw.\nDifferences from the baseline in thousandths, "
        "photo by photo. 95 % CI: cluster bootstrap over cars.\n"
        "One training of each kind: the intervals do not hold the luck of a training. --seed 1 shows another."
    )


def main(settings: Settings) -> None:
    """Carry out what is not finished, then show the study."""
    if not settings.show:
        run_all(list_configs(settings))
    show(settings.output_dir)


if __name__ == "__main__":
    run_command(lambda args: main(parse_settings(Settings, args, __doc__)))
