"""Train a U-Net on car photos: edit the settings below, or give them on the command line.

    python scripts/train.py --epochs 3
    python scripts/train.py --load-model                            goes on where the last run stopped
    torchrun --nproc-per-node 2 scripts/train.py                    several GPUs

A run leaves in checkpoint_dir: best.pt, best.safetensors (to share), last.pt, history.csv, settings.json, score_card.json, scores.csv; in
prediction_dir: pictures.
"""

import contextlib
import dataclasses
import datetime
import gc
import itertools
import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import extra
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from carvana.files import lock_folder
from carvana.machine import (
    StopRequest,
    choose_compile,
    choose_device,
    choose_precision,
    choose_workers,
    device_name,
    is_out_of_memory,
    keep_memory,
    peak_memory_mib,
)
from torch import Tensor, nn
from tqdm import tqdm
from unet import UNet, check_image_size, check_settings

from data import (
    PROJECT_DIR,
    Cache,
    CarDataset,
    EpochBatches,
    GroupBy,
    build_cache,
    colour_statistics,
    limit_cars,
    make_loader,
    require_pairs,
    split_cars,
)


@dataclass(frozen=True)
class Config:
    """The settings of a run."""

    train_image_dir: Path = PROJECT_DIR / "data/train"  # photos to learn from
    train_mask_dir: Path = PROJECT_DIR / "data/train_masks"  # their masks
    test_image_dir: Path | None = None  # photos to validate on; None sets some training cars aside
    test_mask_dir: Path | None = None  # their masks
    validation_share: float = 0.1  # share of the cars set aside when there are no test folders
    group_by: GroupBy = (
        "name"  # what the split keeps together: cars named as Carvana's, a folder, or prefix (film1_0001, film1_0002)
    )
    car_value: tuple[
        str, ...
    ] = ()  # values of the car in the masks: class numbers (1) or colours (#800000); () the brighter of two
    unknown_value: tuple[str, ...] = ()  # values of mask pixels of which nothing is known (128): no loss, no score
    limit: int | None = None  # use at most so many photos, whole cars; for a quick try
    image_width: int = (
        480  # training size in pixels, a multiple of 2**depth; half the size is four times as fast, less exact
    )
    image_height: int = 320  # likewise; photos are resized to it, scores are taken at the photos' own size
    base_width: int = 64  # channels of the first convolution; 16 for a CPU: 12 times as fast, slightly less exact
    depth: int = 4  # steps down, each halving the picture; 5 sees twice as far for a quarter more time and four times the weights
    kernel_size: int = 3  # side of the convolutions, odd; 5 costs 2.7 times as much
    batch_size: int = 8  # photos a step, over all processes; lower it when memory runs out
    epochs: int = 10  # how often each photo is seen
    learning_rate: float = 1e-3  # peak of the schedule; lower it when the loss jumps or becomes NaN
    weight_decay: float = 0.01  # AdamW's
    warmup: float = 0.05  # share of all steps in which the learning rate rises to its peak; it ends at zero
    ema_decay: float = 0.998  # moving average of the weights, which is what gets validated and saved; 0 turns it off
    augment: bool = True  # flip, move and recolour the training photos
    scale_range: tuple[float, float] = (0.9, 1.1)  # least and largest factor by which augmentation resizes a photo
    background: float = (
        0.1  # share of the training photos that get letters, and half of them another wall, behind the car
    )
    seed: int = 0  # weights, split, order and augmentation follow from it
    load_model: bool = False  # go on from the last checkpoint in checkpoint_dir
    start_from: Path | None = None  # begin with the weights of this file (.safetensors or .pt) instead of random ones
    precision: Literal["auto", "bf16", "fp16", "float32"] = "auto"  # auto: the fastest that the device really has
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on a GPU, for runs long enough to repay it
    deterministic: bool = False  # equal bits on a GPU, slower; a CPU gives equal bits anyway
    workers: int | None = None  # processes that load data; None follows the machine
    device: str = "auto"  # cuda, mps, cpu, or auto for the first of these that is there
    checkpoint_minutes: float = 10  # minutes between checkpoints within an epoch; each epoch's end saves too
    checkpoint_dir: Path = PROJECT_DIR / "checkpoints"  # gets checkpoints, history and scores
    prediction_dir: Path = PROJECT_DIR / "predictions"  # gets pictures
    cache_dir: Path = PROJECT_DIR / "data/cache"  # decoded photos; may be deleted at any time
    mirror_dir: Path | None = None  # a second place for checkpoints, such as a mounted Drive

    def __post_init__(self):
        check_settings(3, 1, self.base_width, self.depth, self.kernel_size)
        check_image_size(self.image_height, self.image_width, 2**self.depth)
        for name, low, high in (
            ("batch_size", 1, 4096),
            ("epochs", 1, 100_000),
            ("learning_rate", 1e-9, 10),
            ("weight_decay", 0, 10),
            ("warmup", 0, 1),
            ("ema_decay", 0, 0.999999),
            ("background", 0, 1),
            ("validation_share", 0, 0.9),
            ("limit", 1, 10**9),
            ("workers", 0, 256),
            ("seed", 0, 2**31),
            ("checkpoint_minutes", 0, 10**6),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must be from {low} to {high}, got {value}.")
        if (self.test_image_dir is None) != (self.test_mask_dir is None):
            raise ValueError("test_image_dir and test_mask_dir must be given together, got one of them.")


# On --load-model these must be as they were, or the checkpoint's place in the run would mean nothing ...
FIXED_ON_RESUME = (
    "base_width",
    "depth",
    "kernel_size",
    "image_width",
    "image_height",
    "batch_size",
    "seed",
    "limit",
    "validation_share",
)
# ... and these do not touch the result; all others may change, and the change is said.
FREE_ON_RESUME = (
    "load_model",
    "start_from",
    "workers",
    "device",
    "checkpoint_minutes",
    "checkpoint_dir",
    "prediction_dir",
    "cache_dir",
    "mirror_dir",
    "train_image_dir",
    "train_mask_dir",
    "test_image_dir",
    "test_mask_dir",
)


HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "val_loss",
    "val_dice",
    "learning_rate",
    "images_per_second",
    "data_wait",
    "seconds",
)
HISTORY_HEADING = " epoch  train loss    val loss  val dice        lr   img/s   wait  seconds"
HISTORY_LINE = "{epoch:>6}{train_loss:>12.5f}{val_loss:>12.5f}{val_dice:>10.5f}{learning_rate:>10.2e}{images_per_second:>8.1f}{data_wait:>7.1%}{seconds:>9.1f}"
ADVICE_ON_NAN = (
    "Lower learning_rate, or use --precision float32; --load-model goes on from the last checkpoint, which is sound."
)


