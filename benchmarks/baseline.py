"""The baseline: what a first tutorial on this task does. The benchmarks compare with it; nothing else uses it.

The network and the augmentations are ours, so that both ways compute the same; what differs is how.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import common  # noqa: F401, puts scripts/ on the path
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


class BaselineDataset(Dataset):
    """Read, resize and augment each photo each time that it is wanted."""

    def __init__(self, pairs: list[Pair], width: int, height: int):
        self.pairs, self.width, self.height = pairs, width, height
        self.transform = make_transform()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return photo (3, height, width) and mask (1, height, width), float32 in [0, 1]."""
        image, mask = read_pair(self.pairs[index], self.width, self.height)
        augmented = self.transform(image=image, mask=mask)
        image = torch.from_numpy(augmented["image"]).permute(2, 0, 1).float() / 255
        return image.contiguous(), (torch.from_numpy(augmented["mask"]) > 127).float().unsqueeze(0)


def make_loader(pairs: list[Pair], width: int, height: int, batch_size: int, workers: int) -> DataLoader:
    """Load shuffled batches with worker processes, started anew each epoch."""
    dataset = BaselineDataset(pairs, width, height)
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, pin_memory=torch.cuda.is_available())


def make_step(base_width: int, device: str = "cpu") -> Callable[[Tensor, Tensor], tuple[float, float]]:
    """Make a function that trains on one batch and returns its loss and Dice, both read back from the device at once.

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


@torch.no_grad()
def predict(network: nn.Module, image_paths: list[Path], width: int, height: int, output_dir: Path) -> Iterator[Path]:
    """Write a mask for each photo, one photo after the other: whole decode, float32, upsample, threshold, save."""
    network.eval()
    for path in image_paths:
        photo = Image.open(path).convert("RGB")
        image = torch.from_numpy(np.array(photo.resize((width, height), Image.BILINEAR)))
        probability = torch.sigmoid(network(image.permute(2, 0, 1).float().div(255).unsqueeze(0)))
        probability = F.interpolate(probability, (photo.height, photo.width), mode="bilinear")
        mask = (probability[0, 0].numpy() > 0.5).astype(np.uint8) * 255
        Image.fromarray(mask).save(output_dir / f"{path.stem}.png")
        yield output_dir / f"{path.stem}.png"
