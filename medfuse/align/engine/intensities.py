"""What of a volume is compared: its grey values, spread so that the tissues lie apart."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medfuse.color.ycbcr import YCBCR_FROM_RGB
from medfuse.errors import RegistrationError
from medfuse.itk import to_image_of
from medfuse.volume import Unit, Volume

#: Half of the scale goes to soft tissue, which is a sliver of what a CT can hold: air, fat, muscle, bone.
HU_KNOTS, HU_SHARES = (-1000, -200, 200, 2000), (0.0, 0.15, 0.75, 1.0)
#: Percentiles at which values are cut off, so that a few outliers do not use up the scale.
OUTLIERS = (0.1, 99.9)


def comparable(volume: Volume, *, root: bool = False) -> sitk.Image:
    """The volume as a float32 image, 0 to 1.

    Args:
        volume: Grey, or colour, whose luminance is taken.
        root: Take the square root of uptake, so that the body shows beside what is hot in it.

    Raises:
        RegistrationError: Every voxel has the same value.
    """
    values = grey(volume)
    if volume.unit is Unit.HU:
        # Slice by slice, for numpy interpolates in float64.
        values = np.stack([np.interp(plane, HU_KNOTS, HU_SHARES).astype(np.float32) for plane in values])
    elif root and volume.modality.is_functional:
        values = np.sqrt(np.maximum(values, 0))
    step = max(1, values.size // 1_000_000)
    lower, upper = np.percentile(values.ravel()[::step], OUTLIERS).tolist()
    if lower == upper:
        lower, upper = float(values.min()), float(values.max())
    if lower == upper:
        raise RegistrationError(
            "expected two volumes to compare, found one in which every voxel has the same value",
            "Check that both files hold the scans they should",
        )
    values = values - np.float32(lower)
    values /= np.float32(upper - lower)
    return to_image_of(np.clip(values, 0, 1, out=values), volume.grid)


def grey(volume: Volume) -> NDArray[np.float32]:
    """The volume as float32, colour as its luminance."""
    values = volume.array.astype(np.float32, copy=False)
    return values @ YCBCR_FROM_RGB[0].astype(np.float32) if volume.is_color else values
