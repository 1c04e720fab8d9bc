"""Palettes for tracer uptake: DICOM's well-known colour palettes (PS3.6 Annex B), and grey."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

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
    entry = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    colors: NDArray[np.uint8] = table_of(name)[entry]
    return colors


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
