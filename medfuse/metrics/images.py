"""What every measure does first: check the images and bring them to one scale, grey levels from 0 to 255."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from medfuse.errors import UnsupportedImage

#: How a measure is computed: as its own paper defines it, or as the DILRAN paper (arXiv 2212.04661) computed its table.
Convention = Literal["standard", "paper"]

#: A float image this many grey levels from the nearest whole one is that level: a stored k/255 is not exact.
ROUNDING = 1e-4

#: Floats may overshoot [0, 1] by this much, as the output of a network does; beyond it, the scale is another.
OVERSHOOT = 1.0


def to_levels(*images: Tensor, smallest: int = 1, clip: bool = True) -> tuple[Tensor, ...]:
    """Images as grey levels, of one shape and fit to be measured.

    Args:
        *images: (N, 1, H, W); uint8 in 0-255, or float in [0, 1]. Shapes are alike; 8-bit and float may be mixed.
        smallest: Fewest rows and columns that the measure can work on.
        clip: Whether floats beyond [0, 1] become 0 or 1, as they do in a saved image.

    Returns:
        For each image (N, 1, H, W) float64 in grey levels, 0-255 (float32 on a device without float64). An 8-bit image
        and the same divided by 255 give the same numbers, to the last bit.

    Raises:
        TypeError: An image is neither uint8 nor float.
        ValueError: The shapes are not (N, 1, H, W) or not alike, or a float is not finite or far beyond [0, 1].
        UnsupportedImage: The images are smaller than the measure needs.
    """
    shape = images[0].shape
    if len(shape) != 4 or shape[1] != 1 or 0 in shape or any(image.shape != shape for image in images):
        raise ValueError(f"expected images of one shape (N, 1, H, W), got {[tuple(image.shape) for image in images]}")
    check_size(shape, smallest)
    return tuple(_scale(image, clip) for image in images)


def check_size(shape: Sequence[int], smallest: int) -> None:
    """Refuse images (…, H, W) with fewer rows or columns than a measure needs.

    Raises:
        UnsupportedImage: They are too small.
    """
    if min(shape[-2:]) < smallest:
        raise UnsupportedImage(
            f"expected images of at least {smallest} × {smallest} pixels, found {shape[-2]} × {shape[-1]}",
            "Measure larger images: so many pixels are looked at together",
        )


def to_eight_bits(*images: Tensor, smallest: int = 1) -> tuple[Tensor, ...]:
    """Images as `to_levels` gives them, rounded to whole grey levels: what a saved PNG holds."""
    return tuple(levels.round() for levels in to_levels(*images, smallest=smallest))


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 0 wherever the denominator is not above 0: no measure is ever NaN."""
    usable = denominator > 0
    return torch.where(usable, numerator / torch.where(usable, denominator, 1), 0.0)


def precision(image: Tensor) -> torch.dtype:
    """The dtype that measures are computed in where the image lies: float64, or float32 on a device without it."""
    return torch.float32 if image.device.type == "mps" else torch.float64


def _scale(image: Tensor, clip: bool) -> Tensor:
    precise = precision(image)
    if image.dtype == torch.uint8:
        return image.to(precise)
    if not image.is_floating_point():
        raise TypeError(f"expected an image of uint8 or float, got {image.dtype}")
    values = image.to(precise)
    lowest, highest = values.min().item(), values.max().item()
    if not (lowest >= -OVERSHOOT and highest <= 1 + OVERSHOOT):  # NaN fails both
        raise ValueError(f"expected float values in [0, 1], got {lowest:g} to {highest:g}")
    levels = (values.clamp(0, 1) if clip else values) * 255
    whole = levels.round()
    return torch.where((levels - whole).abs() < ROUNDING, whole, levels)
