"""What the benchmarks share: two ways in turn, the machine in words, rows of results.csv, photos to measure on.

A way is a function that prepares and returns an iterator, whose first value ends the preparation and whose further ones
are measurements. The two ways run in processes of their own, so that memory settings, thread counts and caches of one
do not touch the other, and take turns, so that a noisy machine slows both.

    python benchmarks/common.py benchmarks/results.csv       print the latest rows as Markdown tables
"""

import contextlib
import csv
import datetime
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

PROJECT_DIR = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT_DIR / folder) for folder in ("scripts", "tests")]

from carvana.files import run_command
from carvana.machine import process_context
from tiny import draw_cars

from data import Pair, require_pairs

COLUMNS = "date commit question setting baseline ours unit ratio ratio_low ratio_high pairs".split()
COLUMNS += "hardware python torch versions command load".split()
PACKAGES = ("numpy", "pillow", "opencv-python-headless", "openvino", "albumentations")


@dataclass(frozen=True)
class Settings:
    """What all benchmarks have in common; each field is also an option of the command line."""

    pairs: int = 5  # how often each way is measured, in turn
    quick: bool = False  # tiny photos and networks: shows that the script runs, measures nothing worth keeping
    work_dir: Path = PROJECT_DIR / "data/benchmarks"  # folder for photos, caches and masks
    results: Path | None = PROJECT_DIR / "benchmarks/results.csv"  # file that gets the rows; --quick writes none

    def __post_init__(self):
        if self.pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {self.pairs}.")
        if self.quick and self.results == Settings.results:
            object.__setattr__(self, "results", None)
        self.work_dir.mkdir(parents=True, exist_ok=True)


def run(main: Callable[[Settings], None], settings: type[Settings] = Settings) -> None:
    """Run a script's main with the settings of the command line; a mistake is one sentence on stderr."""
    run_command(lambda args: main(tyro.cli(settings, args=args, description=sys.modules["__main__"].__doc__)))


# ---------------------------------------------------------------------------------------------------- the two ways

steps: Iterator[float]  # of a measuring process: the way that it goes


def rates(n: int, work: Callable, clock: Callable[[], float] = time.perf_counter) -> Iterator[float]:
    """Yield 0, which ends the preparation, then units per second of each call of `work`, which does `n`."""
    yield 0.0
    while True:
        started = clock()
        work()
        yield n / (clock() - started)


def prepare(way: Callable[..., Iterator[float]], arguments: tuple) -> None:
    global steps
    steps = way(*arguments)
    next(steps)


def measure_once() -> float:
    return next(steps)


class Way(ProcessPoolExecutor):
    """A way in a process of its own, which sleeps between the measurements."""

    def __init__(self, way: Callable[..., Iterator[float]], *arguments):
        super().__init__(1, process_context(["torch"]))
        self.submit(prepare, way, arguments).result()

    def measure(self) -> float:
        """Let it take one step; an error is raised here."""
        return self.submit(measure_once).result()


def measure(n: int, way: Callable, *arguments) -> list[float]:
    """Measure a way `n` times in a process of its own, which leaves no memory taken."""
    with Way(way, *arguments) as process:
        return [process.measure() for _ in range(n)]


def measure_pairs(
    baseline: Callable | None, ours: Callable, arguments: tuple, n_pairs: int, anew: bool = False
) -> list[tuple[float | None, float]]:
    """Measure both ways in turn; which goes first alternates.

    With `anew` each pair has new processes: what a user's process does but once must not find memory that it has warmed
    before.

    Returns:
        (baseline, ours) of each pair.
    """
    wanted = {"baseline": baseline, "ours": ours} if baseline else {"ours": ours}
    pairs = []
    while len(pairs) < n_pairs:
        with contextlib.ExitStack() as processes:
            ways = {name: processes.enter_context(Way(way, *arguments)) for name, way in wanted.items()}
            for _ in range(1 if anew else n_pairs):
                order = list(wanted) if len(pairs) % 2 == 0 else list(wanted)[::-1]
                values = {name: ways[name].measure() for name in order}
                pairs.append((values.get("baseline"), values["ours"]))
                numbers = ", ".join(f"{name} {values[name]:.4g}" for name in wanted)
                print(f"  pair {len(pairs)}: {numbers}", flush=True)
    return pairs


# ------------------------------------------------------------------------------------------------------------ rows


