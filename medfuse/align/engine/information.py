"""Normalized mutual information of two volumes at a transform, and its slope.

(H(fixed) + H(moving)) / H(fixed, moving) of the joint histogram where the two overlap (Studholme, Hill and Hawkes,
Pattern Recognition 32(1), 1999), from 1 (independent) to 2 (one follows from the other). The moving values enter the
histogram through cubic B-splines, which makes it differentiable (Thévenaz and Unser, IEEE Trans. Image Process. 9(12),
2000); the fixed ones fall into one bin each. The points are drawn at random inside the fixed volume, between its
voxels: on the voxels themselves, two grids of one spacing favour alignments in which they coincide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from medfuse.align.engine.pyramid import Level

BINS = 32
#: With fewer points inside the moving volume than this share, or this many, there is nothing to compare.
LEAST_SHARE, LEAST_POINTS = 0.15, 200
#: Where the fixed volume is larger, at most so many times as many points are drawn, to have enough where they meet.
MOST_ROOM = 20
SEED = 2212

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


class Information:
    """The measure for two volumes at one resolution.

    Args:
        fixed: The volume in which points are drawn.
        moving: The volume that is read at the transformed points.
        points: How many.
        seed: Of the draw.
    """

    def __init__(self, fixed: Level, moving: Level, points: int, seed: int = SEED) -> None:
        rng = np.random.default_rng(seed)
        shape = np.array(fixed.array.shape)
        index = rng.random((points, 3)) * (shape - 1e-3) - 0.5
        values = scipy.ndimage.map_coordinates(fixed.array, index.T, order=1, mode="nearest")
        self.points_mm: Floats = fixed.grid.points_mm(index)
        self.fixed_bin = np.rint(np.clip(values, 0, 1) * (BINS - 1)).astype(np.int32)
        self.moving = np.pad(np.clip(moving.array, 0, 1) * np.float32(BINS - 1), 1, mode="edge")
        self.index_from_lps = moving.grid.index_from_lps
        self.shape = np.array(moving.array.shape)

    def part(self, chosen: NDArray[np.bool_]) -> Information:
        """The same measure over some of the points."""
        part = object.__new__(Information)
        part.__dict__.update(self.__dict__, points_mm=self.points_mm[chosen], fixed_bin=self.fixed_bin[chosen])
        return part

    def meeting(self, matrix: Floats) -> Information:
        """The same measure over the points that a transform (4, 4) puts inside the moving volume."""
        return self.part(self._inside(self.index(matrix)))

    def share_inside(self, matrix: Floats) -> float:
        """Share of the points that a transform (4, 4) puts inside the moving volume."""
        return float(self._inside(self.index(matrix)).mean())

    def index(self, matrix: Floats) -> Floats:
        """Where a transform (4, 4) puts the points, as indices of the moving volume, (N, 3)."""
        index_from_fixed = self.index_from_lps @ matrix
        index: Floats = self.points_mm @ index_from_fixed[:3, :3].T + index_from_fixed[:3, 3]
        return index

    def __call__(self, matrix: Floats) -> tuple[float, Floats]:
        """The measure at a transform (4, 4) from fixed to moving mm, and its slope by the matrix' (3, 4) entries."""
        value, inside, by_index = self.at(self.index(matrix))
        by_mm = by_index @ self.index_from_lps[:3, :3].astype(np.float32)
        shifts = by_mm.sum(axis=0, dtype=np.float64)[:, None]
        return value, np.concatenate([by_mm.T @ self.points_mm[inside], shifts], axis=1)

    def at(self, index: Floats) -> tuple[float, NDArray[np.intp], Singles]:
        """The measure where the points lie at indices (N, 3) of the moving volume.

        Returns:
            The measure, which of the points lie inside (M,), and the slope by the index of each of these (M, 3). Where
            too little overlaps it is 1, and no point counts.
        """
        inside = np.flatnonzero(self._inside(index))
        if len(inside) < max(LEAST_POINTS, LEAST_SHARE * len(self.points_mm)):
            return 1.0, inside[:0], np.zeros((0, 3), np.float32)
        values, by_index = _read(self.moving, index[inside].astype(np.float32))
        value, by_value = _normalized(self.fixed_bin[inside], values)
        return value, inside, by_index * by_value[:, None]

    def _inside(self, index: Floats) -> NDArray[np.bool_]:
        return np.asarray(((index >= -0.5) & (index < self.shape - 0.5)).all(axis=1))


