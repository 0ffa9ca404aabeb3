"""How well predicted masks fit the true ones, and the score card that says so."""

from collections.abc import Sequence

import cv2
import numpy as np

EDGE_PIXELS = 5  # half the width of the band round the true edge in which edge_dice counts
N_BOOTSTRAP = 2000
MIN_CARS = 5  # fewer give no interval that deserves its name


def dice(prediction: np.ndarray, mask: np.ndarray) -> float:
    """Dice coefficient of one image, in [0, 1]: 2 |A and B| / (|A| + |B|); 1 if both are empty.

    Args:
        prediction: (height, width), bool.
        mask: (height, width), bool.

    Example:
        >>> dice(np.array([[True, True, False]]), np.array([[True, False, False]]))
        0.6666666666666666
        >>> dice(np.zeros((2, 2), bool), np.zeros((2, 2), bool))
        1.0
    """
    area = np.count_nonzero(prediction) + np.count_nonzero(mask)
    return float(2 * np.count_nonzero(prediction & mask) / area) if area else 1.0


def pixel_accuracy(prediction: np.ndarray, mask: np.ndarray) -> float:
    """Fraction of the pixels of one image that are right. Black alone scores 0.79 on Carvana: read Dice."""
    return float(np.count_nonzero(prediction == mask) / mask.size)


def find_edge(mask: np.ndarray) -> np.ndarray:
    """Find the pixels at most EDGE_PIXELS from the edge of a mask, both (H, W), bool."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * EDGE_PIXELS + 1, 2 * EDGE_PIXELS + 1))
    # Outside the frame is neither car nor background: it must not grow a band of its own along the border.
    border = dict(borderType=cv2.BORDER_REPLICATE)
    return cv2.dilate(mask.view(np.uint8), disc, **border) != cv2.erode(mask.view(np.uint8), disc, **border)


def dice_by_threshold(logits: np.ndarray, mask: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Dice of `logits > level` for each level, after sorting the logits once.

    Args:
        logits: (H, W), float32.
        mask: (H, W), bool.
        levels: (n,), float32.
    """
    n_above = lambda values: values.size - np.searchsorted(np.sort(values, axis=None), levels, side="right")
    area = n_above(logits) + np.count_nonzero(mask)
    return np.where(area > 0, 2 * n_above(logits[mask]) / np.maximum(area, 1), 1.0)


def bootstrap_interval(values: Sequence[float], cars: Sequence[str], seed: int = 0) -> tuple[float, float]:
    """95 % CI of a mean over images, cluster bootstrap over cars: the 16 views of a car are not independent."""
    groups: dict[str, list[float]] = {}
    for value, car in zip(values, cars):
        groups.setdefault(car, []).append(value)
    sums = np.array([[sum(group), len(group)] for group in groups.values()])
    drawn = np.random.default_rng(seed).integers(len(sums), size=(N_BOOTSTRAP, len(sums)))
    totals = sums[drawn].sum(axis=1)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    return float(low), float(high)


def summarise(rows: list[dict], threshold: float) -> dict:
    """Make a score card of scored photos: numbers, and None for an interval where there are too few cars."""
    mean = lambda key, rows=rows: float(np.mean([row[key] for row in rows]))
    dices, cars = ([row[key] for row in rows] for key in ("dice", "car"))
    n_cars, views = len(set(cars)), sorted({row["view"] for row in rows} - {0})
    low, high = bootstrap_interval(dices, cars) if n_cars >= MIN_CARS else (None, None)
    return {
        **{key: mean(key) for key in rows[0] if key not in ("name", "car", "view")},
        "dice_low": low,
        "dice_high": high,
        "threshold": threshold,
        "n_images": len(rows),
        "n_cars": n_cars,
        "dice_per_view": {f"{view:02d}": mean("dice", [row for row in rows if row["view"] == view]) for view in views},
    }


def format_score_card(card: dict) -> str:
    """Lay the score card out for reading."""
    # Photos that are not named like Carvana's tell no views, and what was kept together need not be a car.
    kind = "car" if card["dice_per_view"] else "group"
    interval = f"too few {kind}s for an interval"
    if card["dice_low"] is not None:
        interval = f"95 % CI {card['dice_low']:.5f} to {card['dice_high']:.5f}, cluster bootstrap over {kind}s"
    n_images, n_cars = card["n_images"], card["n_cars"]
    lines = [
        f"score card at full resolution: {n_images} photo{'s' * (n_images > 1)} of {n_cars} {kind}{'s' * (n_cars > 1)}",
        f"  Dice            {card['dice']:.5f}   {interval}",
        f"  pixel accuracy  {card['accuracy']:.5f}",
        f"  edge Dice       {card['edge_dice']:.5f}   within {EDGE_PIXELS} pixels of the true edge",
        f"  threshold       {card['threshold']:.2f}      best on these photos",
        f"  upper bound     {card['upper_bound']:.5f}   what this size allows: Dice of the true coverage, upsampled",
        f"  mean mask       {card['mean_mask_dice']:.5f}   accuracy {card['mean_mask_accuracy']:.5f}",
        f"  all black       {card['black_dice']:.5f}   accuracy {card['black_accuracy']:.5f}",
    ]
    predicted, true = card["car_fraction"], 1 - card["black_accuracy"]
    if predicted < 0.001 <= true or predicted > 0.999 >= true:
        kind = "car" if predicted > 0.5 else "background"
        lines.append(f"  warning: the predictions are all {kind}. Train longer, or lower the learning rate.")
    views = [f"{view} {value:.4f}" for view, value in card["dice_per_view"].items()]
    for start in range(0, len(views), 8):
        lines.append(("  Dice per view   " if start == 0 else " " * 18) + "  ".join(views[start : start + 8]))
    return "\n".join(lines)
