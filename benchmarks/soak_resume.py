"""Interrupt trainings many times, resume them, and compare what they leave with a run that nobody interrupted, bitwise.

    python benchmarks/soak_resume.py --kills 100

Interruptions strike each kind of moment in turn, as the training itself passes it: within a step, in validation,
half-way through the bytes of a file, before it is flushed, before and after it is renamed, between the two steps of a
save. One kind is a kill from outside, some time after a random moment. One in five is SIGTERM or Ctrl-C, the others are
`kill -9`. A run is interrupted up to five times, then goes on to its end and is compared. Prints `key: value` lines;
exits with 1 if anything differs.
"""

import csv
import importlib
import io
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process without further threads can be forked: PyTorch is imported once for all
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("scripts", "tests")]

import cv2
import extra
import numpy as np
import torch
import train
import tyro
from carvana import files
from carvana.machine import TRAINING_PACKAGES
from carvana.weights import read_tensors
from tiny import draw_cars, tiny_run

OUTSIDE = "from outside"
# Timings, and where a run's files are: all else must be equal.
FREE = "images_per_second data_wait seconds wait_seconds load_model checkpoint_dir prediction_dir mirror_dir".split()
ENDS = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130,)}  # exit codes, in and out of the loop


@dataclass(frozen=True)
class Settings:
    """How much to soak."""

    kills: int = 100  # interruptions in all
    seed: int = 0  # moments follow from it, except those from outside, which depend on the machine's speed too
    precision: str = "float32"  # of the trainings; fp16 has a gradient scaler to restore
    keep: Path | None = None  # leave the files of all runs here, to look at


