"""What can go wrong while training is noticed and kept out of checkpoints; the same seed gives the same losses."""

import dataclasses
import math
import os
import platform
import shutil

import extra
import numpy as np
import pytest
import torch
import train
from carvana.weights import read_tensors
from conftest import draw_cars
from unet import UNet

import data


@pytest.fixture
def config(tiny_settings) -> train.Config:
    return train.Config(**{**tiny_settings, "base_width": 2, "augment": False, "background": 0.0})


def last_of(config: train.Config) -> tuple[dict, dict]:
    """Tensors and header of a run's last checkpoint."""
    return read_tensors(config.checkpoint_dir / extra.LAST)


# ------------------------------------------------------------------------------------------------------ not a number


def spoil_step(monkeypatch, number: int, spoil) -> None:
    """Let `spoil` change run or loss after the `number`th step."""
    real_step, steps = train.train_step, []

    def step(run, batch):
        loss = real_step(run, batch)
        steps.append(1)
        return spoil(run, loss) if len(steps) == number else loss

    monkeypatch.setattr(train, "train_step", step)


def spoil_weights(run, loss):
    with torch.no_grad():
        run.network.head.bias.fill_(float("nan"))
    return loss


@pytest.mark.parametrize("spoil", [lambda run, loss: loss * math.nan, lambda run, loss: loss * math.inf, spoil_weights])
def test_a_loss_or_weights_that_are_not_finite_stop_the_run_and_are_not_saved(config, monkeypatch, spoil):
    config = dataclasses.replace(config, checkpoint_minutes=0)
    spoil_step(monkeypatch, 2, spoil)
    with pytest.raises(RuntimeError, match="no longer finite in epoch 1, by batch 2. Lower learning_rate"):
        train.train(config)
    monkeypatch.undo()
    tensors, header = last_of(config)
    assert header["progress"]["batch"] == 1 and all(tensor.isfinite().all() for tensor in tensors.values())
    train.train(dataclasses.replace(config, load_model=True))  # which the sentence advises
    assert all(math.isfinite(row["train_loss"]) for row in last_of(config)[1]["progress"]["history"])


# ------------------------------------------------------------------------------------------------------ out of memory


@pytest.mark.parametrize(
    "error, sentence",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "^memory ran out. Lower batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "^memory ran out. Lower batch_size"),
        (RuntimeError("something else"), "^something else$"),
    ],
)
def test_a_lack_of_memory_is_a_sentence_that_says_what_to_lower(config, monkeypatch, error, sentence):
    def forward(network, image):
        raise error

    monkeypatch.setattr(UNet, "forward", forward)
    with pytest.raises(RuntimeError, match=sentence):
        train.train(config)


# ------------------------------------------------------------------------------------------------------- other photos


@pytest.mark.parametrize("change", ["added", "removed", "replaced"])
def test_a_run_does_not_go_on_with_other_photos(config, tmp_path, change):
    folder = draw_cars(tmp_path / "own")
    photos, masks = folder / "train", folder / "train_masks"
    config = dataclasses.replace(config, train_image_dir=photos, train_mask_dir=masks, epochs=1)
    train.train(config)
    for path in (*photos.iterdir(), *masks.iterdir()):
        os.utime(path, ns=(1, 1))
    train.train(dataclasses.replace(config, load_model=True))  # a fresh copy is the same data
    first = sorted(photos.iterdir())[0]
    if change == "added":
        shutil.copy(first, photos / "another.jpg"), shutil.copy(sorted(masks.iterdir())[0], masks / "another_mask.gif")
    elif change == "removed":
        first.unlink()
    else:
        first.write_bytes(first.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="the photos must be those that .*last.safetensors was trained on"):
        train.train(dataclasses.replace(config, load_model=True))


# -------------------------------------------------------------------------------------------------------- determinism


# Loss of some steps in float32 without augmentation, PyTorch 2.15 on x86-64: the middle of what AVX-512 with one and
# two threads, AVX2 and SSE4.1 give, which lie within 0.0006 of it. A change beyond 0.001 is a change of the network,
# the loss or the order, not of rounding.
GOLDEN_LOSSES = {1: 1.2062, 2: 1.1994, 5: 1.1773, 10: 1.1508, 20: 1.0841, 30: 1.0429, 40: 0.9891, 50: 0.9359}


def test_the_first_50_losses_are_those_of_other_machines(tmp_path):
    # The photos are generated: no decoder's version can change them.
    rng = np.random.default_rng(0)
    height, width, n = 32, 48, 12
    y, x = np.mgrid[:height, :width]
    coverage = np.stack([255 * (((x - 24 - i) / 14) ** 2 + ((y - 16) / 9) ** 2 < 1) for i in range(n)]).astype(np.uint8)
    images = rng.integers(60, 120, (n, height, width, 3), np.uint8) + (coverage[..., None] // 3).astype(np.uint8)
    np.save(tmp_path / "images.npy", images), np.save(tmp_path / "coverage.npy", coverage)
    pairs = [data.Pair(f"{i}", tmp_path, tmp_path, f"{i}", 0) for i in range(n)]
    dataset = data.CarDataset(data.Cache(tmp_path, pairs, [[0] * 4] * n), seed=0)
    batches = data.EpochBatches(range(n), 4, shuffle=True)
    torch.manual_seed(0)
    network = UNet(base_width=4)
    # A large eps: else the first steps of weights whose gradient is nearly zero follow the sign of rounding errors.
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, eps=1e-3, fused=True)
    losses: list[float] = []
    while len(losses) < max(GOLDEN_LOSSES):
        batches.start(len(losses) // len(batches))
        for batch in data.make_loader(dataset, batches, workers=0):
            images, coverage, known = train.to_device(batch, torch.device("cpu"))
            loss = train.segmentation_loss(network(images), coverage, known)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    found = {step: losses[step - 1] for step in GOLDEN_LOSSES}
    assert found == pytest.approx(GOLDEN_LOSSES, abs=1e-3), platform.machine()


def test_the_same_seed_gives_the_same_weights_and_losses_to_the_bit(config, tmp_path):
    runs = []
    for name in ("one", "other"):
        run = dataclasses.replace(config, augment=True, background=0.3, checkpoint_dir=tmp_path / name)
        train.train(run)
        runs.append(last_of(run))
    (one, header), (other, other_header) = runs
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    losses = lambda header: [row["train_loss"] for row in header["progress"]["history"]]
    assert losses(header) == losses(other_header)
