"""Train a U-Net on car photos: edit the settings below, or name them on the command line.

    python scripts/train.py --epochs 3
    python scripts/train.py --load-model                            resume the last run
    torchrun --nproc-per-node 2 scripts/train.py                    several GPUs

A run leaves in checkpoint_dir: best.safetensors (for predict.py), last.safetensors (to resume), history.csv,
settings.json, score_card.json, scores.csv; in prediction_dir: pictures.
"""

import contextlib
import copy
import math
import signal
import sys
import time
from typing import Literal

import extra
import torch
import torch.nn.functional as F
from carvana import machine
from carvana.drawing import save_examples
from carvana.files import PROJECT_DIR, lock_folder, print_values, run_command
from carvana.segmenter import DEFAULT_WEIGHTS, Segmenter
from carvana.settings import Count, Fraction, NotNegative, PathSetting, Positive, Whole, parse_settings, settings_class
from carvana.weights import load_network
from extra import Run
from torch import Tensor, nn
from tqdm import tqdm
from unet import UNet, check_image_size, check_settings

import data


@settings_class
class Config:
    """The settings of a run."""

    train_image_dir: PathSetting = PROJECT_DIR / "data/train"  # photos to learn from
    train_mask_dir: PathSetting = PROJECT_DIR / "data/train_masks"  # their masks
    test_image_dir: PathSetting | None = None  # photos to validate on; None sets some training cars aside
    test_mask_dir: PathSetting | None = None  # their masks
    validation_share: Fraction = 0.1  # fraction of the cars set aside when there are no test folders
    group_by: data.GroupBy = "name"  # what the split keeps together: Carvana's cars, a folder, prefix (film1_0001)
    car_value: tuple[str, ...] = ()  # the car in masks: class numbers (1), colours (#800000); () the brighter of two
    unknown_value: tuple[str, ...] = ()  # mask values of pixels of which nothing is known (128): no loss, no score
    limit: Count | None = None  # use at most so many photos, whole cars; for a quick try
    image_width: int = 480  # training size in pixels, a multiple of 2**depth; half is four times as fast, less exact
    image_height: int = 320  # likewise; photos are resized to it, the score card is taken at full resolution
    base_width: int = 64  # channels of the first convolution; 16 for a CPU: 12 times as fast, slightly less exact
    depth: int = 4  # steps down; 5 sees twice as far for a quarter more time and four times the weights
    kernel_size: int = 3  # side of the convolutions, odd; 5 costs 2.7 times as much
    batch_size: Count = 8  # photos a step, over all processes; lower it when memory runs out
    epochs: Count = 10  # how often each photo is seen
    learning_rate: Positive = 1e-3  # peak of the schedule; lower it when the loss jumps or becomes NaN
    weight_decay: NotNegative = 0.01  # AdamW's
    warmup: Fraction = 0.05  # fraction of all steps in which the learning rate rises to its peak; it ends at zero
    ema_decay: Fraction = 0.998  # moving average of the weights, which is validated and saved; 0 turns it off
    augment: bool = True  # flip, move and recolour the training photos
    scale_range: tuple[float, float] = (0.9, 1.1)  # least and largest factor by which augmentation resizes a photo
    background: Fraction = 0.1  # fraction of the training photos whose background gets distractors, half of it replaced
    seed: Whole = 0  # weights, split, order and augmentation follow from it
    load_model: bool = False  # resume the last run in checkpoint_dir
    start_from: PathSetting | None = None  # begin with the weights of this .safetensors file instead of random ones
    precision: Literal["auto", "bf16", "fp16", "float32"] = "auto"  # auto: the fastest that the device really has
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on a GPU, for runs long enough to repay it
    deterministic: bool = False  # bitwise reproducible on a GPU, slower; a CPU is so anyway
    workers: Whole | None = None  # processes that load data; None follows the machine
    device: str = "auto"  # cuda, mps, cpu, or auto for the first of these that is there
    checkpoint_minutes: NotNegative = 10  # minutes between checkpoints within an epoch; each epoch's end saves too
    checkpoint_dir: PathSetting = PROJECT_DIR / "checkpoints/run"  # gets checkpoints, history and scores
    prediction_dir: PathSetting = PROJECT_DIR / "predictions"  # gets pictures
    cache_dir: PathSetting = PROJECT_DIR / "data/cache"  # decoded photos; may be deleted at any time
    mirror_dir: PathSetting | None = None  # gets a copy of checkpoint_dir after each epoch, such as a mounted Drive

    def __post_init__(self):
        check_settings(base_width=self.base_width, depth=self.depth, kernel_size=self.kernel_size)
        check_image_size(self.image_height, self.image_width, 2**self.depth)
        if (self.test_image_dir is None) != (self.test_mask_dir is None):
            raise ValueError("test_image_dir and test_mask_dir must be given together, got one of them.")
        if DEFAULT_WEIGHTS.parent.resolve() == self.checkpoint_dir.resolve():
            raise ValueError(f"checkpoint_dir must be a folder of the run's own, got {self.checkpoint_dir}.")


