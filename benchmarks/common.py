"""What the benchmarks share: the two ways in turn, the machine in words, rows of results.csv, photos to measure on.

A way is a generator function: what comes before its first `yield` is preparation, each further step measures once and
yields a number. The two ways live in processes of their own, so that memory settings, thread counts and caches of one do
not touch the other, and take turns, so that a noisy machine slows both.
"""

import argparse
import csv
import datetime
import importlib.metadata
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PROJECT_DIR = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT_DIR / "scripts"))

from carvana.machine import process_context  # noqa: E402

from data import Pair, require_pairs  # noqa: E402

RESULTS_PATH = PROJECT_DIR / "benchmarks/results.csv"
COLUMNS = (
    "date",
    "commit",
    "question",
    "setting",
    "textbook",
    "ours",
    "unit",
    "ratio",
    "ratio_low",
    "ratio_high",
    "pairs",
    "hardware",
    "python",
    "torch",
    "versions",
    "command",
    "load",
)
PACKAGES = ("numpy", "pillow", "opencv-python-headless", "opencv-python", "albumentations")


def parse_arguments(description: str, **defaults: int | None) -> argparse.Namespace:
    """Read the command line that all benchmarks share.

    Args:
        description: The script's docstring.
        defaults: Further options of one script and their defaults: whole numbers, or None for a path.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="how often each way is measured, in turn")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny photos and networks: shows that the script runs, measures nothing worth keeping",
    )
    parser.add_argument(
        "--work-dir", type=Path, default=PROJECT_DIR / "data/benchmarks", help="folder for photos, caches and masks"
    )
    parser.add_argument(
        "--results", type=Path, help="CSV file that gets the rows; by default benchmarks/results.csv, with --quick none"
    )
    for name, default in defaults.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=Path if default is None else int,
            default=default,
            help=f"default {default}",
        )
    arguments = parser.parse_args()
    if arguments.pairs < 1:
        parser.error(f"pairs must be at least 1, got {arguments.pairs}")
    if arguments.results is None and not arguments.quick:
        arguments.results = RESULTS_PATH
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    return arguments


def run(main: Callable[[], None]) -> None:
    """Run a script's main; a mistake is one sentence on stderr."""
    from carvana.files import run_command

    run_command(lambda arguments: main())


# ---------------------------------------------------------------------------------------------------- the two ways


class Way:
    """A generator function in a process of its own."""

    def __init__(self, way: Callable[..., Iterator[float]], *arguments):
        context = process_context(["torch"])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, way, arguments), daemon=False)
        self.process.start()
        theirs.close()
        self.measure()  # wait for the preparation

    def measure(self) -> float:
        """Let it take one step; the process sleeps in between."""
        self.pipe.send("measure")
        try:
            failed, value = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"a measuring process ended with exit code {self.process.exitcode}.") from None
        if failed:
            raise RuntimeError(f"a measuring process failed:\n{value}")
        return value

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


def serve(pipe, way: Callable, arguments: tuple) -> None:
    try:
        steps = way(*arguments)
        while True:
            pipe.recv()
            pipe.send((False, next(steps)))
    except EOFError:
        pass
    except Exception:
        pipe.send((True, traceback.format_exc()))


def measure_pairs(
    textbook: Callable | None,
    ours: Callable,
    arguments: tuple,
    n_pairs: int,
    our_arguments: tuple | None = None,
    anew: bool = False,
) -> list[tuple[float | None, float]]:
    """Measure both ways in turn; which goes first alternates.

    Args:
        textbook: A way, or None where there is no such thing.
        ours: A way.
        arguments: Of both ways.
        n_pairs: How often each is measured.
        our_arguments: Of our way, where they differ.
        anew: Start new processes for each pair: what a user's process does but once must not find memory that it has warmed before.

    Returns:
        A (textbook, ours) for each pair.
    """
    wanted = {"textbook": (textbook, *arguments)} if textbook else {}
    wanted["ours"] = (ours, *(arguments if our_arguments is None else our_arguments))
    ways, pairs = {}, []
    try:
        for number in range(n_pairs):
            if not ways:
                for name, way_and_arguments in wanted.items():
                    ways[name] = Way(*way_and_arguments)
            order = list(wanted) if number % 2 == 0 else list(wanted)[::-1]
            values = {name: ways[name].measure() for name in order}
            pairs.append((values.get("textbook"), values["ours"]))
            print(f"  pair {number + 1}: " + ", ".join(f"{name} {values[name]:.4g}" for name in wanted), flush=True)
            while anew and ways:
                ways.popitem()[1].close()
        return pairs
    finally:
        for way in ways.values():
            way.close()


# ------------------------------------------------------------------------------------------------------------ rows


