"""Measures that count information, on the 8-bit grey levels that a saved image holds: EN, MI, Q_MI, FMI."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from medfuse.metrics.images import Convention, divide, precision, to_eight_bits, to_levels

#: What is compared window by window in `feature_mutual_information`.
Feature = Literal["pixel", "gradient", "edge"]

#: Windows whose joint distributions are computed at once; few enough to stay in a processor's cache.
WINDOWS_AT_ONCE = 4096


def entropy(image: Tensor, *, convention: Convention = "standard") -> Tensor:
    """EN, the Shannon entropy of the grey levels: H = -Σ p(k) log2 p(k).

    J. W. Roberts, J. van Aardt and F. Ahmed, J. Appl. Remote Sens. 2:023522 (2008). Range 0 to 8 bits; higher is
    taken for better, though noise raises it too. It looks at no source. A constant image gives 0.

    Convention "paper": k runs over the distinct float32 values instead of 256 levels, so that an image of n pixels can
    reach log2 n, 16 bits at 256 × 256. On an 8-bit image both conventions agree.

    Args:
        image: (N, 1, H, W), uint8 or float in [0, 1].
        convention: See above.

    Returns:
        (N,), bits.
    """
    if convention == "paper":
        to_levels(image, clip=False)
        return _entropy(_value_counts(image.float()))
    (levels,) = to_eight_bits(image)
    return _entropy(_histogram(levels, 256))


def mutual_information(fused: Tensor, source: Tensor) -> Tensor:
    """MI, what the grey levels of one image tell of the other's: H(F) + H(S) - H(F, S).

    G. Qu, D. Zhang and P. Yan, Electron. Lett. 38(7):313-315 (2002); for two sources they add the two values.
    Range 0 to 8 bits for one source, higher is better, symmetric. Identical images give their entropy; a
    constant image on either side gives 0.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        source: The same shape.

    Returns:
        (N,), bits.
    """
    fused_entropy, source_entropy, joint_entropy = _entropies(fused, source)
    return (fused_entropy + source_entropy - joint_entropy).clamp(min=0)


def normalized_mutual_information(fused: Tensor, source: Tensor) -> Tensor:
    """One source's part of Q_MI: 2 · MI(F, S) / (H(F) + H(S)).

    M. Hossny, S. Nahavandi and D. Creighton, Electron. Lett. 44(18):1066-1067 (2008), where Q_MI is the sum of
    both sources' parts, 0 to 2. Range of one part 0 to 1, higher is better, symmetric. Identical images give 1; a
    constant image on either side gives 0, also where both are constant.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        source: The same shape.

    Returns:
        (N,).
    """
    fused_entropy, source_entropy, joint_entropy = _entropies(fused, source)
    marginal = fused_entropy + source_entropy
    return divide(2 * (marginal - joint_entropy), marginal).clamp(0, 1)


def feature_mutual_information(fused: Tensor, source: Tensor, *, feature: Feature = "pixel", window: int = 3) -> Tensor:
    """FMI, the normalised mutual information of a feature in small windows, averaged over all windows that fit.

    Each window of the feature map, shifted to start at 0 and divided by its sum, is read as a distribution over its
    pixels (column by column). The joint distribution lies between independence and the Fréchet bound, so far along
    as the two distributions correlate (a Nelsen copula); a window then gives 2 · MI / (H(F) + H(S)).

    M. Haghighat, A. Aghagolzadeh and H. Seyedarabi, Comput. Electr. Eng. 37(5):744-756 (2011); in windows:
    M. Haghighat and M. A. Razian, AICT 2014. For two sources they take the mean. As in the authors' MATLAB code, the
    gradient is the horizontal derivative alone, and "edge" MATLAB's default edge map (`sobel_edges`). Range 0 to 1,
    higher is better. Identical images give 1, also constant ones; in a window where just one of the two is constant
    the value is 0.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        source: The same shape.
        feature: "pixel", "gradient" or "edge".
        window: Side of the window in pixels, odd.

    Returns:
        (N,).

    Raises:
        ValueError: The feature is unknown, or the window is not odd and above 1.
        UnsupportedImage: The images are smaller than the window.
    """
    if feature not in _FEATURES:
        raise ValueError(f"expected a feature of {', '.join(_FEATURES)}, got {feature!r}")
    if window < 3 or window % 2 == 0:
        raise ValueError(f"expected an odd window of at least 3 pixels, got {window}")
    extract = _FEATURES[feature]
    first, second = (
        torch.nn.functional.unfold(extract(levels).mT, window).transpose(0, 1)  # (pixels of a window, N, windows)
        for levels in to_eight_bits(fused, source, smallest=window)
    )
    scores = (first == second).all(dim=0).to(first.dtype)
    varied = (first.amax(0) > first.amin(0)) & (second.amax(0) > second.amin(0)) & (scores == 0)
    chunks = zip(*(torch.split(part[:, varied], WINDOWS_AT_ONCE, dim=1) for part in (first, second)), strict=True)
    scores[varied] = torch.cat([_window_information(*chunk) for chunk in chunks])
    return scores.mean(dim=1)


def horizontal_gradient(levels: Tensor) -> Tensor:
    """Central differences along the rows, one-sided at both ends. (N, 1, H, W) in and out."""
    return torch.gradient(levels, dim=3)[0]


def sobel_edges(levels: Tensor) -> Tensor:
    """A binary edge map: squared Sobel gradients above four times their mean that no neighbour across exceeds.

    W. K. Pratt, Digital Image Processing, 2nd ed. (1991), on edge detection; the rule of MATLAB's `edge` by default. A
    pixel has to exceed its neighbours along its steeper direction. GNU Octave's `edge` asks for either direction and so
    keeps a few pixels more.

    Args:
        levels: (N, 1, H, W).

    Returns:
        (N, 1, H, W), 0 or 1, in the dtype of `levels`.
    """
    kernel = levels.new_tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]]) / 8
    padded = torch.nn.functional.pad(levels, (1, 1, 1, 1), mode="replicate")
    across, down = (
        torch.nn.functional.conv2d(padded, weight[None, None]).square() for weight in (kernel, kernel.mT.contiguous())
    )
    strength = across + down
    around = torch.nn.functional.pad(strength, (1, 1, 1, 1))
    left, right = around[..., 1:-1, :-2], around[..., 1:-1, 2:]
    above, below = around[..., :-2, 1:-1], around[..., 2:, 1:-1]
    crest = (across >= down) & (left <= strength) & (strength > right)
    crest |= (down >= across) & (above <= strength) & (strength > below)
    return (crest & (strength > 4 * strength.mean(dim=(2, 3), keepdim=True))).to(levels.dtype)


def _itself(levels: Tensor) -> Tensor:
    return levels


_FEATURES: dict[Feature, Callable[[Tensor], Tensor]] = {
    "pixel": _itself,
    "gradient": horizontal_gradient,
    "edge": sobel_edges,
}


def _entropies(fused: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H(F), H(S) and H(F, S) of the 8-bit grey levels, each (N,)."""
    first, second = to_eight_bits(fused, source)
    joint = _histogram(first * 256 + second, 256 * 256).view(-1, 256, 256)
    return _entropy(joint.sum(dim=2)), _entropy(joint.sum(dim=1)), _entropy(joint.flatten(1))


