"""How the features of two images become one: the fusion strategies of an encoder-decoder network.

Every strategy takes two tensors (N, C, H, W) and returns one; each slice of the batch is merged on its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Strategy = Callable[[Tensor, Tensor], Tensor]


def nuclear(structural: Tensor, functional: Tensor) -> Tensor:
    """Softmax-weighted nuclear norm: one weight a source and slice (Zhou, Xu and Zhang, arXiv 2212.04661, section 3.3).

    The features become a distribution over channels (softmax); each channel's H×W map has a nuclear norm, the sum of
    its singular values; a source's activity is the largest of them, squared; its weight is its share of the two.
    """
    return _weighted_by(largest_nuclear_norm, structural, functional)


def nuclear_mean(structural: Tensor, functional: Tensor) -> Tensor:
    """As `nuclear`, with the mean of the channels' norms in place of the largest."""
    return _weighted_by(lambda maps: nuclear_norms(maps).mean(), structural, functional)


def nuclear_sum(structural: Tensor, functional: Tensor) -> Tensor:
    """As `nuclear`, with the sum of the channels' norms; the shares are those of `nuclear_mean`."""
    return _weighted_by(lambda maps: nuclear_norms(maps).sum(), structural, functional)


def _weighted_by(activity_of: Callable[[Tensor], Tensor], structural: Tensor, functional: Tensor) -> Tensor:
    """Each slice of a source weighted by its share of the two squared activities; `activity_of` takes (C, H, W)."""
    activity = [
        torch.stack([activity_of(_distribution(maps)) for maps in features]).square()
        for features in (structural, functional)
    ]
    weight = (activity[0] / (activity[0] + activity[1])).to(structural.dtype)[:, None, None, None]
    return functional.lerp(structural, weight)


def _distribution(maps: Tensor) -> Tensor:
    """Softmax over the channels, (C, H, W), channel by channel in memory: maps of another layout are transposed.

    As a matrix of channels by pixels, since torch transposes a matrix several times faster than anything else.
    """
    return maps.flatten(1).contiguous().softmax(dim=0).reshape(maps.shape)


def average(structural: Tensor, functional: Tensor) -> Tensor:
    """The mean of the two features."""
    return (structural + functional) / 2


def maximum(structural: Tensor, functional: Tensor) -> Tensor:
    """The larger of the two features, value by value."""
    return torch.maximum(structural, functional)


def energy(structural: Tensor, functional: Tensor) -> Tensor:
    """Feature energy ratio: every value weighted by its share of the two squares (Fu et al. 2021, MSRPAN)."""
    one, other = structural.square(), functional.square()
    total = one + other
    fused = one.mul_(structural).add_(other.mul_(functional)).div_(total)
    return fused.masked_fill_(total == 0, 0)


def ratio(structural: Tensor, functional: Tensor) -> Tensor:
    """Every value times the absolute value of its share of the sum of the two (the published code of MSDRA).

    Where the two nearly cancel the shares are large: that is the published rule. Where they cancel exactly, the result
    is 0.
    """
    total = (structural + functional).abs_()
    fused = (structural * structural.abs()).add_(functional * functional.abs()).div_(total)
    return fused.masked_fill_(total == 0, 0)


#: By the name that `--strategy` takes.
STRATEGIES: dict[str, Strategy] = {
    "nuclear": nuclear,
    "nuclear-mean": nuclear_mean,
    "nuclear-sum": nuclear_sum,
    "energy": energy,
    "ratio": ratio,
    "average": average,
    "maximum": maximum,
}


def nuclear_norms(maps: Tensor) -> Tensor:
    """The sum of the singular values of each of C matrices, (C, H, W) to (C,)."""
    norms: Tensor = torch.linalg.svdvals(maps.cpu()).sum(dim=-1).to(maps.device)
    return norms


def largest_nuclear_norm(maps: Tensor) -> Tensor:
    """The largest nuclear norm among C matrices, without decomposing most of them; the value is exact.

    A matrix A is split into QQᵀA, with Q an orthonormal basis near its first singular vectors (subspace iteration), and
    the rest R. By the triangle inequality its nuclear norm is at most that of the small matrix QᵀA plus √r·‖R‖, with
    r = min(H, W) and the Frobenius norm of R. Matrices are decomposed in the order of that bound, until the next bound
    is no larger than the largest norm found.

    Args:
        maps: (C, H, W).

    Returns:
        A scalar, in the dtype of `maps`.
    """
    order = _upper_bound(maps).sort(descending=True)
    best = maps.new_zeros(())
    for bound, channel in zip(order.values.tolist(), order.indices.tolist(), strict=True):
        if bound <= best:
            break
        best = torch.maximum(best, torch.linalg.svdvals(maps[channel].cpu()).sum().to(maps.device))
    return best


def _upper_bound(maps: Tensor, rank: int = 16, rounds: int = 2) -> Tensor:
    """An upper bound of the nuclear norm of each of C matrices, shape (C,)."""
    height, width = maps.shape[-2:]
    start = torch.randn(width, min(rank, height, width), generator=torch.Generator().manual_seed(0))
    right = start.to(maps).expand(len(maps), -1, -1)
    for _ in range(rounds):
        basis = torch.linalg.qr(maps @ right).Q
        right = maps.mT @ basis
    rest = torch.linalg.matrix_norm(torch.baddbmm(maps, basis, right.mT, alpha=-1))
    bound: Tensor = torch.linalg.svdvals(right).sum(dim=-1) + min(height, width) ** 0.5 * rest
    return bound * (1 + 1e-4)  # rounding