def watch_moments(path: Path, strike: tuple[str, int] | None, number: int) -> None:
    """Let this process write the moments that it passes into a file; at the one to strike it sends itself a signal.

    Args:
        path: The file, which gets a line a moment.
        strike: Kind of the moment, and how many of its kind come before; None for none.
        number: The signal.
    """
    passed = Counter()

    def moment(kind: str) -> None:
        with open(path, "a") as file:
            file.write(f"{kind}\n")
        if (kind, passed[kind]) == strike:
            os.kill(os.getpid(), number)
        passed[kind] += 1

    def around(module, name: str, before: str | None, after: str | None = None) -> None:
        real = getattr(module, name)

        def call(*arguments, **keywords):
            if before:
                moment(before)
            result = real(*arguments, **keywords)
            if after:
                moment(after)
            return result

        setattr(module, name, call)

    class Halves(io.FileIO):
        def write(self, content: bytes) -> None:
            super().write(content[: len(content) // 2])
            moment("half of a file written")
            super().write(content[len(content) // 2 :])

    files.open = Halves
    around(os, "fsync", "file not flushed")
    around(os, "replace", "file not renamed", "file renamed")
    around(extra, "write_tensors", "between the steps of a save")
    around(train, "update_average", "step, before the average", "step, after the average")
    around(train, "validate", "before validation", "after validation")
    around(extra, "choose_threshold", "before the score")


def become_training(config: train.Config, run: Path, strike: tuple[str, int] | None, number: int) -> None:
    log = os.open(run / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    watch_moments(run / "moments.txt", strike, number)
    files.run_command(lambda args: print(train.train(config)), ["--debug"])


def read_moments(run: Path) -> list[str]:
    return (run / "moments.txt").read_text().splitlines()


# -------------------------------------------------------------------------------------------------------- comparing


def flatten(value, name: str = "") -> dict:
    """Name each plain value in dictionaries and lists; timings and places aside."""
    if not isinstance(value, (dict, list)):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    parts = [flatten(inner, f"{name}/{key}") for key, inner in items if key not in FREE]
    return {key: inner for part in parts for key, inner in part.items()}


def read_parts(path: Path) -> dict:
    """Read what must be equal in a file, by name: bytes of tensors, values of headers and tables."""
    if path.suffix == ".safetensors":
        tensors, header = read_tensors(path)
        return {f"/{name}": tensor.numpy().tobytes() for name, tensor in tensors.items()} | flatten(header)
    if path.name == "history.csv":
        return flatten([*csv.DictReader(path.read_text().splitlines())])
    return {"": path.read_bytes()}


def compare_runs(folder: Path, reference: Path) -> list[str]:
    """Name all that differs between two finished runs: which files there are, and what is in them."""
    # Which save came before the last one depends on the interruptions.
    free = "log.txt", "moments.txt", "settings.json", extra.PREVIOUS
    ours, theirs = (
        {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file() and path.name not in free}
        for run in (folder, reference)
    )
    found = [f"the file {name}" for name in sorted(ours.keys() ^ theirs.keys()) if not Path(name).name.startswith(".")]
    for name in sorted(ours.keys() & theirs.keys()):
        one, other = read_parts(ours[name]), read_parts(theirs[name])
        found += [f"{name}{part}" for part in sorted(one | other) if one.get(part) != other.get(part)]
    return found


# ---------------------------------------------------------------------------------------------------------- soaking


def soak(settings: Settings, folder: Path) -> dict:
    """Interrupt, resume, compare; return what to print."""
    cars = draw_cars(folder / "data")
    changes = dict(warmup=0.2, ema_decay=0.9, background=0.5, checkpoint_minutes=0, precision=settings.precision)

    def launch(run: Path, strike: tuple[str, int] | None = None, number: int = 0) -> ForkProcess:
        # Before its first checkpoint a run has nothing to go on from, and begins again.
        begun = extra.holds_run(run / "checkpoints")
        places = dict(cache_dir=folder / "cache", mirror_dir=run / "mirror", load_model=begun)
        config = train.Config(**tiny_run(cars, run, **changes, **places))
        run.mkdir(exist_ok=True)
        (run / "moments.txt").write_text("")
        process = ForkProcess(target=become_training, args=(config, run, strike, number))
        process.start()
        return process

    def wait(process: ForkProcess) -> int:
        """Return the exit code, or minus the signal that ended the process."""
        process.join()
        return process.exitcode

    reference = folder / "reference"
    if code := wait(launch(reference)):
        raise RuntimeError(f"the run that nobody interrupts ended with {code}: {(reference / 'log.txt').read_text()}")
    counts = Counter(read_moments(reference))
    kinds = [*sorted(counts), OUTSIDE]

    rng = np.random.default_rng(settings.seed)
    struck, signals, problems, n_runs = Counter(), Counter(), [], 0
    while struck.total() < settings.kills:
        run = folder / f"run_{n_runs:03d}"
        code = None
        for attempt in range(min(int(rng.integers(1, 6)), settings.kills - struck.total())):
            kind = kinds[struck.total() % len(kinds)]
            number = signal.SIGKILL
            # Soon, so that something is left for the next interruption. A new run is sure to come by.
            if kind == OUTSIDE:
                # Counted in moments: time alone would depend on how busy the machine is.
                n_moments = rng.integers(counts.total() // (2 if attempt == 0 else 8))
                process = launch(run)
                while len(read_moments(run)) < n_moments and process.is_alive():
                    process.join(0.002)
                process.join(rng.uniform(0, 0.03))
                process.kill()
                code = wait(process)
            else:
                if rng.random() > 0.8:
                    number = signal.Signals(rng.choice([signal.SIGTERM, signal.SIGINT]))
                strike = kind, int(rng.integers(-(-counts[kind] // 3) if attempt == 0 else 1))
                code = wait(launch(run, strike=strike, number=number))
            if code == 0:  # the moment lay behind a resumed run: the next run is struck there
                break
            if code not in ENDS[number]:
                text = (run / "log.txt").read_text()[-2000:]
                problems.append(f"{run.name} left with {code} after signal {number} at {kind}: {text}")
            struck[kind] += 1
            signals[number.name.lower()] += 1
        if code and (code := wait(launch(run))):
            problems.append(f"{run.name} ended with {code}: {(run / 'log.txt').read_text()[-2000:]}")
        else:
            problems += [f"{run.name} differs in {what}" for what in compare_runs(run, reference)]
        n_runs += 1
        if settings.keep is None and not problems:
            shutil.rmtree(run)
    print(*problems, sep="\n", file=sys.stderr)
    counted = {f"struck {kind}": struck[kind] for kind in kinds}
    return {**signals, "runs": n_runs, "moments_in_a_run": counts.total(), **counted, "mismatches": len(problems)}


def main(args: list[str]) -> int:
    settings = tyro.cli(Settings, args=args, description=__doc__)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for package in TRAINING_PACKAGES:  # imported once, before the first fork
        importlib.import_module(package)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        summary = soak(settings, folder)
    summary |= dict(precision=settings.precision, seed=settings.seed, seconds=round(time.perf_counter() - begun))
    for key, value in summary.items():
        print(f"{key}: {value}")
    return 1 if summary["mismatches"] else 0


if __name__ == "__main__":
    files.run_command(main)
