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
import mmap
import os
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process without further threads can be forked: PyTorch is imported once for all
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("scripts", "tests")]

import cv2  # noqa: E402
import extra  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import train  # noqa: E402
import tyro  # noqa: E402
from carvana import files  # noqa: E402
from carvana.weights import read_tensors  # noqa: E402
from conftest import draw_cars  # noqa: E402

OUTSIDE = "from outside"
TIMINGS = ("images_per_second", "data_wait", "seconds", "wait_seconds")
PLACES = ("load_model", "checkpoint_dir", "prediction_dir", "mirror_dir")
ENDS = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130,)}  # exit codes, in and out of the loop


@dataclass(frozen=True)
class Settings:
    """How much to soak."""

    kills: int = 100  # interruptions in all
    seed: int = 0  # moments follow from it, except those from outside, which depend on the machine's speed too
    precision: str = "float32"  # of the trainings; fp16 has a gradient scaler to restore
    keep: Path | None = None  # leave the files of all runs here, to look at


class Moments:
    """The moments that a training passes, counted in memory that outlives its process."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 1 << 17)

    def clear(self) -> None:
        self.memory[:4] = struct.pack("<I", 0)

    def names(self) -> list[str]:
        count = struct.unpack("<I", self.memory[:4])[0]
        return [self.memory[4 + 32 * i : 36 + 32 * i].rstrip(b"\0").decode() for i in range(count)]

    def add(self, name: str) -> int:
        """Note a moment; return how many of its kind came before."""
        passed = self.names()
        self.memory[4 + 32 * len(passed) : 36 + 32 * len(passed)] = name.encode().ljust(32, b"\0")
        self.memory[:4] = struct.pack("<I", len(passed) + 1)
        return passed.count(name)


MOMENTS = Moments()


def watch_moments(strike: tuple[str, int] | None, number: int) -> None:
    """Put moments round what changes a run's state or files; at the one to strike, send this process a signal."""

    def moment(name: str) -> None:
        if (name, MOMENTS.add(name)) == strike:
            os.kill(os.getpid(), number)

    def around(module, name: str, before: str | None, after: str | None) -> None:
        real = getattr(module, name)

        def call(*arguments, **keywords):
            if before:
                moment(before)
            result = real(*arguments, **keywords)
            if after:
                moment(after)
            return result

        setattr(module, name, call)

    class Halves:
        """A file that is struck when half of its bytes are written."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            moment("half of a file written")
            self.file.write(content[len(content) // 2 :])

    files.open = lambda path, mode: Halves(open(path, mode))
    around(os, "fsync", "file not flushed", None)
    around(os, "replace", "file not renamed", "file renamed")
    around(extra, "write_tensors", "between the steps of a save", None)
    around(train, "update_average", "step, before the average", "step, after the average")
    around(train, "validate", "before validation", "after validation")
    around(extra, "choose_threshold", "before the score", None)


def start(config: train.Config, log: Path, strike: tuple[str, int] | None = None, number: int = signal.SIGKILL) -> int:
    """Fork a process that trains; return its id."""
    MOMENTS.clear()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        watch_moments(strike, number)
        train.train(config)
        code = 0
    except SystemExit as error:
        code = error.code
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(process: int) -> int:
    """Return the exit code, or minus the signal that ended the process."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_from_outside(process: int, moment: int, seconds: float) -> int:
    """Kill a training some time after a moment: time alone would depend on how busy the machine is."""
    while len(MOMENTS.names()) < moment and not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)  # a process that has ended but was not waited for takes this calmly
    return wait(process)


