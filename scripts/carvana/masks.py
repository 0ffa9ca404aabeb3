"""Masks on disk to labels: which value of a set's files is car, which is unknown, and what looks wrong about a set.

One rule holds for a whole set: the same value means the same class in every file. Without a word from the user the
darker of the set's two values is background and the brighter one car. Whatever a set holds besides needs `car_value`.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageOps

from carvana.pictures import open_picture

MASK_FORMATS = ("GIF", "PNG", "TIFF", "BMP")
MAX_CLASSES = 64  # a file of more values holds grey levels or the colours of a photo, not classes
GREY_ADVICE = "Threshold it at one half and save it as PNG or GIF, which lose nothing."


@dataclass(frozen=True)
class Labels:
    """What a mask file holds, before it is decided which of its values is car.

    index: (H, W), uint8. values: for each index that occurs a grey level ("0" to "65535") or a colour ("#rrggbb").
    """

    index: np.ndarray | None
    values: dict[int, str]
    has_palette: bool = False  # index is then the file's own number of a class
    from_alpha: bool = False  # the shape was in the alpha channel: 0 transparent, 255 opaque


def read_labels(path: Path | str) -> Labels:
    """Read a GIF, PNG, TIFF or BMP mask, upright, whatever its name ends in.

    Where the alpha channel is not the same everywhere, it is the mask.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not one whole picture of at most `MAX_CLASSES` values.
    """
    what = "a GIF, PNG, TIFF or BMP mask"
    with open_picture(path, (*MASK_FORMATS, "JPEG"), what) as image:
        if image.format not in MASK_FORMATS:
            raise ValueError(f"{path} must be {what}, got a JPEG, which smears the edge. {GREY_ADVICE}")
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            alpha = image.convert("RGBA").getchannel("A")
            if alpha.getextrema()[0] < 255:
                return Labels((np.asarray(alpha) > 127).view(np.uint8), {0: "0", 1: "255"}, from_alpha=True)
            image = image.convert("RGB")
        labels = number_bytes(image) if image.mode in ("1", "L", "P") else number_pixels(path, image)
    if len(labels.values) > MAX_CLASSES:
        raise ValueError(
            f"{path} must hold two values, background and car, got {len(labels.values)} grey levels. {GREY_ADVICE}"
        )
    return labels


def number_bytes(image: Image.Image) -> Labels:
    """Label a picture of one byte a pixel: a grey level, or the number of a palette's colour."""
    palette = image.getpalette("RGB") if image.mode == "P" else np.repeat(range(256), 3).tolist()
    index = np.asarray(image.convert("L") if image.mode == "1" else image)
    low, high = (int(level) for level in cv2.minMaxLoc(index)[:2])
    used = (low, high) if high - low < 2 else np.flatnonzero(image.histogram()).tolist()
    return Labels(index, {i: name_value(palette[3 * i : 3 * i + 3] or (0, 0, 0)) for i in used}, image.mode == "P")


def number_pixels(path: Path | str, image: Image.Image) -> Labels:
    """Label a picture of 16 or 32 bits a pixel, or of several channels."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        levels = np.unique(pixels)
        if not np.isin(levels, np.arange(2**16)).all():
            raise ValueError(
                f"{path} must hold whole numbers from 0 to 65535, got {levels[:5].tolist()}. {GREY_ADVICE}"
            )
        stretched = levels[-1] > 255 and not (levels % 257).any()  # 8 bits as 16
        names = [str(int(level) // (257 if stretched else 1)) for level in levels]
    else:
        image = image.convert("RGB")
        colours = sorted(colour for _, colour in image.getcolors(MAX_CLASSES) or [])
        if not colours:
            raise ValueError(
                f"{path} must hold two values, background and car, got over {MAX_CLASSES} colours. {GREY_ADVICE}"
            )
        weights = np.array([65536, 256, 1])
        pixels, levels = np.asarray(image) @ weights, np.array(colours) @ weights
        names = list(map(name_value, colours))
    return Labels(np.searchsorted(levels, pixels).astype(np.uint8), dict(enumerate(names)))


def name_value(colour: Iterable[int]) -> str:
    """Name an RGB colour as the command line does.

    Example:
        >>> name_value((255, 255, 255)), name_value((128, 0, 0))
        ('255', '#800000')
    """
    red, green, blue = colour
    return str(red) if red == green == blue else f"#{red:02x}{green:02x}{blue:02x}"


def brightness(value: str) -> float:
    return float(value) if value.isdecimal() else ImageColor.getcolor(value, "L")


def parse_value(value: str) -> str:
    """Read a value as a user writes it: a grey level, a class number, #rrggbb or the name of a colour."""
    try:
        return str(int(value)) if value.isdecimal() else name_value(ImageColor.getrgb(value)[:3])
    except ValueError:
        raise ValueError(
            f"car_value and unknown_value must be numbers such as 1 or colours such as #800000, got {value!r}."
        ) from None


# ------------------------------------------------------------------------------------------------------------- rule


