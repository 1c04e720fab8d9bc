"""A few small steps that bring a fused image nearer to its sources: by formulas, without weights.

They go uphill in what a pixel and its surroundings have of both sources: edges that are a source's, a structure that is
a source's, and how much of a source can be read from the result. That is what Q_AB/F, SSIM and VIF measure. A network
that is trained to do well by them does so on the whole; what the pixels before it lack, it does not see.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medfuse.fusion.networks.windows import window_mean

#: The steps, by how far each goes at most where the result is black, in levels of 255: the last ones settle.
STEPS = (4.0, 3.0, 2.0, 1.0)
#: A result that ends this near a source, in levels, is that source's value.
NEARLY = 3.0
#: What is gained at a pixel for which a step is half as long as it can be, per level.
HALF = 0.04
#: What edges, structure and information count.
EDGES, STRUCTURE, INFORMATION = 1.0, 3.0, 0.4
#: The squared difference of slopes, as a share of the source's squared slope, at which an edge is half a source's.
OFF = 0.5
#: Squared slope, in levels a pixel, below which a source is level.
LEVEL = 4.0
#: Side of the windows in which structure and information are looked at.
WINDOW = 7
#: Squared levels: what keeps SSIM's ratio from 0 / 0 ((0.03 · 255)²), what VIF takes for the eye's own noise, and what
#: a constant window's variance is taken for.
STABLE, NOISE, FLAT = (0.03 * 255) ** 2, 2.0, 0.1


def refined(fused: Tensor, structural: Tensor, functional: Tensor, share: Tensor) -> Tensor:
    """A fused image after `STEPS`, (N, 1, H, W), not clamped; what then is nearly a source's value is that value.

    A step is the shorter, the lighter the image: what is white stays, such as the peak of a tracer.

    Args:
        fused: (N, 1, H, W), black 0, white 1.
        structural: The same shape.
        functional: The same shape.
        share: The same shape: how much of each step is taken, from 0 to 1. Where it is 0, a source's value stays as it
            is, to the bit.
    """
    sources = torch.cat([structural, functional], dim=1) * 255
    edges, windows = Edges(sources), Windows(sources)
    reach = share * (1 - fused).clamp(min=0) / 255
    for far in STEPS:
        levels = fused * 255
        uphill = edges.uphill(levels) + windows.uphill(levels)
        fused = fused + far * reach * uphill / (uphill.abs() + HALF)
    return nearer(fused, structural, functional)


def nearer(fused: Tensor, structural: Tensor, functional: Tensor) -> Tensor:
    """An image drawn to that source which is the nearer one at a pixel; what lies within `NEARLY` becomes its value.

    What is d levels away keeps d (1 - (`NEARLY` / d)⁴), which has no step.
    """
    one, other = fused - structural, fused - functional
    first = one.abs() < other.abs()
    difference = torch.where(first, one, other)
    kept = (1 - (NEARLY / 255 / difference.abs()) ** 4).clamp(min=0)
    return torch.where(first, structural, functional) + difference * kept


class Edges:
    """How near the slopes of an image are to those of either source: Σ |∇s| / (1 + e / `OFF`).

    e is |∇f - ∇s|² / (|∇s|² + `LEVEL`). A slope that is nearly a source's is drawn to it, one that is far from both is
    left alone (the estimator of S. Geman and D. E. McClure, Bull. Int. Stat. Inst. 52, 1987); strong edges count more,
    as in Q_AB/F. Slopes are Sobel's. To compose a picture of gradients, each of one source, is an idea of P. Pérez,
    M. Gangnet and A. Blake (ACM Trans. Graph. 22(3), 2003).

    Args:
        sources: Both, in levels, (N, 2, H, W).
    """

    def __init__(self, sources: Tensor) -> None:
        self.across, self.down = slopes(sources)
        square = self.across.square() + self.down.square()
        self.strength, self.inverse = square.sqrt(), (square + LEVEL).reciprocal()

    def uphill(self, levels: Tensor) -> Tensor:
        """How the sum rises with each pixel, times `OFF` / 2, (N, 1, H, W)."""
        across, down = self._lacking(levels)
        weight = self.strength * self.inverse * self._likeness(across, down).square()
        across, down = (F.pad((weight * lack).sum(dim=1, keepdim=True), (1, 1, 1, 1)) for lack in (across, down))
        return EDGES * -(_across(across) + _down(down))  # Sobel's kernels are odd: their transpose is minus themselves

    def _lacking(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        across, down = slopes(levels)
        return self.across - across, self.down - down

    def _likeness(self, across: Tensor, down: Tensor) -> Tensor:
        return (1 + (across.square() + down.square()) * self.inverse / OFF).reciprocal()


class Windows:
    """What small windows of an image have of either source.

    With variances v and covariance c of a window of the image (f) and the source (s), all of a window alike:

    - structure, (2 c + C) / (v_f + v_s + C): SSIM without its factor of brightness (Wang et al., IEEE Trans. Image
      Process. 13(4), 2004);
    - information, log((v_f + N) / (v_f - c² / v_s + N)) where c > 0: one scale of VIF, log(1 + g² v_s / (n + N)) with
      g = c / v_s and n = v_f - g c (Sheikh and Bovik, IEEE Trans. Image Process. 15(2), 2006).

    Args:
        sources: Both, in levels, (N, 2, H, W).
    """

    def __init__(self, sources: Tensor) -> None:
        self.sources = sources
        self.mean = window_mean(sources, WINDOW)
        self.variance = (window_mean(sources.square(), WINDOW) - self.mean.square()).clamp(min=FLAT)

    def uphill(self, levels: Tensor) -> Tensor:
        """How what a window has rises with the pixel in its middle, times half the window's pixels, (N, 1, H, W)."""
        means = window_mean(torch.cat([levels, levels.square(), levels * self.sources], dim=1), WINDOW)
        mean = means[:, :1]
        variance = (means[:, 1:2] - mean.square()).clamp(min=0)
        covariance = means[:, 2:] - mean * self.mean
        total = variance + self.variance + STABLE
        structure = (2 * covariance + STABLE) / total
        share = covariance.clamp(min=0) / self.variance
        left = ((variance - share * covariance).clamp(min=0) + NOISE).reciprocal()
        by_covariance = STRUCTURE / total + INFORMATION * share * left
        by_variance = INFORMATION * ((variance + NOISE).reciprocal() - left) - STRUCTURE * structure / total
        toward = (by_covariance * (self.sources - self.mean)).sum(dim=1, keepdim=True)
        return toward + by_variance.sum(dim=1, keepdim=True) * (levels - mean)


def slopes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes a pixel along rows and along columns, (N, C, H, W) each, as the images; the border is repeated."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return _across(padded), _down(padded)


def _across(padded: Tensor) -> Tensor:
    """Slopes a pixel along rows, (N, C, H, W), of (N, C, H + 2, W + 2), by Sobel's kernel.

    By shifts, which take less time than a convolution with so few channels.
    """
    rows = (padded[..., :-2, :] + padded[..., 2:, :]).add_(padded[..., 1:-1, :], alpha=2)
    return (rows[..., 2:] - rows[..., :-2]) / 8


def _down(padded: Tensor) -> Tensor:
    """The same along columns."""
    return _across(padded.mT).mT
