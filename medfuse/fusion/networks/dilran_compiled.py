"""DILRAN for use, not for training: the trained network with a fraction of its operations and the same result.

- With p the pooled image and x the image, the 64 channels of the shallow layer are x + p·(w_c·x + b_c): sums of the
  three maps x, p·x and p with fixed weights. The dilated convolutions, the 1×1 reduction and the norm after it have no
  activation between them: one convolution of the three maps, with 25 taps.
- Nor has the attention block's convolution C, which is applied once, twice and three times: C + C² + C³ of the above is
  one convolution of the three maps too, of 17×17 taps, which a Fourier transform does for the price of a few. In the 3
  pixels next to the border, where the padding of C shows, every row has a convolution of its own.
- What C makes is weighted by max(0, pooled features), and all of it by max(0, pooled shallow features). Channels in
  which one of these is 0 all over are left out; so is what is black, where the second is 0.
- The decoder is one 7×7 convolution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache

import scipy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfuse.fusion.networks.autoencoder import AutoEncoder, Part
from medfuse.fusion.networks.collapsed import Collapsed, Repeated, Rim, Strips, affine_of, bands, kernel_of
from medfuse.fusion.networks.dilran import Dilran, Encoder
from medfuse.fusion.networks.lit import lit
from medfuse.fusion.networks.pooling import CHANNELS, enlarged, pooled

#: Pixels from an output to the farthest input: of the layers before the first norm, and of C three times after them.
NEAR, FAR = 5, 8
#: Pixels next to the border in which the padding of C shows.
RIM = FAR - NEAR
#: Where the dilated convolutions look, (row, column).
TAPS = sorted({(d * y, d * x) for d in (1, 3, 5) for y in (-1, 0, 1) for x in (-1, 0, 1)})
#: Sizes whose transformed weights are kept.
SIZES = 4


class CompiledDilran(AutoEncoder):
    """What a trained `Dilran` computes in evaluation mode, to rounding (1e-5 on [0, 1]).

    Args:
        network: The trained network; its tensors are copied.
    """

    def __init__(self, network: Dilran) -> None:
        super().__init__()
        self.encoder = CompiledEncoder(network.encoder)
        self.decoder = Collapsed(network.decoder, CHANNELS, reach=3, border=2)

    def encode(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to features (N, 64, H, W)."""
        features: Tensor = self.encoder(image)
        return features

    def body(self, image: Tensor) -> Part:
        """What is not black: beyond, the features are 0, since the gate is shut, whatever the layers behind it say."""
        return lit(image)


