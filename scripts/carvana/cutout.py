"""From logits to pictures: transparency, cut-out, new background, overlay.

Unless a function says otherwise, `image` is RGB (H, W, 3), uint8; `alpha` is the car's opacity and `shadow` that of its
black shadow, (H, W), uint8, 255 = opaque; `logits` are (H, W), float32; `threshold` is the probability in (0, 1) from
which a pixel is car.
"""

import io
import re
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
    """Turn a probability (H, W), float32, into alpha: a steep smooth ramp round the threshold, 0 and 255 elsewhere.

    The raw probability would leave the car's inside slightly transparent and a veil over the background.

    Example:
        >>> find_transparency(np.array([[0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0]], np.float32), 0.5)
        array([[  0,   0,  55, 128, 200, 255, 255]], dtype=uint8)
    """
    half_width = min(threshold, 1 - threshold) / 2
    ramp = ((probability - np.float32(threshold - half_width)) * np.float32(0.5 / half_width)).clip(0, 1)
    return (ramp * ramp * (3 - 2 * ramp) * 255 + 0.5).astype(np.uint8)


def keep_main_car(logits: np.ndarray, threshold: float) -> np.ndarray:
    """Return logits in which all is background but the largest connected part and its soft edge."""
    is_car = (logits > to_logit(threshold)).view(np.uint8)
    n_parts, parts, stats, _ = cv2.connectedComponentsWithStats(is_car)
    if n_parts <= 2:
        return logits
    largest = parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    near = cv2.dilate(largest.view(np.uint8), np.ones((9, 9), np.uint8)) > 0
    return np.where(largest | near & (is_car == 0), logits, np.float32(-20))


