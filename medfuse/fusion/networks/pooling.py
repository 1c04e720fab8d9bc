"""What the networks of this family share: 2×2 pooling, and its return to full size, for any size of image."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

#: Feature channels of DILRAN, MSRPAN and MSDRA.
CHANNELS = 64


def pooled(x: Tensor) -> Tensor:
    """2×2 averages, (N, C, ⌈H/2⌉, ⌈W/2⌉); at an odd edge of what there is of the last row or column."""
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def halvings(x: Tensor) -> list[Tensor]:
    """The image, and it at a half, a quarter and an eighth of its size."""
    levels = [x]
    for _ in range(3):
        levels.append(pooled(levels[-1]))
    return levels


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Every value repeated 2×2, cut to the height and width of `like`."""
    return F.interpolate(x, scale_factor=2, mode="nearest")[..., : like.shape[-2], : like.shape[-1]]


def coarse(x: Tensor) -> Tensor:
    """2×2 averages at full size, negative values set to 0: the pooling-upsampling-ReLU path of the papers."""
    return enlarged(pooled(x), x).relu()
