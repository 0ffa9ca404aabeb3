"""How fast do full-resolution photos become mask files, and cut-outs?

    python benchmarks/prediction.py
    python benchmarks/prediction.py --photos data/test       the competition's photos

Baseline: one at a time, whole decode with Pillow, PyTorch in float32, PNG as Pillow saves it. Ours: predict.py, from
reading its weights to the last file on disk. Both with the same weights, all cores, a new process each time, and photos
that the system holds in memory: synthetic ones, or those of a folder.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import baseline
import common
from carvana.listing import list_files
from carvana.pictures import IMAGE_SUFFIXES
from carvana.segmenter import DEFAULT_WEIGHTS
from carvana.weights import Description, load_network, save_weights
from unet import UNet


@dataclass(frozen=True)
class Settings(common.Settings):
    """What to measure."""

    photos: Path | None = None  # folder of photos; None renders synthetic ones
    weights: Path = DEFAULT_WEIGHTS  # with --quick a tiny network that has learnt nothing
    limit: int | None = None  # use at most so many photos


def baseline_prediction(photos: list[Path], weights: Path, outputs: tuple[str, ...], work_dir: Path) -> Iterator[float]:
    """Measure photos per second."""
    network, description = load_network(weights)
    output_dir = work_dir / "masks_baseline"
    output_dir.mkdir(exist_ok=True)
    size = description.image_width, description.image_height
    work = lambda n=None: list(baseline.predict(network, photos[:n], *size, output_dir))
    work(2)
    return common.rates(len(photos), work)


def our_prediction(photos: list[Path], weights: Path, outputs: tuple[str, ...], work_dir: Path) -> Iterator[float]:
    """Measure photos per second."""
    import predict

    output = work_dir / "masks_ours"
    settings = predict.Settings(tuple(photos), output=output, outputs=outputs, weights=weights, overwrite=True)

    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if predict.predict(settings):
                raise RuntimeError("predict.py failed on some photos.")

    return common.rates(len(photos), work)


def choose_weights(settings: common.Settings) -> Path:
    """Return the weights to measure; with --quick those of a tiny network that has learnt nothing."""
    if not settings.quick:
        return getattr(settings, "weights", DEFAULT_WEIGHTS)
    network = UNet(base_width=4)
    save_weights(settings.work_dir / "random.safetensors", network, Description(48, 32, network.settings))
    return settings.work_dir / "random.safetensors"


def main(settings: Settings) -> None:
    if settings.photos:
        photos, kind = list_files(settings.photos, IMAGE_SUFFIXES), f"of {settings.photos}"
    else:
        photos, kind = [pair.image_path for pair in common.studio_photos(settings)], "synthetic"
    photos = photos[: settings.limit]
    weights = choose_weights(settings)
    network, description = load_network(weights)
    size = f"{description.image_width}x{description.image_height}, base width {network.settings['base_width']}"
    setting = f"{len(photos)} photos {kind}, network at {size}, {os.cpu_count()} cores"
    for question, outputs, other_way in (
        ("prediction: masks", ("mask",), baseline_prediction),
        ("prediction: masks and cut-outs", ("mask", "cutout"), None),  # the baseline makes no cut-outs
    ):
        ways = (photos, weights, outputs, settings.work_dir)
        measured = common.measure_pairs(other_way, our_prediction, ways, settings.pairs, anew=True)
        common.report(settings.results, question, setting, "photos/s", measured)


if __name__ == "__main__":
    common.run(main, Settings)