@dataclass
class Progress:
    """Where a run stands: all that a resumed run needs beside weights and optimizer."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches seen of the next one
    loss_sum: float = 0.0  # over the photos of these batches
    n_seen: int = 0
    seconds: float = 0.0  # of the current epoch, so far
    wait_seconds: float = 0.0  # of these, spent waiting for data
    micro_batches: int = 1  # parts into which a batch is cut since memory ran out
    best_dice: float = -1.0
    history: list[dict] = field(default_factory=list)  # a row of HISTORY_COLUMNS for each epoch

    def __post_init__(self):
        counts = dict(epoch=self.epoch, batch=self.batch, n_seen=self.n_seen, micro_batches=self.micro_batches)
        for name, value in counts.items():
            if type(value) is not int or not (name == "micro_batches") <= value <= 10**9:
                raise TypeError(f"{name} must be a count, got {value!r}")
        numbers = [self.loss_sum, self.seconds, self.wait_seconds, self.best_dice]
        for row in self.history:
            if set(row) != set(HISTORY_COLUMNS):
                raise TypeError(f"history must have the columns {', '.join(HISTORY_COLUMNS)}")
            numbers += row.values()
        if len(self.history) != self.epoch or not all(
            type(value) in (int, float) and math.isfinite(value) for value in numbers
        ):
            raise TypeError("the history must have a row of numbers for each epoch")


# --------------------------------------------------------------------------------------------------------- the parts


def segmentation_loss(logits: Tensor, coverage: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice, in float32, each the mean over the images of a batch.

    Both are least where the probability equals the coverage, also where that lies between 0 and 1; for soft Dice this
    takes squares in the denominator (Milletari et al., V-Net, 2016).

    Args:
        logits: (batch, 1, height, width).
        coverage: (batch, 1, height, width), float32 in [0, 1].
    """
    logits = logits.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, coverage)
    probability = logits.sigmoid()
    overlap = (probability * coverage).sum(dim=(1, 2, 3))
    area = (probability.square() + coverage.square()).sum(dim=(1, 2, 3))
    return cross_entropy + 1 - ((2 * overlap + 1) / (area + 1)).mean()


