"""Synthetic cars: one parametric solid each, drawn from a random generator.

A car is a triangle mesh in its own frame: metres, x forward, y to its left, z up, the middle of the wheelbase near
x = 0 and the floor at z = 0. Body and cabin are lofts: closed outlines seen from above, stacked from the sill to the
shoulder and from the shoulder to the roof, so that screens are curved and sides lean inwards. material.py says what a
surface is made of.

cars.json holds what cars are drawn from:
    styles: Lengths in metres (nose, cowl, belt and tail are heights), the wheelbase as a fraction of the length, and
        fractions of the length from the front: foot of the windscreen, front and back of the roof, foot of the rear
        screen. `spread` is their relative standard deviation.
    tyre, rim: Profiles, each point a radius in units of (rim, tyre) and a distance outwards in units of (half the
        tyre's width, depth of the dish).
    paints: Linear RGB, and how metallic.
    look, cloth: What the material reads: the range of a value, the odds of a yes, or the odds of several values.
        Metres, heights and widths as fractions of the body's, linear colours.
"""

import json
from pathlib import Path

import numpy as np

from carvana.studio.shapes import LID, blob, close_top, lathe, loft, outline, smooth_curve

BODY, CABIN, TYRE, RIM, PAINTED, BLACK, CHROME, PLATE, SEAT = range(9)
DATA = json.loads(Path(__file__).with_name("cars.json").read_text())
LEVELS = np.array([0, 0.04, 0.10, 0.18, 0.28, 0.38, 0.48, 0.58, 0.68, 0.76, 0.84, 0.90, 0.95, 0.98, 1.0])  # of the body


def draw(rng, range_or_odds):
    """Draw a value as cars.json describes it."""
    if isinstance(range_or_odds, list):
        return rng.uniform(*range_or_odds)
    if isinstance(range_or_odds, dict):
        return float(rng.choice([*map(float, range_or_odds)], p=[*range_or_odds.values()]))
    return rng.random() < range_or_odds


def pick(rng, odds):
    """Draw an index by its odds, which need not add up to 1."""
    return rng.choice(len(odds), p=np.array(odds) / sum(odds))


