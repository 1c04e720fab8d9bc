"""MSRPAN for use, not for training: the trained network with fewer operations and the same result.

A pyramid block changes its input x by what is constant on 2×2 blocks: its output is s·x plus an image of half the size,
enlarged, with s the scale of the norm. Three blocks in a row can therefore be computed at half the size throughout. The
first sees the shallow layer, whose channels are w_c·x + b_c: all of them one image, so that the sum of its convolutions
applied once, twice and three times is one 7×7 convolution of one channel. The decoder is one 5×5 convolution.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from medfuse.fusion.networks.autoencoder import AutoEncoder
from medfuse.fusion.networks.collapsed import Collapsed, Pointwise, Repeated, affine_of, channels_last
from medfuse.fusion.networks.msrpan import Msrpan
from medfuse.fusion.networks.pooling import CHANNELS, enlarged, halvings, pooled


class CompiledMsrpan(AutoEncoder):
    """What a trained `Msrpan` computes in evaluation mode, to rounding (1e-5 on [0, 1]).

    Args:
        network: The trained network; its tensors are copied.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, network: Msrpan) -> None:
        super().__init__()
        self.attention = Repeated(copy.deepcopy(network.pyramid.conv))
        first = nn.Sequential(network.shallow, self.attention)
        self.first_attention = Collapsed(first, channels=1, reach=3, border=3)
        self.decoder = Collapsed(network.decoder, CHANNELS, reach=2, border=1)
        self.shallow = Pointwise(network.shallow.weight, network.shallow.bias)
        assert network.shallow.bias is not None
        scale, shift = affine_of(network.pyramid.norm)
        for name, tensor in {
            "weight": network.shallow.weight[:, 0],
            "bias": network.shallow.bias[:, None, None],
            "scale": scale,
            "shift": shift,
        }.items():
            self.register_buffer(name, tensor.detach().clone())
        channels_last(self)

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to features (N, 64, H, W).

        After each block the features are share·(w·x + b) plus `rest`, enlarged; in the end slope·x plus offset, both
        enlarged.
        """
        images = halvings(pooled(image))
        levels = [self.shallow(small) for small in images]
        average, shallow = images[0], levels[0]
        share = self.scale
        rest = self._normed(_change(levels, [self.first_attention(small) for small in images[:-1]]))
        for _ in range(2):
            levels = halvings(torch.addcmul(rest, share, shallow))
            rest = self._normed(_change(levels, [self.attention(level) for level in levels[:-1]]).add_(rest))
            share = self.scale * share
        coarse = average.relu()
        gate = torch.addcmul(average, coarse, shallow).relu_()
        factor = torch.addcmul(coarse, share, gate)
        slope, offset = 1 + self.weight * factor, torch.addcmul(self.bias * factor, gate, rest)
        return enlarged(offset, image).addcmul_(enlarged(slope, image), image)

    def _normed(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.scale, x)


def _change(levels: list[Tensor], attended: list[Tensor]) -> Tensor:
    """What a pyramid block adds to its input before the norm, at half the size.

    Args:
        levels: The input at a half, a quarter, an eighth and a sixteenth of the size.
        attended: `Repeated` of the first three.
    """
    summed = torch.zeros_like(levels[-1])
    for level, coarser, attention in reversed(list(zip(levels, levels[1:], attended, strict=False))):
        summed = torch.addcmul(level, enlarged(coarser.relu(), level), attention).add_(enlarged(summed, level))
    return summed.mul_(levels[0].relu())
