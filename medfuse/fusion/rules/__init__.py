"""Fusion without training, one rule a file: two luminances (N, 1, H, W) in, one out, whichever comes first."""

from medfuse.fusion.rules.guided_filter import guided_filter_fusion
from medfuse.fusion.rules.laplacian import laplacian_pyramid
from medfuse.fusion.rules.shearlet_cnn import ShearletCnn
from medfuse.fusion.rules.zero_learning import ZeroLearning

__all__ = ["ShearletCnn", "ZeroLearning", "guided_filter_fusion", "laplacian_pyramid"]