class Car:
    """One car: the sizes that cars.json names, and its mesh.

    Args:
        rng: The only source of chance.
        detail: 1 for the full mesh of about 15,000 vertices, less for small photos.

    Attributes:
        vertices, normals: (V, 3) float32, unit normals, smooth within a part.
        faces: (F, 3) int32.
        parts: (V,) uint8, BODY to SEAT.
        coords: (V, 2) float32, fraction of the height (0 foot, 1 top, 2 middle of the lid) and of the outline.
        look: What only the material reads.
        axles, doors, pillars: x of each, from the front.
        cabin_span, roof_span: x of front and back.
        corners: Where the cabin's outline turns, as fractions of its half length.
        top, under, roof: Height of the body, of its underside and of the roof as functions of x.
    """

    def __init__(self, rng, detail=1.0):
        self.pieces = []
        self.draw_proportions(rng)
        self.add_body(rng, detail)
        self.add_cabin(rng, detail)
        rim = self.add_wheels(rng, detail)
        self.add_fittings(rng)
        self.add_extras(rng)
        self.look = self.draw_look(rng) | {"rim_radius": rim}
        self.join()

    def at(self, fraction):
        """Return x at a fraction of the length from the front."""
        return self.length * (0.5 - fraction)

    def level(self, x, fraction):
        """Return z at a fraction of the body's height at x."""
        return self.under(x) + fraction * (self.top(x) - self.under(x))

    def in_arch(self, points, depth=0.0):
        """Return which points (n, 3) lie in a wheel arch, whose radius is `depth` greater: (n,) bool."""
        inside = np.zeros(len(points), bool)
        for axle in self.axles:
            inside |= np.hypot(points[:, 0] - axle, points[:, 2] - self.radius) < self.arch + depth
        return inside

    def add(self, part, vertices, faces, coords=None):
        """Append a piece: vertices (n, 3), faces (m, 3) that count from its first vertex, coords (n, 2) or zeros."""
        self.pieces.append((part, vertices, faces, np.zeros((len(vertices), 2)) if coords is None else coords))

    def join(self):
        """Join the pieces to one mesh; a vertex's normal is the area-weighted mean of its triangles'."""
        parts, vertices, faces, coords = zip(*self.pieces)
        counts = [len(piece) for piece in vertices]
        self.parts = np.repeat(np.array(parts, np.uint8), counts)
        faces = np.concatenate([piece + start for piece, start in zip(faces, np.cumsum([0, *counts]))])
        vertices = np.concatenate(vertices)
        cross = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
        normals = np.stack([np.bincount(faces.ravel(), np.repeat(cross[:, k], 3), len(vertices)) for k in range(3)], 1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        self.vertices, self.normals = vertices.astype(np.float32), normals.astype(np.float32)
        self.faces, self.coords = faces.astype(np.int32), np.concatenate(coords).astype(np.float32)

    def draw_proportions(self, rng):
        """Draw the style, the sizes, and the curves of the silhouette."""
        at = self.at
        self.style, sizes = list(DATA["styles"].items())[pick(rng, DATA["style_odds"])]
        sizes = np.array(sizes) * np.clip(rng.normal(1, DATA["spread"]), 0.86, 1.14)
        vars(self).update(zip(DATA["sizes"], sizes))
        cowl, self.belt = min(self.cowl, self.height - 0.42), min(self.belt, self.height - 0.38)
        tail, nose = min(self.tail, self.height - 0.30), min(self.nose, cowl - 0.12)
        rear_foot = min(self.rear_foot, 0.985)
        self.radius = 1.02 * self.tyre / 2
        overhang = rng.uniform(0.40, 0.46) if self.style != "pickup" else 0.40  # in front, of what the wheelbase leaves
        self.axles = (at((1 - self.wheelbase) * overhang), at((1 - self.wheelbase) * overhang + self.wheelbase))
        self.arch = self.radius * rng.uniform(1.08, 1.15)
        # 0 round, 1 angular
        self.boxy = {"suv": 0.6, "pickup": 0.8, "van": 0.5}.get(self.style, 0.2) + rng.uniform(-0.2, 0.2)
        self.hatch = rear_foot > 0.93  # the rear screen ends at the tail
        bonnet = nose + 0.3 * (cowl - nose) * (0.7 + self.boxy)
        fractions = (0, 0.05, 0.6 * self.foot, self.foot, 0.5, rear_foot, 1)
        heights = (nose, bonnet, cowl - 0.04, cowl, self.belt, max(tail, self.belt), tail - (0 if self.hatch else 0.05))
        self.top = smooth_curve(at(np.array(fractions)), heights, 0.11)
        sill = self.clearance + np.array([0.07, 0, 0.02, rng.uniform(0.10, 0.2)])
        self.under = smooth_curve(at(np.array([0, 0.09, 0.88, 1])), sill, 0.08)
        sag = rng.uniform(0.02, 0.05) + (0.07 if self.roof_back < 0.75 and self.style != "pickup" else 0.0)
        middle = at(0.35 * self.roof_back + 0.65 * self.roof_front)
        self.cabin_span, self.roof_span = (at(self.foot), at(rear_foot)), (at(self.roof_front), at(self.roof_back))
        bend = lambda x: np.where(x > middle, 0.10, sag) * ((x - middle) / (self.length * 0.24)) ** 2
        self.roof = lambda x: self.height - bend(x)

    def add_body(self, rng, detail):
        """Add rings from the sill to the shoulder, and lids above and below that close them on the middle line."""
        boxy, length, width = self.boxy, self.length, self.width
        fronts, rears = rng.uniform(4.2, 5.6) + boxy, rng.uniform(5, 7) + boxy
        shape, _ = outline(length / width, fronts, rears, max(24, int(96 * detail)))
        tuck, lean = rng.uniform(0.04, 0.09), rng.uniform(0.02, 0.06)
        self.shoulder = 1 - lean  # width, as a fraction of the body's
        girth = [1 - tuck, 1 - 0.4 * tuck, 1.0, 0.995, 0.985 - 0.3 * lean, 0.965 - 0.5 * lean, 0.93 - lean]
        girth = np.interp(LEVELS, [0, 0.12, 0.5, 0.72, 0.86, 0.95, 1.0], girth)
        # How far the nose and the tail recede at each level.
        front_in = np.array([0.15, 0.04, 0.0, 0.005, 0.03, 0.08, 0.18]) * rng.uniform(0.7, 1.2) * (1.25 - 0.5 * boxy)
        self.front_in = np.interp(LEVELS, [0, 0.15, 0.35, 0.5, 0.75, 0.92, 1.0], front_in)
        rear_in = np.array([0.16, 0.03, 0.0, 0.01, 0.04, 0.05, 0.10]) * rng.uniform(0.7, 1.2)
        self.rear_in = np.interp(LEVELS, [0, 0.15, 0.35, 0.5, 0.55, 0.8, 1.0], rear_in)
        crease, crease_at = rng.uniform(0.0, 0.016), rng.uniform(0.62, 0.8)  # pressed into the side, wheel to wheel
        girth = girth - crease * np.exp(-(((LEVELS - crease_at) / 0.05) ** 2))

        x = shape[:, 0] * (length / 2 - np.where(shape[:, 0] > 0, self.front_in[:, None], self.rear_in[:, None]))
        y = shape[:, 1] * girth[:, None] * width / 2
        high = np.exp(-(((LEVELS[:, None] - 0.62) / 0.3) ** 2))
        for axle in self.axles:  # wings swell over the wheels
            y = y * (1 + 0.022 * np.exp(-(((x - axle) / (1.15 * self.arch)) ** 2)) * high)
        rings = np.stack([x, y, self.level(x, LEVELS[:, None])], -1)
        self.crown = rng.uniform(0.03, 0.06)  # how far bonnet and boot bulge
        floors = rings[0] * np.array([[[1, 0, 1]], [[1, 0.5, 1]]])
        rings = np.concatenate([floors, rings, close_top(rings[-1], shape, self.crown, 12)])
        vertices, faces, coords = loft(rings, np.concatenate([[-1, -0.5], LEVELS, 2 - LID]))
        # Panels wholly within an arch go, so that light reaches the wheels.
        inside = self.in_arch(vertices) & (np.abs(vertices[:, 1]) > 0.3 * width) & (coords[:, 0] >= 0)
        self.add(BODY, vertices, faces[~inside[faces].all(1)], coords)
        at_handles = np.interp(0.80, LEVELS, girth) * width / 2
        self.side = lambda x: at_handles * np.interp(-x, -shape[:, 0] * length / 2, shape[:, 1])

    def add_cabin(self, rng, detail):
        """Add rings from just under the shoulder to the roof's edge, then the roof."""
        (foot, rear_foot), (roof_front, roof_back), width = self.cabin_span, self.roof_span, self.width
        half_front = self.shoulder * rng.uniform(0.89, 0.94)
        half_rear = rng.uniform(0.76, 0.82) + (0.04 if self.boxy > 0.4 else 0)
        fronts, rears = rng.uniform(4.0, 5.5), rng.uniform(4.5, 6) + self.boxy
        shape, self.corners = outline((foot - rear_foot) / width / 0.85, fronts, rears, max(20, int(72 * detail)))
        steps = np.array([0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.88, 0.94, 0.98, 1.0])
        step = steps[:, None]
        off = (1 - np.sqrt(np.clip(1 - (np.clip(step - 0.76, 0, 1) / 0.24) ** 2, 0, 1))) * rng.uniform(0.07, 0.11)
        front = foot + (roof_front - foot) * step**0.9 - 0.9 * off
        back = rear_foot + (roof_back - rear_foot) * step ** (1.5 if self.hatch else 0.85) + 0.9 * off
        x = (front + back) / 2 + shape[:, 0] * (front - back) / 2
        wide = half_front + (half_rear - half_front) * step**1.1
        narrow = 1 - 0.06 * np.clip(-shape[:, 0], 0, 1) ** 2 * step  # drawn in towards the tail
        y = shape[:, 1] * (width / 2 * wide - off) * narrow
        rings = np.stack([x, y, (self.top(x) - 0.05) * (1 - step) + self.roof(x) * step], -1)
        self.bulge = rng.uniform(0.02, 0.05)  # of the roof
        rings = np.concatenate([rings, close_top(rings[-1], shape, self.bulge, 8)])
        self.add(CABIN, *loft(rings, np.concatenate([steps, 2 - LID])))
        self.cabin_side = lambda step: width / 2 * (half_front + (half_rear - half_front) * step)

    def add_wheels(self, rng, detail):
        """Add tyres, rims and wheel wells; return the rims' radius."""
        radius, half = self.radius, (rng.uniform(0.19, 0.24) + (0.03 if self.boxy > 0.4 else 0)) / 2
        rim, dish = radius * rng.uniform(0.66, 0.77), rng.uniform(-0.01, 0.05)
        out = self.width / 2 * rng.uniform(0.94, 0.975) - half
        low, high = self.clearance + 0.02, radius + 0.85 * self.arch
        well = (self.arch, out - half - 0.02, (high - low) / 2)
        for axle in self.axles:
            for side in (1, -1):
                for part, name in ((TYRE, "tyre"), (RIM, "rim")):
                    profile = np.array(DATA[name]) @ [[rim, 0], [radius, 0], [0, half], [0, dish]]
                    self.add(part, *lathe(profile, (axle, side * out, radius), side, max(24, int(56 * detail))))
            # Without wells one would look in at one arch and out at the other.
            self.add(BLACK, *blob((axle, 0, (low + high) / 2), well, 0.3, 16))
        return rim

    def add_fittings(self, rng):
        """Add what every car has: door gaps, mirrors, handles, seats, steering wheel, number plates."""
        rear_axle, foot, roof_back = self.axles[1], self.cabin_span[0], self.roof_span[1]
        style, belt = self.style, self.belt
        two_doors = style in ("coupe", "convertible")
        last = max(rear_axle + (0.5 if two_doors else 0.18), roof_back + 0.02 if style == "pickup" else -9)
        self.doors = np.linspace(foot - 0.22, last, 2 if two_doors else 3)
        self.pillars = [*self.doors[1:-1], *([rear_axle - 0.12] if style in ("suv", "estate", "van") else [])]
        mirror_x, mirror_z = foot - 0.36 * (1 if style != "van" else 1.4), self.top(foot - 0.35) + 0.05
        mirror = rng.uniform((0.05, 0.09, 0.055), (0.09, 0.125, 0.09)) * (1.25 if style == "pickup" else 1)
        seat_top = belt + 0.24 * (self.height - belt) / 0.45
        for side in (1, -1):
            y = self.width / 2 * 0.97
            place = (mirror_x, side * (y + mirror[1] * 0.8), mirror_z + mirror[2] * 0.6)
            self.add(PAINTED if rng.random() < 0.8 else BLACK, *blob(place, mirror, 0.6, 14))
            self.add(BLACK, *blob((mirror_x, side * (y - 0.03), mirror_z - 0.01), (0.035, 0.09, 0.025), 0.5, 8))
            for x in self.doors[1:]:
                handle = (x + 0.13, side * (self.side(x) + 0.004), self.level(x, 0.80))
                self.add(PAINTED if rng.random() < 0.8 else CHROME, *blob(handle, (0.085, 0.022, 0.014), 0.5, 8))
            for x in [foot - 1.15] + [rear_axle + 0.35] * (not two_doors):
                if x >= roof_back:
                    self.add(SEAT, *blob((x, side * 0.36, belt + 0.02), (0.08, 0.24, seat_top - belt), 0.5, 10))
                    self.add(SEAT, *blob((x, side * 0.36, seat_top + 0.07), (0.05, 0.13, 0.08), 0.5, 10))
        self.add(SEAT, *blob((foot - 0.75, 0.36, belt - 0.02), (0.03, 0.19, 0.17), 0.9, 12))
        front, rear = self.at(0), self.at(1)
        level = rng.uniform(0.52, 0.72) if rng.random() < 0.8 else 0.36  # of the rear plate
        front_place = (front - self.front_in[3] * 0.5 + 0.005, 0, self.level(front, 0.36))
        rear_place = (rear + np.interp(level, LEVELS, self.rear_in), 0, self.level(rear, level))
        for place in [front_place] * (rng.random() < 0.85) + [rear_place]:
            vertices, faces = blob((0, 0, 0), (0.015, 0.155, 0.08), 0.12, 8)
            self.add(PLATE, vertices + place, faces, vertices[:, [2, 1]] / (0.08, 0.155))

    def add_extras(self, rng):
        """Add what only some cars have: roof rails, aerial, spoiler, exhausts, steps; and the floor pan."""
        (roof_front, roof_back), roof, top, width = self.roof_span, self.roof, self.top, self.width
        style, tail = self.style, -self.length / 2
        if rng.random() < {"suv": 0.6, "estate": 0.6, "van": 0.3}.get(style, 0.0):
            for side in (1, -1):
                rail = ((roof_front - roof_back) * 0.38, 0.018, 0.022)
                vertices, faces = blob((0, side * self.cabin_side(0.99) * 0.90, 0), rail, 0.3, 16)
                vertices[:, 0] += (roof_front + roof_back) / 2
                vertices[:, 2] += roof(vertices[:, 0]) + rng.uniform(-0.01, 0.02)
                self.add(CHROME if rng.random() < 0.5 else BLACK, vertices, faces)
        if rng.random() < 0.35 and style != "convertible":  # a shark fin
            x = roof_back + 0.12
            vertices, faces = blob((x, 0, 0), (0.09, 0.02, 0.055), 0.8, 10)
            vertices[:, 0] -= vertices[:, 2] - 0.02
            self.add(PAINTED, vertices + (0, 0, roof(x) + self.bulge + 0.01), faces)
        elif rng.random() < 0.4:  # a rod aerial
            x = roof_back + 0.1 if rng.random() < 0.6 or style == "pickup" else self.cabin_span[0] + 0.25
            start = (x, 0.0, roof(x) + self.bulge) if x < roof_front else (x, width * 0.37, top(x) + 0.02)
            tall = rng.uniform(0.03, 0.18)
            vertices, faces = blob((0, 0, tall), (0.006, 0.006, tall), 0.5, 8)
            vertices[:, 0] -= vertices[:, 2] * rng.uniform(0.2, 0.9)
            self.add(BLACK, vertices + start, faces)
        if self.hatch and rng.random() < 0.6:  # a lip over the rear screen
            lip = (roof_back - 0.07, 0, roof(roof_back) - 0.015)
            self.add(PAINTED, *blob(lip, (0.14, self.cabin_side(1) * 0.80, 0.022), 0.45, 16))
        elif style in ("saloon", "coupe") and rng.random() < 0.25:  # a wing on the boot
            lift, x = rng.uniform(0.02, 0.13), tail + 0.20
            self.add(PAINTED, *blob((x, 0, top(x) + self.crown + lift), (0.11, width * 0.36, 0.018), 0.4, 16))
            for side in (1, -1):
                foot = (x + 0.01, side * width * 0.27, top(x) + self.crown * 0.5 + lift / 2)
                self.add(PAINTED, *blob(foot, (0.06, 0.02, lift / 2 + 0.03), 0.5, 8))
        if rng.random() < 0.6:  # exhausts
            for side in (1, -1) if rng.random() < 0.5 else (1,):
                place = (tail + 0.16, side * width * 0.3, self.under(self.at(0.97)) + 0.05)
                self.add(CHROME, *blob(place, (0.13, 0.032, 0.025), 0.7, 10))
        middle, half_base = (self.axles[0] + self.axles[1]) / 2, (self.axles[0] - self.axles[1]) / 2
        if style in ("pickup", "suv") and rng.random() < 0.4:  # steps under the doors
            step = (half_base - self.arch - 0.05, 0.07, 0.03)
            for y in (width * 0.47, -width * 0.47):
                self.add(BLACK if rng.random() < 0.6 else CHROME, *blob((middle, y, self.clearance + 0.01), step, 0.3))
        self.add(BLACK, *blob((middle, 0, self.clearance - 0.01), (half_base, width * 0.3, 0.05), 0.3))

    def draw_look(self, rng):
        """Draw what only the material reads."""
        *colour, metal = DATA["paints"][pick(rng, DATA["paint_odds"])]
        hue = 0.015 if np.ptp(colour) < 0.05 else 0.08  # greys stay grey
        paint = np.array(colour) * rng.uniform(0.8, 1.15) * (1 + rng.uniform(-1, 1, 3) * hue)
        look = {"paint": np.clip(paint, 0.006, 0.85), "metal": metal * rng.uniform(0.4, 1.2)}
        look["roof"] = 0.025 if self.style == "convertible" else 0.01 if rng.random() < 0.12 else None
        look |= {name: draw(rng, what) for name, what in DATA["look"].items()}
        look["clad"] = look["clad"] < (0.5 if self.style in ("suv", "pickup") else 0.12)
        dark = self.style in ("suv", "van", "pickup") or rng.random() < 0.25
        look["privacy"] = rng.uniform(0.06, 0.25) if dark else 1.0
        look |= {"sticker": rng.random() < 0.4, "cargo": self.style == "van" and rng.random() < 0.2}
        return look | {"cloth": draw(rng, DATA["cloth"])}
