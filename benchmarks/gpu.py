"""All GPU numbers with one command: no network, under 10 minutes, nothing but what requirements.txt installs.

    python benchmarks/gpu.py

Training steps at 240x160 and 480x320, base width 64 (textbook: fp16 with autocast, plain layout; ours: bf16 where the GPU has
it, channels last, eager and compiled); whole epochs with the textbook's Pillow loader of 2 workers against ours from the cache;
the share of an epoch that waits for data; a profile; the Dice of bf16 and fp16 against float32. Rows go to
benchmarks/results.csv, the profiles to benchmarks/gpu_profile_eager.txt and gpu_profile_compiled.txt. Without a GPU it says so and
writes nothing.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import common
import textbook
import torch
from accuracy import final_dice
from carvana import machine
from train_step import FLOPS_PER_PIXEL, make_our_step, our_steps, random_batch, textbook_steps
from waiting import our_share, textbook_share

from data import CarDataset, EpochBatches, Pair, build_cache, make_loader

TIME_LIMIT = 480  # seconds, after which no further part is begun, so that the whole ends within 10 minutes


def textbook_epoch(
    pairs: list[Pair], width: int, height: int, base_width: int, batch_size: int, work_dir: Path
) -> Iterator[float]:
    """Yield images per second of an epoch, from files on disk."""
    step = textbook.make_step(base_width, "cuda")
    loader = textbook.make_loader(pairs, width, height, batch_size, augment=False)
    textbook.train_epoch(loader, step)
    yield 0.0
    while True:
        seconds, _ = textbook.train_epoch(loader, step)
        yield len(pairs) / seconds


def our_epoch(
    pairs: list[Pair], width: int, height: int, base_width: int, batch_size: int, work_dir: Path
) -> Iterator[float]:
    """Yield images per second of an epoch, from the cache."""
    device = machine.choose_device("cuda")
    torch.backends.cudnn.benchmark = True
    step = make_our_step(base_width, device, "auto", compiled=False)
    cache = build_cache(pairs, width, height, work_dir / "cache", quiet=True)
    batches = EpochBatches(list(range(len(pairs))), batch_size, shuffle=True)
    loader = make_loader(CarDataset(cache), batches, machine.choose_workers(None, device, 1), pin_memory=True)
    [step(images, coverage) for images, coverage, *_ in loader]
    yield 0.0
    epoch = 0
    while True:
        epoch += 1
        batches.start(epoch)
        started = time.perf_counter()
        losses = [step(images, coverage) for images, coverage, *_ in loader]
        torch.stack(losses).tolist()
        yield len(pairs) / (time.perf_counter() - started)


def profile_steps(base_width: int, batch_size: int, width: int, height: int, compiled: bool) -> Iterator[str]:
    """Yield a table of where three steps spend their time on the GPU."""
    device = machine.choose_device("cuda")
    torch.backends.cudnn.benchmark = True
    step = make_our_step(base_width, device, "auto", compiled)
    images, coverage = random_batch(batch_size, width, height)
    for _ in range(5):
        step(images, coverage)
    torch.cuda.synchronize()
    yield ""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            step(images, coverage)
        torch.cuda.synchronize()
    yield profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=90)


def measure_profile(*setting) -> str:
    """Give the table of `profile_steps`, made in a process of its own, which leaves no memory taken."""
    process = common.Way(profile_steps, *setting)
    try:
        return process.measure()
    finally:
        process.close()


def main() -> None:
    started = time.perf_counter()
    if not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return
    arguments = common.parse_arguments(__doc__, base_width=64)
    sizes = [(48, 32)] if arguments.quick else [(240, 160), (480, 320)]
    batch_sizes = [4] if arguments.quick else [16, 32, 64]
    base_width = 4 if arguments.quick else arguments.base_width

    def attempt(what: str, function: Callable, *parameters):
        """Call a function; None, and a line that says why, where memory, a compiler or time is missing."""
        if time.perf_counter() - started > TIME_LIMIT:
            print(f"not measured, since {TIME_LIMIT} s have passed: {what}")
            return None
        try:
            return function(*parameters)
        except RuntimeError as error:
            print(f"not measured: {what}: {str(error).splitlines()[-1]}", file=sys.stderr)
            return None

    def measure(
        question: str,
        setting: str,
        unit: str,
        textbook_way,
        our_way,
        ours: tuple,
        others: tuple,
        less_is_better: bool = False,
    ) -> float | None:
        """Measure and report one row; give our median, or None where it could not be measured."""
        pairs = attempt(
            f"{question}, {setting}", common.measure_pairs, textbook_way, our_way, others, arguments.pairs, ours
        )
        return (
            float(common.report(arguments.results, question, setting, unit, pairs, less_is_better)["ours"])
            if pairs
            else None
        )

    for width, height in sizes:
        for batch_size in batch_sizes:
            n_steps = (
                2 if arguments.quick else round(480 * 320 * 320 / (width * height * batch_size))
            )  # about a second each
            step_setting = (base_width, batch_size, width, height, n_steps, "cuda")
            for compiled in (False, True) if batch_size == batch_sizes[len(batch_sizes) // 2] else (False,):
                setting = f"{width}x{height}, base width {base_width}, batch {batch_size}, cuda, {'compiled' if compiled else 'eager'}"
                speed = measure(
                    "training step",
                    setting,
                    "images/s",
                    textbook_steps,
                    our_steps,
                    (*step_setting, 0, "auto", compiled),
                    step_setting,
                )
                if speed is not None:
                    print(
                        f"  {speed * FLOPS_PER_PIXEL[64] * width * height * (base_width / 64) ** 2 / 1e15:.4f} PFLOP/s",
                        flush=True,
                    )

    few = common.drawn_photos(arguments.work_dir, 16, *((96, 64) if arguments.quick else (1918, 1280)))
    pairs = common.repeat_photos(few, 2 if arguments.quick else 20, arguments.work_dir / "gpu_photos")
    for width, height in sizes:
        ways = (pairs, width, height, base_width, batch_sizes[0], arguments.work_dir)
        setting = f"{width}x{height}, base width {base_width}, batch {batch_sizes[0]}, cuda, {len(pairs)} native photos"
        measure("training epoch, loading included", setting, "images/s", textbook_epoch, our_epoch, ways, ways)
        ways = (pairs, width, height, base_width, arguments.work_dir)
        setting = f"{width}x{height}, base width {base_width}, batch 8, cuda"
        measure(
            "share of an epoch waiting for data",
            setting,
            "percent",
            textbook_share,
            our_share,
            ways,
            ways,
            less_is_better=True,
        )

    width, height = sizes[-1]
    for compiled in (False, True):
        kind = "compiled" if compiled else "eager"
        table = attempt(
            f"profile, {kind}", measure_profile, base_width, batch_sizes[len(batch_sizes) // 2], width, height, compiled
        )
        print(table or "")
        if table and not arguments.quick:
            path = common.PROJECT_DIR / f"benchmarks/gpu_profile_{kind}.txt"
            path.write_text(
                f"{common.describe_hardware()}, commit {common.describe_commit()}, {width}x{height}\n{table}\n"
            )

    photo_dir = common.drawn_photos(arguments.work_dir, 16 if arguments.quick else 320, 480, 320)[0].image_path.parents[
        1
    ]
    arguments.pairs = min(arguments.pairs, 2)  # a seed a pair
    for precision in ("bf16", "fp16"):
        run = (photo_dir, sizes[0], min(base_width, 16), 2 if arguments.quick else 5, arguments.work_dir)
        setting = f"float32 against {precision}, {sizes[0][0]}x{sizes[0][1]}, base width {min(base_width, 16)}, cuda"
        measure(
            "Dice at the photos' own size",
            setting,
            "Dice",
            final_dice,
            final_dice,
            (*run, precision),
            (*run, "float32"),
        )
    print(f"{time.perf_counter() - started:.0f} seconds in all")


if __name__ == "__main__":
    common.run(main)
