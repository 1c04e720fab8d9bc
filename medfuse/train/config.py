"""What a training is made of: a YAML file, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from medfuse.errors import InputError


@dataclass(frozen=True)
class Config:
    """One training, whole; the YAML file has these keys.

    Args:
        network: Name of the network.
        sets: Folders of images below the data folder; each image is reconstructed from itself.
        validation_cases: Cases kept out of training in every set. An image's case is its file name without the last
            three digits, as the Whole Brain Atlas pairs are named.
        losses: Weight of each loss: "l2", "gradient".
        crop: Side of the training crops, pixels, at least 2.
        batch: Crops per step.
        steps: Optimiser steps.
        learning_rate: Peak of a one-cycle schedule (Adam).
        freeze_statistics_after: Share of the steps after which batch norm keeps its running statistics, as it will
            when the network is used; the rest of the training adapts to them.
        seed: Of initial weights, crops and order.

    Raises:
        ValueError: A number is out of its range, or a list is empty.
    """

    network: str
    sets: tuple[str, ...]
    validation_cases: tuple[str, ...]
    losses: dict[str, float]
    crop: int
    batch: int
    steps: int
    learning_rate: float
    freeze_statistics_after: float
    seed: int

    def __post_init__(self) -> None:
        fine = {
            "sets": bool(self.sets),
            "validation_cases": bool(self.validation_cases),
            "losses": bool(self.losses) and all(isfinite(weight) for weight in self.losses.values()),
            "crop": self.crop >= 2,
            "batch": self.batch >= 1,
            "steps": self.steps >= 1,
            "learning_rate": isfinite(self.learning_rate) and self.learning_rate > 0,
            "freeze_statistics_after": 0 <= self.freeze_statistics_after <= 1,
            "seed": self.seed >= 0,
        }
        wrong = [name for name, within in fine.items() if not within]
        if wrong:
            raise ValueError(f"out of range: {', '.join(wrong)}")


def read_config(path: Path) -> Config:
    """Read a training's YAML file.

    Raises:
        InputError: It cannot be read, or a key is missing, unknown, of another kind than expected or out of range.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"expected a training's YAML file, cannot read {path.name}") from error
    known = {field.name for field in fields(Config)}
    found = set(content) if isinstance(content, dict) else set()
    if found != known:
        raise InputError(
            f"expected the keys {', '.join(sorted(known))} in {path.name}, found "
            f"{', '.join(sorted(str(key) for key in found)) or 'none'}"
        )
    try:
        return Config(
            network=str(content["network"]),
            sets=_texts(content["sets"]),
            validation_cases=_texts(content["validation_cases"]),
            losses={str(name): float(weight) for name, weight in content["losses"].items()},
            crop=_whole(content["crop"]),
            batch=_whole(content["batch"]),
            steps=_whole(content["steps"]),
            learning_rate=float(content["learning_rate"]),
            freeze_statistics_after=float(content["freeze_statistics_after"]),
            seed=_whole(content["seed"]),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"expected other values in {path.name}: {error}", "See medfuse/models/dilran.yaml") from error


def _texts(value: Any) -> tuple[str, ...]:
    """The items of a list as text; a lone text is refused, since its letters are not what was meant."""
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {value!r}")
    return tuple(str(item) for item in value)


def _whole(value: Any) -> int:
    """A whole number as it is; 2.5, "2" and true are refused rather than rounded or read as something else."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, found {value!r}")
    return value
