"""Every way to make one luminance of two, behind one call: `method(structural, functional) -> fused`.

Tensors are (N, 1, H, W) float32 in [0, 1]; a slice's result does not depend on the others in its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medfuse.fusion.networks import COMPILED, NETWORKS
from medfuse.fusion.strategies import STRATEGIES
from medfuse.fusion.weights import SHIPPED, read_weights


@dataclass(frozen=True)
class Entry:
    """A line of the list of methods.

    Args:
        summary: What it does, in one line.
        reference: Where it comes from.
        strategies: Names `--strategy` accepts, default first; empty where there is nothing to choose.
    """

    summary: str
    reference: str
    strategies: tuple[str, ...] = ()


METHODS = {
    "dilran": Entry(
        "Dilated residual attention network; features merged by a strategy",
        "Zhou, Xu and Zhang, arXiv 2212.04661",
        ("nuclear", "average", "maximum"),
    ),
    "msrpan": Entry(
        "Multi-scale residual pyramid attention network; needs --weights",
        "Fu, Li, Du and Huang, Biomed. Signal Process. Control 66, 2021",
        ("energy", "average", "maximum"),
    ),
    "msdra": Entry(
        "Multi-scale double-branch residual attention network; needs --weights",
        "Li, Peng, Fu, Huang and Chen, Comput. Biol. Med. 141, 2022",
        ("ratio", "average", "maximum"),
    ),
    "average": Entry("The mean of the two, pixel by pixel", "baseline"),
    "maximum": Entry("The larger of the two, pixel by pixel", "baseline"),
}

#: The methods that run as they come; the others need `weights`.
READY = tuple(name for name in METHODS if name not in NETWORKS or name in SHIPPED)

PIXEL_RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "average": lambda structural, functional: (structural + functional) / 2,
    "maximum": torch.maximum,
}


class Method:
    """A method ready to run on a device.

    Args:
        name: A key of `METHODS`.
        strategy: One of the method's strategies; None for its default.
        weights: A safetensors file in place of the shipped weights.
        device: Where to run.

    Attributes:
        weights_sha256: Hash of the weights in use, or None for a method that has none.

    Raises:
        ValueError: No such method or strategy, or weights for a method that has none.
        WeightsError: The weights cannot be used.
    """

    def __init__(
        self,
        name: str,
        strategy: str | None = None,
        weights: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if name not in METHODS:
            raise ValueError(f"expected a method of {', '.join(METHODS)}, got {name!r}")
        offered = METHODS[name].strategies
        if strategy is not None and strategy not in offered:
            expected = f"a strategy of {', '.join(offered)}" if offered else "no strategy"
            raise ValueError(f"expected {expected} for {name}, got {strategy!r}")
        if weights is not None and name not in NETWORKS:
            raise ValueError(f"{name} has no weights to replace")
        self.name = name
        self.strategy = strategy or (offered[0] if offered else None)
        self.weights_sha256: str | None = None
        self._run = PIXEL_RULES[name] if name in PIXEL_RULES else self._prepared_network(weights, device)

    def __call__(self, structural: Tensor, functional: Tensor) -> Tensor:
        """Fuse two batches (N, 1, H, W) in [0, 1] into one, clamped to [0, 1]."""
        with torch.inference_mode():
            return self._run(structural, functional).clamp(0, 1)

    def _prepared_network(self, weights: Path | None, device: torch.device | str) -> Callable[[Tensor, Tensor], Tensor]:
        module = NETWORKS[self.name]()
        self.weights_sha256 = read_weights(module, self.name, weights)
        compiled = COMPILED[self.name](module.eval()) if self.name in COMPILED else module
        network = compiled.eval().to(device)
        merge = STRATEGIES[self.strategy or ""]

        def run(structural: Tensor, functional: Tensor) -> Tensor:
            return network.decode(merge(network.encode(structural), network.encode(functional)))

        return run