def keep_thin_parts(alpha: np.ndarray, logits: np.ndarray, threshold: float) -> None:
    """Add to alpha, in place, what is faint, thin and in one piece with the car: aerials (hysteresis thresholding)."""
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
    thin = cv2.resize(thin, alpha.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    alpha[thin] = np.maximum(alpha[thin], find_transparency(to_probability(logits[thin]), FAINT))


def clean_edge(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the photo with the car's own colour at its edge, where the photo mixes it with the old background's.

    Only where 0 < alpha < 255 the photo changes. Blur fusion (Forte 2021): the colours of car and background near an
    edge pixel are weighted means over two boxes, a wide and a narrow one; what the two, mixed by alpha, leave
    unexplained of the photo is divided between them by least squares.
    """
    long = max(alpha.shape)
    sizes = max(9, long // 160 | 1), max(3, long // 480 | 1)  # pixels; blur reaches further in a larger photo
    margin, result = sizes[0], image.copy()
    for top in range(0, len(alpha), BAND):  # a photo as a whole would take 60 bytes a pixel
        band = alpha[top : top + BAND]
        x, y, width, height = cv2.boundingRect(((band > 0) & (band < 255)).view(np.uint8))
        if not width:
            continue
        left, above = max(0, x - margin), max(0, top + y - margin)
        box = slice(above, top + y + height + margin), slice(left, x + width + margin)
        opacity = alpha[box] / np.float32(255)
        edge = (opacity > 0) & (opacity < 1)
        car = image[box].astype(np.float32)
        background = car.copy()
        mixed, share = car[edge], opacity[edge][:, None]
        for size in sizes:
            near_car = mean_near(edge, car, opacity**2, size)
            near_background = mean_near(edge, background, (1 - opacity) ** 2, size)
            rest = (mixed - share * near_car - (1 - share) * near_background) / (share**2 + (1 - share) ** 2)
            car[edge] = (near_car + share * rest).clip(0, 255)
            background[edge] = (near_background + (1 - share) * rest).clip(0, 255)
        inner = np.zeros_like(edge)
        inner[top + y - above :, x - left :][:height, :width] = True
        edge &= inner
        result[box][edge] = car[edge] + 0.5
    return result


def mean_near(pixels: np.ndarray, colour: np.ndarray, weight: np.ndarray, size: int) -> np.ndarray:
    """Average colours (h, w, 3) by weight (h, w), float32 both, over size x size pixels round each of n pixels.

    The pixels are where `pixels` (h, w), bool, is true. Returns (n, 3), float32.
    """
    weighted = cv2.multiply(colour, cv2.merge([weight] * 3))
    return cv2.blur(weighted, (size, size))[pixels] / cv2.blur(weight, (size, size))[pixels].clip(1e-6)[:, None]


def find_shadow(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Estimate the shadow that the car casts on the floor: how much darker the floor is there than further away.

    The unshaded floor is a plane in log brightness, fitted robustly to the floor round the car. Where the photo shows
    no floor, one too uneven for a plane, or no shadow, the result is a contact shadow drawn along the lower outline.
    It goes on under the car; without a car there is none.
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
    """Measure the shadow in a small photo from its brightness, alpha and car, 1 = car, all (h, w), uint8.

    Returns:
        Opacity (h, w), float32 in [0, 1], or None if no shadow can be told from the floor.
    """
    # All lengths are in heights of the car.
    left, top, car_width, car_height = cv2.boundingRect(car)
    rows, columns = np.mgrid[: car.shape[0], : car.shape[1]].astype(np.float32)
    hull, ground_columns, ground_rows = find_ground_line(car, max_slope=0.5)
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
    on_floor = np.maximum(((below + 0.18) / 0.12).clip(0, 1), hull * ((below + 0.5) / 0.2).clip(0, 1))
    shadow = ((darkening - spread) / (1 - spread)).clip(0, 1) * on_floor * ((0.55 - away) / 0.4).clip(0, 1)
    shadow = shadow * ((shadow - 0.03) / 0.07).clip(0, 1)  # so that it ends without a border
    parts = cv2.connectedComponents(((shadow > 0) | (car > 0)).astype(np.uint8))[1]
    return shadow * np.isin(parts, np.unique(parts[car > 0]))


def draw_contact_shadow(car: np.ndarray) -> np.ndarray:
    """Draw a soft shadow along the lower outline of a car (h, w), uint8, 1 = car: opacity (h, w), float32 in [0, 1]."""
    car_height = cv2.boundingRect(car)[3]
    _, columns, ground = find_ground_line(car, max_slope=1)
    inner = slice(len(columns) // 20, len(columns) - len(columns) // 20)
    below = np.arange(len(car))[:, None] - ground[inner]
    shadow = np.zeros(car.shape, np.float32)
    shadow[:, columns[inner]] = (below > -0.16 * car_height) & (below < 0.015 * car_height)
    return 0.6 * cv2.GaussianBlur(shadow, (0, 0), max(1, 0.035 * car_height))


def find_ground_line(car: np.ndarray, max_slope: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find where a car (h, w), uint8, 1 = car, stands: the lower side of its convex hull.

    Returns:
        The filled hull, like `car`; its columns, but for the ends that rise by more than `max_slope` rows a column; and
        the lowest row in each of them.
    """
    hull = cv2.fillConvexPoly(np.zeros_like(car), cv2.convexHull(cv2.findNonZero(car)), 1)
    columns = np.flatnonzero(hull.any(0))
    lowest = len(hull) - 1 - np.argmax(hull[::-1, columns], 0)
    first, last = np.argmax(lowest - max_slope * columns), np.argmax(lowest + max_slope * columns)
    return hull, columns[first : last + 1], lowest[first : last + 1]


def cut_out(image: np.ndarray, alpha: np.ndarray, shadow: np.ndarray | None = None) -> np.ndarray:
    """Make the background of a photo, its edge cleaned by `clean_edge`, transparent: RGBA (H, W, 4), uint8.

    Where no car shows the colour is black: the old background is not in the file.
    """
    car, opacity = cv2.bitwise_and(image, image, mask=alpha), alpha
    if shadow is not None:
        opacity = 255 - cv2.multiply(255 - alpha, 255 - shadow, scale=1 / 255)
        mixed = (alpha > 0) & (alpha < 255)
        car[mixed] = (car[mixed] * (alpha[mixed].astype(np.float32) / opacity[mixed])[:, None] + 0.5).astype(np.uint8)
    joined = np.empty((*alpha.shape, 4), np.uint8)
    cv2.mixChannels([car, opacity], [joined], [0, 0, 1, 1, 2, 2, 3, 3])  # a quarter of np.dstack's time
    return joined


def read_background(text: str) -> np.ndarray:
    """Read `--background`, a colour's name, #rrggbb, or a photo's path: RGB (h, w, 3), uint8; (1, 1, 3) for a colour.

    Raises:
        ValueError: If it is none of these, or the photo is broken.
    """
    if Path(text).exists():
        return load_image(text)
    try:
        return np.array([[ImageColor.getcolor(text, "RGB")]], np.uint8)
    except ValueError:
        rule = "a colour such as white or #e0e0e0, or a photo's path"
        raise ValueError(f"background must be {rule}, got {text}.") from None


def replace_background(
    image: np.ndarray, alpha: np.ndarray, background: np.ndarray, shadow: np.ndarray | None = None
) -> np.ndarray:
    """Put the car of a photo, its edge cleaned by `clean_edge`, before another picture, RGB (h, w, 3), uint8.

    It is cropped in the middle to the photo's shape, and darkened by the shadow.
    """
    covered = cover(background, *alpha.shape)
    for top in range(0, len(alpha), BAND):  # on a photo as a whole it would take many bytes a pixel
        rows = slice(top, top + BAND)
        part = covered[rows]
        if shadow is not None:
            cv2.multiply(part, cv2.merge([255 - shadow[rows]] * 3), part, 1 / 255)
        x, y, width, height = cv2.boundingRect(alpha[rows])
        box = slice(y, y + height), slice(x, x + width)
        share = alpha[rows][box][..., None].astype(np.uint16)
        # Whole numbers, rounded: alpha 0 and 255 leave colours exactly as they are.
        part[box] = (image[rows][box] * share + part[box] * (255 - share) + 127) // 255
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
    given = " ".join(words)
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", given)
    if not match:
        raise ValueError(f"crop must be width:height such as 4:3, got {given}. Name the photos before --crop.")
    return int(match[1]) / int(match[2])


def find_crop(visible: np.ndarray, shape: float) -> tuple[int, int, int, int]:
    """Find the rectangle round the car, with a margin of a twentieth of its longer side.

    Args:
        visible: Opacity of car and shadow (H, W), uint8.
        shape: Width / height of the rectangle, or 0 for the car's own.

    Returns:
        x, y, width, height in pixels, within the photo where it has room for them; the whole photo if there is no car.
    """
    full_height, full_width = visible.shape
    x, y, width, height = cv2.boundingRect((visible > 12).view(np.uint8))
    if not width:
        return 0, 0, full_width, full_height
    margin = round(max(width, height) / 20)
    left, top = max(0, x - margin), max(0, y - margin)
    width, height = min(full_width, x + width + margin) - left, min(full_height, y + height + margin) - top
    if shape:
        wide, tall = max(width, round(height * shape)), max(height, round(width / shape))
        left, top = left - (wide - width) // 2, top - (tall - height) // 2
        left = min(max(0, left), full_width - wide) if wide <= full_width else left
        top = min(max(0, top), full_height - tall) if tall <= full_height else top
        width, height = wide, tall
    return left, top, width, height


def crop_picture(picture: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Crop (H, W) or (H, W, 3), uint8, to x, y, width, height in pixels; beyond the picture's border it is 0."""
    x, y, width, height = box
    inner = picture[max(0, y) : y + height, max(0, x) : x + width]
    below, right = height - inner.shape[0] - max(0, -y), width - inner.shape[1] - max(0, -x)
    return cv2.copyMakeBorder(inner, max(0, -y), below, max(0, -x), right, cv2.BORDER_CONSTANT)


def draw_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the photo with the car, mask (H, W), bool, tinted and outlined: a wrong mask is seen at a glance."""
    mask8, picture = mask.view(np.uint8), image.copy()
    cv2.copyTo(cv2.addWeighted(image, 0.6, (*CAR_COLOUR, 0), 0.4, 0), mask8, picture)
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
        image: For the mask alone any picture does.
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
            box = find_crop(cv2.max(alpha, shade) if shadow else alpha, crop)
            image, alpha = crop_picture(image, box), crop_picture(alpha, box)
            shade = crop_picture(shade, box) if shadow else None
    if "cutout" in kinds:
        yield "cutout", cut_out(image, alpha, shade)
    if "background" in kinds:
        yield "background", replace_background(image, alpha, background, shade)


def encode_picture(pixels: np.ndarray, suffix: str) -> bytes:
    """Encode a picture as .webp, .jpg or, a mask (H, W) or RGBA (H, W, 4), as .png."""
    if suffix != ".png":
        buffer = io.BytesIO()
        name, quality = {".webp": ("WEBP", 90), ".jpg": ("JPEG", 92)}[suffix]
        Image.fromarray(pixels).save(buffer, name, quality=quality)
        return buffer.getvalue()
    # One filter for all rows takes half the time of one chosen for each; higher compression costs several times the
    # time for a fifth of the bytes.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER]
    if pixels.ndim == 2:
        options += [cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    else:
        options += [cv2.IMWRITE_PNG_FILTER_SUB]
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA)
    return cv2.imencode(".png", pixels, options)[1].tobytes()


def warn(share: float, uncertainty: float, limit: float) -> str:
    """Return what is suspicious in a result: `share` is the fraction that is car, `limit` that of the weights."""
    if share == 0:
        return "no car found"
    if share == 1:
        return "all car, no background found"
    return "the mask is probably wrong: look at it" if uncertainty > limit else ""
