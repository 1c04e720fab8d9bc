"""Fusion of Laplacian pyramids.

Burt and Adelson, "The Laplacian Pyramid as a Compact Image Code", IEEE Transactions on Communications 31, 1983; fused
as in Burt and Kolczynski, "Enhanced image capture through fusion", ICCV 1993, with the simplest of its measures: the
larger absolute value, coefficient by coefficient.
"""

from __future__ import annotations

from torch import Tensor

from medfuse.fusion.rules.preference import preference
from medfuse.fusion.rules.smoothing import binomial, resample

#: The image is halved for as long as its shorter side has at least this many pixels.
SMALLEST = 16


def laplacian_pyramid(structural: Tensor, functional: Tensor) -> Tensor:
    """Every detail from the image in which it is stronger, the coarsest level as the mean of the two.

    Args:
        structural: (N, 1, H, W) in [0, 1].
        functional: The same shape.

    Returns:
        (N, 1, H, W), not clamped.
    """
    pairs = zip(analyze(structural), analyze(functional), strict=True)
    *details, (one, other) = pairs
    return synthesize([*(_stronger(*pair) for pair in details), (one + other) / 2])


def analyze(image: Tensor) -> list[Tensor]:
    """The levels of a pyramid, finest first: what each halving loses, and last what is left.

    Args:
        image: (N, 1, H, W).

    Returns:
        Levels (N, 1, ⌈H / 2ⁿ⌉, ⌈W / 2ⁿ⌉), of which `synthesize` makes the image again.
    """
    levels = []
    while min(image.shape[-2:]) >= SMALLEST:
        coarser = resample(image, binomial, image.shape[-2:], wanted=2)
        levels.append(image - _doubled(coarser, image))
        image = coarser
    return [*levels, image]


def synthesize(levels: list[Tensor]) -> Tensor:
    """The image of a pyramid's levels."""
    *details, image = levels
    for detail in reversed(details):
        image = detail + _doubled(image, detail)
    return image


def _doubled(coarser: Tensor, like: Tensor) -> Tensor:
    return resample(coarser, binomial, like.shape[-2:], given=2)


def _stronger(structural: Tensor, functional: Tensor) -> Tensor:
    weight = preference(structural.abs(), functional.abs())
    return weight * structural + (1 - weight) * functional
