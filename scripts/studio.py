"""Photograph cars nobody owns, in a studio that does not exist: a data set in Carvana's layout, for a first run without Kaggle.

    python scripts/studio.py --cars 16 --size 480x320 --output data/studio --seed 0

writes `train/<car>_<01..16>.jpg` and `train_masks/<car>_<01..16>_mask.gif`: the car on a turntable before one fixed camera, 22.5
degrees further from view to view, 01 from the front. The masks are exact, cut at half coverage of four rays a pixel. A car depends
on the seed and its number alone, so that a larger set begins with the smaller one and work that was interrupted goes on.
"""

import hashlib
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from carvana.studio.car import BODY, make_car
from PIL import Image, ImageDraw, ImageFont

try:
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene
except ImportError:  # said in one sentence by check_settings, when photos are asked for
    EmbreeScene = None

VIEWS = 16
CHUNK = 60_000  # rays shaded at a time: the arrays stay in the processor's cache
WORDS = (
    "NORVIA",
    "AUTOMER",
    "CELVARO",
    "MOTARA",
    "VELORAN",
    "GARAVIN",
    "KARMOND",
    "DRIVENTA",
    "OLANDRA",
    "TURNOVA",
    "CASTIMO",
    "WAGENIA",
    "RUMESKA",
    "HUBZEIT",
)


@dataclass(frozen=True)
class Settings:
    """What to photograph; each field is also an option of the command line."""

    cars: int = 16  # how many cars, 16 photos each
    size: str = "480x320"  # width x height of a photo in pixels, up to Carvana's own 1918x1280
    output: Path = Path(__file__).resolve().parents[1] / "data/studio"  # folder that receives train/ and train_masks/
    seed: int = 0  # the same seed gives the same cars, whatever the number of workers
    workers: int | None = None  # processes; by default as many as cores, and a single one for a tiny set
    stray: float = (
        0.3  # how far wall, lights and camera stray from one studio, 0 to 1; more for training on other photos
    )


class StudioError(ValueError):
    """A user's mistake, told in one sentence."""


# ---- The room ---------------------------------------------------------------------------------------------------------


