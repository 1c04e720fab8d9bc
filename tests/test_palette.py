"""Palettes: DICOM's own tables, read off PS3.6 Annex B, and how values are looked up in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydicom import dcmread
from pydicom.data import get_palette_files
from pydicom.uid import UID

from medfuse.color import PALETTES, apply_palette, ycbcr_from_rgb, ycbcr_of_palette
from medfuse.color.palette import table_of

WELL_KNOWN = [name for name, uid in PALETTES.items() if uid]


def test_uids_name_the_palettes() -> None:
    names = {name: UID(PALETTES[name]).name for name in WELL_KNOWN}
    assert names == {
        "HOT_IRON": "Hot Iron Color Palette SOP Instance",
        "PET": "PET Color Palette SOP Instance",
        "HOT_METAL_BLUE": "Hot Metal Blue Color Palette SOP Instance",
        "PET_20_STEP": "PET 20 Step Color Palette SOP Instance",
    }


@pytest.mark.parametrize("name", PALETTES)
def test_tables_run_from_black_to_white(name: str) -> None:
    table = table_of(name)
    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    assert table[0].tolist() == [0, 0, 0]
    assert table[-1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_tables_are_those_that_pydicom_keeps_under_that_uid(name: str) -> None:
    kept = [dcmread(path, force=True) for path in get_palette_files("*.dcm")]
    (palette,) = [dataset for dataset in kept if dataset.SOPInstanceUID == PALETTES[name]]
    for channel, color in enumerate(("Red", "Green", "Blue")):
        entries = palette[f"{color}PaletteColorLookupTableData"].value
        assert table_of(name)[:, channel].tobytes() == entries


def test_hot_iron_is_the_table_of_the_standard() -> None:
    entry = np.arange(255)  # PS3.6 table B.1.1-1; the last entry is white
    expected = np.stack([2 * entry, 2 * (entry - 128), 4 * (entry - 191)], axis=1).clip(0, 255)
    np.testing.assert_array_equal(table_of("HOT_IRON")[:255], expected)


def test_pet_20_step_has_twenty_colours() -> None:
    assert len(np.unique(table_of("PET_20_STEP"), axis=0)) == 20


def test_hot_iron_grows_brighter_throughout() -> None:
    luminance = table_of("HOT_IRON") @ (0.299, 0.587, 0.114)
    assert (np.diff(luminance) > 0).all()


def test_grey_is_grey() -> None:
    assert apply_palette(np.array([0, 0.2, 1]), "GREY").tolist() == [[0] * 3, [51] * 3, [255] * 3]


def test_values_beyond_the_ends_take_the_ends() -> None:
    assert apply_palette(np.array([-5, 0, 1, 7.0]), "HOT_IRON").tolist() == [[0] * 3, [0] * 3, [255] * 3, [255] * 3]


@given(
    arrays.arrays(np.float32, arrays.array_shapes(max_dims=4), elements=st.floats(0, 1, width=32)),
    st.sampled_from(list(PALETTES)),
)
def test_each_value_gets_the_nearest_entry(values: np.ndarray, name: str) -> None:
    colors = apply_palette(values, name)
    assert colors.shape == (*values.shape, 3)
    assert colors.dtype == np.uint8
    for value, color in zip(values.ravel(), colors.reshape(-1, 3), strict=True):
        near = [n for n in range(256) if abs(value * 255 - n) <= 0.5 + 1e-4]
        assert any((color == table_of(name)[n]).all() for n in near)


@pytest.mark.parametrize("name", PALETTES)
def test_ycbcr_by_a_table_is_that_of_the_colours(name: str) -> None:
    values = np.linspace(-0.1, 1.1, 5000, dtype=np.float32).reshape(50, 100)
    found = ycbcr_of_palette(values, name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, ycbcr_from_rgb(apply_palette(values, name)), rtol=0, atol=1e-6)


def test_a_table_cannot_be_changed() -> None:
    for name in PALETTES:
        with pytest.raises(ValueError, match="read-only"):
            table_of(name)[0] = 1


def test_refuses_a_name() -> None:
    with pytest.raises(ValueError, match=r"a palette of HOT_IRON, PET, .*got 'JET'"):
        apply_palette(np.zeros(3), "JET")
