"""EH-DRAN for use, not for training: the trained network with fewer operations and the same result.

Its encoder contains DILRAN's, which is taken from there. The edge branch looks at the shallow layer, whose channels are
w_c·x + b_c: all of them one image. So the dense block's first convolution, and that half of the second which looks at
the shallow layer, are convolutions of one channel; and the Sobel gradients of the channels are those of the image times
|w_c|, which the 1×1 after them sums up to one weight a channel.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfuse.fusion.networks.autoencoder import AutoEncoder
from medfuse.fusion.networks.collapsed import Collapsed, Pointwise, bordered, channels_last, kernel_of
from medfuse.fusion.networks.dilran_compiled import CompiledEncoder
from medfuse.fusion.networks.eh_dran import SLOPE, EdgeEnhancer, EhDran
from medfuse.fusion.networks.pooling import CHANNELS


class CompiledEhDran(AutoEncoder):
    """What a trained `EhDran` computes in evaluation mode, to rounding (1e-5 on [0, 1]).

    Args:
        network: The trained network; its tensors are copied.
    """

    def __init__(self, network: EhDran) -> None:
        super().__init__()
        self.encoder = CompiledEncoder(network.encoder)
        self.edges = CompiledEdges(network.encoder.shallow, network.edges)
        first, second, last = (layer for layer in network.decoder.children() if isinstance(layer, nn.Conv2d))
        leaky = nn.LeakyReLU(SLOPE, inplace=True)
        self.decoder = nn.Sequential(
            copy.deepcopy(first), leaky, copy.deepcopy(second), leaky, Collapsed(last, 32, reach=1, border=0)
        )
        channels_last(self)

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to features (N, 64, H, W)."""
        features: Tensor = self.encoder(image)
        return features.add_(self.edges(image))


class CompiledEdges(nn.Module):
    """What the shallow layer and a trained `EdgeEnhancer` after it compute in evaluation mode.

    Args:
        shallow: The shallow layer; its tensors are copied.
        edges: The trained branch; its tensors are copied.
    """

    of_shallow: Tensor
    sobel: Tensor
    slope: Tensor

    def __init__(self, shallow: nn.Conv2d, edges: EdgeEnhancer) -> None:
        super().__init__()
        self.plain = nn.Sequential(copy.deepcopy(shallow), copy.deepcopy(edges)).eval()
        first, second = edges.dense
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        self.first = _conv(*_middle(shallow, first))
        self.of_first = _conv(second.weight[:, CHANNELS:], None)
        of_shallow, bias = _middle(shallow, _conv(second.weight[:, :CHANNELS], second.bias))
        self.of_first.bias = nn.Parameter(bias)
        self.register_buffer("of_shallow", of_shallow.flatten(1).T.clone())
        assert edges.reduce_dense.bias is not None
        assert edges.reduce_edges.bias is not None
        self.reduce = Pointwise(edges.reduce_dense.weight, edges.reduce_dense.bias + edges.reduce_edges.bias)
        weight = torch.einsum("oc,c->o", edges.reduce_edges.weight[..., 0, 0], shallow.weight.flatten().abs())
        self.register_buffer("slope", weight.detach()[:, None, None])
        self.register_buffer("sobel", edges.sobel[:2].clone())

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) to (N, 64, H, W)."""
        first = F.leaky_relu_(self.first(image), SLOPE)
        second = self.of_first(first)
        taps = F.unfold(image, 3, padding=1).mT
        second.view(*second.shape[:2], -1).mT.baddbmm_(taps, self.of_shallow.expand(len(image), -1, -1))
        second = F.leaky_relu_(second, SLOPE)
        gradient = F.conv2d(image, self.sobel, padding=1).abs_().sum(dim=1, keepdim=True)
        result = self.reduce(second).addcmul_(self.slope, gradient)
        return bordered(result, self.plain, image, border=2, reach=2)


def _middle(shallow: nn.Conv2d, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (C, 1, 3, 3) and bias (C,) of the shallow layer and a 3×3 convolution after it, but at the border."""
    return kernel_of(nn.Sequential(shallow, conv), channels=1, reach=1, border=1)


def _conv(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """The 3×3 convolution of these weights."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    conv.weight = nn.Parameter(weight.detach().clone())
    conv.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return conv
