"""MSDRA for use, not for training: the trained network with fewer operations and the same result.

The channels of its shallow layer are w_c·x + b_c: all of them one image. So the 5×5 convolution, and the two 3×3 of the
first residual pair, each with the norm after it, are one 5×5 convolution of one channel. The other norms go into the
convolutions before them. The decoder is one 7×7 convolution.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medfuse.fusion.networks.autoencoder import AutoEncoder
from medfuse.fusion.networks.collapsed import Collapsed, Pointwise, affine_of, channels_last
from medfuse.fusion.networks.msdra import DoubleBranch, Msdra
from medfuse.fusion.networks.pooling import CHANNELS


class CompiledMsdra(AutoEncoder):
    """What a trained `Msdra` computes in evaluation mode, to rounding (1e-5 on [0, 1]).

    Args:
        network: The trained network; its tensors are copied.
    """

    scale: Tensor

    def __init__(self, network: Msdra) -> None:
        super().__init__()
        trained = copy.deepcopy(network).eval()
        branches, shallow = trained.branches, trained.shallow
        wide = nn.Sequential(shallow, branches.conv5, branches.norm)
        self.wide = Collapsed(wide, channels=1, reach=2, border=2)
        self.first_pair = Collapsed(nn.Sequential(shallow, Pair(branches)), channels=1, reach=2, border=2)
        self.conv = branches.conv3
        self.normed_conv = fuse_conv_bn_eval(branches.conv3, branches.norm)
        narrow = fuse_conv_bn_eval(branches.conv1, branches.norm)
        self.narrow = Pointwise(narrow.weight, narrow.bias)
        self.shallow = Pointwise(shallow.weight, shallow.bias)
        normed = fuse_conv_bn_eval(shallow, branches.norm)
        self.normed_shallow = Pointwise(normed.weight, normed.bias)
        self.decoder = Collapsed(trained.decoder, CHANNELS, reach=3, border=2)
        self.register_buffer("scale", affine_of(branches.norm)[0])
        channels_last(self)

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to features (N, 64, H, W)."""
        wide = self.wide(image).relu_()
        middle = self.normed_conv(wide).relu_()
        narrow = self.narrow(middle).relu_()
        residual = self.first_pair(image).relu_()
        for _ in range(2):
            residual = self.normed_conv(self.conv(residual)).addcmul_(self.scale, residual).relu_()
        summed = wide.add_(middle).add_(narrow).add_(residual)
        features: Tensor = self.normed_shallow(image)
        return features.addcmul_(self.shallow(image).relu_().mul_(self.scale), summed)


class Pair(nn.Module):
    """A residual pair of a trained `DoubleBranch` and its norm, without the activation after it."""

    def __init__(self, branches: DoubleBranch) -> None:
        super().__init__()
        self.conv, self.norm = branches.conv3, branches.norm

    def forward(self, x: Tensor) -> Tensor:
        """(N, 64, H, W) to (N, 64, H, W)."""
        result: Tensor = self.norm(self.conv(self.conv(x)) + x)
        return result
