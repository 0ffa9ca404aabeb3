"""The photo studio's room: a floor with a turntable, a round wall with a word on it, lamps.

World frame: metres, origin at the turntable's centre on the floor, x to the right, y away from the camera, z up. Light
is linear RGB, in which an unshaded white floor would be 1.
"""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from carvana.studio.vectors import look_up

WORDS = "NORVIA AUTOMER CELVARO MOTARA VELORAN GARAVIN KARMOND DRIVENTA OLANDRA TURNOVA CASTIMO WAGENIA RUMESKA HUBZEIT"
FLOOR, WALL, CEILING = range(3)
TEXTURE_SIZE, TEXTURE_SCALE = 512, 32  # of the floor's texture: pixels a side, pixels a metre


def vary(rng, stray):
    """Return a function of (middle, spread) that draws near the middle: the further away, the greater `stray` is."""
    return lambda middle, spread: middle + spread * (0.4 + stray) * rng.uniform(-1, 1)


class Room:
    """The studio that one car stands in, which strays from a standard one by `stray`, 0 to 1."""

    def __init__(self, rng, stray):
        near = vary(rng, stray)
        self.middle = np.array([0, -3.0]) + near(0, 0.5)  # of the round wall
        self.radius, self.ceiling = near(10, 0.8), near(4.8, 0.5)
        grey, warm = near(0.50, 0.16), near(0.0, 0.10)
        self.floor = grey * np.array([1 + warm, 1, 1 - 1.3 * warm + 0.02])
        self.disc = self.floor * near(1.03, 0.07) * (1 + np.array([1, 0, -1.2]) * near(0.015, 0.03))
        self.disc_radius = near(3.3, 0.25)
        self.gloss, self.shadow_depth = near(0.14, 0.10), near(1.1, 0.25)
        self.wall = near(0.82, 0.09) * (1 + np.array([1, 0, -1]) * near(0, 0.02))
        # The floor's paint sweeps up the wall: its height as a polynomial of the azimuth.
        self.edge = np.array([near(0.25, 0.35), near(-0.5, 0.6), near(0.6, 0.8)])
        self.shade, self.glow = near(0.0, 0.25), max(0.0, near(0.25, 0.25))
        self.letters, self.ink = draw_word(rng), near(0.11, 0.10) * (1 + near(0, 0.06) * np.array([1, 0, 1]))
        self.letters_low, self.letters_tall = near(0.30, 0.25), near(1.5, 0.25)
        self.letters_left, self.letters_wide = near(-4.8, 0.6), near(9.8, 0.8)
        n_lamps, self.lamp_soft = int(rng.integers(3, 7)), rng.uniform(0.1, 1.2)
        # Lamps under the ceiling: x, y, half sizes, power. Panels behind the camera: azimuth, half width, z, power.
        self.lamps = [rng.uniform((-4.5, -7, 0.5, 0.5, 2), (4.5, 4, 1.6, 2.0, 6)).tolist() for _ in range(n_lamps)]
        self.panels = [rng.uniform((-1.3, 0.12, 0.8, 1.5), (1.3, 0.4, 1.8, 4)).tolist() for _ in range(3)]
        self.pit = near(-5.0, 0.5) if rng.random() < 0.3 + 0.2 * stray else -99.0  # y of its edge, if there is one
        self.pit_light = rng.uniform(0.02, 0.5) * self.floor.mean()
        self.texture = draw_floor(rng, self.disc_radius)

    def meet(self, origin, direction):
        """Follow rays (n, 3) to the room: distance (n,) and what they meet (n,), FLOOR, WALL or CEILING."""
        z = np.where(np.abs(direction[:, 2]) < 1e-6, 1e-6, direction[:, 2])
        level = np.where(z < 0, -origin[..., 2], self.ceiling - origin[..., 2]) / z
        (fx, fy), (ox, oy) = direction[:, :2].T, (origin[..., :2] - self.middle).T
        a, b, c = fx * fx + fy * fy + 1e-9, ox * fx + oy * fy, ox * ox + oy * oy - self.radius**2
        round_ = (np.sqrt(np.maximum(b * b - a * c, 0)) - b) / a
        return np.minimum(level, round_), np.where(level > round_, WALL, np.where(z < 0, FLOOR, CEILING))

    def see(self, origin, direction, floor_light=None):
        """Return the light (n, 3), float32, that the room without the car sends along rays.

        Args:
            origin, direction: (n, 3); one origin (3,) will do.
            floor_light: Maps points of the floor (n, 2) to the fraction of light that the car leaves them.
        """
        distance, kind = self.meet(origin, direction)
        point = origin + direction * distance[:, None]
        light = np.empty((len(point), 3), np.float32)
        for surface, paint in ((FLOOR, self.paint_floor), (WALL, self.paint_wall), (CEILING, self.paint_ceiling)):
            at = np.flatnonzero(kind == surface)
            if len(at):
                light[at] = paint(point[at])
                if surface == FLOOR and floor_light:
                    light[at] *= floor_light(point[at, :2])[:, None]
        return light

    def paint_floor(self, point):
        """Return the light (n, 3) of the floor at points (n, 3)."""
        x, y = point[:, 0], point[:, 1]
        from_centre = np.hypot(x, y)
        colour = np.where((from_centre < self.disc_radius)[:, None], self.disc, self.floor)
        rim = np.clip(1.6 - np.abs(from_centre - self.disc_radius) / 0.014, 0, 1)
        bright = (1 - 0.006 * from_centre**2) * (1 - 0.5 * rim)
        pit_edge = y + 0.02 * x**2 - self.pit
        ribs = self.pit_light / self.floor.mean() * (1 + 0.4 * np.sin(y * 60 + 3 * np.sin(x * 5)))
        bright = np.where(np.abs(pit_edge) < 0.07, 1.7, np.where(pit_edge < 0, ribs, bright))
        return colour * bright[:, None]

    def paint_wall(self, point):
        """Return the light (n, 3) of the wall at points (n, 3)."""
        # 0 straight behind the car, positive to the right.
        azimuth = np.arctan2(point[:, 0], point[:, 1] - self.middle[1])
        along, z = azimuth * self.radius, point[:, 2]
        edge = self.edge[0] + self.edge[1] * azimuth + self.edge[2] * azimuth**2
        bright = 1 - self.shade * np.clip(azimuth, -0.6, 0.6) - 0.03 * (z - 1.5)
        bright = bright + self.glow * np.exp(-np.maximum(z - edge, 0) / 0.25)
        behind = np.abs(azimuth) > 1.6  # the camera's side: lamps and dark corners, reflected in the paint only
        bright = np.where(behind, 0.75 + 0.25 * np.sin(azimuth * 9), bright)
        turned = np.where(azimuth > 0, azimuth - np.pi, azimuth + np.pi)
        for middle, half, high, power in self.panels:
            wide = np.clip((half - np.abs(turned - middle)) / 0.05, 0, 1)
            bright += power * wide * np.clip((1.2 - np.abs(z - high)) / 0.2, 0, 1)
        colour = self.wall * bright[:, None]
        column = (along - self.letters_left) / self.letters_wide * self.letters.shape[1] - 0.5
        row = (self.letters_low - z) / self.letters_tall * 158 + 179.5
        ink = np.where(behind, 0, look_up(self.letters, column, row))[:, None]
        colour = colour * (1 - ink) + self.ink * ink
        sweep = np.clip((edge - z) / 0.03 + 0.5, 0, 1)[:, None] * (~behind[:, None])
        return colour * (1 - sweep) + self.floor * 0.95 * sweep

    def paint_ceiling(self, point):
        """Return the light (n, 1) of the ceiling and its lamps at points (n, 3)."""
        bright = np.full(len(point), 0.55, np.float32)
        for x, y, wide, deep, power in self.lamps:
            across = np.clip((wide - np.abs(point[:, 0] - x)) / self.lamp_soft + 0.5, 0, 1)
            bright += power * (across * np.clip((deep - np.abs(point[:, 1] - y)) / self.lamp_soft + 0.5, 0, 1))
        return bright[:, None]


