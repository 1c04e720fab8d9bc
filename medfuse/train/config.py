"""What a training is made of: a YAML file, checked before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from medfuse.errors import InputError
from medfuse.values import (
    Readers,
    check_range,
    content_of,
    items,
    kind_of,
    number,
    or_none,
    section,
    text,
    truth,
    whole,
)

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PairSet:
    """Pairs to train on: images of one name in two folders.

    Args:
        structural: A folder of 2-D images below the data folder.
        functional: Likewise.
        tracer: Whether the functional images show uptake, whose hot spots must stay the brightest.
        times: How often each pair counts, so that a small set is not lost beside a large one.
        losses: Weights that these pairs have in place of the config's, or beside them.
        free: Likewise what is free of a loss.

    Raises:
        ValueError: A folder is not below the data folder, or a number is out of its range.
    """

    structural: str
    functional: str
    tracer: bool = False
    times: int = 1
    losses: dict[str, float] = field(default_factory=dict)
    free: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        folders = _is_below(self.structural) and _is_below(self.functional)
        if not (folders and self.times >= 1 and _are_amounts(self.losses) and _are_amounts(self.free)):
            raise ValueError("out of range: pairs")


@dataclass(frozen=True)
class Config:
    """One training, whole; the YAML file has these keys, of which those with a default may be left out.

    Args:
        network: Name of the network.
        sets: What to read below the data folder: folders of 2-D images, or patterns such as `*/pet` and `*/mr.nii.gz`
            of images, folders of images and volumes. Both members of a pair serve, each by itself. Empty where there
            are `pairs`.
        pairs: What to read instead for a network that is trained to fuse.
        validation_cases: Cases kept out of training in every set.
        case: Regular expression whose first group is the case in the path of an image or volume below the data folder,
            without suffix. The default fits the Whole Brain Atlas: the file name without its last three digits.
        losses: Weight of each loss: "l2", "gradient", "perceptual"; of a network that is trained to fuse, the names of
            `medfuse.train.fusing.CHARGES`. A network that is trained for neither has its own, and takes none.
        free: Of a network that is trained to fuse, as much of a loss as a pair is not charged for: what is beyond
            enough of one measure would be paid for with another.
        crop: Side of the training crops, pixels, at least 2, and at least what the losses need
            (`medfuse.train.fusing.SMALLEST`), as do validation images.
        batch: Crops per step, over all processes.
        steps: Optimiser steps.
        learning_rate: Peak of a one-cycle schedule (Adam).
        freeze_statistics_after: Share of the steps after which batch norm keeps its running statistics, as it will
            when the network is used; the rest of the training adapts to them.
        seed: Of initial weights, crops and order; below 2³².
        only: A part of the network that learns only if it is asked for ("refinement" of Duet): it alone then, the rest
            stays as it is. None for the rest.
        clip_norm: Gradients longer than this are shortened to it.
        precision: Of the forward pass: "float32", "bfloat16", or on CUDA "float16".
        report_every: Steps between two reports; each writes the weights, the log and a checkpoint.
        validation_images: Images of the validation cases that a report looks at, spread evenly; the final figures are
            of all of them.
        patience: Reports without a better score after which to stop; None to take all steps.

    Raises:
        ValueError: A value is out of its range, or a list is empty.
    """

    network: str
    validation_cases: tuple[str, ...]
    crop: int
    batch: int
    steps: int
    learning_rate: float
    freeze_statistics_after: float
    seed: int
    sets: tuple[str, ...] = ()
    pairs: tuple[PairSet, ...] = ()
    case: str = r"(?:.*/)?([^/]+)\d{3}"
    losses: dict[str, float] = field(default_factory=dict)
    free: dict[str, float] = field(default_factory=dict)
    only: str | None = None
    clip_norm: float = 1.0
    precision: str = "float32"
    report_every: int = 100
    validation_images: int = 32
    patience: int | None = None

    def __post_init__(self) -> None:
        fine = {
            "sets or pairs": bool(self.sets) != bool(self.pairs),
            "sets": all(_is_below(pattern) for pattern in self.sets),
            "validation_cases": bool(self.validation_cases),
            "case": _has_group(self.case),
            "losses": _are_amounts(self.losses),
            "free": _are_amounts(self.free) and (bool(self.pairs) or not self.free),
            "crop": self.crop >= 2,
            "batch": self.batch >= 1,
            "steps": self.steps >= 1,
            "learning_rate": isfinite(self.learning_rate) and self.learning_rate > 0,
            "freeze_statistics_after": 0 <= self.freeze_statistics_after <= 1,
            "seed": 0 <= self.seed < 2**32,
            "clip_norm": self.clip_norm > 0,
            "precision": self.precision in PRECISIONS,
            "report_every": self.report_every >= 1,
            "validation_images": self.validation_images >= 1,
            "patience": self.patience is None or self.patience >= 1,
        }
        check_range(fine)


def read_config(path: Path) -> Config:
    """Read a training's YAML file.

    Raises:
        InputError: It cannot be read, or a key is missing, unknown, of another kind than expected or out of range.
    """
    content = content_of(path, "a training's YAML file")
    try:
        return section(Config, _READ, "the training")(content)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"expected other values in {path.name}: {error}", "See medfuse/models/dilran.yaml") from error


def _weights(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise TypeError(f"expected numbers by name, found {kind_of(value)}")
    return {str(name): _float(weight) for name, weight in value.items()}


def _float(value: Any) -> float:
    """A number, also as text, for YAML takes 1e-3 for text; true is none."""
    return number(value) if isinstance(value, bool) else float(value)


def _are_amounts(weights: dict[str, float]) -> bool:
    return all(isfinite(weight) and weight > 0 for weight in weights.values())


def _is_below(pattern: str) -> bool:
    """Whether a pattern stays inside the data folder."""
    parts = Path(pattern).parts
    return bool(parts) and ".." not in parts and not Path(pattern).is_absolute()


def _has_group(expression: str) -> bool:
    try:
        return re.compile(expression).groups >= 1
    except re.error:
        return False


_PAIR: Readers = {
    "structural": text,
    "functional": text,
    "tracer": truth,
    "times": whole,
    "losses": _weights,
    "free": _weights,
}
_READ: Readers = {
    "network": text,
    "sets": items(str),
    "pairs": items(section(PairSet, _PAIR, "a pair")),
    "validation_cases": items(str),
    "case": text,
    "losses": _weights,
    "free": _weights,
    "crop": whole,
    "batch": whole,
    "steps": whole,
    "learning_rate": _float,
    "freeze_statistics_after": _float,
    "seed": whole,
    "only": or_none(text),
    "clip_norm": _float,
    "precision": text,
    "report_every": whole,
    "validation_images": whole,
    "patience": or_none(whole),
}
