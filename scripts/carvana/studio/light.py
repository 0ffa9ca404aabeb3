"""A synthetic car in the room's light: rays by Embree, ambient occlusion, shading of paint and glass."""

import cv2
import numpy as np

from carvana.studio.car import BODY
from carvana.studio.material import material, press

try:
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene
except ImportError:  # scripts/studio.py says in one sentence how to install it
    EmbreeScene = None

VIEWS = 16
REMAP_ROWS = 30_000  # OpenCV's remap takes fewer than 32,768 rows at a time


def sphere(n):
    """Return n directions (n, 3), float32, evenly spread over the sphere."""
    z = 1 - (2 * np.arange(n) + 1) / n
    turn = np.arange(n) * np.pi * (3 - np.sqrt(5))
    return np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], 1).astype(np.float32)


def dot(a, b):
    """Return the products (n,) of vectors (n, 3); three columns added are faster than a sum over rows of three."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def unit(vectors):
    """Return vectors (n, 3) scaled to length 1."""
    return vectors / np.sqrt(np.maximum(dot(vectors, vectors), 1e-18))[:, None]


def blend(values, corner, where):
    """Mix values (V, c) of the three vertices `corner` (n, 3) of each triangle hit at barycentrics `where` (n, 2)."""
    u, v = where[:, :1], where[:, 1:]
    return values[corner[:, 0]] * (1 - u - v) + values[corner[:, 1]] * u + values[corner[:, 2]] * v


def rotate(vectors, matrix):
    """Return vectors (n, k) @ matrix (k, m), without BLAS, whose sums differ between machines."""
    return sum(vectors[:, k, None] * matrix[k] for k in range(vectors.shape[1]))


def look_up(table, column, row, **border):
    """Interpolate a table (H, W) or (H, W, c), float32, at columns and rows (n,): (n,) or (n, c)."""
    place = np.stack([column, row], 1).astype(np.float32)[:, None]
    parts = [place[start : start + REMAP_ROWS] for start in range(0, len(place), REMAP_ROWS)]
    return np.concatenate([cv2.remap(table, part, None, cv2.INTER_LINEAR, **border)[:, 0] for part in parts])


class TracedCar:
    """A car and its ray scene, and from which directions light reaches it and the floor around it, in all views."""

    def __init__(self, car, detail):
        self.car, self.scene = car, EmbreeScene()
        TriangleMesh(self.scene, np.ascontiguousarray(car.vertices), np.ascontiguousarray(car.faces))
        corner = car.vertices[car.faces]
        self.face_normal = unit(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])).astype(np.float32)
        self.sky = sphere(int(48 + 48 * detail))
        up = self.sky[self.sky[:, 2] > 0]
        # Light that reaches the floor, direction by direction.
        self.step = 0.07 / detail
        nx, ny = int((car.length + 3.6) / self.step), int((car.width + 3.6) / self.step)
        grid = np.stack(np.meshgrid(np.arange(nx), np.arange(ny), indexing="ij"), -1).reshape(-1, 2)
        grid = (grid - ((nx - 1) / 2, (ny - 1) / 2)) * self.step
        ground = np.append(grid, np.full((len(grid), 1), 1e-3), 1).astype(np.float32)
        self.floor_seen = (self.reached(ground, up) * up[:, 2] / up[:, 2].sum()).reshape(nx, ny, -1)
        # Light that reaches the car's vertices, weighted by the cosine; from the floor comes what got there first.
        open_floor = cv2.GaussianBlur(self.floor_seen.sum(-1), (0, 0), 1.0)
        cosine = np.maximum(rotate(car.normals, self.sky.T), 0)
        lit = self.reached(car.vertices + car.normals * 2e-3, self.sky, cosine > 0)
        self.seen = lit * cosine / (len(self.sky) / 4)
        down = np.flatnonzero(self.sky[:, 2] < 0)
        floor = car.vertices[:, None, :2] + self.sky[down, :2] * (car.vertices[:, None, 2:] / -self.sky[down, 2:])
        self.seen[:, down] *= self.sample(open_floor, floor.reshape(-1, 2)).reshape(len(car.vertices), -1)

    def sample(self, table, xy):
        """Look (n, 2) points of the car's frame up in a floor table (nx, ny), 1 outside."""
        place = np.asarray(xy / self.step + (np.array(table.shape) - 1) / 2, np.float32)
        column, row = (np.clip(place[:, k], -1, table.shape[k]) for k in (1, 0))
        return look_up(table, column, row, borderValue=1.0)

    def reached(self, points, directions, wanted=None):
        """Return 1 where a ray from points (n, 3) along directions (k, 3) leaves the car, else 0: (n, k), float32."""
        seen = np.zeros((len(points), len(directions)), np.float32)
        for k, direction in enumerate(directions):
            at = slice(None) if wanted is None else np.flatnonzero(wanted[:, k])
            start = np.ascontiguousarray(points[at])
            along = np.ascontiguousarray(np.broadcast_to(direction, start.shape))
            seen[at, k] = self.scene.run(start, along, query="OCCLUDED") != 0
        return seen

    def shoot(self, origin, direction):
        """Follow rays (n, 3) to the car, through its wheel arches.

        Returns:
            triangle (n,) or -1, distance (n,), barycentrics (n, 2).
        """
        car = self.car
        hit = self.scene.run(np.ascontiguousarray(origin), np.ascontiguousarray(direction), output=1)
        prim, distance, where = hit["primID"].copy(), hit["tfar"].copy(), np.stack([hit["u"], hit["v"]], 1)
        at = np.flatnonzero(prim >= 0)
        at = at[car.parts[car.faces[prim[at], 0]] == BODY]
        point = origin[at] + direction[at] * distance[at, None]
        hole = car.in_arch(point) & (np.abs(point[:, 1]) > 0.3 * car.width) & (self.face_normal[prim[at], 2] > -0.6)
        at, point = at[hole], point[hole]
        if len(at):
            start = point + direction[at] * 2e-3
            again = self.scene.run(np.ascontiguousarray(start), np.ascontiguousarray(direction[at]), output=1)
            distance[at] += again["tfar"] + 2e-3
            prim[at], where[at] = again["primID"], np.stack([again["u"], again["v"]], 1)
        return prim, distance, where


