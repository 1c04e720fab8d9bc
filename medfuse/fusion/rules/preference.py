"""Which of two is larger, in a way that favours neither and does not turn on rounding."""

from __future__ import annotations

import torch
from torch import Tensor

#: Differences below this are a tie. It lies above the rounding of float32 and far below a level of an 8-bit image.
TIE = 1e-6


def preference(structural: Tensor, functional: Tensor) -> Tensor:
    """Weight of the structural image: 1 where its activity is larger, 0 where the other's is, 1/2 where they tie."""
    difference = structural - functional
    return torch.where(difference.abs() < TIE, 0.5, (difference > 0).to(difference))
