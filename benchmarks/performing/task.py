"""What is measured: one task makes one row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Task:
    """One measurement; the fields that mean nothing to it keep their defaults.

    Args:
        what: A key of `performing.measuring.MEASURES`.
        method: Of `performing.forms`; of ceilings the name of the operation.
        shape: Rows and columns as "256x256", slices before them where it is a volume; of ceilings the largest side.
        pictures: Of `performing.pictures.picture_names`.
        threads: Of the CPU, and as many cores.
        device: As `medfuse.fusion.Engine` takes it.
        precision: Of `performing.forms.PRECISIONS`.
        batch: Slices at a time; 0 leaves it to the engine.
        count: Slices a call.
        index: Number of the run, and of its pictures.
    """

    what: str
    method: str = ""
    shape: str = ""
    pictures: str = ""
    threads: int = 1
    device: str = "cpu"
    precision: str = "float32"
    batch: int = 0
    count: int = 1
    index: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape in numbers."""
        return tuple(int(size) for size in self.shape.split("x"))


def tasks_of(what: str, **values: Sequence[Any]) -> Iterable[Task]:
    """Every combination of values; the last one named changes fastest, so that it is measured in turns."""
    for chosen in product(*values.values()):
        yield Task(what, **dict(zip(values, chosen, strict=True)))
