"""Masks on disk to labels: which value of a set's files is car, which is unknown, and what looks wrong about a set.

One rule holds for a whole set: the same value means the same class in every file. Without a word from the user the
darker of the set's two values is background and the brighter one car. Whatever a set holds besides needs `car_value`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageOps

from carvana.pictures import open_picture

MASK_FORMATS = ("GIF", "PNG", "TIFF", "BMP")
MAX_CLASSES = 32  # a file with more values than this holds grey levels or colours of a photo, not classes
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
        ValueError: If the file is not one whole picture of at most 256 values.
    """
    what = "a GIF, PNG, TIFF or BMP mask"
    with open_picture(path, (*MASK_FORMATS, "JPEG"), what) as image:
        if image.format not in MASK_FORMATS:
            raise ValueError(f"{path} must be {what}, got a JPEG, which smears the edge. {GREY_ADVICE}")
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"{path} must be one picture, got {image.n_frames} frames. Save the frame that you want.")
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            alpha = image.convert("RGBA").getchannel("A")
            if alpha.getextrema()[0] < 255:
                opaque = np.asarray(alpha) > 127
                return Labels(opaque.view(np.uint8), {0: "0", 1: "255"}, from_alpha=True)
            image = image.convert("RGB")
        if image.mode == "P":
            index = np.asarray(image)
            palette = image.getpalette("RGB")
            used = used_levels(image, index)
            return Labels(index, {i: name_value(tuple(palette[3 * i : 3 * i + 3]) or (0, 0, 0)) for i in used}, True)
        if image.mode in ("1", "L"):
            index = np.asarray(image.convert("L"))
            return Labels(index, {level: str(level) for level in used_levels(image.convert("L"), index)})
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return number_levels(path, np.asarray(image))
        pixels = np.asarray(image.convert("RGB"))
        if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all():
            index = np.ascontiguousarray(pixels[..., 0])
            return Labels(index, {level: str(level) for level in used_levels(Image.fromarray(index), index)})
        colours = Image.fromarray(pixels).getcolors(256)
        if colours is None:
            raise ValueError(f"{path} must hold two values, background and car, got the colours of a photo.")
        index = np.zeros(pixels.shape[:2], np.uint8)
        for number, (_, colour) in enumerate(colours):
            index[(pixels == colour).all(axis=-1)] = number
        return Labels(index, {number: name_value(colour) for number, (_, colour) in enumerate(colours)})


def used_levels(image: Image.Image, index: np.ndarray) -> list[int]:
    """List the levels that occur in an 8-bit picture; where there are at most two neighbours, without counting."""
    low, high = (int(level) for level in cv2.minMaxLoc(index)[:2])
    if high - low < 2:
        return sorted({low, high})
    return np.flatnonzero(image.histogram()).tolist()


def number_levels(path: Path | str, pixels: np.ndarray) -> Labels:
    """Label a picture of 16 or 32 bits a pixel, (H, W)."""
    levels, index = np.unique(pixels, return_inverse=True)
    if len(levels) > 256:
        raise ValueError(f"{path} must hold two values, background and car, got {len(levels)} levels. {GREY_ADVICE}")
    if (levels != np.rint(levels)).any() or levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"{path} must hold whole numbers from 0 to 65535, got {levels[:5].tolist()}. {GREY_ADVICE}")
    levels = levels.astype(int)
    if levels.max() > 255 and (levels % 257 == 0).all():  # 8 bits, stretched to 16
        levels //= 257
    index = index.astype(np.uint8).reshape(pixels.shape)
    return Labels(index, {number: str(level) for number, level in enumerate(levels.tolist())})


def name_value(colour: tuple[int, int, int]) -> str:
    """Name an RGB colour as the command line does.

    Example:
        >>> name_value((255, 255, 255)), name_value((128, 0, 0))
        ('255', '#800000')
    """
    red, green, blue = colour
    return str(red) if red == green == blue else f"#{red:02x}{green:02x}{blue:02x}"


