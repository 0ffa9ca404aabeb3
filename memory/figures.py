"""The report's own figures: the network, and where it errs. Those of the study come from scripts/experiments.py, in the same style."""

from pathlib import Path

import numpy as np
from extra import bootstrap_interval
from matplotlib.patches import FancyArrowPatch, Rectangle
from train import Config, learning_rate_at

from experiments import LOOKS, Run, new_figure

FEATURES, UP, SKIP = "#56B4E9", "#E69F00", "#FFFFFF"  # sky blue, orange, white


def draw_network(path: Path, base_width: int, width: int, height: int, kernel_size: int, depth: int = 4) -> None:
    """Draw the U-Net with the channels and sizes that it has in the study.

    Args:
        path: The SVG file.
        base_width: Channels of the first convolution.
        width: Training size in pixels.
        height: Likewise.
        kernel_size: Side of the convolutions.
        depth: Steps down.
    """
    with new_figure(path, 7.2, 4.3) as axes:
        axes.axis("off")
        box_height = [1.5 * 0.72**level for level in range(depth + 1)]
        top = [-1.95 * level for level in range(depth + 1)]  # of each level's maps
        step = 1.7
        size = dict(ha="center", fontsize=7)

        def draw_maps(x: float, level: int, channels: int | str, colour: str) -> None:
            corner = (x - 0.11, top[level] - box_height[level])
            axes.add_patch(
                Rectangle(corner, 0.22, box_height[level], facecolor=colour, edgecolor="black", linewidth=0.7)
            )
            axes.text(x, top[level] + 0.07, str(channels), **size)

        def draw_arrow(start, end, colour="black", dash="-") -> None:
            look = dict(arrowstyle="-|>", mutation_scale=8, color=colour, linewidth=1.1, linestyle=dash)
            axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **look))

        def middle(level: int) -> float:
            return top[level] - box_height[level] / 2

        right = 2 * depth * step + 2.2
        for level in range(depth + 1):
            channels = base_width * 2**level
            left = level * step
            corner = (left - 0.22, top[level] - box_height[level] + 0.02)
            axes.text(
                *corner, f"{width >> level}x{height >> level}", ha="right", va="bottom", fontsize=6.5, rotation=90
            )
            inputs = 3 if level == 0 else channels // 2
            for number, count in enumerate((inputs, channels, channels)):
                draw_maps(left + 0.5 * number, level, count, FEATURES)
                if number:
                    draw_arrow(
                        (left + 0.5 * number - 0.39, middle(level)),
                        (left + 0.5 * number - 0.11, middle(level)),
                        "#0072B2",
                    )
            if level < depth:
                draw_arrow((left + 1.0, top[level] - box_height[level]), (left + step, top[level + 1] + 0.3), "#D55E00")
                mirrored = right - left
                # Two maps side by side, one from the skip connection, one from below; then two convolutions.
                for number, (count, colour) in enumerate(
                    (("", SKIP), ("", UP), (channels, FEATURES), (channels, FEATURES))
                ):
                    x = mirrored - (1.22, 1.0, 0.5, 0.0)[number]
                    draw_maps(x, level, count, colour)
                    if number >= 2:
                        draw_arrow((x - 0.39, middle(level)), (x - 0.11, middle(level)), "#0072B2")
                axes.text(mirrored - 1.11, top[level] + 0.07, str(2 * channels), **size)
                draw_arrow((left + 1.11, middle(level)), (mirrored - 1.33, middle(level)), "#777777", "--")
                below = right - left - step if level + 1 < depth else left + step + 1.0
                draw_arrow((below, top[level + 1] + 0.3), (mirrored - 1.0, top[level] - box_height[level]), "#009E73")
        draw_arrow((right + 0.11, middle(0)), (right + 0.39, middle(0)), "#CC79A7")
        draw_maps(right + 0.5, 0, 1, FEATURES)
        legend = (
            ("#0072B2", f"convolution {kernel_size}x{kernel_size}, batch norm, ReLU"),
            ("#D55E00", "largest of 2x2 pixels"),
            ("#009E73", "up-convolution 2x2"),
            ("#777777", "skip connection: copied beside"),
            ("#CC79A7", "convolution 1x1: the logit of being car"),
        )
        for number, (colour, text) in enumerate(legend):
            y = top[depth] + 0.4 - 0.34 * number
            draw_arrow((right - 3.9, y), (right - 3.5, y), colour, "--" if colour == "#777777" else "-")
            axes.text(right - 3.38, y, text, fontsize=7, va="center")
        axes.text(0, top[0] + 0.4, "photo", ha="center", fontsize=7)
        axes.text(right + 0.5, top[0] + 0.4, "logits", ha="center", fontsize=7)
        axes.set(xlim=(-0.8, right + 1.0), ylim=(top[depth] - box_height[depth] - 0.65, 0.8))


def draw_views(path: Path, run: Run) -> None:
    """Plot the mean Dice of each view over the validation cars, with its interval."""
    views = sorted({row["view"] for row in run.dice})
    with new_figure(path, 7.2, 2.4) as axes:
        for view in views:
            values = [row["last"] for row in run.dice if row["view"] == view]
            low, high = bootstrap_interval(values, map(str, range(len(values))))
            axes.plot([view, view], [low, high], color="#0072B2", linewidth=2)
            axes.plot(view, np.mean(values), "o", color="#0072B2")
        axes.set_xticks(views, [f"{view:.0f}" for view in views])
        axes.set(xlabel="view, 22.5 degrees from one to the next", ylabel="Dice")


def draw_cars(path: Path, run: Run) -> None:
    """Plot the mean Dice of each validation car, from worst to best, with its worst and best view."""
    cars = {
        car: [row["last"] for row in run.dice if row["car"] == car]
        for car in dict.fromkeys(row["car"] for row in run.dice)
    }
    with new_figure(path, 7.2, 2.4) as axes:
        for place, values in enumerate(sorted(cars.values(), key=np.mean), start=1):
            axes.plot([place, place], [min(values), max(values)], color="#56B4E9", linewidth=2)
            axes.plot(place, np.mean(values), "o", color="#0072B2")
        axes.set(xlabel="validation cars, from worst to best", ylabel="Dice")
        axes.xaxis.get_major_locator().set_params(integer=True)


def draw_schedule(path: Path, configs: list[Config], n_photos: int) -> None:
    """Plot the learning rate over the epochs for each peak that the grid tries."""
    with new_figure(path, 7.2, 2.2) as axes:
        peaks: dict[float, Config] = {}
        for config in configs:  # in the grid's order, so that a rate looks as in the other figures
            peaks.setdefault(config.learning_rate, config)
        for (colour, _, dash), (peak, config) in zip(LOOKS, peaks.items()):
            steps_per_epoch = -(-n_photos // config.batch_size)
            steps = np.arange(0, config.epochs * steps_per_epoch)
            rates = [learning_rate_at(step, len(steps), config) for step in steps]
            axes.plot(steps / steps_per_epoch, rates, dash, color=colour, label=f"{peak:g}")
        axes.set(xlabel="epoch", ylabel="learning rate", yscale="log", ylim=(1e-6, None))
        axes.legend(title="peak", fontsize=7, title_fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
