"""What float32 holds, and what it would change."""

from __future__ import annotations

import numpy as np
import pytest

from medfuse.errors import OutputError, UnsupportedImage
from medfuse.io.samples import from_stored, to_float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64, bool])
def test_what_float32_holds_is_kept(dtype: type) -> None:
    array = np.array([[0, 1], [100, 127]]).astype(dtype)
    stored = to_float32(array)
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, array)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_whole_numbers(sign: int) -> None:
    edge = np.array([0, sign * 2**24])
    np.testing.assert_array_equal(to_float32(edge).astype(np.int64), edge)
    with pytest.raises(OutputError, match=r"at most 16777216, which float32 holds, found 16777217"):
        to_float32(edge + sign)
    assert int(np.float32(2**24 + 1)) == 2**24  # what would have been written
    np.testing.assert_array_equal(from_stored(edge, "x.nii"), edge)
    with pytest.raises(UnsupportedImage, match=r"at most 16777216, found 16777217 in x\.nii"):
        from_stored(edge + sign, "x.nii")


def test_the_most_negative_number_is_not_mistaken() -> None:
    with pytest.raises(OutputError, match=r"found 9\.22337204e\+18"):
        to_float32(np.array([np.iinfo(np.int64).min, 0]))


def test_what_would_become_infinite_is_refused() -> None:
    with pytest.raises(OutputError, match=r"which float32 holds, found 1e\+39"):
        to_float32(np.array([1e39, 0]))