def report(
    results: Path | None,
    question: str,
    setting: str,
    unit: str,
    pairs: list[tuple[float | None, float]],
    less_is_better: bool = False,
) -> dict:
    """Print medians, the ratio and its least and greatest value over the pairs, and append the row to a CSV file.

    Args:
        results: The file, or None to print only.
        question: Name of the question, the same from run to run.
        setting: Sizes and counts that the numbers depend on.
        unit: Of the measured numbers, such as images/s.
        pairs: (textbook, ours) of each pair; None for a textbook that was not measured.
        less_is_better: The numbers are seconds or bytes: the ratio is textbook to ours, not ours to textbook.
    """
    ours = statistics.median(pair[1] for pair in pairs)
    textbook, ratios = None, []
    if pairs[0][0] is not None:
        textbook = statistics.median(pair[0] for pair in pairs)
        ratios = [(pair[0] / pair[1]) if less_is_better else (pair[1] / pair[0]) for pair in pairs]
    number = lambda value: "" if value is None else f"{value:.{7 if unit == 'Dice' else 4}g}"
    row = dict(
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        commit=describe_commit(),
        question=question,
        setting=setting,
        textbook=number(textbook),
        ours=number(ours),
        unit=unit,
        ratio=number(statistics.median(ratios) if ratios else None),
        ratio_low=number(min(ratios, default=None)),
        ratio_high=number(max(ratios, default=None)),
        pairs=len(pairs),
        hardware=describe_hardware(),
        python=platform.python_version(),
        torch=version_of("torch"),
        versions=" ".join(f"{name} {version}" for name in PACKAGES if (version := version_of(name))),
        load=f"{os.getloadavg()[0]:.1f}"
        if hasattr(os, "getloadavg")
        else "",  # more than the cores: others were at work too
        command=re.sub(
            r" --(work-dir|results)[ =]\S+",
            "",
            " ".join(["python", os.path.relpath(sys.argv[0], PROJECT_DIR), *sys.argv[1:]]),
        ),
    )
    line = f"{question}, {setting}: "
    if ratios:
        spread = f"{row['ratio_low']} to {row['ratio_high']}, {len(pairs)} pairs"
        line += f"textbook {row['textbook']}, ours {row['ours']} {unit}: {row['ratio']} times ({spread})"
    else:
        line += f"{row['ours']} {unit} (median of {len(pairs)})"
    print(line, flush=True)
    if results is not None:
        append_row(results, row)
    return row


def append_row(path: Path, row: dict) -> None:
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def describe_commit() -> str:
    """Name the commit, with a + where files that are measured differ from it."""
    git = lambda *arguments: subprocess.run(
        ["git", "-C", PROJECT_DIR, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "scripts") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def describe_hardware() -> str:
    """Say which processor, how many cores, which of the instructions that matter, and which GPU."""
    name, flags = platform.processor() or platform.machine(), ""
    if os.path.exists("/proc/cpuinfo"):
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        name = lines.get("model name", name)
        if "cpu family" in lines:
            name += f" family {lines['cpu family']} model {lines.get('model', '?')}"
        flags = lines.get("flags", "")
    wide = (
        "AMX"
        if "amx_bf16" in flags
        else "AVX512-BF16"
        if "avx512_bf16" in flags
        else "AVX512"
        if "avx512f" in flags
        else "no AVX512"
    )
    text = f"{name}, {os.cpu_count()} cores, {wide}"
    if "torch" in sys.modules and (torch := sys.modules["torch"]).cuda.is_available():
        text = f"{torch.cuda.get_device_name()}, {text}"
    return text


# ---------------------------------------------------------------------------------------------------------- photos


def studio_photos(work_dir: Path, cars: int, quick: bool = False) -> list[Pair]:
    """Make studio photos at the competition's size, 1918x1280, once: 16 a car. Tiny drawn ones to try a script out."""
    if quick:
        return drawn_photos(work_dir, 4 * cars, 96, 64)
    from studio import make_studio

    folder = work_dir / f"studio_1918x1280_cars{cars}"
    if len(list(folder.glob("train_masks/*.gif"))) != 16 * cars:
        make_studio(folder, cars, 1918, 1280)
    return require_pairs(folder / "train", folder / "train_masks")


def drawn_photos(work_dir: Path, n: int, width: int, height: int) -> list[Pair]:
    """Draw ellipses on coarse noise, in Carvana's layout, four a car: photos where the studio's ray tracer is missing."""
    folder = work_dir / f"drawn_{width}x{height}_{n}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "train").mkdir(parents=True)
        (partial / "train_masks").mkdir()
        rng = np.random.default_rng(0)
        for number in range(n):
            name = f"{number // 4 + 1:012x}_{number % 4 + 1:02d}"
            noise = Image.fromarray(rng.integers(80, 140, (height // 8, width // 8, 3), np.uint8))
            photo = noise.resize((width, height), Image.BICUBIC)
            mask = Image.new("P", (width, height))
            mask.putpalette([0, 0, 0, 255, 255, 255])
            left, top = rng.integers(width // 6, width // 3), rng.integers(height // 4, height // 3)
            ellipse = (left, top, width - left + number % 4, height - top)
            ImageDraw.Draw(photo).ellipse(ellipse, tuple(rng.integers(150, 255, 3).tolist()))
            ImageDraw.Draw(mask).ellipse(ellipse, 1)
            photo.save(partial / "train" / f"{name}.jpg", quality=90)
            mask.save(partial / "train_masks" / f"{name}_mask.gif")
        partial.rename(folder)
    return require_pairs(folder / "train", folder / "train_masks")


def repeat_photos(pairs: list[Pair], times: int, folder: Path) -> list[Pair]:
    """Give each photo and mask `times` names, of other cars each time, without taking more of the disk.

    Returns:
        The pairs in `folder`, which gets train/ and train_masks/.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "train").mkdir(parents=True)
    (folder / "train_masks").mkdir()
    for pair in pairs:
        for time in range(times):
            name = f"{time:04x}{pair.name[4:]}"
            os.link(pair.image_path, folder / "train" / f"{name}{pair.image_path.suffix}")
            os.link(pair.mask_path, folder / "train_masks" / f"{name}_mask.gif")
    return require_pairs(folder / "train", folder / "train_masks")
