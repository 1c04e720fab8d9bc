"""A few small steps that bring a fused image nearer to its sources: by formulas, whose constants can be learned.

They go uphill in what a pixel and its surroundings have of both sources: edges that are a source's, a structure that is
a source's, and how much of a source can be read from the result. That is what Q_AB/F, SSIM and VIF measure. A network
that is trained to do well by them does so on the whole; what the pixels before it lack, it does not see.

How far each step goes and what counts in it how much is learned by taking the steps, as in variational networks
(K. Hammernik et al., Magn. Reson. Med. 79(6), 2018).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfuse.fusion.networks.windows import window_pixels, window_sum

#: Before any training: the steps, by how far each goes at most where the result is black, in levels of 255; the last
#: ones settle.
STEPS = (16.0, 14.0, 7.0, 6.0, 3.0)
#: What is gained at a pixel for which a step is half as long as it can be, per level; what edges that are kept (of
#: either source), edges that are made up, structure and information (of either) count in it.
HALFWAY, EDGES, MADE_UP, STRUCTURE, INFORMATION = 2.0, (1.1, 1.2), 9.0, (30.0, 36.0), (3.4, 3.4)
#: Two logistic steps as Q_AB/F has them, for the ratio of strengths and for the angle: how steep, and where.
STRENGTH_STEP, ANGLE_STEP = (15.0, 0.48), (13.0, 0.77)
#: Squared slope, in levels a pixel, that keeps what is level from turning at once.
LEVEL = 9.0
#: The power of 1 - x by which steps are shorter where the result, x, is light.
LIGHT = 0.8
#: A result that ends this near a source, in levels, is that source's value.
NEARLY = 3.0
#: Levels from one to the next of the differences from a source that a result is drawn to, and the share of that way
#: over which it goes from one to the next.
TREAD, RISER = 4.0, 0.15
#: Levels by which a source has to be nearer than the other for a result to be drawn to it in full.
CLEARLY = 2.0
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


class Step(NamedTuple):
    """One step: how far it goes at most, in levels, what gains half of that, and what counts; of either source."""

    far: Tensor
    halfway: Tensor
    edges: Tensor
    made_up: Tensor
    structure: Tensor
    information: Tensor


class Refinement(nn.Module):
    """The steps; 51 constants, the logarithms of what the steps use.

    A training of them asks for it (`only` in its config); any other leaves them as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        alike = {
            "halfway": HALFWAY,
            "edges": EDGES,
            "made_up": MADE_UP,
            "structure": STRUCTURE,
            "information": INFORMATION,
        }
        each = {"far": STEPS, **{name: [value] * len(STEPS) for name, value in alike.items()}}
        self.each = nn.ParameterDict({name: _logarithms(values) for name, values in each.items()})
        self.strength_step, self.angle_step = _logarithms(STRENGTH_STEP), _logarithms(ANGLE_STEP)
        self.level, self.light = _logarithms(LEVEL), _logarithms(LIGHT)

    def forward(self, fused: Tensor, structural: Tensor, functional: Tensor, share: Tensor) -> Tensor:
        """A fused image after the steps, (N, 1, H, W), not clamped; what then is nearly a source's value is that value.

        A step is the shorter, the lighter the image: what is white stays, such as the peak of a tracer. A training sees
        the steps alone.

        Args:
            fused: (N, 1, H, W), black 0, white 1.
            structural: The same shape.
            functional: The same shape.
            share: The same shape: how much of each step is taken, from 0 to 1. Where it is 0, a source's value stays as
                it is, to the bit.
        """
        if self.training:  # what is overwritten in place has no slopes
            stepped: Tensor = torch.func.functionalize(self.stepped)(fused, structural, functional, share)
            return stepped
        return nearer(self.stepped(fused, structural, functional, share), structural, functional)

    def stepped(self, fused: Tensor, structural: Tensor, functional: Tensor, share: Tensor) -> Tensor:
        """The image after the steps alone."""
        sources = torch.cat([structural, functional], dim=1) * 255 - MIDDLE
        edges = Edges(sources, self.strength_step.exp(), self.angle_step.exp(), self.level.exp())
        windows = Windows(sources)
        reach, levels = share * (1 - fused).clamp(min=0) ** self.light.exp(), fused * 255 - MIDDLE
        for step in self.steps():
            uphill = edges.uphill(levels, step.edges, step.made_up)
            uphill += windows.uphill(levels, step.structure, step.information)
            levels.addcdiv_((uphill * reach).mul_(step.far), uphill.abs().add_(step.halfway))
        return torch.where(share > 0, (levels + MIDDLE) / 255, fused)

    def steps(self) -> list[Step]:
        """The steps with what their logarithms stand for; of either source (2, 1, 1)."""
        values = [self.each[name].exp() for name in Step._fields]
        columns = [value[..., None, None] if value.ndim == 2 else value for value in values]
        return [Step(*row) for row in zip(*columns, strict=True)]


