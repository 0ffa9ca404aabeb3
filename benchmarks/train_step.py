"""How fast is a training step on a CPU?

    python benchmarks/train_step.py
    python benchmarks/train_step.py --base-width 16 --width 240       one network, one size
    python benchmarks/train_step.py --threads 1                       CPU time of one core: for a machine that is busy

Textbook: float32, plain layout, loss and metric read back each step. Ours: what train.py does with its settings left alone.
Both on the same random photos, already in memory. Base width 64 takes minutes, since a textbook step at 480x320 takes half of one.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import common
import textbook
import torch
import train
from carvana import machine

FLOPS_PER_PIXEL = {
    16: 3 * 0.0925e6,
    64: 3 * 1.470e6,
}  # of a training step, by base width: forward, and twice that for the gradients


def random_batch(batch_size: int, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make photos (batch, height, width, 3) and coverage (batch, height, width), uint8."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (batch_size, height, width, 3), dtype=torch.uint8)
    coverage = torch.zeros(batch_size, height, width, dtype=torch.uint8)
    coverage[:, height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return images, coverage


def limit_threads(threads: int) -> Callable[[], float]:
    """Set the number of threads, 0 for as many as cores, and give the clock that fits: one thread's CPU time, or time that passes."""
    if threads:
        torch.set_num_threads(threads)
    return time.process_time if threads == 1 else time.perf_counter


def textbook_steps(
    base_width: int, batch_size: int, width: int, height: int, n_steps: int, device: str = "cpu", threads: int = 0
) -> Iterator[float]:
    """Yield images per second of `n_steps` textbook steps; of the processor's time if there is one thread alone."""
    clock = limit_threads(threads)
    step = textbook.make_step(base_width, device)
    images, coverage = random_batch(batch_size, width, height)
    images = images.permute(0, 3, 1, 2).float().div(255).contiguous()
    masks = (coverage > 127).float().unsqueeze(1)
    step(images, masks), step(images, masks)  # memory and kernels settle
    yield 0.0
    while True:
        started = clock()
        for _ in range(n_steps):
            step(images, masks)
        yield n_steps * batch_size / (clock() - started)


def our_steps(
    base_width: int,
    batch_size: int,
    width: int,
    height: int,
    n_steps: int,
    device: str = "cpu",
    threads: int = 0,
    precision: str = "auto",
    compiled: bool = False,
) -> Iterator[float]:
    """Yield images per second of `n_steps` steps as in train.py; of the processor's time if there is one thread alone."""
    clock = limit_threads(threads)
    device = machine.choose_device(device)
    if device.type == "cpu":
        machine.keep_memory()
    torch.backends.cudnn.benchmark = True
    step = make_our_step(base_width, device, precision, compiled)
    images, coverage = random_batch(batch_size, width, height)
    if device.type == "cuda":
        images, coverage = images.pin_memory(), coverage.pin_memory()
    for _ in range(3):
        step(images, coverage)
    yield 0.0
    while True:
        started = clock()
        losses = [step(images, coverage) for _ in range(n_steps)]
        torch.stack(losses).tolist()  # read once, which waits for the device
        yield n_steps * batch_size / (clock() - started)


def make_our_step(base_width: int, device: torch.device, precision: str, compiled: bool):
    """Make a function that trains on one batch as train.py does, and returns the loss still on the device."""
    compile = "on" if compiled else "off"
    config = train.Config(base_width=base_width, precision=precision, compile=compile, learning_rate=1e-4, warmup=0.0)
    run = train.start_run(config, device, n_batches=1000)
    run.network.train()
    return lambda images, coverage: train.train_step(run, (images, coverage, torch.full_like(coverage, 255)))


def convolution_ceiling(precision: torch.dtype) -> Iterator[float]:
    """Yield TFLOP/s of one large convolution: what this machine can do in this type at the best."""
    machine.keep_memory()
    images = torch.randn(8, 256, 64, 64, dtype=precision).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, dtype=precision).contiguous(memory_format=torch.channels_last)
    torch.conv2d(images, weight, padding=1)
    yield 0.0
    while True:
        started = time.perf_counter()
        for _ in range(4):
            torch.conv2d(images, weight, padding=1)
        yield 4 * 2 * 9 * 256 * 256 * 8 * 64 * 64 / (time.perf_counter() - started) / 1e12


def measure_ceiling(arguments) -> None:
    pairs = common.measure_pairs(
        convolution_ceiling, convolution_ceiling, (torch.float32,), arguments.pairs, (torch.bfloat16,)
    )
    common.report(
        arguments.results, "ceiling: one convolution", "float32 against bf16, 256 channels, CPU", "TFLOP/s", pairs
    )


def main() -> None:
    arguments = common.parse_arguments(__doc__, batch_size=8, base_width=0, width=0, threads=0)
    settings = [
        (16, 240, 160, 8),
        (64, 240, 160, 1),
        (16, 480, 320, 2),
        (64, 480, 320, 1),
    ]  # base width, width, height, steps a measurement
    if arguments.quick:
        settings = [(4, 48, 32, 1)]
    elif not arguments.base_width and not arguments.width:
        measure_ceiling(arguments)
    for base_width, width, height, n_steps in settings:
        if arguments.base_width not in (0, base_width) or arguments.width not in (0, width):
            continue
        ways = (base_width, arguments.batch_size, width, height, n_steps, "cpu", arguments.threads)
        pairs = common.measure_pairs(textbook_steps, our_steps, ways, arguments.pairs)
        cores = "one core, CPU time" if arguments.threads == 1 else "CPU"
        setting = f"{width}x{height}, base width {base_width}, batch {arguments.batch_size}, {cores}"
        common.report(arguments.results, "training step", setting, "images/s", pairs)
        if base_width in FLOPS_PER_PIXEL:
            flops = FLOPS_PER_PIXEL[base_width] * width * height
            print(
                "  TFLOP/s: "
                + ", ".join(
                    f"{name} {statistics.median(column) * flops / 1e12:.3f}"
                    for name, column in zip(("textbook", "ours"), zip(*pairs))
                )
            )


if __name__ == "__main__":
    common.run(main)
