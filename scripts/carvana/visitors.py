"""What the web page does for a visitor, apart from the page itself: photos in, pictures and files out, all gone at the end."""

import os
import secrets
import shutil
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from carvana.cutout import ENDINGS, cover, encode_picture, make_pictures, read_background
from carvana.pictures import IMAGE_FORMATS, load_image, open_picture, upsample
from carvana.segmenter import Segmenter, to_logit

N_PASSING = 12  # pictures and downloads kept of a visitor: a moving threshold makes many
CLAIM_SECONDS = (
    10  # an open page claims what it sent at once; what nobody claims for so long was sent by one that is closed
)
MAX_MEGAPIXELS = 50  # of a photo
DISPLAY_SIDE = 1280  # pixels of the longer side of what the page shows; downloads have the photo's own size


@dataclass
class Shown:
    """A photo of a visitor, and what the network said of it."""

    name: str  # the file's stem
    path: Path  # the uploaded file
    logits: np.ndarray  # (h, w), float32: threshold and background change without the network
    seconds: float


class Visitors:
    """Folders of the page's visitors, each with a name that cannot be guessed; what is in them goes when they leave."""

    def __init__(self, root: Path):
        self.root, self.folders, self.uploads, self.passing = root.resolve(), {}, {}, {}
        self.present, self.gone = set(), set()
        self.lock = threading.Lock()

    def arrive(self, visitor: str) -> None:
        self.present.add(visitor)

    def folder(self, visitor: str, passing: bool = False) -> Path:
        """Give a new folder within the visitor's own; of the passing ones only the last N_PASSING stay."""
        with self.lock:
            home = self.folders.setdefault(visitor, self.root / secrets.token_urlsafe(16))
            folder = home / secrets.token_urlsafe(8)
            folder.mkdir(parents=True)
            if passing:
                recent = self.passing.setdefault(visitor, deque())
                recent.append(folder)
                if len(recent) > N_PASSING:
                    shutil.rmtree(recent.popleft(), ignore_errors=True)
            return folder

    def claim(self, visitor: str, uploads: list[str]) -> None:
        """Note that it was this visitor who sent these files."""
        with self.lock:
            self.uploads.setdefault(visitor, set()).update(Path(upload).resolve() for upload in uploads)

    def list_unclaimed(self) -> set[Path]:
        """List the uploads, in the folders that Gradio makes for them in `root`, that no visitor is known to have sent."""
        folders = [(Path(folder), names) for folder, _, names in os.walk(self.root)]
        uploads = {folder / name for folder, names in folders if folder.parent == self.root for name in names}
        return uploads.difference(*self.uploads.values())

    def leave(self, visitor: str) -> None:
        """Delete all that a visitor uploaded or was given; once more when work ends that was still done for them."""
        with self.lock:
            self.present.discard(visitor)
            self.gone.add(visitor)
            shutil.rmtree(self.folders.pop(visitor, self.root / "none"), ignore_errors=True)
            self.passing.pop(visitor, None)
            uploads = self.uploads.pop(visitor, set())
            for upload in uploads.difference(*self.uploads.values()):  # equal photos of two visitors are one file
                upload.unlink(missing_ok=True)
            if not self.present:
                for path in self.root.iterdir():  # what Gradio left
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            elif unclaimed := self.list_unclaimed():
                # Sent by a page that was closed before it could claim them, or by one that is just about to.
                timer = threading.Timer(CLAIM_SECONDS, self.delete_unclaimed, [unclaimed])
                timer.daemon = True
                timer.start()

    def delete_unclaimed(self, uploads: set[Path]) -> None:
        """Delete those of the uploads that still nobody is known to have sent."""
        with self.lock:
            for upload in uploads & self.list_unclaimed():
                upload.unlink(missing_ok=True)


def load_upload(path: Path) -> np.ndarray:
    """Read an uploaded photo, RGB (h, w, 3), uint8.

    Raises:
        ValueError: If it is no photo or too large; the message holds no path of this machine.
    """
    try:
        with open_picture(path, IMAGE_FORMATS, "a JPEG, PNG, WebP, BMP or TIFF photo") as picture:
            n_pixels = picture.width * picture.height
        if n_pixels > MAX_MEGAPIXELS * 1e6:
            raise ValueError(
                f"{path} must have at most {MAX_MEGAPIXELS} million pixels, got {n_pixels / 1e6:.0f} million. Save it smaller."
            )
        return load_image(path)
    except (OSError, ValueError) as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None


def segment_upload(path: Path, segmenter: Segmenter) -> Shown:
    """Read an uploaded file and find the car.

    Raises:
        ValueError: As `load_upload` does.
    """
    started = time.perf_counter()
    logits = segmenter.logits(load_upload(path))
    return Shown(path.stem, path, logits, time.perf_counter() - started)


def choose_background(choice: str, colour: str, photo: str | None) -> np.ndarray | None:
    """Give the new background, RGB (h, w, 3), uint8; None for a transparent one."""
    if choice == "transparent" or choice == "photo" and photo is None:
        return None
    if choice == "photo":
        return load_upload(Path(photo))
    return read_background({"white": "white", "grey": "#d9d9d9", "colour": to_hex(colour)}[choice])


def to_hex(colour: str) -> str:
    """Gradio's colour picker answers with #rrggbb or rgba(r, g, b, a)."""
    if colour.startswith("#"):
        return colour[:7]
    parts = colour[colour.index("(") + 1 :].rstrip(")").split(",")
    return "#" + "".join(f"{min(255, max(0, round(float(part)))):02x}" for part in parts[:3])


def checkerboard(height: int, width: int) -> np.ndarray:
    """Draw the usual sign of transparency, RGB (height, width, 3), uint8."""
    rows, columns = np.arange(height)[:, None] // 16, np.arange(width)[None] // 16
    return np.where((rows + columns) % 2, 255, 226).astype(np.uint8)[..., None].repeat(3, axis=2)


def draw_view(
    shown: Shown, view: str, background: np.ndarray | None, threshold: float
) -> tuple[Image.Image, Image.Image, tuple, float]:
    """Make what the page shows: photo, the chosen view of the same size, the photo's own (height, width), the car's share of it."""
    photo = load_image(shown.path)
    native_size = photo.shape[:2]
    share = float((upsample(shown.logits, *native_size) > to_logit(threshold)).mean())
    height, width = (max(1, round(side * min(1, DISPLAY_SIDE / max(native_size)))) for side in native_size)
    photo = cover(photo, height, width)
    if view == "cut-out":
        kind, background = "background", checkerboard(height, width) if background is None else background
    else:
        kind = view
    [(_, picture)] = make_pictures(photo, upsample(shown.logits, height, width), threshold, [kind], background)
    return Image.fromarray(photo), picture, native_size, share


def write_files(
    shown: Shown, folder: Path, name: str, threshold: float, kinds: list[str], background: np.ndarray | None
) -> list[Path]:
    """Write results at the photo's own size."""
    photo = load_image(shown.path)
    paths = []
    for kind, picture in make_pictures(photo, upsample(shown.logits, *photo.shape[:2]), threshold, kinds, background):
        paths.append(folder / (name + ENDINGS[kind]))
        paths[-1].write_bytes(encode_picture(picture, paths[-1].suffix))
    return paths
