"""The machine that a training runs on: its device, precision, memory and processes, and signals from outside."""

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence

import torch
import torch.distributed as dist


def choose_device(name: str) -> torch.device:
    """Choose the device; with torchrun, each process its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device must be one that this machine has, got {name}. Use --device cpu.")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
        torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Choose the type that convolutions compute in; weights and losses stay in float32.

    bf16 needs a GPU of compute capability 8.0 or a CPU with AMX or AVX512-BF16: elsewhere it is emulated, and slow.
    """
    if name != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return torch.bfloat16
    return torch.float32


def choose_compile(name: str, device: torch.device, n_steps: int, world_size: int) -> bool:
    """Compile where it pays: compiling takes about as long as a few hundred steps, and gains nothing on a CPU.

    Together with several processes it was never tried, so that it must be asked for.
    """
    if name == "auto":
        from torch.utils._triton import has_triton

        return device.type == "cuda" and world_size == 1 and n_steps >= 2000 and has_triton()
    return name == "on"


def choose_workers(workers: int | None, device: torch.device, world_size: int) -> int:
    """A GPU wants its data prepared by other processes; on a CPU they would take the network's cores."""
    if workers is not None:
        return workers
    return 0 if device.type == "cpu" else min(8, max(1, (os.cpu_count() or 2) // world_size - 1))


def keep_memory() -> None:
    """Let the process keep and reuse large blocks of memory instead of returning them to Linux after each operation.

    On a CPU the kernel otherwise spends a third of a training step on clearing pages. Huge pages need the variable set
    before PyTorch's first tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_arena_max, 1)  # the arenas of further threads are returned whatever the two settings above say


def peak_memory_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource  # not on Windows
    except ModuleNotFoundError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


# What a training imports; torch._dynamo is imported by PyTorch's optimizers.
TRAINING_PACKAGES = ("torch._dynamo", "albumentations", "matplotlib.pyplot")


def process_context(packages: Sequence[str] = TRAINING_PACKAGES) -> multiprocessing.context.BaseContext:
    """Choose how new processes start: on Linux as copies of one that has imported `packages` and done nothing else, which saves each of them
    some seconds; elsewhere, where that is not safe or not possible, from nothing."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(packages))
    return context


class StopRequest:
    """Turn SIGTERM and Ctrl-C, inside `with`, into an orderly end.

    While `saves` is True the first signal is a wish to stop after this step. At other times there is nothing to save, and
    it leaves at once. A second signal always ends the process at once.
    """

    def __init__(self):
        self.signal, self.saves = 0, False
        self.handlers_before = {}

    def __enter__(self) -> "StopRequest":
        # Python lets only the main thread do this: elsewhere signals do what they did before.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.handlers_before[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame) -> None:
        self.signal = number
        for each in self.handlers_before:
            signal.signal(each, signal.SIG_DFL)
        if not self.saves:
            sys.exit(128 + number)

    def wanted(self, device: torch.device, world_size: int) -> bool:
        """Tell whether any process was asked to stop."""
        if world_size == 1:
            return bool(self.signal)
        flag = torch.tensor(self.signal, device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        self.signal = int(flag)
        return bool(self.signal)
