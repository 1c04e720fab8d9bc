"""CNN fusion in the shearlet domain.

Hermessi, Mourali and Zagrouba, "Convolutional neural network-based multimodal image fusion via similarity learning in
the shearlet domain", Neural Computing and Applications 30, 2018.
"""

from __future__ import annotations

from torch import Tensor

from medfuse.fusion.networks.siamese import Siamese
from medfuse.fusion.networks.windows import window_mean
from medfuse.fusion.shearlet import compose, decompose

#: Side of the window of the local energy, pixels.
WINDOW = 7
#: Added to energies: the square of 1e-4, far below a grey level.
FAINT = 1e-8
#: How steeply the more active of two that are not alike is preferred: with 1.5 times the energy its weight is 0.998.
STEEPNESS = 16.0


class ShearletCnn:
    """Fuses low frequencies by local energy, and details by local energy and how alike the network finds them.

    Where two sub-bands are alike, their average, weighted by local energy; where they are not, the more active one. The
    network's probability mixes the two, and the choice of the more active is steep rather than abrupt, so that rounding
    never decides anything.

    Args:
        network: A trained network, in evaluation mode, on the device of the slices.
    """

    def __init__(self, network: Siamese) -> None:
        self.network = network

    def __call__(self, structural: Tensor, functional: Tensor) -> Tensor:
        """Fuse two batches (N, 1, H, W) in [0, 1] into one, not clamped."""
        pairs = list(zip(decompose(structural), decompose(functional), strict=True))
        fused = [_weighted(*pairs[0], log_ratio(*pairs[0]).sigmoid())]
        fused += [self._fuse_details(first, second) for first, second in pairs[1:]]
        return compose(fused, (structural.shape[-2], structural.shape[-1]))

    def _fuse_details(self, first: Tensor, second: Tensor) -> Tensor:
        """All directions of one scale, (N, D, H, W)."""
        height, width = first.shape[-2:]
        logit: Tensor = self.network(first.reshape(-1, 1, height, width), second.reshape(-1, 1, height, width))
        alike = logit.reshape(first.shape).sigmoid()
        ratio = log_ratio(first, second)
        average, choice = ratio.sigmoid(), (STEEPNESS * ratio).sigmoid()
        return _weighted(first, second, choice.lerp(average, alike))


def log_ratio(first: Tensor, second: Tensor) -> Tensor:
    """Logarithm of the ratio of two local energies, (N, C, H, W); its logistic function is the first one's share."""
    one, other = (window_mean(band.square(), WINDOW) + FAINT for band in (first, second))
    return (one / other).log()


def _weighted(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """The mean of the two, `weight` being the first one's."""
    return second.lerp(first, weight)
