"""What a training is made of: a YAML file, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

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
        crop: Side of the training crops, pixels.
        batch: Crops per step.
        steps: Optimiser steps.
        learning_rate: Peak of a one-cycle schedule (Adam).
        freeze_statistics_after: Share of the steps after which batch norm keeps its running statistics, as it will
            when the network is used; the rest of the training adapts to them.
        seed: Of initial weights, crops and order.
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


def read_config(path: Path) -> Config:
    """Read a training's YAML file.

    Raises:
        InputError: It cannot be read, or a key is missing, unknown or of another kind than expected.
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
            sets=tuple(str(name) for name in content["sets"]),
            validation_cases=tuple(str(case) for case in content["validation_cases"]),
            losses={str(name): float(weight) for name, weight in content["losses"].items()},
            crop=int(content["crop"]),
            batch=int(content["batch"]),
            steps=int(content["steps"]),
            learning_rate=float(content["learning_rate"]),
            freeze_statistics_after=float(content["freeze_statistics_after"]),
            seed=int(content["seed"]),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"a value in {path.name} is of the wrong kind: {error}") from error