class Room:
    """The studio as one car finds it: camera, walls, floor, lights. World frame: metres, turntable's centre at the floor, y away
    from the camera, z up. All light is linear RGB in which an unshaded white floor would be 1."""

    def __init__(self, rng, width, height, stray):
        self.width, self.height = width, height
        near = lambda middle, spread: middle + spread * (0.4 + stray) * rng.uniform(-1, 1)
        self.eye = np.array([near(0, 0.3), -near(8.4, 0.6), near(1.75, 0.35)], np.float32)
        self.field = near(0.76, 0.05) * max(1, width / height / 1.5)  # width of the frame at distance 1
        self.horizon = near(0.245, 0.04)  # where the horizon lies, as a share of the frame's height
        self.middle = np.array([0, -3.0]) + near(0, 0.5)
        self.radius, self.ceiling = near(10, 0.8), near(4.8, 0.5)
        grey, warm = near(0.50, 0.16), near(0.0, 0.10)
        self.floor = grey * np.array([1 + warm, 1, 1 - 1.3 * warm + 0.02])
        self.disc = self.floor * near(1.03, 0.07) * (1 + np.array([1, 0, -1.2]) * near(0.015, 0.03))
        self.disc_radius = near(3.3, 0.25)
        self.gloss, self.depth = near(0.14, 0.10), near(1.1, 0.25)
        self.wall = near(0.82, 0.09) * (1 + np.array([1, 0, -1]) * near(0, 0.02))
        self.edge = np.array(
            [near(0.25, 0.35), near(-0.5, 0.6), near(0.6, 0.8)]
        )  # the painted sweep: its height along the wall
        self.shade, self.glow = near(0.0, 0.25), max(0.0, near(0.25, 0.25))
        self.letters, self.ink = self.write(rng), near(0.11, 0.10) * (1 + near(0, 0.06) * np.array([1, 0, 1]))
        self.letters_low, self.letters_tall = near(0.30, 0.25), near(1.5, 0.25)
        self.letters_left, self.letters_wide = near(-4.8, 0.6), near(9.8, 0.8)
        boxes = int(rng.integers(3, 7))
        self.box_soft = rng.uniform(0.1, 1.2)
        self.boxes = [
            (
                rng.uniform(-4.5, 4.5),
                rng.uniform(-7, 4),
                rng.uniform(0.5, 1.6),
                rng.uniform(0.5, 2.0),
                rng.uniform(2, 6),
            )
            for _ in range(boxes)
        ]
        self.panels = [
            (rng.uniform(-1.3, 1.3), rng.uniform(0.12, 0.4), rng.uniform(0.8, 1.8), rng.uniform(1.5, 4))
            for _ in range(3)
        ]
        self.rail = (
            near(-5.0, 0.5) if rng.random() < 0.3 + 0.2 * stray else -99.0
        )  # the edge of a pit before the turntable
        self.rail_low = rng.uniform(0.02, 0.5) * self.floor.mean()
        self.texture = self.stain(rng)
        self.exposure, self.balance = (
            near(1.0, 0.14),
            1 + near(0, 0.04) * np.array([1, 0, -1]) + near(0, 0.015) * np.array([0, 1, 0]),
        )
        self.vignette, self.noise, self.quality = near(0.10, 0.08), rng.uniform(0.6, 2.2), int(rng.integers(82, 96))
        self.soft, self.black, self.contrast = rng.uniform(0.25, 0.6), near(0.004, 0.012), near(1.06, 0.10)

    def write(self, rng):
        """Draw the word on the wall: (h, w) float32 in [0, 1], thin letters first, then bold ones."""
        word = WORDS[rng.integers(len(WORDS))]
        split, thin, bold = int(rng.integers(0, len(word))), int(rng.integers(0, 6)), int(rng.integers(5, 14))
        sheet = Image.new("L", (2400, 200))
        draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(220), 20
        for i, letter in enumerate(word):
            stroke = bold if i >= split else thin
            draw.text((x, 180), letter, fill=255, font=font, stroke_width=stroke, anchor="ls")
            x += draw.textlength(letter, font=font) + 24 + stroke
        return np.asarray(sheet.crop((0, 0, int(x), 200)), np.float32) / 255

    def stain(self, rng):
        """Draw what feet and tyres leave on the floor within 8 m of the centre: (512, 512, 3) float32 factors near 1."""
        size, scale = 512, 512 / 16
        stains = np.ones((size, size, 3), np.float32)
        for cells, depth in ((5, 0.05), (16, 0.04), (60, 0.025)):
            spots = cv2.resize(
                rng.uniform(-1, 1, (cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
            )
            stains += depth * spots[..., None] * (1, 1, 1.15)
        for _ in range(rng.integers(3, 14)):  # arcs where tyres turned
            ink, radius = np.zeros((size, size), np.uint8), rng.uniform(0.6, self.disc_radius * 1.1) * scale
            start, sweep = rng.uniform(0, 360), rng.uniform(10, 100)
            cv2.ellipse(
                ink,
                (size // 2, size // 2),
                (int(radius), int(radius * rng.uniform(0.9, 1))),
                0,
                start,
                start + sweep,
                255,
                int(rng.integers(2, 8)),
                cv2.LINE_AA,
            )
            stains *= 1 - cv2.GaussianBlur(ink / np.float32(255), (0, 0), 2.5)[..., None] * rng.uniform(
                0.03, 0.2
            ) * np.array([0.8, 1, 1.2], np.float32)
        turn = rng.uniform(0, np.pi)
        for angle in turn + np.pi * np.arange(3) / 3:  # the plates of the turntable
            ink, tip = (
                np.zeros((size, size), np.uint8),
                self.disc_radius * scale * np.array([np.cos(angle), np.sin(angle)]),
            )
            cv2.line(ink, tuple(int(v) for v in 256 - tip), tuple(int(v) for v in 256 + tip), 255, 1, cv2.LINE_AA)
            stains *= 1 - 0.2 * cv2.GaussianBlur(ink / np.float32(255), (0, 0), 0.6)[..., None]
        return stains.astype(np.float32)

    def rays(self, rows, columns):
        """Return unit directions (len(rows), len(columns), 3) float32 through frame positions in pixels (rows down, columns right)."""
        x = (columns / self.width - 0.5) * self.field
        z = (self.horizon * self.height - rows) / self.width * self.field
        tilt = np.hypot(1.0, 0.13)
        direction = np.stack(np.broadcast_arrays(x[None], tilt, z[:, None]), -1)
        return unit(direction.reshape(-1, 3)).astype(np.float32).reshape(direction.shape)

    def project(self, points):
        """Return frame positions (n, 2) in pixels, (row, column), of world points (n, 3)."""
        away = points - self.eye
        depth = away[:, 1] / np.hypot(1.0, 0.13)
        return np.stack(
            [
                self.horizon * self.height - away[:, 2] / depth / self.field * self.width,
                (away[:, 0] / depth / self.field + 0.5) * self.width,
            ],
            1,
        )

    def meet(self, origin, direction):
        """Follow rays (n, 3) to the room: distance (n,) and kind (n,) 0 floor, 1 wall, 2 ceiling."""
        z = np.where(np.abs(direction[:, 2]) < 1e-6, 1e-6, direction[:, 2])
        level = np.where(z < 0, -origin[:, 2], self.ceiling - origin[:, 2]) / z
        offset, flat = origin[:, :2] - self.middle, direction[:, :2]
        (fx, fy), (ox, oy) = flat.T, offset.T
        a, b, c = fx * fx + fy * fy + 1e-9, ox * fx + oy * fy, ox * ox + oy * oy - self.radius**2
        round_ = (np.sqrt(np.maximum(b * b - a * c, 0)) - b) / a
        return np.minimum(level, round_), np.where(level > round_, 1, np.where(z < 0, 0, 2))

    def see(self, origin, direction, floor_light=None, smooth=0.0):
        """Return the light (n, 3) that comes along rays from the empty room; `floor_light` maps floor points (n, 2) to a share of light."""
        distance, kind = self.meet(origin, direction)
        point = origin + direction * distance[:, None]
        light = np.empty((len(point), 3), np.float32)
        at = np.flatnonzero(kind == 0)
        if len(at):
            light[at] = self.paint_floor(
                point[at, :2], origin[at], None if floor_light is None else floor_light(point[at, :2])
            )
        at = np.flatnonzero(kind == 1)
        if len(at):
            light[at] = self.paint_wall(point[at])
        at = np.flatnonzero(kind == 2)
        if len(at):
            x, y = point[at, 0], point[at, 1]
            bright = np.full(len(at), 0.55, np.float32)
            for cx, cy, w, h, power in self.boxes:
                bright += power * (
                    np.clip((w - np.abs(x - cx)) / self.box_soft + 0.5, 0, 1)
                    * np.clip((h - np.abs(y - cy)) / self.box_soft + 0.5, 0, 1)
                )
            light[at] = bright[:, None]
        return light

    def paint_floor(self, xy, origin, share=None):
        """Return the light (n, 3) of floor points (n, 2)."""
        from_centre = np.hypot(xy[:, 0], xy[:, 1])
        colour = np.where((from_centre < self.disc_radius)[:, None], self.disc, self.floor)
        rim = np.clip(1.6 - np.abs(from_centre - self.disc_radius) / 0.014, 0, 1)
        bright = (1 - 0.006 * from_centre**2) * (1 - 0.5 * rim)
        if share is not None:
            bright = bright * share
        pit = xy[:, 1] + 0.02 * xy[:, 0] ** 2 < self.rail
        lip = np.abs(xy[:, 1] + 0.02 * xy[:, 0] ** 2 - self.rail) < 0.07
        bright = np.where(
            pit,
            self.rail_low / self.floor.mean() * (1 + 0.4 * np.sin(xy[:, 1] * 60 + 3 * np.sin(xy[:, 0] * 5))),
            bright,
        )
        bright = np.where(lip, 1.7, bright)
        return colour * bright[:, None]

    def paint_wall(self, point):
        """Return the light (n, 3) of wall points (n, 3)."""
        azimuth = np.arctan2(
            point[:, 0], point[:, 1] - self.middle[1]
        )  # 0 straight behind the car, positive to the right
        along, z = azimuth * self.radius, point[:, 2]
        edge = self.edge[0] + self.edge[1] * azimuth + self.edge[2] * azimuth**2
        bright = (
            1
            - self.shade * np.clip(azimuth, -0.6, 0.6)
            - 0.03 * (z - 1.5)
            + self.glow * np.exp(-np.maximum(z - edge, 0) / 0.25)
        )
        behind = np.abs(azimuth) > 1.6  # the camera's side: lamps and dark corners, seen in the paint only
        bright = np.where(behind, 0.75 + 0.25 * np.sin(azimuth * 9), bright)
        turned = np.where(azimuth > 0, azimuth - np.pi, azimuth + np.pi)
        for middle, half, high, power in self.panels:
            bright += (
                power
                * np.clip((half - np.abs(turned - middle)) / 0.05, 0, 1)
                * np.clip((1.2 - np.abs(z - high)) / 0.2, 0, 1)
            )
        colour = self.wall * bright[:, None]
        h, w = self.letters.shape
        column = np.floor((along - self.letters_left) / self.letters_wide * w).astype(int)
        row = np.floor((self.letters_low - z) / self.letters_tall * 158).astype(int) + 180
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w) & ~behind
        ink = np.where(inside, self.letters[np.clip(row, 0, h - 1), np.clip(column, 0, w - 1)], 0)[:, None]
        colour = colour * (1 - ink) + self.ink * ink
        sweep = np.clip((edge - z) / 0.03 + 0.5, 0, 1)[:, None] * (~behind[:, None])
        return colour * (1 - sweep) + self.floor * 0.95 * sweep


# ---- The car in the light ---------------------------------------------------------------------------------------------


def sphere(n):
    """Return n directions (n, 3) float32, evenly spread over the sphere."""
    z = 1 - (2 * np.arange(n) + 1) / n
    turn = np.arange(n) * np.pi * (3 - np.sqrt(5))
    return np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], 1).astype(np.float32)


