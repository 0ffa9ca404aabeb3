"""The photo studio's camera: where it stands, what it sees, and what its sensor makes of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from carvana.studio.car import Car
from carvana.studio.light import PosedCar, TracedCar, look_up, rotate, unit
from carvana.studio.room import FLOOR, TEXTURE_SCALE, TEXTURE_SIZE, Room, vary

CHUNK = 60_000  # rays shaded at a time: the arrays stay in the processor's cache
TILT = np.hypot(1.0, 0.13)  # the lens is shifted upwards


@dataclass
class Shot:
    """One photo and what is known about it."""

    view: int  # 1 to 16
    photo: np.ndarray  # (H, W, 3) uint8 RGB
    mask: np.ndarray  # (H, W) uint8, 1 where the car covers at least half of a pixel
    coverage: np.ndarray  # (H, W) float32, the fraction of a pixel that the car covers, in quarters
    floor_light: (
        np.ndarray
    )  # (H, W) float32, the fraction of light that the car leaves the floor; 1 where there is none
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

    def rays(self, rows, columns):
        """Return unit directions (len(rows) * len(columns), 3), float32, through frame positions in pixels."""
        x = (columns / self.width - 0.5) * self.field
        z = (self.horizon * self.height - rows) / self.width * self.field
        direction = np.stack(np.broadcast_arrays(x[None], TILT, z[:, None]), -1)
        return unit(direction.reshape(-1, 3)).astype(np.float32)

    def project(self, points):
        """Return frame positions (n, 2) in pixels, (row, column), of points (n, 3) of the world."""
        away = points - self.eye
        depth = away[:, 1] / TILT
        row = self.horizon * self.height - away[:, 2] / depth / self.field * self.width
        return np.stack([row, (away[:, 0] / depth / self.field + 0.5) * self.width], 1)

    def frame(self, points):
        """Return the box around points (n, 3) of the world in whole pixels, (top, left) and (bottom, right)."""
        spots = self.project(points)
        return np.floor(spots.min(0)).astype(int), np.ceil(spots.max(0)).astype(int)

    def rays_in_bands(self, top, bottom, left, right):
        """Yield (first row, last row, rays) of a part of the frame, four rays a pixel, in bands of about CHUNK rays."""
        step = max(1, CHUNK // (4 * max(1, right - left)))
        columns = left + (np.arange(2 * (right - left)) + 0.5) / 2
        for first in range(top, bottom, step):
            last = min(first + step, bottom)
            yield first, last, self.rays(first + (np.arange(2 * (last - first)) + 0.5) / 2, columns)


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


@dataclass
class EmptyRoom:
    """What no car changes, seen by one camera."""

    light: np.ndarray  # (H, W, 3) float32
    floor: np.ndarray  # (n,) indices of the pixels that show the floor
    floor_xy: np.ndarray  # (n, 2) float32, where on the floor, metres

    @classmethod
    def render(cls, room, camera):
        height, width = camera.height, camera.width
        photo, floor, spots = np.empty((height, width, 3), np.float32), [], []
        for first, last, rays in camera.rays_in_bands(0, height, 0, width):
            photo[first:last] = average_four(room.see(np.broadcast_to(camera.eye, rays.shape), rays), last - first)
            rays = camera.rays(first + np.arange(last - first) + 0.5, np.arange(width) + 0.5)
            distance, kind = room.meet(np.broadcast_to(camera.eye, rays.shape), rays)
            at = np.flatnonzero(kind == FLOOR)
            floor.append(at + first * width)
            spots.append((camera.eye + rays[at] * distance[at, None])[:, :2])
        return cls(photo, np.concatenate(floor), np.concatenate(spots).astype(np.float32))


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
    background = EmptyRoom.render(room, camera)
    for view in views:
        posed = PosedCar(room, traced, view, offset)
        noise = [seed, number, 2 + view]
        texture = look_up_texture(room, rotate(background.floor_xy, posed.turn[:2, :2]))  # it turns with the table
        share = posed.light_floor(background.floor_xy)
        light, floor_light = background.light.copy(), np.ones((height, width), np.float32)
        light.reshape(-1, 3)[background.floor] *= share[:, None] * texture
        floor_light.ravel()[background.floor] = share
        add_reflection(light, background, posed, camera)
        coverage = add_car(light, posed, camera)
        photo, without = sensor.develop(light, np.random.default_rng(noise)), None
        if empty:
            light = background.light.copy()
            light.reshape(-1, 3)[background.floor] *= texture
            without = sensor.develop(light, np.random.default_rng(noise))
        mask = (coverage >= 0.5).astype(np.uint8)
        yield Shot(view, photo, mask, coverage, floor_light, without, sensor.quality)


def look_up_texture(room, xy):
    """Return the floor's texture (n, 3) at points (n, 2) of the turntable."""
    column, row = (xy * TEXTURE_SCALE + TEXTURE_SIZE / 2).astype(np.float32).T
    return look_up(room.texture, column, row, borderMode=cv2.BORDER_REFLECT)


