"""Every way to make one luminance of two, behind one call: `method(structural, functional, modality) -> fused`.

Tensors are (N, 1, H, W) float32 in [0, 1]; a slice's result does not depend on the others in its batch. The modality is
that of the functional images, for methods that have weights of their own for some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from medfuse.fusion.networks import COMPILED, FEATURES, FUSERS, NETWORKS
from medfuse.fusion.networks.collapsed import channels_last
from medfuse.fusion.rules import ShearletCnn, ZeroLearning, guided_filter_fusion, laplacian_pyramid
from medfuse.fusion.strategies import STRATEGIES
from medfuse.fusion.weights import BY_MODALITY, SHIPPED, read_weights
from medfuse.volume import Modality

#: The arithmetic of a network, by the name that `--precision` takes.
PRECISIONS = ("float32", "tf32", "bfloat16")

#: (structural, functional) to fused.
Rule = Callable[[Tensor, Tensor], Tensor]
#: A rule, and the SHA-256 of the weights it was made with.
Prepared = tuple[Rule, str | None]


@dataclass(frozen=True)
class Entry:
    """A line of the list of methods.

    Args:
        summary: What it does, in one line.
        reference: Where it comes from.
        strategies: Names `--strategy` accepts, default first; empty where there is nothing to choose.
        network: The network whose weights it needs; None for a rule that has none.
    """

    summary: str
    reference: str
    strategies: tuple[str, ...] = ()
    network: str | None = None


METHODS = {
    "duet": Entry(
        "The maximum, corrected by a network that looks at both images at once",
        "medfuse, docs/method.md",
        network="duet",
    ),
    "dilran": Entry(
        "Dilated residual attention network; features merged by a strategy",
        "Zhou, Xu and Zhang, arXiv 2212.04661",
        ("nuclear", "nuclear-mean", "nuclear-sum", "average", "maximum"),
        "dilran",
    ),
    "eh-dran": Entry(
        "DILRAN with an edge-enhancing branch",
        "Zhou, Zhang, Xu, Wang and Khalvati, BIBM 2024, arXiv 2411.11799",
        ("nuclear", "nuclear-mean", "nuclear-sum", "average", "maximum"),
        "eh-dran",
    ),
    "msrpan": Entry(
        "Multi-scale residual pyramid attention network",
        "Fu, Li, Du and Huang, Biomed. Signal Process. Control 66, 2021",
        ("energy", "average", "maximum"),
        "msrpan",
    ),
    "msdra": Entry(
        "Multi-scale double-branch residual attention network",
        "Li, Peng, Fu, Huang and Chen, Comput. Biol. Med. 141, 2022",
        ("ratio", "average", "maximum"),
        "msdra",
    ),
    "zero-learning": Entry(
        "Base by saliency, detail by features of VGG19; needs --weights of VGG19",
        "Lahoud and Süsstrunk, arXiv 1905.03590",
        network="vgg19",
    ),
    "shearlet-cnn": Entry(
        "Shearlet sub-bands, compared by the features of a Siamese network",
        "Hermessi, Mourali and Zagrouba, Neural Comput. Appl. 30, 2018",
        network="siamese",
    ),
    "laplacian": Entry(
        "Laplacian pyramid; detail by the larger value", "Burt and Adelson, IEEE Trans. Commun. 31, 1983"
    ),
    "guided-filter": Entry(
        "Base and detail, weighted by saliency that a guided filter refines", "Li, Kang and Hu, IEEE TIP 22, 2013"
    ),
    "average": Entry("The mean of the two, pixel by pixel", "baseline"),
    "maximum": Entry("The larger of the two, pixel by pixel", "baseline"),
}

#: The methods that run as they come; the others need `weights`.
READY = tuple(name for name, entry in METHODS.items() if entry.network is None or entry.network in SHIPPED)

RULES: dict[str, Rule] = {
    "laplacian": laplacian_pyramid,
    "guided-filter": guided_filter_fusion,
    "average": lambda structural, functional: (structural + functional) / 2,
    "maximum": torch.maximum,
}

#: The rules that look through the features of a network, and are made with it.
FEATURE_RULES: dict[str, Callable[..., Rule]] = {"zero-learning": ZeroLearning, "shearlet-cnn": ShearletCnn}


class Method:
    """A method ready to run on a device.

    Args:
        name: A key of `METHODS`.
        strategy: One of the method's strategies; None for its default.
        weights: A safetensors file in place of the shipped weights, for every modality.
        device: Where to run.
        precision: How a network that fuses by itself computes: "float32" exactly; "tf32" with products of float32 in
            TensorFloat-32, on CUDA; "bfloat16" with images and features in it. Other methods know float32 alone.
            Of the default strategies bfloat16 is off by 0.0066 of [0, 1] at most and 0.0012 on average (measured on
            pictures of bodies and on noise, against float64); MSDRA's, by 0.081 and 0.0019: it divides by what may
            nearly cancel; Duet's, by 0.047 and 0.0001 of bodies, by 0.039 and 0.0001 of noise: it ends at the
            value of one source or the other by a hair.

    Raises:
        ValueError: No such method, strategy or precision, or weights for a method that has none.
        WeightsError: The weights cannot be used.
    """

    def __init__(
        self,
        name: str,
        strategy: str | None = None,
        weights: str | Path | None = None,
        device: torch.device | str = "cpu",
        precision: str = "float32",
    ) -> None:
        if name not in METHODS:
            raise ValueError(f"expected a method of {', '.join(METHODS)}, got {name!r}")
        offered = METHODS[name].strategies
        if strategy is not None and strategy not in offered:
            expected = f"a strategy of {', '.join(offered)}" if offered else "no strategy"
            raise ValueError(f"expected {expected} for {name}, got {strategy!r}")
        if weights is not None and METHODS[name].network is None:
            raise ValueError(f"{name} has no weights to replace")
        check_precision(precision, name, torch.device(device))
        self.name = name
        self.strategy = strategy or (offered[0] if offered else None)
        self.precision = precision
        network = METHODS[name].network
        self._usual: Prepared = self._prepared(network, network, weights, device) if network else (RULES[name], None)
        own = BY_MODALITY.get(network or "", {}) if weights is None else {}
        self._own = {modality: self._prepared(network or "", file, None, device) for modality, file in own.items()}

    def __call__(self, structural: Tensor, functional: Tensor, modality: Modality = Modality.OTHER) -> Tensor:
        """Fuse two batches (N, 1, H, W) in [0, 1] into one, clamped to [0, 1]."""
        run, _ = self._own.get(modality, self._usual)
        with torch.inference_mode():
            return run(structural, functional).clamp(0, 1)

    def weights_sha256(self, modality: Modality = Modality.OTHER) -> str | None:
        """Hash of the weights in use for functional images of a modality, or None for a method that has none."""
        return self._own.get(modality, self._usual)[1]

    def _prepared(self, network: str, file: str, weights: str | Path | None, device: torch.device | str) -> Prepared:
        """The rule of a method that has a network, with its weights read: the shipped ones of that name, or others."""
        module = {**FEATURES, **FUSERS, **NETWORKS}[network]()
        digest = read_weights(module, file, weights)
        if network in FEATURES:
            return FEATURE_RULES[self.name](module.eval().to(device)), digest
        if network in FUSERS:
            return self._fuser(module, device), digest
        return self._merging(network, module, device), digest

    def _merging(self, network: str, module: nn.Module, device: torch.device | str) -> Rule:
        """The rule of a network whose features are merged."""
        decoder = COMPILED[network](module.eval()).eval().to(device)
        encoder, dtype = decoder, torch.float32
        if self.precision == "bfloat16":
            # Made once more, from exact weights. Sums of the decoder are float32, which makes the error a third.
            encoder, dtype = COMPILED[network](module).eval().to(device, torch.bfloat16), torch.bfloat16
        merge = STRATEGIES[self.strategy or ""]

        def fuse(*planes: Tensor) -> Tensor:
            images = [plane.to(dtype) for plane in planes]
            structural, functional = (encoder.encode(image) for image in images)
            merged = merge(structural, functional, *(encoder.body(image) for image in images))
            return decoder.decode(merged.float())

        return fuse

    def _fuser(self, module: nn.Module, device: torch.device | str) -> Rule:
        """The rule that a network is by itself; it takes float32 images whatever its own precision is."""
        module = module.eval().to(device, torch.bfloat16 if self.precision == "bfloat16" else torch.float32)
        channels_last(module)
        return module


def check_precision(precision: str, method: str, device: torch.device) -> None:
    """Refuse a precision that a method or a device has not.

    Raises:
        ValueError: Then.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision != "float32" and METHODS[method].network not in {**FUSERS, **NETWORKS}:
        raise ValueError(f"expected a precision of float32 for {method}, got {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"expected a CUDA device for a precision of tf32, got {device.type}")
