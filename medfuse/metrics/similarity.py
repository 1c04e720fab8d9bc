"""Measures of likeness, pixel by pixel and in small neighbourhoods: PSNR, SSIM, MS-SSIM, CC, SCD."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from medfuse.metrics.images import Convention, divide, to_levels
from medfuse.metrics.smoothing import gaussian, smooth

#: Weights of the five scales of MS-SSIM, fine to coarse (Wang, Simoncelli and Bovik 2003).
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

#: Side in pixels of SSIM's Gaussian window.
SSIM_WINDOW = 11


def psnr(fused: Tensor, source: Tensor, *, convention: Convention = "standard") -> Tensor:
    """PSNR, peak signal to noise: 10 log10(255² / MSE), the images in grey levels.

    D. Salomon, Data Compression, 4th ed. (2007). Range 0 to infinity, higher is better, symmetric.
    Identical images give infinity. Constant images are no special case: levels c and d give 20 log10(255 / |c - d|).
    For two sources the standard is the PSNR of the mean of the two MSE (X. Zhang, P. Ye and G. Xiao,
    VIFB, CVPR Workshops 2020).

    Convention "paper": floats beyond [0, 1], as some networks put out, are not clipped; and for two sources the mean of
    the two decibel values is taken, which rewards the copy of one source without bound.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        source: The same shape.
        convention: See above.

    Returns:
        (N,), dB.
    """
    first, second = to_levels(fused, source, clip=convention == "standard")
    return -10 * torch.log10((first - second).square().mean(dim=(1, 2, 3)) / 255**2)


def ssim(fused: Tensor, source: Tensor, *, convention: Convention = "standard") -> Tensor:
    """SSIM, structural similarity: mean of (2 μ_x μ_y + C1)(2 σ_xy + C2) / ((μ_x² + μ_y² + C1)(σ_x² + σ_y² + C2)).

    Z. Wang, A. C. Bovik, H. R. Sheikh and E. P. Simoncelli, IEEE Trans. Image Process. 13(4):600-612 (2004), eq. 13,
    with its 11 × 11 Gaussian of 1.5 pixels, over the valid area only, C1 = (0.01 · 255)², C2 = (0.03 · 255)². Range -1
    to 1, higher is better, symmetric; for two sources the mean. Identical images give 1, also constant ones; two
    constant images of levels c and d give (2cd + C1) / (c² + d² + C1). The same as scikit-image's with
    `gaussian_weights=True, use_sample_covariance=False`.

    Convention "paper": the same, but floats beyond [0, 1] are not clipped.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        source: The same shape.
        convention: See above.

    Returns:
        (N,).

    Raises:
        UnsupportedImage: The images are smaller than 11 × 11.
    """
    first, second = to_levels(fused, source, smallest=SSIM_WINDOW, clip=convention == "standard")
    luminance, contrast = ssim_maps(first, second)
    return (luminance * contrast).mean(dim=(1, 2, 3))


def ms_ssim(fused: Tensor, source: Tensor) -> Tensor:
    """MS-SSIM: contrast and structure of SSIM at five scales, luminance at the coarsest, as a weighted product.

    Z. Wang, E. P. Simoncelli and A. C. Bovik, Asilomar Conf. Signals Syst. Comput. 2003, eq. 7; each scale is the mean
    of 2 × 2 pixels of the one before, an odd border repeated. Range 0 to 1, higher is better, symmetric; for two
    sources the mean. A scale whose mean contrast term is negative counts as 0, and makes the product 0. Identical
    images give 1, also constant ones; a constant image beside another gives nearly 0. An image of fewer than 161 pixels
    on a side has no room for five scales: then those that fit are used, with weights scaled to the same sum, and values
    compare only among images of one size. Sides that 16 divides give what piq and pytorch-msssim give; these pad odd
    borders in other ways.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        source: The same shape.

    Returns:
        (N,).

    Raises:
        UnsupportedImage: The images are smaller than 11 × 11.
    """
    first, second = to_levels(fused, source, smallest=SSIM_WINDOW)
    side = min(first.shape[2:])
    count = sum(-(-side // 2**scale) >= SSIM_WINDOW for scale in range(len(SCALE_WEIGHTS)))
    weights = first.new_tensor(SCALE_WEIGHTS[:count]) * (sum(SCALE_WEIGHTS) / sum(SCALE_WEIGHTS[:count]))
    product = first.new_ones(len(first))
    for scale, weight in enumerate(weights):
        luminance, contrast = ssim_maps(first, second)
        term = luminance * contrast if scale == count - 1 else contrast
        product = product * term.mean(dim=(1, 2, 3)).clamp(min=0) ** weight
        first, second = _halve(first), _halve(second)
    return product


def correlation(fused: Tensor, source: Tensor) -> Tensor:
    """CC, Pearson's correlation of the grey levels.

    M. Deshmukh and U. Bhosale, Int. J. Image Process. 4(5):484-508 (2010). Range -1 to 1, higher is better, symmetric;
    for two sources the mean. Identical images give 1; a constant image on either side gives 0.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        source: The same shape.

    Returns:
        (N,).
    """
    return _pearson(*to_levels(fused, source))


def correlation_of_difference(fused: Tensor, source: Tensor, other: Tensor) -> Tensor:
    """One source's part of SCD: the correlation of the source with what the result has beyond the other source.

    V. Aslantas and E. Bendes, AEU Int. J. Electron. Commun. 69(12):1890-1896 (2015): SCD = r(F - B, A) +
    r(F - A, B), -2 to 2. Range of one part -1 to 1, higher is better. A copy of `other` gives 0, as do three identical
    images and a constant source; the plain sum of both sources gives 1.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1].
        source: The same shape; the source whose part is asked for.
        other: The same shape; the source that is taken away.

    Returns:
        (N,).
    """
    result, wanted, removed = to_levels(fused, source, other)
    return _pearson(result - removed, wanted)


def _halve(images: Tensor) -> Tensor:
    """Means of 2 × 2 pixels, the last row or column repeated where the number is odd."""
    rows, columns = images.shape[2:]
    return avg_pool2d(pad(images, (0, columns % 2, 0, rows % 2), mode="replicate"), 2)


def _pearson(first: Tensor, second: Tensor) -> Tensor:
    first, second = (image - image.mean(dim=(1, 2, 3), keepdim=True) for image in (first, second))
    energies = [image.square().sum(dim=(1, 2, 3)) for image in (first, second)]
    least = 1e-18 * first[0].numel()  # the energy that rounding leaves in a constant image
    product = torch.where((energies[0] > least) & (energies[1] > least), energies[0] * energies[1], 0)
    return divide((first * second).sum(dim=(1, 2, 3)), product.sqrt()).clamp(-1, 1)


def ssim_maps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance map, and the product of contrast and structure, each (N, 1, H-10, W-10)."""
    stack = torch.cat([first, second, first * first, second * second, first * second])
    mean_x, mean_y, xx, yy, xy = smooth(stack, gaussian(SSIM_WINDOW, 1.5)).chunk(5)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return luminance, contrast