@dataclass(frozen=True)
class MaskRule:
    """Which values are car and which are unknown, in every file of a set; all others are background."""

    car: list[str]
    unknown: list[str]
    by_class_number: bool = False  # the values are indices of palettes

    def classify(self, labels: Labels) -> dict[int, str]:
        """Tell of each index of a file whether it is car, unknown or background."""
        names = {i: str(i) for i in labels.values} if self.by_class_number and labels.has_palette else labels.values
        kind = lambda name: "unknown" if name in self.unknown else "car" if name in self.car else "background"
        return {i: kind(name) for i, name in names.items()}

    def apply(self, labels: Labels) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the mask (H, W), bool, True on the car, and where it is known (H, W), bool, or None: everywhere."""
        kinds = self.classify(labels)

        def select(kind: str) -> np.ndarray:
            table = np.zeros(256, np.uint8)
            table[[i for i in kinds if kinds[i] == kind]] = 1
            return cv2.LUT(labels.index, table).view(bool)

        return select("car"), ~select("unknown") if "unknown" in kinds.values() else None


def decide_rule(
    masks: dict[Path, Labels], car_value: Iterable[str] = (), unknown_value: Iterable[str] = ()
) -> MaskRule:
    """Decide which values of a set are car.

    Args:
        masks: What each file holds; `index` is not looked at.
        car_value: Values that are car; empty for the brighter one of two.
        unknown_value: Values of pixels of which nothing is known.

    Raises:
        ValueError: If the set does not follow one rule, or a value does not occur.
    """
    car, unknown = (sorted(set(map(parse_value, values))) for values in (car_value, unknown_value))
    if set(car) & set(unknown):
        raise ValueError(f"car_value and unknown_value must differ, got {', '.join(car)} and {', '.join(unknown)}.")
    files: dict[str, list[Path]] = {}
    for path, labels in masks.items():
        for value in set(labels.values.values()):
            files.setdefault(value, []).append(path)
    class_numbers = {str(i) for labels in masks.values() if labels.has_palette for i in labels.values}
    if car:
        if not (files.keys() | class_numbers) & set(car):
            got = ", ".join(car)
            raise ValueError(f"car_value must be a value of the masks, got {got}. They hold {count_values(files)}.")
        return MaskRule(car, unknown, by_class_number=not files.keys() & set(car))
    values = sorted(files.keys() - set(unknown), key=brightness)
    if values == ["0", "1", "255"] and not set(files["1"]) & set(files["255"]):  # 0 and 1 in some, 0 and 255 in others
        return MaskRule(["1", "255"], unknown)
    if len({brightness(value) for value in values}) == len(values) <= 2:
        return MaskRule([value for value in values if value != "0"][-1:], unknown)
    # Beside class numbers 255 is a border; beside greys it is the car, and these are a doubtful area or smoothed edges.
    are_numbers = max(brightness(value) for value in values if value != "255") < MAX_CLASSES
    is_grey = values[-1] == "255" and not are_numbers
    car, unknown = ("255", values[1]) if is_grey else (values[1], "255")
    advice = [
        "They look like class numbers." if are_numbers else "",
        f"Say which of them is the car's, for example --car-value {shlex.quote(car)}; several may be named.",
        "Class numbers, the indices of the palette, will do, too." if class_numbers else "",
        f"If {unknown} is a border or a doubtful area: --unknown-value {unknown}." if "255" in values else "",
        f"Smoothed edges? {GREY_ADVICE}" if is_grey else "",
    ]
    what = next(iter(masks)) if len(masks) == 1 else "all masks together"
    raise ValueError(
        f"{what} must hold two values, background and a brighter car, got {len(values)}: "
        f"{count_values({value: files[value] for value in values})}. {' '.join(filter(None, advice))}"
    )


def count_values(files: dict[str, list[Path]]) -> str:
    """List values with the number of their files and one name each: `0 (6 files), 2 (1 file: car5.png)`."""
    several = lambda paths: f"{len(paths)} files" if len(paths) > 1 else f"1 file: {paths[0].name}"
    shown = [f"{value} ({several(files[value])})" for value in sorted(files, key=brightness)]
    return ", ".join(shown[:8]) + (" ..." if len(shown) > 8 else "")


def load_mask(path: Path | str) -> np.ndarray:
    """Read a mask (H, W), bool, True on the car, by its own values alone."""
    labels = read_labels(path)
    return decide_rule({Path(path): labels}).apply(labels)[0]


# --------------------------------------------------------------------------------------------- what looks wrong

FITS_BETTER = 1.15  # another way up is named where its outline lies on this much stronger edges of the photo
FITS_FAR_BETTER = 1.3  # the same for one mask whose photo has no EXIF rotation and whose set is sound


@dataclass(frozen=True)
class Facts:
    """What is known of a pair after it was read once."""

    mask_path: Path
    labels: Labels  # without `index`
    kinds: dict[int, str]  # what each index was taken for
    size: tuple[int, int]  # (height, width) in pixels
    share: float  # fraction of the photo that the car covers
    in_corners: bool  # all four corners of the photo are car
    # How strong the photo's edges are along the outline, 1 as strong as anywhere: the mask as it is, upside down, and
    # after the photo's EXIF rotation.
    fits: tuple[float, float, float] = (0.0, 0.0, 0.0)


def measure_fits(image: np.ndarray, coverage: np.ndarray, orientation: int) -> tuple[float, float, float]:
    """Measure `Facts.fits` on a photo (h, w, 3) and its coverage (h, w), uint8, with its EXIF orientation, 1 to 8."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    edges = np.minimum(abs(cv2.Sobel(grey, cv2.CV_32F, 1, 0)) + abs(cv2.Sobel(grey, cv2.CV_32F, 0, 1)), 200)
    edges /= max(edges.mean(), 1e-3)

    def fit(turned: np.ndarray) -> float:
        car = (cv2.resize(turned, image.shape[1::-1]) > 127).view(np.uint8)
        outline = cv2.morphologyEx(car, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).view(bool)
        return float(edges[outline].mean()) if outline.any() else 0.0

    rotated = Image.fromarray(coverage)
    rotated.getexif()[0x0112] = orientation
    rotated_fit = fit(np.asarray(ImageOps.exif_transpose(rotated))) if orientation > 1 else 0.0
    return fit(coverage), max(fit(coverage[::-1]), fit(coverage[::-1, ::-1])), rotated_fit


