"""What the compiled forms of the networks share: linear layers in a row become one convolution.

Convolutions, sums of them and batch norms in evaluation mode make one affine map. In the middle of the image it is one
convolution; near the border it is not, since every layer pads its own input with zeros. There, in strips a few pixels
wide, every row has a convolution of its own, so that the result is exact everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfuse.fusion.networks.lit import is_black

#: Rows computed at a time, at most: memory stays small, and transforms fast. Even, for what is pooled. On CUDA, where
#: to launch an operation takes as long as the operation, all are computed at once.
BAND = 64


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
        self.reach = reach
        self.rim = Rim(plain, channels, reach, border) if border else None
        weight, bias = kernel_of(plain, channels, reach, border)
        if len(weight) == 1:
            weight = weight.flip(-1, -2).flatten(2).mT[0].contiguous()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, C, H, W), whatever the size."""
        if self.rim and self.rim.covers(x):
            small: Tensor = self.rim.plain(x)
            return small
        result = F.conv2d(x, self.weight, self.bias, padding=self.reach) if len(self.bias) > 1 else self._scattered(x)
        return self.rim(x).put(result) if self.rim else result

    def _scattered(self, x: Tensor) -> Tensor:
        """The convolution to one channel, as a matrix product whose results are added up in their places."""
        (height, width), side = x.shape[-2:], 2 * self.reach + 1
        full = height + side - 1, width + side - 1
        inside = slice(self.reach, self.reach + height), slice(self.reach, self.reach + width)
        if x.is_cuda:
            return F.fold(self.weight @ x.flatten(2), full, side)[(..., *inside)] + self.bias
        result = self.bias.expand(len(x), *full).clone()
        for first in range(0, height, BAND):
            rows = x[..., first : first + BAND, :]
            spread = torch.unflatten(self.weight @ rows.flatten(2), 2, rows.shape[-2:])
            for tap in range(side * side):
                top, left = first + tap // side, tap % side
                result[:, top : top + rows.shape[-2], left : left + width] += spread[:, tap]
        return result[(slice(None), None, *inside)]


