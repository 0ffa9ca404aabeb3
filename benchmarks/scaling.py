"""Do cache, epoch and prediction cost in proportion to the number of photos?

    python benchmarks/scaling.py

Measures 1x, 4x and 16x the photos (hard links of the same studio photos) and draws benchmarks/scaling.png. In the rows of
results.csv the left number is the cost of a photo at 1x, the right one at 16x.
"""

import contextlib
import csv
import io
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import common
import train
from prediction import choose_weights, our_prediction

from data import Pair, build_cache

WIDTH, HEIGHT = 240, 160


def cache_seconds(pairs: list[Pair], weights: Path, work_dir: Path) -> Iterator[float]:
    yield 0.0
    while True:
        shutil.rmtree(work_dir / "cache_scaling", ignore_errors=True)
        started = time.perf_counter()
        build_cache(pairs, WIDTH, HEIGHT, work_dir / "cache_scaling", quiet=True)
        yield time.perf_counter() - started


def epoch_seconds(pairs: list[Pair], weights: Path, work_dir: Path) -> Iterator[float]:
    """Yield the seconds of the second of two epochs, validation left out."""
    photos, masks = pairs[0].image_path.parent, pairs[0].mask_path.parent
    config = train.Config(
        # Validated on the same photos, so that none is taken from the training: one car in three would be, but not one in ten of many.
        train_image_dir=photos,
        train_mask_dir=masks,
        test_image_dir=photos,
        test_mask_dir=masks,
        image_width=WIDTH,
        image_height=HEIGHT,
        base_width=16,
        epochs=2,
        checkpoint_dir=work_dir / "checkpoints",
        prediction_dir=work_dir / "predictions",
        cache_dir=work_dir / "cache",
    )
    yield 0.0
    while True:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train.train(config)
        with open(config.checkpoint_dir / "history.csv", newline="") as file:
            yield float(list(csv.DictReader(file))[-1]["seconds"])


def prediction_seconds(pairs: list[Pair], weights: Path, work_dir: Path) -> Iterator[float]:
    steps = our_prediction([pair.image_path for pair in pairs], weights, ("mask",), work_dir)
    next(steps)
    yield 0.0
    for photos_per_second in steps:
        yield len(pairs) / photos_per_second


def draw(path: Path, seconds: dict[str, dict[int, list[float]]]) -> None:
    """Draw each stage's medians and the straight line from nothing through the last one."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(1, len(seconds), figsize=(10, 3.2), layout="constrained")
    for axes, (stage, by_count) in zip(plots, seconds.items()):
        counts = list(by_count)
        medians = [statistics.median(values) for values in by_count.values()]
        axes.plot([0, counts[-1]], [0, medians[-1]], "--", color="#999999", label="in proportion")
        axes.plot(counts, medians, "o-", color="#0072B2", label="measured")
        axes.set(title=stage, xlabel="photos", ylabel="seconds", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    arguments = common.parse_arguments(__doc__, weights=None)
    photos = common.studio_photos(arguments.work_dir, 3, arguments.quick)
    few = [pair for pair in photos if pair.view in (1, 4, 7, 10, 13) or arguments.quick]
    weights = choose_weights(arguments)
    sets = [common.repeat_photos(few, times, arguments.work_dir / f"scaling_{times}x") for times in (1, 4, 16)]
    seconds: dict[str, dict[int, list[float]]] = {}
    for stage, way in (("cache", cache_seconds), ("epoch", epoch_seconds), ("prediction", prediction_seconds)):
        print(stage, flush=True)
        seconds[stage] = {len(pairs): [] for pairs in sets}
        ways = [common.Way(way, pairs, weights, arguments.work_dir) for pairs in sets]
        try:
            for _ in range(arguments.pairs):
                for pairs, process in zip(sets, ways):
                    seconds[stage][len(pairs)].append(process.measure())
                print(
                    "  " + ", ".join(f"{count} photos {values[-1]:.2f} s" for count, values in seconds[stage].items()),
                    flush=True,
                )
        finally:
            for process in ways:
                process.close()
        (low, first), *_, (high, last) = seconds[stage].items()
        per_photo = [(1000 * a / low, 1000 * b / high) for a, b in zip(first, last)]
        size = "at the weights' size" if stage == "prediction" else f"{WIDTH}x{HEIGHT}"
        setting = f"{stage}, {low} photos (left) against {high} (right), native, {size}"
        common.report(arguments.results, "scaling", setting, "ms a photo", per_photo, less_is_better=True)
    draw((arguments.work_dir if arguments.quick else common.PROJECT_DIR / "benchmarks") / "scaling.png", seconds)


if __name__ == "__main__":
    common.run(main)
