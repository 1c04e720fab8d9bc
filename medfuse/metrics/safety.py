"""What a fusion must not do to brightness: light up the background, or flicker from slice to slice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from medfuse.metrics.images import divide, precision, to_levels

#: A source stands still at a pixel where two neighbouring slices differ by at most so many grey levels.
STILL = 2.0


def background_error(
    fused: Tensor, structural: Tensor, functional: Tensor, *, margin: int = 0, largest: bool = True
) -> Tensor:
    """What the result shows where both sources are exactly black: noise and halos in air, in grey levels.

    By its definition: nothing was measured there, so whatever is not black was made up. Range 0 to 255, LOWER is
    better, 0 is right. Identical images give 0, as do images without a pixel that is black in both sources. The image's
    border is no source: a halo is counted there too. A colour is as bright as its brightest channel.

    Args:
        fused: (N, 1, H, W), or (N, 3, H, W) RGB; uint8 or float in [0, 1].
        structural: The same, with 1 or 3 channels.
        functional: The same, with 1 or 3 channels.
        margin: Pixels from either source, diagonally too, that are not looked at; 0 looks at all.
        largest: The largest level, which shows any fault; False for the mean, which says how much there is of it.

    Returns:
        (N,), grey levels.

    Raises:
        ValueError: The margin is below 0.
    """
    if margin < 0:
        raise ValueError(f"expected a margin of at least 0 pixels, got {margin}")
    brightest = (image.amax(dim=1, keepdim=True) for image in (fused, structural, functional))
    result, first, second = to_levels(*brightest)
    present = (torch.maximum(first, second) > 0).to(result)
    black = max_pool2d(present, 2 * margin + 1, stride=1, padding=margin) == 0
    made_up = result * black
    if largest:
        return made_up.amax(dim=(1, 2, 3))
    return divide(made_up.sum(dim=(1, 2, 3)), black.sum(dim=(1, 2, 3)).to(result))


def flicker(fused: Tensor, structural: Tensor, functional: Tensor) -> Tensor:
    """How much neighbouring slices of the result differ, against the sources' own: Σ |ΔF| / Σ max(|ΔA|, |ΔB|).

    Δ is the difference of neighbouring slices, pixel by pixel; the sums are over all pixels and pairs of neighbours.
    That differences of neighbours show whether a fused sequence is steady is O. Rockinger's, ICIP 1997, vol. 3,
    288-291, who takes their mutual information; the quotient is ours, for its bound: of the maximum, of an average
    with fixed weights, and of every rule that works pixel by pixel and moves no more than its inputs do,
    |ΔF| ≤ max(|ΔA|, |ΔB|) everywhere. Range 0 to infinity, LOWER is better; at most 1 is no worse than the sources'
    own. Identical stacks give 1, unless they are constant along the slices. More contrast than the sources have raises
    it as flicker does, and a blurred or dark result lowers it: `gain_flicker` tells these apart. Where neither source
    changes, a result that does not change gives 0 and any other infinity.

    Args:
        fused: (K, H, W), K at least 2 slices in their order; uint8 or float in [0, 1]; of colour the luminance.
        structural: The same shape, on the same grid.
        functional: The same shape.

    Returns:
        A scalar, ().

    Raises:
        ValueError: There are fewer than 2 slices, or the stacks are not fit (`medfuse.metrics.images`).
    """
    changed = own = fused.new_zeros((), dtype=precision(fused))
    for result, first, second in _neighbors(fused, structural, functional):
        changed = changed + result.diff(dim=0).abs().sum()
        own = own + torch.maximum(first.diff(dim=0).abs(), second.diff(dim=0).abs()).sum()
    return changed / own if own > 0 else torch.where(changed > 0, torch.inf, changed)


def gain_flicker(fused: Tensor, structural: Tensor, functional: Tensor) -> Tensor:
    """How much the brightness of whole slices pumps, where the sources stand still: Σ (|Σ_A ΔF| + |Σ_B ΔF|) / Σ F.

    Of two neighbouring slices only those pixels count on which both sources stand still (|Δ| ≤ 2 levels) and are not
    both black: a rule that is the same on all slices has no reason to change them. Σ_A is over those where the
    structural source is the brighter one, Σ_B over the others; F in the divisor is the mean of the two slices. A gain
    of its own for every slice shifts both sums the same way, weights of its own for every slice, as of strategies that
    weigh a whole slice, shift them in opposite ways; noise and edges cancel within each. The reasoning is ours.

    Range 0 to 200 %, LOWER is better: slices that are alternately 10 % brighter and darker give 20 %. Identical stacks
    give a little above 0, at most 2 levels' share of the brightness, and so does every fixed rule: compare with the
    pixel maximum on the same sources, which is the floor. Where nothing stands still it gives 0.

    Args:
        fused: (K, H, W), K at least 2 slices in their order; uint8 or float in [0, 1]; of colour the luminance.
        structural: The same shape, on the same grid.
        functional: The same shape.

    Returns:
        A scalar, (), in per cent.

    Raises:
        ValueError: There are fewer than 2 slices, or the stacks are not fit (`medfuse.metrics.images`).
    """
    shifted = brightness = fused.new_zeros((), dtype=precision(fused))
    for result, first, second in _neighbors(fused, structural, functional):
        still = (first.diff(dim=0).abs() <= STILL) & (second.diff(dim=0).abs() <= STILL)
        still &= torch.maximum(first, second).amax(dim=0) > 0
        change = result.diff(dim=0) * still
        leads = first.mean(dim=0) > second.mean(dim=0)
        shifted = shifted + (change * leads).sum().abs() + (change * ~leads).sum().abs()
        brightness = brightness + (result.mean(dim=0) * still).sum()
    return 100 * divide(shifted, brightness)


def _neighbors(*stacks: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Every two neighbouring slices of every stack in grey levels, (2, H, W) each."""
    if any(stack.ndim != 3 for stack in stacks) or len(stacks[0]) < 2:
        shapes = [tuple(stack.shape) for stack in stacks]
        raise ValueError(f"expected stacks (K, H, W) of at least 2 slices, got {shapes}")
    if any(stack.shape != stacks[0].shape for stack in stacks):
        raise ValueError(f"expected stacks of one shape, got {[tuple(stack.shape) for stack in stacks]}")
    for index in range(len(stacks[0]) - 1):
        levels = to_levels(*(stack[index : index + 2, None] for stack in stacks))
        yield tuple(pair[:, 0] for pair in levels)