def draw_word(rng):
    """Draw the word on the wall: (h, w), float32 in [0, 1], thin letters first, then bold ones."""
    words = WORDS.split()
    word = words[rng.integers(len(words))]
    split, thin, bold = int(rng.integers(0, len(word))), int(rng.integers(0, 6)), int(rng.integers(5, 14))
    sheet = Image.new("L", (2400, 200))
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(220), 20
    for i, letter in enumerate(word):
        stroke = bold if i >= split else thin
        draw.text((x, 180), letter, fill=255, font=font, stroke_width=stroke, anchor="ls")
        x += draw.textlength(letter, font=font) + 24 + stroke
    return np.asarray(sheet.crop((0, 0, int(x), 200)), np.float32) / 255


def draw_floor(rng, disc_radius):
    """Draw what feet and tyres leave on the floor around the centre: (512, 512, 3), float32 factors near 1."""
    size = TEXTURE_SIZE
    texture = np.ones((size, size, 3), np.float32)
    for cells, depth in ((5, 0.05), (16, 0.04), (60, 0.025)):
        spots = cv2.resize(np.float32(rng.uniform(-1, 1, (cells, cells))), (size, size), interpolation=cv2.INTER_CUBIC)
        texture += depth * spots[..., None] * (1, 1, 1.15)
    for _ in range(rng.integers(3, 14)):  # arcs where tyres turned
        ink, radius = np.zeros((size, size), np.uint8), rng.uniform(0.6, disc_radius * 1.1) * TEXTURE_SCALE
        start, sweep, flat = rng.uniform((0, 10, 0.9), (360, 100, 1))
        axes, thick = (int(radius), int(radius * flat)), int(rng.integers(2, 8))
        cv2.ellipse(ink, (size // 2, size // 2), axes, 0, start, start + sweep, 255, thick, cv2.LINE_AA)
        ink = cv2.GaussianBlur(ink / np.float32(255), (0, 0), 2.5)[..., None]
        texture *= 1 - ink * rng.uniform(0.03, 0.2) * np.array([0.8, 1, 1.2], np.float32)
    turn = rng.uniform(0, np.pi)
    ink = np.zeros((size, size), np.uint8)
    for angle in turn + np.pi * np.arange(3) / 3:  # joints of the turntable's plates
        tip = disc_radius * TEXTURE_SCALE * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(ink, *(size / 2 + np.stack([-tip, tip])).astype(int).tolist(), 255, 1, cv2.LINE_AA)
    return texture * (1 - 0.2 * cv2.GaussianBlur(ink / np.float32(255), (0, 0), 0.6)[..., None])
