"""Separable weighted means for images of any size: at an edge, the mean of what there is of the window.

Each is two products with a matrix whose rows hold the weights and add up to 1. So every window takes the same time, and
a constant image stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Offsets from the middle of the window, in pixels, to weights.
Window = Callable[[Tensor], Tensor]


def box(size: int) -> Window:
    """Equal weights. A window of an even size reaches one pixel further back than forth, as OpenCV's does."""
    return lambda offset: ((offset >= -(size // 2)) & (offset < size - size // 2)).float()


def gaussian(size: int, sigma: float) -> Window:
    """A Gaussian of `sigma` pixels, cut to an odd `size`."""
    return lambda offset: torch.exp(-offset.square() / (2 * sigma**2)) * (offset.abs() <= size // 2)


def binomial(offset: Tensor) -> Tensor:
    """The window 1, 4, 6, 4, 1."""
    return offset.new_tensor([6, 4, 1, 0])[offset.abs().clamp(max=3).long()]


def smooth(images: Tensor, window: Window) -> Tensor:
    """Weighted means about every pixel.

    Args:
        images: (..., H, W).
        window: The weights along a row, and along a column.

    Returns:
        (..., H, W).
    """
    return resample(images, window, images.shape[-2:])


def resample(images: Tensor, window: Window, size: Sequence[int], given: int = 1, wanted: int = 1) -> Tensor:
    """Weighted means on a grid of another spacing.

    Args:
        images: (..., h, w), the pixels at every `given`-th row and column of an image of `size`, from the first on.
        window: The weights along a row, and along a column.
        size: Height and width of the whole image, in pixels.
        given: Spacing of the pixels that there are.
        wanted: Spacing of the pixels to compute.

    Returns:
        (..., ⌈H / wanted⌉, ⌈W / wanted⌉).
    """
    rows, columns = (_weights(window, count, given, wanted).to(images) for count in size)
    return rows @ images @ columns.mT


def _weights(window: Window, count: int, given: int, wanted: int) -> Tensor:
    """The matrix from given to wanted pixels of one line, each row adding up to 1."""
    weights = window(torch.arange(0.0, count, given) - torch.arange(0.0, count, wanted)[:, None])
    return weights / weights.sum(dim=1, keepdim=True)
