"""Palettes for tracer uptake: DICOM's well-known colour palettes (PS3.6 Annex B), and grey."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from medfuse.color.ycbcr import ycbcr_from_rgb

#: Name → UID of the well-known palette in PS3.6 table B.1-1; "GREY" has none.
PALETTES = {
    "HOT_IRON": "1.2.840.10008.1.5.1",
    "PET": "1.2.840.10008.1.5.2",
    "HOT_METAL_BLUE": "1.2.840.10008.1.5.3",
    "PET_20_STEP": "1.2.840.10008.1.5.4",
    "GREY": None,
}


def apply_palette(values: NDArray[np.floating], name: str) -> NDArray[np.uint8]:
    """Colour values in [0, 1].

    Args:
        values: Any shape, clipped to [0, 1].
        name: A key of `PALETTES`.

    Returns:
        RGB, uint8, shape (*values.shape, 3).
    """
    # `take` copies whole colours, which indexing does sample by sample.
    colors: NDArray[np.uint8] = np.take(table_of(name), entry_of(values), axis=0)
    return colors


def ycbcr_of_palette(values: NDArray[np.floating], name: str) -> NDArray[np.float32]:
    """Colour values in [0, 1], as `apply_palette` does, and give YCbCr, as `ycbcr_from_rgb` does: by one table."""
    colors: NDArray[np.float32] = np.take(_ycbcr_table_of(name), entry_of(values), axis=0)
    return colors


def entry_of(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values, clipped to [0, 1], as the nearest of the 256 entries of a palette."""
    scaled = np.asarray(np.clip(values, 0, 1))
    scaled *= 255
    entries: NDArray[np.uint8] = np.rint(scaled, out=scaled).astype(np.uint8)
    return entries


@cache
def _ycbcr_table_of(name: str) -> NDArray[np.float32]:
    return ycbcr_from_rgb(table_of(name))


@cache
def table_of(name: str) -> NDArray[np.uint8]:
    """The palette's 256 colours, (256, 3) uint8, read-only.

    Raises:
        ValueError: No palette has that name.
    """
    if name not in PALETTES:
        raise ValueError(f"expected a palette of {', '.join(PALETTES)}, got {name!r}")
    ramp = np.arange(256, dtype=np.uint8)
    uid = PALETTES[name]
    if uid is None:
        table: NDArray[np.uint8] = np.repeat(ramp[:, None], 3, axis=1)
    else:
        from pydicom.pixels import apply_color_lut

        table = apply_color_lut(ramp, palette=uid)
    table.setflags(write=False)
    return table
