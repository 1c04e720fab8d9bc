"""Between `Volume` and SimpleITK images. SimpleITK is LPS too; only its axes come in the order (i, j, k)."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from medfuse.grid import Grid
from medfuse.volume import Volume


def to_image(volume: Volume) -> sitk.Image:
    """The volume as a SimpleITK image: float32, or a vector of 3 uint8 for colour."""
    array = volume.array if volume.is_color else volume.array.astype(np.float32, copy=False)
    image = sitk.GetImageFromArray(array, isVector=volume.is_color)
    grid = volume.grid
    image.SetOrigin(grid.origin_mm.tolist())
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetDirection(grid.direction[:, ::-1].ravel().tolist())
    return image


def to_grid(image: sitk.Image, frame_of_reference: str | None = None) -> Grid:
    """The geometry of a 3-D SimpleITK image."""
    i, j, k = image.GetSize()
    direction = np.array(image.GetDirection()).reshape(3, 3)[:, ::-1]
    return Grid.from_axes((k, j, i), image.GetOrigin(), image.GetSpacing()[::-1], direction, frame_of_reference)
