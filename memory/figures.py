"""The report's own figures: the network, its schedule, and where it errs. experiments.py draws those of the study."""

from pathlib import Path

import numpy as np
from carvana.metrics import bootstrap_interval
from matplotlib.patches import FancyArrowPatch, Rectangle
from train import Config, learning_rate_at

from experiments import GRID, Run, new_figure

FEATURES, UP, SKIP = "#56B4E9", "#E69F00", "#FFFFFF"  # sky blue, orange, white
ARROWS = {  # colour, dash, meaning
    "convolve": ("#0072B2", "-", "convolution 3×3, batch norm, ReLU"),
    "pool": ("#D55E00", "-", "maximum of 2×2 pixels"),
    "up": ("#009E73", "-", "up-convolution 2×2"),
    "skip": ("#777777", "--", "skip connection: concatenated"),
    "head": ("#CC79A7", "-", "convolution 1×1: logits"),
}


def draw_network(path: Path, base_width: int, width: int, height: int, depth: int = 4) -> None:
    """Draw the U-Net with its channels and sizes.

    Args:
        path: The SVG file.
        base_width: Channels of the first convolution.
        width, height: Training size in pixels.
        depth: Steps down.
    """
    tall = [1.5 * 0.72**level for level in range(depth + 1)]
    top = [-1.95 * level for level in range(depth + 1)]
    middle = [y - h / 2 for y, h in zip(top, tall)]
    gap, step = 0.66, 2.0  # from box to box, from level to level
    right = 2 * depth * step + 4 * gap  # where level 0 of the expanding path ends

    with new_figure(path, 7.2, 4.3) as axes:
        axes.axis("off")

        def box(x: float, level: int, label: object, colour: str = FEATURES) -> None:
            corner = (x - 0.11, top[level] - tall[level])
            axes.add_patch(Rectangle(corner, 0.22, tall[level], facecolor=colour, edgecolor="black", linewidth=0.7))
            axes.text(x, top[level] + 0.07, str(label), ha="center", fontsize=7)

        def arrow(kind: str, start: tuple, end: tuple) -> None:
            colour, dash, _ = ARROWS[kind]
            look = dict(arrowstyle="-|>", mutation_scale=8, color=colour, linewidth=1.1, linestyle=dash)
            axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **look))

        def convolve(x: float, level: int, channels: int) -> None:
            """Draw two convolutions that begin at the box at x."""
            for place in (x, x + gap):
                arrow("convolve", (place + 0.11, middle[level]), (place + gap - 0.11, middle[level]))
                box(place + gap, level, channels)

        for level in range(depth + 1):
            channels, left, end = base_width * 2**level, level * step, right - level * step
            size = f"{width >> level}×{height >> level}"
            axes.text(left - 0.4, middle[level], size, ha="right", va="center", fontsize=6.5, rotation=90)
            box(left, level, 3 if level == 0 else channels // 2)
            convolve(left, level, channels)
            if level == depth:
                continue
            arrow("pool", (left + 2 * gap, top[level] - tall[level]), (left + step, top[level + 1] + 0.32))
            start = end - 2 * gap  # two boxes side by side: from the skip connection, and from below
            box(start - 0.22, level, "", SKIP)
            box(start, level, "", UP)
            axes.text(start - 0.11, top[level] + 0.07, str(2 * channels), ha="center", fontsize=7)
            convolve(start, level, channels)
            arrow("skip", (left + 2 * gap + 0.11, middle[level]), (start - 0.33, middle[level]))
            below = end - step if level + 1 < depth else left + step + 2 * gap
            arrow("up", (below, top[level + 1] + 0.32), (start, top[level] - tall[level]))
        arrow("head", (right + 0.11, middle[0]), (right + gap - 0.11, middle[0]))
        box(right + gap, 0, 1)
        for number, (kind, (_, _, text)) in enumerate(ARROWS.items()):
            y = top[depth] + 0.3 - 0.36 * number
            arrow(kind, (right - 4.6, y), (right - 4.1, y))
            axes.text(right - 3.95, y, text, fontsize=7, va="center")
        axes.text(0, top[0] + 0.4, "photo", ha="center", fontsize=7)
        axes.text(right + gap, top[0] + 0.4, "logits", ha="center", fontsize=7)
        axes.set(xlim=(-1.0, right + 1.2), ylim=(top[depth] - tall[depth] - 0.75, 0.8))


def group_dice(run: Run, key: str) -> dict:
    """Return the last Dice of the run's photos by "view" or "car"."""
    values = sorted({photo[key] for photo in run.dice})
    return {value: [photo["last"] for photo in run.dice if photo[key] == value] for value in values}


def draw_views(path: Path, run: Run) -> None:
    """Plot the mean Dice of each view over the validation cars, with its interval."""
    with new_figure(path, 7.2, 2.2) as axes:
        for view, dice in group_dice(run, "view").items():
            ends = bootstrap_interval(dice, list(map(str, range(len(dice)))))
            axes.plot([view, view], ends, "-", color="#0072B2", linewidth=2)
            axes.plot(view, np.mean(dice), "o", color="#0072B2")
        axes.xaxis.get_major_locator().set_params(nbins=17, integer=True)
        axes.set(xlabel="view, 22.5 degrees from one to the next", ylabel="Dice")


def draw_cars(path: Path, run: Run) -> None:
    """Plot the mean Dice of each validation car, from worst to best, with its worst and best view."""
    with new_figure(path, 7.2, 2.2) as axes:
        for place, dice in enumerate(sorted(group_dice(run, "car").values(), key=np.mean), start=1):
            axes.plot([place, place], [min(dice), max(dice)], "-", color="#56B4E9", linewidth=2)
            axes.plot(place, np.mean(dice), "o", color="#0072B2")
        axes.set(xlabel="validation cars, from worst to best", ylabel="Dice")
        axes.xaxis.get_major_locator().set_params(integer=True)


def draw_schedule(path: Path, epochs: int, n_photos: int) -> None:
    """Plot the learning rate over the epochs for each peak of the grid."""
    peaks = dict.fromkeys(run["learning_rate"] for run in GRID.values() if "learning_rate" in run)
    n_steps = -(-n_photos // GRID["baseline"]["batch_size"])  # of an epoch
    with new_figure(path, 7.2, 2.0) as axes:
        for peak in peaks:
            config = Config(learning_rate=peak)
            rates = [learning_rate_at(step, epochs * n_steps, config) for step in range(epochs * n_steps)]
            axes.plot(np.arange(len(rates)) / n_steps, rates, marker="", label=f"{peak:g}")
        axes.set(xlabel="epoch", ylabel="learning rate", yscale="log", ylim=(1e-6, None))
        axes.legend(title="peak", fontsize=7, title_fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
