"""All numbers of a GPU with one command: no network, about 7 minutes, nothing but what requirements.txt installs.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick       the first four parts, tiny, to try the script without a GPU

In this order, since the time that a GPU is lent for may run out:

1. train.py killed (kill -9) and resumed, with --deterministic, in bf16 and in fp16 with its loss scaler: weights,
   average and moments must be bitwise identical to those of a run that nobody interrupted.
2. train.py for 2 epochs from files: images/s and the fraction of the time spent waiting for data.
3. predict.py: photos/s from 1918x1280 files to mask files.
4. Training steps at 480x320, base width 64 and 16: images/s, fraction of the peak that a bf16 matrix product reaches
   here, and peak memory, in bf16, fp16 and float32, compiled or not. Baseline: fp16, plain layout, read back each step.
5. train.py in two processes over NCCL, where there are two GPUs.

Rows go to benchmarks/results.csv. A part that fails is named, and the others go on; exits with 1 if any failed.
"""

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import common
import torch
from carvana.machine import process_context
from carvana.settings import to_arguments
from carvana.weights import read_tensors
from prediction import choose_weights, our_prediction
from tiny import tiny_run
from train_step import baseline_steps, our_steps

from memory import our_training

TIME_LIMIT = 480  # seconds, after which no further part is begun
FLOPS_PER_PIXEL = {64: 3 * 1.470e6, 16: 3 * 0.0925e6}  # of a training step: forward, and twice that for the gradients


@dataclass(frozen=True)
class Settings(common.Settings):
    """What to measure."""

    device: str = "cuda"  # or cpu, to try the script out


def describe_run(settings: Settings, name: str, **changes) -> dict:
    """Settings of train.py for 2 epochs on drawn photos."""
    width, height, n = (48, 32, 8) if settings.quick else (480, 320, 640)
    photos = common.drawn_photos(settings.work_dir, n, 2 * width, 2 * height)[0].image_path.parents[1]
    full = dict(base_width=64, batch_size=32, validation_share=0.1, precision="auto", workers=None)
    run = tiny_run(photos, settings.work_dir / "gpu" / name, image_width=width, image_height=height)
    run |= dict(device=settings.device, cache_dir=settings.work_dir / "gpu/cache")
    return run | ({} if settings.quick else full) | changes


def become_training(changes: dict, log: Path) -> None:
    import train

    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    train.train(train.Config(**changes))


def train(settings: Settings, name: str, kill: bool = False, **changes) -> Path:
    """Train in a new process, which is killed as soon as it has saved a checkpoint if asked for; return its folder."""
    run, log = describe_run(settings, name, **changes), settings.work_dir / "gpu" / f"{name}.log"
    started = time.perf_counter()
    process = process_context().Process(target=become_training, args=(run, log))
    process.start()
    while kill and process.is_alive() and not (run["checkpoint_dir"] / "last.safetensors").exists():
        process.join(0.01)
    if kill:
        process.kill()
    process.join()
    if process.exitcode and not kill:
        raise RuntimeError(f"the training {name} failed: {log.read_text().strip().splitlines()[-1]}")
    print(f"  training {name}: {time.perf_counter() - started:.0f} s", flush=True)
    return run["checkpoint_dir"]


def compare_resumed(settings: Settings) -> None:
    for precision in ("fp16",) if settings.quick else ("bf16", "fp16"):
        options = dict(deterministic=True, precision=precision, checkpoint_minutes=0)
        options |= {} if settings.quick else dict(base_width=16, limit=160, workers=2)
        whole = train(settings, f"whole-{precision}", **options)
        killed = train(settings, f"killed-{precision}", kill=True, **options)
        train(settings, f"killed-{precision}", load_model=True, **options)
        one, other = (read_tensors(folder / "last.safetensors")[0] for folder in (whole, killed))
        different = [name for name in one if not torch.equal(one[name], other[name])]
        print(f"killed and resumed, {precision}: {len(different)} of {len(one)} tensors differ")
        if different:
            raise RuntimeError(f"a run resumed in {precision} must be bitwise identical, got {different[0]}.")


