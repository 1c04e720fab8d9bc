"""DILRAN, the Dilated Residual Attention Network.

Zhou, Xu and Zhang, "An Attention-based Multi-Scale Feature Learning Network for Multimodal Medical Image Fusion",
arXiv 2212.04661, section 3. An autoencoder: trained to give back its input, used by encoding two images, merging their
features with a strategy, and decoding the merged features once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medfuse.fusion.networks.autoencoder import AutoEncoder
from medfuse.fusion.networks.pooling import CHANNELS, coarse


class ResidualAttention(nn.Module):
    """One 3×3 convolution applied once, twice and three times (fields of 3, 5 and 7), summed, weighted by `coarse`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 64, H, W) to (N, 64, H, W)."""
        once = self.conv(x)
        twice = self.conv(once)
        result: Tensor = x + coarse(x) * (once + twice + self.conv(twice))
        return result


class Encoder(nn.Module):
    """Image to features. One batch norm serves in two places, as in the published network."""

    def __init__(self) -> None:
        super().__init__()
        self.shallow = nn.Conv2d(1, CHANNELS, 1)
        self.dilated = nn.ModuleList(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=dilation, dilation=dilation) for dilation in (1, 3, 5)
        )
        self.reduce = nn.Conv2d(3 * CHANNELS, CHANNELS, 1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.attention = ResidualAttention()

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to (N, 64, H, W)."""
        x = image + coarse(image) * self.shallow(image)
        deep = self.norm(self.reduce(torch.cat([conv(x) for conv in self.dilated], dim=1)))
        deep = self.norm(self.attention(deep))
        features: Tensor = coarse(x) * deep + x
        return features


class Dilran(AutoEncoder):
    """The whole network; 216,001 parameters, any image size.

    In evaluation mode batch norm uses its running statistics, so that a slice's result does not depend on its batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 64, 3, padding=1),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.Conv2d(32, 1, 3, padding=1),
        )

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to features (N, 64, H, W)."""
        features: Tensor = self.encoder(image)
        return features


#: Published name → ours, by prefix, of simonZhou86/dilran's `model_v5`. Its other tensors take no part in the result.
PUBLISHED_NAMES = {
    "fe.conv1": "encoder.shallow",
    "fe.fe.convd1": "encoder.dilated.0",
    "fe.fe.convd2": "encoder.dilated.1",
    "fe.fe.convd3": "encoder.dilated.2",
    "fe.fe.reduce": "encoder.reduce",
    "fe.fe.bnorm1": "encoder.norm",
    "fe.fe.dilran.conv_d": "encoder.attention.conv",
    "recon.recon_conv.0": "decoder.0",
    "recon.recon_conv.1": "decoder.1",
    "recon.recon_conv.2": "decoder.2",
}
