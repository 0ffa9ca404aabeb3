"""What surrounds training: the state of a run, its checkpoints and history, the score card."""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from carvana import machine
from carvana.drawing import draw_curves, draw_predictions, draw_views, save_picture
from carvana.files import copy_files, set_aside, shorten, write_file, write_table
from carvana.metrics import dice, dice_by_threshold, find_edge, format_score_card, pixel_accuracy, summarise
from carvana.pictures import area_average, upsample
from carvana.segmenter import Segmenter, to_logit
from carvana.settings import format_settings, plain_settings
from carvana.weights import Description, load_network, read_tensors, save_weights, write_tensors
from torch import Tensor, nn
from unet import UNet

from data import Cache

# -------------------------------------------------------------------------------------------------------------- run


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches seen of the next one
    n_seen: int = 0  # photos in these
    seconds: float = 0.0  # of the current epoch, so far
    wait_seconds: float = 0.0  # of these, spent waiting for data
    best_dice: float = -1.0  # of the validated epochs
    history: list[dict] = field(default_factory=list)  # a row for each epoch


@dataclass
class Run:
    """All that a training carries from step to step."""

    config: object  # train.Config
    device: torch.device
    precision: torch.dtype  # of the convolutions; weights, moments and loss are float32
    network: UNet  # what learns
    model: nn.Module  # the same as it is called: compiled, or wrapped for several processes
    average: UNet  # moving average of its weights, which is validated and saved
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # at work in fp16 only
    loss_sum: Tensor  # () on the device, over the photos seen in this epoch: reading it waits for a GPU
    description: Description  # of the weights that it saves
    n_batches: int  # steps an epoch
    fingerprint: str = ""  # of the photos
    progress: Progress = field(default_factory=Progress)
    started: float = field(default_factory=time.perf_counter)


# ------------------------------------------------------------------------------------------------------ checkpoints

LAST, PREVIOUS, BEST = "last.safetensors", "last.previous.safetensors", "best.safetensors"  # names in checkpoint_dir
# When a run is resumed these must be as they were, or its place in the epoch would mean nothing ...
FIXED = "base_width depth kernel_size image_width image_height batch_size seed limit validation_share group_by".split()
# ... and these, like all folders, do not touch the result. The others may change, and the change is printed.
FREE = "load_model start_from workers device checkpoint_minutes".split()


def settings_of_result(config) -> dict:
    """Return the settings that decide a run's result, as plain values: what can be told to others."""
    return {key: value for key, value in plain_settings(config).items() if not (key in FREE or key.endswith("_dir"))}


