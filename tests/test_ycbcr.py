"""YCbCr is DICOM's YBR_FULL: checked against Pillow (JPEG's BT.601, full range) and pydicom."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.testing import assert_allclose
from PIL import Image
from pydicom.pixels import convert_color_space

from medfuse.color import rgb_with_luminance, room_for_color, ycbcr_from_rgb

colors = arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(3)))


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    """The corners, edges and a lattice of the cube of colours, as an image."""
    steps = np.array([0, 1, 2, 17, 63, 64, 127, 128, 129, 191, 200, 253, 254, 255], np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(14, 196, 3)


def as_bytes(ycbcr: np.ndarray) -> np.ndarray:
    return ycbcr * 255 + (0, 128, 128)


def test_agrees_with_pillow(rgb: np.ndarray) -> None:
    theirs = np.asarray(Image.fromarray(rgb).convert("YCbCr"), float)
    assert_allclose(as_bytes(ycbcr_from_rgb(rgb)).clip(0, 255), theirs, atol=0.51 + 0.5)  # Pillow cuts off
    assert np.abs(as_bytes(ycbcr_from_rgb(rgb)).clip(0, 255) - theirs).mean() < 0.5


def test_agrees_with_pydicom(rgb: np.ndarray) -> None:
    theirs = convert_color_space(rgb, "RGB", "YBR_FULL").astype(float)
    assert_allclose(as_bytes(ycbcr_from_rgb(rgb)).clip(0, 255), theirs, atol=0.52)


def test_pydicom_takes_it_back(rgb: np.ndarray) -> None:
    stored = np.rint(as_bytes(ycbcr_from_rgb(rgb))).clip(0, 255).astype(np.uint8)
    theirs = convert_color_space(stored, "YBR_FULL", "RGB").astype(int)
    assert np.abs(theirs - rgb).max() <= 2


@given(colors)
def test_ranges(rgb: np.ndarray) -> None:
    ycbcr = ycbcr_from_rgb(rgb)
    assert ycbcr.dtype == np.float32
    assert ycbcr[..., 0].min() >= -1e-6
    assert ycbcr[..., 0].max() <= 1 + 1e-6
    assert np.abs(ycbcr[..., 1:]).max() <= 0.5 + 1e-6


def test_grey_has_no_chroma() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    ycbcr = ycbcr_from_rgb(grey)
    assert_allclose(ycbcr[:, 0], np.arange(256) / 255, atol=1e-6)
    assert_allclose(ycbcr[:, 1:], 0, atol=1e-6)


def test_primaries_by_hand() -> None:
    ycbcr = ycbcr_from_rgb(255 * np.eye(3, dtype=np.uint8))
    assert_allclose(ycbcr[:, 0], (0.299, 0.587, 0.114), atol=1e-6)
    assert_allclose(ycbcr[0, 2], 0.5, atol=1e-6)  # red: Cr at its end
    assert_allclose(ycbcr[2, 1], 0.5, atol=1e-6)  # blue: Cb at its end


@given(colors, st.floats(0, 1, width=32))
def test_luminance_and_chroma_need_not_be_joined(rgb: np.ndarray, luminance: float) -> None:
    ycbcr = ycbcr_from_rgb(rgb)
    np.testing.assert_array_equal(rgb_with_luminance(ycbcr[..., 0], ycbcr[..., 1:]), rgb)
    ycbcr[..., 0] = luminance
    before = ycbcr.copy()
    result = rgb_with_luminance(ycbcr[..., 0], ycbcr[..., 1:])
    np.testing.assert_array_equal(ycbcr, before)
    exact = 255 * (ycbcr.astype(np.float64) @ np.linalg.inv(as_matrix()).T)
    fits = ((exact >= 0) & (exact <= 255)).all(axis=-1)
    assert_allclose(result[fits], exact[fits], atol=0.5 + 1e-3)
    found = ycbcr_from_rgb(result)
    assert_allclose(found[..., 0], luminance, atol=0.51 / 255)
    strength, wanted = (np.hypot(one[..., 1], one[..., 2]) for one in (found, ycbcr))
    assert (strength <= wanted + 1 / 255).all()  # never more colour
    turned = found[..., 1] * ycbcr[..., 2] - found[..., 2] * ycbcr[..., 1]
    assert_allclose(turned, 0, atol=wanted.max() / 255 + 1e-6)  # the same direction, but for rounding


def test_a_colour_that_does_not_fit_is_no_paler_than_need_be() -> None:
    ycbcr = ycbcr_from_rgb(np.array([[200, 40, 40], [20, 60, 220]], np.uint8))
    result = rgb_with_luminance(np.full(2, 0.8, np.float32), ycbcr[:, 1:])
    assert result.max(axis=-1).tolist() == [255, 255]


@given(colors, st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_room_is_made_for_a_share_of_a_colour_and_no_more(rgb: np.ndarray, luminance: float, share: float) -> None:
    ycbcr = ycbcr_from_rgb(rgb)
    wanted = np.full(rgb.shape[:-1], luminance, np.float32)
    room = room_for_color(wanted, ycbcr[..., 1:], share)
    assert (room <= wanted).all()
    assert (room >= np.minimum(wanted, ycbcr[..., 0] - 1e-6)).all()  # never darker than the colour's own image
    before, after = (
        (one[..., None] + share * ((ycbcr * (0, 1, 1)) @ np.linalg.inv(as_matrix()).T)).max(-1)
        for one in (wanted, room)
    )
    assert (after <= 1 + 1e-6).all()  # so much of the colour fits, as far as that is for R, G and B to be at most 1
    assert_allclose(room[before <= 1], luminance, atol=1e-6)
    assert_allclose(after[before > 1], 1, atol=1e-6)


def as_matrix() -> np.ndarray:
    """ITU-R BT.601, section 2.5: Y of R, G and B, and the colour differences, each over its range."""
    luminance = np.array([0.299, 0.587, 0.114])
    blue, red = np.eye(3)[2], np.eye(3)[0]
    return np.stack([luminance, (blue - luminance) / 1.772, (red - luminance) / 1.402])
