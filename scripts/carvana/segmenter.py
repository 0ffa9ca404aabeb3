"""The trained network in use: from a photo of any size to the probability of each of its pixels to belong to a car."""

import copy
import math
from pathlib import Path

import cv2
import numpy as np
import torch
from unet import UNet

from carvana.files import PROJECT_DIR
from carvana.machine import choose_device, choose_precision
from carvana.pictures import area_average, read_image, upsample
from carvana.runtime import choose_runtime, fold_batch_norm
from carvana.weights import Description, load_network

DEFAULT_WEIGHTS = PROJECT_DIR / "checkpoints/carvana-unet.safetensors"
MANY_VALUES = 2**26  # of a photo of 22 megapixels; in floating point a larger one takes too much memory


class Segmenter:
    """A trained network that finds the car in photos of any size.

    Args:
        weights: A .safetensors file, or a network, of which a copy is used: a training may go on with it.
        device: cuda, mps, cpu, or auto for the first of these that is there.
        tta: Average with the mirrored view: twice the time, slightly more exact.
        precision: bf16, fp16, float32, or auto for the fastest that the device really has.
        description: Of a network; a file has its own.
        n_parallel: Threads that will call at the same time. On a CPU they share the cores.

    Attributes:
        threshold: Probability from which a pixel is car, tuned on validation cars.
        description: What the file says of itself.
        runtime: What computes the network, and its name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not hold weights of this project, or the machine has no such device.

    Example:
        >>> segmenter = Segmenter()
        >>> probability = segmenter(np.zeros((120, 180, 3), np.uint8))
        >>> probability.shape, probability.dtype
        ((120, 180), dtype('float32'))
        >>> mask = probability > segmenter.threshold
    """

    def __init__(
        self,
        weights: Path | str | UNet = DEFAULT_WEIGHTS,
        device: str = "auto",
        tta: bool = False,
        precision: str = "auto",
        description: Description | None = None,
        n_parallel: int = 1,
    ):
        if isinstance(weights, UNet):
            network, self.description = copy.deepcopy(weights).eval().requires_grad_(False), description
        else:
            network, self.description = load_network(weights)
        self.device, self.tta = choose_device(device), tta
        self.threshold = self.description.threshold
        self.divisor = 2 ** network.settings["depth"]
        self.network = fold_batch_norm(network)
        self.runtime = choose_runtime(self.network, self.device, choose_precision(precision, self.device), n_parallel)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Compute the probability of each pixel to belong to a car.

        Args:
            image: RGB photo (H, W, 3), uint8, of any size.

        Returns:
            Probability (H, W), float32 in [0, 1].

        Raises:
            ValueError: If the photo has another shape or type.
        """
        return to_probability(upsample(self.logits(image), *image.shape[:2]))

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Choose the (height, width) at which the network sees a photo: its own shape, the training size's perimeter.

        So a portrait gets as many pixels as a landscape, and a square no fewer than either. A small photo is
        upsampled by 1.5 at most: blurred further, it looks like no photo of the training.
        """
        total = height + width  # whole numbers, which may be symbols of a graph that is being exported
        wanted = torch.sym_min(self.description.image_height + self.description.image_width, 3 * total // 2)
        scale = lambda side: torch.sym_max((2 * side * wanted + total) // (2 * total), 1)  # rounded, halves up
        return scale(height), scale(width)

    def logits(self, image: np.ndarray, full_size: tuple[int, int] | None = None) -> np.ndarray:
        """Compute logits at about the training size; `upsample` brings them to the photo's.

        Args:
            image: RGB photo (H, W, 3), uint8, whole or already made smaller.
            full_size: The whole photo's (height, width), if `image` was made smaller.

        Returns:
            Logits (h, w), float32, with (h, w) from `fit`.
        """
        dtype, shape = getattr(image, "dtype", type(image).__name__), getattr(image, "shape", ())
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            rule = "an RGB array (height, width, 3) of uint8"
            raise ValueError(f"image must be {rule}, got {dtype} {shape}. carvana.pictures.load_image reads such.")
        height, width = self.fit(*(full_size or image.shape[:2]))
        if image.size > MANY_VALUES:
            image = area_average(image, 2 * width, 2 * height)
        # In floating point: rounded to whole levels, a photo would differ between this and an exported network.
        small = area_average(np.multiply(image, 1 / 255, dtype=np.float32), width, height)
        padded = cv2.copyMakeBorder(small, 0, -height % self.divisor, 0, -width % self.divisor, cv2.BORDER_REPLICATE)
        logits = self.runtime(padded)
        if self.tta:
            logits = (logits + self.runtime(np.ascontiguousarray(padded[:, ::-1]))[:, ::-1]) / 2
        return np.ascontiguousarray(logits[:height, :width])

    def read(self, path: Path | str) -> np.ndarray:
        """Compute logits (H, W), float32, at full resolution from a photo's file, as `predict.py` does."""
        image, full_size = read_image(path, self.fit)
        return upsample(self.logits(image, full_size), *full_size)


def to_probability(logits: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities, float32 both."""
    return torch.from_numpy(logits).sigmoid().numpy()


def to_logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def measure_uncertainty(logits: np.ndarray) -> float:
    """Measure how wrong the network itself expects its mask to be: 100 (1 - Dice) of mask and probability, in percent.

    Where it is sure everywhere this is 0; on a photo like those of the training only the car's edge is undecided. It
    cannot tell a wrong answer of which the network is sure. The logits (h, w), float32, are `Segmenter.logits`. Less
    car than on a thousandth of the pixels counts as that: on a photo without one, hints of car are no uncertainty.

    Example:
        >>> measure_uncertainty(np.array([[9.0, 9.0, 0.5, -9.0]], np.float32)) > 5
        True
    """
    probability, mask = to_probability(logits), logits > 0
    difference, area = np.abs(probability - mask).sum(), probability.sum() + np.count_nonzero(mask)
    return float(100 * difference / max(logits.size / 1000, area))