def brightness(value: str) -> float:
    if not value.startswith("#"):
        return float(value)
    red, green, blue = ImageColor.getrgb(value)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def parse_values(values: Iterable[str], setting: str) -> set[str]:
    """Read values as a user writes them: grey levels, class numbers, #rrggbb or names of colours."""
    names = set()
    for value in map(str, values):
        try:
            names.add(str(int(value)) if re.fullmatch(r"\d{1,5}", value) else name_value(ImageColor.getrgb(value)[:3]))
        except ValueError:
            raise ValueError(
                f"{setting} must be a grey level or class number such as 1, or a colour such as #800000, got {value!r}."
            ) from None
    return names


# ------------------------------------------------------------------------------------------------------------- rule


@dataclass(frozen=True)
class MaskRule:
    """Which values are car and which are unknown, in every file of a set; all others are background."""

    car: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    by_class_number: bool = False  # the values are indices of palettes

    def classify(self, labels: Labels) -> dict[int, str]:
        """Tell of each index of a file whether it is car, unknown or background."""
        names = {i: str(i) for i in labels.values} if self.by_class_number and labels.has_palette else labels.values
        kind = lambda name: "unknown" if name in self.unknown else "car" if name in self.car else "background"
        return {i: kind(name) for i, name in names.items()}

    def to_json(self) -> list:
        return [sorted(self.car), sorted(self.unknown), self.by_class_number]

    @classmethod
    def from_json(cls, rule: list) -> "MaskRule":
        return cls(frozenset(rule[0]), frozenset(rule[1]), rule[2])

    def apply(self, labels: Labels) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the mask (H, W), bool, True on the car, and where it is known (H, W), bool, or None: everywhere."""
        kinds = self.classify(labels)
        return select(labels, kinds, "car"), (
            ~select(labels, kinds, "unknown") if "unknown" in kinds.values() else None
        )


def select(labels: Labels, kinds: dict[int, str], kind: str) -> np.ndarray:
    chosen = np.zeros(256, np.uint8)
    chosen[[i for i in kinds if kinds[i] == kind]] = 1
    if max(kinds) < 2 and not chosen[0] and chosen[1]:  # as in the competition's files: the indices are the mask
        return labels.index.view(bool)
    return cv2.LUT(labels.index, chosen).view(bool)


def require_classes(path: Path, labels: Labels) -> None:
    """Raise a ValueError if a file holds more values than anybody has classes."""
    if len(labels.values) > MAX_CLASSES:
        raise ValueError(
            f"{path} must hold two values, background and car, got {len(labels.values)} grey levels. {GREY_ADVICE}"
        )


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
    car, unknown = parse_values(car_value, "car_value"), parse_values(unknown_value, "unknown_value")
    if car & unknown:
        raise ValueError(f"car_value and unknown_value must differ, got {', '.join(sorted(car & unknown))} in both.")
    files: dict[str, list[Path]] = {}
    for path, labels in masks.items():
        for value in set(labels.values.values()):
            files.setdefault(value, []).append(path)
    if car and not car & files.keys():
        numbers = {str(i) for labels in masks.values() if labels.has_palette for i in labels.values}
        if car & numbers:
            return MaskRule(frozenset(car), frozenset(unknown), by_class_number=True)
        raise ValueError(
            f"car_value must be a value of the masks, got {', '.join(sorted(car))}. They hold {count_values(files)}."
        )
    what = f"{next(iter(masks))} must hold two values" if len(masks) == 1 else "all masks must hold the same two values"
    values = sorted(files.keys() - unknown, key=brightness)
    mixed = len(values) == 3 and set(values) == {"0", "1", "255"} and not set(files["1"]) & set(files["255"])
    if not car and len(values) > 2 and not mixed:
        likely = [
            value for value in values if value not in ("0", "255", "#e0e0c0")
        ]  # VOC's border, as number and colour
        likely = "1" if "1" in values else values[-1] if values == ["0", "128", "255"] or not likely else likely[-1]
        way_out = f"--car-value {likely}" if likely.isdigit() else f'--car-value "{likely}"'
        numbers = "They look like class numbers. " if all(brightness(value) < MAX_CLASSES for value in values) else ""
        advice = f"{numbers}Say which of them is the car's, for example {way_out}; several may be named."
        if any(labels.has_palette for labels in masks.values()):
            advice += " Class numbers, the indices of the palette, will do, too."
        if values == ["0", "128", "255"]:
            advice += " If 128 means unknown: --unknown-value 128."
        elif "255" in values and len(values) > 3:
            advice += f" If they are the grey of smoothed edges: {GREY_ADVICE[0].lower()}{GREY_ADVICE[1:]}"
        elif "255" in values:
            advice += " A border that belongs to no class: --unknown-value 255."
        raise ValueError(
            f"{what}, background and car, got {len(values)}: "
            f"{count_values({value: files[value] for value in values})}. {advice}"
        )
    if not car and len(values) == 2 and abs(brightness(values[0]) - brightness(values[1])) < 0.5:
        raise ValueError(
            f'{what}, one brighter, got {" and ".join(values)}. Say --car-value "{values[0]}", or the other.'
        )
    return MaskRule(frozenset(car or [value for value in values if value != "0"][-1 - mixed :]), frozenset(unknown))


def guess_rule(path: Path, labels: Labels, car_value: Iterable[str], unknown_value: Iterable[str]) -> MaskRule:
    """Return the rule that one file suggests, before the others of its set are known.

    Raises:
        ValueError: If the file holds grey levels.
    """
    if not car_value:
        require_classes(path, labels)
    try:
        return decide_rule({path: labels}, car_value, unknown_value)
    except ValueError:  # the set will decide, or complain
        return MaskRule()


def count_values(files: dict[str, list[Path]]) -> str:
    """List values with the number of their files and one name each: `0 (6 files), 2 (1 file: car5.png)`."""
    shown = sorted(files, key=brightness)[:8]
    several = lambda paths: f"{len(paths)} files" if len(paths) > 1 else f"1 file: {paths[0].name}"
    return ", ".join(f"{value} ({several(files[value])})" for value in shown) + (" ..." if len(files) > 8 else "")


def load_mask(path: Path | str, rule: MaskRule | None = None) -> np.ndarray:
    """Read a mask (H, W), bool, True on the car; without the rule of its set by its own values alone."""
    labels = read_labels(path)
    require_classes(path, labels)
    return (rule or decide_rule({Path(path): labels})).apply(labels)[0]


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
    fit: float = 0.0  # how strong the photo's edges are along the outline, 1 as strong as anywhere
    fit_upside_down: float = 0.0  # the same for the mask turned upside down
    fit_rotated: float = 0.0  # the same for the mask after the photo's EXIF rotation, 0 if there is none


def gather_facts(
    mask_path: Path,
    labels: Labels,
    rule: MaskRule,
    mask: np.ndarray,
    image: np.ndarray,
    coverage: np.ndarray,
    orientation: int,
) -> Facts:
    """Measure a pair: mask (H, W), bool; photo (h, w, 3) and coverage (h, w), uint8; EXIF orientation, 1 to 8."""
    corners = bool(mask[[0, 0, -1, -1], [0, -1, 0, -1]].all())
    kinds, share = rule.classify(labels), np.count_nonzero(mask) / mask.size
    facts = Facts(mask_path, replace(labels, index=None), kinds, mask.shape, share, corners)
    if share in (0, 1) or "unknown" in kinds.values():  # no outline, or one that ends at what is unknown
        return facts
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    edges = np.minimum(abs(cv2.Sobel(grey, cv2.CV_32F, 1, 0)) + abs(cv2.Sobel(grey, cv2.CV_32F, 0, 1)), 200)
    edges /= max(edges.mean(), 1e-3)

    def fit(turned: np.ndarray) -> float:
        car = (cv2.resize(turned, image.shape[1::-1]) > 127).view(np.uint8)
        kernel, border = np.ones((3, 3), np.uint8), dict(borderType=cv2.BORDER_REPLICATE)
        outline = cv2.dilate(car, kernel, **border) != cv2.erode(car, kernel, **border)
        return float(edges[outline].mean()) if outline.any() else 0.0

    rotated = Image.fromarray(coverage)
    rotated.getexif()[0x0112] = orientation
    return replace(
        facts,
        fit=fit(coverage),
        fit_upside_down=max(fit(coverage[::-1]), fit(coverage[::-1, ::-1])),
        fit_rotated=fit(np.asarray(ImageOps.exif_transpose(rotated))) if 1 < orientation < 9 else 0.0,
    )


def explain_size(mask_path: Path, size: tuple[int, int], photo_size: tuple[int, int], orientation: int) -> str:
    """Say why a mask of (height, width) does not fit a photo of another size."""
    got = f"got {size[1]}x{size[0]}"
    if size == photo_size[::-1] and orientation >= 5:
        why = f"{got}, which is the photo's before its EXIF rotation. Rotate the mask as the photo is shown."
    elif size == photo_size[::-1]:
        why = f"{got}, as if it lay on its side. Rotate the mask."
    else:
        why = f"{got}. Save the mask at the photo's size."
    return f"{mask_path} must have the size of its photo, {photo_size[1]}x{photo_size[0]}, {why}"


def find_oddities(facts: list[Facts], rule: MaskRule) -> tuple[list[str], list[str]]:
    """Say what looks wrong about a set of masks, and what is only worth knowing.

    Returns:
        Warnings and notes, a sentence each.
    """
    warnings, notes = [], []
    name = lambda chosen: f"{name_some([fact.mask_path.name for fact in chosen])}"
    n = len(facts)
    values = {value for fact in facts for value in fact.labels.values.values()}
    others = sorted(values - rule.car - rule.unknown, key=brightness)
    full, empty = [[fact for fact in facts if fact.share == share] for share in (1, 0)]
    inverted = [fact for fact in facts if fact.in_corners and 0.5 < fact.share < 1]
    share = float(np.mean([fact.share for fact in facts if fact.share < 1] or [0]))
    if share > 0.5 or len(inverted) > n / 2:
        way_out = f' If the car is {others[0]} in them: --car-value "{others[0]}".' if others else ""
        warnings.append(
            f"the masks look inverted: car covers {share:.0%} of the photos on average, and all four corners of "
            f"{len(inverted)} of {n}.{way_out}"
        )
    elif inverted:
        warnings.append(
            f"the masks may contradict each other: {len(inverted)} of {n} have car in all four corners of the photo, "
            f"as if inverted: {name(inverted)}. Invert them, or leave them if they are close-ups."
        )
    if full:
        warnings.append(
            f"{count(len(full), 'mask is', 'masks are')} all car, no background: {name(full)}. Draw them anew."
        )
    rotated = [fact for fact in facts if fact.fit_rotated > FITS_BETTER * fact.fit]
    if rotated:
        warnings.append(
            f"{count(len(rotated), 'mask fits', 'masks fit')} the photo as it was before its EXIF rotation: "
            f"{name(rotated)}. Rotate the mask as the photo is shown, or save the photo without the rotation."
        )
    flipped = [fact for fact in facts if fact.fit_upside_down > FITS_BETTER * fact.fit and fact not in rotated]
    sure = [fact for fact in flipped if fact.fit_upside_down > max(1.5, FITS_FAR_BETTER * fact.fit)]
    if len(flipped) > n / 2:
        warnings.append(
            f"{len(flipped)} of {n} masks fit their photos better upside down: {name(flipped)}. Turn the masks over."
        )
    elif sure:
        warnings.append(
            f"{count(len(sure), 'mask')} may be upside down: {name(sure)}. Look at them, and turn them over."
        )
    if len(empty) == n:
        warnings.append(
            "no mask shows a car. Look at the masks, or say which of their values is the car's: --car-value"
        )
    elif empty:
        notes.append(
            f"{count(len(empty), 'photo shows', 'photos show')} no car, which is fine if it is meant: {name(empty)}"
        )
    if any(fact.labels.from_alpha for fact in facts):
        notes.append("the masks' shape is in their alpha channel: what is opaque is car")
    if not values <= {"0", "1", "255"} and rule.car:
        unknown = f", {' and '.join(sorted(rule.unknown))} unknown" if rule.unknown else ""
        notes.append(
            f"of the masks' values {' and '.join(sorted(rule.car))} is car{unknown}, the others are background"
        )
    elif {"1", "255"} <= values and len(rule.car) == 2:
        notes.append("some masks hold 0 and 1, others 0 and 255: 1 and 255 are car")
    return warnings, notes


def count(number: int, one: str, several: str | None = None) -> str:
    """Return `1 mask` or `3 masks`."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def name_some(names: Iterable[str]) -> str:
    """List at most five names."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
