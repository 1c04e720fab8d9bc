"""Training of a network that fuses: charged straight for what measures of fusion reward and what a picture must not do.

An example is a crop of a pair, in four planes: structural, functional, how much of a hot spot each pixel is, and the
number of its set of pairs, each of which has charges of its own. There is no right answer to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from medfuse.errors import InputError
from medfuse.metrics.color import HOT_SHARE, HOTTEST_SHARE
from medfuse.metrics.similarity import SSIM_WINDOW
from medfuse.metrics.structure import VIF_SMALLEST
from medfuse.train.images import crops
from medfuse.train.measures import correlation, edges_kept, edges_made_up, ssim_and_ms_ssim, vif

#: Fewest pixels of a hot spot within which the order of brightness is looked at.
HOT_PIXELS = 20
#: How much lighter counts as lighter: a logistic step of this width, two grey levels.
STEP = 2 / 255
#: Most of the hottest pixels that the others are compared with, spread evenly: memory goes with it.
MOST_PEAKS = 512
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


def peaks(examples: Examples) -> Tensor:
    """Whether the hottest pixels are the lightest: as many others as there are of them are lighter, at worst.

    Softly, and of the regions that `medfuse.metrics.hottest_is_lightest` has; 0 without hot spots.
    """
    return torch.stack([_outshone(*one) for one in zip(examples.fused, examples.functional, examples.hot, strict=True)])


def _outshone(fused: Tensor, uptake: Tensor, hot: Tensor) -> Tensor:
    """How many pixels of the hot region outshine one of the hottest, as a share of their number, up to 1; ()."""
    if hot.sum() <= HOT_PIXELS:
        return fused.sum() * 0
    limits = torch.tensor([1 - HOT_SHARE, 1 - HOTTEST_SHARE], device=uptake.device)
    region, hottest = torch.quantile(uptake[uptake > 0], limits)
    peak, others = fused[uptake >= hottest], fused[(uptake >= region) & (uptake < hottest)]
    some = peak[:: -(-len(peak) // MOST_PEAKS)]
    lighter = torch.sigmoid((others[:, None] - some) / STEP).sum(dim=0)
    return torch.tanh(lighter / len(peak)).mean()


#: What a config may charge for, by name: of each example, (N,), 0 or nearly so at best.
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
    "peaks": peaks,
}
#: Fewest rows and columns of what can be charged for these.
SMALLEST = {"information": VIF_SMALLEST, "worse-information": VIF_SMALLEST, "similarity": SSIM_WINDOW}


@dataclass(frozen=True)
class Charges:
    """What the pairs of a set are charged for.

    Args:
        weights: Weight of each of `CHARGES`.
        free: As much of a charge as an example is not charged for.

    Raises:
        InputError: A charge is unknown, or none is given, or one is free in part that has no weight.
    """

    weights: dict[str, float]
    free: dict[str, float]

    def __post_init__(self) -> None:
        unknown = [name for name in self.weights if name not in CHARGES]
        if unknown or not self.weights:
            raise InputError(f"expected losses of {', '.join(CHARGES)}, found {', '.join(unknown) or 'none'}")
        if unused := self.free.keys() - self.weights.keys():
            raise InputError(
                f"expected a weight for every loss that is free in part, found none for {', '.join(sorted(unused))}"
            )


class Fusing:
    """Fuse pairs, at the least charge.

    Args:
        charges: Of every set of pairs, by its number.
        crop: Side of the crops, pixels.
        batch: Crops a batch.
    """

    def __init__(self, charges: Sequence[Charges], crop: int, batch: int) -> None:
        self.charges, self.crop, self.count = charges, crop, batch
        self.names = [name for name in CHARGES if any(name in one.weights for one in charges)]
        self.smallest = max((SMALLEST.get(name, 1) for name in self.names), default=1)

    def batch(self, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Crops of pairs, (batch, 4, crop, crop), turned and mirrored; two fifths of either source with another gamma.

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
        structural, functional, hot, number = batch[0].chunk(4, dim=1)
        result = network(structural, functional).float()
        with torch.autocast(result.device.type, enabled=False):  # the measures are differences of large numbers
            within = result.clamp(0, 1)
            # A little of the slope is left beyond the range, so that what went there can come back.
            examples = Examples(within + 0.01 * (result - within), structural, functional, hot)
            charge: Tensor = BEYOND * (result - within).square().mean()
            charge = charge + DARKER * (torch.minimum(structural, functional) - result).clamp(min=0).mean()
            sets = self._charges_of(number)
            return charge + torch.stack([_weighted(name, examples, sets).mean() for name in self.names]).sum()

    def _charges_of(self, number: Tensor) -> list[Charges]:
        """The charges of each example, by the plane that has the number of its set."""
        return [self.charges[int(one)] for one in number[:, 0, 0, 0].tolist()]

    @torch.no_grad()
    def validate(self, network: nn.Module, images: tuple[Tensor, ...]) -> dict[str, float]:
        """What is due of each charge, weighted, mean over whole images as they are; minus their sum is the score."""
        network.eval()
        device = next(network.parameters()).device
        due = dict.fromkeys(self.names, 0.0)
        for image in images:
            structural, functional, hot, number = image[None].to(device).chunk(4, dim=1)
            examples = Examples(network(structural, functional).clamp(0, 1), structural, functional, hot)
            sets = self._charges_of(number)
            for name in due:
                due[name] += _weighted(name, examples, sets).item() / len(images)
        return {"score": -sum(due.values()), **due}


def _weighted(name: str, examples: Examples, sets: list[Charges]) -> Tensor:
    """What each example is charged for, (N,), by the charges of its set."""
    weights, free = (
        examples.fused.new_tensor([amounts.get(name, 0) for amounts in column])
        for column in ([one.weights for one in sets], [one.free for one in sets])
    )
    return weights * (CHARGES[name](examples) - free).clamp(min=0)
