"""Geometry without voxels: where the voxels of a volume lie in the patient.

An index is (slice k, row j, column i), the order of numpy arrays made from DICOM stacks and of SimpleITK arrays. The
world is DICOM's patient coordinate system: millimetres, +x to the patient's Left, +y to the Posterior, +z to the
Superior (PS3.3 section C.7.6.2.1.1), "LPS". Index (0, 0, 0) is the *centre* of the first voxel. Matrices are named by
both ends, so that neighbours cancel: ``index_from_lps @ lps_from_index``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfuse.errors import GeometryError

#: Largest cosine between two axes of a grid that still counts as a right angle (0.06°, 0.3 mm over a 300 mm stack).
ORTHOGONAL_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid of voxels in the patient.

    Args:
        shape: Number of (slices K, rows J, columns I), each at least 1.
        lps_from_index: (4, 4) float64 matrix from homogeneous index (k, j, i, 1) to LPS millimetres.
        frame_of_reference: DICOM Frame of Reference UID, or None where the file states none. Two grids with the same
            UID share one coordinate system.

    Raises:
        ValueError: The shape or the matrix has the wrong form.
        GeometryError: The axes are not finite, not independent, or not at right angles to one another.
    """

    shape: tuple[int, int, int]
    lps_from_index: NDArray[np.float64]
    frame_of_reference: str | None = field(default=None)

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"expected a shape of three positive numbers (K, J, I), got {self.shape}")
        matrix = np.array(self.lps_from_index, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.array_equal(matrix[3], (0, 0, 0, 1)):
            raise ValueError(f"expected a (4, 4) matrix with last row 0 0 0 1, got {matrix.tolist()}")
        lengths: NDArray[np.float64] = np.linalg.norm(matrix[:3, :3], axis=0)
        if not np.isfinite(matrix).all() or lengths.min() <= 0:
            raise GeometryError(
                f"expected three axes of finite, positive length, found voxel sizes {lengths.tolist()} mm",
                "Check the spacing and orientation in the file's header",
            )
        unit = matrix[:3, :3] / lengths
        skew = np.abs(unit.T @ unit - np.eye(3)).max()
        if skew > ORTHOGONAL_TOLERANCE:
            raise GeometryError(
                f"expected axes at right angles, found two that are {np.degrees(np.arcsin(min(skew, 1))):.2f}° off",
                "Resample the tilted or sheared stack to a rectangular grid first",
            )
        matrix.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "lps_from_index", matrix)

    @classmethod
    def from_axes(
        cls,
        shape: tuple[int, int, int],
        origin_mm: ArrayLike,
        spacing_mm: ArrayLike,
        direction: ArrayLike,
        frame_of_reference: str | None = None,
    ) -> Grid:
        """Build a grid from origin, spacing and direction.

        Args:
            shape: (K, J, I).
            origin_mm: LPS position of the centre of voxel (0, 0, 0), 3 numbers.
            spacing_mm: Distance between neighbours along (k, j, i).
            direction: (3, 3); column n is the LPS unit vector along index axis n, in the order k, j, i.
            frame_of_reference: DICOM Frame of Reference UID or None.
        """
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(direction, dtype=np.float64) * np.asarray(spacing_mm, dtype=np.float64)
        matrix[:3, 3] = origin_mm
        return cls(shape, matrix, frame_of_reference)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxel centres along (k, j, i)."""
        k, j, i = np.linalg.norm(self.lps_from_index[:3, :3], axis=0).tolist()
        return k, j, i

    @property
    def direction(self) -> NDArray[np.float64]:
        """(3, 3); column n is the LPS unit vector along index axis n, in the order k, j, i."""
        direction: NDArray[np.float64] = self.lps_from_index[:3, :3] / np.array(self.spacing_mm)
        return direction

    @property
    def origin_mm(self) -> NDArray[np.float64]:
        """LPS position in mm of the centre of voxel (0, 0, 0), shape (3,)."""
        return self.lps_from_index[:3, 3]

    @property
    def index_from_lps(self) -> NDArray[np.float64]:
        """(4, 4) matrix from LPS millimetres to index; the inverse of `lps_from_index`."""
        return np.asarray(np.linalg.inv(self.lps_from_index), dtype=np.float64)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Size in mm along (k, j, i), from outer face to outer face."""
        k, j, i = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return k, j, i

    @property
    def center_mm(self) -> NDArray[np.float64]:
        """LPS position in mm of the middle of the grid, shape (3,)."""
        middle: NDArray[np.float64] = self.points_mm([(np.array(self.shape) - 1) / 2])[0]
        return middle

    @property
    def corners_mm(self) -> NDArray[np.float64]:
        """LPS positions in mm of the centres of the eight corner voxels, shape (8, 3)."""
        last = np.array(self.shape) - 1
        return self.points_mm(np.stack(np.meshgrid(*[(0, n) for n in last], indexing="ij"), -1).reshape(8, 3))

    def points_mm(self, index: Sequence[ArrayLike] | ArrayLike) -> NDArray[np.float64]:
        """LPS positions in mm, shape (N, 3), of indices (k, j, i), shape (N, 3); fractions are allowed.

        >>> grid = Grid.from_axes((2, 3, 4), (10, 20, 30), (5, 2, 1), np.eye(3)[:, ::-1])
        >>> grid.points_mm([(1, 0, 2)]).tolist()
        [[12.0, 20.0, 35.0]]
        """
        points: NDArray[np.float64] = np.asarray(index, dtype=np.float64) @ self.lps_from_index[:3, :3].T
        return points + self.origin_mm

    def spread_mm(self, most: int) -> NDArray[np.float64]:
        """LPS positions in mm, shape (N, 3), of points all over the grid, at most so many along each axis."""
        axes = [np.linspace(0, n - 1, min(n, most)) for n in self.shape]
        return self.points_mm(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))

    def index_of(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Fractional indices (k, j, i), shape (N, 3), of LPS positions in mm, shape (N, 3)."""
        inverse = self.index_from_lps
        index: NDArray[np.float64] = np.asarray(points_mm, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]
        return index

    def contains(self, points_mm: ArrayLike) -> NDArray[np.bool_]:
        """Which of the points (N, 3) in LPS mm lie inside a voxel, (N,)."""
        index = self.index_of(points_mm)
        return np.asarray(((index >= -0.5) & (index <= np.array(self.shape) - 0.5)).all(axis=1))

    def matches(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have one shape and no corner lies farther than `tolerance_mm` from its twin."""
        if self.shape != other.shape:
            return False
        return bool(np.linalg.norm(self.corners_mm - other.corners_mm, axis=1).max() <= tolerance_mm)

    def with_spacing(self, spacing_mm: float | tuple[float, float, float]) -> Grid:
        """A grid over the same block of space with another voxel size.

        The outer face at index 0 stays where it is; the far side is extended to whole voxels, so nothing is cut off.

        Args:
            spacing_mm: One number for all axes, or (k, j, i).

        Raises:
            ValueError: A spacing is not positive.
        """
        new = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (3,))
        if not (np.isfinite(new).all() and new.min() > 0):
            raise ValueError(f"expected a positive spacing in mm, got {spacing_mm}")
        k, j, i = np.maximum(1, np.ceil(np.array(self.extent_mm) / new - 1e-6)).astype(int)
        first_face = self.points_mm([(-0.5, -0.5, -0.5)])[0]
        origin = first_face + self.direction @ (new / 2)
        return Grid.from_axes((int(k), int(j), int(i)), origin, new, self.direction, self.frame_of_reference)