def differing(one: object, other: object, name: str = "") -> list[str]:
    """Name what differs between two values of a header; timings and places aside."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        keys = [key for key in one if key not in TIMINGS + PLACES]
        return [found for key in keys for found in differing(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [found for i, pair in enumerate(zip(one, other)) for found in differing(*pair, f"{name}/{i}")]
    return [] if one == other else [name]


def compare_runs(folder: Path, reference: Path) -> list[str]:
    """Name all that differs between two finished runs: which files there are, and what is in them."""
    names = [
        {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name[0] != "."} - {"log.txt"}
        for run in (folder, reference)
    ]
    found = [f"the file {name}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        ours, theirs = folder / name, reference / name
        if name.endswith(extra.PREVIOUS) or name.endswith("settings.json"):
            continue  # which save came before the last one depends on the interruptions
        elif name.endswith(".safetensors"):
            (tensors, header), (other_tensors, other_header) = read_tensors(ours), read_tensors(theirs)
            found += [f"{name}{what}" for what in differing(header, other_header)]
            if tensors.keys() != other_tensors.keys():
                found.append(f"{name}: names of tensors")
            else:
                found += [f"{name}/{key}" for key in tensors if not torch.equal(tensors[key], other_tensors[key])]
        elif name.endswith("history.csv"):
            rows, other_rows = (list(csv.DictReader(path.read_text().splitlines())) for path in (ours, theirs))
            found += [name] if differing(rows, other_rows) else []
        else:
            found += [name] if ours.read_bytes() != theirs.read_bytes() else []
    return found


def soak(settings: Settings, folder: Path) -> dict:
    """Interrupt, resume, compare; return what to print."""
    data = draw_cars(folder / "data")

    def launch(run: Path, **strike) -> int:
        checkpoint_dir = run / "checkpoints"
        config = train.Config(
            train_image_dir=data / "train",
            train_mask_dir=data / "train_masks",
            cache_dir=folder / "cache",
            checkpoint_dir=checkpoint_dir,
            prediction_dir=run / "predictions",
            mirror_dir=run / "mirror",
            validation_share=0.34,
            image_width=48,
            image_height=32,
            base_width=4,
            batch_size=3,
            epochs=2,
            warmup=0.2,
            ema_decay=0.9,
            background=0.5,
            checkpoint_minutes=0,
            workers=0,
            device="cpu",
            precision=settings.precision,
            # Before its first checkpoint a run has nothing to go on from, and begins again.
            load_model=any((checkpoint_dir / name).exists() for name in (extra.LAST, extra.PREVIOUS)),
        )
        return start(config, run / "log.txt", **strike)

    reference = folder / "reference"
    reference.mkdir()
    if code := wait(launch(reference)):
        raise RuntimeError(f"the run that nobody interrupts ended with {code}: {(reference / 'log.txt').read_text()}")
    moments = MOMENTS.names()
    counts = Counter(moments)
    kinds = [*sorted(counts), OUTSIDE]

    rng = np.random.default_rng(settings.seed)
    struck, signals, problems, n_runs = Counter(), Counter(), [], 0
    while struck.total() < settings.kills:
        run = folder / f"run_{n_runs:03d}"
        run.mkdir()
        finished = False
        n_wanted = min(int(rng.integers(1, 6)), settings.kills - struck.total())
        for attempt in range(n_wanted):
            kind = kinds[struck.total() % len(kinds)]
            if kind == OUTSIDE:
                number = signal.SIGKILL
                moment = int(rng.integers(len(moments) // 2 if attempt == 0 else len(moments) // 8))
                code = kill_from_outside(launch(run), moment, rng.uniform(0, 0.03))
            else:
                number = signal.SIGKILL if rng.random() < 0.8 else int(rng.choice([signal.SIGTERM, signal.SIGINT]))
                # Soon, so that something is left for the next interruption. A new run is sure to come by.
                strike = kind, int(rng.integers(-(-counts[kind] // 3) if attempt == 0 else 1))
                code = wait(launch(run, strike=strike, number=number))
            if code == 0:  # the moment lay behind a resumed run: the next run is struck there
                finished = True
                break
            if code not in ENDS[number]:
                text = (run / "log.txt").read_text()[-2000:]
                problems.append(f"{run.name} left with {code} after signal {number} at {kind}: {text}")
            struck[kind] += 1
            signals[signal.Signals(number).name.lower()] += 1
        if not finished and (code := wait(launch(run))):
            problems.append(f"{run.name} ended with {code}: {(run / 'log.txt').read_text()[-2000:]}")
        else:
            problems += [f"{run.name} differs in {what}" for what in compare_runs(run, reference)]
        n_runs += 1
        if settings.keep is None and not problems:
            shutil.rmtree(run)
    return dict(
        **signals,
        runs=n_runs,
        moments_in_a_run=len(moments),
        **{f"struck {kind}": struck[kind] for kind in kinds},
        mismatches=len(problems),
        problems=problems,
    )


def main(args: list[str]) -> int:
    settings = tyro.cli(Settings, args=args, description=__doc__)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for module in ("albumentations", "matplotlib.pyplot", "torch._dynamo"):  # imported once, before the first fork
        importlib.import_module(module)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        summary = soak(settings, folder)
    problems = summary.pop("problems")
    print(*problems, sep="\n", file=sys.stderr)
    seconds = round(time.perf_counter() - begun)
    for key, value in {**summary, "precision": settings.precision, "seed": settings.seed, "seconds": seconds}.items():
        print(f"{key}: {value}")
    return 1 if problems else 0


if __name__ == "__main__":
    files.run_command(main)
