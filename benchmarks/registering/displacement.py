"""Known rigid displacements of a volume: its grid is moved, its voxels stay, so that the truth is exact."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medfuse.align import Transform
from medfuse.grid import Grid
from medfuse.volume import Volume

MOST_DEGREES = 40.0
MOST_MM = 60.0
#: One in so many also lies the other way round: a half turn about the patient's x, y or z axis, in turn (head first
#: against feet first, supine against prone).
HALF_TURN_EVERY = 10
#: Whatever frame of reference the moving volume had, displaced it is in this one.
FRAME = "2.25.1"


@dataclass(frozen=True, eq=False)
class Displacement:
    """A rigid motion of the moving volume's world.

    Args:
        displaced_from_moving: (4, 4) in LPS mm.
        degrees: Angle of the random rotation, 0 to `MOST_DEGREES`, without the half turn.
        shift_mm: How far the middle of the volume goes, 0 to `MOST_MM`.
        half_turn: Patient axis of the half turn, "x", "y" or "z"; "" where there is none.
    """

    displaced_from_moving: NDArray[np.float64]
    degrees: float
    shift_mm: float
    half_turn: str

    def moved(self, volume: Volume) -> Volume:
        """The same voxels elsewhere, without header, history and frame of reference."""
        matrix = self.displaced_from_moving @ volume.grid.lps_from_index
        return Volume(volume.array, Grid(volume.grid.shape, matrix, FRAME), volume.modality, volume.unit)

    def truth(self, moving_from_fixed: Transform) -> Transform:
        """From the fixed world to the displaced one."""
        return Transform(self.displaced_from_moving @ moving_from_fixed.moving_from_fixed)


def displacement(name: str, index: int, seed: int, center_mm: NDArray[np.float64]) -> Displacement:
    """The displacement number `index` of a case: the same for every method, run and machine.

    Args:
        name: The case's.
        index: From 0.
        seed: Of the whole benchmark.
        center_mm: LPS mm, what the rotation is about.

    Rotation axis and direction of the shift are uniform on the sphere, angle and length uniform from 0 to the most.
    """
    rng = np.random.default_rng([seed, index, zlib.crc32(name.encode())])
    axis, direction = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
    degrees, shift_mm = rng.uniform(0, (MOST_DEGREES, MOST_MM)).tolist()
    rotation = Rotation.from_rotvec(degrees * axis, degrees=True)
    half_turn = "xyz"[index // HALF_TURN_EVERY % 3] if index % HALF_TURN_EVERY == HALF_TURN_EVERY - 1 else ""
    if half_turn:
        rotation = rotation * Rotation.from_euler(half_turn, 180, degrees=True)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation.as_matrix()
    matrix[:3, 3] = center_mm + shift_mm * direction - matrix[:3, :3] @ center_mm
    return Displacement(matrix, degrees, shift_mm, half_turn)


def stripped(volume: Volume) -> Volume:
    """A volume without its header: what a registration may know is voxels, grid, modality and unit."""
    return Volume(volume.array, replace(volume.grid, frame_of_reference=None), volume.modality, volume.unit)
