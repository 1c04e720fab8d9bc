"""Windows: what becomes black and white, and how a window is written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pydicom import Dataset
from pydicom.pixels import apply_voi_lut

from medfuse.color import CT_WINDOWS, Percentiles, Window, parse_window

levels = st.floats(-2000, 2000).map(lambda value: round(value, 3))
widths = st.floats(0.5, 4000).map(lambda value: round(value, 3))


def test_ends_and_middle() -> None:
    shown = Window(-100, 300).apply(np.array([-500, -100, 0, 100, 300, 301], np.int16))
    assert shown.dtype == np.float32
    assert shown.tolist() == [0, 0, 0.25, 0.5, 1, 1]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int32", "float16", "float64"])
def test_any_dtype_and_shape(dtype: str) -> None:
    values = np.array([[[0, 1], [1, 0]]], dtype)
    assert Window(-1, 3).apply(values).tolist() == [[[0.25, 0.5], [0.5, 0.25]]]


@given(levels, widths, st.lists(st.integers(-3000, 3000), min_size=1))
def test_is_dicoms_linear_exact_function(level: float, width: float, values: list[int]) -> None:
    header = Dataset()
    header.WindowCenter, header.WindowWidth, header.VOILUTFunction = f"{level:.3f}", f"{width:.3f}", "LINEAR_EXACT"
    header.PhotometricInterpretation, header.PixelRepresentation, header.BitsStored = "MONOCHROME2", 1, 16
    array = np.array(values, np.int16)
    theirs = apply_voi_lut(array, header)  # onto the range of the stored bits
    low, high = -(2**15), 2**15 - 1
    assert_allclose(Window.from_level(level, width).apply(array), (theirs - low) / (high - low), atol=2e-3)


@given(levels, widths, st.lists(st.floats(-5000, 5000), min_size=2))
def test_stays_in_order_within_0_and_1(lower: float, width: float, values: list[float]) -> None:
    shown = Window(lower, lower + width).apply(np.sort(values))
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert (np.diff(shown) >= 0).all()


@given(levels, widths)
def test_text_leads_back_to_the_window(lower: float, width: float) -> None:
    window = Window(lower, lower + width)
    again = parse_window(str(window))
    assert isinstance(again, Window)
    assert_allclose((again.lower, again.upper), (window.lower, window.upper), rtol=1e-5)


def test_presets_are_as_radiology_names_them() -> None:
    assert parse_window("brain") == Window(0, 80)
    assert parse_window("bone") == Window(-500, 1500)
    assert parse_window("soft-tissue") == Window(-160, 240)
    assert parse_window("lung") == Window(-1350, 150)
    assert len(CT_WINDOWS) == 4


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("40,400", Window(-160, 240)),
        ("-600,1500", Window(-1350, 150)),
        ("0:10", Window(0, 10)),
        ("-1e2:2.5", Window(-100, 2.5)),
        ("0.5%:99.5%", Percentiles(0.5, 99.5)),
    ],
)
def test_text(text: str, window: Window | Percentiles) -> None:
    assert parse_window(text) == window


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Brain",
        "10",
        "10:0",
        "5:5",
        "40,0",
        "40,-80",
        "1,2,3",
        "1:2:3",
        "a:b",
        "nan:1",
        "0:inf",
        "1%:5",
        "9%:1%",
        "0%:101%",
    ],
)
def test_refuses_text(text: str) -> None:
    with pytest.raises(ValueError, match="expected a window as brain, bone"):
        parse_window(text)


@pytest.mark.parametrize("ends", [(1, 1), (2, 1), (np.nan, 1), (0, np.inf)])
def test_refuses_ends(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="upper end lies above its lower"):
        Window(*ends)


@pytest.mark.parametrize("ends", [(-1, 50), (50, 50), (60, 50), (0, 100.5), (np.nan, 50)])
def test_refuses_percentiles(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="rising percentiles within 0-100"):
        Percentiles(*ends)


def test_percentiles_leave_the_background_out() -> None:
    tissue = np.random.default_rng(0).normal(500, 50, 4000).astype(np.float32)
    alone = Percentiles(1, 99).of(tissue)
    padded = Percentiles(1, 99).of(np.concatenate([np.zeros(50_000, np.float32), tissue]))
    assert_allclose((padded.lower, padded.upper), np.percentile(tissue, (1, 99)), rtol=1e-5)
    assert_allclose((padded.lower, padded.upper), (alone.lower, alone.upper), rtol=1e-2)


@pytest.mark.parametrize("value", [0, -1000, 5e20, -5e20])
def test_a_constant_is_black(value: float) -> None:
    array = np.full((2, 3, 4), value)
    assert not Percentiles(0.5, 99.5).of(array).apply(array).any()


def test_two_values_are_black_and_white() -> None:
    array = np.array([7, 7, 7, 9, 9], np.int16)
    assert Percentiles(0.5, 99.5).of(array).apply(array).tolist() == [0, 0, 0, 1, 1]
    mask = np.array([False, True, True])
    assert Percentiles(0.5, 99.5).of(mask).apply(mask).tolist() == [0, 1, 1]
