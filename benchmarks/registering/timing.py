"""The pair that is timed: the digital head's CT and MR, each sampled to 256 × 256 × 100 voxels."""

from __future__ import annotations

import numpy as np

from medfuse.align import resample
from medfuse.grid import Grid
from medfuse.volume import Volume

TIMING = "timing/ct-mr"
SHAPE = (100, 256, 256)


def sampled(volume: Volume) -> Volume:
    """The volume's block of space in `SHAPE` voxels."""
    grid = volume.grid
    spacing = np.array(grid.extent_mm) / SHAPE
    origin = grid.points_mm([(-0.5, -0.5, -0.5)])[0] + grid.direction @ (spacing / 2)
    return resample(volume, Grid.from_axes(SHAPE, origin, spacing, grid.direction, grid.frame_of_reference))
