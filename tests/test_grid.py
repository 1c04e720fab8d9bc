"""Where voxels lie: index ↔ LPS, checked against SimpleITK and by properties that must hold for any grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medfuse.errors import GeometryError
from medfuse.grid import Grid

AXIAL = np.eye(3)[:, ::-1]

numbers = st.floats(-300, 300)
sizes = st.tuples(*[st.integers(1, 40)] * 3)
spacings = st.tuples(*[st.floats(0.2, 9)] * 3)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any grid: lopsided, turned, right- or left-handed."""
    turn = Rotation.from_euler("zyx", draw(st.tuples(*[st.floats(-180, 180)] * 3)), degrees=True).as_matrix()
    turn = turn * draw(st.sampled_from([1, -1]))
    return Grid.from_axes(draw(sizes), draw(st.tuples(numbers, numbers, numbers)), draw(spacings), turn)


def as_image(grid: Grid) -> sitk.Image:
    image = sitk.Image(*grid.shape[::-1], sitk.sitkUInt8)
    image.SetOrigin(grid.origin_mm.tolist())
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetDirection(grid.direction[:, ::-1].ravel().tolist())
    return image


@given(grids(), st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=5))
def test_index_of_undoes_points_mm(grid: Grid, index: list[tuple[float, float, float]]) -> None:
    np.testing.assert_allclose(grid.index_of(grid.points_mm(index)), index, atol=1e-8)


@given(grids())
def test_points_are_where_simpleitk_puts_them(grid: Grid) -> None:
    image = as_image(grid)
    for corner, index in zip(grid.corners_mm, itertools.product(*[(0, n - 1) for n in grid.shape]), strict=True):
        np.testing.assert_allclose(corner, image.TransformIndexToPhysicalPoint(index[::-1]), atol=1e-7)
    np.testing.assert_allclose(
        grid.center_mm,
        image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in grid.shape[::-1]]),
        atol=1e-7,
    )


