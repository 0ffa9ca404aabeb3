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
SURE_LOGIT = 2  # probability 0.88: the coarse pass takes specks on floors and walls for car, but is sure of none


class Segmenter:
    """A trained network that finds the car in photos of any size.

    Args:
        weights: A .safetensors file, or a network, of which a copy is used: a training may go on with it.
        device: cuda, mps, cpu, or auto for the first of these that is there.
        tta: Average with the mirrored view: twice the time, slightly more exact.
        fast: Coarse-to-fine: find the car at a third of the size first, then segment its surroundings alone.
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
        fast: bool = False,
        precision: str = "auto",
        description: Description | None = None,
        n_parallel: int = 1,
    ):
        if isinstance(weights, UNet):
            network, self.description = copy.deepcopy(weights).eval().requires_grad_(False), description
        else:
            network, self.description = load_network(weights)
        self.device, self.tta, self.fast = choose_device(device), tta, fast
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
        return self.coarse_to_fine(small) if self.fast else self.run_network(small)

    def read(self, path: Path | str) -> np.ndarray:
        """Compute logits (H, W), float32, at full resolution from a photo's file, as `predict.py` does."""
        image, full_size = read_image(path, self.fit)
        return upsample(self.logits(image, full_size), *full_size)

    def run_network(self, small: np.ndarray) -> np.ndarray:
        """Compute logits (h, w), float32, of a photo that has been resized: RGB (h, w, 3), float32 in [0, 1]."""
        height, width = small.shape[:2]
        padded = cv2.copyMakeBorder(small, 0, -height % self.divisor, 0, -width % self.divisor, cv2.BORDER_REPLICATE)
        logits = self.runtime(padded)
        if self.tta:
            logits = (logits + self.runtime(np.ascontiguousarray(padded[:, ::-1]))[:, ::-1]) / 2
        return np.ascontiguousarray(logits[:height, :width])

    def coarse_to_fine(self, small: np.ndarray) -> np.ndarray:
        """Like `run_network`, but find the car at a third of the size, then run the network on its box alone.

        Outside the box all is background: the coarse pass is too coarse for its uncertainty to mean anything.
        Specks of which the coarse pass is nowhere sure do not count. If the fine pass finds car at the box's edge,
        where more may lie outside, it runs again on a larger box; if either finds no car, on the whole photo. A
        second car, too small for the coarse pass to be sure of it, is missed.
        """
        height, width = small.shape[:2]
        coarse = self.run_network(area_average(small, -(-width // 3), -(-height // 3)))
        # Hysteresis thresholding: of the connected parts above one threshold, those that somewhere pass the higher one.
        n_parts, parts = cv2.connectedComponents((coarse > 0).view(np.uint8))
        is_car = np.zeros(n_parts, bool)
        is_car[parts[coarse > SURE_LOGIT]] = True
        rows, columns = (np.flatnonzero(is_car[parts].any(axis)) for axis in (1, 0))
        if rows.size == 0:
            return self.run_network(small)
        top, bottom = widen(3 * rows[0], 3 * rows[-1] + 3, height)
        left, right = widen(3 * columns[0], 3 * columns[-1] + 3, width)
        step = 64
        while True:
            box = self.run_network(np.ascontiguousarray(small[top:bottom, left:right]))
            # Car at an edge of the box may go on beyond it: move that edge, each time twice as far.
            edges = box[0], box[-1], box[:, 0], box[:, -1]
            above, below, before, behind = (step * int(edge.max() > 0) for edge in edges)
            larger = max(0, top - above), min(height, bottom + below), max(0, left - before), min(width, right + behind)
            if larger == (top, bottom, left, right):
                break
            (top, bottom, left, right), step = larger, 2 * step
        if box.max() <= 0:
            return self.run_network(small)
        logits = np.full((height, width), -20, np.float32)
        logits[top:bottom, left:right] = box
        return logits


def widen(start: int, stop: int, size: int) -> tuple[int, int]:
    """Widen a range of pixels by 24, to show the network what is round a car, and on to multiples of 16."""
    return max(0, (start - 24) // 16 * 16), min(size, -(-(stop + 24) // 16) * 16)


def to_probability(logits: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities, float32 both."""
    return torch.from_numpy(logits).sigmoid().numpy()


def to_logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def measure_uncertainty(logits: np.ndarray) -> float:
    """Measure the network's uncertainty: sum of 4 p (1 - p) over the square root of the sum of p, p the probabilities.

    A pixel at one half counts 1, a sure one 0; on a photo like those of the training only the car's edge is
    undecided, and the square root makes a small car count like a large one. It cannot tell a wrong answer of which
    the network is sure. The logits (h, w), float32, are those of `Segmenter.logits`.
    """
    probability = to_probability(logits)
    return float(4 * (probability * (1 - probability)).sum() / max(1.0, probability.sum()) ** 0.5)
