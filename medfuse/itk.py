"""Between `Volume` and SimpleITK images. SimpleITK is LPS too; only its axes come in the order (i, j, k)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import MedfuseError, UnreadableFile
from medfuse.grid import Grid
from medfuse.volume import Volume

if TYPE_CHECKING:
    import SimpleITK as sitk


def itk_path(path: Path, error: type[MedfuseError] = UnreadableFile) -> str:
    """A path for SimpleITK, which ends the process where one is not UTF-8, as on a drive that was filled long ago.

    Args:
        path: Of a file to read or to write.
        error: What to raise.

    Raises:
        UnreadableFile: The path is not UTF-8.
        OutputError: Likewise, if asked for.
    """
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        raise error(
            "expected a path in UTF-8 for NRRD, MetaImage and transforms, found other characters",
            "Rename the file, or the folder that holds it",
        ) from cause
    return text


def to_image(volume: Volume) -> sitk.Image:
    """The volume as a SimpleITK image: float32, or a vector of 3 uint8 for colour."""
    return to_image_of(volume.array if volume.is_color else volume.array.astype(np.float32, copy=False), volume.grid)


def to_image_of(array: NDArray[Any], grid: Grid) -> sitk.Image:
    """An array (K, J, I), or (K, J, I, C), that lies on a grid, as a SimpleITK image."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array, isVector=array.ndim > 3)
    image.SetOrigin(grid.origin_mm.tolist())
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetDirection(grid.direction[:, ::-1].ravel().tolist())
    return image


def to_grid(image: sitk.Image, frame_of_reference: str | None = None) -> Grid:
    """The geometry of a 3-D SimpleITK image."""
    i, j, k = image.GetSize()
    direction = np.array(image.GetDirection()).reshape(3, 3)[:, ::-1]
    return Grid.from_axes((k, j, i), image.GetOrigin(), image.GetSpacing()[::-1], direction, frame_of_reference)
