"""What a reconstruction is charged for. Each loss takes (result, target), both (N, 1, H, W), and returns a scalar."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def l2(result: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference."""
    return F.mse_loss(result, target)


def gradient(result: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of the image gradients, by central differences along rows and columns."""
    differences = torch.gradient(result - target, dim=(-2, -1))
    return torch.stack([difference.square().mean() for difference in differences]).mean()


LOSSES: dict[str, Loss] = {"l2": l2, "gradient": gradient}
