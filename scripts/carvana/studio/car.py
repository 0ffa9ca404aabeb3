"""The cars of the photo studio: one parametric solid each, drawn from a random generator.

A car is a triangle mesh in its own frame: metres, x forward, y to its left, z up, the middle of the wheelbase near x = 0 and
the floor at z = 0. The body and the cabin are lofts: closed outlines seen from above, stacked from the sill to the shoulder
and from the shoulder to the roof, so that screens are curved and the sides lean inwards. What a surface is made of (paint,
glass, lamp, rubber) is decided point by point, by `Car.material`, from the part and the surface coordinate: as sharp as the photo.
"""

from dataclasses import dataclass, field

import numpy as np

BODY, CABIN, TYRE, RIM, PAINTED, BLACK, CHROME, PLATE, SEAT = range(9)

# Length, width, height, wheelbase share, clearance, tyre diameter, nose height, cowl height, belt height, tail height (m), then shares
# of the length from the front: foot of the wind-screen, front of the roof, back of the roof, foot of the rear screen; at last how often.
STYLES = {
    "hatchback": (4.15, 1.77, 1.51, 0.620, 0.17, 0.64, 0.76, 1.02, 1.00, 1.04, 0.215, 0.42, 0.84, 0.975, 0.14),
    "saloon": (4.80, 1.85, 1.46, 0.585, 0.16, 0.66, 0.74, 0.98, 0.98, 1.05, 0.250, 0.44, 0.71, 0.885, 0.30),
    "estate": (4.70, 1.84, 1.50, 0.590, 0.17, 0.66, 0.74, 0.99, 0.99, 1.04, 0.240, 0.43, 0.89, 0.980, 0.06),
    "suv": (4.70, 1.91, 1.72, 0.585, 0.22, 0.74, 0.94, 1.14, 1.15, 1.17, 0.240, 0.40, 0.88, 0.975, 0.26),
    "pickup": (5.60, 1.99, 1.88, 0.620, 0.27, 0.80, 1.10, 1.26, 1.24, 1.26, 0.245, 0.36, 0.585, 0.615, 0.07),
    "van": (5.10, 1.98, 1.78, 0.595, 0.18, 0.69, 0.84, 1.10, 1.09, 1.12, 0.170, 0.36, 0.92, 0.980, 0.06),
    "coupe": (4.60, 1.86, 1.38, 0.590, 0.14, 0.68, 0.71, 0.94, 0.94, 1.01, 0.285, 0.48, 0.66, 0.890, 0.07),
    "convertible": (4.35, 1.81, 1.36, 0.590, 0.14, 0.66, 0.69, 0.93, 0.92, 0.98, 0.290, 0.47, 0.63, 0.780, 0.04),
}

# Linear colours of paint, how often each is seen, and how metallic it is.
PAINTS = (
    ((0.68, 0.68, 0.67), 0.20, 0.0),
    ((0.36, 0.37, 0.38), 0.17, 0.8),
    ((0.11, 0.115, 0.12), 0.17, 0.6),
    ((0.010, 0.010, 0.012), 0.19, 0.2),
    ((0.34, 0.015, 0.02), 0.08, 0.4),
    ((0.02, 0.06, 0.20), 0.06, 0.5),
    ((0.015, 0.025, 0.06), 0.04, 0.4),
    ((0.03, 0.16, 0.55), 0.03, 0.5),
    ((0.38, 0.34, 0.27), 0.03, 0.7),
    ((0.09, 0.06, 0.045), 0.02, 0.5),
    ((0.03, 0.09, 0.05), 0.01, 0.4),
    ((0.60, 0.22, 0.03), 0.01, 0.4),
)