def dot(a, b):
    """Return the products (n,) of vectors (n, 3); three columns added are faster than a sum over rows of three."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def unit(vectors):
    return vectors / np.sqrt(np.maximum(dot(vectors, vectors), 1e-18))[:, None]


def blend(values, corner, where):
    """Mix values (V, c) of the three vertices `corner` (n, 3) of each triangle hit at barycentrics `where` (n, 2)."""
    u, v = where[:, :1], where[:, 1:]
    return values[corner[:, 0]] * (1 - u - v) + values[corner[:, 1]] * u + values[corner[:, 2]] * v


def rotate(vectors, matrix):
    """Return vectors (n, k) @ matrix (k, m), without BLAS: its threads gain nothing here and its sums differ between machines."""
    return sum(vectors[:, k, None] * matrix[k] for k in range(vectors.shape[1]))


class Sitter:
    """A car ready to be photographed: its ray scene, and once for all views how much of each direction its points see."""

    def __init__(self, car, detail):
        self.car, self.scene = car, EmbreeScene()
        TriangleMesh(self.scene, np.ascontiguousarray(car.vertices), np.ascontiguousarray(car.faces))
        corner = car.vertices[car.faces]
        self.face_normal = unit(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])).astype(np.float32)
        self.sky = sphere(int(48 + 48 * detail))
        up = self.sky[self.sky[:, 2] > 0]
        # Light that reaches the floor around the car, direction by direction.
        self.step = 0.07 / detail
        nx, ny = int((car.length + 3.6) / self.step), int((car.width + 3.6) / self.step)
        grid = (
            np.stack(np.meshgrid(np.arange(nx), np.arange(ny), indexing="ij"), -1).reshape(-1, 2)
            - ((nx - 1) / 2, (ny - 1) / 2)
        ) * self.step
        ground = np.append(grid, np.full((len(grid), 1), 1e-3), 1).astype(np.float32)
        self.floor_seen = (self.blocked(ground, up) * up[:, 2] / up[:, 2].sum()).reshape(nx, ny, -1)
        # Light that reaches the car's vertices, weighted by the cosine; what comes up from the floor has to get there first.
        open_floor = cv2.GaussianBlur(self.floor_seen.sum(-1), (0, 0), 1.0)
        cosine = np.maximum(rotate(car.normals, self.sky.T), 0)
        self.seen = self.blocked(car.vertices + car.normals * 2e-3, self.sky, cosine > 0) * cosine / (len(self.sky) / 4)
        down = np.flatnonzero(self.sky[:, 2] < 0)
        reach = car.vertices[:, None, :2] + self.sky[down, :2] * (car.vertices[:, None, 2:] / -self.sky[down, 2:])
        self.seen[:, down] *= self.sample(open_floor, reach.reshape(-1, 2)).reshape(len(car.vertices), -1)

    def sample(self, table, xy):
        """Look (n, 2) points of the car's frame up in a floor table (nx, ny), 1 outside."""
        place = np.asarray(xy / self.step + (np.array(table.shape) - 1) / 2, np.float32)
        pad = [np.clip(place[:, k], -1, table.shape[k]).reshape(1, -1) for k in (1, 0)]
        out = [
            cv2.remap(table, pad[0][:, i : i + 30000], pad[1][:, i : i + 30000], cv2.INTER_LINEAR, borderValue=1.0)
            for i in range(0, len(place), 30000)
        ]
        return np.concatenate(out, 1)[0]

    def blocked(self, points, directions, wanted=None):
        """Return 1 where a ray from points (n, 3) along directions (k, 3) leaves the car, else 0: (n, k) float32."""
        seen = np.zeros((len(points), len(directions)), np.float32)
        for k, direction in enumerate(directions):
            at = slice(None) if wanted is None else np.flatnonzero(wanted[:, k])
            start = np.ascontiguousarray(points[at])
            seen[at, k] = (
                self.scene.run(start, np.ascontiguousarray(np.broadcast_to(direction, start.shape)), query="OCCLUDED")
                != 0
            )
        return seen

    def shoot(self, origin, direction):
        """Follow rays (n, 3) to the car and through its wheel arches: triangle (n,) or -1, distance (n,), barycentrics (n, 2)."""
        car = self.car
        hit = self.scene.run(np.ascontiguousarray(origin), np.ascontiguousarray(direction), output=1)
        prim, distance, where = hit["primID"].copy(), hit["tfar"].copy(), np.stack([hit["u"], hit["v"]], 1)
        at = np.flatnonzero(prim >= 0)
        at = at[car.parts[car.faces[prim[at], 0]] == BODY]
        point = origin[at] + direction[at] * distance[at, None]
        hole = np.zeros(len(at), bool)
        for axle in car.axles:
            hole |= (np.hypot(point[:, 0] - axle, point[:, 2] - car.wheel_radius) < car.arch) & (
                np.abs(point[:, 1]) > 0.3 * car.width
            )
        at, point = (
            at[hole & (self.face_normal[prim[at], 2] > -0.6)],
            point[hole & (self.face_normal[prim[at], 2] > -0.6)],
        )
        if len(at):
            start = point + direction[at] * 2e-3
            again = self.scene.run(np.ascontiguousarray(start), np.ascontiguousarray(direction[at]), output=1)
            distance[at] += again["tfar"] + 2e-3
            prim[at], where[at] = again["primID"], np.stack([again["u"], again["v"]], 1)
        return prim, distance, where


