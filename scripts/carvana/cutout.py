"""From a probability to pictures: transparency, cut-out, new background, overlay."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageColor

from carvana.pictures import load_image
from carvana.segmenter import to_logit, to_probability

ENDINGS = dict(mask="_mask.png", cutout="_cutout.png", overlay="_overlay.jpg", background="_background.jpg")
FAINT = 0.2  # probability from which thin parts count as car
BAND = 512  # rows of a photo that are worked on at a time where a step takes many bytes a pixel
CAR_COLOUR, OUTLINE_COLOUR = (31, 119, 220), (255, 140, 0)  # blue and orange, which the colour-blind tell apart


def find_transparency(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Turn a probability into transparency: a steep smooth ramp round the threshold, nothing elsewhere.

    The raw probability would leave the car's inside slightly transparent and a veil over the background.

    Args:
        probability: (H, W), float32 in [0, 1].
        threshold: Probability at which a pixel is half car, in (0, 1).

    Returns:
        Alpha (H, W), uint8: 0 background, 255 car.

    Example:
        >>> find_transparency(np.array([[0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0]], np.float32), 0.5)
        array([[  0,   0,  55, 128, 200, 255, 255]], dtype=uint8)
    """
    half_width = min(threshold, 1 - threshold) / 2
    ramp = ((probability - np.float32(threshold - half_width)) * np.float32(0.5 / half_width)).clip(0, 1)
    return (ramp * ramp * (3 - 2 * ramp) * 255 + 0.5).astype(np.uint8)


def keep_main_car(logits: np.ndarray, threshold: float) -> np.ndarray:
    """Keep the largest car, or the largest part of what was taken for one; its soft edge stays.

    Args:
        logits: (h, w), float32.
        threshold: Probability from which a pixel is car.

    Returns:
        Logits (h, w), float32, in which everything else is background.
    """
    is_car = (logits > to_logit(threshold)).view(np.uint8)
    n_parts, parts, stats, _ = cv2.connectedComponentsWithStats(is_car)
    if n_parts <= 2:
        return logits
    largest = parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    near = cv2.dilate(largest.view(np.uint8), np.ones((9, 9), np.uint8)) > 0
    return np.where(largest | near & (is_car == 0), logits, np.float32(-20))


