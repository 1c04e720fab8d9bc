"""A few small steps that bring a fused image nearer to its sources: by formulas, without weights.

They go uphill in what a pixel and its surroundings have of both sources: edges that are a source's, a structure that is
a source's, and how much of a source can be read from the result. That is what Q_AB/F, SSIM and VIF measure. A network
that is trained to do well by them does so on the whole; what the pixels before it lack, it does not see.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from medfuse.fusion.networks.windows import window_pixels, window_sum

#: The steps, by how far each goes at most where the result is black, in levels of 255: the last ones settle.
STEPS = (14.0, 11.0, 8.0, 5.0, 2.0)
#: A result that ends this near a source, in levels, is that source's value.
NEARLY = 3.0
#: Levels from one to the next of the differences from a source that a result is drawn to, and the share of that way
#: over which it goes from one to the next.
TREAD, RISER = 4.0, 0.15
#: Levels by which a source has to be nearer than the other for a result to be drawn to it in full.
CLEARLY = 2.0
#: What is gained at a pixel for which a step is half as long as it can be, per level.
HALF = 1.0
#: What edges that are kept, edges that are made up, structure and information count.
EDGES, MADE_UP, STRUCTURE, INFORMATION = 0.8, 7.0, 33.0, 3.5
#: The two logistic steps of Q_AB/F, for the ratio of strengths and for the angle: how steep, and where.
STRENGTH_STEP, ANGLE_STEP = (15.0, 0.5), (22.0, 0.8)
#: Squared slope, in levels a pixel, that keeps what is level from turning at once.
LEVEL = 1.0
#: Half turns between two slopes below which they are drawn to each other less, for there the sum has a kink.
NEARLY_TURNED = 0.04
#: The level from which others are counted: no step depends on it, but squares of small numbers round to less.
MIDDLE = 127.5
#: Slopes, in levels a pixel, and levels that keep ratios from 0 / 0.
FAINT, TINY = 1e-3, 1e-12
#: Side of the windows in which structure and information are looked at.
WINDOW = 7
#: Pixels around one that a step of it depends on: half a window, which is more than the slopes of slopes.
STEP_REACH = WINDOW // 2
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
    sources = torch.cat([structural, functional], dim=1) * 255 - MIDDLE
    edges, windows = Edges(sources), Windows(sources)
    reach, levels = share * (1 - fused).clamp(min=0), fused * 255 - MIDDLE
    for far in STEPS:
        uphill = edges.uphill(levels).add_(windows.uphill(levels))
        levels.addcdiv_(uphill * reach, uphill.abs().add_(HALF), value=far)
    return nearer(torch.where(share > 0, (levels + MIDDLE) / 255, fused), structural, functional)


def nearer(fused: Tensor, structural: Tensor, functional: Tensor) -> Tensor:
    """An image drawn to that source which is the nearer one at a pixel; what lies within `NEARLY` becomes its value.

    What is d levels away keeps d (1 - (`NEARLY` / d)⁴), which has no step. That is drawn to a whole number of `TREAD`
    levels, by half a tread at most: the fewer values of the result stand for one of a source, the better the source can
    be read from it. Over the `RISER` in the middle between two treads it goes from one to the other, without a step.
    Where neither source is nearer by `CLEARLY`, it is drawn the less, so that there is no step from one to the other.
    """
    one, other = (fused - structural) * 255, (fused - functional) * 255
    to_one, to_other = one.abs(), other.abs()
    first = to_one < to_other
    difference = torch.where(first, one, other)
    treads = difference * (1 - (NEARLY / difference.abs()) ** 4).clamp(min=0) / TREAD
    whole = treads.round()
    between = F.softshrink(treads - whole, (1 - RISER) / 2) / RISER
    drawn = torch.where(first, structural, functional) + (whole + between) * (TREAD / 255)
    apart = ((structural - functional).abs() * (255 / 2)).clamp(max=CLEARLY)
    clear = ((to_other - to_one).abs_().add_(TINY) / apart.add_(TINY)).clamp(max=1)
    return torch.lerp(fused, drawn, clear)


class Edges:
    """How much of the edges of either source an image keeps, as Q_AB/F counts it, less what of them is made up.

    Kept is Σ w Q of each source, Q = S(G; 15, 0.5) S(A; 22, 0.8): G is the smaller strength of slope over the larger,
    A is 1 - |Δα| / (π/2) for the angle α of the slope, S(x; k, m) is 1 / (1 + exp(-k (x - m))), and w is the source's
    strength (C. S. Xydeas and V. Petrović, Electron. Lett. 36(4), 2000). An edge that is nearly a source's is drawn to
    it, one that is far from both is left alone. Slopes are Sobel's. Unlike there, 89° and -89° are 2° apart.

    Made up is, as N_AB/F has it, an edge that is stronger than those of both sources, by what it leaves of them: the
    logarithm of its strength, from half a level below the stronger one's, times Σ w (1 - Q).

    Args:
        sources: Both, in levels, (N, 2, H, W).
    """

    def __init__(self, sources: Tensor) -> None:
        across, down = slopes(sources)
        self.strength, self.half_turns = _squared(across, down).sqrt(), _half_turns(across, down)
        self.inverse = (self.strength + FAINT).reciprocal()
        self.below_strongest = self.strength.amax(dim=1, keepdim=True) - 0.5

    def uphill(self, levels: Tensor) -> Tensor:
        """How the sum rises with each pixel, (N, 1, H, W); less where it has a kink, or the image is level."""
        across, down = slopes(levels)
        square = _squared(across, down)
        strength = square.sqrt()
        ratio = strength * self.inverse
        turned = _half_turns(across, down) - self.half_turns
        turned -= turned.round()
        alike = torch.minimum(ratio, ratio.reciprocal())
        as_strong = _logistic(alike, *STRENGTH_STEP)
        as_turned = _logistic(turned.abs(), -2 * ANGLE_STEP[0], (1 - ANGLE_STEP[1]) / 2)  # of 1 - 2 |turned|
        kept = (self.strength * as_strong).mul_(as_turned)
        longer = as_strong.mul_(kept).sub_(kept).mul_(alike.copysign_(1 - ratio))  # both turned round: downhill
        turn = as_turned.mul_(kept).sub_(kept).mul_(turned.div_(NEARLY_TURNED).clamp_(-1, 1))
        made_up = (strength - self.below_strongest).clamp_(0, 1).mul_(_both(self.strength - kept))
        each = square.add_(LEVEL).reciprocal_()
        longer = torch.add(made_up.mul_(MADE_UP), _both(longer), alpha=EDGES * STRENGTH_STEP[0]).mul_(each)
        turn = _both(turn).mul_(each).mul_(EDGES * ANGLE_STEP[0] * 2 / math.pi)
        along, below = torch.addcmul(longer * across, turn, down), torch.addcmul(longer * down, turn, across, value=-1)
        along, below = (F.pad(slope, (1, 1, 1, 1)) for slope in (along, below))
        return _across(along).add_(_down(below)).div_(8)  # Sobel's kernels are odd: their transpose is minus themselves


def _logistic(x: Tensor, steep: float, middle: float) -> Tensor:
    """1 / (1 + exp(-`steep` (x - `middle`)))."""
    return torch.rsub(x, -steep * middle, alpha=-steep).sigmoid_()


def _squared(across: Tensor, down: Tensor) -> Tensor:
    return across.square().addcmul_(down, down)


def _half_turns(across: Tensor, down: Tensor) -> Tensor:
    """The angle of a slope, from -0.5 to 0.5 half turns."""
    return (down / (across + TINY)).atan_().div_(math.pi)


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
        self.weight = window_pixels(sources, WINDOW).reciprocal()  # once, as every step takes means
        self.mean = self._means(sources)
        self.variance = (self._means(sources.square()) - self.mean.square()).clamp(min=FLAT)
        self.inverse, self.off = self.variance.reciprocal(), sources - self.mean
        self.stable = self.variance + STABLE

    def uphill(self, levels: Tensor) -> Tensor:
        """How what a window has rises with the pixel in its middle, times half the window's pixels, (N, 1, H, W)."""
        means = self._means(torch.cat([levels, levels.square(), levels * self.sources], dim=1))
        mean = means[:, :1]
        variance = torch.addcmul(means[:, 1:2], mean, mean, value=-1).clamp_(min=0)
        covariance = torch.addcmul(means[:, 2:], mean, self.mean, value=-1)
        total = (self.stable + variance).reciprocal_()
        structure = torch.rsub(covariance, STABLE, alpha=-2).mul_(total)
        share = covariance.clamp(min=0).mul_(self.inverse)
        left = torch.addcmul(variance, share, covariance, value=-1).clamp_(min=0).add_(NOISE).reciprocal_()
        by_variance = variance.add_(NOISE).reciprocal_() - left
        by_variance = by_variance.mul_(INFORMATION).addcmul_(structure, total, value=-STRUCTURE)
        by_covariance = total.mul_(STRUCTURE).addcmul_(share, left, value=INFORMATION).mul_(self.off)
        return torch.addcmul(_both(by_covariance), _both(by_variance), levels - mean)

    def _means(self, images: Tensor) -> Tensor:
        return window_sum(images, WINDOW).mul_(self.weight)


def _both(planes: Tensor) -> Tensor:
    """The sum of two planes, (N, 1, H, W), of (N, 2, H, W)."""
    return planes[:, :1] + planes[:, 1:]


def slopes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes a pixel along rows and along columns, (N, C, H, W) each, as the images; the border is repeated."""
    padded = F.pad(images / 8, (1, 1, 1, 1), mode="replicate")
    return _across(padded), _down(padded)


def _across(padded: Tensor) -> Tensor:
    """Eight times the slopes a pixel along rows, (N, C, H, W), of (N, C, H + 2, W + 2), by Sobel's kernel.

    By shifts, which take less time than a convolution with so few channels.
    """
    rows = (padded[..., :-2, :] + padded[..., 2:, :]).add_(padded[..., 1:-1, :], alpha=2)
    return rows[..., 2:] - rows[..., :-2]


def _down(padded: Tensor) -> Tensor:
    """The same along columns."""
    return _across(padded.mT).mT
