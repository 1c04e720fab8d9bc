"""DILRAN for use, not for training: the trained network with fewer operations and the same result.

Before its first norm the network is linear in three maps. With p the pooled image and x the image, the 64 channels of
the shallow layer are x + p·(w_c·x + b_c): sums of x, p·x and p with fixed weights. The three dilated convolutions, the
1×1 reduction and the norm after it therefore make one convolution from these 3 maps to 64 channels; and pooling those
64 channels means pooling the 3 maps. The decoder is one 7×7 convolution.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from medfuse.fusion.networks.autoencoder import AutoEncoder
from medfuse.fusion.networks.collapsed import Collapsed, Pointwise, affine_of, channels_last
from medfuse.fusion.networks.dilran import Dilran, Encoder
from medfuse.fusion.networks.pooling import CHANNELS, enlarged, pooled


class CompiledDilran(AutoEncoder):
    """What a trained `Dilran` computes in evaluation mode, to rounding (1e-5 on [0, 1]).

    Args:
        network: The trained network; its tensors are copied.
    """

    def __init__(self, network: Dilran) -> None:
        super().__init__()
        self.encoder = CompiledEncoder(network.encoder)
        self.decoder = Collapsed(network.decoder, CHANNELS, reach=3, border=2)
        channels_last(self)

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to features (N, 64, H, W)."""
        features: Tensor = self.encoder(image)
        return features


class CompiledEncoder(nn.Module):
    """What a trained `Encoder` computes in evaluation mode.

    Args:
        encoder: The trained encoder; its tensors are copied.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.shallow = mixing(encoder.shallow)
        self.front = Collapsed(Front(encoder), channels=3, reach=5, border=0)
        self.attention = copy.deepcopy(encoder.attention.conv)
        scale, shift = affine_of(encoder.norm)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to (N, 64, H, W)."""
        maps = three_maps(image)
        deep = self.front(maps)
        once = self.attention(deep)
        twice = self.attention(once)
        once += twice
        once += self.attention(twice)
        deep.addcmul_(enlarged(pooled(deep).relu_(), deep), once).mul_(self.scale).add_(self.shift)
        features: Tensor = self.shallow(maps)
        return features.addcmul_(enlarged(self.shallow(pooled(maps)).relu_(), image), deep)


class Front(nn.Module):
    """The layers of an `Encoder` from the three maps to its first norm."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.shallow = mixing(encoder.shallow)
        self.encoder = encoder

    def forward(self, maps: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 64, H, W)."""
        x = self.shallow(maps)
        deep: Tensor = torch.cat([conv(x) for conv in self.encoder.dilated], dim=1)
        deep = self.encoder.norm(self.encoder.reduce(deep))
        return deep


def three_maps(image: Tensor) -> Tensor:
    """The maps x, p·x and p of an image x, (N, 1, H, W) to (N, 3, H, W)."""
    coarse = enlarged(pooled(image).relu_(), image)
    return torch.cat([image, coarse * image, coarse], dim=1)


def mixing(shallow: nn.Conv2d) -> Pointwise:
    """From the three maps to the channels x + p·(w_c·x + b_c) of a shallow layer."""
    assert shallow.bias is not None
    return Pointwise(torch.stack([torch.ones_like(shallow.bias), shallow.weight.flatten(), shallow.bias], dim=1))
