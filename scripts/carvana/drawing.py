"""Pictures for people: masks, errors, sheets of photos, curves."""

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from carvana.files import write_file
from carvana.metrics import dice
from carvana.pictures import load_image
from carvana.segmenter import Segmenter, to_logit

FALSE_CAR, MISSED_CAR = (214, 39, 40), (31, 119, 220)  # red and blue, which the colour-blind tell apart
MARGIN, TITLE = 8, 26  # pixels


def draw_errors(photo: np.ndarray, mask: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Paint false car red and missed car blue over a pale photo.

    Args:
        photo: RGB (h, w, 3), uint8, at the size to draw.
        mask, prediction: (height, width), bool, at full resolution.

    Returns:
        RGB (h, w, 3), uint8.
    """
    picture = 0.45 * photo.mean(axis=2, keepdims=True, dtype=np.float32) + 0.55 * 255
    for wrong, colour in ((prediction & ~mask, FALSE_CAR), (~prediction & mask, MISSED_CAR)):
        fraction = cv2.resize(wrong.astype(np.float32), photo.shape[1::-1], interpolation=cv2.INTER_AREA)
        alpha = np.minimum(1, 2.5 * fraction)[..., None]  # an error one pixel wide must stay visible when made small
        picture = picture * (1 - alpha) + np.array(colour, np.float32) * alpha
    return picture.astype(np.uint8)


def draw_mask(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """Draw a mask (H, W), bool, as a grey RGB picture (height, width, 3), uint8."""
    small = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_GRAY2RGB)


def draw_sheet(rows: list[tuple[str | list[str], list[np.ndarray]]], captions: list[str] = []) -> Image.Image:
    """Lay rows of equally large RGB pictures out on white, each row under its title, or each picture under its own."""
    height, width = rows[0][1][0].shape[:2]
    columns = max(len(pictures) for _, pictures in rows)
    top = TITLE if captions else 0
    size = MARGIN + columns * (width + MARGIN), top + len(rows) * (height + TITLE + MARGIN) + MARGIN
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for column, caption in enumerate(captions):
        draw.text((MARGIN + column * (width + MARGIN), MARGIN // 2), caption, "gray", font)
    for number, (title, pictures) in enumerate(rows):
        y = top + number * (height + TITLE + MARGIN)
        for column, text in enumerate([title] if isinstance(title, str) else title):
            draw.text((MARGIN + column * (width + MARGIN), y + 2), text, "black", font)
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (MARGIN + column * (width + MARGIN), y + TITLE))
    return sheet


def save_picture(path: Path | str, picture: Image.Image) -> None:
    """Save a PNG, whole or not at all."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    write_file(path, buffer.getvalue())


def predict_pair(segmenter: Segmenter, cache, row: int, width: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Segment a photo of a cache (data.Cache).

    Returns:
        Its name and Dice; the photo, RGB (h, width, 3), uint8; its true and its predicted mask, (H, W), bool.
    """
    pair, (mask, known) = cache.pairs[row], cache.load_mask(row)
    prediction = segmenter.read(pair.image_path) > to_logit(segmenter.threshold)
    if known is not None:  # what nobody knows is neither right nor wrong
        prediction = np.where(known, prediction, mask)
    photo = area_fit(load_image(pair.image_path), width)
    return f"{pair.name}   Dice {dice(prediction, mask):.4f}", photo, mask, prediction


def draw_predictions(segmenter: Segmenter, cache, rows: Sequence[int]) -> Image.Image:
    """Draw photo, truth, prediction and errors of some photos of a cache (data.Cache), with name and Dice."""
    sheet = []
    for row in rows:
        title, photo, mask, prediction = predict_pair(segmenter, cache, row, 360)
        size = photo.shape[1::-1]
        pictures = [photo, draw_mask(mask, *size), draw_mask(prediction, *size), draw_errors(photo, mask, prediction)]
        sheet.append((title, pictures))
    return draw_sheet(sheet, ["photo", "truth", "prediction", "red: false car, blue: missed"])


def save_examples(folder: Path, epoch: int, segmenter: Segmenter, cache, rows: Sequence[int]) -> None:
    """Save the predictions of the same few photos, spread over cars and views, after each epoch."""
    chosen = sorted({rows[round(share * (len(rows) - 1))] for share in (0.0, 0.4, 0.7, 1.0)})
    save_picture(folder / f"epoch_{epoch:03d}.png", draw_predictions(segmenter, cache, chosen))


def draw_views(segmenter: Segmenter, cache, rows: Sequence[int]) -> Image.Image:
    """Draw the errors in some photos of a cache (data.Cache), four a row, each under its name and Dice."""
    views = [predict_pair(segmenter, cache, row, 320) for row in rows]
    groups = [views[start : start + 4] for start in range(0, len(views), 4)]
    return draw_sheet([([view[0] for view in group], [draw_errors(*view[1:]) for view in group]) for group in groups])


def area_fit(photo: np.ndarray, width: int) -> np.ndarray:
    """Resize RGB (h, w, 3), uint8, to an even width, keeping its shape."""
    height = round(photo.shape[0] * width / photo.shape[1] / 2) * 2
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)


def draw_curves(history: list[dict]) -> Image.Image:
    """Plot loss and Dice of each epoch."""
    from matplotlib.figure import Figure

    epochs, figure = [row["epoch"] for row in history], Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["train_loss"] for row in history], "o-", color="#0072B2", label="training")
    left.plot(epochs, [row["val_loss"] for row in history], "s--", color="#D55E00", label="validation")
    left.set(xlabel="epoch", ylabel="loss (cross-entropy + 1 - soft Dice)", yscale="log")
    left.legend(frameon=False)
    right.plot(epochs, [row["val_dice"] for row in history], "s--", color="#D55E00")
    right.set(xlabel="epoch", ylabel="validation Dice at training size")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return Image.open(buffer)