def learning_rate_at(step: int, n_steps: int, config: Config) -> float:
    """Rise linearly to the peak, then fall along a cosine; after the last step it would be zero."""
    n_warmup = max(1, round(config.warmup * n_steps))
    if step < n_warmup:
        return config.learning_rate * (step + 1) / n_warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the average of weights and batch norm statistics towards the network's; quickly at first."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    pairs = zip(average.state_dict().values(), network.state_dict().values())
    ours, theirs = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
    torch._foreach_lerp_(ours, theirs, weight)


def to_device(images: Tensor, coverage: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Move a batch as uint8, a quarter of the bytes, and give it the network's layout.

    Returns:
        Photos (batch, 3, height, width), uint8, channels last; coverage (batch, 1, height, width), float32 in [0, 1].
    """
    images = images.to(device, non_blocking=True).permute(0, 3, 1, 2)  # channels last without moving a byte
    coverage = coverage.to(device, non_blocking=True).unsqueeze(1).float() / 255
    return images, coverage


def prepare_data(config: Config, quiet: bool) -> tuple[Cache, list[int], list[int]]:
    """Find, split and cache the photos.

    Returns:
        The cache, and its rows to train on and to validate on.
    """
    pairs = limit_cars(require_pairs(config.train_image_dir, config.train_mask_dir, config.group_by), config.limit)
    if config.test_image_dir is None:
        validation_cars = split_cars([pair.car for pair in pairs], config.validation_share, config.seed)
        is_validation = [pair.car in validation_cars for pair in pairs]
    else:
        test_pairs = require_pairs(config.test_image_dir, config.test_mask_dir, config.group_by)
        shared = sorted({pair.car for pair in pairs} & {pair.car for pair in test_pairs})
        if shared and not quiet:
            print(
                f"warning: {len(shared)} cars stand in both training and test photos, so the score will be too good: "
                f"{', '.join(shared[:5])}",
                file=sys.stderr,
            )
        is_validation = [False] * len(pairs) + [True] * len(test_pairs)
        pairs = pairs + test_pairs
    values = config.car_value, config.unknown_value
    cache = build_cache(pairs, config.image_width, config.image_height, config.cache_dir, quiet, *values)
    train_rows = [row for row, validates in enumerate(is_validation) if not validates]
    validation_rows = [row for row, validates in enumerate(is_validation) if validates]
    return cache, train_rows, validation_rows


# ----------------------------------------------------------------------------------------------------------- the run


def train(config: Config) -> dict:
    """Train, validate, score; return what the last lines print."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chief = rank == 0
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_memory()
    if world_size > 1 and not dist.is_initialized():
        # The others wait while the first one builds the cache, which may take longer than the ten minutes that are the default.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=2))
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        if chief:
            stack.enter_context(lock_folder(config.checkpoint_dir))
        summary = run(config, device, rank, world_size, stop)
    gc.collect()  # drawing with matplotlib leaves a cycle that holds the network: the next training may want its memory
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()
    if chief:
        print("---")
        for key, value in summary.items():
            print(f"{key + ':':<20}{value}")
    return summary


def run(config: Config, device: torch.device, rank: int, world_size: int, stop: StopRequest) -> dict:
    chief = rank == 0
    precision = choose_precision(config.precision, device)
    cv2.setNumThreads(1)  # one sample at a time: more threads would only wait on each other
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.deterministic

    # Data. The first process builds the cache, the others open it.
    if not chief:
        dist.barrier()
    cache, train_rows, validation_rows = prepare_data(config, quiet=not chief)
    if chief and world_size > 1:
        dist.barrier()
    batches = EpochBatches(train_rows, config.batch_size, config.seed, shuffle=True, rank=rank, world_size=world_size)
    workers = choose_workers(config.workers, device, world_size)
    dataset = CarDataset(cache, config.seed, config.augment, config.background, config.scale_range)
    loader = make_loader(dataset, batches, workers, pin_memory=device.type == "cuda")
    n_steps = config.epochs * len(batches)

    # Network, its moving average, optimizer.
    torch.manual_seed(config.seed)
    network = UNet(base_width=config.base_width, depth=config.depth, kernel_size=config.kernel_size)
    mean, std = colour_statistics(cache.images, train_rows)
    network.colour_mean.copy_(torch.tensor(mean).view(1, 3, 1, 1))
    network.colour_std.copy_(torch.tensor(std).view(1, 3, 1, 1))
    started_from = None
    if config.start_from is not None:
        start, description = extra.load_network(config.start_from)
        started_from = description.get("trained")
        if start.settings != network.settings:
            raise ValueError(
                f"start_from must hold a network of these settings, got {start.settings} in {config.start_from}."
            )
        network.load_state_dict(start.state_dict())
    network = network.to(device, memory_format=torch.channels_last)
    average = UNet(**network.settings).to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
    average.load_state_dict(network.state_dict())
    # 0.99, not 0.999: late in training gradients are small, and one hard batch would throw the weights far before their size is known.
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    model = network
    if world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(network) if device.type == "cuda" else network
        model = nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    if choose_compile(config.compile, device, n_steps, world_size):
        model = torch.compile(model)

    progress = Progress()
    if config.load_model:
        if chief:
            bring_earlier_run_back(config.checkpoint_dir)
            fetch_from_mirror(config)
        if world_size > 1:
            dist.barrier()
        progress, started_from = restore_run(config, cache, network, average, optimizer, scaler, len(batches), chief)
    elif chief:
        set_earlier_run_aside(config.checkpoint_dir)
        if config.mirror_dir is not None:
            with extra.mirror_may_fail():
                set_earlier_run_aside(config.mirror_dir)
    described = dict(
        image_width=config.image_width,
        image_height=config.image_height,
        threshold=0.5,
        network=network.settings,
        trained=dict(
            settings=shareable(config),
            n_train_photos=len(train_rows),
            torch=str(torch.__version__),
            device=device_name(device),
            started_from=started_from,  # how the weights that it began with were trained
        ),
    )

    unread: list[tuple[int, int, Tensor]] = []  # batch, its images, its loss: still on the device

    def read_losses() -> float:
        """Wait for the device, add the losses up, and stop at one that is not finite, before it can be saved."""
        for (batch, count, _), loss in zip(unread, torch.stack([row[2] for row in unread]).tolist() if unread else []):
            if not math.isfinite(loss):
                raise RuntimeError(
                    f"the loss is {loss} in epoch {progress.epoch + 1}, batch {batch + 1}. {ADVICE_ON_NAN}"
                )
            progress.loss_sum += loss * count
            progress.n_seen += count
        unread.clear()
        return progress.loss_sum / max(1, progress.n_seen)

    def check_weights() -> None:
        """Stop at weights that are not finite: a step may spoil them though the loss before it was sound."""
        for tensor in (*network.state_dict().values(), *average.state_dict().values()):
            if not tensor.isfinite().all():
                raise RuntimeError(
                    f"the weights are no longer finite numbers in epoch {progress.epoch + 1}. {ADVICE_ON_NAN}"
                )

    def save_last() -> None:
        """Save everything that the run needs to go on as if it had never stopped."""
        read_losses()
        check_weights()
        if chief:
            state = dict(
                description=described,
                weights=average.state_dict(),
                network=network.state_dict(),
                optimizer=optimizer.state_dict(),
                scaler=scaler.state_dict(),
                progress=dataclasses.asdict(progress),
                config=plain(config),
                data_fingerprint=cache.fingerprint,
            )
            extra.save_checkpoint(
                config.checkpoint_dir / "last.pt", state, keep_previous=True, mirror_dir=config.mirror_dir
            )

    def save_best() -> None:
        if chief:
            state = dict(description=described, weights=average.state_dict())
            extra.save_checkpoint(config.checkpoint_dir / "best.pt", state, mirror_dir=config.mirror_dir)

    def leave_if_asked(step: int) -> None:
        """After a signal: save and leave with the usual exit code. Processes agree on it now and then, not each step."""
        if (world_size == 1 or step % 20 == 0) and stop.wanted(device, world_size):
            save_last()
            if chief:
                print(f"\nstopped by {signal.Signals(stop.signal).name}; go on with --load-model", file=sys.stderr)
            sys.exit(128 + stop.signal)

    def forward_backward(images: Tensor, coverage: Tensor, n_images: int) -> Tensor:
        """Compute gradients, in parts if memory runs out; return the batch's loss without waiting for the device."""
        while True:
            try:
                optimizer.zero_grad(set_to_none=True)
                total = torch.zeros((), device=device)
                for part, target in zip(images.chunk(progress.micro_batches), coverage.chunk(progress.micro_batches)):
                    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                        logits = model(part)
                    # Weighted by images, so that parts and processes add up to the mean over the batch.
                    loss = segmentation_loss(logits, target) * (len(part) * world_size / n_images)
                    scaler.scale(loss).backward()
                    total += loss.detach()
                return total
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if progress.micro_batches >= len(images) or world_size > 1:
                    n_at_once = math.ceil(len(images) / progress.micro_batches)
                    raise RuntimeError(
                        f"memory ran out with {n_at_once} photo{'s' * (n_at_once > 1)} of {config.image_width}x{config.image_height} at a time. "
                        "Lower batch_size, image_width and image_height, or base_width."
                    ) from error
            # Outside the except, where the failed attempt's tensors are no longer held.
            progress.micro_batches = min(2 * progress.micro_batches, len(images))
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            print(
                f"memory ran out: batches of {len(images)} are now computed in {progress.micro_batches} parts",
                file=sys.stderr,
            )

    # Training.
    if chief:
        for folder in {config.checkpoint_dir, config.prediction_dir, config.mirror_dir} - {None}:
            extra.remove_leftovers(folder)
        write_settings(config)
        print(
            f"{len(train_rows)} photos to train on, {len(validation_rows)} of {len({cache.pairs[row].car for row in validation_rows})} "
            f"cars to validate on; {sum(p.numel() for p in network.parameters()):,} parameters; {device_name(device)}, "
            f"{str(precision).removeprefix('torch.')}, {workers} workers"
        )
        print(HISTORY_HEADING)
    timed_images, timed_seconds, steps_here = 0, 0.0, 0
    started = last_saved = time.perf_counter()
    stop.saves = True
    while progress.epoch < config.epochs:
        epoch = progress.epoch
        batches.start(epoch, progress.batch)
        network.train()
        with tqdm(
            total=len(batches),
            initial=progress.batch,
            desc=f"epoch {epoch + 1}/{config.epochs}",
            leave=False,
            disable=not chief,
            file=sys.stderr,
        ) as bar:
            clock = time.perf_counter()
            for images, coverage, _, _ in loader:
                waited = time.perf_counter() - clock
                step = epoch * len(batches) + progress.batch
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(step, n_steps, config)
                n_images = batches.batch_length(progress.batch)
                loss = forward_backward(*to_device(images, coverage, device), n_images)
                scaler.step(optimizer)
                scaler.update()
                if config.ema_decay:
                    update_average(average, network, config.ema_decay, step)

                unread.append((progress.batch, n_images, loss))
                progress.batch += 1
                # Reading a loss makes the host wait for the GPU, so it is done now and then.
                reads = device.type == "cpu" or progress.batch % 20 == 0
                if reads:
                    mean_loss = read_losses()
                seconds = time.perf_counter() - clock
                clock += seconds
                progress.seconds += seconds
                progress.wait_seconds += waited
                steps_here += 1
                if steps_here > 2:
                    timed_images, timed_seconds = timed_images + n_images, timed_seconds + seconds
                bar.update()
                if reads:
                    speed = timed_images / timed_seconds if timed_seconds else 0
                    bar.set_postfix_str(
                        f"loss {mean_loss:.4f}, {speed:.1f} img/s, {progress.wait_seconds / progress.seconds:.0%} waiting"
                    )
                if clock - last_saved > 60 * config.checkpoint_minutes and progress.batch < len(batches):
                    save_last()
                    last_saved = time.perf_counter()
                leave_if_asked(steps_here)
        train_loss = read_losses()
        check_weights()
        if world_size > 1:
            train_loss = sum_over_processes([train_loss], device)[0] / world_size
        if not config.ema_decay:
            average.load_state_dict(network.state_dict())
        if world_size > 1:  # batch norm statistics are each process's own: all take the first one's
            for tensor in average.state_dict().values():
                dist.broadcast(tensor, 0)

        # Validation, at training size; then this epoch is done.
        for row in validation_rows:
            cache.check_unchanged(row)
        # Several processes do not ask between photos: they may have one more or less, and would wait for each other.
        between = (lambda: leave_if_asked(0)) if world_size == 1 else (lambda: None)
        val_loss, val_dice = validate(
            average, cache, validation_rows[rank::world_size], config, device, precision, between
        )
        progress.history.append(
            dict(
                epoch=epoch + 1,
                train_loss=train_loss,
                val_loss=val_loss,
                val_dice=val_dice,
                learning_rate=learning_rate_at((epoch + 1) * len(batches) - 1, n_steps, config),
                images_per_second=progress.n_seen / progress.seconds if progress.seconds else 0.0,
                data_wait=progress.wait_seconds / progress.seconds if progress.seconds else 0.0,
                seconds=progress.seconds,
            )
        )
        progress = dataclasses.replace(
            progress, epoch=epoch + 1, batch=0, loss_sum=0.0, n_seen=0, seconds=0.0, wait_seconds=0.0
        )
        if val_dice > progress.best_dice:
            progress.best_dice = val_dice
            save_best()
        if chief:
            write_history(config.checkpoint_dir / "history.csv", progress.history)
            save_epoch_picture(average, cache, validation_rows, config, device, precision, epoch + 1)
            print(HISTORY_LINE.format(**progress.history[-1]), flush=True)
        save_last()
        last_saved = time.perf_counter()
        leave_if_asked(0)

    del loader  # its workers leave now; the garbage collector would keep them, and later wait five seconds for each
    # From here on all that matters is saved, and --load-model would begin with the score.
    stop.saves = False
    if stop.signal:
        sys.exit(128 + stop.signal)
    if progress.best_dice < 0:
        save_best()

    # The score, with the best weights, at the photos' own size.
    if world_size > 1:
        dist.barrier()  # until the first process has saved them
    average.load_state_dict(extra.read_checkpoint(config.checkpoint_dir / "best.pt")["weights"])
    card, rows = score(average, cache, train_rows, validation_rows, config, device, precision, rank, world_size)
    described["threshold"] = card["threshold"]
    described["trained"] = {**described["trained"], "epochs": progress.epoch, "score_card": card}
    save_best()
    if chief:
        print(extra.format_score_card(card))
        extra.save_weights(config.checkpoint_dir / "best.safetensors", average, described)
        extra.mirror_file(config.checkpoint_dir / "best.safetensors", config.mirror_dir)
        save_scores(config, card, rows)
        extra.save_curves(config.prediction_dir / "curves.png", progress.history)
        save_final_pictures(average, cache, validation_rows, rows, config, device, precision)
    return dict(
        dice=f"{card['dice']:.6f}",
        accuracy=f"{card['accuracy']:.6f}",
        edge_dice=f"{card['edge_dice']:.6f}",
        images_per_second=f"{timed_images / timed_seconds:.1f}" if timed_seconds else "not measured",
        data_wait=f"{progress.history[-1]['data_wait']:.4f}",
        seconds=f"{time.perf_counter() - started:.1f}",
        peak_memory_mib=f"{peak_memory_mib(device):.0f}",
        parameters=sum(p.numel() for p in network.parameters()),
        checkpoint=config.checkpoint_dir / "best.pt",
    )


# -------------------------------------------------------------------------------------------------------- validation


@torch.inference_mode()
def predict_rows(
    network: UNet, cache: Cache, rows: list[int], config: Config, device: torch.device, precision: torch.dtype
):
    """Yield (row, coverage (h, w) uint8, logits (h, w) float32), NumPy arrays, for cached photos, in order."""
    if not rows:  # a process may get no photo when there are more processes than photos
        return
    network.eval()
    loader = make_loader(CarDataset(cache), EpochBatches(rows, config.batch_size), workers=0)
    for images, coverage, _, batch_rows in loader:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = network(to_device(images, coverage, device)[0])
        yield from zip(batch_rows.tolist(), coverage.numpy(), logits[:, 0].float().cpu().numpy())


def validate(network, cache, rows, config, device, precision, between) -> tuple[float, float]:
    """Mean loss and mean Dice per image at training size, where a pixel is car when half of it is; all photos count."""
    sums = [0.0, 0.0, 0.0]
    for _, coverage, logits in predict_rows(network, cache, rows, config, device, precision):
        target = torch.from_numpy(coverage / np.float32(255))[None, None]
        loss = segmentation_loss(torch.from_numpy(logits)[None, None], target)
        sums = [sums[0] + loss.item(), sums[1] + extra.dice(logits > 0, coverage > 127), sums[2] + 1]
        between()
    if dist.is_initialized():
        sums = sum_over_processes(sums, device)
    return sums[0] / sums[2], sums[1] / sums[2]


def score(
    network, cache, train_rows, validation_rows, config, device, precision, rank, world_size
) -> tuple[dict, list[dict]]:
    """Score on all validation photos at their own size, shared out over processes; give the card and a row for each photo."""
    for row in train_rows:
        cache.check_unchanged(row)
    mean_mask = np.mean(
        [cache.coverage[row] / np.float32(255) for row in train_rows[:: max(1, len(train_rows) // 512)]], axis=0
    )
    logits = predict_rows(network, cache, validation_rows[rank::world_size], config, device, precision)
    rows = extra.score_images(((row, logit) for row, _, logit in logits), cache, mean_mask)
    if world_size > 1:
        gathered = [None] * world_size
        dist.all_gather_object(gathered, rows)
        rows = sorted((row for part in gathered for row in part), key=lambda row: row["name"])
    return extra.summarise(rows), rows


def sum_over_processes(numbers: list[float], device: torch.device) -> list[float]:
    """Add each number up over all processes, in float64."""
    tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


# ------------------------------------------------------------------------------------------------- files of the run


def plain(config: Config) -> dict:
    """Settings as plain values, for files."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(config).items()}


def shareable(config: Config) -> dict:
    """Settings that say how a network was trained, without the folders of the machine that did it."""
    return {
        key: value
        for key, value in plain(config).items()
        if not key.endswith("_dir") and key not in ("start_from", "load_model")
    }


def check_resumable(state: dict, config: Config, cache: Cache, chief: bool) -> None:
    """Refuse to go on where the checkpoint's run cannot be continued, and say what else has changed."""
    path = config.checkpoint_dir / "last.pt"
    if "progress" not in state:
        raise ValueError(f"{path} holds weights but no training. Use --start-from to begin with them.")
    before, now = state["config"], plain(config)
    for name in FIXED_ON_RESUME:
        was = before.get(
            name, getattr(Config, name)
        )  # a setting that is younger than the checkpoint was at its default
        if was != now[name]:
            raise ValueError(
                f"{name} must be {was}, as when {path} was saved, got {now[name]}. Set it back, or train anew without --load-model."
            )
    if state["data_fingerprint"] != cache.fingerprint:
        raise ValueError(
            f"the photos are not those that {path} was trained on: files were added, removed or changed. Put them back, or train anew."
        )
    changed = [
        name for name in now if name not in (*FIXED_ON_RESUME, *FREE_ON_RESUME) and before.get(name) != now[name]
    ]
    if changed and chief:
        print(
            "settings changed since the run began: "
            + ", ".join(f"{name} {before.get(name)} -> {now[name]}" for name in changed)
        )


def restore_run(
    config: Config, cache: Cache, network: UNet, average: UNet, optimizer, scaler, n_batches: int, chief: bool
) -> tuple[Progress, dict | None]:
    """Bring the run in last.pt back into network, average, optimizer and scaler.

    Returns:
        Where it stands; how the weights that it began with were trained, None if it began with random ones.

    Raises:
        FileNotFoundError, ValueError: If there is none, or it cannot be continued with these settings and photos.
    """
    path = config.checkpoint_dir / "last.pt"
    state = extra.load_checkpoint(path)
    try:
        check_resumable(state, config, cache, chief)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["weights"])
        restore_optimizer(optimizer, state["optimizer"])
        if state["scaler"] and scaler.is_enabled():  # a run may go on in another precision
            scaler.load_state_dict({key: type(own)(state["scaler"][key]) for key, own in scaler.state_dict().items()})
        progress = Progress(**state["progress"])
        started_from = state["description"].get("trained", {}).get("started_from")
        if progress.batch > n_batches:
            raise TypeError(f"batch must be at most {n_batches}, got {progress.batch}")
        for group in optimizer.param_groups:  # as the last step left it: a run stopped in validation saves it again
            group["lr"] = learning_rate_at(
                progress.epoch * n_batches + progress.batch - 1, config.epochs * n_batches, config
            )
    except (
        AttributeError,
        IndexError,
        KeyError,
        RuntimeError,
        TypeError,
    ) as error:  # only a file not written by train.py
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(f"{path} does not hold a training of this project ({reason}).") from error
    if chief:  # the run may have been killed before the mirror got its copy
        extra.mirror_file(path, config.mirror_dir)
    if progress.best_dice >= 0:
        try:
            extra.read_checkpoint(config.checkpoint_dir / "best.pt")
        except (FileNotFoundError, ValueError) as error:
            print(f"{error} The best weights are lost; the next validated ones take their place.", file=sys.stderr)
            progress.best_dice = -1.0
    if chief:
        print(f"going on from epoch {progress.epoch + 1}, batch {progress.batch + 1}, of {path}")
    return progress, started_from


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Restore the moments, not the settings, which may have changed; a forged file's shapes are not passed on."""
    moments, parameters = state["state"], optimizer.param_groups[0]["params"]
    if moments and list(moments) != list(range(len(parameters))):  # none before the first step
        raise TypeError("the optimizer's moments are not those of the network")
    for index, moment in moments.items():
        shapes = {name: tensor.shape for name, tensor in moment.items()}
        if shapes != {
            "step": torch.Size([]),
            "exp_avg": parameters[index].shape,
            "exp_avg_sq": parameters[index].shape,
        }:
            raise TypeError("the optimizer's moments do not fit the network")
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def set_earlier_run_aside(folder: Path) -> None:
    """Move what an earlier run left into `earlier/`, or `earlier-2/` and so on, so that a run begun by mistake costs nothing.

    Until all files are moved they are in `earlier.partial/`, where a process killed midway leaves them: a new run
    finishes the move, --load-model undoes it.
    """
    names = (
        "last.pt",
        "last.previous.pt",
        "best.pt",
        "best.safetensors",
        "history.csv",
        "settings.json",
        "score_card.json",
        "scores.csv",
    )
    found = [folder / name for name in names if (folder / name).exists()]
    partial = folder / "earlier.partial"
    # Without a checkpoint it is a run that hardly began: not worth a folder.
    if any(path.suffix == ".pt" for path in found) or partial.is_dir():
        partial.mkdir(exist_ok=True)
        for path in found:
            path.replace(partial / path.name)
        places = itertools.chain([folder / "earlier"], (folder / f"earlier-{number}" for number in itertools.count(2)))
        place = next(place for place in places if not place.exists())
        partial.rename(place)
        print(
            f"the earlier run in {folder} is now in {place}, which you may delete; --load-model would have gone on with it"
        )


def bring_earlier_run_back(folder: Path) -> None:
    """Undo a move that `set_earlier_run_aside` could not finish."""
    partial = folder / "earlier.partial"
    if partial.is_dir():
        for path in partial.iterdir():
            path.replace(folder / path.name)
        partial.rmdir()


def fetch_from_mirror(config: Config) -> None:
    """Copy the mirror's checkpoints to where there are none: a session that ended took its machine's disk along."""
    if config.mirror_dir is None or any(
        (config.checkpoint_dir / name).exists() for name in ("last.pt", "last.previous.pt")
    ):
        return
    with extra.mirror_may_fail():
        bring_earlier_run_back(config.mirror_dir)
        if (config.mirror_dir / "last.pt").is_file():
            for name in ("best.pt", "last.pt"):
                if (config.mirror_dir / name).is_file():
                    extra.write_file(config.checkpoint_dir / name, (config.mirror_dir / name).read_bytes())
            print(f"the checkpoints are those of the mirror, {config.mirror_dir}")


def write_settings(config: Config) -> None:
    extra.write_file(config.checkpoint_dir / "settings.json", json.dumps(plain(config), indent=1).encode())


def write_history(path: Path, history: list[dict]) -> None:
    rounded = ("seconds", "data_wait", "images_per_second")
    extra.write_table(
        path, [{key: round(value, 6) if key in rounded else value for key, value in row.items()} for row in history]
    )


def save_scores(config: Config, card: dict, rows: list[dict]) -> None:
    extra.write_file(config.checkpoint_dir / "score_card.json", json.dumps(card, indent=1).encode())
    extra.write_table(config.checkpoint_dir / "scores.csv", rows)


def save_epoch_picture(network, cache, rows, config, device, precision, epoch: int) -> None:
    """Save the predictions of the same few validation photos, spread over cars and views, after each epoch."""
    chosen = sorted({rows[round(share * (len(rows) - 1))] for share in (0.0, 0.4, 0.7, 1.0)})
    examples = [(row, logits) for row, _, logits in predict_rows(network, cache, chosen, config, device, precision)]
    extra.save_picture(config.prediction_dir / f"epoch_{epoch:03d}.png", extra.draw_predictions(examples, cache))


def save_final_pictures(network, cache, rows, scores, config, device, precision) -> None:
    """Save the worst predictions of the validation set, and all views of its first car."""
    by_name = {cache.pairs[row].name: row for row in rows}
    worst = [by_name[score["name"]] for score in sorted(scores, key=lambda score: score["dice"])[:6]]
    views = [row for row in rows if cache.pairs[row].car == cache.pairs[rows[0]].car]
    for name, chosen, draw in (("worst.png", worst, extra.draw_predictions), ("views.png", views, extra.draw_views)):
        examples = [(row, logits) for row, _, logits in predict_rows(network, cache, chosen, config, device, precision)]
        extra.save_picture(config.prediction_dir / name, draw(examples, cache))


if __name__ == "__main__":
    import tyro

    extra.run_command(lambda args: train(tyro.cli(Config, args=args, description=__doc__)) and 0)