def measure_epochs(settings: Settings) -> None:
    with open(train(settings, "epochs") / "history.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    print(f"epoch from files: {float(last['images_per_second']):.0f} images/s, waiting {float(last['data_wait']):.1%}")


def matrix_product(device: str, n: int) -> Iterator[float]:
    """Measure FLOP/s of bf16 matrix products of n x n."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))

    def work() -> None:
        for _ in range(10):
            product = a @ b
        product[0, 0].item()  # waits for the device

    work()
    return common.rates(10 * 2 * n**3, work)


def measure_steps(settings: Settings) -> None:
    peak = max(common.measure(3, matrix_product, settings.device, 256 if settings.quick else 8192))
    print(f"peak: {peak / 1e12:.1f} TFLOP/s of a bf16 matrix product")
    width, height = (48, 32) if settings.quick else (480, 320)
    variants = [dict(precision=precision) for precision in ("bf16", "fp16", "float32")]
    variants = variants[:1] if settings.quick else [*variants, dict(precision="bf16", compile="on")]
    for base_width, batch_size in [(4, 2)] if settings.quick else [(64, 32), (16, 64)]:
        size = (base_width, batch_size, width, height)
        setting = (*size, 2 if settings.quick else 20, settings.device)
        theirs = common.measure(settings.pairs, baseline_steps, *setting)
        for options in variants:
            ours = common.measure(settings.pairs, our_steps, *setting, options)
            kind = f"{options['precision']}, {'compiled' if 'compile' in options else 'eager'}"
            name = f"{width}x{height}, base width {base_width}, batch {batch_size}, {settings.device}, {kind}"
            common.report(settings.results, "training step", name, "images/s", list(zip(theirs, ours)))
            flops = FLOPS_PER_PIXEL.get(base_width, 0.0) * width * height * max(ours)
            memory = common.measure(1, our_training, *size, settings.device, options)[0]
            print(f"  {flops / 1e12:.1f} TFLOP/s, {flops / peak:.1%} of the peak; {memory:.0f} MiB", flush=True)


def measure_prediction(settings: Settings) -> None:
    n, width, height = (8, 96, 64) if settings.quick else (64, 1918, 1280)
    photos = [pair.image_path for pair in common.drawn_photos(settings.work_dir, n, width, height)]
    ways = (photos, choose_weights(settings), ("mask",), settings.work_dir)
    speeds = common.measure_pairs(None, our_prediction, ways, settings.pairs)
    setting = f"{n} drawn photos of {width}x{height}, {settings.device}"
    common.report(settings.results, "prediction: masks", setting, "photos/s", speeds)


def train_on_two(settings: Settings) -> None:
    if torch.cuda.device_count() < 2:
        print("two processes: not measured, there are no two GPUs")
        return
    script = [str(common.PROJECT_DIR / "scripts/train.py"), *to_arguments(describe_run(settings, "two"))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    done = subprocess.run([*launcher, *script], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a training in two processes failed: {done.stderr.strip().splitlines()[-1]}")
    print("two processes: a training ended well")


def main(settings: Settings) -> int:
    started, failed = time.perf_counter(), []
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return 0
    shutil.rmtree(settings.work_dir / "gpu", ignore_errors=True)
    (settings.work_dir / "gpu").mkdir()
    for part in (compare_resumed, measure_epochs, measure_prediction, measure_steps, train_on_two):
        if time.perf_counter() - started > TIME_LIMIT:
            print(f"{part.__name__}: not measured, since {TIME_LIMIT} s have passed")
            continue
        try:
            part(settings)
        except (RuntimeError, OSError, ValueError) as error:
            failed.append(part.__name__)
            print(f"{part.__name__} failed: {error}", file=sys.stderr)
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    common.run(main, Settings)
