"""YCbCr as DICOM's YBR_FULL: ITU-R BT.601 weights, full range 0-255 (not the 16-235 form); PS3.3 C.7.6.3.1.2."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Rows Y, Cb, Cr; columns R, G, B. All values scaled to [0, 1], with Cb and Cr centred on 0.
YCBCR_FROM_RGB = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.5],
        [0.5, -0.587 / 1.402, -0.114 / 1.402],
    ]
)
RGB_FROM_YCBCR = np.linalg.inv(YCBCR_FROM_RGB)


def ycbcr_from_rgb(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RGB (…, 3) uint8 to YCbCr (…, 3) float32: Y in [0, 1], Cb and Cr in [-0.5, 0.5].

    >>> ycbcr_from_rgb(np.array([255, 0, 0], dtype=np.uint8)).round(3).tolist()
    [0.29899999499320984, -0.16899999976158142, 0.5]
    """
    return np.asarray(rgb.astype(np.float32) / 255 @ YCBCR_FROM_RGB.T.astype(np.float32), dtype=np.float32)


def rgb_from_ycbcr(ycbcr: NDArray[np.floating]) -> NDArray[np.uint8]:
    """YCbCr (…, 3), as `ycbcr_from_rgb` returns it, to RGB (…, 3) uint8, rounded and clipped to 0-255."""
    rgb = ycbcr.astype(np.float32) @ RGB_FROM_YCBCR.T.astype(np.float32)
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
