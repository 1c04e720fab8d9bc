"""Measures of structure as a viewer sees it: VIF, by statistics of natural scenes, and FSIM, by phase congruency."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from medfuse.metrics.images import Convention, divide, to_levels
from medfuse.metrics.phase import FSIM_MODEL, PHASEPACK_MODEL, phase_congruency
from medfuse.metrics.smoothing import gaussian, smooth

#: Sides in pixels of VIF's Gaussian windows, one a scale, fine to coarse; the deviation is a fifth.
VIF_WINDOWS = (17, 9, 5, 3)

#: Variance of the noise of the visual channel, in squared grey levels; the value of VIF's authors.
VISUAL_NOISE = 2.0

#: Fewest rows and columns on which every window of VIF fits.
VIF_SMALLEST = 41

#: Fewest rows and columns for FSIM: two periods of its shortest wavelength.
FSIM_SMALLEST = 12


def vif(fused: Tensor, source: Tensor) -> Tensor:
    """VIF, the share of a source's visual information that the result still carries; pixel domain, four scales.

    At each scale the windows give g = σ_sf / σ_s² and v = σ_f² - g σ_sf, and over all windows and scales
    VIF = Σ log(1 + g² σ_s² / (v + 2)) / Σ log(1 + σ_s² / 2).

    H. R. Sheikh and A. C. Bovik, IEEE Trans. Image Process. 15(2):430-444 (2006), in the form its authors
    published as VIFp; between scales the image is smoothed and every second pixel kept. Range from 0; 1 for identical
    images, and above 1 where the result has more contrast than the source. Higher is better; not symmetric. For two
    sources fusion tables add the two values. A constant source or a constant result gives 0.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        source: The same shape.

    Returns:
        (N,).

    Raises:
        UnsupportedImage: The images are smaller than 41 × 41.
    """
    result, reference = to_levels(fused, source, smallest=VIF_SMALLEST)
    kept = result.new_zeros(len(result))
    present = kept.clone()
    for scale, size in enumerate(VIF_WINDOWS):
        window = gaussian(size, size / 5)
        if scale > 0:
            result, reference = (smooth(image, window)[..., ::2, ::2] for image in (result, reference))
        reference_variance, result_variance, covariance = variances(reference, result, window, 1e-8)
        gain = divide(covariance, reference_variance).clamp(min=0)
        noise = (result_variance - gain * covariance).clamp(min=0)
        signal = gain.square() * reference_variance
        kept = kept + (signal / (noise + VISUAL_NOISE)).log1p().sum(dim=(1, 2, 3))
        present = present + (reference_variance / VISUAL_NOISE).log1p().sum(dim=(1, 2, 3))
    return divide(kept, present)


def fsim(fused: Tensor, source: Tensor, *, convention: Convention = "standard") -> Tensor:
    """FSIM, feature similarity: Σ S_PC S_G PC_m / Σ PC_m, with S = (2xy + T) / (x² + y² + T), T = 0.85 and 160.

    PC is phase congruency, PC_m the larger of the two images', G the Scharr gradient in grey levels.

    L. Zhang, L. Zhang, X. Mou and D. Zhang, IEEE Trans. Image Process. 20(8):2378-2386 (2011), section III. Images are
    first shrunk by round(shorter side / 256), as means of blocks. Range 0 to 1, higher is better, symmetric; for two
    sources the mean. Identical images give 1, also constant ones; where neither image has any phase congruency all
    pixels count alike.

    Convention "paper": images in [0, 1] and not shrunk; phase congruency per orientation (six), added up; Scharr sums
    cast to unsigned integers (rounded, negative ones 0) before they are squared, so that they are at most 16 against
    T = 160 and hardly count.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        source: The same shape.
        convention: See above.

    Returns:
        (N,).

    Raises:
        UnsupportedImage: The images are smaller than 12 × 12.
    """
    stack = torch.cat(to_levels(fused, source, smallest=FSIM_SMALLEST, clip=convention == "standard"))
    if convention == "paper":
        stack = stack / 255
        phase, slope = phase_congruency(stack, PHASEPACK_MODEL), _integer_scharr(stack)
    else:
        stack = avg_pool2d(stack, max(1, math.floor(min(stack.shape[2:]) / 256 + 0.5)))  # MATLAB rounds 2.5 to 3
        phase, slope = phase_congruency(stack, FSIM_MODEL), _scharr(stack)
    (phase_f, phase_s), (slope_f, slope_s) = phase.chunk(2), slope.chunk(2)
    similar = _similarity(phase_f, phase_s, 0.85) * _similarity(slope_f, slope_s, 160)
    weight = torch.maximum(phase_f, phase_s)
    total = weight.sum(dim=(1, 2))
    return torch.where(total > 0, divide((similar * weight).sum(dim=(1, 2)), total), similar.mean(dim=(1, 2)))


def variances(first: Tensor, second: Tensor, window: Tensor, flat: float) -> tuple[Tensor, Tensor, Tensor]:
    """Variances of both images and their covariance in every window; a variance below `flat` is rounding: 0."""
    stack = torch.cat([first, second, first * first, second * second, first * second])
    mean_x, mean_y, xx, yy, xy = smooth(stack, window).chunk(5)
    variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
    flat_x, flat_y = variance_x < flat, variance_y < flat
    covariance = (xy - mean_x * mean_y).masked_fill(flat_x | flat_y, 0)
    return variance_x.masked_fill(flat_x, 0), variance_y.masked_fill(flat_y, 0), covariance


def _similarity(first: Tensor, second: Tensor, constant: float) -> Tensor:
    return (2 * first * second + constant) / (first.square() + second.square() + constant)


def _scharr(images: Tensor) -> Tensor:
    """Gradient magnitude, the image set in black. (N, 1, H, W) to (N, H, W)."""
    across, down = _scharr_sums(pad(images, (1, 1, 1, 1)))
    return torch.hypot(across, down) / 16


def _integer_scharr(images: Tensor) -> Tensor:
    """Gradient magnitude of sums cast to unsigned integers, the image mirrored. (N, 1, H, W) to (N, H, W)."""
    across, down = (sums.round().clamp(min=0) for sums in _scharr_sums(pad(images, (1, 1, 1, 1), mode="reflect")))
    return torch.hypot(across, down)


def _scharr_sums(padded: Tensor) -> tuple[Tensor, Tensor]:
    kernel = padded.new_tensor([[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]])
    across = conv2d(padded, kernel[None, None])[:, 0]
    down = conv2d(padded, kernel.mT.contiguous()[None, None])[:, 0]
    return across, down
