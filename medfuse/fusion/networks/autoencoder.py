"""What all networks here are: an encoder of one image, and a decoder of features."""

from __future__ import annotations

from torch import Tensor, nn


class AutoEncoder(nn.Module):
    """A network that learns to give back its input, and fuses by decoding the merged features of two.

    A network sets `decoder` and defines `encode`.
    """

    decoder: nn.Module

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1], of any size, to features (N, C, H, W)."""
        raise NotImplementedError

    def decode(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) to (N, 1, H, W), not clamped."""
        image: Tensor = self.decoder(features)
        return image

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct (N, 1, H, W): what the network is trained to do."""
        return self.decode(self.encode(image))
