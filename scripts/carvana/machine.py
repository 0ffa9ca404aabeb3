"""The machine that a training runs on: its device, precision, memory and processes, and signals from outside."""

import contextlib
import ctypes
import datetime
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._triton import has_triton


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
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


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


def choose_compile(name: str, device: torch.device, n_steps: int) -> bool:
    """Compile where it pays: compiling takes about as long as a few hundred steps, and gains nothing on a CPU.

    Together with several processes it was never tried, so that it must be asked for.
    """
    if name != "auto":
        return name == "on"
    return device.type == "cuda" and not dist.is_initialized() and n_steps >= 2000 and has_triton()


def choose_workers(workers: int | None, device: torch.device, world_size: int) -> int:
    """A GPU wants its data prepared by other processes; on a CPU they would take the network's cores."""
    if workers is not None:
        return workers
    return 0 if device.type == "cpu" else min(8, max(1, (os.cpu_count() or 2) // world_size - 1))


def prepare(device: torch.device, deterministic: bool) -> None:
    """Set what holds for a whole training process."""
    if device.type == "cpu":
        keep_memory()
    cv2.setNumThreads(1)  # one sample at a time: more threads would only wait on each other
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def keep_memory() -> None:
    """Let the process keep large blocks of memory for reuse instead of returning them to Linux after each operation.

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
    if sys.platform == "win32":
        return math.nan
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@contextlib.contextmanager
def explain_lack_of_memory(advice: str) -> Iterator[None]:
    """Turn an error for lack of memory into a sentence that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise RuntimeError(f"memory ran out. {advice}") from error
        raise


def n_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_photos(function: Callable, items: Sequence) -> list:
    """Map over photos as `predict.py` does, a photo a thread: convolutions of more threads may round differently."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_cores()) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(n_threads)


# What a training imports; torch._dynamo is imported by PyTorch's optimizers.
TRAINING_PACKAGES = ("torch._dynamo", "albumentations", "matplotlib.pyplot")


def process_context(packages: Sequence[str] = TRAINING_PACKAGES) -> multiprocessing.context.BaseContext:
    """Choose how new processes start.

    On Linux as copies of one that has imported `packages` and done nothing else, which saves each of them some seconds;
    elsewhere, where that is not safe or not possible, from nothing.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(packages))
    return context


@contextlib.contextmanager
def catch_stop() -> Iterator[list[int]]:
    """Inside, let the first SIGTERM or Ctrl-C put its number into the list that is yielded; a second ends the process.

    For one process alone: those of torchrun end when they are told to, and so does a training in another thread.
    """
    received: list[int] = []

    def receive(number, frame) -> None:
        received.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    in_main_thread = threading.current_thread() is threading.main_thread()  # others may not set handlers
    stops = (signal.SIGTERM, signal.SIGINT) if in_main_thread and "RANK" not in os.environ else ()
    before = {each: signal.signal(each, receive) for each in stops}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def join_processes(device: torch.device) -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started, and part at the end; yield this one's rank and how many they are."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        # Rank 0 alone builds the cache and validates, which may take longer than the ten minutes that are the default.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=2))
    yield rank, world_size
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def rank_0_first(rank: int) -> Iterator[None]:
    """Let the other processes wait here until rank 0 has left the block."""
    if rank > 0:
        dist.barrier()
    yield
    if rank == 0 and dist.is_initialized():
        dist.barrier()


def spread(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network so that the processes of torchrun, if there are any, learn it together."""
    if not dist.is_initialized():
        return network
    if device.type == "cuda":
        return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(network), [device.index])
    return DistributedDataParallel(network)
