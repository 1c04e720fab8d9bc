"""MSRPAN, the multi-scale residual pyramid attention network.

Fu, Li, Du and Huang, "A multiscale residual pyramid attention network for medical image fusion", Biomedical Signal
Processing and Control 66, 2021, 102488. An autoencoder, like DILRAN its successor.
"""

from __future__ import annotations

from torch import Tensor, nn

from medfuse.fusion.networks.autoencoder import AutoEncoder
from medfuse.fusion.networks.pooling import CHANNELS, coarse, enlarged, halvings


class PyramidAttention(nn.Module):
    """Residual attention at a half, a quarter and an eighth of the size, summed from coarse to fine."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 64, H, W) to (N, 64, H, W)."""
        levels = halvings(x)
        summed = self._attended(levels[-1])
        for level in reversed(levels[1:-1]):
            summed = self._attended(level) + enlarged(summed, level)
        result: Tensor = self.norm(coarse(x) * enlarged(summed, x) + x)
        return result

    def _attended(self, x: Tensor) -> Tensor:
        once = self.conv(x)
        twice = self.conv(once)
        result: Tensor = coarse(x) * (once + twice + self.conv(twice)) + x
        return result


class Msrpan(AutoEncoder):
    """The whole network; any image size. One pyramid block is applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.shallow = nn.Conv2d(1, CHANNELS, 1)
        self.pyramid = PyramidAttention()
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 64, 3, padding=1),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.Conv2d(32, 1, 1),
        )

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to features (N, 64, H, W)."""
        shallow = self.shallow(image)
        x = coarse(image) * shallow + image
        deep = self.pyramid(self.pyramid(self.pyramid(shallow)))
        features: Tensor = coarse(x) * deep + x
        return features


#: Published name → ours, by prefix, of jeffsonfu/MSRPAN. Its other tensors take no part in the result.
PUBLISHED_NAMES = {
    "Extraction.conv0": "shallow",
    "Extraction.block.conv1": "pyramid.conv",
    "Extraction.block.norm": "pyramid.norm",
    "Reconstruction.conv0": "decoder.0",
    "Reconstruction.conv1": "decoder.1",
    "Reconstruction.conv2": "decoder.2",
}