@given(grids())
def test_axes_come_back(grid: Grid) -> None:
    again = Grid.from_axes(grid.shape, grid.origin_mm, grid.spacing_mm, grid.direction)
    np.testing.assert_allclose(again.lps_from_index, grid.lps_from_index, atol=1e-12)
    np.testing.assert_allclose(grid.direction.T @ grid.direction, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(grid.index_from_lps @ grid.lps_from_index, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(grid.extent_mm, np.multiply(grid.shape, grid.spacing_mm))


@given(grids(), spacings)
def test_with_spacing_covers_the_same_block(grid: Grid, spacing_mm: tuple[float, float, float]) -> None:
    other = grid.with_spacing(spacing_mm)
    np.testing.assert_allclose(other.spacing_mm, spacing_mm)
    np.testing.assert_allclose(other.direction, grid.direction, atol=1e-9)
    faces = [(-0.5, n - 0.5) for n in grid.shape]
    inside = other.index_of(grid.points_mm(list(itertools.product(*faces))))
    np.testing.assert_allclose(inside.min(axis=0), (-0.5, -0.5, -0.5), atol=1e-6)  # the first face stays
    reach = inside.max(axis=0) + 0.5
    assert (reach <= np.array(other.shape) + 1e-5).all()  # nothing is cut off
    assert (reach > np.array(other.shape) - 1 - 1e-5).all()  # and less than a voxel is added
    assert other.frame_of_reference == grid.frame_of_reference


@given(grids())
def test_with_its_own_spacing_a_grid_stays(grid: Grid) -> None:
    assert grid.with_spacing(grid.spacing_mm).matches(grid, 1e-6)


@given(grids(), st.integers(0, 2), st.floats(0.01, 5))
def test_matches_sees_a_shift(grid: Grid, axis: int, shift_mm: float) -> None:
    origin = grid.origin_mm + shift_mm * grid.direction[:, axis]
    moved = Grid.from_axes(grid.shape, origin, grid.spacing_mm, grid.direction, "1.2.3")
    assert grid.matches(grid)
    assert not grid.matches(moved)
    assert not moved.matches(grid)
    assert grid.matches(moved, shift_mm * 1.001)


def test_matches_looks_at_the_far_corner_and_at_the_shape(oblique_grid: Grid) -> None:
    spacing = np.array(oblique_grid.spacing_mm) * (1, 1, 1.0005)  # 5 µm at the last of 9 columns
    stretched = Grid.from_axes(oblique_grid.shape, oblique_grid.origin_mm, spacing, oblique_grid.direction)
    assert not oblique_grid.matches(stretched)
    assert oblique_grid.matches(stretched, 0.006)
    longer = Grid((6, 7, 9), oblique_grid.lps_from_index)
    assert not oblique_grid.matches(longer, 1e9)


def test_an_axial_stack_by_hand() -> None:
    grid = Grid.from_axes((2, 3, 4), (10, 20, 30), (5, 2, 1), AXIAL)
    assert grid.points_mm([(1, 2, 3)]).tolist() == [[13, 24, 35]]
    assert grid.spacing_mm == (5, 2, 1)
    assert grid.extent_mm == (10, 6, 4)
    assert grid.center_mm.tolist() == [11.5, 22, 32.5]


def test_one_number_is_cubic() -> None:
    grid = Grid.from_axes((2, 3, 4), (10, 20, 30), (5, 2, 1), AXIAL, "1.2.3").with_spacing(2)
    assert grid.shape == (5, 3, 2)
    assert grid.spacing_mm == (2, 2, 2)
    assert grid.origin_mm.tolist() == [10.5, 20, 28.5]
    assert grid.frame_of_reference == "1.2.3"


def test_is_read_only(oblique_grid: Grid) -> None:
    with pytest.raises(ValueError, match="read-only"):
        oblique_grid.lps_from_index[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        oblique_grid.origin_mm[0] = 1


def test_does_not_follow_the_array_it_was_made_of() -> None:
    matrix = np.eye(4)
    grid = Grid((1, 1, 1), matrix)
    matrix[0, 3] = 5
    assert grid.origin_mm.tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(1, 2), (0, 2, 3), (1, 2, 3, 4), (-1, 2, 3)])
def test_refuses_a_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"three positive numbers \(K, J, I\)"):
        Grid(shape, np.eye(4))


@pytest.mark.parametrize("matrix", [np.eye(3), np.eye(4)[:, ::-1], np.ones((4, 4)), np.eye(5)])
def test_refuses_a_matrix_of_the_wrong_form(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(4, 4\) matrix with last row"):
        Grid((1, 1, 1), matrix)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_refuses_an_axis_without_length(value: float) -> None:
    matrix = np.diag([1, value, 1, 1.0])
    with pytest.raises(GeometryError, match="finite, positive length"):
        Grid((1, 1, 1), matrix)


def test_refuses_a_position_that_is_not_finite() -> None:
    matrix = np.eye(4)
    matrix[0, 3] = np.nan
    with pytest.raises(GeometryError, match="finite"):
        Grid((1, 1, 1), matrix)


def test_refuses_sheared_axes_and_says_by_how_much() -> None:
    matrix = np.eye(4)
    matrix[:3, 0] = (np.cos(np.radians(18.5)), np.sin(np.radians(18.5)), 0)
    with pytest.raises(GeometryError, match=r"18\.50° off"):
        Grid((1, 1, 1), matrix)
    matrix[:3, 0] = (1, 5e-4, 0)  # rounding of a header is no shear
    assert Grid((1, 1, 1), matrix).shape == (1, 1, 1)


def test_refuses_axes_that_coincide() -> None:
    matrix = np.eye(4)
    matrix[:3, 0] = matrix[:3, 1]
    with pytest.raises(GeometryError, match="right angles"):
        Grid((1, 1, 1), matrix)


@pytest.mark.parametrize("spacing", [0, -1, np.nan, np.inf, (1, 1, 0)])
def test_refuses_a_spacing(oblique_grid: Grid, spacing: float) -> None:
    with pytest.raises(ValueError, match="positive spacing in mm"):
        oblique_grid.with_spacing(spacing)
