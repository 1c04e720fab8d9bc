"""A linear transform between two patient coordinate systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from medfuse.errors import UnsupportedImage

if TYPE_CHECKING:
    from medfuse.align.warp import Warp


@dataclass(frozen=True, eq=False)
class Transform:
    """From the fixed volume's world to the moving volume's: the direction that ITK reports and that resampling pulls.

    Args:
        moving_from_fixed: (4, 4) float64 in LPS mm: ``point_in_moving = moving_from_fixed @ (x, y, z, 1)``.

    Raises:
        ValueError: Not an invertible, affine (4, 4) matrix.
    """

    moving_from_fixed: NDArray[np.float64]

    def __post_init__(self) -> None:
        matrix = np.array(self.moving_from_fixed, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.array_equal(matrix[3], (0, 0, 0, 1)) or not np.isfinite(matrix).all():
            raise ValueError(f"expected a finite (4, 4) matrix with last row 0 0 0 1, got {matrix.tolist()}")
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise ValueError("expected an invertible matrix, got one that flattens space")
        matrix.setflags(write=False)
        object.__setattr__(self, "moving_from_fixed", matrix)

    @classmethod
    def identity(cls) -> Transform:
        """Both worlds are one."""
        return cls(np.eye(4))

    def inverse(self) -> Transform:
        """From the moving volume's world to the fixed one's."""
        matrix = np.asarray(np.linalg.inv(self.moving_from_fixed), dtype=np.float64)
        matrix[3] = (0, 0, 0, 1)
        return Transform(matrix)

    def apply(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Points (N, 3) of the fixed world, in LPS mm, in the moving world."""
        matrix = self.moving_from_fixed
        points: NDArray[np.float64] = np.asarray(points_mm, dtype=np.float64) @ matrix[:3, :3].T
        return points + matrix[:3, 3]

    def distance_mm(self, other: Transform | Warp, points_mm: ArrayLike) -> NDArray[np.float64]:
        """How far apart two transforms put the same points (N, 3); N distances in mm."""
        distance: NDArray[np.float64] = np.linalg.norm(self.apply(points_mm) - other.apply(points_mm), axis=1)
        return distance

    @property
    def rotation_degrees(self) -> float:
        """Angle of the rotation in it, 0 to 180; scale and shear are left out by the polar decomposition."""
        u, _, v = np.linalg.svd(self.moving_from_fixed[:3, :3])
        rotation = u @ v
        return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))

    def to_itk(self) -> sitk.AffineTransform:
        """The same as a SimpleITK transform."""
        itk = sitk.AffineTransform(3)
        itk.SetMatrix(self.moving_from_fixed[:3, :3].ravel().tolist())
        itk.SetTranslation(self.moving_from_fixed[:3, 3].tolist())
        return itk

    @classmethod
    def from_itk(cls, itk: sitk.Transform) -> Transform:
        """The matrix of any linear SimpleITK transform, whatever its centre and parts.

        Raises:
            UnsupportedImage: The transform is not 3-D and linear, or flattens space.
        """
        if itk.GetDimension() != 3 or not itk.IsLinear():
            raise UnsupportedImage(
                f"expected a linear 3-D transform, found {itk.GetName()} in {itk.GetDimension()} dimensions",
                "Give a rigid or affine transform",
            )
        matrix = np.eye(4)
        whole = itk.Downcast()
        if isinstance(whole, sitk.AffineTransform) and not any(whole.GetCenter()):  # its own numbers, to the last bit
            matrix[:3, :3] = np.reshape(whole.GetMatrix(), (3, 3))
            matrix[:3, 3] = whole.GetTranslation()
        else:
            origin = np.array(itk.TransformPoint((0.0, 0.0, 0.0)))
            matrix[:3, :3] = np.stack([itk.TransformPoint(tuple(axis)) - origin for axis in np.eye(3).tolist()], axis=1)
            matrix[:3, 3] = origin
        try:
            return cls(matrix)
        except ValueError as error:
            raise UnsupportedImage(
                "expected a transform that can be inverted, found one that flattens space",
                "Check the numbers in its file",
            ) from error
