"""Duet, medfuse's own network: it looks at both images at once and corrects their pixelwise maximum.

The maximum keeps whatever is bright in either image, and never darkens what a source shows; it loses dark detail under
a bright neighbour, such as gyri under uptake. A small residual network finds what to take away or add. It works at half
the resolution, on blocks of 2 × 2 pixels (Shi et al., "Real-time single image and video super-resolution using an
efficient sub-pixel convolutional neural network", CVPR 2016), with dilated convolutions, which look further for less.
What it corrects is then refined by formulas, whose constants learn once the rest has: a training of both together
found nothing better (docs/experiments.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfuse.fusion.networks.lit import lit
from medfuse.fusion.networks.refinement import STEP_REACH, Refinement
from medfuse.fusion.networks.windows import window_sum

#: Features, and the dilations of the convolutions among them.
CHANNELS, DILATIONS = 32, (1, 2, 3, 1)
#: Slope of the leaky activations for negative values.
SLOPE = 0.1
#: Pixels around a block that its correction depends on: a block for each unit of dilation of a 3 × 3 convolution.
REACH = 2 * (1 + sum(DILATIONS) + 1)
#: Corrections up to this are not made; a training makes this share of them, which lets them grow.
LEAST, LEAK = 6 / 255, 0.1
#: The correction from which on the result is refined in full; what is not corrected is not refined.
FULL = 2 / 255
#: What is darker shows black in 8 bits.
BLACK = 0.5 / 255
#: Side of the window in which the sources are compared, and the mean difference in it that halves the correction.
WINDOW, LITTLE = 7, 0.02


class Duet(nn.Module):
    """The whole network; 41,687 parameters, any size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3 * 4, CHANNELS, 3, padding=1)
        self.middle = nn.ModuleList(
            [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS]
        )
        self.last = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        for parameter in self.last.parameters():  # a training starts at the maximum
            nn.init.zeros_(parameter)
        self.refinement = Refinement()

    def forward(self, structural: Tensor, functional: Tensor) -> Tensor:
        """Fuse images, each (N, 1, H, W) in [0, 1], into one (N, 1, H, W), not clamped, of the images' own precision.

        Where both sources show black, or are alike all around, the result is exactly their maximum. On a CPU what is
        black all around is not looked at, which changes nothing: there is nothing to correct, and the rest is too far.
        """
        largest = torch.maximum(structural, functional)
        if self.training:
            return largest + self.correction(structural, functional, largest)
        fused = largest.clone()
        part = (..., *lit(largest, REACH))
        fused[part] = self.corrected(structural[part], functional[part], largest[part])
        return fused

    def corrected(self, structural: Tensor, functional: Tensor, largest: Tensor) -> Tensor:
        """The maximum with what is to be added to it, refined where that is something."""
        correction = self.correction(structural, functional, largest)
        share = (correction.abs() / FULL).clamp(max=1)
        fused = largest + correction
        part = (..., *lit(share, STEP_REACH))
        fused[part] = self.refinement(fused[part], structural[part], functional[part], share[part])
        return fused

    def correction(self, structural: Tensor, functional: Tensor, largest: Tensor) -> Tensor:
        """What is to be added to the maximum, each (N, 1, H, W)."""
        rows, columns = largest.shape[-2:]
        planes = torch.cat([structural, functional, largest], dim=1).to(self.first.weight.dtype)
        x = F.pixel_unshuffle(F.pad(planes, (0, columns % 2, 0, rows % 2), mode="replicate"), 2)
        x = F.leaky_relu(self.first(x), SLOPE, inplace=True)
        for convolution in self.middle:
            added = F.leaky_relu(convolution(x), SLOPE, inplace=True)
            x = x + added if torch.is_grad_enabled() else added.add_(x)  # in place in a seventh less time
        found = F.pixel_shuffle(self.last(x), 2)[..., :rows, :columns].to(largest.dtype)
        made = without_small(found)
        if self.training:
            made = made + LEAK * (found - made)
        return made * (largest >= BLACK) * disagreement(structural, functional)


def without_small(found: Tensor) -> Tensor:
    """Corrections without those up to `LEAST`; larger ones hardly change: c - LEAST² / c.

    What nobody would see costs a copy of a source's pixel. This is the non-negative garrote (L. Breiman, Technometrics
    37, 1995; as a threshold: H.-Y. Gao, J. Comput. Graph. Stat. 7, 1998), which has no step.
    """
    large = found.abs() > LEAST
    return torch.where(large, found - LEAST**2 / torch.where(large, found, 1), 0)


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """How much two images differ around each pixel, from 0, where they are alike, towards 1."""
    difference = window_sum((first - second).abs(), WINDOW) / WINDOW**2
    return difference / (difference + LITTLE)
