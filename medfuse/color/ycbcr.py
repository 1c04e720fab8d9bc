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
    scaled: NDArray[np.float32] = np.divide(rgb, 255, dtype=np.float32)
    return np.asarray(scaled @ YCBCR_FROM_RGB.T.astype(np.float32))


def rgb_with_luminance(luminance: NDArray[np.float32], chroma: NDArray[np.float32]) -> NDArray[np.uint8]:
    """RGB (…, 3) uint8 of Y (…) in [0, 1] and of Cb and Cr (…, 2), the colour paled where it does not fit.

    A colour as strong as a dark pixel's may not exist as light as it is to become. Cutting R, G and B off would turn
    its hue, by up to 44° on real PET, and miss the luminance. Here Cb and Cr are scaled down together until R, G and B
    are in range: luminance and hue stay, and the colour gets paler.

    >>> rgb_with_luminance(np.float32([0.5]), np.zeros((1, 2), np.float32)).tolist()
    [[128, 128, 128]]
    """
    rgb = np.array(chroma @ RGB_FROM_YCBCR.T[1:].astype(np.float32))
    rgb += luminance[..., None]  # the weight of Y is 1 in R, G and B
    beyond = ((rgb < 0) | (rgb > 1)).any(axis=-1)
    if beyond.any():
        rgb[beyond] = _paled(rgb[beyond], np.clip(luminance[beyond], 0, 1)[:, None])
    return _to_bytes(rgb)


def room_for_color(luminance: NDArray[np.float32], chroma: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Luminance (…) in [0, 1], lowered where less than a share of the colour, Cb and Cr (…, 2), would fit.

    White has no colour, and what is nearly white next to none. Y + share · (R - Y) is at most 1 in the result, and so
    with G and B. What is as light as the colour's own image, or darker, is not lowered.

    >>> red = ycbcr_from_rgb(np.uint8([255, 0, 0]))
    >>> rgb_with_luminance(room_for_color(np.float32(1), red[1:], 0.6), red[1:]).tolist()
    [255, 102, 102]
    """
    strongest = (chroma @ RGB_FROM_YCBCR.T[1:].astype(np.float32)).max(axis=-1)
    lowered: NDArray[np.float32] = np.minimum(luminance, 1 - np.float32(share) * strongest)
    return lowered


def _paled(rgb: NDArray[np.float32], luminance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours (N, 3) brought nearer the grey of their luminance, (N, 1), as far as needed to be in range."""
    difference = rgb - luminance
    room = np.where(difference > 0, 1 - luminance, luminance)
    share = np.divide(room, np.abs(difference), out=np.ones_like(rgb), where=np.abs(difference) > room)
    paled: NDArray[np.float32] = luminance + difference * share.min(axis=-1, keepdims=True)
    return paled


def _to_bytes(rgb: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values in [0, 1], clipped, as the nearest of 0-255; the values themselves are overwritten."""
    np.clip(rgb, 0, 1, out=rgb)
    rgb *= 255
    rounded: NDArray[np.uint8] = np.rint(rgb, out=rgb).astype(np.uint8)
    return rounded