# ------------------------------------------------------------------------------------------------- learning, one step


def segmentation_loss(logits: Tensor, coverage: Tensor, known: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice over the known pixels, in float32, each the mean over the images of a batch.

    Both are least where the probability equals the coverage, also where that lies between 0 and 1; for soft Dice this
    takes squares in the denominator (Milletari et al., V-Net, 2016).

    Args:
        logits: (batch, 1, height, width).
        coverage: (batch, 1, height, width), float32 in [0, 1].
        known: (batch, 1, height, width), float32, 0 where nobody knows what a pixel is, else 1.
    """
    logits = logits.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, coverage, known, reduction="none").sum(dim=(1, 2, 3))
    probability, coverage = logits.sigmoid() * known, coverage * known
    overlap = (probability * coverage).sum(dim=(1, 2, 3))
    area = (probability.square() + coverage.square()).sum(dim=(1, 2, 3))
    return (cross_entropy / known.sum(dim=(1, 2, 3)).clamp(min=1) + 1 - (2 * overlap + 1) / (area + 1)).mean()


def learning_rate_at(step: int, n_steps: int, config: Config) -> float:
    """Rise linearly to the peak, then fall along a cosine; after the last step it would be zero."""
    n_warmup = max(1, round(config.warmup * n_steps))
    if step < n_warmup:
        return config.learning_rate * (step + 1) / n_warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def to_device(batch: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Move a batch as uint8, a quarter of the bytes, and give it the network's layout.

    Returns:
        Photos (batch, 3, height, width), uint8, channels last; coverage and known pixels, both (batch, 1, height,
        width), float32 in [0, 1].
    """
    images, coverage, known = (tensor.to(device, non_blocking=True) for tensor in batch[:3])
    images = images.permute(0, 3, 1, 2)  # channels last without moving a byte
    return images, coverage.unsqueeze(1).float() / 255, known.unsqueeze(1).float() / 255


def train_step(run: Run, batch: tuple[Tensor, ...]) -> Tensor:
    """Learn from one batch of the loader; return its loss, (), on the device, without waiting for it."""
    images, coverage, known = to_device(batch, run.device)
    step, n_steps = run.progress.epoch * run.n_batches + run.progress.batch, run.config.epochs * run.n_batches
    run.optimizer.param_groups[0]["lr"] = learning_rate_at(step, n_steps, run.config)
    with torch.autocast(run.device.type, run.precision, enabled=run.precision != torch.float32):
        logits = run.model(images)
    loss = segmentation_loss(logits, coverage, known)
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    update_average(run.average, run.network, run.config.ema_decay, step)
    return loss.detach()


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the average of weights and batch norm statistics towards the network's; quickly at first."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    pairs = zip(average.state_dict().values(), network.state_dict().values())
    ours, theirs = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
    torch._foreach_lerp_(ours, theirs, weight)


# ------------------------------------------------------------------------------------------- one epoch, and validation


def train_epoch(run: Run, loader, rank: int) -> None:
    """Train from where the run stands to the epoch's end; save now and then, and on SIGTERM or Ctrl-C, then leave."""
    progress, config = run.progress, run.config
    loader.batch_sampler.start(progress.epoch, progress.batch)
    run.network.train()
    label = f"epoch {progress.epoch + 1}/{config.epochs}"
    bar = tqdm(desc=label, total=run.n_batches, initial=progress.batch, leave=False, disable=rank > 0, file=sys.stderr)
    with machine.catch_stop() as received, bar:
        clock = last_saved = time.perf_counter()
        for batch in loader:
            progress.wait_seconds += time.perf_counter() - clock
            run.loss_sum += train_step(run, batch) * len(batch[0])
            progress.batch += 1
            progress.n_seen += len(batch[0])
            bar.update()
            if run.device.type == "cpu" or progress.batch % 20 == 0:  # a GPU is rarely waited for
                extra.check_finite(run, run.loss_sum)
                bar.set_postfix_str(f"loss {run.loss_sum.item() / progress.n_seen:.4f}")
            progress.seconds += time.perf_counter() - clock
            clock = time.perf_counter()
            is_due = clock - last_saved > 60 * config.checkpoint_minutes and progress.batch < run.n_batches
            if rank == 0 and (received or is_due):
                extra.save_run(run)
                last_saved = clock = time.perf_counter()
            if received:
                print(f"\nstopped by {signal.Signals(received[0]).name}; --load-model resumes", file=sys.stderr)
                sys.exit(128 + received[0])


@torch.inference_mode()
def validate(run: Run, loader) -> tuple[float, float]:
    """Return mean loss and mean Dice of the moving average at training size, where a pixel is car from half on."""
    losses, scores = [], []
    for batch in loader:
        images, coverage, known = to_device(batch, run.device)
        with torch.autocast(run.device.type, run.precision, enabled=run.precision != torch.float32):
            logits = run.average(images)
        losses.append(segmentation_loss(logits, coverage, known).item() * len(images))
        prediction, mask = ((x & (known > 0)).cpu().numpy() for x in (logits > 0, coverage > 0.5))
        scores += map(extra.dice, prediction, mask)
    return sum(losses) / len(scores), sum(scores) / len(scores)


# ----------------------------------------------------------------------------------------------------------- the run


def prepare_data(config: Config, quiet: bool = False) -> tuple[data.Cache, list[int], list[int]]:
    """Find, split and cache the photos; return the cache, and its rows to train on and to validate on."""
    group, values = config.group_by, (config.car_value, config.unknown_value)
    pairs = data.limit_cars(data.require_pairs(config.train_image_dir, config.train_mask_dir, group), config.limit)
    cars = {pair.car for pair in pairs}
    if config.test_image_dir is None:
        validation_cars = data.split_cars(list(cars), config.validation_share, config.seed)
        is_validation = [pair.car in validation_cars for pair in pairs]
    else:
        test_pairs = data.require_pairs(config.test_image_dir, config.test_mask_dir, group)
        shared = sorted(cars & {pair.car for pair in test_pairs})
        if shared and not quiet:
            print(f"warning: {len(shared)} cars to test on are trained on, too, like {shared[0]}.", file=sys.stderr)
        is_validation = [False] * len(pairs) + [True] * len(test_pairs)
        pairs += test_pairs
    cache = data.build_cache(pairs, config.image_width, config.image_height, config.cache_dir, quiet, *values)
    rows = range(len(pairs))
    return cache, [row for row in rows if not is_validation[row]], [row for row in rows if is_validation[row]]


def start_run(config: Config, device: torch.device, n_batches: int = 1) -> Run:
    """Build the network, its moving average and the optimizer of a run of `n_batches` steps an epoch."""
    torch.manual_seed(config.seed)
    network = UNet(base_width=config.base_width, depth=config.depth, kernel_size=config.kernel_size)
    trained = dict(device=machine.device_name(device), started_from=None)
    if config.start_from is not None:
        start, description = load_network(config.start_from)
        if start.settings != network.settings:
            raise ValueError(f"{config.start_from} must hold a network of {network.settings}, got {start.settings}.")
        network.load_state_dict(start.state_dict())
        trained["started_from"] = description.trained
    network = network.to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(network).requires_grad_(False).eval()
    # 0.99, not 0.999: gradients are small late in training, and one hard batch would throw the weights far off.
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True)
    model = machine.spread(network, device)
    if machine.choose_compile(config.compile, device, config.epochs * n_batches):
        model = torch.compile(model)
    precision = machine.choose_precision(config.precision, device)
    return Run(
        config=config,
        device=device,
        precision=precision,
        network=network,
        model=model,
        average=average,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
        loss_sum=torch.zeros((), device=device),
        description=extra.describe(config, network, **trained),
        n_batches=n_batches,
    )


