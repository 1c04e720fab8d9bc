"""What all networks here are: an encoder of one image, and a decoder of features."""

from __future__ import annotations

from torch import Tensor, nn

#: Rows and columns of an image.
Part = tuple[slice, slice]


class AutoEncoder(nn.Module):
    """A network that learns to give back its input, and fuses by decoding the merged features of two.

    A network sets `decoder` and defines `encode`.
    """

    decoder: nn.Module

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1], of any size, to features (N, C, H, W)."""
        raise NotImplementedError

    def body(self, image: Tensor) -> Part:
        """Rows and columns of images, (N, 1, H, W), outside of which all features are 0, as far as is known."""
        return slice(0, image.shape[-2]), slice(0, image.shape[-1])

    def decode(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) to (N, 1, H, W), not clamped."""
        image: Tensor = self.decoder(features)
        return image

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct (N, 1, H, W): what the network is trained to do."""
        return self.decode(self.encode(image))
