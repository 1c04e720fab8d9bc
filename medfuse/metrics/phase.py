"""Phase congruency: where the Fourier components of an image are in step, as at lines and edges of any contrast.

P. Kovesi, Videre 1(3):1-26 (1999). Log-Gabor filters at four scales split the image by orientation; where the responses
of all scales point the same way, their energy reaches the sum of their amplitudes, and the quotient of the two is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from medfuse.metrics.images import divide

#: Wavelengths in pixels of the four filters.
WAVELENGTHS = (6, 12, 24, 48)

#: Deviations above the mean energy of noise that still count as noise.
NOISE_DEVIATIONS = 2


@dataclass(frozen=True)
class PhaseModel:
    """One of the two published ways to compute it.

    Args:
        orientations: Number of filter directions over half a turn.
        bandwidth: Deviation of the log-Gabor over its centre frequency.
        spread: Deviation of the Gaussian over the angle, in radians; None for a raised cosine.
        epsilon: What keeps quotients finite, in the image's own scale.
        is_per_orientation: Whether every direction has its own quotient, weighted by how many scales respond, and the
            noise is estimated from the median amplitude; else there is one quotient over all directions.
    """

    orientations: int
    bandwidth: float
    spread: float | None
    epsilon: float
    is_per_orientation: bool


#: As in the code published with FSIM: grey levels 0-255; L. Zhang et al. 2011, section II.
FSIM_MODEL = PhaseModel(4, 0.55, math.pi / 4 / 1.2, 1e-4, is_per_orientation=False)

#: As in Kovesi's later `phasecong3` and its Python port phasepack, on values in [0, 1]; its quotients are added up.
PHASEPACK_MODEL = PhaseModel(6, 0.5978, None, 1e-4, is_per_orientation=True)


def phase_congruency(images: Tensor, model: PhaseModel) -> Tensor:
    """Phase congruency at every pixel; equal images of a batch are computed once.

    Args:
        images: (N, 1, H, W), in the scale that the model is made for.
        model: How to compute it.

    Returns:
        (N, H, W), from 0; up to 1, or with quotients per orientation up to their number. Constant images give 0.
    """
    # No filter sees the mean; of a number taken off, float32 leaves nothing, and has six digits for the rest.
    images = (images - images[..., :1, :1]).float()
    distinct, place = torch.unique(images, dim=0, return_inverse=True)
    return _phase_congruency(distinct, model)[place]


def _phase_congruency(images: Tensor, model: PhaseModel) -> Tensor:
    spectrum = torch.fft.fft2(images)
    filters = _filters(images.shape[-2], images.shape[-1], model).to(images)
    total = torch.zeros_like(images[:, 0])
    amplitudes = torch.zeros_like(total)
    for bank in filters:
        responses = torch.fft.ifft2(spectrum * bank)  # (N, scales, H, W)
        amplitude = responses.abs()
        mean = responses.sum(dim=1)
        direction = (mean / (mean.abs() + model.epsilon)).conj()[:, None]
        in_step = torch.view_as_real(responses * direction)
        energy = (in_step[..., 0] - in_step[..., 1].abs()).sum(dim=1)
        noise = _rayleigh_noise(amplitude, model) if model.is_per_orientation else _gaussian_noise(amplitude, bank)
        energy = (energy - noise[:, None, None]).clamp(min=0)
        reach = amplitude.sum(dim=1)
        if model.is_per_orientation:
            total += _breadth(amplitude, model) * divide(energy, reach)
        else:
            total += energy
            amplitudes += reach
    return total if model.is_per_orientation else total / (amplitudes + model.epsilon)


@lru_cache(maxsize=2)
def _filters(rows: int, columns: int, model: PhaseModel) -> Tensor:
    """Log-Gabor filters in the frequency domain, (orientations, scales, H, W) float64, zero frequency at [0, 0]."""
    y, x = torch.meshgrid(_frequencies(rows), _frequencies(columns), indexing="ij")
    radius = torch.hypot(x, y)
    angle = torch.atan2(-y, x)
    low_pass = 1 / (1 + (radius / 0.45) ** 30)
    radius[0, 0] = 1  # keeps the logarithm finite; the filters are 0 there
    centers = 1 / torch.tensor(WAVELENGTHS, dtype=torch.float64)[:, None, None]
    radial = torch.exp(-((radius / centers).log() ** 2) / (2 * math.log(model.bandwidth) ** 2)) * low_pass
    radial[:, 0, 0] = 0
    directions = torch.arange(model.orientations, dtype=torch.float64)[:, None, None] * math.pi / model.orientations
    turn = angle - directions
    turn = torch.atan2(turn.sin(), turn.cos()).abs()
    if model.spread is None:
        angular = ((turn * model.orientations / 2).clamp(max=math.pi).cos() + 1) / 2
    else:
        angular = torch.exp(-turn.square() / (2 * model.spread**2))
    return angular[:, None] * radial


def _frequencies(count: int) -> Tensor:
    """Frequencies along one axis, cycles per pixel, zero first; -0.5 to 0.5 with both ends where the count is odd."""
    spread: Tensor = (torch.arange(count, dtype=torch.float64) - count // 2) / (count - count % 2)
    shifted: Tensor = torch.fft.ifftshift(spread)
    return shifted


def _gaussian_noise(amplitude: Tensor, bank: Tensor) -> Tensor:
    """Energy up to which a response is noise, from the filters' spectra. (N, scales, H, W) to (N,)."""
    median = amplitude[:, 0].square().flatten(1).quantile(0.5, dim=1)
    power = median / math.log(2) / bank[0].square().sum()
    kernels = torch.fft.ifft2(bank).real * math.sqrt(bank[0].numel())
    spread = (power * kernels.sum(dim=0).square().sum()).sqrt()  # of one component of the energy vector
    noise: Tensor = spread * (math.sqrt(math.pi / 2) + NOISE_DEVIATIONS * math.sqrt(2 - math.pi / 2)) / 1.7
    return noise


def _rayleigh_noise(amplitude: Tensor, model: PhaseModel) -> Tensor:
    """Energy up to which a response is noise, from the median amplitude at the finest scale. Gives (N,)."""
    mode = amplitude[:, 0].flatten(1).quantile(0.5, dim=1) / math.sqrt(math.log(4))
    mode = mode * sum(0.5**scale for scale in range(len(WAVELENGTHS)))
    noise: Tensor = mode * (math.sqrt(math.pi / 2) + NOISE_DEVIATIONS * math.sqrt((4 - math.pi) / 2))
    return noise.clamp(min=model.epsilon)


def _breadth(amplitude: Tensor, model: PhaseModel) -> Tensor:
    """Near 1 where many scales respond, near 0 where one does. (N, scales, H, W) to (N, H, W)."""
    width: Tensor = (amplitude.sum(dim=1) / (amplitude.amax(dim=1) + model.epsilon) - 1) / (len(WAVELENGTHS) - 1)
    return torch.sigmoid(10 * (width - 0.5))
