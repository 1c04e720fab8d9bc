"""Sums and means in a window around every pixel, by adding shifted images: on a CPU ten times as fast as pooling.

`medfuse.fusion.rules.smoothing` has other windows, by products with matrices: there, a mean may differ by rounding with
the size of the image. Here it depends on nothing but the window.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def window_mean(x: Tensor, side: int) -> Tensor:
    """The mean in a square window of odd side around each pixel, of what of it lies in the image, as (N, C, H, W)."""
    return window_sum(x, side) / window_pixels(x, side)


def window_sum(x: Tensor, side: int) -> Tensor:
    """The sum in a square window of odd side around each pixel, (N, C, H, W): it depends on nothing outside of it."""
    reach = side // 2
    return _run(_run(F.pad(x, (reach, reach, reach, reach)), side, -1), side, -2)


def window_pixels(x: Tensor, side: int) -> Tensor:
    """How many pixels of a window of odd side around each pixel lie in the image, (H, W), for (N, C, H, W)."""
    rows, columns = (_inside(size, side, x) for size in x.shape[-2:])
    return rows[:, None] * columns


def _run(x: Tensor, side: int, axis: int) -> Tensor:
    """Sums of so many neighbours along an axis, from sums of 1, 2, 4 and so on of them."""
    length, start, width, total = x.shape[axis] - side + 1, 0, 1, None
    while True:
        if side & width:
            part = x.narrow(axis, start, length)
            total = part if total is None else total + part
            start += width
        if 2 * width > side:
            assert total is not None
            return total
        x = x.narrow(axis, 0, x.shape[axis] - width) + x.narrow(axis, width, x.shape[axis] - width)
        width *= 2


def _inside(size: int, side: int, like: Tensor) -> Tensor:
    """How many pixels of a window lie in the image, (size,), by where along an axis its middle is."""
    middle, reach = torch.arange(size, device=like.device), side // 2
    inside = (middle + reach).clamp(max=size - 1) - (middle - reach).clamp(min=0) + 1
    return inside.to(like.dtype)