def add_reflection(light, background, posed, camera):
    """Add the car's mirror image in the floor to `light` (H, W, 3), in place."""
    height, width = light.shape[:2]
    (top, left), (bottom, right) = camera.frame(posed.vertices * (1, 1, -1))
    row, column = np.divmod(background.floor, width)
    near = np.flatnonzero((row >= top) & (row <= bottom) & (column >= left) & (column <= right))
    eye = posed.to_car(camera.eye[None]).astype(np.float64)
    image = np.zeros((height * width, 4), np.float32)
    for at in np.array_split(near, len(near) // CHUNK + 1):
        if len(at) == 0:
            continue
        start = np.append(background.floor_xy[at], np.full((len(at), 1), 1e-3), 1).astype(np.float32)
        start = posed.to_car(start).astype(np.float32)
        rays = unit(start - eye).astype(np.float32) * np.float32([1, 1, -1])
        prim, distance, where = posed.traced.shoot(start, rays)
        hit = np.flatnonzero(prim >= 0)
        if len(hit):
            colour = posed.shade(rays[hit], prim[hit], distance[hit], where[hit], start[hit], rich=False)
            steep = np.abs(rays[hit, 2])
            fade = np.exp(-distance[hit] * steep / 0.45) * (1 - steep) ** 2
            image[background.floor[at[hit]]] = np.append(colour, np.ones((len(hit), 1)), 1) * fade[:, None]
    image = cv2.GaussianBlur(image.reshape(height, width, 4), (0, 0), 0.004 * width + 0.3)
    light += posed.room.gloss * (image[..., :3] - image[..., 3:] * 0.8 * light)


def add_car(light, posed, camera):
    """Draw the car over `light` (H, W, 3), in place, four rays a pixel; return its coverage (H, W), float32."""
    height, width = light.shape[:2]
    box = camera.frame(posed.vertices)
    (top, left), (bottom, right) = np.clip(box[0], 0, (height, width)), np.clip(box[1] + 1, 0, (height, width))
    coverage = np.zeros((height, width), np.float32)
    eye = posed.to_car(camera.eye[None]).astype(np.float32)
    for first, last, rays in camera.rays_in_bands(top, bottom, left, right):
        rays = rotate(rays, posed.turn).astype(np.float32)
        start = np.broadcast_to(eye, rays.shape)
        prim, distance, where = posed.traced.shoot(start, rays)
        hit = np.flatnonzero(prim >= 0)
        seen = np.zeros((len(prim), 4), np.float32)
        if len(hit):
            colour = posed.shade(rays[hit], prim[hit], distance[hit], where[hit], start[hit])
            # A lamp's glint does not spread over a pixel.
            seen[hit] = np.append(np.minimum(colour, 1.6), np.ones((len(hit), 1)), 1)
        seen = average_four(seen, last - first)
        coverage[first:last, left:right] = seen[..., 3]
        light[first:last, left:right] = light[first:last, left:right] * (1 - seen[..., 3:]) + seen[..., :3]
    return coverage