class CompiledEncoder(nn.Module):
    """What a trained `Encoder` computes in evaluation mode.

    Args:
        encoder: The trained encoder; its tensors are copied.
    """

    near: Tensor
    order: Tensor
    mixing: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.plain = copy.deepcopy(encoder).eval()
        scale, shift = affine_of(self.plain.norm)
        weight, bias = kernel_of(Front(self.plain), channels=3, reach=NEAR, border=0)
        front = nn.Conv2d(3, CHANNELS, 2 * NEAR + 1, padding=NEAR)
        front.weight, front.bias = nn.Parameter(weight), nn.Parameter(bias)
        attended = nn.Sequential(front, Repeated(self.plain.attention.conv), Scaled(scale))
        self.rim = Rim(attended, channels=3, reach=FAR, border=RIM)
        taps = [scale[..., 0] * weight[:, :, NEAR + y, NEAR + x] for y, x in TAPS]
        self.register_buffer("near", torch.cat([*taps, scale[..., 0] * bias[:, None] + shift[..., 0]], dim=1))
        self.register_buffer("mixing", mixing(self.plain.shallow))
        self.register_buffer("scale", torch.where(scale == 0, 1, scale))
        self.register_buffer("shift", shift)
        self.register_buffer("order", self._likely_first())
        self.far = Wide(*(part[self.order] for part in kernel_of(attended, channels=3, reach=FAR, border=RIM)))

    def _likely_first(self) -> Tensor:
        """The channels, first those in which the attention is at work where the image is grey, whichever grey."""
        greys = torch.linspace(0, 1, 17, dtype=self.near.dtype)[:, None, None, None].expand(-1, 1, 32, 32)
        maps = three_maps(greys)
        with torch.no_grad():
            weight, gate = self._coarse(maps, self._near(F.pad(maps, (FAR,) * 4)))
        return (weight * gate > 0).any(0).flatten(1).any(1).int().argsort(descending=True, stable=True)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to (N, 64, H, W)."""
        if self.rim.covers(image):
            small: Tensor = self.plain(image)
            return small
        maps = three_maps(image)
        strips, padded = self.rim(maps), F.pad(maps, (FAR,) * 4)
        rows, columns = lit(image)
        size = len(image), len(self.near), *image.shape[-2:]
        whole = (rows.stop - rows.start, columns.stop - columns.start) == image.shape[-2:]
        features = image.new_empty(size) if whole else image.new_zeros(size)
        around = slice(rows.start, rows.stop + 2 * FAR), slice(columns.start, columns.stop + 2 * FAR)
        if rows.start < rows.stop:
            self._fill(features[..., rows, columns], padded[(..., *around)], strips, (rows.start, columns.start))
        return features

    def _fill(self, features: Tensor, padded: Tensor, strips: Strips, corner: tuple[int, int]) -> None:
        """Compute the features of a part of the image.

        Args:
            features: (N, 64, H, W), to be written to.
            padded: The maps there and `FAR` pixels around, (N, 3, H + 2·FAR, W + 2·FAR).
            strips: What C makes next to the border of the image.
            corner: Row and column of the image where the part begins; even.
        """
        for rows in bands(features):
            around = padded[..., rows.start : rows.stop + 2 * FAR, :]
            maps = around[..., FAR:-FAR, FAR:-FAR]
            deep = self._near(around)
            weight, gate = self._coarse(maps, deep)
            chosen = self.order[: self._active(weight, gate)]
            attended = self.far(around, len(chosen))
            strips.of(chosen).put(attended, corner[0] + rows.start, corner[1])
            deep.index_add_(1, chosen, by_blocks(Tensor.mul_, attended, weight[:, chosen]))
            shallow = (self.mixing @ maps.flatten(2)).view_as(deep)
            by_blocks(gated, features[..., rows, :], gate, shallow, deep)

    def _active(self, weight: Tensor, gate: Tensor) -> int:
        """How many of the ordered channels have a weight of C anywhere: of networks as trained, about half."""
        if weight.device.type != "cpu":  # to ask would make the GPU wait
            return len(self.order)
        active = ((weight.amax((0, 2, 3)) > 0) & (gate.amax((0, 2, 3)) > 0))[self.order].nonzero()
        return int(active.max()) + 1 if len(active) else 0

    def _near(self, padded: Tensor) -> Tensor:
        """The layers up to the first norm, and the scale and shift of the second: of padded maps, (N, 64, H, W)."""
        height, width = padded.shape[-2] - 2 * FAR, padded.shape[-1] - 2 * FAR
        taps = padded.new_empty(len(padded), self.near.shape[1], height, width)
        taps[:, -1] = 1
        for number, (y, x) in enumerate(TAPS):
            top, left = FAR + y, FAR + x
            taps[:, 3 * number : 3 * number + 3] = padded[..., top : top + height, left : left + width]
        return torch.unflatten(self.near @ taps.flatten(2), 2, (height, width))

    def _coarse(self, maps: Tensor, deep: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of what C makes, and of all of it: both constant on 2×2 pixels, (N, 64, ⌈H/2⌉, ⌈W/2⌉)."""
        coarse = pooled(maps)
        gate = torch.unflatten(self.mixing @ coarse.flatten(2), 2, coarse.shape[-2:])
        return halved(deep).sub_(self.shift).div_(self.scale).relu_(), gate.relu_()


