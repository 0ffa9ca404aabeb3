"""All numbers of a GPU with one command: no network, under 9 minutes, nothing but what requirements.txt installs.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick       the same parts, tiny, to try the script without a GPU

1. Training steps at 480x320, base width 64 and 16: images/s, fraction of the peak that a bf16 matrix product reaches
   here, and peak memory, in bf16, fp16 and float32, compiled or not. Baseline: fp16, plain layout, read back each step.
2. train.py for 2 epochs from files: images/s and the fraction of the time spent waiting for data.
3. The same training killed (kill -9) and resumed, with --deterministic, in bf16 and in fp16 with its loss scaler:
   the weights must be bitwise identical to those of a run that nobody interrupted.
4. predict.py: photos/s from 1918x1280 files to mask files.
5. Two processes over NCCL, where there are two GPUs.

Rows go to benchmarks/results.csv. A part that fails is named, and the others go on; exits with 1 if any failed.
"""

import csv
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import common
import torch
from prediction import choose_weights, our_prediction
from safetensors.torch import load_file
from train_step import baseline_steps, our_steps

from memory import our_training

TIME_LIMIT = 480  # seconds, after which no further part is begun
FLOPS_PER_PIXEL = {64: 3 * 1.470e6, 16: 3 * 0.0925e6}  # of a training step: forward, and twice that for the gradients


@dataclass(frozen=True)
class Settings(common.Settings):
    """What to measure."""

    device: str = "cuda"  # or cpu, to try the script out


def matrix_product(device: str, n: int) -> Iterator[float]:
    """Yield FLOP/s of bf16 matrix products of n x n."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    a @ b
    synchronize()
    yield 0.0
    while True:
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        synchronize()
        yield 10 * 2 * n**3 / (time.perf_counter() - started)


def measure(n: int, way: Callable, *arguments) -> list:
    """Measure a way `n` times in a process of its own, which leaves no memory taken."""
    process = common.Way(way, *arguments)
    try:
        return [process.measure() for _ in range(n)]
    finally:
        process.close()


def measure_steps(settings: Settings) -> None:
    peak = max(measure(3, matrix_product, settings.device, 256 if settings.quick else 8192))
    print(f"peak: {peak / 1e12:.1f} TFLOP/s of a bf16 matrix product")
    width, height = (48, 32) if settings.quick else (480, 320)
    variants = [dict(precision=precision) for precision in ("bf16", "fp16", "float32")]
    variants += [dict(precision="bf16", compile="on")] if settings.device == "cuda" else []
    for base_width, batch_size in [(4, 2)] if settings.quick else [(64, 32), (16, 64)]:
        size = (base_width, batch_size, width, height)
        setting = (*size, 2 if settings.quick else 20, settings.device)
        theirs = measure(settings.pairs, baseline_steps, *setting)
        for options in variants:
            ours = measure(settings.pairs, our_steps, *setting, options)
            kind = f"{options['precision']}, {'compiled' if 'compile' in options else 'eager'}"
            name = f"{width}x{height}, base width {base_width}, batch {batch_size}, {settings.device}, {kind}"
            common.report(settings.results, "training step", name, "images/s", list(zip(theirs, ours)))
            flops = FLOPS_PER_PIXEL.get(base_width, 0.0) * width * height * max(ours)
            memory = measure(1, our_training, *size, settings.device, options)[0]
            print(f"  {flops / 1e12:.1f} TFLOP/s, {flops / peak:.1%} of the peak; {memory:.0f} MiB", flush=True)


def train(settings: Settings, name: str, *options: str, processes: int = 1, kill: bool = False) -> Path:
    """Run train.py for 2 epochs on drawn photos, killed as soon as it has saved a checkpoint if asked for; return its
    folder."""
    width, height, n = (48, 32, 16) if settings.quick else (480, 320, 640)
    photos = common.drawn_photos(settings.work_dir, n, 2 * width, 2 * height)[0].image_path.parents[1]
    folder = settings.work_dir / "gpu" / name
    script = [str(common.PROJECT_DIR / "scripts/train.py")]
    command = [sys.executable] + (
        ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    )
    command += script + ["--device", settings.device, "--epochs", "2", "--base-width", "4" if settings.quick else "64"]
    command += [
        "--image-width",
        str(width),
        "--image-height",
        str(height),
        "--batch-size",
        "4" if settings.quick else "32",
    ]
    command += ["--train-image-dir", str(photos / "train"), "--train-mask-dir", str(photos / "train_masks")]
    command += ["--checkpoint-dir", str(folder), "--prediction-dir", str(folder), *options]
    command += ["--cache-dir", str(settings.work_dir / "gpu/cache")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while kill and process.poll() is None and not (folder / "last.safetensors").exists():
        time.sleep(0.01)
    if kill:
        process.send_signal(signal.SIGKILL)
    errors = process.communicate()[1]
    if process.returncode and not kill:
        raise RuntimeError(f"train.py {name} failed: {errors.strip().splitlines()[-1]}")
    return folder


def measure_epochs(settings: Settings) -> None:
    folder = train(settings, "epochs")
    with open(folder / "history.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    print(f"epoch from files: {float(last['images_per_second']):.0f} images/s, waiting {float(last['data_wait']):.1%}")


def compare_resumed(settings: Settings) -> None:
    for precision in ("fp16",) if settings.quick else ("bf16", "fp16"):
        options = ("--deterministic", "--precision", precision, "--checkpoint-minutes", "0")
        whole = train(settings, f"whole-{precision}", *options)
        killed = train(settings, f"killed-{precision}", *options, kill=True)
        train(settings, f"killed-{precision}", *options, "--load-model")
        one, other = (load_file(folder / "best.safetensors") for folder in (whole, killed))
        different = [name for name in one if not torch.equal(one[name], other[name])]
        print(f"killed and resumed, {precision}: {len(different)} of {len(one)} tensors differ")
        if different:
            raise RuntimeError(f"a run resumed in {precision} must be bitwise identical, got {different[0]}.")


def measure_prediction(settings: Settings) -> None:
    size = (96, 64) if settings.quick else (1918, 1280)
    few = common.drawn_photos(settings.work_dir, 16, *size)
    photos = [pair.image_path for pair in common.repeat_photos(few, 4, settings.work_dir / "gpu/photos")]
    speeds = measure(settings.pairs, our_prediction, photos, choose_weights(settings), ("mask",), settings.work_dir)
    setting = f"{len(photos)} drawn photos of {size[0]}x{size[1]}, {settings.device}"
    common.report(settings.results, "prediction: masks", setting, "photos/s", [(None, speed) for speed in speeds])


def train_on_two(settings: Settings) -> None:
    if settings.device == "cuda" and torch.cuda.device_count() < 2:
        print("two processes: not measured, there is one GPU")
        return
    train(settings, "two", processes=2)
    print("two processes: a training ended well")


def main(settings: Settings) -> int:
    started, failed = time.perf_counter(), []
    if settings.device == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return 0
    shutil.rmtree(settings.work_dir / "gpu", ignore_errors=True)
    for part in (measure_steps, measure_epochs, compare_resumed, measure_prediction, train_on_two):
        if time.perf_counter() - started > TIME_LIMIT:
            print(f"{part.__name__}: not measured, since {TIME_LIMIT} s have passed")
            continue
        try:
            part(settings)
        except (RuntimeError, OSError) as error:
            failed.append(part.__name__)
            print(f"{part.__name__} failed: {error}", file=sys.stderr)
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    common.run(main, Settings)
