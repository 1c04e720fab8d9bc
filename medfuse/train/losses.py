"""What a reconstruction is charged for. Each loss takes (result, target), both (N, 1, H, W), and returns a scalar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from medfuse.errors import InputError
from medfuse.fusion.networks import Vgg19
from medfuse.fusion.weights import read_weights

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES = ("l2", "gradient", "perceptual")


def l2(result: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference."""
    return F.mse_loss(result, target)


def gradient(result: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of the image gradients, by central differences along rows and columns."""
    differences = torch.gradient(result - target, dim=(-2, -1))
    return torch.stack([difference.square().mean() for difference in differences]).mean()


class Perceptual:
    """Mean squared difference of VGG19 features, mean of the layers relu1_1, relu2_1 and relu3_1.

    After Johnson, Alahi and Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", 2016.
    Features are in units of the white level, as the images are: they are divided by 255 grey levels.

    Args:
        vgg: The network; it is frozen.
    """

    def __init__(self, vgg: Vgg19) -> None:
        self.vgg = vgg.eval().requires_grad_(False)

    def __call__(self, result: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        with torch.no_grad():
            expected = self.vgg(target)
        errors = [F.mse_loss(*pair) for pair in zip(self.vgg(result), expected, strict=True)]
        return torch.stack(errors).mean() * (self.vgg.unit / 255).square()


def to_losses(weights: dict[str, float], vgg: Path | None, device: torch.device | str) -> list[tuple[float, Loss]]:
    """The losses by name, each with its weight.

    Args:
        weights: Weight by name.
        vgg: Weights of VGG19, safetensors; for the perceptual loss.
        device: Where the perceptual loss runs.

    Raises:
        InputError: A name is unknown, none is given, or the perceptual loss has no weights.
        WeightsError: The weights of VGG19 cannot be used.
    """
    unknown = [name for name in weights if name not in LOSSES]
    if unknown or not weights:
        raise InputError(f"expected losses of {', '.join(LOSSES)}, found {', '.join(unknown) or 'none'}")
    found: dict[str, Loss] = {"l2": l2, "gradient": gradient}
    if "perceptual" in weights:
        if vgg is None:
            raise InputError(
                "expected weights of VGG19 for the perceptual loss, found none",
                "Make them with `medfuse weights download` or `medfuse weights convert --network vgg19`, "
                "and give them with --vgg",
            )
        network = Vgg19()
        read_weights(network, "vgg19", vgg)
        found["perceptual"] = Perceptual(network.to(device))
    return [(weight, found[name]) for name, weight in weights.items()]
