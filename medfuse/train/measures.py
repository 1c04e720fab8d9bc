"""Measures of fusion as losses: differentiable, in float32, and of a part of an image.

Each follows its sibling in `medfuse.metrics`, whose docstring has formula and source, and differs from it by what is
said here. All take (N, 1, H, W) in grey levels 0-255, fused first, and return (N,).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medfuse.metrics.gradient import PETROVIC, XYDEAS, Edges
from medfuse.metrics.images import divide
from medfuse.metrics.similarity import SCALE_WEIGHTS, SSIM_WINDOW, ssim_maps
from medfuse.metrics.smoothing import gaussian, smooth
from medfuse.metrics.structure import VIF_WINDOWS, VISUAL_NOISE, variances

#: Variance, in squared grey levels, up to which a window counts as constant: what float32 cannot tell from rounding.
FLAT = 1e-2


def edges_kept(fused: Tensor, structural: Tensor, functional: Tensor) -> Tensor:
    """Q_AB/F, with a strength that has a slope at 0, too."""
    target, first, second = (_edges(image) for image in (fused, structural, functional))
    kept = XYDEAS.kept(target, first) * first.strength + XYDEAS.kept(target, second) * second.strength
    return divide(kept.sum(dim=(1, 2, 3)), (first.strength + second.strength).sum(dim=(1, 2, 3)))


def edges_made_up(fused: Tensor, structural: Tensor, functional: Tensor) -> Tensor:
    """N_AB/F, an edge counting the more as made up, the more it exceeds those of both sources: a logistic step."""
    target, first, second = (_edges(image, scale=8) for image in (fused, structural, functional))
    weights = [torch.where(source.strength < 2, 0.001, source.strength**1.5) for source in (first, second)]
    lost = (1 - PETROVIC.kept(target, first)) * weights[0] + (1 - PETROVIC.kept(target, second)) * weights[1]
    made_up = torch.sigmoid(target.strength - torch.maximum(first.strength, second.strength) - 1)
    return divide((lost * made_up).sum(dim=(1, 2, 3)), (weights[0] + weights[1]).sum(dim=(1, 2, 3)))


def vif(fused: Tensor, source: Tensor) -> Tensor:
    """VIF; windows that are nearly constant count as constant."""
    kept = present = fused.new_zeros(len(fused))
    for scale, size in enumerate(VIF_WINDOWS):
        window = gaussian(size, size / 5)
        if scale > 0:
            fused, source = (smooth(image, window)[..., ::2, ::2] for image in (fused, source))
        fused_variance, source_variance, covariance = variances(fused, source, window, FLAT)
        gain = (covariance / source_variance.clamp(min=FLAT)).clamp(min=0)
        noise = (fused_variance - gain * covariance).clamp(min=0)
        kept = kept + (gain.square() * source_variance / (noise + VISUAL_NOISE)).log1p().sum(dim=(1, 2, 3))
        present = present + (source_variance / VISUAL_NOISE).log1p().sum(dim=(1, 2, 3))
    return divide(kept, present)


def ssim_and_ms_ssim(fused: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM, and MS-SSIM of as many scales as the image has room for; one whose mean is negative counts as nearly 0."""
    single, product = fused.new_zeros(len(fused)), fused.new_ones(len(fused))
    weights = [weight for scale, weight in enumerate(SCALE_WEIGHTS) if min(fused.shape[2:]) >> scale >= SSIM_WINDOW]
    for scale, weight in enumerate(weights):
        luminance, contrast = ssim_maps(fused, source)
        whole = (luminance * contrast).mean(dim=(1, 2, 3))
        single = whole if scale == 0 else single
        term = whole if scale == len(weights) - 1 else contrast.mean(dim=(1, 2, 3))
        product = product * term.clamp(min=1e-3) ** weight
        fused, source = F.avg_pool2d(fused, 2), F.avg_pool2d(source, 2)
    return single, product


def correlation(first: Tensor, second: Tensor, weights: Tensor | None = None) -> Tensor:
    """Pearson's correlation of two images, pixels weighted; near 0 where one is nearly constant."""
    weights = torch.ones_like(first) if weights is None else weights
    total = weights.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    first, second = (image - (weights * image).sum(dim=(1, 2, 3), keepdim=True) / total for image in (first, second))
    across, one, other = (
        (weights * a * b).sum(dim=(1, 2, 3)) for a, b in ((first, second), (first, first), (second, second))
    )
    return across / (one * other + 1e3).sqrt()


def _edges(image: Tensor, scale: float = 1) -> Edges:
    kernel = image.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / scale
    across, down = F.conv2d(
        F.pad(image, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.mT])[:, None]
    ).chunk(2, dim=1)
    least = torch.where(across < 0, -1e-3, 1e-3)
    angle = torch.atan(-down / torch.where(across.abs() < 1e-3, least, across))
    return Edges((across.square() + down.square() + 1e-6).sqrt(), angle)