class View:
    """One photo: the car turned to one of the sixteen headings."""

    def __init__(self, room, sitter, number, offset):
        self.room, self.sitter = room, sitter
        heading = -np.pi / 2 - 2 * np.pi / VIEWS * (number - 1) + offset[2]
        c, s = np.cos(heading), np.sin(heading)
        self.turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)  # car frame -> world
        self.shift = (self.turn @ np.array([offset[0], offset[1], 0])).astype(np.float32)
        sky = rotate(sitter.sky, self.turn.T)
        light = room.see(np.broadcast_to(np.float32([0, 0, 0.8]), sky.shape), sky)
        up = sky[:, 2] > 0
        falls = (0.5 * light[up].mean(1) + 0.5 * light[up].mean()) * (
            0.25 + sky[up, 2]
        )  # lamps hang high, and each stands between the few rays
        floor = np.einsum("xyk,k->xy", sitter.floor_seen, falls / (falls * sky[up, 2]).sum() * sky[up, 2].sum())
        self.floor_light = cv2.GaussianBlur(floor.astype(np.float32), (0, 0), 0.8) ** room.depth
        even = (light[up] * sky[up, 2:]).sum(0) / sky[up, 2].sum()
        self.light = np.einsum("vk,kc->vc", sitter.seen, (light / even.mean()).astype(np.float32)) * 1.15

    def to_car(self, points):
        return rotate(points - self.shift, self.turn)

    def floor_share(self, xy):
        return self.sitter.sample(self.floor_light, rotate(xy - self.shift[:2], self.turn[:2, :2]))

    def shade(self, direction, prim, distance, where, origin, rich=True):
        """Return the light (n, 3) that hits send back along car-frame rays; `rich` follows mirrored rays and looks through glass."""
        car, sitter = self.sitter.car, self.sitter
        corner = car.faces[prim]
        point = origin + direction * distance[:, None]
        normal, coords, arriving = (
            unit(blend(car.normals, corner, where)),
            blend(car.coords, corner, where),
            blend(self.light, corner, where),
        )
        back = dot(sitter.face_normal[prim], direction) > 0
        normal = np.where(back[:, None], -normal, normal)
        part = car.parts[corner[:, 0]]
        colour, mirror, metal, glass = car.material(part, point, normal, coords, back)
        normal = car.press(part, point, normal, coords)
        arriving = np.where(back[:, None], 0.12, arriving)
        if not rich:
            return colour * arriving + 0.05 * (glass > 0)[:, None]
        cosine = np.clip(-dot(direction, normal), 0, 1)
        bounce = unit(direction + 2 * cosine[:, None] * normal)
        bounce[:, 2] += 1e-4
        world = rotate(point, self.turn.T) + self.shift
        seen = self.room.see(world, rotate(bounce, self.turn.T), self.floor_share)
        onto, *_ = sitter.shoot(point + normal * 4e-3, bounce)
        seen = np.where((onto >= 0)[:, None], car.look["paint"] * 0.35 + 0.02, seen)
        seen = np.minimum(seen, 6.0)
        fresnel = mirror + (1 - mirror) * (1 - cosine) ** 5 * (mirror > 0.025)
        wet = np.where(mirror > 0.025, 1.0, 0.25) * (mirror > 0)
        metal = metal[:, None]
        base = colour * ((1 - metal) * arriving + metal * (0.45 * np.minimum(seen, 1.6) + 0.6 * arriving))
        light = base * (1 - fresnel)[:, None] + seen * (fresnel * wet)[:, None]
        at = np.flatnonzero(glass > 0)
        if len(at):  # what is seen through the glass: seats, the far windows, the room behind
            start = point[at] + direction[at] * 3e-3
            prim_in, distance_in, where_in = sitter.shoot(start, direction[at])
            through = self.room.see(world[at], rotate(direction[at], self.turn.T), self.floor_share)
            inside = np.flatnonzero(prim_in >= 0)
            if len(inside):
                corner = car.faces[prim_in[inside]]
                spot = start[inside] + direction[at][inside] * distance_in[inside, None]
                normal_in, coords = (
                    blend(car.normals, corner, where_in[inside]),
                    blend(car.coords, corner, where_in[inside]),
                )
                colour, _, _, second = car.material(
                    car.parts[corner[:, 0]], spot, normal_in, coords, np.zeros(len(inside), bool)
                )
                lit = colour * (0.25 + 0.35 * np.abs(normal_in[:, 2:]))
                through[inside] = np.where(second[:, None] > 0, through[inside] * second[:, None], lit)
            light[at] += through * (glass[at] * (1 - fresnel[at]))[:, None]
        return light