def train(config: Config) -> dict:
    """Train, validate and score a network; return the values that the command prints at the end."""
    device = machine.choose_device(config.device)
    machine.prepare(device, config.deterministic)
    with (
        machine.join_processes(device) as (rank, world_size),
        lock_folder(config.checkpoint_dir) if rank == 0 else contextlib.nullcontext(),
    ):
        with machine.rank_0_first(rank):  # which builds the cache; the others open it
            cache, train_rows, val_rows = prepare_data(config, quiet=rank > 0)
        batches = data.EpochBatches(train_rows, config.batch_size, config.seed, True, rank, world_size)
        dataset = data.CarDataset(cache, config.seed, config.augment, config.background, config.scale_range)
        workers = machine.choose_workers(config.workers, device, world_size)
        loader = data.make_loader(dataset, batches, workers, pin_memory=device.type == "cuda")
        val_loader = data.make_loader(data.CarDataset(cache), data.EpochBatches(val_rows, config.batch_size), workers=0)

        run = start_run(config, device, len(batches))
        run.fingerprint = cache.fingerprint
        if config.start_from is None:
            mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in data.colour_statistics(cache.images, train_rows))
            for network in (run.network, run.average):
                network.load_state_dict(dict(colour_mean=mean, colour_std=std), strict=False)
        with machine.rank_0_first(rank):
            extra.begin_run(run, rank)
        if rank == 0:
            print(f"{len(train_rows)} photos to train on, {len(val_rows)} to validate on, {workers} workers")
        with machine.explain_lack_of_memory("Lower batch_size, image_width and image_height, or base_width."):
            while run.progress.epoch < config.epochs:
                train_epoch(run, loader, rank)
                if rank == 0:
                    segmenter = Segmenter(run.average, config.device, description=run.description)
                    save_examples(config.prediction_dir, run.progress.epoch + 1, segmenter, cache, val_rows)
                    extra.finish_epoch(run, *validate(run, val_loader))
                else:
                    extra.start_epoch(run)
        del loader  # its workers leave now; the garbage collector would wait five seconds for each
        return extra.score_run(run, cache, train_rows, val_rows) if rank == 0 else {}


if __name__ == "__main__":
    run_command(lambda args: print_values(train(parse_settings(Config, args, __doc__))))
