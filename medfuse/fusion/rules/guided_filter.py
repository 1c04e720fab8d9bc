"""Guided-filter fusion (GFF), and the guided filter itself.

Li, Kang and Hu, "Image Fusion with Guided Filtering", IEEE Transactions on Image Processing 22, 2013, section III; He,
Sun and Tang, "Guided Image Filtering", IEEE Transactions on Pattern Analysis and Machine Intelligence 35, 2013.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medfuse.fusion.rules.preference import preference
from medfuse.fusion.rules.smoothing import box, gaussian, smooth

#: Side of the mean that parts base from detail, in pixels.
BASE_SIZE = 31
#: Side and sigma of the Gaussian that makes a saliency of the Laplacian, in pixels.
SALIENCY = gaussian(11, 5)
#: Radius in pixels and ε of the guided filter, for the weights of the base and of the detail.
BASE_FILTER = (45, 0.3)
DETAIL_FILTER = (7, 1e-6)
#: Weights below this count as none.
NO_WEIGHT = 1e-6


def guided_filter_fusion(structural: Tensor, functional: Tensor) -> Tensor:
    """Base and detail, each with its own weights: who is more salient, smoothed along the edges of the image itself.

    Args:
        structural: (N, 1, H, W) in [0, 1].
        functional: The same shape.

    Returns:
        (N, 1, H, W), not clamped.
    """
    images = torch.stack([structural, functional])
    bases = smooth(images, box(BASE_SIZE))
    first = preference(*saliency(images))
    preferred = torch.stack([first, 1 - first])
    base = (refined(preferred, images, *BASE_FILTER) * bases).sum(dim=0)
    return base + (refined(preferred, images, *DETAIL_FILTER) * (images - bases)).sum(dim=0)


def saliency(images: Tensor) -> Tensor:
    """Gaussian mean of the absolute Laplacian, (..., H, W) to the same."""
    vertical, horizontal = (_second_difference(images, axis) for axis in (-2, -1))
    return smooth((vertical + horizontal).abs(), SALIENCY)


def refined(weights: Tensor, images: Tensor, radius: int, epsilon: float) -> Tensor:
    """Weights smoothed by a guided filter, each by its own image, and made to add up to 1.

    Args:
        weights: (2, N, 1, H, W), one weight map a source.
        images: The same shape; the guides.
        radius: As for `guided_filter`.
        epsilon: As for `guided_filter`.
    """
    smoothed = guided_filter(images, weights, radius, epsilon).clamp(0, 1) + NO_WEIGHT
    return smoothed / smoothed.sum(dim=0)


def guided_filter(guide: Tensor, image: Tensor, radius: int, epsilon: float) -> Tensor:
    """Smooth an image along the edges of a guide: in each window it is fitted by a line in the guide.

    With w a square window, a = cov_w(guide, image) / (var_w(guide) + ε) and b = mean_w(image) - a mean_w(guide). The
    result is the guide times the mean of a over all windows that hold the pixel, plus the mean of b: He, Sun and Tang,
    equations 5, 6 and 8.

    Args:
        guide: (..., H, W).
        image: The same shape.
        radius: Of the window, 2 radius + 1 pixels wide; cut off at the edges.
        epsilon: Variances of the guide far below this are smoothed over; squared grey levels.

    Returns:
        (..., H, W).
    """
    window = box(2 * radius + 1)
    guide_mean, image_mean, product_mean, square_mean = smooth(
        torch.stack([guide, image, guide * image, guide.square()]), window
    )
    variance = (square_mean - guide_mean.square()).clamp(min=0)
    slope = (product_mean - guide_mean * image_mean) / (variance + epsilon)
    slope_mean, offset_mean = smooth(torch.stack([slope, image_mean - slope * guide_mean]), window)
    smoothed: Tensor = slope_mean * guide + offset_mean
    return smoothed


def _second_difference(images: Tensor, axis: int) -> Tensor:
    """Second difference along an axis, the edge pixels repeated beyond the edge."""
    difference = images.diff(dim=axis)
    before, after = ((1, 0), (0, 1)) if axis == -1 else ((0, 0, 1, 0), (0, 0, 0, 1))
    return F.pad(difference, after) - F.pad(difference, before)
