"""Interrupt trainings many times, resume them, and compare what they leave, bit by bit, with a run that nobody interrupted.

    python benchmarks/soak_resume.py --kills 100

A third of the interruptions are `kill -9` from outside, a random time after a random moment. The others strike at a chosen moment, which the
process itself counts: within a step's bookkeeping, between two validation photos, half-way through the bytes of a file, between
its temporary name and the renaming, between the two renamings of a checkpoint; one in five of these is SIGTERM or Ctrl-C instead.
A run is interrupted up to five times, then goes on to its end and is compared. Prints `key: value` lines; exits with 1 if
anything differs.
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
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = (
    "1"  # a process without further threads can be forked: PyTorch is imported once for all runs
)
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("scripts", "tests")]

import cv2  # noqa: E402
import extra  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import train  # noqa: E402
import tyro  # noqa: E402
from conftest import draw_cars  # noqa: E402

TIMING_COLUMNS = ("images_per_second", "data_wait", "seconds")
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


@dataclass(frozen=True)
class Settings:
    """How much to soak."""

    kills: int = 100  # interruptions in all
    seed: int = 0  # moments follow from it, except those from outside, which depend on the machine's speed too
    precision: str = "float32"  # of the trainings; fp16 has a gradient scaler to restore
    keep: Path | None = None  # leave the files of all runs here, to look at


class Moments:
    """Counts, in the training process, the moments at which it may be struck, in memory that outlives the process."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 1 << 16)

    def clear(self) -> None:
        self.memory[:4] = struct.pack("<I", 0)

    def names(self) -> list[str]:
        count = struct.unpack("<I", self.memory[:4])[0]
        return [self.memory[4 + 32 * i : 36 + 32 * i].rstrip(b"\0").decode() for i in range(count)]

    def pass_one(self, name: str, strike: tuple[str, int] | None, number: int) -> None:
        """Note a moment; at the one that `strike` names, as the how-manieth of its kind, send this process a signal."""
        passed = self.names()
        count = len(passed)
        self.memory[4 + 32 * count : 36 + 32 * count] = name.encode().ljust(32, b"\0")
        self.memory[:4] = struct.pack("<I", count + 1)
        if strike == (name, passed.count(name)):
            os.kill(os.getpid(), number)


MOMENTS = Moments()


def watch_moments(strike: tuple[str, int] | None, number: int) -> None:
    """Put a moment before or after each thing that changes the run's state or its files."""

    def moment(name: str) -> None:
        MOMENTS.pass_one(name, strike, number)

    class Halves:
        """A file that is struck when half of its bytes are written."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            content = memoryview(content)
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            moment("half of a file written")
            self.file.write(content[len(content) // 2 :])

    real_fsync, real_replace, real_dice, real_update = os.fsync, os.replace, extra.dice, train.update_average

    def fsync(descriptor):
        moment("before flushing to disk")
        real_fsync(descriptor)

    def replace(source, target):
        name = Path(target).name
        if ".previous" in name:
            what = "before the first renaming"
        elif name == "last.pt":
            what = "between the two renamings"
        else:
            what = "temporary file not renamed"
        moment(what)
        real_replace(source, target)
        moment("after a renaming")

    def dice(*arguments):
        moment("validation or score")
        return real_dice(*arguments)

    def update_average(*arguments):
        moment("step, before the average")
        real_update(*arguments)
        moment("step, after the average")

    extra.open = lambda path, mode: Halves(open(path, mode))
    os.fsync, os.replace, extra.dice, train.update_average = fsync, replace, dice, update_average


def start(config: train.Config, log: Path, strike: tuple[str, int] | None = None, number: int = signal.SIGKILL) -> int:
    """Fork a process that trains; give its id."""
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
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(process: int) -> int:
    """Exit code, or minus the signal that ended the process."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def can_resume(config: train.Config) -> bool:
    """Before its first checkpoint a run has nothing to go on from, and begins again."""
    return any((config.checkpoint_dir / name).exists() for name in ("last.pt", "last.previous.pt"))