class Rim(nn.Module):
    """Affine layers next to the border, where the padding of the inner ones shows.

    Along a side, a row of results at one distance from it is a convolution of the rows next to it; every distance has
    its own. In the corners the layers themselves are applied.

    Args:
        plain: The layers; copied.
        channels: Channels of their input.
        reach: As of `Collapsed`.
        border: As of `Collapsed`; not 0.
    """

    def __init__(self, plain: nn.Module, channels: int, reach: int, border: int) -> None:
        super().__init__()
        self.plain = copy.deepcopy(plain).eval()
        self.reach, self.border = reach, border
        for name, side in SIDES.items():
            weight, bias = self._kernel(channels, side)
            self.register_buffer(f"{name}_weight", weight)
            self.register_buffer(f"{name}_bias", bias)
        nothing = torch.zeros(1, channels, reach + border, reach + border, dtype=bias.dtype)
        with torch.no_grad():
            self.register_buffer("black", self.plain(nothing))

    def covers(self, x: Tensor) -> bool:
        """Whether an image is so small that its sides would meet."""
        return min(x.shape[-2:]) < 2 * (self.border + self.reach)

    def forward(self, x: Tensor) -> Strips:
        """What the layers make of x, (N, channels, H, W), next to its border."""
        strips = {}
        for name, side in SIDES.items():
            near = side.to_top(x[side.near(self.border + self.reach)])
            bias = self.get_buffer(f"{name}_bias")
            if is_black(near):
                strip = bias[:, None, None].expand(len(x), -1, 1, near.shape[-1])
            else:
                strip = F.conv2d(F.pad(near, (self.reach, self.reach)), self.get_buffer(f"{name}_weight"), bias)
            strips[name] = side.from_top(torch.unflatten(strip[:, :, 0], 1, (-1, self.border)))
        return Strips(self.border, self._corners(x), **strips)

    def _corners(self, x: Tensor) -> Tensor:
        """Of the layers applied to the corners: upper left, upper right, lower left, lower right, (4, N, C, h, w)."""
        size = self.border + self.reach
        ends = slice(None, size), slice(-size, None)
        corners = torch.stack([x[..., rows, columns] for rows in ends for columns in ends])
        if is_black(corners):
            return self.get_buffer("black").expand(4, len(x), -1, -1, -1)
        result: Tensor = self.plain(corners.flatten(0, 1))
        return torch.unflatten(result, 0, (4, -1))

    @torch.inference_mode(mode=False)
    def _kernel(self, channels: int, side: Side) -> tuple[Tensor, Tensor]:
        """Of the convolution along a side, seen as the top: (C·border, channels, rows, columns) and (C·border,)."""
        dtype = next(self.plain.parameters()).dtype
        exact = copy.deepcopy(self.plain).double()
        rows, centre = self.border + self.reach, self.reach + self.border
        nothing = torch.zeros(1, channels, rows, 2 * centre + 1, dtype=torch.float64)

        def result(picture: Tensor) -> Tensor:
            return side.to_top(exact(side.from_top(picture)))[..., : self.border, :]

        with torch.no_grad():
            bias = result(nothing)[0, ..., centre].flatten()
        inner = slice(self.border, 2 * centre + 1 - self.border)
        if len(bias) < channels * rows:
            weight = _gradients(result, nothing, centre, len(bias))[..., inner]
        else:
            impulses = nothing.repeat(channels * rows, 1, 1, 1)
            each = torch.arange(channels * rows)
            impulses[each, each // rows, each % rows, centre] = 1
            with torch.no_grad():
                responses = (result(impulses) - result(nothing))[..., inner].flip(-1)
            weight = torch.unflatten(responses.flatten(1, 2), 0, (channels, rows)).permute(2, 0, 1, 3)
        return weight.to(dtype).contiguous(), bias.to(dtype)


def _gradients(layers: Callable[[Tensor], Tensor], at: Tensor, column: int, count: int) -> Tensor:
    """How each of the results in a column, (count,) in all, depends on the picture, (count, *at.shape[1:])."""
    with torch.enable_grad():
        picture = at.clone().expand(count, -1, -1, -1).requires_grad_()
        results = layers(picture)[..., column].flatten(1)
        (slope,) = torch.autograd.grad(results.diagonal().sum(), picture)
    return slope


@dataclass(frozen=True)
class Strips:
    """Results next to the border: strips along the sides, and the corners.

    Args:
        border: Their width.
        corners: (4, N, C, h, w); the outermost pixels of each count.
        top: (N, C, border, W).
        bottom: Likewise.
        left: (N, C, H, border).
        right: Likewise.
    """

    border: int
    corners: Tensor
    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor

    def of(self, channels: Tensor) -> Strips:
        """Those of some channels."""
        one_by_one = [strip[:, channels] for strip in (self.top, self.bottom, self.left, self.right)]
        return Strips(self.border, self.corners[:, :, channels], *one_by_one)

    def put(self, result: Tensor, top: int = 0, left: int = 0) -> Tensor:
        """Put them into the result, (N, C, H, W), or into the part of it that begins there; changed in place."""
        (height, width), border = (self.left.shape[-2], self.top.shape[-1]), self.border
        (last_row, last_column), size = (height - border, width - border), self.corners.shape[-1]
        corners = self.corners[..., :border, :border], self.corners[..., :border, size - border :]
        lower = self.corners[..., size - border :, :border], self.corners[..., size - border :, size - border :]
        for row, column, piece in (
            (0, 0, self.left),
            (0, last_column, self.right),
            (0, 0, self.top),
            (last_row, 0, self.bottom),
            (0, 0, corners[0][0]),
            (0, last_column, corners[1][1]),
            (last_row, 0, lower[0][2]),
            (last_row, last_column, lower[1][3]),
        ):
            _overlay(result, piece, row - top, column - left)
        return result


def _overlay(result: Tensor, piece: Tensor, top: int, left: int) -> None:
    """Lay a piece, (N, C, h, w), on the result with its first pixel there, as far as it lies on it."""
    first = max(top, 0), max(left, 0)
    last = min(top + piece.shape[-2], result.shape[-2]), min(left + piece.shape[-1], result.shape[-1])
    if first[0] < last[0] and first[1] < last[1]:
        part = piece[..., first[0] - top : last[0] - top, first[1] - left : last[1] - left]
        result[..., first[0] : last[0], first[1] : last[1]] = part


class Side(NamedTuple):
    """How to cut the pixels near a side from a picture, to turn it such that this side becomes the top, and back."""

    near: Callable[[int], tuple[Any, ...]]
    to_top: Callable[[Tensor], Tensor]
    from_top: Callable[[Tensor], Tensor]


SIDES = {
    "top": Side(lambda n: (..., slice(n), slice(None)), lambda x: x, lambda x: x),
    "bottom": Side(lambda n: (..., slice(-n, None), slice(None)), lambda x: x.flip(-2), lambda x: x.flip(-2)),
    "left": Side(lambda n: (..., slice(n)), lambda x: x.mT, lambda x: x.mT),
    "right": Side(lambda n: (..., slice(-n, None)), lambda x: x.flip(-1).mT, lambda x: x.mT.flip(-1)),
}


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


class Repeated(nn.Module):
    """A convolution applied once, twice and three times, summed."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        once: Tensor = self.conv(x)
        twice = self.conv(once)
        once += twice
        once += self.conv(twice)
        return once


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


def bands(features: Tensor) -> list[slice]:
    """The rows of (N, C, H, W) in parts of `BAND` at most, as equal as can be, each but the last of an even number."""
    height = features.shape[-2]
    count = 1 if features.is_cuda else max(1, -(-height // BAND))
    rows = max(2, 2 * -(-height // (2 * count)))
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


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
