"""Pictures on disk to arrays and back: reading of photos and masks, resizing, run lengths."""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageOps

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"}
MASK_SUFFIXES = {".gif", ".png", ".tif", ".tiff", ".bmp"}
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # what the bytes are decides, not the file's name

Size = tuple[int, int]  # (height, width) in pixels


def load_image(path: Path | str, target_size: Callable[[int, int], Size] | None = None) -> np.ndarray:
    """Read a photo, upright and in colour: RGB (height, width, 3), uint8. See `read_image`."""
    return read_image(path, target_size)[0]


def read_image(path: Path | str, target_size: Callable[[int, int], Size] | None = None) -> tuple[np.ndarray, Size]:
    """Read a photo, upright and in colour.

    Args:
        path: A JPEG, PNG, WebP, BMP or TIFF file, whatever its name ends in. CMYK, grey, palette and 16-bit photos are
            converted, a colour profile is turned into sRGB; transparent pixels become white; EXIF rotation is applied.
        target_size: Gives, for a photo's (height, width), the (height, width) to which it will be downsampled: a JPEG
            is then decoded at 1/2, 1/4 or 1/8, as long as a third more than that is left.

    Returns:
        RGB photo (height, width, 3), uint8, and its own (height, width), which a reduced decode would hide.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not one whole photo.
    """
    with open_picture(path, IMAGE_FORMATS, "a JPEG, PNG, WebP, BMP or TIFF photo") as image:
        profile = image.info.get("icc_profile")
        if image.format in ("JPEG", "MPO"):
            sideways = image.getexif().get(0x0112) in (5, 6, 7, 8)
            size = image.size if sideways else image.size[::-1]
            if target_size is not None:
                # A third more: the average of a picture that is hardly larger would be blurred twice.
                least = [-(-4 * side // 3) for side in target_size(*size)]
                image.draft(None, least if sideways else least[::-1])
            image = ImageOps.exif_transpose(image)
        else:
            image = ImageOps.exif_transpose(image)
            size = image.size[::-1]
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"{path} must have 8 or 16 bits a channel, got 32. Save it as an 8-bit PNG or JPEG.")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return np.asarray(to_srgb(image, profile)), size


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert a photo to RGB, by its own colour profile if it has one other than sRGB: phones use Display P3."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            if (space == "RGB" or space == image.mode == "CMYK") and not ImageCms.getProfileDescription(
                source
            ).startswith("sRGB"):
                return ImageCms.profileToProfile(
                    image.convert(space), source, ImageCms.createProfile("sRGB"), outputMode="RGB"
                )
        except (OSError, ImageCms.PyCMSError):
            pass  # what is no profile says nothing of the colours: sRGB, as every viewer has it
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def read_orientation(path: Path | str) -> int:
    """Read how a photo's EXIF block says that it is to be turned: 1 to 8, 1 for not at all."""
    with open_picture(path, IMAGE_FORMATS, "a photo") as image:
        orientation = image.getexif().get(0x0112, 1)
        return orientation if orientation in range(1, 9) else 1


@contextlib.contextmanager
def open_picture(path: Path | str, formats: tuple[str, ...], what: str) -> Iterator[Image.Image]:
    """Open a picture of one frame with Pillow; whatever is wrong with the file becomes one sentence that names it."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device might never end
            raise ValueError(f"{path} must be a file, got a folder, a pipe or a device.")
        # By its name, Pillow would map some files into memory: a file cut short meanwhile then kills the process, and
        # photos taken sideways (TIFF without compression) come out scrambled.
        with open(path, "rb") as file:
            if path.stat().st_size == 0:
                raise ValueError(f"{path} is empty. Copy or download it again.")
            with Image.open(file, formats=formats) as image:
                if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # phones' MPO: a preview beside it
                    raise ValueError(
                        f"{path} must be one picture, got {image.n_frames} frames. Save the frame that you want."
                    )
                yield image
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise ValueError(f"{path} must have at most {limit:.0f} million pixels, got more. Save it smaller.") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path} must be {what}, got something else. Open it and save it anew.") from error
    except Exception as error:  # Pillow's decoders raise nearly every kind of error on damaged files
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(f"{path} cannot be read ({error.strerror}).") from error
        raise ValueError(f"{path} is damaged or cut short ({error}). Copy or download it again.") from error


def area_average(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize (H, W) or (H, W, C) to (height, width, ...): each new pixel is the mean of the area that it covers."""
    n_rows, rest = divmod(picture.shape[0], height)
    shrinks = picture.shape[0] >= height and picture.shape[1] >= width
    if shrinks and 1 < n_rows <= 257 and not rest and picture.shape[1] % width:
        # As in the competition's photos, 1918x1280, a new pixel is whole rows high: adding these up first takes half of
        # the time. 16 bits hold the sum of 257 bytes.
        in_bytes = picture.dtype == np.uint8
        rows = picture.reshape(height, n_rows, *picture.shape[1:])
        sums = np.add.reduce(rows, axis=1, dtype=np.uint16 if in_bytes else picture.dtype)
        sums = cv2.resize(sums, (width, height), interpolation=cv2.INTER_AREA)
        return cv2.convertScaleAbs(sums, alpha=1 / n_rows) if in_bytes else sums / n_rows
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def upsample(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize logits (h, w), float32, to a photo's own (height, width): threshold after this, not before."""
    return cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)


def encode_runs(mask: np.ndarray) -> str:
    """Write a mask as Carvana's run lengths: pairs `start length`, pixels numbered from 1, row after row.

    Args:
        mask: (H, W), bool.

    Example:
        >>> encode_runs(np.array([[False, True, True], [True, False, True]]))
        '2 3 6 1'
    """
    padded = np.zeros(mask.size + 2, np.int8)
    padded[1:-1] = mask.ravel()
    edges = np.flatnonzero(np.diff(padded)) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges.tolist()))