def average_four(values, rows):
    """Average the four rays of each pixel: (4 * rows * columns, c) in the order of `Room.rays` to (rows, columns, c)."""
    values = values.reshape(rows, 2, -1, 2, values.shape[-1])
    return 0.25 * (values[:, 0, :, 0] + values[:, 0, :, 1] + values[:, 1, :, 0] + values[:, 1, :, 1])


def photograph(room, view, ground, rng):
    """Take one photo.

    Args:
        ground: what `empty_room` returns for this room.
        rng: numpy Generator for the sensor's noise.

    Returns:
        photo (H, W, 3) uint8 RGB, mask (H, W) uint8 in {0, 1}.
    """
    width, height, car = room.width, room.height, view.sitter.car
    photo, below, floor_xy = ground[0].copy(), ground[1], ground[2]
    eye = view.to_car(room.eye[None])
    world = rotate(car.vertices, view.turn.T) + view.shift
    # The floor: shade of the car, stains that turn with the table, the car's mirror image.
    xy = rotate(floor_xy - view.shift[:2], view.turn[:2, :2])
    share = view.sitter.sample(view.floor_light, xy)
    place = (rotate(floor_xy, view.turn[:2, :2]) * 32 + 256).astype(np.float32)
    parts = [
        cv2.remap(
            room.texture,
            np.ascontiguousarray(place[i : i + 30000, :1]),
            np.ascontiguousarray(place[i : i + 30000, 1:]),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )[:, 0]
        for i in range(0, len(place), 30000)
    ]
    stain = np.concatenate(parts)
    photo.reshape(-1, 3)[below] *= share[:, None] * stain
    mirrored = room.project(world * (1, 1, -1))
    low, high = np.floor(mirrored.min(0)).astype(int), np.ceil(mirrored.max(0)).astype(int)
    row, column = np.divmod(below, width)
    near = np.flatnonzero((row >= low[0]) & (row <= high[0]) & (column >= low[1]) & (column <= high[1]))
    image = np.zeros((height * width, 4), np.float32)
    for at in np.array_split(near, len(near) // CHUNK + 1):
        if len(at) == 0:
            continue
        start = view.to_car(np.append(floor_xy[at], np.full((len(at), 1), 1e-3), 1).astype(np.float32)).astype(
            np.float32
        )
        direction = unit(start - eye * (1, 1, 1)).astype(np.float32) * np.float32([1, 1, -1])
        prim, distance, where = view.sitter.shoot(start, direction)
        hit = np.flatnonzero(prim >= 0)
        if len(hit):
            light = view.shade(direction[hit], prim[hit], distance[hit], where[hit], start[hit], rich=False)
            fade = np.exp(-distance[hit] * np.abs(direction[hit, 2]) / 0.45) * (1 - np.abs(direction[hit, 2])) ** 2
            image[below[at[hit]]] = np.append(light, np.ones((len(hit), 1)), 1) * fade[:, None]
    image = cv2.GaussianBlur(image.reshape(height, width, 4), (0, 0), 0.004 * width + 0.3)
    photo += room.gloss * (image[..., :3] - image[..., 3:] * 0.8 * photo)
    # The car: four rays a pixel within its bounding box.
    corner = room.project(world)
    top, left = np.clip(np.floor(corner.min(0)).astype(int), 0, (height, width))
    bottom, right = np.clip(np.ceil(corner.max(0)).astype(int) + 1, 0, (height, width))
    coverage = np.zeros((height, width), np.float32)
    step = max(1, CHUNK // (4 * max(1, right - left)))
    columns = left + (np.arange(2 * (right - left)) + 0.5) / 2
    for first in range(top, bottom, step):
        last = min(first + step, bottom)
        direction = room.rays(first + (np.arange(2 * (last - first)) + 0.5) / 2, columns)
        direction = rotate(direction.reshape(-1, 3), view.turn).astype(np.float32)
        start = np.broadcast_to(eye.astype(np.float32), direction.shape)
        prim, distance, where = view.sitter.shoot(start, direction)
        hit = np.flatnonzero(prim >= 0)
        seen = np.zeros((len(prim), 4), np.float32)
        if len(hit):
            light = view.shade(direction[hit], prim[hit], distance[hit], where[hit], start[hit])
            seen[hit] = np.append(
                np.minimum(light, 1.6), np.ones((len(hit), 1)), 1
            )  # a lamp's glint does not spread over a pixel
        seen = average_four(seen, last - first)
        coverage[first:last, left:right] = seen[..., 3]
        photo[first:last, left:right] = photo[first:last, left:right] * (1 - seen[..., 3:]) + seen[..., :3]
    return develop(room, photo, rng), (coverage >= 0.5).astype(np.uint8)


def empty_room(room):
    """Render what no car changes.

    Returns:
        light (H, W, 3) float32; indices (n,) of the pixels that show the floor; where on the floor they lie, (n, 2) float32 metres.
    """
    photo, below, spots = np.empty((room.height, room.width, 3), np.float32), [], []
    step = max(1, CHUNK // (4 * room.width))
    columns = (np.arange(2 * room.width) + 0.5) / 2
    for first in range(0, room.height, step):
        last = min(first + step, room.height)
        direction = room.rays(first + (np.arange(2 * (last - first)) + 0.5) / 2, columns).reshape(-1, 3)
        light = room.see(np.broadcast_to(room.eye, direction.shape), direction)
        photo[first:last] = average_four(light, last - first)
        direction = room.rays(first + np.arange(last - first) + 0.5, np.arange(room.width) + 0.5).reshape(-1, 3)
        distance, kind = room.meet(np.broadcast_to(room.eye, direction.shape), direction)
        at = np.flatnonzero(kind == 0)
        below.append(at + first * room.width)
        spots.append((room.eye + direction[at] * distance[at, None])[:, :2])
    return photo, np.concatenate(below), np.concatenate(spots).astype(np.float32)


def develop(room, photo, rng):
    """Turn light (H, W, 3) into a photo as a camera would: exposure, white balance, vignette, softness, tone curve, noise."""
    height, width = photo.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    photo = photo * ((1 - room.vignette * (x * x + y * y))[..., None] * room.balance * room.exposure * 1.5).astype(
        np.float32
    )
    photo = cv2.GaussianBlur(photo, (0, 0), room.soft * max(1, width / 960))
    photo = np.maximum(photo + room.black, 0) ** room.contrast
    photo *= (photo + 0.02) / (photo + 0.045)  # the toe: cameras render what is nearly black as black
    knee = 0.72
    photo = np.where(photo > knee, knee + (1 - knee) * (1 - np.exp(-(photo - knee) / (1 - knee))), np.maximum(photo, 0))
    photo = 255 * np.where(photo < 0.0031308, 12.92 * photo, 1.055 * np.maximum(photo, 1e-6) ** (1 / 2.4) - 0.055)
    grain = rng.normal(0, room.noise, (height, width, 1)) + rng.normal(0, 0.5 * room.noise, (height, width, 3))
    return np.clip(photo + grain + 0.5, 0, 255).astype(np.uint8)


# ---- Files ------------------------------------------------------------------------------------------------------------


def name_car(seed, number):
    """Return the twelve hex digits under which car `number` (from 0) of a seed is filed."""
    return hashlib.sha256(f"studio {seed} {number}".encode()).hexdigest()[:12]


def paths(output, car, view):
    return Path(output) / "train" / f"{car}_{view:02d}.jpg", Path(output) / "train_masks" / f"{car}_{view:02d}_mask.gif"


def shoot_view(seed, number, width, height, stray, views):
    """Yield (view, photo, mask, JPEG quality) for the wanted views of one car; see `photograph` for the arrays."""
    detail = float(np.clip(np.sqrt(width * height / 153_600), 0.4, 1.0))
    room = Room(np.random.default_rng([seed, number, 1]), width, height, stray)
    sitter = Sitter(make_car(np.random.default_rng([seed, number, 0]), detail), detail)
    offset = np.random.default_rng([seed, number, 2]).normal(0, (0.12, 0.08, 0.02))
    ground = empty_room(room)
    for number_of_view in views:
        view = View(room, sitter, number_of_view, offset)
        yield (
            number_of_view,
            *photograph(room, view, ground, np.random.default_rng([seed, number, 2 + number_of_view])),
            room.quality,
        )


def make_car_files(output, seed, number, width, height, stray):
    """Write the photos and masks of one car that are not there yet, each under a temporary name first; return how many."""
    car = name_car(seed, number)
    missing = [view for view in range(1, VIEWS + 1) if not all(path.exists() for path in paths(output, car, view))]
    for view, photo, mask, quality in shoot_view(seed, number, width, height, stray, missing) if missing else ():
        gif = Image.frombytes("P", (width, height), mask.tobytes())
        gif.putpalette([0, 0, 0, 255, 255, 255])
        for image, path, options in zip(
            (Image.fromarray(photo), gif), paths(output, car, view), ({"quality": quality}, {})
        ):
            memory = BytesIO()
            image.save(memory, "JPEG" if options else "GIF", **options)
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            part.write_bytes(memory.getvalue())
            os.replace(part, path)
    return len(missing)


def check_settings(output, cars, width, height, seed, workers, stray):
    """Refuse what cannot be photographed.

    Raises:
        StudioError: with one sentence that says what to change.
    """
    if EmbreeScene is None:
        raise StudioError(
            "The studio's ray library must be installed, embreex was not found: run `pip install -r requirements-studio.txt`."
        )
    if cars < 1:
        raise StudioError(f"cars must be at least 1, got {cars}: each car gives {VIEWS} photos.")
    if not (32 <= width <= 1918 and 32 <= height <= 1280):
        raise StudioError(
            f"size must be from 32x32 to 1918x1280 (width x height), got {width}x{height}: 480x320 is a good start."
        )
    if seed < 0:
        raise StudioError(f"seed must be 0 or more, got {seed}: any other whole number gives other cars.")
    if workers is not None and workers < 1:
        raise StudioError(f"workers must be at least 1, got {workers}: leave it out to use every core.")
    if not 0 <= stray <= 1:
        raise StudioError(f"stray must be from 0 to 1, got {stray}: 0 is always the same studio, 1 the most varied.")
    for path in (Path(output), Path(output) / "train", Path(output) / "train_masks"):
        if path.exists() and not path.is_dir():
            raise StudioError(f"output must be a folder, got the file {path}: choose another --output.")
    for photo in (paths(output, name_car(seed, number), 1)[0] for number in range(cars)):
        if photo.exists():
            with Image.open(photo) as image:
                if image.size != (width, height):
                    raise StudioError(
                        f"output must be empty or hold photos of {width}x{height}, got {photo.name} of {image.width}x{image.height}: "
                        "choose another --output."
                    )


def make_studio(
    output,
    cars=Settings.cars,
    width=480,
    height=320,
    seed=Settings.seed,
    workers=None,
    stray=Settings.stray,
    progress=True,
):
    """Write a data set of studio photos in Carvana's layout; whole files already there are kept.

    Args:
        output: folder that receives train/ and train_masks/.
        width, height: size of a photo in pixels.
        workers: processes, None for as many as cores; the files do not depend on it.
        progress: show a progress bar.

    Returns:
        `output` as a Path.

    Raises:
        StudioError: a ValueError, for settings that cannot be photographed or a missing library.
    """
    from tqdm import tqdm

    check_settings(output, cars, width, height, seed, workers, stray)
    output = Path(output)
    for folder in ("train", "train_masks"):
        (output / folder).mkdir(parents=True, exist_ok=True)
        for part in (output / folder).glob(".*.part"):  # what a killed run left
            part.unlink(missing_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if workers is None:  # starting processes costs as much as some 60 photos of 96x64
        workers = cores if cars * VIEWS * width * height > 3_000_000 else 1
    jobs = [(output, seed, number, width, height, stray) for number in range(cars)]
    bar = tqdm(total=cars * VIEWS, desc="studio", unit="photo", disable=not progress)
    with bar:
        if min(workers, cars) == 1:
            for job in jobs:
                make_car_files(*job)
                bar.update(VIEWS)
        else:
            # Ctrl-C is the parent's affair: it drops the cars not begun and waits for those that are.
            pool = ProcessPoolExecutor(
                min(workers, cars), multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
            )
            try:
                for done in as_completed([pool.submit(make_car_files, *job) for job in jobs]):
                    done.result()
                    bar.update(VIEWS)
            finally:
                pool.shutdown(cancel_futures=True)
    return output


def main(settings):
    """Run the command line; return the exit status."""
    try:
        width, height = (int(side) for side in settings.size.lower().split("x"))
    except ValueError:
        print(f"error: size must be width x height such as 480x320, got {settings.size}.", file=sys.stderr)
        return 2
    try:
        make_studio(settings.output, settings.cars, width, height, settings.seed, settings.workers, settings.stray)
    except (StudioError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        return 1
    print(f"{settings.cars * VIEWS} photos and masks of {settings.cars} cars in {settings.output}")
    return 0


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Settings, description=__doc__)))
