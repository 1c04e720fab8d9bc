"""Windows: which values become black and which white."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """Values from `lower` (0) to `upper` (1), linear between, clipped beyond.

    Raises:
        ValueError: `upper` is not above `lower`, or one is not finite.
    """

    lower: float
    upper: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.lower, self.upper]).all() and self.upper > self.lower):
            raise ValueError(f"expected a window whose upper end lies above its lower, got {self.lower}:{self.upper}")

    @classmethod
    def from_level(cls, level: float, width: float) -> Window:
        """A window by its middle and its width, as radiology names them."""
        return cls(level - width / 2, level + width / 2)

    def apply(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Values of any shape as float32 in [0, 1].

        >>> Window(-100, 300).apply(np.array([-500, 0, 300])).tolist()
        [0.0, 0.25, 1.0]
        """
        scaled = np.array(values, dtype=np.float32)
        scaled -= np.float32(self.lower)
        scaled /= np.float32(self.upper - self.lower)
        return np.clip(scaled, 0, 1, out=scaled)

    def __str__(self) -> str:
        return f"{self.lower:.9g}:{self.upper:.9g}"


@dataclass(frozen=True)
class Percentiles:
    """A window that is read off the values of a whole volume: two percentiles in [0, 100].

    Raises:
        ValueError: They are not in order within [0, 100].
    """

    lower: float
    upper: float

    def __post_init__(self) -> None:
        if not 0 <= self.lower < self.upper <= 100:
            raise ValueError(f"expected two rising percentiles within 0-100, got {self.lower}%:{self.upper}%")

    def of(self, values: NDArray[Any]) -> Window:
        """The window for these values. The background, every voxel at the minimum, is left out of the count.

        A constant array gets a window in which it is black.
        """
        values = values.view(np.uint8) if values.dtype == np.bool_ else values
        lowest = values.min()
        found = values[values > lowest]
        if found.size == 0:
            return Window(float(lowest), float(lowest) + max(1.0, abs(float(lowest))))
        highest = float(found.max())
        lower, upper = np.percentile(found, (self.lower, self.upper), overwrite_input=True).tolist()
        if upper <= lower:
            lower, upper = float(lowest), highest
        return Window(lower, upper)


#: Common CT windows in HU.
CT_WINDOWS = {
    "brain": Window.from_level(40, 80),
    "bone": Window.from_level(500, 2000),
    "soft-tissue": Window.from_level(40, 400),
    "lung": Window.from_level(-600, 1500),
}


def parse_window(text: str) -> Window | Percentiles:
    """A window from text: a CT preset's name, `LEVEL,WIDTH`, `LOWER:UPPER`, or `LOWER%:UPPER%`.

    Raises:
        ValueError: The text is none of these.

    >>> parse_window("40,80")
    Window(lower=0.0, upper=80.0)
    >>> parse_window("0:10")
    Window(lower=0.0, upper=10.0)
    >>> parse_window("1%:99.5%")
    Percentiles(lower=1.0, upper=99.5)
    """
    if text in CT_WINDOWS:
        return CT_WINDOWS[text]
    try:
        if "," in text:
            level, width = map(float, text.split(","))
            return Window.from_level(level, width)
        lower, upper = text.split(":")
        if lower.endswith("%") and upper.endswith("%"):
            return Percentiles(float(lower[:-1]), float(upper[:-1]))
        return Window(float(lower), float(upper))
    except ValueError as error:
        raise ValueError(
            f"expected a window as {', '.join(CT_WINDOWS)}, LEVEL,WIDTH, LOWER:UPPER or LOWER%:UPPER%, got {text!r}"
        ) from error