def _read(padded: Singles, index: Singles) -> tuple[Singles, Singles]:
    """Values (N,) of a volume padded by one voxel, read linearly between voxels, and their slopes (N, 3)."""
    index = index + np.float32(1)
    corner = index.astype(np.int32)
    z, y, x = (index - corner).T
    _, rows, columns = padded.shape
    first = (corner[:, 0] * rows + corner[:, 1]) * columns + corner[:, 2]
    flat = padded.ravel()
    c000, c001 = flat[first], flat[first + 1]
    c010, c011 = flat[first + columns], flat[first + columns + 1]
    first = first + rows * columns
    c100, c101 = flat[first], flat[first + 1]
    c110, c111 = flat[first + columns], flat[first + columns + 1]
    x00, x01, x10, x11 = c001 - c000, c011 - c010, c101 - c100, c111 - c110
    v00, v01, v10, v11 = c000 + x00 * x, c010 + x01 * x, c100 + x10 * x, c110 + x11 * x
    y0, y1 = v01 - v00, v11 - v10
    v0, v1 = v00 + y0 * y, v10 + y1 * y
    x0, x1 = x00 + (x01 - x00) * y, x10 + (x11 - x10) * y
    return v0 + (v1 - v0) * z, np.stack([v1 - v0, y0 + (y1 - y0) * z, x0 + (x1 - x0) * z], axis=1)


def _normalized(fixed_bin: NDArray[np.int32], values: Singles) -> tuple[float, Singles]:
    """Normalized mutual information of bins (N,) with values (N,), 0 to BINS - 1, and its slope by each value."""
    width = BINS + 3
    lower = np.minimum(values.astype(np.int32), BINS - 2)
    weights, slopes = _spline(values - lower.astype(np.float32))
    cell = fixed_bin * width + lower
    joint = np.zeros(BINS * width)
    for step, weight in enumerate(weights):
        joint += np.bincount(cell + step, weight, BINS * width)[: BINS * width]
    joint = joint.reshape(BINS, width) / len(values)
    moving, fixed = joint.sum(axis=0), joint.sum(axis=1)
    log_joint, log_moving = np.log(joint + 1e-12), np.log(moving + 1e-12)
    together = -float((joint * log_joint).sum())
    apart = -float((moving * log_moving).sum() + (fixed * np.log(fixed + 1e-12)).sum())
    if together < 1e-6:
        return 1.0, np.zeros_like(values)
    # d(apart/together), where d(apart) = -(log moving + 1) and d(together) = -(log joint + 1) a cell.
    by_cell = ((log_joint + 1) * apart - (log_moving + 1) * together).ravel() / (together**2 * len(values))
    by_cell = by_cell.astype(np.float32)
    slope = by_cell[cell] * slopes[0]
    for step in (1, 2, 3):
        slope += by_cell[cell + step] * slopes[step]
    return apart / together, slope


def _spline(offset: Singles) -> tuple[tuple[NDArray[Any], ...], tuple[NDArray[Any], ...]]:
    """Weights (N,) of the four bins around a value that lies `offset` past the second, and their slopes."""
    other = 1 - offset
    first, last = other**3 / 6, offset**3 / 6
    second = np.float32(2 / 3) - offset**2 * (2 - offset) / 2
    weights = (first, second, 1 - first - second - last, last)
    by_first, by_last = -(other**2) / 2, offset**2 / 2
    by_second = offset * (np.float32(1.5) * offset - 2)
    return weights, (by_first, by_second, -by_first - by_second - by_last, by_last)
