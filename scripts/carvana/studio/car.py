"""Synthetic cars: one parametric solid each, drawn from a random generator.

A car is a triangle mesh in its own frame: metres, x forward, y to its left, z up, the middle of the wheelbase near
x = 0 and the floor at z = 0. Body and cabin are lofts: closed outlines seen from above, stacked from the sill to the
shoulder and from the shoulder to the roof, so that screens are curved and sides lean inwards. material.py says what a
surface is made of.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from carvana.studio.shapes import blob, lathe, loft, outline, smooth_curve

BODY, CABIN, TYRE, RIM, PAINTED, BLACK, CHROME, PLATE, SEAT = range(9)

# Length, width, height (m), wheelbase (fraction of the length), clearance, tyre diameter, heights of nose, cowl, belt,
# tail (m), then fractions of the length from the front: foot of the windscreen, front and back of the roof, foot of
# the rear screen; at last how often.
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
SPREAD = (0.05, 0.025, 0.03, 0.012, 0.12, 0.04, 0.05, 0.025, 0.02, 0.02, 0.05, 0.03, 0.02, 0.008)  # of these, relative

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
LEVELS = np.array([0, 0.04, 0.10, 0.18, 0.28, 0.38, 0.48, 0.58, 0.68, 0.76, 0.84, 0.90, 0.95, 0.98, 1.0])  # of the body
LID = np.cos(np.linspace(0, np.pi / 2, 11))[1:]  # rings that close a loft on the middle line, as fractions of its width


@dataclass
class Car:
    """One car: its proportions, its mesh, and the numbers that decide what its surface shows; lengths in metres."""

    style: str
    length: float
    width: float
    height: float
    clearance: float
    belt: float  # height of the windows' foot
    wheel_radius: float
    axles: tuple  # x of the front and of the rear axle
    arch: float  # radius of the wheel arches
    boxy: float  # 0 round, 1 angular
    cabin_span: tuple  # x of the foot of the windscreen and of the rear screen
    roof_span: tuple  # x of the roof's front and back
    hatch: bool  # whether the rear screen ends at the tail
    top: Callable  # height of the body at x
    under: Callable  # height of its underside at x
    roof: Callable  # height of the roof at x
    lean: float = 0.0  # of the sides, as a fraction of the width
    front_in: np.ndarray = None  # how far the body's nose recedes at each of LEVELS
    rear_in: np.ndarray = None  # likewise its tail
    side: Callable = None  # y of the body's side at x and a level
    cabin_side: Callable = None  # y of the cabin's side at a fraction of its height
    crown: float = 0.0  # how far the bonnet and the boot bulge
    bulge: float = 0.0  # likewise the roof
    corners: tuple = ()  # where the cabin's outline turns, as fractions of its half length: front corner, rear corner
    doors: np.ndarray = None  # x of the door gaps, from the front
    pillars: tuple = ()  # x of the door pillars
    look: dict = None  # everything that only the material reads
    vertices: np.ndarray = None  # (V, 3) float32
    faces: np.ndarray = None  # (F, 3) int32
    parts: np.ndarray = None  # (V,) uint8, BODY to SEAT
    coords: np.ndarray = (
        None  # (V, 2) float32: fraction of the height (0 foot, 1 top, 2 middle of the lid) and of the outline
    )
    normals: np.ndarray = None  # (V, 3) float32, unit, smooth within a part
    pieces: list = field(default_factory=list)

    def at(self, fraction):
        """Return x at a fraction of the length from the front."""
        return self.length * (0.5 - fraction)

    def in_arch(self, points, depth=0.0):
        """Return which points (n, 3) lie in a wheel arch, whose radius is `depth` greater: (n,) bool."""
        inside = np.zeros(len(points), bool)
        for axle in self.axles:
            inside |= np.hypot(points[:, 0] - axle, points[:, 2] - self.wheel_radius) < self.arch + depth
        return inside

    def add(self, part, vertices, faces, coords=None):
        """Append a piece: vertices (n, 3), faces (m, 3) that count from its first vertex, coords (n, 2) or zeros."""
        coords = np.zeros((len(vertices), 2)) if coords is None else coords
        self.pieces.append((part, np.asarray(vertices, np.float64), np.asarray(faces), coords))

    def close(self):
        """Join the pieces to one mesh with smooth normals, each the area-weighted mean of a vertex's triangles."""
        counts = np.cumsum([0] + [len(piece[1]) for piece in self.pieces])
        vertices = np.concatenate([piece[1] for piece in self.pieces])
        faces = np.concatenate([piece[2] + start for piece, start in zip(self.pieces, counts)])
        cross = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
        normals = np.stack([np.bincount(faces.ravel(), np.repeat(cross[:, k], 3), len(vertices)) for k in range(3)], 1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        self.vertices, self.faces = vertices.astype(np.float32), faces.astype(np.int32)
        self.normals = normals.astype(np.float32)
        self.parts = np.concatenate([np.full(len(piece[1]), piece[0], np.uint8) for piece in self.pieces])
        self.coords = np.concatenate([piece[3] for piece in self.pieces]).astype(np.float32)
        self.pieces = []
        return self


def make_car(rng, detail=1.0):
    """Draw one car.

    Args:
        rng: numpy Generator, the only source of chance.
        detail: 1 for the full mesh of about 15,000 vertices, less for small photos.
    """
    car = draw_proportions(rng)
    add_body(car, rng, detail)
    add_cabin(car, rng, detail)
    rim_radius = add_wheels(car, rng, detail)
    add_fittings(car, rng)
    add_extras(car, rng)
    car.look = draw_look(car, rng, rim_radius)
    return car.close()


def draw_proportions(rng):
    """Return a car without mesh: its style, its sizes, and the curves of its silhouette."""
    names = list(STYLES)
    odds = np.array([STYLES[name][-1] for name in names])
    style = names[rng.choice(len(names), p=odds / odds.sum())]
    size = np.array(STYLES[style][:-1]) * np.clip(rng.normal(1, SPREAD), 0.86, 1.14)
    length, width, height, base, clearance, tyre, nose, cowl, belt, tail, foot, roof_front, roof_back, rear_foot = size
    cowl, belt = min(cowl, height - 0.42), min(belt, height - 0.38)
    tail, nose, rear_foot = min(tail, height - 0.30), min(nose, cowl - 0.12), min(rear_foot, 0.985)
    at = lambda fraction: length * (0.5 - fraction)
    radius = 1.02 * tyre / 2
    overhang = rng.uniform(0.40, 0.46) if style != "pickup" else 0.40  # in front, of what the wheelbase leaves
    axles = (at((1 - base) * overhang), at((1 - base) * overhang + base))
    arch = radius * rng.uniform(1.08, 1.15)
    boxy = {"suv": 0.6, "pickup": 0.8, "van": 0.5}.get(style, 0.2) + rng.uniform(-0.2, 0.2)
    hatch = bool(rear_foot > 0.93)
    silhouette = (
        (at(0), nose),
        (at(0.05), nose + 0.3 * (cowl - nose) * (0.7 + boxy)),
        (at(0.6 * foot), cowl - 0.04),
        (at(foot), cowl),
        (at(0.5), belt),
        (at(rear_foot), max(tail, belt)),
        (at(1), tail - (0 if hatch else 0.05)),
    )
    lift = rng.uniform(0.10, 0.2)
    sill = ((at(0), clearance + 0.07), (at(0.09), clearance), (at(0.88), clearance + 0.02), (at(1), clearance + lift))
    sag = rng.uniform(0.02, 0.05) + (0.07 if roof_back < 0.75 and style != "pickup" else 0.0)
    middle = at(0.35 * roof_back + 0.65 * roof_front)
    return Car(
        style=style,
        length=length,
        width=width,
        height=height,
        clearance=clearance,
        belt=belt,
        wheel_radius=radius,
        axles=axles,
        arch=arch,
        boxy=boxy,
        hatch=hatch,
        cabin_span=(at(foot), at(rear_foot)),
        roof_span=(at(roof_front), at(roof_back)),
        top=smooth_curve(silhouette, 0.11),
        under=smooth_curve(sill, 0.08),
        roof=lambda x: height - np.where(x > middle, 0.10, sag) * ((x - middle) / (length * 0.24)) ** 2,
    )


def add_body(car, rng, detail):
    """Add rings from the sill to the shoulder, and lids above and below that close them on the middle line."""
    boxy, length, width = car.boxy, car.length, car.width
    n = max(24, int(96 * detail))
    shape, _ = outline(length / width, rng.uniform(4.2, 5.6) + boxy, rng.uniform(5, 7) + boxy, n)
    tuck, car.lean = rng.uniform(0.04, 0.09), rng.uniform(0.02, 0.06)
    girth = np.interp(
        LEVELS,
        [0, 0.12, 0.5, 0.72, 0.86, 0.95, 1.0],
        [1 - tuck, 1 - 0.4 * tuck, 1.0, 0.995, 0.985 - 0.3 * car.lean, 0.965 - 0.5 * car.lean, 0.93 - car.lean],
    )
    front_in = np.array([0.15, 0.04, 0.0, 0.005, 0.03, 0.08, 0.18]) * rng.uniform(0.7, 1.2) * (1.25 - 0.5 * boxy)
    front_in = np.interp(LEVELS, [0, 0.15, 0.35, 0.5, 0.75, 0.92, 1.0], front_in)
    rear_in = np.array([0.16, 0.03, 0.0, 0.01, 0.04, 0.05, 0.10]) * rng.uniform(0.7, 1.2)
    rear_in = np.interp(LEVELS, [0, 0.15, 0.35, 0.5, 0.55, 0.8, 1.0], rear_in)
    crease, crease_at = rng.uniform(0.0, 0.016), rng.uniform(0.62, 0.8)  # a line pressed into the side, wheel to wheel
    girth = girth - crease * np.exp(-(((LEVELS - crease_at) / 0.05) ** 2))

    rings = []
    for level, wide, into_front, into_rear in zip(LEVELS, girth, front_in, rear_in):
        x = shape[:, 0] * (length / 2 - np.where(shape[:, 0] > 0, into_front, into_rear))
        y = shape[:, 1] * wide * width / 2
        for axle in car.axles:  # wings swell over the wheels
            swell = 0.022 * np.exp(-(((x - axle) / (1.15 * car.arch)) ** 2)) * np.exp(-(((level - 0.62) / 0.3) ** 2))
            y = y * (1 + swell)
        rings.append(np.stack([x, y, car.under(x) + level * (car.top(x) - car.under(x))], 1))
    car.crown = rng.uniform(0.03, 0.06)
    floors = [rings[0] * (1, fraction, 1) for fraction in (0, 0.5)]
    levels = np.concatenate([[-1, -0.5], LEVELS, 2 - LID])
    vertices, faces, coords = loft(np.stack(floors + rings + close_top(rings[-1], shape, car.crown, 12)), levels)
    # Panels wholly within an arch go, so that light reaches the wheels.
    inside = car.in_arch(vertices) & (np.abs(vertices[:, 1]) > 0.3 * width) & (coords[:, 0] >= 0)
    car.add(BODY, vertices, faces[~inside[faces].all(1)], coords)
    car.front_in, car.rear_in = front_in, rear_in
    car.side = lambda x, level: (
        np.interp(-x, -shape[:, 0] * length / 2, shape[:, 1]) * np.interp(level, LEVELS, girth) * width / 2
    )


def close_top(ring, shape, bulge, sharp):
    """Return rings that close a loft above its last ring (n, 3), rising by `bulge` towards the middle line."""
    ends = np.clip((1 - np.abs(shape[:, :1])) * sharp, 0, 1)
    return [ring * (1, share, 1) + np.array([0, 0, 1]) * bulge * (1 - share**2) * ends for share in LID]


def add_cabin(car, rng, detail):
    """Add rings from just under the shoulder to the roof's edge, then the roof."""
    (foot, rear_foot), (roof_front, roof_back), width = car.cabin_span, car.roof_span, car.width
    half_front = (1 - car.lean) * rng.uniform(0.89, 0.94)
    half_rear = rng.uniform(0.76, 0.82) + (0.04 if car.boxy > 0.4 else 0)
    n = max(20, int(72 * detail))
    aspect = (foot - rear_foot) / width / 0.85
    shape, car.corners = outline(aspect, rng.uniform(4.0, 5.5), rng.uniform(4.5, 6) + car.boxy, n)
    steps = np.array([0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.88, 0.94, 0.98, 1.0])
    round_off = 1 - np.sqrt(np.clip(1 - (np.clip(steps - 0.76, 0, 1) / 0.24) ** 2, 0, 1))
    rings = []
    for step, off in zip(steps, round_off * rng.uniform(0.07, 0.11)):
        front = foot + (roof_front - foot) * step**0.9 - 0.9 * off
        back = rear_foot + (roof_back - rear_foot) * step ** (1.5 if car.hatch else 0.85) + 0.9 * off
        x = (front + back) / 2 + shape[:, 0] * (front - back) / 2
        wide = half_front + (half_rear - half_front) * step**1.1
        narrow = 1 - 0.06 * np.clip(-shape[:, 0], 0, 1) ** 2 * step  # drawn in towards the tail
        y = shape[:, 1] * (width / 2 * wide - off) * narrow
        rings.append(np.stack([x, y, (car.top(x) - 0.05) * (1 - step) + car.roof(x) * step], 1))
    car.bulge = rng.uniform(0.02, 0.05)
    lids = close_top(rings[-1], shape, car.bulge, 8)
    car.add(CABIN, *loft(np.stack(rings + lids), np.concatenate([steps, 2 - LID])))
    car.cabin_side = lambda step: width / 2 * (half_front + (half_rear - half_front) * step)


def add_wheels(car, rng, detail):
    """Add tyres, rims and wheel wells; return the rims' radius."""
    radius = car.wheel_radius
    tyre_width = rng.uniform(0.19, 0.24) + (0.03 if car.boxy > 0.4 else 0)
    rim, dish = radius * rng.uniform(0.66, 0.77), rng.uniform(-0.01, 0.05)
    out, w = car.width / 2 * rng.uniform(0.94, 0.975) - tyre_width / 2, tyre_width / 2
    tyre_profile = (
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
    )
    rim_profile = (
        (rim, w * 0.88),
        (rim * 0.97, w * 0.92),
        (rim * 0.93, w * 0.86),
        (rim * 0.9, w * 0.7 - dish),
        (rim * 0.5, w * 0.72 - dish),
        (rim * 0.2, w * 0.8 - dish),
        (0.001, w * 0.82 - dish),
    )
    for axle in car.axles:
        for side in (1, -1):
            for part, profile in ((TYRE, tyre_profile), (RIM, rim_profile)):
                car.add(part, *lathe(profile, (axle, side * out, radius), side, max(24, int(56 * detail))))
    low, high = car.clearance + 0.02, radius + 0.85 * car.arch
    well = (car.arch, out - tyre_width / 2 - 0.02, (high - low) / 2)
    for axle in car.axles:  # without wells one would look in at one arch and out at the other
        car.add(BLACK, *blob((axle, 0, (low + high) / 2), well, 0.3, 16))
    return rim


def add_fittings(car, rng):
    """Add what every car has: door gaps, mirrors, handles, seats, steering wheel, number plates."""
    foot, roof_back, top, under = car.cabin_span[0], car.roof_span[1], car.top, car.under
    n_doors = 2 if car.style in ("coupe", "convertible") else 4
    last = max(car.axles[1] + (0.5 if n_doors == 2 else 0.18), roof_back + 0.02 if car.style == "pickup" else -9)
    car.doors = np.linspace(foot - 0.22, last, n_doors // 2 + 1)
    car.pillars = tuple(car.doors[1:-1]) + ((car.axles[1] - 0.12,) if car.style in ("suv", "estate", "van") else ())
    mirror_x, mirror_z = foot - 0.36 * (1 if car.style != "van" else 1.4), top(foot - 0.35) + 0.05
    mirror = rng.uniform((0.05, 0.09, 0.055), (0.09, 0.125, 0.09)) * (1.25 if car.style == "pickup" else 1)
    for side in (1, -1):
        y = car.width / 2 * 0.97
        place = (mirror_x, side * (y + mirror[1] * 0.8), mirror_z + mirror[2] * 0.6)
        car.add(PAINTED if rng.random() < 0.8 else BLACK, *blob(place, mirror, 0.6, 14))
        car.add(BLACK, *blob((mirror_x, side * (y - 0.03), mirror_z - 0.01), (0.035, 0.09, 0.025), 0.5, 8))
        for x in car.doors[1:]:
            handle = (x + 0.13, side * (car.side(x, 0.80) + 0.004), under(x) + 0.80 * (top(x) - under(x)))
            car.add(PAINTED if rng.random() < 0.8 else CHROME, *blob(handle, (0.085, 0.022, 0.014), 0.5, 8))
        for row, x in enumerate((foot - 1.15, car.axles[1] + 0.35)):
            if row and n_doors == 2 or x < roof_back:
                continue
            seat_top = car.belt + 0.24 * (car.height - car.belt) / 0.45
            car.add(SEAT, *blob((x, side * 0.36, car.belt + 0.02), (0.08, 0.24, seat_top - car.belt), 0.5, 10))
            car.add(SEAT, *blob((x, side * 0.36, seat_top + 0.07), (0.05, 0.13, 0.08), 0.5, 10))
    car.add(SEAT, *blob((foot - 0.75, 0.36, car.belt - 0.02), (0.03, 0.19, 0.17), 0.9, 12))
    front, rear = car.at(0), car.at(1)
    level = rng.uniform(0.52, 0.72) if rng.random() < 0.8 else 0.36  # of the rear plate
    rear_place = (rear + np.interp(level, LEVELS, car.rear_in), under(rear) + level * (top(rear) - under(rear)))
    front_place = (front - car.front_in[3] * 0.5 + 0.005, under(front) + 0.36 * (top(front) - under(front)))
    for x, z in [front_place] * (rng.random() < 0.85) + [rear_place]:
        vertices, faces = blob((0, 0, 0), (0.015, 0.155, 0.08), 0.12, 8)
        car.add(PLATE, vertices + (x, 0, z), faces, vertices[:, [2, 1]] / (0.08, 0.155))


def add_extras(car, rng):
    """Add what only some cars have: roof rails, aerial, spoiler, exhausts, steps; and the floor pan."""
    (roof_front, roof_back), roof, top, width = car.roof_span, car.roof, car.top, car.width
    if rng.random() < {"suv": 0.6, "estate": 0.6, "van": 0.3}.get(car.style, 0.0):
        for side in (1, -1):
            rail = ((roof_front - roof_back) * 0.38, 0.018, 0.022)
            vertices, faces = blob((0, side * car.cabin_side(0.99) * 0.90, 0), rail, 0.3, 16)
            vertices[:, 0] += (roof_front + roof_back) / 2
            vertices[:, 2] += roof(vertices[:, 0]) + rng.uniform(-0.01, 0.02)
            car.add(CHROME if rng.random() < 0.5 else BLACK, vertices, faces)
    if rng.random() < 0.35 and car.style != "convertible":  # a shark fin
        x = roof_back + 0.12
        vertices, faces = blob((0, 0, 0), (0.09, 0.02, 0.055), 0.8, 10)
        vertices[:, 0] -= (vertices[:, 2] - 0.02) * 1.0
        car.add(PAINTED, vertices + (x, 0, float(roof(x)) + car.bulge + 0.01), faces)
    elif rng.random() < 0.4:  # a rod aerial
        x = roof_back + 0.1 if rng.random() < 0.6 or car.style == "pickup" else car.cabin_span[0] + 0.25
        start = (x, 0.0, float(roof(x)) + car.bulge) if x < roof_front else (x, width * 0.37, float(top(x)) + 0.02)
        tall = rng.uniform(0.03, 0.18)
        vertices, faces = blob((0, 0, tall), (0.006, 0.006, tall), 0.5, 8)
        vertices[:, 0] -= vertices[:, 2] * rng.uniform(0.2, 0.9)
        car.add(BLACK, vertices + start, faces)
    if car.hatch and rng.random() < 0.6:  # a lip over the rear screen
        place = (roof_back - 0.07, 0, float(roof(roof_back)) - 0.015)
        car.add(PAINTED, *blob(place, (0.14, car.cabin_side(1) * 0.80, 0.022), 0.45, 16))
    elif car.style in ("saloon", "coupe") and rng.random() < 0.25:  # a wing on the boot
        lift, x = rng.uniform(0.02, 0.13), -car.length / 2 + 0.20
        boot = float(top(x))
        car.add(PAINTED, *blob((x, 0, boot + car.crown + lift), (0.11, width * 0.36, 0.018), 0.4, 16))
        for side in (1, -1):
            foot = (x + 0.01, side * width * 0.27, boot + car.crown * 0.5 + lift / 2)
            car.add(PAINTED, *blob(foot, (0.06, 0.02, lift / 2 + 0.03), 0.5, 8))
    if rng.random() < 0.6:  # exhausts
        for side in (1, -1) if rng.random() < 0.5 else (1,):
            place = (-car.length / 2 + 0.16, side * width * 0.3, float(car.under(car.at(0.97))) + 0.05)
            car.add(CHROME, *blob(place, (0.13, 0.032, 0.025), 0.7, 10))
    middle, half_base = (car.axles[0] + car.axles[1]) / 2, (car.axles[0] - car.axles[1]) / 2
    if car.style in ("pickup", "suv") and rng.random() < 0.4:  # steps under the doors
        for side in (1, -1):
            step = blob(
                (middle, side * width * 0.47, car.clearance + 0.01), (half_base - car.arch - 0.05, 0.07, 0.03), 0.3
            )
            car.add(BLACK if rng.random() < 0.6 else CHROME, *step)
    car.add(BLACK, *blob((middle, 0, car.clearance - 0.01), (half_base, width * 0.3, 0.05), 0.3))


def draw_look(car, rng, rim_radius):
    """Draw what only the material reads: metres, heights and widths as fractions of the body's, linear colours."""
    colours, odds, metals = zip(*PAINTS)
    pick = rng.choice(len(PAINTS), p=np.array(odds) / sum(odds))
    draw, one_of = rng.uniform, lambda values, odds: float(rng.choice(values, p=odds))
    family = car.style in ("suv", "van", "pickup")
    hue = 0.015 if np.ptp(colours[pick]) < 0.05 else 0.08  # greys stay grey
    return {
        "paint": np.clip(np.array(colours[pick]) * draw(0.8, 1.15) * (1 + draw(-1, 1, 3) * hue), 0.006, 0.85),
        "metal": metals[pick] * draw(0.4, 1.2),
        "roof": 0.025 if car.style == "convertible" else 0.01 if rng.random() < 0.12 else None,
        "lines": draw((0.15, -0.2, 0.025), (0.85, 0.22, 0.045), (2, 3)),
        "hood": draw((0.22, -0.3), (0.36, 0.3)),
        "clad": rng.random() < (0.5 if car.style in ("suv", "pickup") else 0.12),
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
        "rim_radius": rim_radius,
        "tint": draw(0.45, 0.75),
        "privacy": draw(0.06, 0.25) if family or rng.random() < 0.25 else 1.0,
        "sticker": rng.random() < 0.4,
        "cargo": car.style == "van" and rng.random() < 0.2,
        "cloth": one_of([0.03, 0.05, 0.12, 0.35], [0.4, 0.3, 0.15, 0.15]),
    }
