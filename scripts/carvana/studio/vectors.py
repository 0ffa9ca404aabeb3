"""Arithmetic on many vectors at once, and tables that are read between their cells."""

import cv2
import numpy as np

REMAP_ROWS = 30_000  # OpenCV's remap takes fewer than 32,768 rows at a time


def dot(a, b):
    """Return the products (n,) of vectors (n, 3); three columns added are faster than a sum over rows of three."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def unit(vectors):
    """Return vectors (n, 3) scaled to length 1."""
    return vectors / np.sqrt(np.maximum(dot(vectors, vectors), 1e-18))[:, None]


def rotate(vectors, matrix):
    """Return vectors (n, k) @ matrix (k, m), without BLAS, whose sums differ between machines."""
    return np.einsum("nk,km->nm", vectors, matrix)


def sphere(n):
    """Return n directions (n, 3), float32, evenly spread over the sphere."""
    z = 1 - (2 * np.arange(n) + 1) / n
    turn = np.arange(n) * np.pi * (3 - np.sqrt(5))
    return np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], 1).astype(np.float32)


def look_up(table, column, row, **border):
    """Interpolate a table (H, W) or (H, W, c), float32, at columns and rows (n,): (n,) or (n, c)."""
    place = np.stack([column, row], 1).astype(np.float32)[:, None]
    parts = np.split(place, range(REMAP_ROWS, len(place), REMAP_ROWS))
    return np.concatenate([cv2.remap(table, part, None, cv2.INTER_LINEAR, **border)[:, 0] for part in parts])
