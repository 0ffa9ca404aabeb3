"""How fast do native photos become mask files, and cut-outs?

    python benchmarks/prediction.py

Textbook: one at a time, whole decode with Pillow, float32, PNG as Pillow saves it. Ours: predict.py, from reading its weights to
the last file on disk, as it is and with --fast. Both with the same weights, all cores, a new process each time, and photos that
the system holds in memory: the studio's, whose cars the shipped weights have never seen, or those of a folder, such as the
competition's with --photos data/test.
"""

import contextlib
import io
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import common
import textbook
from carvana.listing import list_files
from carvana.pictures import IMAGE_SUFFIXES
from carvana.weights import Description, load_network, save_weights
from unet import UNet


def random_weights(path: Path) -> Path:
    """Save a tiny network that has learnt nothing, to try the script out."""
    save_weights(path, UNet(base_width=4), Description(48, 32, UNet(base_width=4).settings))
    return path


def textbook_prediction(
    photos: list[Path], weights: Path, outputs: tuple[str, ...], work_dir: Path, fast: bool = False
) -> Iterator[float]:
    """Yield photos per second."""
    network, description = load_network(weights)
    output_dir = work_dir / "masks_textbook"
    output_dir.mkdir(exist_ok=True)
    size = description.image_width, description.image_height
    list(textbook.predict(network, photos[:2], *size, output_dir))
    yield 0.0
    while True:
        started = time.perf_counter()
        for _ in textbook.predict(network, photos, *size, output_dir):
            pass
        yield len(photos) / (time.perf_counter() - started)


def our_prediction(
    photos: list[Path], weights: Path, outputs: tuple[str, ...], work_dir: Path, fast: bool = False
) -> Iterator[float]:
    """Yield photos per second."""
    import predict

    output_dir = work_dir / "masks_ours"
    settings = predict.Settings(photos=tuple(photos), output=output_dir, outputs=outputs, weights=weights, fast=fast)
    yield 0.0
    while True:
        shutil.rmtree(output_dir, ignore_errors=True)
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if predict.predict(settings):
                raise RuntimeError("predict.py failed on some photos.")
        yield len(photos) / (time.perf_counter() - started)


def choose_weights(arguments) -> Path:
    """Take the shipped weights, others named on the command line, or nonsense with --quick."""
    from carvana.segmenter import DEFAULT_WEIGHTS

    return (
        random_weights(arguments.work_dir / "random.safetensors")
        if arguments.quick
        else arguments.weights or DEFAULT_WEIGHTS
    )


def main() -> None:
    arguments = common.parse_arguments(__doc__, cars=3, weights=None, photos=None)
    if arguments.photos:
        photos, kind = list_files(arguments.photos, IMAGE_SUFFIXES), f"photos of {arguments.photos}"
    else:
        photos = [pair.image_path for pair in common.studio_photos(arguments.work_dir, arguments.cars, arguments.quick)]
        kind = "native photos"
    weights = choose_weights(arguments)
    network, description = load_network(weights)
    size = f"{description.image_width}x{description.image_height}, base width {network.settings['base_width']}, {os.cpu_count()} cores"
    for question, outputs, fast in (
        (f"prediction: {kind} to masks", ("mask",), False),
        (f"prediction --fast: {kind} to masks", ("mask",), True),
        ("prediction: masks and cut-outs" + (f", {kind}" if arguments.photos else ""), ("mask", "cutout"), False),
    ):
        other_way = textbook_prediction if outputs == ("mask",) else None  # the textbook makes no cut-outs
        ways = (photos, weights, outputs, arguments.work_dir, fast)
        measured = common.measure_pairs(other_way, our_prediction, ways, arguments.pairs, anew=True)
        common.report(arguments.results, question, f"{len(photos)} photos, network at {size}", "photos/s", measured)


if __name__ == "__main__":
    common.run(main)
