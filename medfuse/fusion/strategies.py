"""How the features of two images become one: the fusion strategies of an encoder-decoder network.

Every strategy takes two tensors (N, C, H, W) and returns one; each slice of the batch is merged on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from medfuse.fusion.networks.autoencoder import Part


class Strategy(Protocol):
    """Merges two features, (N, C, H, W) each."""

    def __call__(self, structural: Tensor, functional: Tensor, *bodies: Part) -> Tensor:
        """The merged features.

        Args:
            structural: Features of the structural slices.
            functional: Features of the functional slices.
            bodies: Of either, the rows and columns outside of which all features are 0, where that is known.
        """


def nuclear(structural: Tensor, functional: Tensor, *bodies: Part) -> Tensor:
    """Softmax-weighted nuclear norm: one weight a source and slice (Zhou, Xu and Zhang, arXiv 2212.04661, section 3.3).

    The features become a distribution over channels (softmax); each channel's H×W map has a nuclear norm, the sum of
    its singular values; a source's activity is the largest of them, squared; its weight is its share of the two.
    """
    return _weighted_by(largest_nuclear_norm, structural, functional, *bodies)


def nuclear_mean(structural: Tensor, functional: Tensor, *bodies: Part) -> Tensor:
    """As `nuclear`, with the mean of the channels' norms in place of the largest."""
    return _weighted_by(lambda maps: nuclear_norms(maps).mean(), structural, functional, *bodies)


def nuclear_sum(structural: Tensor, functional: Tensor, *bodies: Part) -> Tensor:
    """As `nuclear`, with the sum of the channels' norms; the shares are those of `nuclear_mean`."""
    return _weighted_by(lambda maps: nuclear_norms(maps).sum(), structural, functional, *bodies)


def _weighted_by(
    activity_of: Callable[[Tensor], Tensor], structural: Tensor, functional: Tensor, *bodies: Part
) -> Tensor:
    """Each slice of a source weighted by its share of the two squared activities; `activity_of` takes (C, H, W)."""
    everywhere = slice(None), slice(None)
    activity = [
        torch.stack([activity_of(distribution(maps, body)) for maps in features]).square()
        for features, body in zip((structural, functional), bodies or (everywhere, everywhere), strict=True)
    ]
    weight = (activity[0] / (activity[0] + activity[1])).to(structural.dtype)[:, None, None, None]
    return functional.lerp(structural, weight)


def distribution(maps: Tensor, body: Part) -> Tensor:
    """Softmax over the channels, with all the singular values it has, but for zeros.

    Outside of the body every channel has the same share. Rows that are equal are one row, as long as all of them
    together, in another basis, and so are columns: neither changes a singular value.

    Args:
        maps: Features, (C, H, W).
        body: Rows and columns outside of which they are 0.

    Returns:
        (C, h, w), of the body and, where there is an outside, one row and one column for it.
    """
    inside = maps[:, body[0], body[1]]
    (channels, height, width), (rows, columns) = inside.shape, (n - m for n, m in zip(maps.shape[1:], inside.shape[1:], strict=True))
    shares = maps.new_empty(channels, height + (rows > 0), width + (columns > 0))
    part = torch.sub(inside, inside.amax(0), out=shares[:, :height, :width]).exp_()
    part.mul_(part.sum(0).reciprocal_())
    shares[:, height:] = rows**0.5 / channels
    shares[:, :, width:] = columns**0.5 / channels
    shares[:, height:, width:] = (rows * columns) ** 0.5 / channels
    return shares


def average(structural: Tensor, functional: Tensor, *_bodies: Part) -> Tensor:
    """The mean of the two features."""
    return (structural + functional) / 2


def maximum(structural: Tensor, functional: Tensor, *_bodies: Part) -> Tensor:
    """The larger of the two features, value by value."""
    return torch.maximum(structural, functional)


def energy(structural: Tensor, functional: Tensor, *_bodies: Part) -> Tensor:
    """Feature energy ratio: every value weighted by its share of the two squares (Fu et al. 2021, MSRPAN)."""
    one, other = structural.square(), functional.square()
    total = one + other
    fused = one.mul_(structural).add_(other.mul_(functional)).div_(total)
    return fused.masked_fill_(total == 0, 0)


def ratio(structural: Tensor, functional: Tensor, *_bodies: Part) -> Tensor:
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

    A matrix A is split into QQᵀA, with Q an orthonormal basis near its first singular vectors, and the rest R. By the
    triangle inequality its nuclear norm is at most that of the small matrix QᵀA plus √r·‖R‖, with r = min(H, W) and the
    Frobenius norm of R. Matrices are taken in the order of that bound, until the next bound is no larger than the
    largest norm found. The norm of one is the sum of the square roots of the eigenvalues of AAᵀ, in float64.

    Args:
        maps: (C, H, W).

    Returns:
        A scalar, in the dtype of `maps`.
    """
    order = _upper_bound(maps).sort(descending=True)
    best = 0.0
    for bound, channel in zip(order.values.tolist(), order.indices.tolist(), strict=True):
        if bound <= best:
            break
        best = max(best, _nuclear_norm(maps[channel]))
    return maps.new_tensor(best)


def _nuclear_norm(matrix: Tensor) -> float:
    """Of one matrix (H, W); to 1e-6, relative, for what the square root leaves of the rounding of small eigenvalues."""
    exact = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT).double()
    return float(torch.linalg.eigvalsh((exact @ exact.mT).cpu()).clamp(min=0).sqrt().sum())


def _upper_bound(maps: Tensor, rank: int = 16) -> Tensor:
    """An upper bound of the nuclear norm of each of C matrices, shape (C,)."""
    height, width = maps.shape[-2:]
    start = torch.randn(width, min(rank, height, width), generator=torch.Generator().manual_seed(0)).to(maps)
    small = maps.mT @ torch.linalg.qr(maps @ start).Q
    values = torch.linalg.svdvals(small)
    whole = torch.linalg.vector_norm(maps.flatten(1), dim=1).square()
    # What is left for R, and what rounding may have taken from it.
    rest = (whole - values.square().sum(dim=-1) + 1e-5 * whole).clamp(min=0).sqrt()
    bound: Tensor = values.sum(dim=-1) + min(height, width) ** 0.5 * rest
    return bound * (1 + 1e-4)  # rounding
