"""Planes as the measures take them, by convention, and what they gave, by measure and side; pictures likewise."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.benchmark.table import SIDES
from medfuse.color import rgb_with_luminance
from medfuse.io.pictures import to_eight_bits
from medfuse.metrics import Convention, Scorecard, score, score_safety, score_stack

Planes = NDArray[np.float32]
Chroma = NDArray[np.float32]
Values = dict[tuple[str, str], NDArray[np.float64]]
SafetyValues = dict[str, NDArray[np.float64]]
#: Luminance (N, H, W) in [0, 1], and chroma (N, H, W, 2) where there is colour.
Shown = tuple[Planes, Chroma | None]

#: Slices of a volume measured at once, between two calls of progress.
SLICES_AT_ONCE = 8


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


def to_pictures(luminance: Planes, chroma: Chroma | None) -> torch.Tensor:
    """Pictures as they are saved: grey, or in colour where there is chroma.

    Args:
        luminance: (N, H, W) in [0, 1].
        chroma: Cb and Cr, (N, H, W, 2), or (H, W, 2) for all.

    Returns:
        (N, 1, H, W) or (N, 3, H, W), uint8.
    """
    if chroma is None:
        return torch.from_numpy(to_eight_bits(luminance))[:, None]
    pixels = rgb_with_luminance(luminance, np.broadcast_to(chroma, (*luminance.shape, 2)))
    return torch.from_numpy(pixels).movedim(-1, 1)


def measure_safety(fused: torch.Tensor, structural: torch.Tensor, functional: torch.Tensor) -> SafetyValues:
    """Measure what a fusion must not do, on pictures as `to_pictures` gives them.

    Args:
        fused: (N, 1, H, W) or (N, 3, H, W).
        structural: The same, with 1 or 3 channels.
        functional: The same; with 3 channels colour is measured too.

    Returns:
        By measure, (N,).
    """
    return _by_name(score_safety(fused, structural, functional))


def measure_stack(fused: Planes, structural: Planes, functional: Planes) -> SafetyValues:
    """Measure how steady the slices of a stack are, as 8-bit levels.

    Args:
        fused: Luminance, (K, H, W) in [0, 1], in the order of the slices.
        structural: The same shape.
        functional: The same shape.

    Returns:
        By measure, (1,); nothing of a single slice.
    """
    if len(fused) < 2:
        return {}
    stacks = (torch.from_numpy(to_eight_bits(planes)) for planes in (fused, structural, functional))
    return _by_name(score_stack(*stacks))


def check_shown(fused: Shown, structural: Shown, functional: Shown) -> SafetyValues:
    """Measure what a fusion must not do, on every slice and from slice to slice.

    Args:
        fused: What was fused, as it is shown, slices in their order.
        structural: The structural source, as it was fused; its chroma is not looked at.
        functional: The functional one.

    Returns:
        By measure, (N,), or (1,) of the slices together.
    """
    found = []
    for start in range(0, len(fused[0]), SLICES_AT_ONCE):
        part = slice(start, start + SLICES_AT_ONCE)
        pictures = (
            to_pictures(luminance[part], None if chroma is None else chroma[part])
            for luminance, chroma in (fused, (structural[0], None), functional)
        )
        found.append(measure_safety(*pictures))
    safety = {key: np.concatenate([one[key] for one in found]) for key in found[0]}
    return {**safety, **measure_stack(fused[0], structural[0], functional[0])}


def _by_name(card: Scorecard) -> SafetyValues:
    return {one.measure.name: one.value.double().cpu().numpy() for one in card.scores}


def _to_tensor(planes: Planes, convention: Convention) -> torch.Tensor:
    if convention == "standard":
        return torch.from_numpy(to_eight_bits(planes))[:, None]
    return torch.from_numpy(np.array(planes, np.float32, order="C"))[:, None]