def explain_size(mask_path: Path, size: tuple[int, int], photo_size: tuple[int, int], orientation: int) -> str:
    """Say why a mask of (height, width) does not fit a photo of another size."""
    why = "Save the mask at the photo's size."
    if size == photo_size[::-1]:
        why = "It lies on its side: rotate it."
        if orientation >= 5:
            why = "That is the photo's before its EXIF rotation: rotate the mask as the photo is shown."
    (height, width), (photo_height, photo_width) = size, photo_size
    return f"{mask_path} must have the size of its photo, {photo_width}x{photo_height}, got {width}x{height}. {why}"


def find_oddities(facts: list[Facts], rule: MaskRule) -> tuple[list[str], list[str]]:
    """Say what looks wrong about a set of masks, and what is only worth knowing.

    Returns:
        Warnings and notes, a sentence each.
    """
    warnings, notes, n = [], [], len(facts)

    def say(chosen: list[Facts], what: str, advice: str) -> None:
        if chosen:
            names = name_some(fact.mask_path.name for fact in chosen)
            warnings.append(f"{len(chosen)} of {n} masks {what}: {names}. {advice}")

    values = {value for fact in facts for value in fact.labels.values.values()}
    full, empty = ([fact for fact in facts if fact.share == share] for share in (1, 0))
    inverted = [fact for fact in facts if fact.in_corners and 0.5 < fact.share < 1]
    share = float(np.mean([fact.share for fact in facts if fact.share < 1] or [0]))
    if share > 0.5 or inverted:
        others = sorted(values.difference(rule.car, rule.unknown), key=brightness)
        way_out = f"If the car is {others[0]} in all masks: --car-value {shlex.quote(others[0])}. " if others else ""
        names = name_some(fact.mask_path.name for fact in inverted) or "none"
        warnings.append(
            f"masks look inverted: all four corners of {len(inverted)} of {n} photos are car ({names}), and car covers "
            f"{share:.0%} of a photo on average. {way_out}Else invert these, or leave them if they are close-ups."
        )
    say(full, "hold car alone, no background", "Draw them anew.")
    better = lambda fact, way, factor: fact.fits[way] > factor * fact.fits[0]
    rotated = [fact for fact in facts if better(fact, 2, FITS_BETTER)]
    advice = "Rotate the mask as the photo is shown, or save the photo without the rotation."
    say(rotated, "would fit the photo as it was before its EXIF rotation", advice)
    flipped = [fact for fact in facts if better(fact, 1, FITS_BETTER) and fact not in rotated]
    if len(flipped) <= n / 2:
        flipped = [fact for fact in flipped if fact.fits[1] > 1.5 and better(fact, 1, FITS_FAR_BETTER)]
    say(flipped, "would fit the photo better upside down", "Look at them, and turn them over.")
    if len(empty) == n:
        warnings.append("no mask shows a car. Look at them, or say which of their values is the car's: --car-value")
    elif empty:
        names = name_some(fact.mask_path.name for fact in empty)
        notes.append(f"{len(empty)} of {n} photos without a car, which is fine if it is meant: {names}")
    if any(fact.labels.from_alpha for fact in facts):
        notes.append("the masks' shape is in their alpha channel: what is opaque is car")
    if rule.car and not (values <= {"0", "1"} or values <= {"0", "255"}):
        unknown = f", {' and '.join(rule.unknown)} unknown" if rule.unknown else ""
        notes.append(f"of the masks' values {' and '.join(rule.car)} is car{unknown}, the others are background")
    return warnings, notes


def count(number: int, one: str, several: str | None = None) -> str:
    """Return `1 mask` or `3 masks`."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def name_some(names: Iterable[str]) -> str:
    """List at most five names."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
