"""MSDRA, the multi-scale double-branch residual attention network.

Li, Peng, Fu, Huang and Chen, "MSDRA: Multiscale double-branch residual attention for medical image fusion", Computers
in Biology and Medicine 141, 2022, 105083. An autoencoder; its published module uses the first of the paper's three
blocks only, and so does this one.
"""

from __future__ import annotations

from torch import Tensor, nn

from medfuse.fusion.networks.autoencoder import AutoEncoder
from medfuse.fusion.networks.pooling import CHANNELS


class DoubleBranch(nn.Module):
    """A branch of shrinking kernels (5, 3, 1) and one of three residual pairs, summed and weighted by the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv5 = nn.Conv2d(CHANNELS, CHANNELS, 5, padding=2)
        self.conv3 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 64, H, W) to (N, 64, H, W). One batch norm serves everywhere, as in the published network."""
        wide = self.norm(self.conv5(x)).relu()
        middle = self.norm(self.conv3(wide)).relu()
        narrow = self.norm(self.conv1(middle)).relu()
        residual = x
        for _ in range(3):
            residual = self.norm(self.conv3(self.conv3(residual)) + residual).relu()
        result: Tensor = self.norm(x.relu() * (wide + middle + narrow + residual) + x)
        return result


class Msdra(AutoEncoder):
    """The whole network; any image size."""

    def __init__(self) -> None:
        super().__init__()
        self.shallow = nn.Conv2d(1, CHANNELS, 1)
        self.branches = DoubleBranch()
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 64, 3, padding=1),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.Conv2d(32, 1, 3, padding=1),
        )

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to features (N, 64, H, W)."""
        features: Tensor = self.branches(self.shallow(image))
        return features


#: Published name → ours, by prefix, of PengJune/MSDRA.
PUBLISHED_NAMES = {
    "Extraction.conv1": "shallow",
    "Extraction.block.conv1": "branches.conv5",
    "Extraction.block.conv2": "branches.conv3",
    "Extraction.block.conv3": "branches.conv1",
    "Extraction.block.norm": "branches.norm",
    "Reconstruction.conv0": "decoder.0",
    "Reconstruction.conv1": "decoder.1",
    "Reconstruction.conv2": "decoder.2",
}
