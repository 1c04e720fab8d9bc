"""A small body with a hot ball in it, drawn from a formula on any grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from medfuse.grid import Grid
from medfuse.volume import Modality, Unit, Volume

#: Middle of the body and of the ball, LPS mm.
BODY, BALL = (34.0, 2.0, 48.0), (40.0, -2.0, 52.0)
UNITS = {Modality.MR: (Unit.ARBITRARY, 900), Modality.PT: (Unit.SUV, 8), Modality.CT: (Unit.HU, 300)}


def phantom(modality: Modality, shape: tuple[int, int, int], frame: str | None = None) -> Volume:
    """The body on a grid of that shape (K, J, I), which always covers the same block of 36 × 45 × 48 mm."""
    spacing = np.array((36.0, 45.0, 48.0)) / shape
    grid = Grid.from_axes(shape, (10.0, -20.0, 30.0) + spacing[::-1] / 2, spacing, np.eye(3)[:, ::-1], frame)
    points = grid.points_mm(np.indices(shape).reshape(3, -1).T)
    body = np.linalg.norm((points - BODY) / (20, 18, 15), axis=1) < 1
    ball = np.linalg.norm(points - BALL, axis=1) < 6
    values = body * (np.where(ball, 1.0, 0.3) + 0.1 * (points[:, 0] > BODY[0]) + 0.1 * (points[:, 1] > BODY[1] + 5))
    unit, scale = UNITS[modality]
    return Volume((values.reshape(shape) * scale).astype(np.float32), grid, modality, unit)


def moved(volume: Volume, shift_mm: ArrayLike, frame: str | None = None) -> Volume:
    """The same voxels elsewhere in the world."""
    grid = volume.grid
    origin = grid.origin_mm + np.asarray(shift_mm)
    return replace(volume, grid=Grid.from_axes(grid.shape, origin, grid.spacing_mm, grid.direction, frame))