class PosedCar:
    """A traced car on the turntable, turned to one of the sixteen views.

    Args:
        view: 1 to 16, 22.5 degrees further each, 1 from the front.
        offset: x, y in metres and an angle: how far off its place the car was parked.
    """

    def __init__(self, room, traced, view, offset):
        self.room, self.traced, self.car = room, traced, traced.car
        heading = -np.pi / 2 - 2 * np.pi / VIEWS * (view - 1) + offset[2]
        c, s = np.cos(heading), np.sin(heading)
        self.turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)  # car frame -> world
        self.shift = (self.turn @ np.array([offset[0], offset[1], 0])).astype(np.float32)
        self.vertices = rotate(self.car.vertices, self.turn.T) + self.shift  # in the world
        sky = rotate(traced.sky, self.turn.T)
        light = room.see(np.broadcast_to(np.float32([0, 0, 0.8]), sky.shape), sky)
        up = sky[:, 2] > 0
        # Lamps hang high, and each stands between the few rays.
        falls = (0.5 * light[up].mean(1) + 0.5 * light[up].mean()) * (0.25 + sky[up, 2])
        falls = falls / (falls * sky[up, 2]).sum() * sky[up, 2].sum()
        floor = np.einsum("xyk,k->xy", traced.floor_seen, falls).astype(np.float32)
        self.floor_light = cv2.GaussianBlur(floor, (0, 0), 0.8) ** room.shadow_depth
        even = (light[up] * sky[up, 2:]).sum(0) / sky[up, 2].sum()
        self.light = np.einsum("vk,kc->vc", traced.seen, (light / even.mean()).astype(np.float32)) * 1.15

    def to_car(self, points):
        """Return points (n, 3) of the world in the car's frame."""
        return rotate(points - self.shift, self.turn)

    def light_floor(self, xy):
        """Return the fraction of light (n,) that the car leaves the floor at points (n, 2) of the world."""
        return self.traced.sample(self.floor_light, rotate(xy - self.shift[:2], self.turn[:2, :2]))

    def shade(self, direction, prim, distance, where, origin, rich=True):
        """Return the light (n, 3) that hits send back along rays of the car's frame.

        Args:
            direction, prim, distance, where, origin: As `TracedCar.shoot` takes and returns them, hits alone.
            rich: Follow reflected rays and look through glass.
        """
        car, traced = self.car, self.traced
        corner = car.faces[prim]
        point, part = origin + direction * distance[:, None], car.parts[corner[:, 0]]
        normal, coords = unit(blend(car.normals, corner, where)), blend(car.coords, corner, where)
        back = dot(traced.face_normal[prim], direction) > 0
        normal = np.where(back[:, None], -normal, normal)
        colour, mirror, metal, glass = material(car, part, point, normal, coords, back)
        normal = press(car, part, point, normal, coords)
        arriving = np.where(back[:, None], 0.12, blend(self.light, corner, where))
        if not rich:
            return colour * arriving + 0.05 * (glass > 0)[:, None]
        cosine = np.clip(-dot(direction, normal), 0, 1)
        bounce = unit(direction + 2 * cosine[:, None] * normal)
        bounce[:, 2] += 1e-4
        world = rotate(point, self.turn.T) + self.shift
        seen = self.room.see(world, rotate(bounce, self.turn.T), self.light_floor)
        onto, *_ = traced.shoot(point + normal * 4e-3, bounce)
        seen = np.minimum(np.where((onto >= 0)[:, None], car.look["paint"] * 0.35 + 0.02, seen), 6.0)
        fresnel = mirror + (1 - mirror) * (1 - cosine) ** 5 * (mirror > 0.025)
        wet = np.where(mirror > 0.025, 1.0, 0.25) * (mirror > 0)
        metal = metal[:, None]
        base = colour * ((1 - metal) * arriving + metal * (0.45 * np.minimum(seen, 1.6) + 0.6 * arriving))
        light = base * (1 - fresnel)[:, None] + seen * (fresnel * wet)[:, None]
        at = np.flatnonzero(glass > 0)
        if len(at):
            through = self.look_through(point[at], direction[at], world[at])
            light[at] += through * (glass[at] * (1 - fresnel[at]))[:, None]
        return light

    def look_through(self, point, direction, world):
        """Return the light (n, 3) behind glass at points (n, 3): seats, the far windows, the room behind."""
        car, start = self.car, point + direction * 3e-3
        prim, distance, where = self.traced.shoot(start, direction)
        through = self.room.see(world, rotate(direction, self.turn.T), self.light_floor)
        hit = np.flatnonzero(prim >= 0)
        if len(hit):
            corner, none = car.faces[prim[hit]], np.zeros(len(hit), bool)
            spot = start[hit] + direction[hit] * distance[hit, None]
            normal, coords = blend(car.normals, corner, where[hit]), blend(car.coords, corner, where[hit])
            colour, _, _, second = material(car, car.parts[corner[:, 0]], spot, normal, coords, none)
            lit = colour * (0.25 + 0.35 * np.abs(normal[:, 2:]))
            through[hit] = np.where(second[:, None] > 0, through[hit] * second[:, None], lit)
        return through