@dataclass
class Car:
    """One car: its mesh, and the numbers that decide what its surface shows."""

    style: str
    length: float  # metres, as are all sizes here
    width: float
    height: float
    wheel_radius: float
    axles: tuple  # x of the front and of the rear axle
    arch: float  # radius of the wheel arches
    cabin_span: tuple  # x of the foot of the wind-screen and of the rear screen
    corners: tuple  # where the cabin's outline turns, as shares of its half length: front corner, rear corner
    pillars: tuple  # x of the door pillars
    look: dict  # everything that only shading reads
    vertices: np.ndarray = None  # (V, 3) float32
    faces: np.ndarray = None  # (F, 3) int32
    parts: np.ndarray = None  # (V,) uint8, BODY to SEAT
    coords: np.ndarray = (
        None  # (V, 2) float32: share of the height (0 foot, 1 top, 2 middle of the lid), share of the outline
    )
    normals: np.ndarray = None  # (V, 3) float32, unit, smooth within a part
    pieces: list = field(default_factory=list)

    def add(self, part, vertices, faces, coords=None):
        """Append a piece: vertices (n, 3), faces (m, 3) that count from the piece's own first vertex, coords (n, 2) or zeros."""
        coords = np.zeros((len(vertices), 2)) if coords is None else coords
        self.pieces.append((part, np.asarray(vertices, np.float64), np.asarray(faces), coords))

    def close(self):
        """Join the pieces to one mesh and compute smooth normals, each vertex the area-weighted mean of its triangles."""
        counts = np.cumsum([0] + [len(piece[1]) for piece in self.pieces])
        vertices = np.concatenate([piece[1] for piece in self.pieces])
        faces = np.concatenate([piece[2] + start for piece, start in zip(self.pieces, counts)])
        cross = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
        normals = np.stack([np.bincount(faces.ravel(), np.repeat(cross[:, k], 3), len(vertices)) for k in range(3)], 1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        self.vertices, self.faces, self.normals = (
            vertices.astype(np.float32),
            faces.astype(np.int32),
            normals.astype(np.float32),
        )
        self.parts = np.concatenate([np.full(len(piece[1]), piece[0], np.uint8) for piece in self.pieces])
        self.coords = np.concatenate([piece[3] for piece in self.pieces]).astype(np.float32)
        self.pieces = []
        return self

    def material(self, part, point, normal, coords, back):
        """Say what the car is made of at points of its own frame.

        Returns:
            colour (n, 3), mirror reflectance seen head-on (n,), metallic share (n,), glass (n,) the share of light let through or 0.
        """
        look = self.look
        x, y, z, (t, s) = point[:, 0], np.abs(point[:, 1]), point[:, 2], coords.T
        n = len(x)
        colour = np.empty((n, 3), np.float32)
        colour[:] = look["paint"]
        mirror, metal, glass = (
            np.full(n, 0.032, np.float32),
            np.full(n, look["metal"], np.float32),
            np.zeros(n, np.float32),
        )

        def put(where, value, reflect=0.03, metallic=0.0):
            colour[where], mirror[where], metal[where] = value, reflect, metallic

        half, w = self.length / 2, self.width / 2
        body, cabin = part == BODY, part == CABIN
        side = body & (np.abs(normal[:, 1]) > 0.5) & (t > 0)
        if look["clad"]:
            arch = np.zeros(n, bool)
            for axle in self.axles:
                arch |= np.hypot(x - axle, z - self.wheel_radius) < self.arch + 0.06
            put(body & ((t < 0.17) | arch & (t < 0.9)), 0.03, 0.02)
        put(body & (t < 0.05), 0.02, 0.02)
        for line in look["doors"]:
            put(side & (np.abs(x - line - 0.05 * (t - 0.5)) < 0.006) & (t > 0.10) & (t < 1.05), look["paint"] * 0.12)
        put(side & (np.abs(t - 0.115) < 0.008) & (x < look["doors"][0]) & (x > look["doors"][-1]), look["paint"] * 0.12)
        put(body & (t > 1) & (np.abs(x - self.cabin_span[0] - 0.10) < 0.10) & (y < 0.85 * w), 0.015)  # wipers' trough
        put(body & (t > 1.16) & (x < self.cabin_span[0]) & (x > self.cabin_span[1]), 0.03, 0.01)  # under the glass
        if self.style == "pickup":
            put(body & (t > 1.12) & (x < self.cabin_span[1]) & (x > -half + 0.1), 0.015, 0.02)
        put(
            body & (t > 1) & (x > self.cabin_span[0]) & (np.abs(y - 0.86 * w - 0.04 * (x - half)) < 0.006),
            look["paint"] * 0.15,
        )  # hood gap
        nose, tail = body & (x > half - 0.6) & (t > 0), body & (x < -half + 0.5) & (t > 0) & (normal[:, 0] < 0.3)
        wide, low, high = look["grille"]
        grille = nose & (y < wide * w * (1.1 - 0.5 * (high - t))) & (t > low) & (t < high)
        put(
            grille,
            np.where(
                np.sin(z[grille] * 2 * np.pi * look["bars"])[:, None] > 0.2, 0.35 if look["chrome"] else 0.06, 0.008
            ),
            0.04,
        )
        rim = nose & ~grille & (y < wide * w * (1.1 - 0.5 * (high - t)) + 0.03) & (t > low - 0.03) & (t < high + 0.03)
        if look["chrome"]:
            put(rim, 0.55, 0.5, 0.9)
        put(nose & (y < look["intake"] * w) & (t > 0.10) & (t < look["intake_high"]), 0.012)
        put(nose & (np.abs(y - 0.76 * w) < 0.13 * w) & (np.abs(t - 0.20) < 0.07), 0.015)
        put(nose & (np.abs(y - 0.76 * w) < 0.09 * w) & (np.abs(t - look["fog"]) < 0.025), 0.5, 0.15)
        reach = (self.length + self.width) * np.where(
            x > 0, s, 1 - s
        )  # metres from the middle of the nose, or of the tail, along the outline
        along = (reach - look["lamp_in"] * w) / look["lamp_long"]
        above = (t - look["lamp_low"] - look["lamp_rise"] * along) / (
            look["lamp_tall"] * np.sqrt(np.clip(1.15 - np.abs(2 * along - 0.7) ** 2 * 0.5, 0.05, 1))
        )
        lamp = nose & (along > 0) & (along < 1) & (above > 0) & (above < 1)
        bulb = np.exp(-((((along[lamp] * look["bulbs"]) % 1 - 0.5) / 0.28) ** 4) - ((above[lamp] - 0.5) / 0.36) ** 4)
        put(lamp, (0.06 + 0.6 * bulb * (0.75 + 0.25 * np.sin(y[lamp] * 200)))[:, None] * (1, 1, 1.03), 0.10)
        put(lamp & (along > 0.80), (0.50, 0.20, 0.03), 0.08)
        along = (reach - look["tail_in"] * w) / look["tail_long"]
        above = (t - look["tail_low"] - look["tail_rise"] * along) / (
            look["tail_tall"] * np.sqrt(np.clip(1.1 - along * 0.6, 0.05, 1))
        )
        lamp = tail & (along > 0) & (along < 1) & (above > 0) & (above < 1)
        put(lamp, (0.40, 0.012, 0.012), 0.07)
        put(lamp & (np.abs(above - 0.3) < 0.10) & (along < 0.6), (0.45, 0.28, 0.26), 0.1)
        put(tail & (y < 0.62 * w) & (t < 0.13), 0.02)
        put(tail & (np.abs(t - 0.50) < 0.008), look["paint"] * 0.15)

        front, rear = self.corners
        glassy = cabin & ~back & (t > 0.12) & (t < 0.80)
        wind, behind = glassy & (s < front * 0.90) & (t > 0.06), glassy & (s > rear + 0.12 * (1 - rear)) & (t < 0.76)
        flank = glassy & (s > front * 1.12) & (s < rear - 0.02) & (t > 0.15)
        if look["cargo"]:
            flank &= x > look["doors"][1]
            behind &= False
        put(cabin & (t > 0.05) & (t < 0.82) & (s > front * 1.05) & (s < rear), 0.012)  # seals and door frames
        put(cabin & (s < front) & (t < 0.84), 0.012)
        put(cabin & (s > front * 0.94) & (s < front * 1.04), look["paint"], 0.045, look["metal"])
        if look["line_chrome"]:
            put(cabin & (t > 0.10) & (t < 0.135) & (s > front) & (s < rear), 0.5, 0.5, 0.9)
        for pillar in self.pillars:
            flank &= np.abs(x - pillar) > 0.045
        if look["roof"] is not None:
            put(
                cabin & (t > (0.05 if self.style == "convertible" else 0.86)),
                look["roof"],
                0.0 if self.style == "convertible" else 0.045,
            )
            if self.style == "convertible":
                behind &= (t > 0.3) & (t < 0.62)
                flank &= x > look["doors"][1] - 0.25
        for where, share in ((wind, look["tint"]), (behind, look["tint"] * look["privacy"]), (flank, look["tint"])):
            put(where, 0.004, 0.05)
            glass[where] = share
        glass[flank & (x < look["doors"][1])] *= look["privacy"]
        put(wind & (t > 0.70) & (y < 0.14), 0.01)
        if look["sticker"]:
            put(wind & (t > 0.55) & (t < 0.62) & (np.abs(point[:, 1] + 0.5) < 0.07), 0.8)
            glass[wind & (t > 0.55) & (t < 0.62) & (np.abs(point[:, 1] + 0.5) < 0.07)] = 0

        axle = np.where(np.abs(x - self.axles[0]) < np.abs(x - self.axles[1]), *self.axles)
        out, turn = (
            np.hypot(x - axle, z - self.wheel_radius),
            np.arctan2(z - self.wheel_radius, x - axle) + look["turn"],
        )
        tyre = part == TYRE
        tread = np.where(
            (np.abs(normal[:, 1]) < 0.5) & (np.sin(y * 160) > 0.4), 0.010, 0.030 + 0.010 * np.sin(out * 90)
        )
        put(tyre, tread[tyre, None], 0.015)
        share = out / look["rim_radius"]
        wave = np.abs((turn * look["spokes"] / (2 * np.pi)) % 1 - 0.5) * 2  # 0 at a spoke's middle
        if look["split"]:
            wave = np.where(share > 0.45, np.abs(wave - 0.32 * share) * 1.7, wave)
        spoke = (wave < look["spoke_wide"] * (1.15 - 0.5 * share)) | (share > 0.90) | (share < 0.24)
        face = part == RIM
        shine = look["rim"] * (0.95 + 0.4 * np.cos(wave * 2.5))
        put(
            face,
            np.where(
                spoke[:, None],
                shine[:, None],
                np.where((share < 0.75) & (np.sin(turn * 40) > -0.9), 0.05, 0.012)[:, None],
            )[face],
            0.06,
        )
        metal[face & spoke] = 0.6
        put(face & (share < 0.13), 0.04)

        put(part == BLACK, 0.015, 0.03)
        put(part == CHROME, 0.60, 0.5, 0.9)
        put(part == SEAT, look["cloth"], 0.0)
        plate = part == PLATE
        blue = (np.abs(normal[:, 0]) > 0.5) & (
            (np.abs(s) < 0.85) & (np.abs(t + 0.62) < 0.2) | (np.hypot((s + 0.45) * 1.9, t - 0.15) < 0.4)
        )
        put(plate, np.where(blue[:, None], look["plate"], 0.75)[plate])
        put(back & body, 0.006, 0.0)
        put(back & cabin, look["cloth"] * 0.5 + 0.02, 0.0)
        return colour, mirror, metal, glass

    def press(self, part, point, normal, coords):
        """Tilt the normals (n, 3) where the sheet is pressed into lines: along the sides, over the hood, above the bumpers."""
        look, t = self.look, coords[:, 0]
        tilt = np.zeros_like(normal)
        side = (part == BODY) & (t > 0) & (t < 1)
        for line, depth, wide in look["lines"]:
            tilt[:, 2] += np.where(side, depth * np.exp(-(((t - line - 0.02 * point[:, 0]) / wide) ** 2)), 0)
        hood = (part == BODY) & (t > 1) & (point[:, 0] > self.cabin_span[0])
        spot = np.abs(point[:, 1]) - self.width * (look["hood"][0] - 0.06 * (point[:, 0] - self.cabin_span[0]))
        tilt[:, 1] = np.where(hood, look["hood"][1] * np.sign(point[:, 1]) * np.exp(-((spot / 0.05) ** 2)), 0)
        ends = side & (np.abs(point[:, 0]) > self.length / 2 - 0.45)
        tilt[:, 2] += np.where(ends, 0.3 * np.exp(-(((t - look["bumper"]) / 0.03) ** 2)), 0)
        tilt += normal
        return tilt / np.sqrt((tilt * tilt).sum(1, keepdims=True))


def smooth_curve(points, blur):
    """Return a function through (x, y) points whose corners are rounded over about `blur` metres."""
    x, y = np.array(sorted(points)).T
    grid = np.linspace(x[0] - 0.6, x[-1] + 0.6, 600)
    step = grid[1] - grid[0]
    kernel = np.exp(-0.5 * (np.arange(-60, 61) * step / blur) ** 2)
    table = np.convolve(np.pad(np.interp(grid, x, y), 60, mode="edge"), kernel / kernel.sum(), mode="valid")
    return lambda at: np.interp(at, grid, table)


def outline(aspect, front, rear, count):
    """Sample half of a superellipse seen from above, evenly along its length, from the front centre to the rear centre.

    Args:
        aspect: half length over half width.
        front, rear: exponents; 2 is an ellipse, 6 nearly a box.

    Returns:
        (count, 2) x and y, both within [-1, 1] (y >= 0), and the shares of the length at which the two corners lie.
    """
    angle = np.linspace(0, np.pi, 4001)
    power = 2 / np.where(angle < np.pi / 2, front, rear)
    x, y = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power, np.abs(np.sin(angle)) ** power
    share = np.append(0, np.cumsum(np.hypot(np.diff(x) * aspect, np.diff(y))))
    share /= share[-1]
    even = np.linspace(0, 1, count)
    return np.stack([np.interp(even, share, x), np.interp(even, share, y)], 1), (share[1000], share[3000])


def loft(rings, heights):
    """Join half outlines, mirrored to the other side, to a surface whose triangles face outwards.

    Args:
        rings: (K, n, 3) from the foot upwards, each from the front centre along the left side to the rear centre.
        heights: (K,) surface coordinate of each ring.

    Returns:
        vertices, faces, coords as `Car.add` takes them.
    """
    rings = np.concatenate([rings, rings[:, -2:0:-1] * (1, -1, 1)], 1)
    k, n, _ = rings.shape
    half = n // 2 + 1
    share = np.abs((np.arange(n) + half - 1) % n - (half - 1)) / (half - 1)
    corner = np.arange(k * n).reshape(k, n)
    a, b, c, d = corner[:-1], np.roll(corner, -1, 1)[:-1], corner[1:], np.roll(corner, -1, 1)[1:]
    faces = np.concatenate([np.stack([a, b, d], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)])
    coords = np.stack(np.broadcast_arrays(np.asarray(heights)[:, None], share[None]), -1).reshape(-1, 2)
    return rings.reshape(-1, 3), faces, coords


def blob(centre, radii, hard=0.35, n=12):
    """Return vertices and faces of a rounded box: a superellipsoid, `hard` from 1 (ellipsoid) towards 0 (box)."""
    latitude, longitude = np.meshgrid(
        np.linspace(-np.pi / 2, np.pi / 2, n // 2 + 3), np.arange(n) * 2 * np.pi / n + np.pi / n, indexing="ij"
    )
    power = lambda value: np.sign(value) * np.abs(value) ** hard
    ring = np.maximum(power(np.cos(latitude)), 1e-3)
    points = np.stack([ring * power(np.cos(longitude)), ring * power(np.sin(longitude)), power(np.sin(latitude))], -1)
    corner = np.arange(points[..., 0].size).reshape(points.shape[:2])
    a, b, c, d = corner[:-1], np.roll(corner, -1, 1)[:-1], corner[1:], np.roll(corner, -1, 1)[1:]
    faces = np.concatenate([np.stack([a, b, d], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)])
    return points.reshape(-1, 3) * radii + centre, faces


def lathe(profile, centre, side, n=56):
    """Turn a profile of (radius, distance outwards) about the axle; `side` is +1 left, -1 right."""
    angle = np.arange(n) * 2 * np.pi / n
    profile = np.asarray(profile, float)
    points = np.stack(
        [profile[:, :1] * np.cos(angle), np.repeat(profile[:, 1:] * side, n, 1), profile[:, :1] * np.sin(angle)], -1
    )
    corner = np.arange(len(profile) * n).reshape(-1, n)
    a, b, c, d = corner[:-1], np.roll(corner, -1, 1)[:-1], corner[1:], np.roll(corner, -1, 1)[1:]
    faces = np.concatenate([np.stack([a, b, d], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)])
    return points.reshape(-1, 3) + centre, faces if side > 0 else faces[:, ::-1]


def make_car(rng, detail=1.0):
    """Draw one car.

    Args:
        rng: numpy Generator, the only source of chance.
        detail: 1 for the full mesh of about 15,000 vertices, less for small photos.

    Returns:
        a closed `Car`.
    """
    names = list(STYLES)
    odds = np.array([STYLES[name][-1] for name in names])
    style = names[rng.choice(len(names), p=odds / odds.sum())]
    size = np.array(STYLES[style][:-1])
    stretch = np.clip(
        rng.normal(1, (0.05, 0.025, 0.03, 0.012, 0.12, 0.04, 0.05, 0.025, 0.02, 0.02, 0.05, 0.03, 0.02, 0.008)),
        0.86,
        1.14,
    )
    length, width, height, base, clearance, tyre, nose, cowl, belt, tail, *shares = size * stretch
    foot, roof_front, roof_back, rear_foot = shares
    cowl, belt = min(cowl, height - 0.42), min(belt, height - 0.38)
    tail, nose, rear_foot = min(tail, height - 0.30), min(nose, cowl - 0.12), min(rear_foot, 0.985)
    at = lambda share: length * (0.5 - share)
    radius = 1.02 * tyre / 2
    overhang = rng.uniform(0.40, 0.46) if style != "pickup" else 0.40  # of what the wheelbase leaves, in front
    axles = (at((1 - base) * overhang), at((1 - base) * overhang + base))
    arch = radius * rng.uniform(1.08, 1.15)
    boxy = {"suv": 0.6, "pickup": 0.8, "van": 0.5}.get(style, 0.2) + rng.uniform(-0.2, 0.2)

    top = smooth_curve(
        [
            (at(0), nose),
            (at(0.05), nose + 0.3 * (cowl - nose) * (0.7 + boxy)),
            (at(0.6 * foot), cowl - 0.04),
            (at(foot), cowl),
            (at(0.5), belt),
            (at(rear_foot), max(tail, belt)),
            (at(1), tail - (0.05 if rear_foot < 0.93 else 0)),
        ],
        0.11,
    )
    under = smooth_curve(
        [
            (at(0), clearance + 0.07),
            (at(0.09), clearance),
            (at(0.88), clearance + 0.02),
            (at(1), clearance + rng.uniform(0.10, 0.2)),
        ],
        0.08,
    )
    sag = rng.uniform(0.02, 0.05) + (0.07 if roof_back < 0.75 and style != "pickup" else 0.0)
    middle = at(0.35 * roof_back + 0.65 * roof_front)
    roof = lambda x: height - np.where(x > middle, 0.10, sag) * ((x - middle) / (length * 0.24)) ** 2

    # The body: rings from the sill to the shoulder, then lids above and below that close it on the middle line.
    n = max(24, int(96 * detail))
    shape, _ = outline(length / width, rng.uniform(4.2, 5.6) + boxy, rng.uniform(5, 7) + boxy, n)
    levels = np.array([0, 0.04, 0.10, 0.18, 0.28, 0.38, 0.48, 0.58, 0.68, 0.76, 0.84, 0.90, 0.95, 0.98, 1.0])
    tuck, lean = rng.uniform(0.04, 0.09), rng.uniform(0.02, 0.06)
    girth = np.interp(
        levels,
        [0, 0.12, 0.5, 0.72, 0.86, 0.95, 1.0],
        [1 - tuck, 1 - 0.4 * tuck, 1.0, 0.995, 0.985 - 0.3 * lean, 0.965 - 0.5 * lean, 0.93 - lean],
    )
    front_in = np.interp(
        levels,
        [0, 0.15, 0.35, 0.5, 0.75, 0.92, 1.0],
        np.array([0.15, 0.04, 0.0, 0.005, 0.03, 0.08, 0.18]) * rng.uniform(0.7, 1.2) * (1.25 - 0.5 * boxy),
    )
    rear_in = np.interp(
        levels,
        [0, 0.15, 0.35, 0.5, 0.55, 0.8, 1.0],
        np.array([0.16, 0.03, 0.0, 0.01, 0.04, 0.05, 0.10]) * rng.uniform(0.7, 1.2),
    )
    crease, crease_at = rng.uniform(0.0, 0.016), rng.uniform(0.62, 0.8)  # a line pressed into the side, wheel to wheel
    girth = girth - crease * np.exp(-(((levels - crease_at) / 0.05) ** 2))

    def ring(level, wide, into_front, into_rear):
        x = np.where(shape[:, 0] > 0, shape[:, 0] * (length / 2 - into_front), shape[:, 0] * (length / 2 - into_rear))
        y = shape[:, 1] * wide * width / 2
        for axle in axles:  # wings swell over the wheels
            y = y * (1 + 0.022 * np.exp(-(((x - axle) / (1.15 * arch)) ** 2)) * np.exp(-(((level - 0.62) / 0.3) ** 2)))
        return np.stack([x, y, under(x) + level * (top(x) - under(x))], 1)

    rings = [ring(*values) for values in zip(levels, girth, front_in, rear_in)]
    lid = np.cos(np.linspace(0, np.pi / 2, 11))[1:]
    crown = rng.uniform(0.03, 0.06)
    lids = [
        rings[-1] * (1, share, 1)
        + np.stack(
            [0 * shape[:, 0], 0 * shape[:, 0], crown * (1 - share**2) * np.clip((1 - np.abs(shape[:, 0])) * 12, 0, 1)],
            1,
        )
        for share in lid
    ]
    floors = [rings[0] * (1, share, 1) for share in (0, 0.5)]
    levels_all = np.concatenate([[-1, -0.5], levels, 2 - lid])
    vertices, faces, coords = loft(np.stack(floors + rings + lids), levels_all)
    inside = np.zeros(len(vertices), bool)  # panels wholly within an arch go, so that light reaches the wheels
    for axle in axles:
        inside |= (
            (np.hypot(vertices[:, 0] - axle, vertices[:, 2] - radius) < arch)
            & (np.abs(vertices[:, 1]) > 0.3 * width)
            & (coords[:, 0] >= 0)
        )
    car = Car(style, length, width, height, radius, axles, arch, (at(foot), at(rear_foot)), (0, 0), (), {})
    car.add(BODY, vertices, faces[~inside[faces].all(1)], coords)

    # The cabin: rings from just under the shoulder to the roof's edge, then the roof.
    half_front, half_rear = (1 - lean) * rng.uniform(0.89, 0.94), rng.uniform(0.76, 0.82) + (0.04 if boxy > 0.4 else 0)
    shape_c, corners = outline(
        (at(foot) - at(rear_foot)) / width / 0.85,
        rng.uniform(4.0, 5.5),
        rng.uniform(4.5, 6) + boxy,
        max(20, int(72 * detail)),
    )
    steps = np.array([0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.88, 0.94, 0.98, 1.0])
    round_off = 1 - np.sqrt(np.clip(1 - (np.clip(steps - 0.76, 0, 1) / 0.24) ** 2, 0, 1))
    bow = 1 + 0.25 * (1 - steps)
    rings = []
    for step, off, bend in zip(steps, round_off * rng.uniform(0.07, 0.11), bow):
        front = at(foot) + (at(roof_front) - at(foot)) * step**0.9 - 0.9 * off
        back = at(rear_foot) + (at(roof_back) - at(rear_foot)) * step ** (0.85 if rear_foot < 0.93 else 1.5) + 0.9 * off
        x = (front + back) / 2 + shape_c[:, 0] * (front - back) / 2
        wide = half_front + (half_rear - half_front) * step**1.1
        narrow = 1 - 0.06 * np.clip(-shape_c[:, 0], 0, 1) ** 2 * step  # drawn in towards the tail
        y = shape_c[:, 1] * (width / 2 * wide - off) * narrow
        z = (top(x) - 0.05) * (1 - step) + roof(x) * step
        rings.append(np.stack([x, y, z], 1))
    bulge = rng.uniform(0.02, 0.05)
    lids = [
        rings[-1] * (1, share, 1)
        + np.array([0, 0, 1]) * bulge * (1 - share**2) * np.clip((1 - np.abs(shape_c[:, :1])) * 8, 0, 1)
        for share in lid
    ]
    car.add(CABIN, *loft(np.stack(rings + lids), np.concatenate([steps, 2 - lid])))
    car.corners = corners
    cabin_y = lambda step: width / 2 * (half_front + (half_rear - half_front) * step)

    # Wheels.
    tyre_width = rng.uniform(0.19, 0.24) + (0.03 if boxy > 0.4 else 0)
    rim = radius * rng.uniform(0.66, 0.77)
    dish = rng.uniform(-0.01, 0.05)
    out = width / 2 * rng.uniform(0.94, 0.975) - tyre_width / 2
    for axle in axles:
        for side in (1, -1):
            w = tyre_width / 2
            tyre_profile = [
                (rim * 0.7, -w * 0.9),
                (rim, -w * 0.92),
                (radius * 0.93, -w),
                (radius * 0.985, -w * 0.82),
                (radius, -w * 0.6),
                (radius, w * 0.6),
                (radius * 0.985, w * 0.82),
                (radius * 0.95, w * 0.97),
                ((radius + rim) / 2, w * 1.04),
                (rim * 1.02, w * 0.96),
                (rim, w * 0.88),
            ]
            rim_profile = [
                (rim, w * 0.88),
                (rim * 0.97, w * 0.92),
                (rim * 0.93, w * 0.86),
                (rim * 0.9, w * 0.7 - dish),
                (rim * 0.5, w * 0.72 - dish),
                (rim * 0.2, w * 0.8 - dish),
                (0.001, w * 0.82 - dish),
            ]
            for part, profile in ((TYRE, tyre_profile), (RIM, rim_profile)):
                car.add(part, *lathe(profile, (axle, side * out, radius), side, max(24, int(56 * detail))))

    for axle in axles:  # wheel wells: without them one would look in at one arch and out at the other
        low, high = clearance + 0.02, radius + 0.85 * arch
        car.add(
            BLACK, *blob((axle, 0, (low + high) / 2), (arch, out - tyre_width / 2 - 0.02, (high - low) / 2), 0.3, 16)
        )

    # Small pieces.
    body_y = lambda x, level: (
        np.interp(-x, -shape[:, 0] * length / 2, shape[:, 1]) * np.interp(level, levels, girth) * width / 2
    )
    doors = 2 if style in ("coupe", "convertible") else 4
    door_x = np.linspace(
        at(foot) - 0.22,
        max(axles[1] + (0.5 if doors == 2 else 0.18), at(roof_back) + 0.02 if style == "pickup" else -9),
        doors // 2 + 1,
    )
    car.pillars = tuple(door_x[1:-1]) + ((axles[1] - 0.12,) if style in ("suv", "estate", "van") else ())
    mirror_x, mirror_z = at(foot) - 0.36 * (1 if style != "van" else 1.4), top(at(foot) - 0.35) + 0.05
    mirror = rng.uniform((0.05, 0.09, 0.055), (0.09, 0.125, 0.09)) * (1.25 if style == "pickup" else 1)
    for side in (1, -1):
        y = width / 2 * 0.97
        car.add(
            PAINTED if rng.random() < 0.8 else BLACK,
            *blob((mirror_x, side * (y + mirror[1] * 0.8), mirror_z + mirror[2] * 0.6), mirror, 0.6, 14),
        )
        car.add(BLACK, *blob((mirror_x, side * (y - 0.03), mirror_z - 0.01), (0.035, 0.09, 0.025), 0.5, 8))
        for x in door_x[1:]:
            z = under(x) + 0.80 * (top(x) - under(x))
            handle = (x + 0.13, side * (body_y(x, 0.80) + 0.004), z)
            car.add(PAINTED if rng.random() < 0.8 else CHROME, *blob(handle, (0.085, 0.022, 0.014), 0.5, 8))
        for row, x in enumerate((at(foot) - 1.15, axles[1] + 0.35)):
            if row and doors == 2 or x < at(roof_back):
                continue
            seat_top = belt + 0.24 * (height - belt) / 0.45
            car.add(SEAT, *blob((x, side * 0.36, belt + 0.02), (0.08, 0.24, seat_top - belt), 0.5, 10))
            car.add(SEAT, *blob((x, side * 0.36, seat_top + 0.07), (0.05, 0.13, 0.08), 0.5, 10))
    car.add(SEAT, *blob((at(foot) - 0.75, 0.36, belt - 0.02), (0.03, 0.19, 0.17), 0.9, 12))
    front_x = length / 2 - front_in[3] * 0.5
    rear_plate = rng.uniform(0.52, 0.72) if rng.random() < 0.8 else 0.36
    plate_z = under(at(0)) + 0.36 * (top(at(0)) - under(at(0)))
    places = [(front_x + 0.005, plate_z)] * (rng.random() < 0.85)
    places.append(
        (-length / 2 + np.interp(rear_plate, levels, rear_in), under(at(1)) + rear_plate * (top(at(1)) - under(at(1))))
    )
    for x, z in places:
        vertices, faces = blob((0, 0, 0), (0.015, 0.155, 0.08), 0.12, 8)
        car.add(PLATE, vertices + (x, 0, z), faces, vertices[:, [2, 1]] / (0.08, 0.155))
    rails = rng.random() < {"suv": 0.6, "estate": 0.6, "van": 0.3}.get(style, 0.0)
    if rails:
        for side in (1, -1):
            vertices, faces = blob(
                (0, side * cabin_y(0.99) * 0.90, 0), ((at(roof_front) - at(roof_back)) * 0.38, 0.018, 0.022), 0.3, 16
            )
            vertices[:, 0] += (at(roof_front) + at(roof_back)) / 2
            vertices[:, 2] += roof(vertices[:, 0]) + rng.uniform(-0.01, 0.02)
            car.add(CHROME if rng.random() < 0.5 else BLACK, vertices, faces)
    if rng.random() < 0.35 and style != "convertible":  # a shark fin
        x = at(roof_back) + 0.12
        vertices, faces = blob((0, 0, 0), (0.09, 0.02, 0.055), 0.8, 10)
        vertices[:, 0] -= (vertices[:, 2] - 0.02) * 1.0
        car.add(PAINTED, vertices + (x, 0, float(roof(x)) + bulge + 0.01), faces)
    elif rng.random() < 0.4:  # a rod aerial
        x = at(roof_back) + 0.1 if rng.random() < 0.6 or style == "pickup" else at(foot) + 0.25
        start = (x, 0.0, float(roof(x)) + bulge) if x < at(roof_front) else (x, width * 0.37, float(top(x)) + 0.02)
        tall = rng.uniform(0.03, 0.18)
        vertices, faces = blob((0, 0, tall), (0.006, 0.006, tall), 0.5, 8)
        vertices[:, 0] -= vertices[:, 2] * rng.uniform(0.2, 0.9)
        car.add(BLACK, vertices + start, faces)
    if rear_foot > 0.93 and rng.random() < 0.6:  # a lip over the rear screen
        car.add(
            PAINTED,
            *blob(
                (at(roof_back) - 0.07, 0, float(roof(at(roof_back))) - 0.015),
                (0.14, cabin_y(1) * 0.80, 0.022),
                0.45,
                16,
            ),
        )
    elif style in ("saloon", "coupe") and rng.random() < 0.25:  # a wing on the boot
        lift = rng.uniform(0.02, 0.13)
        x = -length / 2 + 0.20
        car.add(PAINTED, *blob((x, 0, float(top(x)) + crown + lift), (0.11, width * 0.36, 0.018), 0.4, 16))
        for side in (1, -1):
            car.add(
                PAINTED,
                *blob(
                    (x + 0.01, side * width * 0.27, float(top(x)) + crown * 0.5 + lift / 2),
                    (0.06, 0.02, lift / 2 + 0.03),
                    0.5,
                    8,
                ),
            )
    if rng.random() < 0.6:
        for side in (1, -1) if rng.random() < 0.5 else (1,):
            car.add(
                CHROME,
                *blob(
                    (-length / 2 + 0.16, side * width * 0.3, float(under(at(0.97))) + 0.05),
                    (0.13, 0.032, 0.025),
                    0.7,
                    10,
                ),
            )
    if style in ("pickup", "suv") and rng.random() < 0.4:  # steps under the doors
        for side in (1, -1):
            car.add(
                BLACK if rng.random() < 0.6 else CHROME,
                *blob(
                    ((axles[0] + axles[1]) / 2, side * width * 0.47, clearance + 0.01),
                    ((axles[0] - axles[1]) / 2 - arch - 0.05, 0.07, 0.03),
                    0.3,
                    12,
                ),
            )
    car.add(
        BLACK,
        *blob(
            ((axles[0] + axles[1]) / 2, 0, clearance - 0.01), ((axles[0] - axles[1]) / 2, width * 0.3, 0.05), 0.3, 12
        ),
    )

    colours, odds, metals = zip(*PAINTS)
    pick = rng.choice(len(PAINTS), p=np.array(odds) / sum(odds))
    draw, one_of = rng.uniform, lambda values, odds: float(rng.choice(values, p=odds))
    family = style in ("suv", "van", "pickup")
    grey = np.ptp(colours[pick]) < 0.05
    car.look = {  # lengths in metres, heights and widths as shares of the body's, light linear
        "paint": np.clip(
            np.array(colours[pick]) * draw(0.8, 1.15) * (1 + draw(-1, 1, 3) * (0.015 if grey else 0.08)), 0.006, 0.85
        ),
        "metal": metals[pick] * draw(0.4, 1.2),
        "roof": 0.025 if style == "convertible" else 0.01 if rng.random() < 0.12 else None,
        "doors": door_x,
        "lines": draw((0.15, -0.2, 0.025), (0.85, 0.22, 0.045), (2, 3)),
        "hood": draw((0.22, -0.3), (0.36, 0.3)),
        "clad": rng.random() < (0.5 if style in ("suv", "pickup") else 0.12),
        "bumper": draw(0.5, 0.6),
        "chrome": rng.random() < 0.5,
        "grille": draw((0.35, 0.30, 0.62), (0.66, 0.50, 0.84)),
        "bars": draw(25, 60),
        "fog": draw(0.15, 0.25),
        "intake": draw(0.45, 0.75),
        "intake_high": draw(0.2, 0.36),
        "line_chrome": rng.random() < 0.35,
        "lamp_in": draw(0.50, 0.68),
        "lamp_low": draw(0.58, 0.72),
        "lamp_long": draw(0.40, 0.75),
        "lamp_tall": draw(0.13, 0.24),
        "lamp_rise": draw(0.0, 0.18),
        "bulbs": draw(1.0, 3.2),
        "tail_in": draw(0.45, 0.74),
        "tail_low": draw(0.58, 0.72),
        "tail_long": draw(0.35, 0.75),
        "tail_tall": draw(0.16, 0.30),
        "tail_rise": draw(0, 0.1),
        "plate": draw((0.02, 0.1, 0.25), (0.3, 0.45, 0.7)),
        "spokes": int(one_of([5, 6, 7, 8, 9, 10, 12, 15], [0.25, 0.15, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])),
        "spoke_wide": draw(0.35, 0.65),
        "split": rng.random() < 0.4,
        "turn": draw(0, 6.3),
        "rim": one_of([0.62, 0.45, 0.35, 0.05], [0.6, 0.2, 0.12, 0.08]),
        "rim_radius": rim,
        "tint": draw(0.45, 0.75),
        "privacy": draw(0.06, 0.25) if family or rng.random() < 0.25 else 1.0,
        "sticker": rng.random() < 0.4,
        "cargo": style == "van" and rng.random() < 0.2,
        "cloth": one_of([0.03, 0.05, 0.12, 0.35], [0.4, 0.3, 0.15, 0.15]),
    }
    return car.close()