def report(
    results: Path | None,
    question: str,
    setting: str,
    unit: str,
    pairs: list[tuple[float | None, float]],
    less_is_better: bool = False,
) -> None:
    """Print medians, the ratio and its least and greatest value over the pairs, and append the row to a CSV file.

    Args:
        results: The file, or None to print only.
        question: The same from run to run.
        setting: Sizes and counts that the numbers depend on.
        pairs: (baseline, ours) of each pair; None for a baseline that was not measured.
        less_is_better: The numbers are seconds or bytes: the ratio is baseline to ours, not ours to baseline.
    """
    number = lambda value: f"{value:.4g}"
    versions = {found.metadata["Name"].lower(): found.version for found in importlib.metadata.distributions()}
    command = " ".join(["python", os.path.relpath(sys.argv[0], PROJECT_DIR), *sys.argv[1:]])
    row = dict(
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        commit=describe_commit(),
        question=question,
        setting=setting,
        ours=number(statistics.median(ours for _, ours in pairs)),
        unit=unit,
        pairs=len(pairs),
        hardware=describe_hardware(),
        python=platform.python_version(),
        torch=versions["torch"],
        versions=" ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions),
        load=f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "",  # above the cores: others were at work
        command=re.sub(r" --(work-dir|results)[ =]\S+", "", command),
    )
    if pairs[0][0] is None:
        print(f"{question}, {setting}: {row['ours']} {unit} (median of {len(pairs)})", flush=True)
    else:
        ratios = [baseline / ours if less_is_better else ours / baseline for baseline, ours in pairs]
        low, ratio, high = (number(each(ratios)) for each in (min, statistics.median, max))
        row |= dict(baseline=number(statistics.median(baseline for baseline, _ in pairs)))
        row |= dict(ratio=ratio, ratio_low=low, ratio_high=high)
        ways = f"baseline {row['baseline']}, ours {row['ours']} {unit}"
        print(f"{question}, {setting}: {ways}: {ratio} times ({low} to {high}, {len(pairs)} pairs)", flush=True)
    if results is not None:
        is_new = not results.exists()
        with open(results, "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)


def print_table(results: Path) -> None:
    """Print the last row of each question and setting as a Markdown table a machine."""
    with open(results, newline="") as file:
        latest = {(row["hardware"], row["question"], row["setting"]): row for row in csv.DictReader(file)}
    for hardware in dict.fromkeys(hardware for hardware, *_ in latest):
        print(f"\n{hardware}:\n\n| question | setting | baseline | ours | unit | ratio | load | commit |")
        print("|---|---|--:|--:|---|--:|--:|---|")
        for row in (row for (machine, *_), row in latest.items() if machine == hardware):
            row["baseline"] = row["baseline"] or "-"
            spread = f" ({row['ratio_low']} to {row['ratio_high']}, {row['pairs']} pairs)"
            row["ratio"] = row["ratio"] + spread if row["ratio"] else "-"
            cells = [row[key] for key in "question setting baseline ours unit ratio load commit".split()]
            print(f"| {' | '.join(cells)} |")


def describe_commit() -> str:
    """Name the commit, with a + where files that are measured differ from it."""
    git = lambda *arguments: subprocess.check_output(["git", "-C", PROJECT_DIR, *arguments], text=True).strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "scripts") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe_hardware() -> str:
    """Name the processor, its cores, which of the instructions that matter it has, and the GPU."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    facts = {key: value for key, value in re.findall(r"^(.+?)\s*: (.*)$", text, re.MULTILINE)}
    name = facts.get("model name", platform.processor() or platform.machine())
    if "cpu family" in facts:
        name += f" family {facts['cpu family']} model {facts['model']}"
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512"}
    widest = next((name for flag, name in known.items() if flag in facts.get("flags", "")), "no AVX512")
    gpu = ""
    if "torch" in sys.modules and (torch := sys.modules["torch"]).cuda.is_available():
        gpu = f"{torch.cuda.get_device_name()}, "
    return f"{gpu}{name}, {os.cpu_count()} cores, {widest}"


# ---------------------------------------------------------------------------------------------------------- photos


def studio_photos(settings: Settings, cars: int = 3) -> list[Pair]:
    """Render synthetic photos at the competition's size, 1918x1280, once: 16 a car. Tiny drawn ones with --quick."""
    if settings.quick:
        return drawn_photos(settings.work_dir, 4 * cars, 96, 64)
    import studio

    folder = settings.work_dir / f"studio_1918x1280_cars{cars}"
    if len(list(folder.glob("train_masks/*.gif"))) != 16 * cars:
        studio.make_studio(studio.Settings(output=folder, cars=cars, size="1918x1280"))
    return require_pairs(folder / "train", folder / "train_masks")


def drawn_photos(work_dir: Path, n: int, width: int, height: int) -> list[Pair]:
    """Draw ellipses on coarse noise, once, four views a car: photos where the studio's ray tracer is missing."""
    folder = work_dir / f"drawn_{width}x{height}_{n}"
    if len(list(folder.glob("train_masks/*.gif"))) != n:
        draw_cars(folder, n // 4, 4, width, height, grain=8)
    return require_pairs(folder / "train", folder / "train_masks")


if __name__ == "__main__":
    run_command(lambda args: print_table(Path(args[0]) if args else Settings.results))
