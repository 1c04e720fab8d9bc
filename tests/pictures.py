"""Images to measure, made by formula so that everyone who knows it has the same to the last bit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def scene(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """A fused image and its two sources, waves and blocks, each (1, 1, rows, columns) uint8."""
    y, x = np.mgrid[:rows, :columns]
    waves = 127.5 + 90 * np.sin(x / 5) * np.cos(y / 7) + 37 * np.sin((x * y) / 150)
    disc = np.hypot(y - rows / 2, x - columns / 3) < rows / 3
    blocks = 30.0 + 150 * disc + 20 * ((x // 8 + y // 8) % 3) + 0.25 * y
    speckle = (x * 73 + y * 151 + x * y * 19) % 32 - 16
    fused = 0.6 * waves + 0.4 * blocks + 0.5 * speckle
    images = (np.rint(np.clip(image, 0, 255)).astype(np.uint8) for image in (fused, waves, blocks))
    first, second, third = (torch.from_numpy(image)[None, None] for image in images)
    return first, second, third


def flat(level: int, rows: int = 48, columns: int = 48) -> Tensor:
    """A constant image, (1, 1, rows, columns) uint8."""
    return torch.full((1, 1, rows, columns), level, dtype=torch.uint8)


def grid(*rows: list[float]) -> Tensor:
    """A float image from its rows of grey levels 0-255, (1, 1, H, W)."""
    return torch.tensor(rows, dtype=torch.float64)[None, None] / 255


def planes(seed: int, size: tuple[int, int] = (40, 44), count: int = 2) -> Tensor:
    """Noise in [0, 1), (count, 1, *size): planes in which no pixel is like another."""
    return torch.rand((count, 1, *size), generator=torch.Generator().manual_seed(seed))
