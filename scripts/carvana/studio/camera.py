"""The photo studio's camera: where it stands, what it sees, and what its sensor makes of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from carvana.studio.car import Car
from carvana.studio.light import PosedCar, TracedCar
from carvana.studio.room import FLOOR, TEXTURE_SCALE, TEXTURE_SIZE, Room, vary
from carvana.studio.vectors import look_up, rotate, unit

CHUNK = 60_000  # rays shaded at a time: the arrays stay in the processor's cache
TILT = np.hypot(1.0, 0.13)  # the lens is shifted upwards


@dataclass
class Shot:
    """One photo and what is known about it."""

    view: int  # 1 to 16
    photo: np.ndarray  # (H, W, 3) uint8 RGB
    mask: np.ndarray  # (H, W) uint8, 1 where the car covers at least half of a pixel
    coverage: np.ndarray  # (H, W) float32, the fraction of a pixel that the car covers, in quarters
    empty: np.ndarray | None  # the same photo without car, shadow and reflection, if asked for
    quality: int  # of the JPEG file


class Camera:
    """Where the camera stands; shoots rays through pixels. World frame as in room.py."""

    def __init__(self, rng, width, height, stray):
        near = vary(rng, stray)
        self.width, self.height = width, height
        self.eye = np.array([near(0, 0.3), -near(8.4, 0.6), near(1.75, 0.35)], np.float32)
        self.field = near(0.76, 0.05) * max(1, width / height / 1.5)  # width of the frame at distance 1
        self.horizon = near(0.245, 0.04)  # where the horizon lies, as a fraction of the frame's height

    def frame(self, points):
        """Return first row, last row, first column, last column around points (n, 3) of the world, within the frame."""
        x, y, z = (points - self.eye).T
        scale = TILT * self.width / self.field / y
        row, column = self.horizon * self.height - z * scale, x * scale + self.width / 2
        size = np.repeat([self.height, self.width], 2)
        box = [np.floor(row.min()), np.ceil(row.max()) + 1, np.floor(column.min()), np.ceil(column.max()) + 1]
        return np.clip(box, 0, size).astype(int)

    def bands(self, top, bottom, left, right, n=2):
        """Yield a part of the frame in bands: first row, last row, and rays, n x n a pixel, as unit vectors (r, 3)."""
        step = max(1, CHUNK // (n * n * max(1, right - left)))
        x = ((left + (np.arange(n * (right - left)) + 0.5) / n) / self.width - 0.5) * self.field
        for first in range(top, bottom, step):
            last = min(first + step, bottom)
            row = first + (np.arange(n * (last - first)) + 0.5) / n
            z = (self.horizon * self.height - row) / self.width * self.field
            direction = np.stack(np.broadcast_arrays(x[None], TILT, z[:, None]), -1)
            yield first, last, unit(direction.reshape(-1, 3)).astype(np.float32)

    def see_floor(self, room):
        """Return the pixels that show the floor, as indices (n,), and where on it (n, 2), metres, float32."""
        pixels, spots = [], []
        for first, _, rays in self.bands(0, self.height, 0, self.width, n=1):
            distance, kind = room.meet(self.eye, rays)
            at = np.flatnonzero(kind == FLOOR)
            pixels.append(at + first * self.width)
            spots.append((self.eye + rays[at] * distance[at, None])[:, :2])
        return np.concatenate(pixels), np.concatenate(spots).astype(np.float32)


class Sensor:
    """What turns light into an image: exposure, white balance, softness, tone curve, noise."""

    def __init__(self, rng, stray):
        near = vary(rng, stray)
        self.exposure = near(1.0, 0.14)
        self.balance = 1 + near(0, 0.04) * np.array([1, 0, -1]) + near(0, 0.015) * np.array([0, 1, 0])
        self.vignette, self.noise, self.quality = near(0.10, 0.08), rng.uniform(0.6, 2.2), int(rng.integers(82, 96))
        self.soft, self.black, self.contrast = rng.uniform(0.25, 0.6), near(0.004, 0.012), near(1.06, 0.10)

    def develop(self, light, rng):
        """Return light (H, W, 3) as an image (H, W, 3), uint8 sRGB; `rng` draws the noise."""
        height, width = light.shape[:2]
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
        gain = (1 - self.vignette * (x * x + y * y))[..., None] * self.balance * self.exposure * 1.5
        photo = cv2.GaussianBlur(light * gain.astype(np.float32), (0, 0), self.soft * max(1, width / 960))
        photo = np.maximum(photo + self.black, 0) ** self.contrast
        photo *= (photo + 0.02) / (photo + 0.045)  # the toe: cameras render what is nearly black as black
        knee = 0.72
        bright = knee + (1 - knee) * (1 - np.exp(-(photo - knee) / (1 - knee)))
        photo = np.where(photo > knee, bright, np.maximum(photo, 0))
        photo = 255 * np.where(photo < 0.0031308, 12.92 * photo, 1.055 * np.maximum(photo, 1e-6) ** (1 / 2.4) - 0.055)
        grain = rng.normal(0, self.noise, (height, width, 1)) + rng.normal(0, 0.5 * self.noise, (height, width, 3))
        return np.clip(photo + grain + 0.5, 0, 255).astype(np.uint8)


def average_four(values, rows):
    """Average the four rays of each pixel: (4 * rows * columns, c), row after row, to (rows, columns, c)."""
    values = values.reshape(rows, 2, -1, 2, values.shape[-1])
    return 0.25 * (values[:, 0, :, 0] + values[:, 0, :, 1] + values[:, 1, :, 0] + values[:, 1, :, 1])


def shoot_car(
    seed: int, number: int, width: int, height: int, stray: float, views: Iterable[int], empty: bool = False
) -> Iterator[Shot]:
    """Yield the wanted views of one synthetic car in its room.

    Args:
        seed, number: Decide car, room and camera.
        width, height: Size of the photos in pixels.
        stray: How far room and camera stray from one studio, 0 to 1.
        views: 1 to 16; each is the same whatever others are asked for.
        empty: Also take each photo without the car.
    """
    detail = float(np.clip(np.sqrt(width * height / 153_600), 0.4, 1.0))
    rng = np.random.default_rng([seed, number, 1])
    camera, room, sensor = Camera(rng, width, height, stray), Room(rng, stray), Sensor(rng, stray)
    traced = TracedCar(Car(np.random.default_rng([seed, number, 0]), detail), detail)
    offset = np.random.default_rng([seed, number, 2]).normal(0, (0.12, 0.08, 0.02))
    wall = np.empty((height, width, 3), np.float32)
    for first, last, rays in camera.bands(0, height, 0, width):
        wall[first:last] = average_four(room.see(camera.eye, rays), last - first)
    floor, floor_xy = camera.see_floor(room)
    for view in views:
        posed = PosedCar(room, traced, view, offset)
        column, row = rotate(floor_xy, posed.turn[:2, :2]).T * TEXTURE_SCALE + TEXTURE_SIZE / 2
        light = wall.copy()
        light.reshape(-1, 3)[floor] *= look_up(room.texture, column, row, borderMode=cv2.BORDER_REFLECT)
        develop = lambda: sensor.develop(light, np.random.default_rng([seed, number, 2 + view]))
        without = develop() if empty else None
        light.reshape(-1, 3)[floor] *= posed.light_floor(floor_xy)[:, None]
        add_reflection(light, floor, floor_xy, posed, camera)
        coverage = add_car(light, posed, camera)
        yield Shot(view, develop(), (coverage >= 0.5).astype(np.uint8), coverage, without, sensor.quality)


def add_reflection(light, floor, floor_xy, posed, camera):
    """Add the car's mirror image in the floor, whose pixels and places are given, to `light` (H, W, 3), in place."""
    height, width = light.shape[:2]
    top, bottom, left, right = camera.frame(posed.vertices * (1, 1, -1))
    row, column = np.divmod(floor, width)
    near = np.flatnonzero((row >= top) & (row < bottom) & (column >= left) & (column < right))
    eye = posed.to_car(camera.eye[None])
    image = np.zeros((height * width, 4), np.float32)
    for part in np.array_split(near, len(near) // CHUNK + 1):
        start = posed.to_car(np.append(floor_xy[part], np.full((len(part), 1), 1e-3), 1)).astype(np.float32)
        rays = unit(start - eye).astype(np.float32) * np.float32([1, 1, -1])
        at, colour, point = posed.trace(start, rays, rich=False)
        fade = np.exp(-point[:, 2] / 0.45) * (1 - np.abs(rays[at, 2])) ** 2
        image[floor[part[at]]] = np.append(colour, np.ones((len(at), 1)), 1) * fade[:, None]
    image = cv2.GaussianBlur(image.reshape(height, width, 4), (0, 0), 0.004 * width + 0.3)
    light += posed.room.gloss * (image[..., :3] - image[..., 3:] * 0.8 * light)


def add_car(light, posed, camera):
    """Draw the car over `light` (H, W, 3), in place, four rays a pixel; return its coverage (H, W), float32."""
    coverage = np.zeros(light.shape[:2], np.float32)
    top, bottom, left, right = camera.frame(posed.vertices)
    eye = posed.to_car(camera.eye[None])
    for first, last, rays in camera.bands(top, bottom, left, right):
        rays = rotate(rays, posed.turn)
        at, colour, _ = posed.trace(np.broadcast_to(eye, rays.shape), rays)
        seen = np.zeros((len(rays), 4), np.float32)
        # A lamp's glint does not spread over a pixel.
        seen[at] = np.append(np.minimum(colour, 1.6), np.ones((len(at), 1)), 1)
        seen = average_four(seen, last - first)
        coverage[first:last, left:right] = seen[..., 3]
        light[first:last, left:right] = light[first:last, left:right] * (1 - seen[..., 3:]) + seen[..., :3]
    return coverage