def describe(config, network: UNet, **trained) -> Description:
    """Describe the weights of a run: for which size they are, and how they are trained."""
    trained["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    trained |= dict(settings=settings_of_result(config), torch=str(torch.__version__))
    return Description(config.image_width, config.image_height, network.settings, trained=trained)


def save_run(run: Run) -> None:
    """Save all of a run that resuming it needs, and keep the save before as last.previous.safetensors.

    Raises:
        RuntimeError: If loss or weights are no longer finite: that must not replace what can be resumed.
        OSError: If the file cannot be written.
    """
    tensors = {"loss_sum": run.loss_sum}
    for part in ("network", "average"):
        tensors |= {f"{part}/{name}": tensor for name, tensor in getattr(run, part).state_dict().items()}
    for name, parameter in run.network.named_parameters():
        moments = run.optimizer.state.get(parameter, {})
        tensors |= {f"optimizer/{name}/{key}": moment for key, moment in moments.items()}
    check_finite(run, *tensors.values())
    path = run.config.checkpoint_dir / LAST
    if path.exists():
        os.replace(path, path.with_name(PREVIOUS))
    write_tensors(
        path,
        tensors,
        progress=dataclasses.asdict(run.progress),
        scaler=run.scaler.state_dict(),
        learning_rate=run.optimizer.param_groups[0]["lr"],
        settings=plain_settings(run.config),
        fingerprint=run.fingerprint,
        description=dataclasses.asdict(run.description),
    )


def check_finite(run: Run, *tensors: Tensor) -> None:
    """Raise a RuntimeError with the way out unless all numbers are finite."""
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise RuntimeError(
            f"loss or weights are no longer finite in epoch {run.progress.epoch + 1}, by batch {run.progress.batch}. "
            "Lower learning_rate, or use --precision float32; --load-model resumes from the last checkpoint, which is "
            "sound."
        )


def holds_run(folder: Path) -> bool:
    """Tell whether a folder holds a run that can be resumed."""
    return (folder / LAST).exists() or (folder / PREVIOUS).exists()


def read_run(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Read the tensors and the header of last.safetensors or, if that is damaged or missing, of the one before.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If both are damaged, or hold something else.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if not holds_run(folder):
        raise FileNotFoundError(f"{last} does not exist: there is nothing to resume. Train without --load-model.")
    try:
        tensors, header = read_tensors(last)
    except (FileNotFoundError, ValueError) as error:
        if not previous.exists():
            raise
        print(f"{error} Resuming from {previous}.", file=sys.stderr)
        tensors, header = read_tensors(previous)
    if "progress" not in header:
        raise ValueError(f"{last} does not hold a training. Use --start-from to begin with its weights.")
    return tensors, header


def restore_run(run: Run) -> None:
    """Bring a run to where its last checkpoint stands.

    Raises:
        FileNotFoundError, ValueError: If there is none, or it cannot be resumed with these settings and photos.
    """
    folder = run.config.checkpoint_dir
    tensors, header = read_run(folder)
    before, now = header["settings"], plain_settings(run.config)
    for name in FIXED:
        if before[name] != now[name]:
            raise ValueError(
                f"{name} must be {before[name]}, as when {folder / LAST} was saved, got {now[name]}. "
                "Set it back, or train anew without --load-model."
            )
    if header["fingerprint"] != run.fingerprint:
        raise ValueError(
            f"the photos must be those that {folder / LAST} was trained on, but files were added, removed or changed. "
            "Put them back, or train anew without --load-model."
        )
    for part in ("network", "average"):
        getattr(run, part).load_state_dict(select(tensors, part))
    for name, parameter in run.network.named_parameters():
        moments = select(tensors, f"optimizer/{name}")
        # In the memory format of their parameter: the optimizer goes through both as they lie in memory.
        for key in moments.keys() - {"step"}:
            moments[key] = torch.empty_like(parameter).copy_(moments[key])
        if moments:
            run.optimizer.state[parameter] = moments | {"step": moments["step"].to(run.device)}
    run.optimizer.param_groups[0]["lr"] = header["learning_rate"]  # of the last step, if that ended the epoch
    run.loss_sum.copy_(tensors["loss_sum"])
    if header["scaler"] and run.scaler.is_enabled():  # a run may be resumed in another precision
        run.scaler.load_state_dict(header["scaler"])
    run.progress = Progress(**header["progress"])
    run.description.trained["started_from"] = header["description"]["trained"]["started_from"]
    if not (folder / BEST).exists():
        run.progress.best_dice = -1.0  # the next validated weights take its place
    for name in settings_of_result(run.config):
        if before.get(name, now[name]) != now[name]:
            print(f"changed since the run began: {name}, from {before[name]} to {now[name]}")
    print(f"resuming {shorten(folder / LAST)} from epoch {run.progress.epoch + 1}, batch {run.progress.batch + 1}")


def select(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Pick the tensors whose names begin with `part/`, without that."""
    return {name.removeprefix(f"{part}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}


def begin_run(run: Run, rank: int) -> None:
    """Resume a run, with its files from the mirror if the machine is new; or set an earlier one in the folder aside."""
    folder, mirror = run.config.checkpoint_dir, run.config.mirror_dir
    if run.config.load_model:
        if rank == 0 and mirror and holds_run(mirror) and not holds_run(folder):
            copy_files(mirror, folder)
        restore_run(run)
    elif rank == 0:
        for place in [place for place in (folder, mirror) if place and holds_run(place)]:
            place = shorten(set_aside(place))
            print(f"the earlier run is now in {place}; delete it, or go on with it by --load-model there")
    if rank > 0:
        return
    write_file(folder / "settings.json", json.dumps(plain_settings(run.config), indent=1).encode())
    print(format_settings(run.config))
    trained, precision = run.description.trained, str(run.precision).removeprefix("torch.")
    print(f"{trained['parameters']:,} parameters, {trained['device']}, {precision}")


def start_epoch(run: Run) -> None:
    """Move to the beginning of the next epoch."""
    start = dict(batch=0, n_seen=0, seconds=0.0, wait_seconds=0.0)
    run.progress = dataclasses.replace(run.progress, epoch=run.progress.epoch + 1, **start)
    run.loss_sum.zero_()


def finish_epoch(run: Run, val_loss: float, val_dice: float) -> None:
    """Note the epoch in the history; save the weights if they are the best so far, then the run."""
    progress, folder = run.progress, run.config.checkpoint_dir
    row = dict(
        epoch=progress.epoch + 1,
        train_loss=run.loss_sum.item() / progress.n_seen,
        val_loss=val_loss,
        val_dice=val_dice,
        learning_rate=run.optimizer.param_groups[0]["lr"],
        images_per_second=round(progress.n_seen / progress.seconds, 3),
        data_wait=round(progress.wait_seconds / progress.seconds, 6),
        seconds=round(progress.seconds, 3),
    )
    progress.history.append(row)
    write_table(folder / "history.csv", progress.history)
    if val_dice > progress.best_dice:
        progress.best_dice = val_dice
        save_weights(folder / BEST, run.average, run.description)
    start_epoch(run)
    save_run(run)
    copy_files(folder, run.config.mirror_dir, skip=PREVIOUS)
    if row["epoch"] == 1:
        print("  ".join(f"{name:>8}" for name in row))
    print("  ".join(f"{value:>{max(8, len(name))}.5g}" for name, value in row.items()), flush=True)


# ------------------------------------------------------------------------------------------------------- score card

THRESHOLDS = np.arange(12, 89) / 100  # probabilities to choose the threshold from
N_THRESHOLD = 256  # the most photos that it is chosen on


def choose_threshold(segmenter: Segmenter, cache: Cache, rows: Sequence[int]) -> float:
    """Choose the probability from which a pixel is car, on photos spread evenly, at full resolution."""
    levels = np.array([to_logit(threshold) for threshold in THRESHOLDS], np.float32)

    def score(row: int) -> np.ndarray:
        mask, known = cache.load_mask(row)
        seen = ... if known is None else known
        return dice_by_threshold(segmenter.read(cache.pairs[row].image_path)[seen], mask[seen], levels)

    curves = machine.map_photos(score, rows[:: math.ceil(len(rows) / N_THRESHOLD)])
    # Among equally good thresholds the one nearest to one half.
    order = np.lexsort((np.abs(THRESHOLDS - 0.5), -np.mean(curves, axis=0).round(6)))
    return float(THRESHOLDS[order[0]])


def score_photos(
    segmenter: Segmenter, cache: Cache, rows: Sequence[int], threshold: float, mean_mask: np.ndarray
) -> list[dict]:
    """Score photos at full resolution, as `predict.py` segments them; unknown pixels do not count.

    Args:
        threshold: Probability from which a pixel is car.
        mean_mask: (h, w), float32 in [0, 1]: mean coverage of the training photos, as a baseline.

    Returns:
        Scores of each photo, in the order of `rows`.
    """

    def score(row: int) -> dict:
        pair, (mask, known) = cache.pairs[row], cache.load_mask(row)
        seen = ... if known is None else known
        height, width = segmenter.fit(*mask.shape)
        bound = upsample(area_average(mask.astype(np.float32), width, height), *mask.shape) > 0.5
        baseline = upsample(mean_mask, *mask.shape) > 0.5
        prediction = segmenter.read(pair.image_path) > to_logit(threshold)
        edge = find_edge(mask)[seen]
        mask, prediction, bound, baseline = (each[seen] for each in (mask, prediction, bound, baseline))
        return dict(
            name=pair.name,
            car=pair.car,
            view=pair.view,
            dice=dice(prediction, mask),
            accuracy=pixel_accuracy(prediction, mask),
            edge_dice=dice(prediction[edge], mask[edge]),
            upper_bound=dice(bound, mask),
            mean_mask_dice=dice(baseline, mask),
            mean_mask_accuracy=pixel_accuracy(baseline, mask),
            black_dice=dice(np.zeros_like(mask), mask),
            black_accuracy=1 - float(mask.mean()),
            car_fraction=float(prediction.mean()),
        )

    return machine.map_photos(score, rows)


def score_run(run: Run, cache: Cache, train_rows: Sequence[int], rows: Sequence[int]) -> dict:
    """Choose the threshold of a run's best weights, score them as `predict.py` will use them, save and print it all.

    Returns:
        What the command prints at its end, by name.
    """
    folder, picture_dir = run.config.checkpoint_dir, run.config.prediction_dir
    if not (folder / BEST).exists():  # lost after the last epoch
        save_weights(folder / BEST, run.average, run.description)
    segmenter = Segmenter(folder / BEST, run.config.device, n_parallel=machine.n_cores())
    some = train_rows[:: max(1, len(train_rows) // 512)]
    mean_mask = np.mean([cache.coverage[row] / np.float32(255) for row in some], axis=0)
    threshold = choose_threshold(segmenter, cache, rows)
    scores = score_photos(segmenter, cache, rows, threshold, mean_mask)
    card = summarise(scores, threshold)
    network, description = load_network(folder / BEST)
    trained = {**description.trained, "epochs": run.progress.epoch, "score_card": card}
    save_weights(folder / BEST, network, dataclasses.replace(description, threshold=threshold, trained=trained))
    write_file(folder / "score_card.json", json.dumps(card, indent=1).encode())
    write_table(folder / "scores.csv", scores)
    copy_files(folder, run.config.mirror_dir, skip=PREVIOUS)
    print(format_score_card(card))
    worst = [rows[index] for index in np.argsort([row["dice"] for row in scores], stable=True)[:6]]
    views = [row for row in rows if cache.pairs[row].car == cache.pairs[rows[0]].car]
    save_picture(picture_dir / "curves.png", draw_curves(run.progress.history))
    save_picture(picture_dir / "worst.png", draw_predictions(segmenter, cache, worst))
    save_picture(picture_dir / "views.png", draw_views(segmenter, cache, views))
    return dict(
        **{key: card[key] for key in ("dice", "accuracy", "edge_dice", "threshold")},
        **{key: run.progress.history[-1][key] for key in ("images_per_second", "data_wait")},
        seconds=time.perf_counter() - run.started,
        peak_memory_mib=machine.peak_memory_mib(run.device),
        parameters=run.description.trained["parameters"],
        checkpoint=folder / BEST,
    )
