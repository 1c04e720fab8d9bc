"""A volume at several resolutions, as arrays that know where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medfuse.grid import Grid
from medfuse.itk import to_grid

#: Share of the scale below which a voxel counts as dark.
DARK = 0.1


@dataclass(frozen=True, eq=False)
class Level:
    """A volume at one resolution.

    Args:
        array: (K, J, I) float32, 0 to 1.
        grid: Where it lies.
    """

    array: NDArray[np.float32]
    grid: Grid

    @classmethod
    def of(cls, image: sitk.Image) -> Level:
        """From a SimpleITK image."""
        return cls(sitk.GetArrayFromImage(image), to_grid(image))

    @property
    def body_mm(self) -> NDArray[np.float64]:
        """LPS mm of the voxels above the mean, shape (N, 3): where an error of the alignment matters."""
        return self.grid.points_mm(np.argwhere(self.array > self.array.mean()))


def levels(image: sitk.Image, sizes_mm: tuple[float, ...]) -> list[Level]:
    """The image with voxels of about each size, which must grow; axes that are coarser stay as they are."""
    found = []
    for size_mm in sizes_mm:
        image = _shrunk(image, size_mm)
        found.append(Level.of(image))
    return found


def trimmed(level: Level, margin_mm: float) -> Level:
    """Without the dark around what is bright, but for a margin."""
    bright = level.array >= DARK
    lower, upper = [], []
    for axis, size in enumerate(level.array.shape):
        others = tuple(other for other in range(3) if other != axis)
        count = bright.sum(axis=others)
        rows = np.flatnonzero(count > 0.02 * count.max())
        margin = round(margin_mm / level.grid.spacing_mm[axis])
        lower.append(max(0, int(rows[0]) - margin) if rows.size else 0)
        upper.append(min(size, int(rows[-1]) + 1 + margin) if rows.size else size)
    box = tuple(slice(*bounds) for bounds in zip(lower, upper, strict=True))
    array = level.array[box]
    index = level.grid.lps_from_index.copy()
    index[:3, 3] = level.grid.points_mm([lower])[0]
    return Level(np.ascontiguousarray(array), Grid(array.shape, index))


def cubic(image: sitk.Image, size_mm: float) -> Level:
    """The image on cubic voxels of a size, along its own axes, over the same block of space."""
    image = _shrunk(image, size_mm)
    extent = np.array(image.GetSize()) * image.GetSpacing()
    size = np.maximum(1, np.rint(extent / size_mm)).astype(int)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    middle = image.TransformContinuousIndexToPhysicalPoint(((np.array(image.GetSize()) - 1) / 2).tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(size.tolist())
    resampler.SetOutputSpacing([size_mm] * 3)
    resampler.SetOutputDirection(image.GetDirection())
    resampler.SetOutputOrigin((middle - direction @ ((size - 1) / 2 * size_mm)).tolist())
    resampler.UseNearestNeighborExtrapolatorOn()
    return Level.of(resampler.Execute(image))


def _shrunk(image: sitk.Image, size_mm: float) -> sitk.Image:
    """Averaged over whole voxels until they are about `size_mm` long, then smoothed to hide the steps."""
    spacing = np.array(image.GetSpacing())
    shrink = np.maximum(1, np.floor(size_mm / spacing + 0.25)).astype(int)
    shrink = np.minimum(shrink, np.maximum(1, np.array(image.GetSize()) // 4))
    if (shrink == 1).all():
        return image
    image = sitk.BinShrink(image, shrink.tolist())
    sigma = np.where(shrink > 1, 0.5 * np.array(image.GetSpacing()), 0)
    return sitk.DiscreteGaussian(image, (sigma**2).tolist(), maximumKernelWidth=32)
