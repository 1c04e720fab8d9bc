"""DILRAN for use, not for training: the trained encoder with fewer operations and the same result.

Before its first norm the network is linear in three maps. With p the pooled image and x the image, the 64 channels of
the shallow layer are x + p·(w_c·x + b_c): sums of x, p·x and p with fixed weights. The three dilated convolutions, the
1×1 reduction and the norm after it therefore make one convolution from these 3 maps to 64 channels, with 25 taps that
are not zero; and pooling those 64 channels means pooling x alone, since p is constant on every block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfuse.fusion.networks.autoencoder import AutoEncoder
from medfuse.fusion.networks.dilran import Dilran, Encoder
from medfuse.fusion.networks.pooling import coarse, enlarged, pooled


class CompiledDilran(AutoEncoder):
    """What a trained `Dilran` computes in evaluation mode, to rounding (1e-5 on [0, 1]).

    Args:
        network: The trained network; its tensors are copied.
    """

    shallow_weight: Tensor
    shallow_bias: Tensor
    front_weight: Tensor
    front_bias: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, network: Dilran) -> None:
        super().__init__()
        encoder = network.encoder
        scale, shift = _affine_of(encoder.norm)
        weight, bias = _front_of(encoder)
        for name, tensor in {
            "shallow_weight": encoder.shallow.weight[:, 0],
            "shallow_bias": _bias_of(encoder.shallow)[:, None, None],
            "front_weight": weight * scale[:, None, None, None],
            "front_bias": bias * scale + shift,
            "scale": scale[:, None, None],
            "shift": shift[:, None, None],
        }.items():
            self.register_buffer(name, tensor.detach().to(torch.float32).clone())
        self.attention = encoder.attention.conv
        self.decoder = network.decoder

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to features (N, 64, H, W)."""
        average = enlarged(pooled(image), image)
        attention = average.relu()
        deep = F.conv2d(
            torch.cat([image, attention * image, attention], 1), self.front_weight, self.front_bias, padding=5
        )
        once = self.attention(deep)
        twice = self.attention(once)
        once += twice
        once += self.attention(twice)
        deep = torch.addcmul(deep, coarse(deep), once).mul_(self.scale).add_(self.shift)
        features = self._shallow(image, attention)
        return features.addcmul_(self._shallow(average, attention).relu_(), deep)

    def _shallow(self, image: Tensor, attention: Tensor) -> Tensor:
        """The shallow layer's 64 channels, of the image or of its average."""
        return torch.addcmul(image, attention, self.shallow_weight * image + self.shallow_bias)


def _affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm on its running statistics, float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _front_of(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Weight (64, 3, 11, 11) and bias (64,) of everything from the maps x, p·x, p to the reduction, float64."""
    shallow = encoder.shallow.weight[:, 0, 0, 0].double()
    maps = torch.stack([torch.ones_like(shallow), shallow, _bias_of(encoder.shallow)], dim=1)
    reductions = encoder.reduce.weight[:, :, 0, 0].double().chunk(len(encoder.dilated), dim=1)
    weight = shallow.new_zeros(len(shallow), 3, 11, 11)
    bias = _bias_of(encoder.reduce)
    for conv, reduction in zip(encoder.dilated, reductions, strict=True):
        assert isinstance(conv, nn.Conv2d)
        step = conv.dilation[0]
        taps = slice(5 - step, 6 + step, step)
        weight[:, :, taps, taps] += torch.einsum("oc,cdhw,dm->omhw", reduction, conv.weight.double(), maps)
        bias = bias + reduction @ _bias_of(conv)
    return weight, bias


def _bias_of(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.double()
