"""A synthetic car in the room's light: rays by Embree, ambient occlusion, shading of paint and glass."""

import cv2
import numpy as np

from carvana.studio.car import BODY
from carvana.studio.material import Surface
from carvana.studio.vectors import dot, look_up, rotate, sphere, unit

try:
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene
except ImportError:  # scripts/studio.py says in one sentence how to install it
    EmbreeScene = None

VIEWS = 16


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
        ground = (np.indices((nx, ny, 1)).reshape(3, -1).T - ((nx - 1) / 2, (ny - 1) / 2, 0)) * self.step + (0, 0, 1e-3)
        slant = np.tile(up[:, 2] / up[:, 2].sum(), (len(ground), 1))
        self.floor_seen = self.weigh(np.float32(ground), up, slant).reshape(nx, ny, -1)
        # Light that reaches the car's vertices, weighted by the cosine; from the floor comes what got there first.
        cosine = np.maximum(rotate(car.normals, self.sky.T), 0) / (len(self.sky) / 4)
        self.seen = self.weigh(car.vertices + car.normals * 2e-3, self.sky, cosine)
        down = np.flatnonzero(self.sky[:, 2] < 0)
        floor = car.vertices[:, None, :2] + self.sky[down, :2] * (car.vertices[:, None, 2:] / -self.sky[down, 2:])
        open_floor = cv2.GaussianBlur(self.floor_seen.sum(-1), (0, 0), 1.0)
        self.seen[:, down] *= self.sample(open_floor, floor.reshape(-1, 2)).reshape(len(car.vertices), -1)

    def sample(self, table, xy):
        """Look (n, 2) points of the car's frame up in a floor table (nx, ny), 1 outside."""
        place = np.asarray(xy / self.step + (np.array(table.shape) - 1) / 2, np.float32)
        column, row = (np.clip(place[:, k], -1, table.shape[k]) for k in (1, 0))
        return look_up(table, column, row, borderValue=1.0)

    def weigh(self, points, directions, weights):
        """Keep weights (n, k) where a ray from points (n, 3) along directions (k, 3) leaves the car, else 0."""
        way, at = np.nonzero(weights.T)
        weights[at, way] *= self.scene.run(points[at], directions[way], query="OCCLUDED") != 0
        return weights

    def shoot(self, origin, direction):
        """Follow rays (n, 3) to the mesh: triangle (n,) or -1, point (n, 3), barycentrics (n, 2)."""
        hit = self.scene.run(np.ascontiguousarray(origin), np.ascontiguousarray(direction), output=1)
        return hit["primID"], origin + direction * hit["tfar"][:, None], np.stack([hit["u"], hit["v"]], 1)

    def shoot_through_arches(self, origin, direction):
        """Follow rays as `shoot` does, but through the body where a wheel arch is cut out of it."""
        car, (prim, point, where) = self.car, self.shoot(origin, direction)
        at = np.flatnonzero(prim >= 0)
        at = at[car.parts[car.faces[prim[at], 0]] == BODY]
        beside = (np.abs(point[at, 1]) > 0.3 * car.width) & (self.face_normal[prim[at], 2] > -0.6)
        at = at[beside & car.in_arch(point[at])]
        prim[at], point[at], where[at] = self.shoot(point[at] + direction[at] * 2e-3, direction[at])
        return prim, point, where

    def meet(self, origin, direction, behind=False):
        """Return which rays (n, 3) hit the car (h,), and the surface there; `behind` takes no side for an inside."""
        prim, point, where = self.shoot_through_arches(origin, direction)
        at = np.flatnonzero(prim >= 0)
        prim = prim[at]
        back = (dot(self.face_normal[prim], direction[at]) > 0) & (not behind)
        return at, Surface(self.car, self.car.faces[prim], where[at], point[at], back)


class PosedCar:
    """A traced car on the turntable, turned to one of the sixteen views.

    Args:
        view: 1 to 16, 22.5 degrees further each, 1 from the front.
        offset: x, y in metres and an angle: how far off its place the car was parked.
    """

    def __init__(self, room, traced, view, offset):
        self.room, self.traced = room, traced
        heading = -np.pi / 2 - 2 * np.pi / VIEWS * (view - 1) + offset[2]
        c, s = np.cos(heading), np.sin(heading)
        self.turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)  # car frame -> world
        self.shift = (self.turn @ np.array([offset[0], offset[1], 0])).astype(np.float32)
        self.vertices = self.to_world(traced.car.vertices)
        sky = rotate(traced.sky, self.turn.T)
        light = room.see(np.float32([0, 0, 0.8]), sky)
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

    def to_world(self, points):
        """Return points (n, 3) of the car's frame in the world."""
        return rotate(points, self.turn.T) + self.shift

    def light_floor(self, xy):
        """Return the fraction of light (n,) that the car leaves the floor at points (n, 2) of the world."""
        return self.traced.sample(self.floor_light, rotate(xy - self.shift[:2], self.turn[:2, :2]))

    def see_room(self, point, direction):
        """Return the light (n, 3) that the room, in the car's shadow, sends along rays (n, 3) of the car's frame."""
        return self.room.see(self.to_world(point), rotate(direction, self.turn.T), self.light_floor)

    def trace(self, origin, direction, rich=True):
        """Follow rays (n, 3) of the car's frame to the car.

        Args:
            rich: Follow reflected rays and look through glass.

        Returns:
            Indices (h,) of the rays that hit the car, the light (h, 3) that they bring, and from where (h, 3).
        """
        at, surface = self.traced.meet(origin, direction)
        direction, point, colour, mirror = direction[at], surface.point, surface.colour, surface.mirror
        normal = surface.press()
        arriving = np.where(surface.back[:, None], 0.12, surface.blend(self.light))
        if not rich:
            return at, colour * arriving + 0.05 * (surface.glass > 0)[:, None], point
        cosine = np.clip(-dot(direction, normal), 0, 1)
        bounce = unit(direction + 2 * cosine[:, None] * normal)
        bounce[:, 2] += 1e-4
        onto = self.traced.shoot_through_arches(point + normal * 4e-3, bounce)[0] >= 0
        itself = self.traced.car.look["paint"] * 0.35 + 0.02
        seen = np.minimum(np.where(onto[:, None], itself, self.see_room(point, bounce)), 6.0)
        fresnel = mirror + (1 - mirror) * (1 - cosine) ** 5 * (mirror > 0.025)
        wet = np.where(mirror > 0.025, 1.0, 0.25) * (mirror > 0)
        metal = surface.metal[:, None]
        base = colour * ((1 - metal) * arriving + metal * (0.45 * np.minimum(seen, 1.6) + 0.6 * arriving))
        light = base * (1 - fresnel)[:, None] + seen * (fresnel * wet)[:, None]
        glass = np.flatnonzero(surface.glass > 0)
        clear = surface.glass[glass] * (1 - fresnel[glass])
        light[glass] += self.look_through(point[glass], direction[glass]) * clear[:, None]
        return at, light, point

    def look_through(self, point, direction):
        """Return the light (n, 3) behind glass at points (n, 3): seats, the far windows, the room behind."""
        through = self.see_room(point, direction)
        at, surface = self.traced.meet(point + direction * 3e-3, direction, behind=True)
        lit = surface.colour * (0.25 + 0.35 * np.abs(surface.normal[:, 2:]))
        glass = surface.glass[:, None]
        through[at] = np.where(glass > 0, through[at] * glass, lit)
        return through