def differing(one: object, other: object, name: str = "") -> list[str]:
    """Name what differs between two checkpoints, by value and type, tensors by torch.equal; timings aside."""
    if type(one) is not type(other):
        return [name]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [name]
        aside = (*TIMING_COLUMNS, "wait_seconds", "load_model", "checkpoint_dir", "prediction_dir", "mirror_dir")
        return [found for key in one if key not in aside for found in differing(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [name]
        return [found for i, pair in enumerate(zip(one, other)) for found in differing(*pair, f"{name}/{i}")]
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [name]
    return [] if one == other else [name]


def history(path: Path) -> list[dict]:
    rows = csv.DictReader(path.read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in TIMING_COLUMNS} for row in rows]


def shared_weights(path: Path) -> dict:
    network, description = extra.load_network(path)
    return dict(weights=dict(network.state_dict()), description=description)


def compare_runs(folder: Path, reference: Path) -> list[str]:
    """Name all that differs between two finished runs: checkpoints, history, scores, pictures, and which files there are."""
    found = []
    files = [
        {
            str(path.relative_to(run))
            for path in run.rglob("*")
            if path.is_file() and path.name not in (".lock", "log.txt")
        }
        for run in (folder, reference)
    ]
    leftover = {"checkpoints/last.pt.new"}  # of a kill during the last save of an epoch; the next save takes its place
    found += [f"the file {name}" for name in sorted((files[0] ^ files[1]) - leftover)]
    for name in sorted(files[0] & files[1]):
        ours, theirs = folder / name, reference / name
        if name.endswith(".pt"):
            if "previous" not in name:  # which save came before the last one depends on the interruptions
                found += [
                    f"{name}{what}" for what in differing(extra.read_checkpoint(ours), extra.read_checkpoint(theirs))
                ]
        elif name.endswith(".safetensors"):
            found += [f"{name}{what}" for what in differing(shared_weights(ours), shared_weights(theirs))]
        elif name.endswith("history.csv"):
            found += [name] * (history(ours) != history(theirs))
        elif not name.endswith("settings.json"):
            found += [name] * (ours.read_bytes() != theirs.read_bytes())
    return found


def soak(settings: Settings, folder: Path) -> dict:
    """Interrupt, resume, compare; give what to print."""
    data = draw_cars(folder / "data")

    def config_of(run: Path, load_model: bool = False) -> train.Config:
        return train.Config(
            train_image_dir=data / "train",
            train_mask_dir=data / "train_masks",
            cache_dir=folder / "cache",
            checkpoint_dir=run / "checkpoints",
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
            load_model=load_model,
        )

    reference = folder / "reference"
    reference.mkdir()
    if code := wait(start(config_of(reference), reference / "log.txt")):
        raise RuntimeError(f"the run that nobody interrupts failed with {code}: {(reference / 'log.txt').read_text()}")
    moments = MOMENTS.names()
    kinds = sorted(set(moments))

    rng = np.random.default_rng(settings.seed)
    struck: dict[str, int] = {}
    exit_codes: dict[str, int] = {}
    problems: list[str] = []
    n_kills = n_runs = n_planned = 0
    while n_kills < settings.kills:
        run = folder / f"run_{n_runs:03d}"
        run.mkdir()
        log = run / "log.txt"
        wanted = min(int(rng.integers(1, 6)), settings.kills - n_kills)
        finished = False
        done = 0  # moments that lie behind this run, about
        for _ in range(wanted):
            config = config_of(run, can_resume(config_of(run)))
            outside = n_kills % 3 == 2
            if outside:
                # At a random time after a random moment: time alone would depend on how busy the machine is.
                process = start(config, log)
                moment = int(rng.integers(0, max(1, (len(moments) - done) // 2)))
                while len(MOMENTS.names()) < moment and not os.waitid(
                    os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT
                ):
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.03))
                os.kill(process, signal.SIGKILL)  # a process that has ended but was not waited for takes this calmly
                code, how = wait(process), "kill"
            else:
                # Kinds in turn, so that rare moments are struck as often as steps are; then one of that kind, soon enough
                # to leave something for the next interruption.
                ahead = [moments[done:].count(kind) for kind in kinds]
                while not ahead[n_planned % len(kinds)]:
                    n_planned += 1
                strike = kinds[n_planned % len(kinds)], int(rng.integers(-(-ahead[n_planned % len(kinds)] // 3)))
                how = "kill" if rng.random() < 0.8 else str(rng.choice(["term", "int"]))
                code = wait(start(config, log, strike, SIGNALS[how]))
            passed = MOMENTS.names()
            done = min(done + len(passed), len(moments) - 1)
            if code == 0:  # it was resumed so late that the moment never came
                finished = True
                break
            expected = -signal.SIGKILL if how == "kill" else 128 + SIGNALS[how]
            if code != expected:
                problems.append(
                    f"{run.name} left with {code} instead of {expected} after {how}: {log.read_text()[-2000:]}"
                )
            n_kills += 1
            n_planned += not outside
            where = (passed[-1] if passed else "before the first moment") if outside else strike[0]
            label = f"{where}{', from outside' if outside else ''}"
            struck[label] = struck.get(label, 0) + 1
            exit_codes[how] = exit_codes.get(how, 0) + 1
        if not finished and (code := wait(start(config_of(run, can_resume(config_of(run))), log))):
            problems.append(f"{run.name} failed with {code}: {log.read_text()[-2000:]}")
        else:
            problems += [f"{run.name} differs in {what}" for what in compare_runs(run, reference)]
        n_runs += 1
        if settings.keep is None and not problems:
            shutil.rmtree(run)
    return dict(
        kills=exit_codes.get("kill", 0),
        sigterm=exit_codes.get("term", 0),
        sigint=exit_codes.get("int", 0),
        runs=n_runs,
        moments_in_a_run=len(moments),
        **{f"struck {name}": count for name, count in sorted(struck.items())},
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
    for problem in problems:
        print(problem, file=sys.stderr)
    for key, value in {
        **summary,
        "precision": settings.precision,
        "seed": settings.seed,
        "seconds": round(time.perf_counter() - begun),
    }.items():
        print(f"{key}: {value}")
    return 1 if problems else 0


if __name__ == "__main__":
    extra.run_command(main)
