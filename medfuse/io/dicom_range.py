"""Which of an image's values are kept: padding and the limits of a CT, and what float32 can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medfuse.errors import UnsupportedImage
from medfuse.io.dicom_header import word
from medfuse.io.dicom_planes import Plane
from medfuse.io.samples import LARGEST_WHOLE, largest_magnitude
from medfuse.volume import AIR_HU, Unit

#: The lowest HU of a 12-bit CT. What lies below is no tissue: makers mark what is outside the field of view so.
LOWEST_HU = -1024.0
#: Metal in an extended scale reaches 30,000; what lies above is a negative value that was taken for an unsigned one.
HIGHEST_HU = 2.0**15


def within_range(
    values: NDArray[np.generic], stored: NDArray[np.generic], plane: Plane, unit: Unit
) -> NDArray[np.generic]:
    """Values of one image as they are to be kept.

    In a CT in HU, padding (Pixel Padding Value and Range Limit, PS3.3 section C.7.5.1.1.2) becomes air, -1000 HU, and
    other values below -1024 HU become -1024, for padding that lost its mark or was compressed with loss. Padding of
    other images is kept: what it would have to be is not known.

    Args:
        values: What `stored` means, in `unit`; (J, I).
        stored: The values in the file, (J, I).
        plane: The image.
        unit: What `values` are.

    Raises:
        UnsupportedImage: HU that no scanner writes, or values that float32 cannot hold.
    """
    if unit is Unit.HU:
        values = np.where(_is_padding(stored, plane.header), AIR_HU, np.maximum(values, LOWEST_HU))
    limit, kind = (HIGHEST_HU, "HU") if unit is Unit.HU else (float(np.finfo(np.float32).max), "values")
    if values.dtype.kind in "iu":
        limit, kind = min(limit, LARGEST_WHOLE), "whole numbers"
    largest = largest_magnitude(values)
    if not np.isfinite(largest):  # which the volume refuses, or fills
        largest = largest_magnitude(values[np.isfinite(values)])
    if largest > limit:
        raise UnsupportedImage(
            f"expected {kind} of at most {limit:.9g}, found {largest:.9g} in {plane.path.name}",
            "Check the rescale slope and the modality; values beyond would not be kept as they are",
        )
    return values


def _is_padding(stored: NDArray[Any], header: Dataset) -> NDArray[np.bool_]:
    """Where an image is padded. Files mix up signed and unsigned paddings: what counts are the bits."""
    try:
        first = float(word(header, "PixelPaddingValue"))
        last = float(word(header, "PixelPaddingRangeLimit") or first)
    except ValueError:
        return np.zeros(stored.shape, np.bool_)
    if stored.dtype.kind in "iu":
        first, last = (float(np.array(int(limit)).astype(stored.dtype)) for limit in (first, last))
    padding: NDArray[np.bool_] = (stored >= min(first, last)) & (stored <= max(first, last))
    return padding
