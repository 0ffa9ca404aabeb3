"""What the benchmarks share: two ways in turn, the machine in words, rows of results.csv, photos to measure on.

A way is a generator function: what comes before its first `yield` is preparation, each further step measures once and
yields a number. The two ways run in processes of their own, so that memory settings, thread counts and caches of one do
not touch the other, and take turns, so that a noisy machine slows both.

    python benchmarks/common.py benchmarks/results.csv       print the latest rows as Markdown tables
"""

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageDraw

PROJECT_DIR = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT_DIR / "scripts"))

from carvana.files import run_command  # noqa: E402
from carvana.machine import process_context  # noqa: E402

from data import Pair, require_pairs  # noqa: E402

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
    baseline: Callable | None, ours: Callable, arguments: tuple, n_pairs: int, anew: bool = False
) -> list[tuple[float | None, float]]:
    """Measure both ways in turn; which goes first alternates.

    Args:
        baseline: A way, or None where there is none.
        ours: A way.
        arguments: Of both ways.
        n_pairs: How often each is measured.
        anew: Start new processes for each pair: what a user's process does but once must not find memory that it has
            warmed before.

    Returns:
        (baseline, ours) of each pair.
    """
    wanted = {"baseline": baseline, "ours": ours} if baseline else {"ours": ours}
    ways, pairs = {}, []
    try:
        for number in range(n_pairs):
            ways = ways or {name: Way(way, *arguments) for name, way in wanted.items()}
            order = list(wanted) if number % 2 == 0 else list(wanted)[::-1]
            values = {name: ways[name].measure() for name in order}
            pairs.append((values.get("baseline"), values["ours"]))
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
) -> None:
    """Print medians, the ratio and its least and greatest value over the pairs, and append the row to a CSV file.

    Args:
        results: The file, or None to print only.
        question: Name of the question, the same from run to run.
        setting: Sizes and counts that the numbers depend on.
        unit: Of the measured numbers, such as images/s.
        pairs: (baseline, ours) of each pair; None for a baseline that was not measured.
        less_is_better: The numbers are seconds or bytes: the ratio is baseline to ours, not ours to baseline.
    """
    number = lambda value: f"{value:.4g}"
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
        torch=version_of("torch"),
        versions=" ".join(f"{name} {version}" for name in PACKAGES if (version := version_of(name))),
        load=f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "",  # above the cores: others were at work
        command=re.sub(
            r" --(work-dir|results)[ =]\S+",
            "",
            " ".join(["python", os.path.relpath(sys.argv[0], PROJECT_DIR), *sys.argv[1:]]),
        ),
    )
    line = f"{question}, {setting}: "
    if pairs[0][0] is None:
        line += f"{row['ours']} {unit} (median of {len(pairs)})"
    else:
        ratios = [baseline / ours if less_is_better else ours / baseline for baseline, ours in pairs]
        row |= dict(
            baseline=number(statistics.median(baseline for baseline, _ in pairs)),
            ratio=number(statistics.median(ratios)),
            ratio_low=number(min(ratios)),
            ratio_high=number(max(ratios)),
        )
        spread = f"{row['ratio_low']} to {row['ratio_high']}, {len(pairs)} pairs"
        line += f"baseline {row['baseline']}, ours {row['ours']} {unit}: {row['ratio']} times ({spread})"
    print(line, flush=True)
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
            ratio = f"{row['ratio']} ({row['ratio_low']} to {row['ratio_high']}, {row['pairs']} pairs)"
            cells = [row["question"], row["setting"], row["baseline"] or "-", row["ours"], row["unit"]]
            print("| " + " | ".join([*cells, ratio if row["ratio"] else "-", row["load"], row["commit"]]) + " |")


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
    """Name the processor, its cores, which of the instructions that matter it has, and the GPU."""
    name, flags = platform.processor() or platform.machine(), ""
    if os.path.exists("/proc/cpuinfo"):
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        name, flags = lines.get("model name", name), lines.get("flags", "")
        if "cpu family" in lines:
            name += f" family {lines['cpu family']} model {lines.get('model', '?')}"
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512"}
    widest = next((text for flag, text in known.items() if flag in flags), "no AVX512")
    text = f"{name}, {os.cpu_count()} cores, {widest}"
    if "torch" in sys.modules and (torch := sys.modules["torch"]).cuda.is_available():
        text = f"{torch.cuda.get_device_name()}, {text}"
    return text


# ---------------------------------------------------------------------------------------------------------- photos


def studio_photos(settings: Settings, cars: int = 3) -> list[Pair]:
    """Render synthetic photos at the competition's size, 1918x1280, once: 16 a car. Tiny drawn ones with --quick."""
    if settings.quick:
        return drawn_photos(settings.work_dir, 4 * cars, 96, 64)
    from studio import make_studio

    folder = settings.work_dir / f"studio_1918x1280_cars{cars}"
    if len(list(folder.glob("train_masks/*.gif"))) != 16 * cars:
        make_studio(folder, cars, 1918, 1280)
    return require_pairs(folder / "train", folder / "train_masks")


def drawn_photos(work_dir: Path, n: int, width: int, height: int) -> list[Pair]:
    """Draw ellipses on coarse noise, in Carvana's layout, four a car: photos where the studio's ray tracer is
    missing."""
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
    """Hard-link each photo and mask under `times` names, of other cars each time, into train/ and train_masks/ of
    `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "train").mkdir(parents=True)
    (folder / "train_masks").mkdir()
    for pair in pairs:
        for time in range(times):
            name = f"{time:04x}{pair.name[4:]}"
            os.link(pair.image_path, folder / "train" / f"{name}{pair.image_path.suffix}")
            os.link(pair.mask_path, folder / "train_masks" / f"{name}_mask.gif")
    return require_pairs(folder / "train", folder / "train_masks")


if __name__ == "__main__":
    run_command(lambda args: print_table(Path(args[0]) if args else Settings.results))
