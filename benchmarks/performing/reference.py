"""The published arithmetic of DILRAN, written plainly: what the compiled form is measured against.

Zhou, Xu and Zhang, arXiv 2212.04661, section 3. It shares nothing with the compiled form but the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfuse.fusion.networks import TRAINABLE
from medfuse.fusion.strategies import STRATEGIES
from medfuse.fusion.weights import read_weights


class Published:
    """DILRAN layer by layer, with the singular values of every channel of both sources.

    Batch norm uses its running statistics, as in medfuse; see docs/paper.md for what the published script does.

    Args:
        device: Where to run.
        dtype: torch.float32, or torch.float64 for what is exact.
    """

    def __init__(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.network = plain_network("dilran", device, dtype)

    def __call__(self, structural: Tensor, functional: Tensor) -> Tensor:
        """Fuse (N, 1, H, W) in [0, 1], one pair after the other."""
        with torch.inference_mode():
            pairs = zip(structural.split(1), functional.split(1), strict=True)
            return torch.cat([self._pair(*pair) for pair in pairs])

    def _pair(self, structural: Tensor, functional: Tensor) -> Tensor:
        first, second = self.network.encode(structural), self.network.encode(functional)
        one, other = activity(first), activity(second)
        weight = one / (one + other)
        return self.network.decode(weight * first + (1 - weight) * second).clamp(0, 1)


def activity(features: Tensor) -> Tensor:
    """The square of the largest nuclear norm among the channels, after softmax over them; (1, C, H, W) to a scalar."""
    norms = [torch.linalg.svdvals(channel).sum() for channel in features[0].softmax(dim=0)]
    return torch.stack(norms).max().square()


class Plain:
    """A network as it is trained, with a strategy of medfuse's.

    Args:
        name: A key of `NETWORKS`.
        strategy: A key of `STRATEGIES`.
        device: Where to run.
        dtype: torch.float32, or torch.float64 for what is exact.
    """

    def __init__(
        self, name: str, strategy: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.network = plain_network(name, device, dtype)
        self.merge = STRATEGIES[strategy]

    def __call__(self, structural: Tensor, functional: Tensor) -> Tensor:
        """Fuse (N, 1, H, W) in [0, 1]."""
        with torch.inference_mode():
            merged = self.merge(self.network.encode(structural), self.network.encode(functional))
            return self.network.decode(merged).clamp(0, 1)


class PlainFuser:
    """A network that looks at both images at once, as it is trained; with the weights for all modalities.

    Args:
        name: A key of `FUSERS`.
        device: Where to run.
        dtype: torch.float32, or torch.float64 for what is exact.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.network = plain_network(name, device, dtype)

    def __call__(self, structural: Tensor, functional: Tensor) -> Tensor:
        """Fuse (N, 1, H, W) in [0, 1]."""
        with torch.inference_mode():
            fused: Tensor = self.network(structural, functional)
            return fused.clamp(0, 1)


def plain_network(name: str, device: torch.device | str, dtype: torch.dtype) -> torch.nn.Module:
    """A network with the shipped weights, in evaluation mode."""
    network = TRAINABLE[name]()
    read_weights(network, name)
    return network.eval().to(device, dtype)
