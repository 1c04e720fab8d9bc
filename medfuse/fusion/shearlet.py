"""A digital shearlet transform: an image as sub-bands of scale and direction, and back, without loss.

The windows are even, band-limited and applied in the Fourier domain; nothing is decimated, so that every sub-band has
the size of the image and moves with it. Their squares sum to 1 at every frequency, which makes the system a Parseval
frame: the transform keeps the energy, and its transpose is its inverse.

The windows are those of Häuser and Steidl, "Fast Finite Shearlet Transform: a tutorial", arXiv 1202.1773, in the smooth
construction of section 3.4, where the two halves of a diagonal shearlet are joined. Two things differ. Scales are one
octave apart, not two, and the number of directions does not double at every scale but at every second one, which keeps
the parabolic ratio of length to width. And where a side is even, the square of a window at the Nyquist frequency is the
mean of its two mirror images, so that coefficients are real for any size.
"""

from __future__ import annotations

from functools import lru_cache

import scipy
import torch
from torch import Tensor

#: Directions of each scale, coarse to fine.
DIRECTIONS = (4, 8, 8)
#: Pixels by which an image is continued on every side, so that its opposite borders do not meet.
MARGIN = 16


def decompose(image: Tensor, margin: int = MARGIN) -> list[Tensor]:
    """Analyse images of any size.

    Args:
        image: (N, 1, H, W), real.
        margin: Pixels of mirror image around it, at least; sides are rounded up to a length that is quick to transform.
            With 0 and such sides the image is periodic.

    Returns:
        The sub-bands of the continued image: the low frequencies (N, 1, H', W'), then a tensor (N, directions, H', W')
        a scale, coarse to fine. Direction 0 holds waves that vary along a row, the next ones waves turned from there
        towards those that vary down a column (direction D / 2 of D), and on through half a turn.
    """
    rows, columns = (_mirrored(size, margin, image.device) for size in image.shape[-2:])
    continued = image[..., rows, :][..., columns]
    spectrum = torch.fft.rfft2(continued)
    sides = len(rows), len(columns)
    return [torch.fft.irfft2(spectrum * window, s=sides) for window in windows(*sides, image.device)]


def compose(bands: list[Tensor], size: tuple[int, int], margin: int = MARGIN) -> Tensor:
    """The image (N, 1, H, W) of the sub-bands that `decompose` makes; exact to rounding.

    Args:
        bands: As `decompose` returns them.
        size: Height and width of the image.
        margin: As given to `decompose`.
    """
    height, width = bands[0].shape[-2:]
    spectrum = torch.stack(
        [
            (torch.fft.rfft2(band) * window).sum(dim=1, keepdim=True)
            for band, window in zip(bands, windows(height, width, bands[0].device), strict=True)
        ]
    ).sum(dim=0)
    image: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    return image[..., margin : margin + size[0], margin : margin + size[1]]


@lru_cache(maxsize=4)
def windows(height: int, width: int, device: torch.device) -> list[Tensor]:
    """The windows of all sub-bands, each (bands, height, width // 2 + 1) float32, ordered as `decompose` does.

    They lie on the frequencies of `torch.fft.rfft2`. Do not change them: they are kept for the next image.
    """
    with torch.inference_mode(False):
        y = torch.fft.fftfreq(height, dtype=torch.float64)[:, None].expand(height, width)
        x = torch.fft.fftfreq(width, dtype=torch.float64).expand(height, width)
        scales = len(DIRECTIONS)
        lowpass = [_lowpass(x, y, scale) for scale in range(scales, 0, -1)] + [torch.ones_like(x)]
        squares = [lowpass[0].square()[None]]
        for inner, outer, directions in zip(lowpass, lowpass[1:], DIRECTIONS, strict=False):
            squares.append((outer.square() - inner.square()) * _directional(x, y, directions).square())
        return [_even(square).sqrt()[..., : width // 2 + 1].to(device, torch.float32) for square in squares]


def _mirrored(size: int, margin: int, device: torch.device) -> Tensor:
    """Indices of `size` pixels continued by their mirror image, edge pixel included, however often it takes."""
    length = scipy.fft.next_fast_len(size + 2 * margin, real=True)
    index = torch.arange(-margin, length - margin, device=device) % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def _meyer(x: Tensor) -> Tensor:
    """Meyer's auxiliary function: 0 up to 0, 1 from 1, and v(x) + v(1 - x) = 1 (section 2.1)."""
    x = x.clamp(0, 1)
    return x**4 * (35 - 84 * x + 70 * x**2 - 20 * x**3)


def _lowpass(x: Tensor, y: Tensor, scale: int) -> Tensor:
    """1 up to 1/2^(scale + 1) cycles a pixel along either axis, 0 from twice that on (section 3.4)."""
    profiles = [torch.cos(torch.pi / 2 * _meyer(frequency.abs() * 2 ** (scale + 1) - 1)) for frequency in (x, y)]
    return profiles[0] * profiles[1]


def _directional(x: Tensor, y: Tensor, directions: int) -> Tensor:
    """The directional window of each direction, (directions, H, W): bumps over the slope.

    Within 45° of the x axis the slope is y / x, from -1 to 1; beyond, 2 - x / y continues it from 1 to 3, where it
    meets itself again. Adjacent bumps overlap such that their squares sum to 1 (section 2.1).
    """
    steep = y.abs() > x.abs()
    slope = torch.where(steep, 2 - x / torch.where(steep, y, 1), y / torch.where(steep | (x == 0), 1, x))
    half = directions / 2
    position = slope * directions / 4 - torch.arange(directions, dtype=slope.dtype)[:, None, None]
    distance = (position + half) % directions - half
    return _meyer(1 - distance.abs()).sqrt()


def _even(square: Tensor) -> Tensor:
    """The mean of a window's square and its reflection through frequency 0: differs at the Nyquist frequency only."""
    return (square + square.flip(-2, -1).roll((1, 1), (-2, -1))) / 2
