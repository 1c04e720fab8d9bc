"""Training of a network that fuses: charged straight for what measures of fusion reward and what a picture must not do.

An example is a crop of a pair, in three planes: structural, functional, and how much of a hot spot each pixel is. There
is no right answer to compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from medfuse.errors import InputError
from medfuse.train.images import crops
from medfuse.train.measures import correlation, edges_kept, edges_made_up, ssim_and_ms_ssim, vif

#: Fewest pixels of a hot spot within which the order of brightness is looked at.
HOT_PIXELS = 20
#: Charges beside those that a config chooses: of values beyond [0, 1], squared, and of being darker than both sources.
BEYOND, DARKER = 10.0, 1.0


@dataclass(frozen=True)
class Examples:
    """A batch of fused crops and what they were made of, (N, 1, H, W) in [0, 1]; `hot` is from 0 to 1."""

    fused: Tensor
    structural: Tensor
    functional: Tensor
    hot: Tensor

    @cached_property
    def vif_of_both(self) -> Tensor:
        """The VIF of the fused with either source, (2, N)."""
        fused, *sources = self.levels()
        return torch.stack([vif(fused, source) for source in sources])

    def levels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fused, structural and functional in grey levels."""
        return 255 * self.fused, 255 * self.structural, 255 * self.functional


def edges(examples: Examples) -> Tensor:
    """Edges lost: 1 - Q_AB/F."""
    return 1 - edges_kept(*examples.levels())


def artifacts(examples: Examples) -> Tensor:
    """Edges made up: N_AB/F."""
    return edges_made_up(*examples.levels())


def information(examples: Examples) -> Tensor:
    """Visual information lost: 2 - VIF, summed over the sources."""
    return 2 - examples.vif_of_both.sum(dim=0)


def worse_information(examples: Examples) -> Tensor:
    """Visual information lost of the source that loses more: 1 - VIF."""
    return 1 - examples.vif_of_both.amin(dim=0)


def similarity(examples: Examples) -> Tensor:
    """Structure lost: 1 - SSIM and half of 1 - MS-SSIM, the mean of the sources."""
    fused, *sources = examples.levels()
    single, multiple = torch.stack([torch.stack(ssim_and_ms_ssim(fused, source)) for source in sources]).mean(dim=0)
    lost: Tensor = (1 - single) + (1 - multiple) / 2
    return lost


def differences(examples: Examples) -> Tensor:
    """What is not carried over from either source: 2 - SCD."""
    fused, structural, functional = examples.levels()
    return 2 - correlation(fused - functional, structural) - correlation(fused - structural, functional)


def maximum(examples: Examples) -> Tensor:
    """Mean absolute difference from the pixelwise maximum."""
    departure = examples.fused - torch.maximum(examples.structural, examples.functional)
    return departure.abs().mean(dim=(1, 2, 3))


def uptake(examples: Examples) -> Tensor:
    """How much darker than the functional source hot spots are, on average."""
    darker = (examples.functional - examples.fused).clamp(min=0)
    return (examples.hot * darker).sum(dim=(1, 2, 3)) / examples.hot.sum(dim=(1, 2, 3)).clamp(min=1)


def order(examples: Examples) -> Tensor:
    """Whether hot spots are brightest where the functional source is: 1 - their correlation; 0 without hot spots."""
    fused, _, functional = examples.levels()
    alike = correlation(fused, functional, examples.hot)
    return (1 - alike) * (examples.hot.sum(dim=(1, 2, 3)) > HOT_PIXELS)


#: What a config may charge for, by name: of each example, (N,), 0 at best.
CHARGES: dict[str, Callable[[Examples], Tensor]] = {
    "edges": edges,
    "artifacts": artifacts,
    "information": information,
    "worse-information": worse_information,
    "similarity": similarity,
    "differences": differences,
    "maximum": maximum,
    "uptake": uptake,
    "order": order,
}


class Fusing:
    """Fuse pairs, at the least charge.

    Args:
        weights: Weight of each of `CHARGES`.
        free: As much of a charge as an example is not charged for.
        crop: Side of the crops, pixels.
        batch: Crops a batch.

    Raises:
        InputError: A charge is unknown, or none is given, or one is free in part that has no weight.
    """

    def __init__(self, weights: dict[str, float], free: dict[str, float], crop: int, batch: int) -> None:
        unknown = [name for name in weights if name not in CHARGES]
        if unknown or not weights:
            raise InputError(f"expected losses of {', '.join(CHARGES)}, found {', '.join(unknown) or 'none'}")
        if unused := free.keys() - weights.keys():
            raise InputError(
                f"expected a weight for every loss that is free in part, found none for {', '.join(sorted(unused))}"
            )
        self.weights, self.free, self.crop, self.count = weights, free, crop, batch

    def batch(self, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Crops of pairs, (batch, 3, crop, crop), turned and mirrored; two fifths of either source with another gamma.

        The gamma is from 0.6 to 1.6: other windows, other scanners.
        """
        planes = crops(images, self.count, self.crop, generator)
        upright, turned = torch.rand(2, self.count, 1, 1, 1, generator=generator) < 0.5
        planes = torch.where(upright, planes.flip(-2), planes)
        planes = torch.where(turned, planes.mT, planes)
        exponents = 2 ** (1.4 * torch.rand(self.count, 2, 1, 1, generator=generator) - 0.7)
        altered = torch.rand(self.count, 2, 1, 1, generator=generator) < 0.4
        sources = torch.where(altered, planes[:, :2] ** exponents, planes[:, :2])
        return (torch.cat([sources, planes[:, 2:]], dim=1),)

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """The weighted sum of the charges."""
        structural, functional, hot = batch[0].chunk(3, dim=1)
        result = network(structural, functional).float()
        with torch.autocast(result.device.type, enabled=False):  # the measures are differences of large numbers
            return self._charge(result, structural, functional, hot)

    def _charge(self, result: Tensor, structural: Tensor, functional: Tensor, hot: Tensor) -> Tensor:
        within = result.clamp(0, 1)
        # A little of the slope is left beyond the range, so that what went there can come back.
        examples = Examples(within + 0.01 * (result - within), structural, functional, hot)
        charge: Tensor = BEYOND * (result - within).square().mean()
        charge = charge + DARKER * (torch.minimum(structural, functional) - result).clamp(min=0).mean()
        return charge + torch.stack([self.weights[name] * self._due(name, examples) for name in self.weights]).sum()

    def _due(self, name: str, examples: Examples) -> Tensor:
        """What examples are charged for, on average."""
        return (CHARGES[name](examples) - self.free.get(name, 0)).clamp(min=0).mean()

    @torch.no_grad()
    def validate(self, network: nn.Module, images: tuple[Tensor, ...]) -> dict[str, float]:
        """What is due of each charge, the mean over whole images as they are; the score is minus their weighted sum."""
        network.eval()
        device = next(network.parameters()).device
        charges = dict.fromkeys(self.weights, 0.0)
        for image in images:
            structural, functional, hot = image[None].to(device).chunk(3, dim=1)
            examples = Examples(network(structural, functional).clamp(0, 1), structural, functional, hot)
            for name in charges:
                charges[name] += self._due(name, examples).item() / len(images)
        return {"score": -sum(weight * charges[name] for name, weight in self.weights.items()), **charges}
