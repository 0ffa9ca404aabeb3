"""The textbook way, written once: what a first tutorial on this task does. The benchmarks compare with it; nothing else uses it.

The network and the augmentations are ours, so that both ways compute the same; what differs is how.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from unet import UNet

from data import Pair, make_transform


def read_pair(pair: Pair, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode photo and mask whole, then resize; the mask by its nearest pixel.

    Returns:
        Photo (height, width, 3), uint8; mask (height, width), uint8, 0 or 255.
    """
    image = Image.open(pair.image_path).convert("RGB").resize((width, height), Image.BILINEAR)
    mask = Image.open(pair.mask_path).convert("L").resize((width, height), Image.NEAREST)
    return np.array(image), np.array(mask)


class TextbookDataset(Dataset):
    """Read, resize and augment each photo each time that it is wanted."""

    def __init__(self, pairs: list[Pair], width: int, height: int, augment: bool = True):
        self.pairs, self.width, self.height = pairs, width, height
        self.transform = make_transform() if augment else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Give photo (3, height, width) and mask (1, height, width), float32 in [0, 1]."""
        image, mask = read_pair(self.pairs[index], self.width, self.height)
        if self.transform is not None:
            augmented = self.transform(image=image, mask=mask)
            image, mask = augmented["image"], augmented["mask"]
        image = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        return image.contiguous(), (torch.from_numpy(mask) > 127).float().unsqueeze(0)


def make_loader(
    pairs: list[Pair], width: int, height: int, batch_size: int, workers: int = 2, augment: bool = True
) -> DataLoader:
    """Load shuffled batches with a few worker processes, started anew each epoch."""
    dataset = TextbookDataset(pairs, width, height, augment)
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, pin_memory=torch.cuda.is_available())


def make_step(base_width: int, device: str = "cpu") -> Callable[[Tensor, Tensor], tuple[float, float]]:
    """Make a function that trains on one batch and gives its loss and Dice, both read back from the device at once.

    Float32 on a CPU, fp16 with autocast on a GPU; plain layout, nothing compiled.
    """
    torch.manual_seed(0)
    network = UNet(base_width=base_width).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    loss_function = nn.BCEWithLogitsLoss()
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda")

    def step(images: Tensor, masks: Tensor) -> tuple[float, float]:
        images, masks = images.to(device), masks.to(device)
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            logits = network(images)
            loss = loss_function(logits, masks)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        prediction = (torch.sigmoid(logits) > 0.5).float()
        dice = 2 * (prediction * masks).sum() / (prediction.sum() + masks.sum() + 1e-8)
        return loss.item(), dice.item()

    return step


def train_epoch(loader: DataLoader, step: Callable) -> tuple[float, float]:
    """Train on each batch once.

    Returns:
        Seconds in all; seconds of these spent waiting for data.
    """
    waited = 0.0
    started = clock = time.perf_counter()
    for images, masks in loader:
        waited += time.perf_counter() - clock
        step(images, masks)
        clock = time.perf_counter()
    return clock - started, waited


@torch.no_grad()
def predict(network: nn.Module, image_paths: list[Path], width: int, height: int, output_dir: Path) -> Iterator[Path]:
    """Write a mask for each photo, one photo after the other: whole decode, float32, enlarge, cut, save."""
    network.eval()
    for path in image_paths:
        photo = Image.open(path).convert("RGB")
        image = (
            torch.from_numpy(np.array(photo.resize((width, height), Image.BILINEAR)))
            .permute(2, 0, 1)
            .float()
            .div(255)
            .unsqueeze(0)
        )
        probability = torch.sigmoid(network(image))
        probability = F.interpolate(probability, (photo.height, photo.width), mode="bilinear")
        mask = (probability[0, 0].numpy() > 0.5).astype(np.uint8) * 255
        Image.fromarray(mask).save(output_dir / f"{path.stem}.png")
        yield output_dir / f"{path.stem}.png"
