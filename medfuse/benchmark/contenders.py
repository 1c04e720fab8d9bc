"""Who is in the table: the methods that were asked for, and the controls that every method must beat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfuse.fusion import READY, Engine
from medfuse.volume import Modality

Planes = NDArray[np.float32]
#: (structural, functional) to fused, each (N, H, W) float32 in [0, 1].
Fuse = Callable[[Planes, Planes], Planes]

#: Controls that are no method. Measures that take the mean of two sources are blind to copies, and nearly to blends.
_SIMPLE: dict[str, Fuse] = {
    "copy structural": lambda structural, _functional: structural,
    "copy functional": lambda _structural, functional: functional,
    "blend 0.84 structural": lambda structural, functional: (
        np.float32(0.84) * structural + np.float32(0.16) * functional
    ),
    "blend 0.84 functional": lambda structural, functional: (
        np.float32(0.16) * structural + np.float32(0.84) * functional
    ),
}
#: What stands at the end of every table.
CONTROLS = (*_SIMPLE, "average", "maximum")


@dataclass(frozen=True)
class Contender:
    """One column of the table.

    Args:
        name: As the table prints it.
        fuse: What it does.
        is_asked: Whether it was asked for, and its results are to be saved.
    """

    name: str
    fuse: Fuse
    is_asked: bool

    @property
    def is_control(self) -> bool:
        """Whether it stands in every table."""
        return self.name in CONTROLS

    @property
    def folder(self) -> str:
        """The name of the folder that its results are saved to."""
        return "".join("-" if sign in ' :@"*<>?\\/|' else sign for sign in self.name)


def to_contenders(methods: str, device: str, modality: Modality) -> list[Contender]:
    """The methods of a comma-separated list in its order, then all controls that are not in it.

    Args:
        methods: Words of the form `NAME`, `NAME:STRATEGY`, `NAME@WEIGHTS` or `NAME:STRATEGY@WEIGHTS`, WEIGHTS being a
            safetensors file, of whose name the table shows the stem; "all" stands for every method that needs no
            weights of the user.
        device: As for `Engine`.
        modality: Of the functional planes, as for `Engine.fuse_planes`.

    Raises:
        ValueError: A method, strategy or the device is unknown, or two words have one name.
        WeightsError: Weights cannot be used.
    """
    words = [name for name in READY if name not in CONTROLS] if methods == "all" else methods.split(",")
    asked = [_to_contender(word.strip(), device, modality) for word in words]
    names = [contender.name for contender in asked]
    if twice := sorted({contender.name for contender in asked if names.count(contender.name) > 1}):
        raise ValueError(f"expected every method once, got {', '.join(twice)} again")
    rest = [name for name in CONTROLS if name not in names]
    rules = {name: _SIMPLE[name] if name in _SIMPLE else Engine(name, device=device).fuse_planes for name in rest}
    return asked + [Contender(name, rule, is_asked=False) for name, rule in rules.items()]


def weights_of(methods: str) -> list[Path]:
    """The files of weights that a list of methods names."""
    return [Path(word.partition("@")[2].strip()) for word in methods.split(",") if "@" in word]


def _to_contender(word: str, device: str, modality: Modality) -> Contender:
    described, _, weights = word.partition("@")
    method, _, strategy = described.partition(":")
    engine = Engine(method, strategy or None, device, Path(weights) if weights else None)
    name = f"{described}@{Path(weights).stem}" if weights else described
    return Contender(name, partial(engine.fuse_planes, modality=modality), is_asked=True)
