"""What a synthetic car is made of, point by point: paint, glass, lamps, rubber, as sharp as the photo."""

import numpy as np

from carvana.studio.car import BLACK, BODY, CABIN, CHROME, PLATE, RIM, SEAT, TYRE
from carvana.studio.vectors import unit


class Surface:
    """What the car is made of at points of its own frame.

    Args:
        corner, where: (n, 3) vertices of the triangle around each point, (n, 2) barycentrics within it.
        point: (n, 3).
        back: (n,) bool, whether the surface is seen from inside.

    Attributes:
        colour, normal: (n, 3) linear RGB; unit vectors on the side that is seen.
        mirror, metal, glass: (n,) reflectance seen head-on, how metallic, fraction of light that glass lets through.
    """

    def __init__(self, car, corner, where, point, back):
        self.car, self.corner, self.where, self.point, self.back = car, corner, where, point, back
        self.part, normal = car.parts[corner[:, 0]], unit(self.blend(car.normals))
        self.normal = np.where(back[:, None], -normal, normal)
        self.x, self.left, self.z = point.T
        self.t, self.s = self.blend(car.coords).T
        self.y, self.half, self.w = np.abs(self.left), car.length / 2, car.width / 2
        self.body = self.part == BODY
        self.colour = np.tile(np.float32(car.look["paint"]), (len(point), 1))
        self.mirror, self.metal, self.glass = np.float32([[0.032], [car.look["metal"]], [0]]).repeat(len(point), 1)
        # Each overrides what the ones before it said of some points.
        for finish in (self.panels, self.nose, self.tail, self.cabin, self.wheels, self.fittings):
            finish()

    def blend(self, values):
        """Mix values (V, c) of the triangles' vertices: (n, c)."""
        (a, b, c), (u, v) = self.corner.T, self.where.T[..., None]
        return values[a] * (1 - u - v) + values[b] * u + values[c] * v

    def put(self, where, colour, mirror=0.03, metal=0.0, glass=0.0):
        self.colour[where], self.mirror[where], self.metal[where] = colour, mirror, metal
        self.glass[where] = glass

    def panels(self):
        """Cladding, door gaps, and what lies around the bonnet and under the glass."""
        car, look, x, y, t, put = self.car, self.car.look, self.x, self.y, self.t, self.put
        side, top = self.body & (np.abs(self.normal[:, 1]) > 0.5) & (t > 0), self.body & (t > 1)
        if look["clad"]:
            put(self.body & ((t < 0.17) | car.in_arch(self.point, 0.06) & (t < 0.9)), 0.03, 0.02)
        put(self.body & (t < 0.05), 0.02, 0.02)
        for line in car.doors:
            put(side & (np.abs(x - line - 0.05 * (t - 0.5)) < 0.006) & (t > 0.10) & (t < 1.05), look["paint"] * 0.12)
        put(side & (np.abs(t - 0.115) < 0.008) & (x < car.doors[0]) & (x > car.doors[-1]), look["paint"] * 0.12)
        put(top & (np.abs(x - car.cabin_span[0] - 0.10) < 0.10) & (y < 0.85 * self.w), 0.015)  # wipers' trough
        put(self.body & (t > 1.16) & (x < car.cabin_span[0]) & (x > car.cabin_span[1]), 0.03, 0.01)  # under the glass
        if car.style == "pickup":
            put(self.body & (t > 1.12) & (x < car.cabin_span[1]) & (x > -self.half + 0.1), 0.015, 0.02)
        gap = np.abs(y - 0.86 * self.w - 0.04 * (x - self.half)) < 0.006
        put(top & (x > car.cabin_span[0]) & gap, look["paint"] * 0.15)  # of the bonnet

    def nose(self):
        """Grille, air intake, fog lamps, headlamps."""
        look, y, t, w, put = self.car.look, self.y, self.t, self.w, self.put
        nose = self.body & (self.x > self.half - 0.6) & (t > 0)
        wide, low, high = look["grille"]
        reach = wide * w * (1.1 - 0.5 * (high - t))
        grille = nose & (y < reach) & (t > low) & (t < high)
        bar = np.sin(self.z[grille] * 2 * np.pi * look["bars"])[:, None] > 0.2
        put(grille, np.where(bar, 0.35 if look["chrome"] else 0.06, 0.008), 0.04)
        if look["chrome"]:
            put(nose & ~grille & (y < reach + 0.03) & (t > low - 0.03) & (t < high + 0.03), 0.55, 0.5, 0.9)
        put(nose & (y < look["intake"] * w) & (t > 0.10) & (t < look["intake_high"]), 0.012)
        put(nose & (np.abs(y - 0.76 * w) < 0.13 * w) & (np.abs(t - 0.20) < 0.07), 0.015)
        put(nose & (np.abs(y - 0.76 * w) < 0.09 * w) & (np.abs(t - look["fog"]) < 0.025), 0.5, 0.15)
        lamp, along, above = self.lamp(nose, "lamp", lambda along: 1.15 - np.abs(2 * along - 0.7) ** 2 * 0.5)
        bulb = np.exp(-((((along[lamp] * look["bulbs"]) % 1 - 0.5) / 0.28) ** 4) - ((above[lamp] - 0.5) / 0.36) ** 4)
        put(lamp, (0.06 + 0.6 * bulb * (0.75 + 0.25 * np.sin(y[lamp] * 200)))[:, None] * (1, 1, 1.03), 0.10)
        put(lamp & (along > 0.80), (0.50, 0.20, 0.03), 0.08)  # indicator

    def tail(self):
        """Tail lamps, bumper, the boot's gap."""
        look, t, put = self.car.look, self.t, self.put
        tail = self.body & (self.x < -self.half + 0.5) & (t > 0) & (self.normal[:, 0] < 0.3)
        lamp, along, above = self.lamp(tail, "tail", lambda along: 1.1 - along * 0.6)
        put(lamp, (0.40, 0.012, 0.012), 0.07)
        put(lamp & (np.abs(above - 0.3) < 0.10) & (along < 0.6), (0.45, 0.28, 0.26), 0.1)
        put(tail & (self.y < 0.62 * self.w) & (t < 0.13), 0.02)
        put(tail & (np.abs(t - 0.50) < 0.008), look["paint"] * 0.15)

    def lamp(self, end, name, shape):
        """Return which points of the car's `end` lie on a lamp, and their fractions of its length and height (n,)."""
        inner, low, long, tall, rise = (
            self.car.look[f"{name}_{size}"] for size in ("in", "low", "long", "tall", "rise")
        )
        # Metres from the middle of the nose, or of the tail, along the outline.
        reach = (self.car.length + self.car.width) * np.where(self.x > 0, self.s, 1 - self.s)
        along = (reach - inner * self.w) / long
        above = (self.t - low - rise * along) / (tall * np.sqrt(np.clip(shape(along), 0.05, 1)))
        return end & (along > 0) & (along < 1) & (above > 0) & (above < 1), along, above

    def cabin(self):
        """Windows, pillars and roof."""
        car, look, x, t, s, put = self.car, self.car.look, self.x, self.t, self.s, self.put
        cabin, (front, rear), soft_top = self.part == CABIN, car.corners, car.style == "convertible"
        glassy = cabin & ~self.back & (t > 0.12) & (t < 0.80)
        wind = glassy & (s < front * 0.90) & (t > 0.06)
        behind = glassy & (s > rear + 0.12 * (1 - rear)) & (t < 0.76)
        flank = glassy & (s > front * 1.12) & (s < rear - 0.02) & (t > 0.15)
        if look["cargo"]:
            flank &= x > car.doors[1]
            behind &= False
        put(cabin & (t > 0.05) & (t < 0.82) & (s > front * 1.05) & (s < rear), 0.012)  # seals and door frames
        put(cabin & (s < front) & (t < 0.84), 0.012)
        put(cabin & (s > front * 0.94) & (s < front * 1.04), look["paint"], 0.045, look["metal"])
        if look["line_chrome"]:
            put(cabin & (t > 0.10) & (t < 0.135) & (s > front) & (s < rear), 0.5, 0.5, 0.9)
        for pillar in car.pillars:
            flank &= np.abs(x - pillar) > 0.045
        if look["roof"] is not None:
            put(cabin & (t > (0.05 if soft_top else 0.86)), look["roof"], 0.0 if soft_top else 0.045)
        if soft_top:
            behind &= (t > 0.3) & (t < 0.62)
            flank &= x > car.doors[1] - 0.25
        for where, tint in ((wind, look["tint"]), (behind, look["tint"] * look["privacy"]), (flank, look["tint"])):
            put(where, 0.004, 0.05, glass=tint)
        self.glass[flank & (x < car.doors[1])] *= look["privacy"]
        put(wind & (t > 0.70) & (self.y < 0.14), 0.01, glass=look["tint"])
        if look["sticker"]:
            put(wind & (t > 0.55) & (t < 0.62) & (np.abs(self.left + 0.5) < 0.07), 0.8)

    def wheels(self):
        """Tread, side walls, spokes and hub."""
        car, look, put = self.car, self.car.look, self.put
        axle = np.where(np.abs(self.x - car.axles[0]) < np.abs(self.x - car.axles[1]), *car.axles)
        out = np.hypot(self.x - axle, self.z - car.radius)
        turn = np.arctan2(self.z - car.radius, self.x - axle) + look["turn"]
        tyre, face = self.part == TYRE, self.part == RIM
        groove = (np.abs(self.normal[:, 1]) < 0.5) & (np.sin(self.y * 160) > 0.4)
        put(tyre, np.where(groove, 0.010, 0.030 + 0.010 * np.sin(out * 90))[tyre, None], 0.015)
        radius = out / look["rim_radius"]
        wave = np.abs((turn * look["spokes"] / (2 * np.pi)) % 1 - 0.5) * 2  # 0 at a spoke's middle
        if look["split"]:
            wave = np.where(radius > 0.45, np.abs(wave - 0.32 * radius) * 1.7, wave)
        spoke = (wave < look["spoke_wide"] * (1.15 - 0.5 * radius)) | (radius > 0.90) | (radius < 0.24)
        shine = look["rim"] * (0.95 + 0.4 * np.cos(wave * 2.5))
        brake = np.where((radius < 0.75) & (np.sin(turn * 40) > -0.9), 0.05, 0.012)
        put(face, np.where(spoke, shine, brake)[face, None], 0.06)
        self.metal[face & spoke] = 0.6
        put(face & (radius < 0.13), 0.04)

    def fittings(self):
        """The small pieces, and the inside."""
        look, part, put = self.car.look, self.part, self.put
        put(part == BLACK, 0.015, 0.03)
        put(part == CHROME, 0.60, 0.5, 0.9)
        put(part == SEAT, look["cloth"], 0.0)
        plate = part == PLATE
        dash, disc = np.abs(self.t + 0.62) < 0.2, np.hypot((self.s + 0.45) * 1.9, self.t - 0.15) < 0.4
        blue = (np.abs(self.normal[:, 0]) > 0.5) & ((np.abs(self.s) < 0.85) & dash | disc)
        put(plate, np.where(blue[:, None], look["plate"], 0.75)[plate])
        put(self.back & self.body, 0.006, 0.0)
        put(self.back & (part == CABIN), look["cloth"] * 0.5 + 0.02, 0.0)

    def press(self):
        """Return the normals (n, 3), tilted where the sheet is pressed: sides, bonnet, above the bumpers."""
        car, look, x, t = self.car, self.car.look, self.x, self.t
        tilt = self.normal.copy()
        side = self.body & (t > 0) & (t < 1)
        for line, depth, wide in look["lines"]:
            tilt[:, 2] += np.where(side, depth * np.exp(-(((t - line - 0.02 * x) / wide) ** 2)), 0)
        ends = side & (np.abs(x) > self.half - 0.45)
        tilt[:, 2] += np.where(ends, 0.3 * np.exp(-(((t - look["bumper"]) / 0.03) ** 2)), 0)
        hood = self.body & (t > 1) & (x > car.cabin_span[0])
        spot = self.y - car.width * (look["hood"][0] - 0.06 * (x - car.cabin_span[0]))
        tilt[:, 1] += np.where(hood, look["hood"][1] * np.sign(self.left) * np.exp(-((spot / 0.05) ** 2)), 0)
        return unit(tilt)
