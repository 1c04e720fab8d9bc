"""EH-DRAN, DILRAN with an edge-enhancing branch.

Zhou, Zhang, Xu, Wang and Khalvati, "Edge-Enhanced Dilated Residual Attention Network for Multimodal Medical Image
Fusion", BIBM 2024, arXiv 2411.11799. An autoencoder like DILRAN. Its encoder adds those of a dense block and of a Sobel
operator, both over the shallow features, to DILRAN's features; its decoder has activations between the convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfuse.fusion.networks.autoencoder import AutoEncoder
from medfuse.fusion.networks.dilran import Encoder
from medfuse.fusion.networks.pooling import CHANNELS

#: Slope of the leaky activations for negative values, and share of the features left out in training.
SLOPE, DROPPED = 0.2, 0.2


class EdgeEnhancer(nn.Module):
    """A dense block of two convolutions beside the Sobel gradient of every channel, each reduced by a 1×1, summed."""

    sobel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for width in (CHANNELS, 2 * CHANNELS)])
        self.reduce_dense = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        self.reduce_edges = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.dropout = nn.Dropout(DROPPED)
        across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        kernels = torch.stack([across, across.T])[:, None].repeat(CHANNELS, 1, 1, 1)
        self.register_buffer("sobel", kernels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 64, H, W) to (N, 64, H, W)."""
        first, second = self.dense
        dense = torch.cat([x, F.leaky_relu(first(x), SLOPE)], dim=1)
        dense = self.reduce_dense(self.dropout(F.leaky_relu(second(dense), SLOPE)))
        edges = F.conv2d(x, self.sobel, padding=1, groups=CHANNELS).abs()
        edges = self.reduce_edges(edges[:, 0::2] + edges[:, 1::2])
        result: Tensor = self.dropout(dense + edges)
        return result


class EhDran(AutoEncoder):
    """The whole network; any image size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.edges = EdgeEnhancer()
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 64, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(32, 1, 3, padding=1),
        )

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to features (N, 64, H, W)."""
        features: Tensor = self.encoder(image) + self.edges(self.encoder.shallow(image))
        return features
