"""Training of the Siamese network: to tell whether two shearlet sub-bands show the same structure.

Examples are made of single images, as pairs of one sub-band of two crops. Alike is a place and the same place as
another scanner might show it: other contrast, less sharp, noisier. Not alike is a place and another place, or the same
place with its contrast reversed, whose details would cancel if they were averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfuse.fusion.networks.windows import window_mean
from medfuse.fusion.shearlet import MARGIN, decompose
from medfuse.train.images import crops

#: Side of the window, pixels, and mean square in it from which a sub-band shows something: 0.8 grey levels of 255.
WINDOW, SEEN = 7, 1e-5


class Similarity:
    """Tell sub-bands that are alike from others, by the logistic loss of every pixel that shows something in both.

    Args:
        crop: Side of the crops, pixels.
        batch: Pairs a batch; every other one is alike.
        rounds: Batches that the validation looks at.
    """

    def __init__(self, crop: int, batch: int, rounds: int = 16) -> None:
        self.crop, self.count, self.rounds = crop, batch, rounds
        self.smallest = crop  # the validation looks at crops, too

    def batch(self, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Two sub-bands, each (batch, 1, crop, crop), and whether they are alike, bool (batch, 1, 1, 1)."""
        kind = torch.arange(self.count)[:, None, None, None] % 4  # alike, elsewhere, alike, reversed
        here, elsewhere = (crops(images, self.count, self.crop, generator) for _ in range(2))
        other = torch.where(kind == 1, elsewhere, torch.where(kind == 3, 1 - here, here))
        bands = torch.cat(decompose(torch.cat([here, altered(other, generator)]))[1:], dim=1)
        chosen = torch.randint(bands.shape[1], (self.count,), generator=generator).repeat(2)
        inner = slice(MARGIN, MARGIN + self.crop)
        first, second = bands[torch.arange(len(bands)), chosen, None, inner, inner].chunk(2)
        return first, second, kind % 2 == 0

    def loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Logistic loss, as much for the pairs that are alike as for the others."""
        first, second, alike = batch
        logit: Tensor = network(first, second)
        charge = F.binary_cross_entropy_with_logits(logit, alike.to(logit.dtype).expand_as(logit), reduction="none")
        return balanced(charge, first, second, alike)

    @torch.no_grad()
    def validate(self, network: nn.Module, images: tuple[Tensor, ...]) -> dict[str, float]:
        """Shares of the pixels of both kinds that are told rightly; the score is their mean, 0.5 for a blind guess."""
        network.eval()
        device = next(network.parameters()).device
        generator = torch.Generator().manual_seed(0)
        scores = []
        for _ in range(self.rounds):
            first, second, alike = (tensor.to(device) for tensor in self.batch(images, generator))
            right = ((network(first, second) > 0) == alike).to(torch.float32)
            scores.append(balanced(right, first, second, alike))
        return {"score": torch.stack(scores).mean().item()}


def balanced(values: Tensor, first: Tensor, second: Tensor, alike: Tensor) -> Tensor:
    """The mean value where both sub-bands show something, of pairs that are alike and of others, and of the two."""
    seen = (window_mean(first.square(), WINDOW) > SEEN) & (window_mean(second.square(), WINDOW) > SEEN)
    means = [(values * mask).sum() / mask.sum().clamp_min(1) for mask in (seen & alike, seen & ~alike)]
    return torch.stack(means).mean()


def altered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, 1, H, W) in [0, 1] as another scanner might show them, each in its own way.

    A gamma from 1/2 to 2, up to all of a 5 × 5 mean, and Gaussian noise of up to 0.02.
    """
    gamma, blur, noise = torch.rand(3, len(images), 1, 1, 1, generator=generator)
    curved = images.pow(torch.pow(4, gamma) / 2)
    blurred = curved.lerp(window_mean(curved, 5), blur)
    grain = torch.randn(images.shape, generator=generator)
    return blurred.addcmul(noise, grain, value=0.02).clamp(0, 1)
