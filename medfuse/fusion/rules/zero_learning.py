"""Zero-learning fusion, by the features of a network that was trained for something else.

Lahoud and Süsstrunk, "Zero-Learning Fast Medical Image Fusion", FUSION 2019, and "Fast and Efficient Zero-Learning
Image Fusion", arXiv 1905.03590, 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfuse.fusion.networks.vgg import TORCHVISION, Vgg19
from medfuse.fusion.rules.guided_filter import refined
from medfuse.fusion.rules.smoothing import box, smooth

#: Side of the mean that parts base from detail, in pixels.
BASE_SIZE = 30
#: Radius in pixels and ε of the guided filter, for the weights of the base.
BASE_FILTER = (45, 0.01)
#: Saliency below this counts as none, as a share of the white level.
NO_SALIENCY = 1e-12
#: Grey levels to one unit of detail, at which the published code gives it to torchvision's network.
DEVIATION = sum(TORCHVISION[1]) / 3


class ZeroLearning(nn.Module):
    """Base weighted by how rare its grey levels are, detail by how strongly VGG19 responds to it.

    Args:
        network: VGG19 with its weights.
    """

    def __init__(self, network: Vgg19) -> None:
        super().__init__()
        self.network = network

    def forward(self, structural: Tensor, functional: Tensor) -> Tensor:
        """Fuse two batches.

        Args:
            structural: (N, 1, H, W) in [0, 1].
            functional: The same shape.

        Returns:
            (N, 1, H, W), not clamped.
        """
        images = torch.stack([structural, functional])
        bases = smooth(images, box(BASE_SIZE))
        rarity = rarity_of_level(images) + NO_SALIENCY
        base = (refined(rarity / rarity.sum(dim=0), images, *BASE_FILTER) * bases).sum(dim=0)
        return base + self.merged(images - bases)

    def merged(self, details: Tensor) -> Tensor:
        """The largest, pixel by pixel, of the details that three layers make.

        A layer's weights are the softmax, over the two sources, of the sum of its responses over channels.

        Args:
            details: (2, N, 1, H, W), of the two sources.

        Returns:
            (N, 1, H, W).
        """
        gain = DEVIATION / self.network.unit
        responses = self.network.respond((gain * details).flatten(0, 1).expand(-1, 3, -1, -1))
        merged = []
        for scale, response in zip((1, 2, 4), responses, strict=True):
            activity = response.sum(dim=1, keepdim=True) / gain
            weights = enlarged(activity, scale, details).softmax(dim=0)
            merged.append((weights * details).sum(dim=0))
        return torch.stack(merged).amax(dim=0)


def rarity_of_level(images: Tensor) -> Tensor:
    """Saliency of every pixel: the mean distance of its grey level from all pixels of its image.

    From the histogram of 256 grey levels, as in Zhai and Shah, "Visual Attention Detection in Video Sequences Using
    Spatiotemporal Cues", ACM Multimedia 2006.

    Args:
        images: (..., H, W) in [0, 1].

    Returns:
        (..., H, W) in [0, 1].
    """
    levels = (255 * images).round().clamp(0, 255).long().flatten(-2)
    ones = torch.ones_like(levels, dtype=images.dtype)
    counts = images.new_zeros(*levels.shape[:-1], 256).scatter_add(-1, levels, ones)
    level = torch.linspace(0, 1, 256, dtype=images.dtype, device=images.device)
    distances = counts / levels.shape[-1] @ (level[:, None] - level).abs()
    return distances.gather(-1, levels).view(images.shape)


def enlarged(maps: Tensor, scale: int, like: Tensor) -> Tensor:
    """Every value of (2N, 1, h, w) repeated scale×scale, in the shape of `like`, (2, N, 1, H, W)."""
    height, width = like.shape[-2:]
    return F.interpolate(maps, scale_factor=scale, mode="nearest")[..., :height, :width].reshape(like.shape)
