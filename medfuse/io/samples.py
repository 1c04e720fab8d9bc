"""The numbers that a volume and a written file hold: float32, wherever it can hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import OutputError, UnsupportedImage

#: float32 holds every whole number up to here (24 bits of significand, IEEE 754), and skips some beyond.
LARGEST_WHOLE = 2**24


def to_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """The array as float32.

    Args:
        array: Real numbers of any type and shape. Fractions are rounded to float32.

    Raises:
        OutputError: A whole number would change, or a number is too large for float32.

    >>> to_float32(np.array([1, 2**24]))
    array([1.0000000e+00, 1.6777216e+07], dtype=float32)
    """
    largest = largest_magnitude(array)
    limit = LARGEST_WHOLE if array.dtype.kind in "iu" else float(np.finfo(np.float32).max)
    if largest > limit:
        raise OutputError(
            f"expected numbers of at most {limit:.9g}, which float32 holds, found {largest:.9g}",
            "Scale the values before writing, for example to another unit",
        )
    return array.astype(np.float32, copy=False)


def largest_magnitude(array: NDArray[Any]) -> float:
    """The largest magnitude among real numbers; NaN where one is NaN, 0 where there are none."""
    return max(abs(float(array.min())), abs(float(array.max()))) if array.size else 0.0


def replace_nan(array: NDArray[Any], value: float | None) -> dict[str, float]:
    """Put a value in place of NaN and infinity, in the array itself; None leaves them, for the volume to refuse.

    Returns:
        What the history is to say of it: nothing where no value was given.
    """
    if value is None:
        return {}
    array[~np.isfinite(array)] = value
    return {"fill_nan": value}


def from_stored(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    """The numbers of a file as contiguous float32; what overflows becomes infinite, for the volume to refuse.

    Args:
        array: Real numbers of any type and shape.
        name: The file's name, for the message.

    Raises:
        UnsupportedImage: A whole number would change.
    """
    if array.dtype.kind in "iu" and (largest := max(abs(int(array.min())), abs(int(array.max())))) > LARGEST_WHOLE:
        raise UnsupportedImage(
            f"expected whole numbers of at most {LARGEST_WHOLE}, found {largest} in {name}",
            "Scale them, or renumber labels; values beyond would not be kept as they are",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(array, dtype=np.float32, order="C")