class Wide(nn.Module):
    """A convolution with many taps from few channels to many: by Fourier transform, or in bfloat16 as it stands.

    Args:
        weight: (C, channels, side, side).
        bias: (C,).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.reach = weight.shape[-1] // 2
        self.spectrum = lru_cache(SIZES)(self._spectrum)

    def forward(self, x: Tensor, count: int) -> Tensor:
        """Of the padded input, (N, channels, H + 2·reach, W + 2·reach), the first channels, (N, count, H, W)."""
        if x.dtype == torch.bfloat16:
            return F.conv2d(x, self.weight[:count], self.bias[:count])
        height, width = x.shape[-2] - 2 * self.reach, x.shape[-1] - 2 * self.reach
        size = fast(height + 2 * self.reach, 16), fast(width + self.reach, 24)
        # What wraps around from below is cut off; to the left of the first column are the zeros right of the last.
        image = torch.fft.rfft2(x[..., self.reach :], s=size)[:, :, None]
        weight = self.spectrum(size, x.device)[:, :count]
        product = image[:, 0] * weight[0]
        for channel in range(1, len(weight)):
            product.addcmul_(image[:, channel], weight[channel])
        product[..., 0, 0] += self.bias[:count] * (size[0] * size[1])
        result: Tensor = torch.fft.irfft2(product, s=size)
        return result[..., :height, :width]

    def _spectrum(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """Of the weights, mirrored, such that the result starts at the first pixel: (channels, C, H, W // 2 + 1)."""
        with torch.inference_mode():
            weight = F.pad(self.weight.to(device), (0, size[1] - self.weight.shape[-1])).roll(-self.reach, -1)
            spectrum: Tensor = torch.fft.rfft2(weight, s=size)
            return spectrum.conj().transpose(0, 1).resolve_conj().contiguous()


class Front(nn.Module):
    """The layers of an `Encoder` from the three maps to its first norm."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mixing", mixing(encoder.shallow))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 64, H, W)."""
        x = torch.einsum("cm,nmhw->nchw", self.get_buffer("mixing"), maps)
        deep: Tensor = torch.cat([conv(x) for conv in self.encoder.dilated], dim=1)
        deep = self.encoder.norm(self.encoder.reduce(deep))
        return deep


class Scaled(nn.Module):
    """A factor for each channel."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return x * self.get_buffer("scale")


def three_maps(image: Tensor) -> Tensor:
    """The maps x, p·x and p of an image x, (N, 1, H, W) to (N, 3, H, W)."""
    coarse = enlarged(pooled(image).relu_(), image)
    return torch.cat([image, coarse * image, coarse], dim=1)


def halved(x: Tensor) -> Tensor:
    """As `pooled`: where the sides are even, by two additions, which a CPU does several times faster."""
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        return pooled(x)
    rows = x[..., ::2, :] + x[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)


def mixing(shallow: nn.Conv2d) -> Tensor:
    """From the three maps to the channels x + p·(w_c·x + b_c) of a shallow layer, (64, 3)."""
    assert shallow.bias is not None
    bias = shallow.bias.detach()
    return torch.stack([torch.ones_like(bias), shallow.weight.detach().flatten(), bias], dim=1)


def gated(result: Tensor, gate: Tensor, shallow: Tensor, deep: Tensor) -> Tensor:
    """The shallow features and, as far as the gate is open, the deep ones, written to the result."""
    return torch.addcmul(shallow, gate, deep, out=result)


def by_blocks(operation: Callable[..., Tensor], x: Tensor, coarse: Tensor, *others: Tensor) -> Tensor:
    """An operation in place on x, with values that are constant on 2×2 pixels and whatever else it takes.

    They are repeated along the rows only; along the columns each row of them serves two of x.

    Args:
        operation: Called with x, the constant values and the others, all of one size.
        x: (N, C, H, W), changed in place and returned.
        coarse: (N, C, ⌈H/2⌉, ⌈W/2⌉).
        others: (N, C, H, W) each.
    """
    height, width = x.shape[-2:]
    columns = F.interpolate(coarse, size=(coarse.shape[-2], 2 * coarse.shape[-1]), mode="nearest")[..., :width]
    even = height // 2 * 2
    if even:
        pairs = [torch.unflatten(one[..., :even, :], -2, (-1, 2)) for one in (x, *others)]
        operation(pairs[0], columns[..., : even // 2, None, :], *pairs[1:])
    if even < height:
        operation(x[..., even:, :], columns[..., -1:, :], *(one[..., even:, :] for one in others))
    return x


def fast(length: int, step: int) -> int:
    """A length that is fast to transform, not below this one: of the multiples of a step, so that few serve all."""
    return step * int(scipy.fft.next_fast_len(-(-length // step)))
