"""What the compiled forms of the networks share: linear layers in a row become one convolution.

Convolutions, sums of them and batch norms in evaluation mode make one affine map. In the middle of the image it is one
convolution; near the border it is not, since every layer pads its own input with zeros. There, in strips a few pixels
wide, the layers themselves are applied, so that the result is exact everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Collapsed(nn.Module):
    """Affine layers as one convolution.

    Args:
        plain: The layers, with no activation between them; copied.
        channels: Channels of their input.
        reach: Pixels from an output to the farthest input it depends on.
        border: Width, in pixels, of the border where the padding of an inner layer shows: the radii, added up, of all
            convolutions after the first layer that has a bias or a radius.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, plain: nn.Module, channels: int, reach: int, border: int) -> None:
        super().__init__()
        self.plain = copy.deepcopy(plain).eval()
        self.reach, self.border = reach, border
        weight, bias = kernel_of(self.plain, channels, reach, border)
        if len(weight) == 1:
            weight = weight.flip(-1, -2).flatten(2).mT[0]
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, C, H, W), whatever the size."""
        result = F.conv2d(x, self.weight, self.bias, padding=self.reach) if len(self.bias) > 1 else self._scattered(x)
        return bordered(result, self.plain, x, self.border, self.reach)

    def _scattered(self, x: Tensor) -> Tensor:
        """The convolution to one channel, as a matrix product whose results are added up in their places."""
        size, side = x.shape[-2:], 2 * self.reach + 1
        return F.fold(self.weight @ x.flatten(2), size, side, padding=self.reach).add_(self.bias)


class Pointwise(nn.Module):
    """A 1×1 convolution as a product of matrices, which leaves the channels of a pixel side by side in memory.

    Args:
        weight: (C, channels), or as a convolution has it; copied.
        bias: (C,), or None; copied.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().flatten(1).clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, C, H, W)."""
        pixels = F.linear(x.permute(0, 2, 3, 1), self.weight)
        if self.bias is not None:
            pixels += self.bias
        return pixels.permute(0, 3, 1, 2)


def kernel_of(plain: nn.Module, channels: int, reach: int, border: int) -> tuple[Tensor, Tensor]:
    """Weight (C, channels, side, side) and bias (C,) of affine layers far from the border, by their impulse response.

    Computed in float64, returned in the layers' own dtype; the arguments are those of `Collapsed`.
    """
    dtype = next(plain.parameters()).dtype
    exact = copy.deepcopy(plain).eval().double()
    side, centre = 2 * (reach + border) + 1, reach + border
    impulses = torch.zeros(channels + 1, channels, side, side, dtype=torch.float64)
    impulses[torch.arange(channels), torch.arange(channels), centre, centre] = 1
    inner = slice(border, side - border)
    with torch.no_grad():
        responses = exact(impulses)[..., inner, inner]
    bias = responses[-1, :, reach, reach]
    weight = (responses[:-1] - responses[-1]).flip(-1, -2).transpose(0, 1)
    return weight.to(dtype).contiguous(), bias.to(dtype).clone()


def bordered(result: Tensor, plain: Callable[[Tensor], Tensor], x: Tensor, border: int, reach: int) -> Tensor:
    """`result`, with its border replaced by what `plain` makes of x there.

    Args:
        result: (N, C, H, W), changed in place.
        plain: (N, c, h, w) to (N, C, h, w), of any size.
        x: (N, c, H, W).
        border: Pixels to replace on every side.
        reach: Pixels from an output of `plain` to the farthest input it depends on.
    """
    if border:
        first, last = slice(None, border), slice(-border, None)
        upper, lower = slice(None, border + reach), slice(-border - reach, None)
        result[..., first, :] = plain(x[..., upper, :])[..., first, :]
        result[..., last, :] = plain(x[..., lower, :])[..., last, :]
        result[..., first] = plain(x[..., upper])[..., first]
        result[..., last] = plain(x[..., lower])[..., last]
    return result


def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm on its running statistics, each (C, 1, 1), computed in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.detach().double() - norm.running_mean.double() * scale
    return tuple(tensor.to(norm.weight.dtype)[:, None, None] for tensor in (scale, shift))  # type: ignore[return-value]


def channels_last(network: nn.Module) -> None:
    """Lay weights out such that convolutions leave the channels of a pixel side by side, where a CPU is fastest."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
