"""What a network is trained to do: what a batch is, what it is charged for, and how well it does on images kept out."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from medfuse.errors import InputError
from medfuse.fusion.networks import FUSERS
from medfuse.train.config import Config
from medfuse.train.fusing import Charges, Fusing
from medfuse.train.images import crops
from medfuse.train.losses import to_losses
from medfuse.train.similarity import Similarity


class Task(Protocol):
    """One kind of training. All randomness of a batch comes from the generator, so that a training can be resumed.

    Args:
        smallest: Fewest rows and columns of crops and images, pixels.
    """

    smallest: int

    def batch(self, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """CPU tensors, the batch along the first axis of each, made of images (1, H, W) in [0, 1]."""

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """A scalar; the batch is on the network's device."""

    def validate(self, network: nn.Module, images: tuple[Tensor, ...]) -> dict[str, float]:
        """Figures of a network in evaluation mode, with "score" among them: higher is better."""


class Reconstruction:
    """An autoencoder gives back its input.

    Args:
        config: Crops and losses.
        vgg: Weights of VGG19, for the perceptual loss.
        device: Where to train.

    Raises:
        InputError: The losses are unknown, or lack weights.
    """

    smallest = 1

    def __init__(self, config: Config, vgg: Path | None, device: torch.device | str) -> None:
        self.crop, self.count = config.crop, config.batch
        self.losses = to_losses(config.losses, vgg, device)

    def batch(self, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Crops, (batch, 1, crop, crop)."""
        return (crops(images, self.count, self.crop, generator),)

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """The weighted sum of the losses."""
        (target,) = batch
        result = network(target).float()
        return torch.stack([weight * loss(result, target) for weight, loss in self.losses]).sum()

    def validate(self, network: nn.Module, images: tuple[Tensor, ...]) -> dict[str, float]:
        """Mean and lowest PSNR in dB of the reconstructed images; the score is the mean."""
        quality = psnr_of(network, images)
        return {"score": quality.mean().item(), "lowest": quality.min().item()}


def task_of(config: Config, vgg: Path | None, device: torch.device | str) -> Task:
    """The task that the network is trained for.

    Raises:
        InputError: The losses are not for this network, or lack weights.
    """
    if config.network == "siamese":
        if config.losses:
            raise InputError(f"expected no losses, since siamese has its own, found {', '.join(config.losses)}")
        return Similarity(config.crop, config.batch)
    if config.network in FUSERS:
        charges = [Charges({**config.losses, **one.losses}, {**config.free, **one.free}) for one in config.pairs]
        return Fusing(charges, config.crop, config.batch)
    return Reconstruction(config, vgg, device)


@torch.no_grad()
def psnr_of(network: nn.Module, images: tuple[Tensor, ...]) -> Tensor:
    """Peak signal-to-noise ratio in dB (peak 1) of each image's reconstruction, clamped to [0, 1], as it is used."""
    network.eval()
    device = next(network.parameters()).device
    errors = [
        (network(image[None].to(device)).clamp(0, 1) - image.to(device)).square().mean().cpu() for image in images
    ]
    return -10 * torch.stack(errors).clamp_min(1e-10).log10()
