"""Measures of contrast and edges, in grey levels 0-255: SD, SF, AG; edges kept (Q_AB/F) and made up (N_AB/F)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medfuse.metrics.images import divide, to_levels


def standard_deviation(image: Tensor) -> Tensor:
    """SD, the contrast of an image: √(Σ (x - mean)² / HW).

    As in the survey of J. Ma, Y. Ma and C. Li, Inf. Fusion 45:153-178 (2019). Range 0 to 127.5 grey levels; higher is
    taken for better, though noise raises it too. It looks at no source. A constant image gives 0.

    Args:
        image: (N, 1, H, W), uint8 or float in [0, 1].

    Returns:
        (N,), grey levels.
    """
    (levels,) = to_levels(image)
    return levels.var(dim=(1, 2, 3), correction=0).sqrt()


def spatial_frequency(image: Tensor) -> Tensor:
    """SF, how much neighbours differ: √(RF² + CF²), RF² = Σ (x[j, i] - x[j, i-1])² / HW, CF² likewise down columns.

    A. M. Eskicioglu and P. S. Fisher, IEEE Trans. Commun. 43(12):2959-2965 (1995). Range 0 to 255 √2 grey
    levels; higher is taken for better, though noise raises it too. It looks at no source. A constant image gives 0.

    Args:
        image: (N, 1, H, W), uint8 or float in [0, 1].

    Returns:
        (N,), grey levels.
    """
    (levels,) = to_levels(image)
    squares = [levels.diff(dim=axis).square().sum(dim=(1, 2, 3)) for axis in (2, 3)]
    return ((squares[0] + squares[1]) / levels[0].numel()).sqrt()


def average_gradient(image: Tensor) -> Tensor:
    """AG, the mean slope: Σ √((Δx² + Δy²) / 2) / ((H-1)(W-1)), with forward differences.

    G. Cui, H. Feng, Z. Xu, Q. Li and Y. Chen, Opt. Commun. 341:199-209 (2015). Range 0 to 255 grey levels;
    higher is taken for better, though noise raises it too. It looks at no source. A constant image gives 0.

    Args:
        image: (N, 1, H, W), uint8 or float in [0, 1].

    Returns:
        (N,), grey levels.

    Raises:
        UnsupportedImage: The images have a single row or column.
    """
    (levels,) = to_levels(image, smallest=2)
    across, down = levels.diff(dim=3)[..., :-1, :], levels.diff(dim=2)[..., :-1]
    return ((across.square() + down.square()) / 2).sqrt().mean(dim=(1, 2, 3))


def edge_preservation(fused: Tensor, structural: Tensor, functional: Tensor) -> Tensor:
    """Q_AB/F, how well the edges of both sources came through: Σ (Q_AF w_A + Q_BF w_B) / Σ (w_A + w_B).

    With Sobel strength g and angle α = atan(s_y / s_x), y upward, π/2 where s_x is 0: G is the smaller strength over
    the larger, A = 1 - |Δα| / (π/2), Q = 0.9994 / (1 + exp(-15 (G - 0.5))) · 0.9879 / (1 + exp(-22 (A - 0.8))), and a
    pixel's weight w is the source's g. Angles are not wrapped round: 89° and -89° count as opposite, as in the paper.

    C. S. Xydeas and V. Petrović, Electron. Lett. 36(4):308-309 (2000), with L = 1. Range 0 to 0.9748, higher is
    better; with one source given twice it is that source's own value. Identical images give 0.9748, for G = A = 1 in
    the sigmoids. Sources without any edge, constant ones, give 0. The MATLAB code in circulation sets the image in
    black, which makes an edge of a bright border (here the border is repeated), and where both strengths are equal
    takes the strength itself for G, which raises identical images to 0.9753; all else agrees to 1e-9.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        structural: The same shape.
        functional: The same shape.

    Returns:
        (N,).
    """
    target, first, second = (_edges(levels) for levels in to_levels(fused, structural, functional))
    kept = XYDEAS.kept(target, first) * first.strength + XYDEAS.kept(target, second) * second.strength
    return divide(kept.sum(dim=(1, 2, 3)), (first.strength + second.strength).sum(dim=(1, 2, 3)))


def fusion_artifacts(fused: Tensor, structural: Tensor, functional: Tensor) -> Tensor:
    """N_AB/F, edges of the result that neither source has: Σ M ((1 - Q_AF) w_A + (1 - Q_BF) w_B) / Σ (w_A + w_B).

    M is 1 where the result's Sobel strength (kernel over 8) exceeds both sources'; w = g^1.5, or 0.001 where g < 2;
    Q = √(0.9999 / (1 + exp(-19 (G - 0.5))) · 0.9995 / (1 + exp(-22 (A - 0.5)))) with G as in `edge_preservation` and
    A = ||Δα| - π/2| / (π/2).

    V. Petrović and C. Xydeas, ICCV 2005, 1866-1871, as modified by B. K. Shreyamsha Kumar, Signal Image Video Process.
    7:1125-1143 (2013), which is what most tables report: Petrović counts 2 - Q_AF - Q_BF with both weights, so that
    kept, lost and made-up edges do not add up to 1. Range 0 to 1, LOWER is better; with one source given twice it is
    that source's own value. Identical images give 0, and so does a constant result. Constant sources give about 1
    under a result with edges everywhere. The border is repeated (the authors' code wraps it round).

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        structural: The same shape.
        functional: The same shape.

    Returns:
        (N,).
    """
    target, first, second = (_edges(levels, scale=8) for levels in to_levels(fused, structural, functional))
    weights = [torch.where(source.strength < 2, 0.001, source.strength**1.5) for source in (first, second)]
    lost = (1 - PETROVIC.kept(target, first)) * weights[0] + (1 - PETROVIC.kept(target, second)) * weights[1]
    made_up = target.strength > torch.maximum(first.strength, second.strength)
    return (lost * made_up).sum(dim=(1, 2, 3)) / (weights[0] + weights[1]).sum(dim=(1, 2, 3))


@dataclass(frozen=True)
class Edges:
    """Sobel strength, and angle in (-π/2, π/2] with y upward, of every pixel; each (N, 1, H, W)."""

    strength: Tensor
    angle: Tensor


def _edges(levels: Tensor, scale: float = 1) -> Edges:
    kernel = levels.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / scale
    padded = torch.nn.functional.pad(levels, (1, 1, 1, 1), mode="replicate")
    across = torch.nn.functional.conv2d(padded, kernel[None, None])
    down = torch.nn.functional.conv2d(padded, kernel.mT.contiguous()[None, None])
    upright = across.abs() < 1e-6  # what rounding leaves of 0 in a float image
    angle = torch.where(upright, math.pi / 2 * down.sign().abs(), torch.atan(-down / torch.where(upright, 1, across)))
    return Edges(torch.hypot(across, down), angle)


@dataclass(frozen=True)
class EdgeModel:
    """How a viewer is taken to lose edges: a sigmoid (height, slope, middle) of strength, and one of angle."""

    strength: tuple[float, float, float]
    angle: tuple[float, float, float]
    is_root: bool

    def kept(self, target: Edges, source: Edges) -> Tensor:
        """Q of every pixel, (N, 1, H, W)."""
        larger = torch.maximum(target.strength, source.strength)
        ratio = divide(torch.minimum(target.strength, source.strength), larger)
        turn = (target.angle - source.angle).abs() / (math.pi / 2)
        alike = (turn - 1).abs() if self.is_root else 1 - turn
        product = _sigmoid(ratio, *self.strength) * _sigmoid(alike, *self.angle)
        return product.sqrt() if self.is_root else product


def _sigmoid(values: Tensor, height: float, slope: float, middle: float) -> Tensor:
    return height * torch.sigmoid(slope * (values - middle))


XYDEAS = EdgeModel((0.9994, 15, 0.5), (0.9879, 22, 0.8), is_root=False)
PETROVIC = EdgeModel((0.9999, 19, 0.5), (0.9995, 22, 0.5), is_root=True)
