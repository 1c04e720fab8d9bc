"""The Siamese network of Hermessi et al.: says where two sub-bands show the same structure.

Hermessi, Mourali and Zagrouba, "Convolutional neural network-based multimodal image fusion via similarity learning in
the shearlet domain", Neural Computing and Applications 30, 2018. One branch serves both inputs; what it finds is
compared by cross-correlation, and the result goes through a logistic function.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfuse.fusion.networks.windows import window_mean

#: Side of the window of the correlation, in feature pixels, which are two image pixels apart.
WINDOW = 5
#: Added to the product of two energies, so that the similarity of structures too faint to be seen fades to 0.
FAINT = 1e-12


class Siamese(nn.Module):
    """The whole network; 1,226 parameters, any size.

    Its convolutions have no bias, so that features grow and shrink with their input: sub-bands differ in strength by
    scale and by modality, and the correlation does not see it. They are signed like their input: of two edges that are
    alike but for their sign, the correlation is negative.
    """

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, bias=False),
        )
        self.gain = nn.Parameter(torch.tensor(5.0))
        self.offset = nn.Parameter(torch.tensor(-2.5))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """How sure the network is that two are alike, as a logit, pixel by pixel.

        Args:
            first: Sub-bands (N, 1, H, W), each a detail with values around 0.
            second: The sub-bands to compare them with, of the same shape.

        Returns:
            (N, 1, H, W), float32: positive where alike; `sigmoid` makes it a probability.
        """
        correlation = correlate(self.branch(first).float(), self.branch(second).float())
        return F.interpolate(self.gain * correlation + self.offset, first.shape[-2:], mode="bilinear")


def correlate(first: Tensor, second: Tensor) -> Tensor:
    """Normalised cross-correlation of two feature maps (N, C, H, W) in a window around each pixel.

    Sums run over the window and all channels, so that a channel weighs as much as it has energy there.

    Returns:
        (N, 1, H, W) from -1 to 1.
    """
    across, one, other = (
        window_mean((a * b).sum(dim=1, keepdim=True), WINDOW)
        for a, b in ((first, second), (first, first), (second, second))
    )
    return across / (one * other + FAINT).sqrt()
