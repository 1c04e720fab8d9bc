"""Slices that lie sheared or at uneven distances, interpolated once onto a regular grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import UnsupportedImage
from medfuse.grid import Grid


def straighten(
    slices: NDArray[np.generic], positions_mm: Sequence[NDArray[np.float64]], grid: Grid, outside: float
) -> NDArray[np.generic]:
    """Lay slices on a grid that has their orientation and pixel size, by one linear interpolation.

    A voxel's value is interpolated bilinearly in the slice below and the slice above it, at the feet of the
    perpendiculars, and linearly between the two by their distance. A linear function of position is kept exactly.
    Beside one of the two, the nearer one alone decides.

    Args:
        slices: (K, J, I), or (K, J, I, 3) for colour, in the order in which they lie along the grid's first axis.
        positions_mm: LPS position of the first pixel's centre of every slice, K of (3,).
        grid: The grid to fill; its first and last slices lie in the planes of the first and last of `slices`.
        outside: What a voxel beside its nearest slice gets.

    Returns:
        The array of the grid's shape, with the type of `slices`.

    Raises:
        UnsupportedImage: A value is NaN or infinite, and would spread.
    """
    import SimpleITK as sitk

    if not np.isfinite(slices).all():
        raise UnsupportedImage(
            "expected finite values to interpolate, found NaN or infinity",
            "Give the value to put in their place with --fill-nan (in Python: fill_nan=)",
        )
    index = grid.index_of(np.array(positions_mm))
    _, rows, columns = grid.shape
    color = slices.ndim == 4

    @lru_cache(maxsize=2)
    def laid(n: int) -> NDArray[np.float64]:
        """Slice n in its plane, moved to the grid's rows and columns; NaN beside it."""
        image = sitk.GetImageFromArray(slices[n].astype(np.float64), isVector=color)
        resampler = sitk.ResampleImageFilter()
        resampler.SetSize((columns, rows))
        resampler.SetInterpolator(sitk.sitkLinear)
        resampler.SetDefaultPixelValue(np.nan)
        resampler.SetTransform(sitk.TranslationTransform(2, (-index[n, 2], -index[n, 1])))
        return np.asarray(sitk.GetArrayFromImage(resampler.Execute(image)))

    out = np.empty((*grid.shape, 3) if color else grid.shape, slices.dtype)
    for k in range(grid.shape[0]):
        above = int(np.clip(np.searchsorted(index[:, 0], k), 1, len(index) - 1))
        low, high = index[above - 1, 0], index[above, 0]
        share = float(np.clip(round((k - low) / (high - low), 9), 0, 1))
        values = nearest = laid(above - 1 if share < 0.5 else above)
        if 0 < share < 1:
            values = (1 - share) * laid(above - 1) + share * laid(above)
            values = np.where(np.isnan(values), nearest, values)
        values = np.where(np.isnan(values), outside, values)
        out[k] = np.rint(values) if color else values
    return out
