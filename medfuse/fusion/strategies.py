"""How the features of two images become one: the fusion strategies of an encoder-decoder network.

Every strategy takes two tensors (N, C, H, W) and returns one; each slice of the batch is merged on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from medfuse.fusion.networks.autoencoder import Part
from medfuse.fusion.networks.collapsed import bands

#: Channels of which the nuclear norm is bounded more closely than of the others, and by how many columns.
CLOSER, SUMS = 16, 16


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
    return _weighted_by(lambda maps: nuclear_norms(maps).mean(dim=-1), structural, functional, *bodies)


def nuclear_sum(structural: Tensor, functional: Tensor, *bodies: Part) -> Tensor:
    """As `nuclear`, with the sum of the channels' norms; the shares are those of `nuclear_mean`."""
    return _weighted_by(lambda maps: nuclear_norms(maps).sum(dim=-1), structural, functional, *bodies)


def _weighted_by(
    activity_of: Callable[[Tensor], Tensor], structural: Tensor, functional: Tensor, *bodies: Part
) -> Tensor:
    """Each slice of a source weighted by its share of the two squared activities; (N, C, H, W) to activities (N,)."""
    everywhere = slice(None), slice(None)
    activity = [
        activity_of(distribution(features, body)).square()
        for features, body in zip((structural, functional), bodies or (everywhere, everywhere), strict=True)
    ]
    weight = (activity[0] / (activity[0] + activity[1])).to(structural.dtype)[:, None, None, None]
    return functional.lerp(structural, weight)


def distribution(features: Tensor, body: Part) -> Tensor:
    """Softmax over the channels, with all the singular values it has, but for zeros.

    Outside of the body every channel has the same share. Rows that are equal are one row, as long as all of them
    together, in another basis, and so are columns: neither changes a singular value.

    Args:
        features: (N, C, H, W).
        body: Rows and columns outside of which they are 0.

    Returns:
        (N, C, h, w), of the body and, where there is an outside, one row and one column for it; not below float32.
    """
    inside = features[..., body[0], body[1]]
    count, channels, height, width = inside.shape
    rows, columns = features.shape[2] - height, features.shape[3] - width
    precision = torch.promote_types(inside.dtype, torch.float32)
    shares = inside.new_empty(count, channels, height + (rows > 0), width + (columns > 0), dtype=precision)
    for band in bands(inside):
        shares[..., band, :width] = inside[..., band, :].to(precision).softmax(1)
    shares[..., height:, :] = rows**0.5 / channels
    shares[..., width:] = columns**0.5 / channels
    shares[..., height:, width:] = (rows * columns) ** 0.5 / channels
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
    """The sum of the singular values of each matrix, (..., H, W) to (...)."""
    norms: Tensor = torch.linalg.svdvals(maps.cpu()).sum(dim=-1).to(maps.device)
    return norms


def largest_nuclear_norm(maps: Tensor) -> Tensor:
    """The largest nuclear norm among the C matrices of each slice, without decomposing most; the value is exact.

    A matrix A is split into QQᵀA, with Q an orthonormal basis near its first singular vectors, and the rest R. By the
    triangle inequality its nuclear norm is at most that of the small matrix QᵀA plus √r·‖R‖, with r = min(H, W) and the
    Frobenius norm of R. Matrices are taken in the order of that bound, one of each slice at a time, until in no slice
    the next bound is larger than the largest norm found.

    Args:
        maps: (N, C, H, W).

    Returns:
        (N,), in the dtype of `maps`.
    """
    if maps.device.type == "mps":  # which has no float64
        return largest_nuclear_norm(maps.cpu()).to(maps.device)
    order = _upper_bounds(maps).sort(dim=1, descending=True)
    norms_of = _norms_by_products if maps.device.type == "cuda" else _norms_by_eigenvalues
    best = maps.new_zeros(len(maps))
    for bounds, channels in zip(order.values.T, order.indices.T, strict=True):
        undecided = (bounds > best).nonzero()[:, 0]
        if not len(undecided):
            break
        found = norms_of(maps[undecided, channels[undecided]]).to(best.dtype)
        best[undecided] = torch.maximum(best[undecided], found)
    return best


