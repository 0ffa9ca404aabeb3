"""Solids of which the studio's cars are made: lofts, rounded boxes, solids of revolution."""

import numpy as np

LID = np.cos(np.linspace(0, np.pi / 2, 11))[1:]  # rings that close a loft on the middle line, as fractions of its width


def smooth_curve(x, y, blur):
    """Return a function through points (n,), whose x fall, and whose corners are rounded over about `blur` metres."""
    grid = np.linspace(x[-1] - 0.6, x[0] + 0.6, 600)
    step = grid[1] - grid[0]
    kernel = np.exp(-0.5 * (np.arange(-60, 61) * step / blur) ** 2)
    line = np.interp(grid, x[::-1], y[::-1])
    table = np.convolve(np.pad(line, 60, mode="edge"), kernel / kernel.sum(), mode="valid")
    return lambda at: np.interp(at, grid, table)


def outline(aspect, front, rear, count):
    """Sample half of a superellipse seen from above, evenly along its length, from the front centre to the rear centre.

    Args:
        aspect: Half length over half width.
        front, rear: Exponents; 2 is an ellipse, 6 nearly a box.

    Returns:
        (count, 2) x and y, both within [-1, 1] (y >= 0), and the fractions of the length at which the two corners lie.
    """
    angle = np.linspace(0, np.pi, 4001)
    power = 2 / np.where(angle < np.pi / 2, front, rear)
    x, y = np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power, np.abs(np.sin(angle)) ** power
    fraction = np.append(0, np.cumsum(np.hypot(np.diff(x) * aspect, np.diff(y))))
    fraction /= fraction[-1]
    even = np.linspace(0, 1, count)
    points = np.stack([np.interp(even, fraction, x), np.interp(even, fraction, y)], 1)
    return points, (fraction[1000], fraction[3000])


def close_top(ring, shape, bulge, sharp):
    """Return rings (10, n, 3) that close a loft above its last (n, 3), rising by `bulge` towards the middle line."""
    ends = np.clip((1 - np.abs(shape[:, 0])) * sharp, 0, 1)
    rise = bulge * (1 - LID[:, None] ** 2) * ends
    x, y, z = ring.T
    return np.stack([np.broadcast_to(x, rise.shape), y * LID[:, None], z + rise], -1)


def join_rings(k, n):
    """Return the triangles (2 (k - 1) n, 3) between `k` closed rings of `n` vertices, numbered ring by ring."""
    corner = np.arange(k * n).reshape(k, n)
    a, b, c, d = corner[:-1], np.roll(corner, -1, 1)[:-1], corner[1:], np.roll(corner, -1, 1)[1:]
    return np.concatenate([np.stack([a, b, d], -1).reshape(-1, 3), np.stack([a, d, c], -1).reshape(-1, 3)])


def loft(rings, heights):
    """Join half outlines, mirrored to the other side, to a surface whose triangles face outwards.

    Args:
        rings: (k, n, 3) from the foot upwards, each from the front centre along the left side to the rear centre.
        heights: (k,) surface coordinate of each ring.

    Returns:
        vertices, faces, coords as `Car.add` takes them.
    """
    rings = np.concatenate([rings, rings[:, -2:0:-1] * (1, -1, 1)], 1)
    k, n, _ = rings.shape
    half = n // 2 + 1
    fraction = np.abs((np.arange(n) + half - 1) % n - (half - 1)) / (half - 1)
    coords = np.stack([np.repeat(heights, n), np.tile(fraction, k)], 1)
    return rings.reshape(-1, 3), join_rings(k, n), coords


def blob(centre, radii, hard=0.35, n=12):
    """Return vertices and faces of a rounded box: a superellipsoid, `hard` from 1 (ellipsoid) towards 0 (box)."""
    latitude, longitude = np.linspace(-np.pi / 2, np.pi / 2, n // 2 + 3), np.arange(n) * 2 * np.pi / n + np.pi / n
    latitude, longitude = np.meshgrid(latitude, longitude, indexing="ij")
    power = lambda value: np.sign(value) * np.abs(value) ** hard
    ring = np.maximum(power(np.cos(latitude)), 1e-3)
    points = np.stack([ring * power(np.cos(longitude)), ring * power(np.sin(longitude)), power(np.sin(latitude))], -1)
    return points.reshape(-1, 3) * radii + centre, join_rings(*latitude.shape)


def lathe(profile, centre, side, n):
    """Return vertices and faces of a profile (k, 2), radius and distance outwards, about an axle; `side` is 1 or -1."""
    angle = np.arange(n) * 2 * np.pi / n
    radius, out = profile[:, :1], profile[:, 1:]
    points = np.stack([radius * np.cos(angle), np.repeat(out * side, n, 1), radius * np.sin(angle)], -1)
    faces = join_rings(len(profile), n)
    return points.reshape(-1, 3) + centre, faces if side > 0 else faces[:, ::-1]
