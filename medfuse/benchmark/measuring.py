"""Planes as the measures take them, by convention, and what they gave, by measure and side."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.benchmark.table import SIDES
from medfuse.io.pictures import to_eight_bits
from medfuse.metrics import Convention, score

Planes = NDArray[np.float32]
Values = dict[tuple[str, str], NDArray[np.float64]]


def measure_planes(
    fused: Planes, structural: Planes, functional: Planes, *, convention: Convention, device: torch.device
) -> Values:
    """Measure luminances as the convention asks: 8-bit levels as saved, or for the paper's the floats as they are.

    Args:
        fused: (N, H, W) in [0, 1].
        structural: The same shape.
        functional: The same shape.
        convention: "standard" or "paper".
        device: Where to compute.

    Returns:
        By (measure, side), (N,).

    Raises:
        UnsupportedImage: The images are smaller than a measure needs.
    """
    batches = (_to_tensor(planes, convention).to(device) for planes in (fused, structural, functional))
    card = score(*batches, convention=convention)
    found = {(one.measure.name, side): getattr(one, side) for one in card.scores for side in SIDES}
    return {key: values.double().cpu().numpy() for key, values in found.items() if values is not None}


def _to_tensor(planes: Planes, convention: Convention) -> torch.Tensor:
    if convention == "standard":
        return torch.from_numpy(to_eight_bits(planes))[:, None]
    return torch.from_numpy(np.array(planes, np.float32, order="C"))[:, None]
