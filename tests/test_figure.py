"""Figures: each picture in its place, in the proportions of the patient."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medfuse.color import Window, apply_palette
from medfuse.fusion import Display
from medfuse.grid import Grid
from medfuse.report.figure import GAP, TITLE, figure
from medfuse.volume import Modality, Unit, Volume

GREY = Display(Window(0, 1), None)
AXIAL = np.eye(3)[:, ::-1]


def volume(array: np.ndarray, spacing_mm: tuple[float, float, float] = (3, 1, 1)) -> Volume:
    grid = Grid.from_axes(array.shape[:3], (0, 0, 0), spacing_mm, AXIAL)
    return Volume(array, grid, Modality.MR, Unit.RGB if array.ndim == 4 else Unit.ARBITRARY)


def flat(*levels: float) -> Volume:
    """Slices of one value each, 10 rows by 20 columns."""
    return volume(np.ones((1, 10, 20)) * np.reshape(levels, (-1, 1, 1)))


def picture(image: Image.Image, across: int, down: int, width: int, height: int) -> np.ndarray:
    left, top = across * (width + GAP), TITLE + down * (height + GAP)
    return np.asarray(image)[top : top + height, left : left + width]


def test_a_column_a_volume_and_a_row_a_slice() -> None:
    columns = {"first": (flat(0.2, 0.4, 0.6), GREY), "second": (flat(0.8, 1, 0), GREY)}
    image = figure(columns, [2, 0], height=30)
    assert image.mode == "RGB"
    assert image.size == (2 * 60 + GAP, TITLE + 2 * 30 + GAP)
    for across, levels in enumerate([(153, 51), (0, 204)]):
        for down, level in enumerate(levels):
            assert (picture(image, across, down, 60, 30) == level).all()
    between = np.asarray(image)[TITLE:, 60 : 60 + GAP]
    assert not between.any()


def test_titles_are_written_above() -> None:
    image = np.asarray(figure({"MR": (flat(0), GREY), "": (flat(0), GREY)}, [0], height=40))
    assert image[:TITLE, :80].max() > 128
    assert not image[:TITLE, 80:].any()


@pytest.mark.parametrize(("spacing", "width"), [((3, 1, 1), 80), ((3, 2, 1), 40), ((3, 1, 2), 160), ((1, 500, 0.5), 1)])
def test_proportions_are_those_of_the_patient(spacing: tuple[float, float, float], width: int) -> None:
    image = figure({"": (volume(np.zeros((1, 10, 20)), spacing), GREY)}, [0], height=40)
    assert image.size == (width, TITLE + 40)


def test_rows_and_columns_keep_their_sides() -> None:
    array = np.zeros((1, 10, 20))
    array[0, :3, 15:] = 1  # above on the right
    shown = picture(figure({"": (volume(array), GREY)}, [0], height=50), 0, 0, 100, 50)
    assert shown[5, 90].tolist() == [255] * 3
    assert not shown[45, 90].any()
    assert not shown[5, 10].any()


def test_uptake_is_coloured_by_the_palette_within_the_window() -> None:
    image = figure({"": (flat(5.0), Display(Window(0, 10), "HOT_IRON"))}, [0], height=30)
    expected = apply_palette(np.float32(0.5), "HOT_IRON")
    assert (picture(image, 0, 0, 60, 30) == expected).all()


def test_colour_is_shown_as_it_is() -> None:
    array = np.full((1, 10, 20, 3), (10, 200, 90), np.uint8)
    image = figure({"": (volume(array), Display(None, None))}, [0], height=30)
    assert (picture(image, 0, 0, 60, 30) == (10, 200, 90)).all()