def _norms_by_eigenvalues(matrices: Tensor) -> Tensor:
    """Nuclear norms, (n, H, W) to (n,): sums of the square roots of the eigenvalues of AAᵀ, in float64 on the CPU.

    To 1e-6, relative, for what the square root leaves of the rounding of small eigenvalues.
    """
    exact = _flat(matrices).cpu().double()
    norms: Tensor = torch.linalg.eigvalsh(exact @ exact.mT).clamp(min=0).sqrt().sum(dim=-1).to(matrices.device)
    return norms


def _norms_by_products(matrices: Tensor) -> Tensor:
    """Nuclear norms, (n, H, W) to (n,), by products of matrices alone, in float64: what a GPU does fastest.

    The nuclear norm is the inner product of A with its polar factor, to which the iteration of Newton and Schulz takes
    A: X becomes ρX(3 - ρ²XᵀX)/2. With all singular values of X between l and 1, ρ² = 3 / (1 + l + l²) makes the lowest
    of them as large as it can be (the scaling of Chen and Chow, Argonne National Laboratory preprint MCS-P5059-0114,
    2014): p(l) = p(1). Singular values below 1e-8 of the Frobenius norm may count too little, up to not at all:
    together min(H, W) times that much at most, on features 1e-8 of the result.
    """
    exact = _flat(matrices).double()
    x = exact / torch.linalg.matrix_norm(exact, keepdim=True).clamp(min=torch.finfo(exact.dtype).tiny)
    lowest = 1e-8
    while lowest < 1 - 1e-7:
        scale = (3 / (1 + lowest + lowest**2)) ** 0.5
        x = torch.baddbmm(x, x @ x.mT, x, beta=1.5 * scale, alpha=-0.5 * scale**3)
        lowest = 1.5 * scale * lowest - 0.5 * (scale * lowest) ** 3
    norms: Tensor = (x * exact).sum(dim=(-2, -1))
    return norms


def _flat(matrices: Tensor) -> Tensor:
    """Matrices, or transposed ones, that are no higher than wide."""
    return matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT


def _upper_bounds(maps: Tensor) -> Tensor:
    """An upper bound of the nuclear norm of each matrix, (N, C, H, W) to (N, C); closer for those that may be largest.

    Q is taken from the sum of the columns, which is enough to rule most channels out; then from the sums of `SUMS`
    parts of the columns. In maps of an image, where neighbours are alike, these are near the first singular vectors.
    """
    bounds = _bounds_by(maps.sum(dim=-1, keepdim=True), maps)
    first = bounds.topk(min(CLOSER, maps.shape[1])).indices
    slices = torch.arange(len(maps), device=maps.device)[:, None]
    part = torch.arange(maps.shape[-1], device=maps.device) * SUMS // maps.shape[-1]
    parts = (part[:, None] == torch.arange(SUMS, device=maps.device)).to(maps.dtype)
    chosen = maps[slices, first]
    bounds[slices, first] = torch.minimum(bounds[slices, first], _bounds_by(chosen @ parts, chosen))
    return bounds


def _bounds_by(columns: Tensor, maps: Tensor) -> Tensor:
    """An upper bound of the nuclear norm of each matrix, (..., H, W) to (...); Q spans the columns, (..., H, k)."""
    small = _basis(columns).mT @ maps
    exact = small.double()
    values = torch.linalg.eigvalsh(exact @ exact.mT).clamp(min=0).sqrt().to(maps)
    whole = torch.linalg.matrix_norm(maps).square()
    # What is left for R, and what rounding may have taken from it.
    rest = (whole - values.square().sum(dim=-1) + 1e-5 * whole).clamp(min=0).sqrt()
    bound: Tensor = values.sum(dim=-1) + min(maps.shape[-2:]) ** 0.5 * rest
    return bound * (1 + 1e-4)  # rounding


def _basis(columns: Tensor) -> Tensor:
    """Orthonormal columns that span the given ones, (..., H, k), or 0 for those that are nearly spanned by the others.

    By the eigenvectors of a k×k matrix, of which a GPU decomposes thousands at once, as it does not by QR.
    """
    exact = columns.double()
    values, vectors = torch.linalg.eigh(exact.mT @ exact)
    kept = values > 1e-10 * values[..., -1:]
    scale = torch.where(kept, values, 1).rsqrt() * kept
    basis: Tensor = exact @ (vectors * scale[..., None, :])
    return basis.to(columns)