def _histogram(levels: Tensor, bins: int) -> Tensor:
    """How often each whole number below `bins` occurs in each image. (N, 1, H, W) to (N, bins)."""
    count = len(levels)
    image = torch.arange(count, device=levels.device)[:, None] * bins
    return torch.bincount((levels.long().flatten(1) + image).flatten(), minlength=count * bins).view(count, bins)


def _value_counts(values: Tensor) -> Tensor:
    """How often each distinct value occurs in each image, padded with zeros. (N, 1, H, W) to (N, H·W)."""
    ordered = values.flatten(1).sort(dim=1).values
    is_new = torch.nn.functional.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
    return _histogram(is_new.cumsum(dim=1), ordered.shape[1])


def _entropy(counts: Tensor) -> Tensor:
    """Entropy in bits of rows of counts. (N, bins) to (N,)."""
    counts = counts.to(precision(counts))
    return _bits(counts / counts.sum(dim=1, keepdim=True)).sum(dim=1)


def _window_information(first: Tensor, second: Tensor) -> Tensor:
    """2 · MI / (H + H) of the windows of two feature maps, none constant. Two (pixels, windows) to (windows,).

    In float32: half the time, and right to seven digits.
    """
    dtype = first.dtype
    first, second = ((part - part.amin(dim=0)).float() for part in (first, second))
    first, second = (part / part.sum(dim=0) for part in (first, second))
    share, mass = _copula(first, second)
    joint = share * mass + (1 - share) * first[:, None] * second
    marginal = _bits(first).sum(dim=0) + _bits(second).sum(dim=0)
    return divide(2 * (marginal - _bits(joint).sum(dim=(0, 1))), marginal).to(dtype)


def _copula(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """How far the joint distribution is from independence, and the Fréchet bound it moves to.

    Args:
        first: Distributions over p pixels of m windows, (p, m).
        second: The same shape.

    Returns:
        The share of the bound, (m,), and the bound's own mass, (p, p, m).
    """
    deviations = [part - part.mean(dim=0) for part in (first, second)]
    covariance = (deviations[0] * deviations[1]).sum(dim=0)
    correlation = divide(covariance, (deviations[0].square().sum(dim=0) * deviations[1].square().sum(dim=0)).sqrt())
    rows, columns = first.cumsum(dim=0)[:, None], second.cumsum(dim=0)[None]
    upper, lower = torch.minimum(rows, columns), (rows + columns - 1).clamp(min=0)
    bound = torch.where(correlation >= 0, upper, lower)
    excess = bound.sum(dim=(0, 1)) - rows.sum(dim=(0, 1)) * columns.sum(dim=(0, 1))
    spread = _position_deviation(first) * _position_deviation(second)
    usable = (spread > 0) & (excess != 0)
    share = torch.where(usable, correlation * spread / torch.where(usable, excess, 1), 0)
    mass = torch.nn.functional.pad(bound, (0, 0, 1, 0, 1, 0)).diff(dim=0).diff(dim=1)
    return share, mass


def _position_deviation(distribution: Tensor) -> Tensor:
    """Standard deviation of the pixel's number under distributions over p pixels. (p, m) to (m,)."""
    position = torch.arange(len(distribution), device=distribution.device, dtype=distribution.dtype)[:, None]
    mean = (position * distribution).sum(dim=0)
    return ((position - mean).square() * distribution).sum(dim=0).sqrt()


def _bits(probability: Tensor) -> Tensor:
    """-p log2 |p|, 0 where p is 0. The joint mass may be slightly negative; its logarithm's real part counts."""
    return torch.xlogy(probability, probability.abs()) / -math.log(2)
