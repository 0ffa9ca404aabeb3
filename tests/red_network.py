"""A network made by hand that takes red for car, so that a test knows the right answer without training."""

import importlib.util
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from carvana.weights import Description, save_weights
from PIL import Image
from unet import UNet

RED, GREEN = (220, 20, 30), (20, 220, 40)


def make_red_network(depth: int = 2) -> UNet:
    """Build a network whose logit is high where red exceeds green: one channel passes straight to the head."""
    network = UNet(base_width=2, depth=depth).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.zero_()
    network.colour_mean.zero_(), network.colour_std.fill_(1)
    first, last = network.contracting_path[0], network.expanding_path[-1]
    first[0].weight[0, 0, 1, 1], first[0].weight[0, 1, 1, 1] = 1, -1
    first[3].weight[0, 0, 1, 1] = 1
    last[0].weight[0, 0, 1, 1] = last[3].weight[0, 0, 1, 1] = 1
    network.head.weight[0, 0], network.head.bias[0] = 30, -12
    return network


def save_weights_for(path: Path, network: UNet, width: int, height: int, threshold: float) -> Path:
    """Save a network as if it had been trained on photos of this size."""
    save_weights(path, network, Description(width, height, network.settings, threshold))
    return path


def save_red_weights(path: Path) -> Path:
    return save_weights_for(path, make_red_network(), 96, 64, 0.4)


def save_random_weights(path: Path) -> Path:
    """Save a network that takes red for car, but for some noise in all its weights, for photos of 48x32."""
    torch.manual_seed(0)
    network = make_red_network(depth=4)
    for parameter in network.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    return save_weights_for(path, network, 48, 32, 0.45)


def draw_photo(width: int, height: int, background=GREEN) -> np.ndarray:
    """Draw a red ellipse in the middle, (height, width, 3), uint8."""
    # Drawn at four times the size, so that its edge mixes red and green as a camera does.
    large = np.empty((4 * height, 4 * width, 3), np.uint8)
    large[:] = background
    cv2.ellipse(large, (2 * width, 2 * height), (int(1.2 * width), int(1.2 * height)), 0, 0, 360, RED, -1)
    return cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)


def save_photo(path: Path, width: int = 48, height: int = 32, **keywords) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_photo(width, height, **keywords)).save(path, quality=95)
    return path


def load(file) -> np.ndarray:
    with Image.open(file) as picture:
        return np.array(picture)


def is_red(photo: np.ndarray) -> np.ndarray:
    return photo[..., 0].astype(int) - photo[..., 1] > 90


def need(*modules: str, requirements: str) -> None:
    """Skip a file of tests for want of packages, but not in CI, where all must be there."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"{' '.join(missing)} not installed: pip install -r {requirements}", allow_module_level=True)