def _logarithms(values: Any) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values).log(), requires_grad=False)


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

    Kept is Σ w Q of each source, Q = S(G) S(A): G is the smaller strength of slope over the larger, A is 1 - |Δα| /
    (π/2) for the angle α of the slope, S(x) is 1 / (1 + exp(-k (x - m))), and w is the source's strength (C. S. Xydeas
    and V. Petrović, Electron. Lett. 36(4), 2000; there k and m are 15 and 0.5 for G, 22 and 0.8 for A). An edge that is
    nearly a source's is drawn to it, one that is far from both is left alone. Slopes are Sobel's. Unlike there, 89° and
    -89° are 2° apart.

    Made up is, as N_AB/F has it, an edge that is stronger than those of both sources, by what it leaves of them: the
    logarithm of its strength, from half a level below the stronger one's, times Σ w (1 - Q).

    Args:
        sources: Both, in levels, (N, 2, H, W).
        strength_step: How steep S is for G, and where: (2,).
        angle_step: The same for A.
        level: Squared slope, in levels a pixel, that keeps what is level from turning at once; ().
    """

    def __init__(self, sources: Tensor, strength_step: Tensor, angle_step: Tensor, level: Tensor) -> None:
        self.strength_step, self.angle_step, self.level = strength_step, angle_step, level
        across, down = slopes(sources)
        self.strength, self.half_turns = _squared(across, down).sqrt(), _half_turns(across, down)
        self.inverse = (self.strength + FAINT).reciprocal()
        self.below_strongest = self.strength.amax(dim=1, keepdim=True) - 0.5

    def uphill(self, levels: Tensor, edges: Tensor, made_up: Tensor) -> Tensor:
        """How the sum rises with each pixel, (N, 1, H, W); less where it has a kink, or the image is level.

        Args:
            levels: The image, (N, 1, H, W).
            edges: What edges that are kept count, of either source, (2, 1, 1).
            made_up: What edges that are made up count, ().
        """
        across, down = slopes(levels)
        square = _squared(across, down)
        strength = (square + TINY).sqrt_()  # which has a slope at 0, too
        ratio = strength * self.inverse
        turned = _half_turns(across, down) - self.half_turns
        turned -= turned.round()
        alike = torch.minimum(ratio, ratio.reciprocal())
        (steep, middle), (sharp, turn_middle) = self.strength_step, self.angle_step
        as_strong = _logistic(alike, steep, middle)
        as_turned = _logistic(turned.abs(), -2 * sharp, (1 - turn_middle) / 2)  # of 1 - 2 |turned|
        kept = (self.strength * as_strong).mul_(as_turned)
        longer = as_strong.mul_(kept).sub_(kept).mul_(alike.copysign_(1 - ratio))  # both turned round: downhill
        turn = as_turned.mul_(kept).sub_(kept).mul_(turned.div_(NEARLY_TURNED).clamp_(-1, 1))
        over = (strength - self.below_strongest).clamp_(0, 1).mul_(_both(self.strength - kept))
        each = square.add_(self.level).reciprocal_()
        longer = _both(longer.mul_(edges * steep)).add_(over.mul_(made_up)).mul_(each)
        turn = _both(turn.mul_(edges * (sharp * 2 / math.pi))).mul_(each)
        along, below = torch.addcmul(longer * across, turn, down), torch.addcmul(longer * down, turn, across, value=-1)
        along, below = (F.pad(slope, (1, 1, 1, 1)) for slope in (along, below))
        return _across(along).add_(_down(below)).div_(8)  # Sobel's kernels are odd: their transpose is minus themselves


def _logistic(x: Tensor, steep: Tensor, middle: Tensor) -> Tensor:
    """1 / (1 + exp(-`steep` (x - `middle`)))."""
    return (x - middle).mul_(steep).sigmoid_()


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

    def uphill(self, levels: Tensor, structure: Tensor, information: Tensor) -> Tensor:
        """How what a window has rises with the pixel in its middle, times half the window's pixels, (N, 1, H, W).

        Args:
            levels: The image, (N, 1, H, W).
            structure: What structure counts, of either source, (2, 1, 1).
            information: What information counts, likewise.
        """
        means = self._means(torch.cat([levels, levels.square(), levels * self.sources], dim=1))
        mean = means[:, :1]
        variance = torch.addcmul(means[:, 1:2], mean, mean, value=-1).clamp_(min=0)
        covariance = torch.addcmul(means[:, 2:], mean, self.mean, value=-1)
        total = (self.stable + variance).reciprocal_()
        alike = torch.rsub(covariance, STABLE, alpha=-2).mul_(total)
        share = covariance.clamp(min=0).mul_(self.inverse)
        left = torch.addcmul(variance, share, covariance, value=-1).clamp_(min=0).add_(NOISE).reciprocal_()
        by_variance = variance.add_(NOISE).reciprocal_() - left
        total *= structure
        by_variance = by_variance.mul_(information).sub_(alike.mul_(total))
        by_covariance = share.mul_(left).mul_(information).add_(total).mul_(self.off)
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
