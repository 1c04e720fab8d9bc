"""Separable Gaussian means, over the area where the whole window fits."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian(size: int, sigma: float) -> Tensor:
    """Weights of a Gaussian window that add up to 1, (size,) float64."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.softmax(-offset.square() / (2 * sigma**2), dim=0)


def smooth(images: Tensor, weights: Tensor) -> Tensor:
    """Weighted means along columns and rows, as two products with a banded matrix.

    Args:
        images: (N, 1, H, W), at least as large as the window.
        weights: (size,), symmetric.

    Returns:
        (N, 1, H - size + 1, W - size + 1).
    """
    rows, columns = (_band(weights, count).to(images) for count in images.shape[2:])
    return rows @ images @ columns.mT


def _band(weights: Tensor, count: int) -> Tensor:
    """The matrix that takes `count` values to their moving weighted means, (count - size + 1, count)."""
    means = count - len(weights) + 1
    row = torch.nn.functional.pad(weights, (0, means))  # one longer than a row, so that each row starts one later
    return row.repeat(means)[: means * count].view(means, count)