def keep_thin_parts(alpha: np.ndarray, logits: np.ndarray, threshold: float) -> None:
    """Add to alpha what is faint, thin and in one piece with the car, such as aerials (hysteresis thresholding).

    Args:
        alpha: (H, W), uint8, 255 = car; changed in place.
        logits: (H, W), float32.
        threshold: Probability from which a pixel is car.
    """
    step = max(1, max(alpha.shape) // 1920)  # upsampled logits are smooth: every few pixels are enough
    small = logits[::step, ::step]
    surely = small > to_logit(threshold)
    faint = (small > min(to_logit(FAINT), to_logit(threshold))).view(np.uint8)
    size = max(3, max(small.shape) // 213 | 1)  # pixels: what is narrower is thin
    body = cv2.morphologyEx(faint, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    n_parts, parts = cv2.connectedComponents(faint)
    in_one_piece = np.zeros(n_parts, bool)
    in_one_piece[parts[surely]] = True
    thin = (in_one_piece[parts] & (faint > body) & ~surely).view(np.uint8)
    if not thin.any():
        return
    thin = cv2.resize(thin, alpha.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    alpha[thin] = np.maximum(alpha[thin], find_transparency(to_probability(logits[thin]), FAINT))


def clean_edge(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Estimate the car's own colour at its edge, where the photo mixes it with that of the old background.

    Blur fusion (Forte 2021): the colours of car and background near an edge pixel are weighted means over two boxes, a
    wide and a narrow one; what the two, mixed by alpha, leave unexplained of the photo is divided between them by least
    squares.

    Args:
        image: RGB photo (H, W, 3), uint8.
        alpha: (H, W), uint8, 255 = car.

    Returns:
        RGB (H, W, 3), uint8: the photo, changed only where 0 < alpha < 255.
    """
    long = max(alpha.shape)
    sizes = max(9, long // 160 | 1), max(3, long // 480 | 1)  # pixels; blur reaches further in a larger photo
    result = image
    for top in range(0, alpha.shape[0], BAND):
        edge = (alpha[top : top + BAND] > 0) & (alpha[top : top + BAND] < 255)
        x, y, width, height = cv2.boundingRect(edge.view(np.uint8))
        if width:
            result = image.copy() if result is image else result
            clean_box(image, alpha, (x, top + y, width, height), sizes, result)
    return result


def clean_box(
    image: np.ndarray, alpha: np.ndarray, box: tuple[int, int, int, int], sizes: tuple[int, int], result: np.ndarray
) -> None:
    """Do the work of `clean_edge` in a box (x, y, width, height): a photo as a whole would take 60 bytes a pixel."""
    x, y, width, height = box
    margin = sizes[0]
    outer = slice(max(0, y - margin), y + height + margin), slice(max(0, x - margin), x + width + margin)
    opacity = alpha[outer] / np.float32(255)
    edge = (opacity > 0) & (opacity < 1)
    car = image[outer].astype(np.float32)
    background = car.copy()
    mixed, share = car[edge], opacity[edge][:, None]
    for size in sizes:
        near_car = mean_near(edge, car, opacity**2, size)
        near_background = mean_near(edge, background, (1 - opacity) ** 2, size)
        rest = (mixed - share * near_car - (1 - share) * near_background) / (share**2 + (1 - share) ** 2)
        car[edge] = (near_car + share * rest).clip(0, 255)
        background[edge] = (near_background + (1 - share) * rest).clip(0, 255)
    inner = np.zeros(edge.shape, bool)
    inner[y - outer[0].start :, x - outer[1].start :][:height, :width] = True
    edge &= inner
    result[outer][edge] = car[edge] + 0.5


def mean_near(pixels: np.ndarray, colour: np.ndarray, weight: np.ndarray, size: int) -> np.ndarray:
    """Average colours (H, W, 3) by weight (H, W), float32 both, over size x size pixels round each of n pixels.

    Args:
        pixels: (H, W), bool, n of them true.

    Returns:
        (n, 3), float32.
    """
    weighted = cv2.multiply(colour, cv2.merge([weight] * 3))
    return cv2.blur(weighted, (size, size))[pixels] / cv2.blur(weight, (size, size))[pixels].clip(1e-6)[:, None]


def find_shadow(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Estimate the shadow that the car casts on the floor: how much darker the floor is there than further away.

    The unshaded floor is a plane in log brightness, fitted robustly to the floor round the car. Where the photo shows
    no floor, one too uneven for a plane, or no shadow, the result is a contact shadow drawn along the lower outline.

    Args:
        image: RGB photo (H, W, 3), uint8.
        alpha: (H, W), uint8, 255 = car.

    Returns:
        Opacity of the shadow (H, W), uint8, 255 = black; it goes on under the car. All 0 if there is no car.
    """
    height, width = alpha.shape
    scale = min(1, 480 / max(height, width))  # a shadow is smooth: a small copy shows all of it
    size = max(1, round(width * scale)), max(1, round(height * scale))
    alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
    car = (alpha > 127).astype(np.uint8)
    if not car.any():
        return np.zeros((height, width), np.uint8)
    brightness = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    shadow = measure_shadow(brightness, alpha, car)
    if shadow is None:
        shadow = draw_contact_shadow(car)
    return cv2.resize((shadow * 255 + 0.5).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def measure_shadow(brightness: np.ndarray, alpha: np.ndarray, car: np.ndarray) -> np.ndarray | None:
    """Measure the shadow in a small photo. All lengths are in heights of the car.

    Args:
        brightness: (h, w), uint8.
        alpha: (h, w), uint8, 255 = car.
        car: (h, w), uint8, 1 = car.

    Returns:
        Opacity (h, w), float32 in [0, 1], or None if no shadow can be told from the floor.
    """
    left, top, car_width, car_height = cv2.boundingRect(car)
    rows, columns = np.mgrid[: car.shape[0], : car.shape[1]].astype(np.float32)
    ground_columns, ground_rows = find_ground_line(car, max_slope=0.5)
    below = (rows - np.interp(columns[0], ground_columns, ground_rows).astype(np.float32)) / car_height
    away = cv2.distanceTransform(1 - car, cv2.DIST_L2, 5) / car_height
    outside = cv2.dilate(alpha, np.ones((3, 3))) == 0
    floor = outside & (below > -0.12) & (away > 0.35) & (away < 1)
    if np.count_nonzero(floor) < 0.02 * np.count_nonzero(car) + 20:
        return None

    # Iteratively reweighted least squares; what is darker than the plane weighs less, since shadows reach far.
    log_brightness = np.log(np.maximum(brightness, 2).astype(np.float32))
    plane = np.dstack([np.ones_like(rows), (columns - left) / car_width, (rows - top) / car_height])
    seen, place = log_brightness[floor], plane[floor]
    residual = seen - np.median(seen)
    for _ in range(8):
        spread = np.median(np.abs(residual)) + 0.01
        outlier = np.where(residual < 0, 3 * residual, residual) / (2 * spread)
        weight = (1 / (1 + outlier**2) / (away[floor] + 0.2)) ** 2
        weighted = (place * weight[:, None]).T
        coefficients = np.linalg.lstsq(weighted @ place, weighted @ seen, rcond=None)[0]
        residual = seen - place @ coefficients
    darkening = (1 - np.exp(log_brightness - plane @ coefficients)).clip(0, 1).astype(np.float32)

    # Smooth it without the car, whose place is filled from what surrounds it; lines on the floor are no shadow.
    darkening = cv2.medianBlur((darkening * 255).astype(np.uint8), 5) / np.float32(255)
    known, total, n_known = outside.astype(np.float32), np.float32(0), np.float32(1e-4)
    for sigma, share in ((0.02 * car_height, 1), (0.08 * car_height, 0.05)):
        total = total + share * cv2.GaussianBlur(darkening * known, (0, 0), max(0.8, sigma))
        n_known = n_known + share * cv2.GaussianBlur(known, (0, 0), max(0.8, sigma))
    darkening = total / n_known
    at_the_car = outside & (below > -0.1) & (away < 0.06)
    visible = np.median(darkening[at_the_car]) if at_the_car.any() else 0
    if spread > 0.12 or visible < max(0.1, 1.5 * spread):
        return None

    # Only on the floor: below the ground line or between the wheels, near the car and in one piece with it.
    hull = cv2.fillConvexPoly(np.zeros_like(car), cv2.convexHull(cv2.findNonZero(car)), 1)
    on_floor = np.maximum(((below + 0.18) / 0.12).clip(0, 1), hull * ((below + 0.5) / 0.2).clip(0, 1))
    shadow = ((darkening - spread) / (1 - spread)).clip(0, 1) * on_floor * ((0.55 - away) / 0.4).clip(0, 1)
    shadow = shadow * ((shadow - 0.03) / 0.07).clip(0, 1)  # so that it ends without a border
    parts = cv2.connectedComponents(((shadow > 0) | (car > 0)).astype(np.uint8))[1]
    return shadow * np.isin(parts, np.unique(parts[car > 0]))


def draw_contact_shadow(car: np.ndarray) -> np.ndarray:
    """Draw a soft shadow along the lower outline of car (h, w), uint8, 1 = car: opacity (h, w), float32 in [0, 1]."""
    car_height = cv2.boundingRect(car)[3]
    columns, ground = find_ground_line(car, max_slope=1)
    inset = len(columns) // 20
    below = np.arange(car.shape[0])[:, None] - ground[inset : len(ground) - inset]
    shadow = np.zeros(car.shape, np.float32)
    shadow[:, columns[inset : len(columns) - inset]] = (below > -0.16 * car_height) & (below < 0.015 * car_height)
    return 0.6 * cv2.GaussianBlur(shadow, (0, 0), max(1, 0.035 * car_height))


def find_ground_line(car: np.ndarray, max_slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Find where the car stands: the lower side of its convex hull, without the ends that rise more steeply.

    Args:
        car: (h, w), uint8, 1 = car.
        max_slope: Rows per column.

    Returns:
        Columns and the lowest row of the hull in each.
    """
    hull = cv2.fillConvexPoly(np.zeros_like(car), cv2.convexHull(cv2.findNonZero(car)), 1)
    columns = np.flatnonzero(hull.any(0))
    lowest = len(hull) - 1 - np.argmax(hull[::-1, columns], 0)
    first, last = np.argmax(lowest - max_slope * columns), np.argmax(lowest + max_slope * columns)
    return columns[first : last + 1], lowest[first : last + 1]


def cut_out(image: np.ndarray, alpha: np.ndarray, shadow: np.ndarray | None = None) -> np.ndarray:
    """Make the background transparent.

    Args:
        image: RGB (H, W, 3), uint8, its edge cleaned by `clean_edge`.
        alpha: (H, W), uint8, 255 = car.
        shadow: Opacity (H, W), uint8, from `find_shadow`: black below the car.

    Returns:
        RGBA (H, W, 4), uint8. Where no car shows the colour is black: the old background is not in the file.
    """
    car = cv2.bitwise_and(image, image, mask=alpha)
    if shadow is None:
        return add_alpha(car, alpha)
    opacity = 255 - cv2.multiply(255 - alpha, 255 - shadow, scale=1 / 255)
    mixed = (alpha > 0) & (alpha < 255)
    car[mixed] = (car[mixed] * (alpha[mixed].astype(np.float32) / opacity[mixed])[:, None] + 0.5).astype(np.uint8)
    return add_alpha(car, opacity)


def add_alpha(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Join RGB (H, W, 3) and alpha (H, W) to RGBA (H, W, 4), uint8, in a quarter of np.dstack's time."""
    joined = np.empty((*alpha.shape, 4), np.uint8)
    cv2.mixChannels([colour, alpha], [joined], [0, 0, 1, 1, 2, 2, 3, 3])
    return joined


def read_background(text: str) -> np.ndarray:
    """Read `--background`: a colour's name, #rrggbb, or a photo's path.

    Returns:
        RGB (H, W, 3), uint8; (1, 1, 3) for a colour.

    Raises:
        ValueError: If it is none of these, or the photo is broken.
    """
    if Path(text).exists():
        return load_image(text)
    try:
        colour = ImageColor.getcolor(text, "RGB")
    except ValueError:
        raise ValueError(
            f"background must be a colour such as white or #e0e0e0, or a photo's path, got {text}."
        ) from None
    return np.array(colour, np.uint8)[None, None]


def replace_background(
    image: np.ndarray, alpha: np.ndarray, background: np.ndarray, shadow: np.ndarray | None = None
) -> np.ndarray:
    """Put the car before a new background, which is cropped in the middle to the photo's shape.

    Args:
        image: RGB (H, W, 3), uint8, its edge cleaned by `clean_edge`.
        alpha: (H, W), uint8, 255 = car.
        background: RGB (h, w, 3), uint8, of any size.
        shadow: Opacity (H, W), uint8, from `find_shadow`, by which the background is darkened.

    Returns:
        RGB (H, W, 3), uint8.
    """
    height, width = alpha.shape
    covered = cover(background, height, width)
    if shadow is not None:
        covered = cv2.multiply(covered, cv2.merge([255 - shadow] * 3), scale=1 / 255)
    x, y, box_width, box_height = cv2.boundingRect(alpha)
    box = slice(y, y + box_height), slice(x, x + box_width)
    share = alpha[box][..., None].astype(np.uint16)
    # Whole numbers, rounded: alpha 0 and 255 leave colours exactly as they are.
    covered[box] = (image[box] * share + covered[box] * (255 - share) + 127) // 255
    return covered


def cover(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize and crop RGB (h, w, 3), uint8, so that it fills (height, width, 3) without being distorted."""
    scale = max(height / picture.shape[0], width / picture.shape[1])
    inner_height, inner_width = max(1, round(height / scale)), max(1, round(width / scale))
    top, left = (picture.shape[0] - inner_height) // 2, (picture.shape[1] - inner_width) // 2
    inner = picture[max(0, top) : top + inner_height, max(0, left) : left + inner_width]
    return cv2.resize(inner, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def read_crop(words: tuple[str, ...] | None) -> float | None:
    """Read `--crop`: width / height of the cropped picture, 0 for the car's own shape, None for the whole photo.

    Raises:
        ValueError: If it is not two positive whole numbers such as 4:3.
    """
    if not words:
        return None if words is None else 0
    parts = words[0].split(":")
    if len(words) > 1 or len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"crop must be width:height such as 4:3, got {' '.join(words)}. Name the photos before --crop."
        )
    return int(parts[0]) / int(parts[1])


def find_crop(visible: np.ndarray, shape: float) -> tuple[int, int, int, int]:
    """Find the rectangle round the car, with a margin of a twentieth of its longer side.

    Args:
        visible: Opacity of car and shadow (H, W), uint8.
        shape: Width / height of the rectangle, or 0 for the car's own.

    Returns:
        x, y, width, height in pixels, within the photo where it has room for them; the whole photo if there is no car.
    """
    x, y, width, height = cv2.boundingRect((visible > 12).view(np.uint8))
    if not width:
        return 0, 0, visible.shape[1], visible.shape[0]
    margin = round(max(width, height) / 20)
    left, top = max(0, x - margin), max(0, y - margin)
    right, bottom = min(visible.shape[1], x + width + margin), min(visible.shape[0], y + height + margin)
    width, height = right - left, bottom - top
    if shape:
        wide, tall = max(width, round(height * shape)), max(height, round(width / shape))
        left, top = left - (wide - width) // 2, top - (tall - height) // 2
        if wide <= visible.shape[1]:
            left = min(max(0, left), visible.shape[1] - wide)
        if tall <= visible.shape[0]:
            top = min(max(0, top), visible.shape[0] - tall)
        width, height = wide, tall
    return left, top, width, height


def crop_picture(picture: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Crop (H, W) or (H, W, 3), uint8, to x, y, width, height in pixels; beyond the picture's border it is 0."""
    x, y, width, height = box
    inner = picture[max(0, y) : y + height, max(0, x) : x + width]
    below, right = height - inner.shape[0] - max(0, -y), width - inner.shape[1] - max(0, -x)
    return cv2.copyMakeBorder(inner, max(0, -y), below, max(0, -x), right, cv2.BORDER_CONSTANT)


def draw_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Tint the car and draw its outline, so that a wrong mask is seen at a glance.

    Args:
        image: RGB photo (H, W, 3), uint8.
        mask: (H, W), bool.

    Returns:
        RGB (H, W, 3), uint8.
    """
    mask8, picture = mask.view(np.uint8), image.copy()
    for top in range(0, len(image), BAND):
        band = image[top : top + BAND]
        tinted = cv2.addWeighted(band, 0.6, np.full_like(band, CAR_COLOUR), 0.4, 0)
        cv2.copyTo(tinted, mask8[top : top + BAND], picture[top : top + BAND])
    outlines = cv2.findContours(mask8, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(picture, outlines, -1, OUTLINE_COLOUR, max(1, round(max(mask.shape) / 640)))
    return picture


def make_pictures(
    image: np.ndarray,
    logits: np.ndarray,
    threshold: float,
    kinds: Iterable[str],
    background: np.ndarray | None = None,
    shadow: bool = False,
    crop: float | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Make the pictures of a photo, in at most 16 bytes a pixel if the caller lets go of its arrays.

    Args:
        image: RGB photo (H, W, 3), uint8; for the mask alone any picture does.
        logits: (H, W), float32.
        threshold: Probability from which a pixel is car.
        kinds: Some of the keys of ENDINGS.
        background: RGB (h, w, 3), uint8, for the kind "background".
        shadow: Keep the car's shadow in cut-outs and before a new background.
        crop: Width / height to which these two are cropped, 0 for the car's own shape, None for the whole photo.

    Yields:
        Kind and picture, (H, W) or (H, W, 3 or 4), uint8.
    """
    mask = logits > to_logit(threshold)
    if "mask" in kinds:
        yield "mask", mask.view(np.uint8) * np.uint8(255)
    if "overlay" in kinds:
        yield "overlay", draw_overlay(image, mask)
    if "cutout" in kinds or "background" in kinds:
        alpha = np.empty(logits.shape, np.uint8)
        for top in range(0, len(alpha), BAND):
            alpha[top : top + BAND] = find_transparency(to_probability(logits[top : top + BAND]), threshold)
        keep_thin_parts(alpha, logits, threshold)
        del logits, mask
        shade = find_shadow(image, alpha) if shadow else None
        image = clean_edge(image, alpha)
        if crop is not None:
            box = find_crop(alpha if shade is None else cv2.max(alpha, shade), crop)
            image, alpha = crop_picture(image, box), crop_picture(alpha, box)
            shade = None if shade is None else crop_picture(shade, box)
    if "cutout" in kinds:
        yield "cutout", cut_out(image, alpha, shade)
    if "background" in kinds:
        yield "background", replace_background(image, alpha, background, shade)


def draw_cutouts(image: np.ndarray, logits: np.ndarray, threshold: float, width: int = 800) -> Image.Image:
    """Draw a sheet: photo and car on white; below, with its shadow on white and, cropped, on green."""
    colours = (255, 255, 255), (255, 255, 255), (90, 170, 60)
    sheet = [image]
    for colour, shadow, crop in zip(colours, (False, True, True), (None, None, image.shape[1] / image.shape[0])):
        background = np.array([[colour]], np.uint8)
        [(_, picture)] = make_pictures(image, logits, threshold, ["background"], background, shadow, crop)
        sheet.append(picture)
    size = width, round(width * image.shape[0] / image.shape[1])
    cells = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in sheet]
    return Image.fromarray(np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])]))


def encode_picture(pixels: np.ndarray, suffix: str) -> bytes:
    """Encode a picture as .png, .webp or .jpg.

    Choosing PNG's filter anew for each row takes half of the time: a mask, long runs of one value, needs none, and a
    cut-out is well served by one. Higher levels of compression cost several times the time for a fifth of the bytes.
    """
    buffer = io.BytesIO()
    if suffix == ".webp":
        Image.fromarray(pixels).save(buffer, "WEBP", quality=90)
    elif suffix == ".jpg":
        Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    elif pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA)
        options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]
        return cv2.imencode(".png", pixels, options)[1].tobytes()
    else:
        options = [
            cv2.IMWRITE_PNG_STRATEGY,
            cv2.IMWRITE_PNG_STRATEGY_RLE,
            cv2.IMWRITE_PNG_FILTER,
            cv2.IMWRITE_PNG_FILTER_NONE,
        ]
        return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1, *options])[1].tobytes()
    return buffer.getvalue()


def warn(share: float, uncertainty: float, limit: float) -> str:
    """Return what is suspicious in a result, or nothing.

    Args:
        share: Fraction of the photo that is car.
        uncertainty: See `segmenter.measure_uncertainty`.
        limit: `Description.uncertainty_limit` of the weights.
    """
    if share == 0:
        return "no car found"
    if share == 1:
        return "all car, no background found"
    return "the mask is probably wrong: look at it" if uncertainty > limit else ""
