"""Which stacks of images are one volume, and where it lies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from headers import ORIENTATIONS, planes
from hypothesis import given, settings
from hypothesis import strategies as st

from medfuse.errors import MedfuseError, MissingAttribute, SeriesError, UnsupportedImage
from medfuse.io.dicom_stack import stack


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_grid_is_exact_in_every_order(name: str) -> None:
    orientation = np.array(ORIENTATIONS[name], float)
    row, column = orientation[:3] / np.linalg.norm(orientation[:3]), orientation[3:] / np.linalg.norm(orientation[3:])
    normal = np.cross(row, column)
    positions = [tuple((10, -20, 30) + 3.5 * n * normal) for n in range(4)]
    for order in itertools.permutations(positions):
        found = stack(planes(list(order), ImageOrientationPatient=list(orientation)))
        ordered, grid = found.planes, found.grid
        assert grid.shape == (4, 7, 9)
        assert grid.frame_of_reference == "1.2.3"
        np.testing.assert_allclose([p.position_mm for p in ordered], positions, atol=1e-9)
        np.testing.assert_allclose(grid.lps_from_index[:3, 0], 3.5 * normal, atol=1e-9)
        np.testing.assert_allclose(
            grid.lps_from_index[:3, 1], 1.5 * column, atol=1e-9
        )  # the next row lies down a column
        np.testing.assert_allclose(grid.lps_from_index[:3, 2], 1.25 * row, atol=1e-9)
        np.testing.assert_allclose(grid.origin_mm, (10, -20, 30))


def test_slice_thickness_and_spacing_between_slices_play_no_part() -> None:
    grid = stack(planes([(0, 0, 0), (0, 0, 3), (0, 0, 6)], SliceThickness=5, SpacingBetweenSlices=-1)).grid
    assert grid.spacing_mm == (3, 1.5, 1.25)


def test_positions_rounded_to_a_hundredth_are_regular() -> None:
    positions = [(0.0, 0.0, round(n * 0.625, 2)) for n in range(40)]
    grid = stack(planes(positions)).grid
    assert grid.spacing_mm[0] == pytest.approx(positions[-1][2] / 39)


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ([0, 3, 6, 12, 15], r"3\.00 mm \(×3\), 6\.00 mm \(×1\)"),
        ([0, 4.22, 5.36, 12.74], r"4\.22 mm .*1\.14 mm .*7\.38 mm"),
        ([*np.arange(50) * 3.0, *(150 + np.arange(50) * 3.03)], "from its place"),  # each gap well, the sum not
        ([0, 3, 3, 6], "4 images at 3 positions"),
        ([0, 0, 3, 3, 6, 6], "6 images at 3 positions"),
        ([2, 2], "2 images at 1 position "),
    ],
)
def test_uneven_or_repeated_positions_are_refused(heights: list[float], message: str) -> None:
    with pytest.raises(SeriesError, match=message):
        stack(planes([(0, 0, float(h)) for h in heights]))


def test_a_sheared_stack_gets_the_grid_that_encloses_it() -> None:
    found = stack(planes([(0.0, float(n), 3.0 * n) for n in range(5)]))
    assert found.resampled == {"tilt_degrees": 18.43}
    assert found.grid.spacing_mm == (3, 1.5, 1.25)
    assert found.grid.shape == (5, 10, 9)  # 4 mm of shear are 2.67 rows
    np.testing.assert_allclose(found.grid.origin_mm, (0, 0, 0), atol=1e-12)
    np.testing.assert_allclose(found.grid.direction, np.eye(3)[:, ::-1], atol=1e-12)


def test_no_gantry_tilts_by_more_than_45_degrees() -> None:
    with pytest.raises(SeriesError, match=r"a stack sheared by 45\.6°"):
        stack(planes([(0.0, 4.6 * n, 4.5 * n) for n in range(5)]))


@pytest.mark.parametrize(
    ("heights", "slices", "step"),
    [([0, 3, 6, 12, 15], 6, 3.0), ([0, 3, 6, 15], 6, 3.0), ([0, 4, 8, 9, 16, 23], 7, 23 / 6), ([0, 1, 3], 4, 1.0)],
)
def test_gaps_are_closed_when_asked(heights: list[float], slices: int, step: float) -> None:
    found = stack(planes([(0, 0, float(h)) for h in heights]), allow_gaps=True)
    assert found.grid.shape == (slices, 7, 9)
    assert found.grid.spacing_mm[0] == pytest.approx(step)
    assert "mm (×" in found.resampled["gaps_mm"]


def test_a_slice_shifted_sideways_is_refused() -> None:
    with pytest.raises(SeriesError, match=r"a slice lies 0\.5\d mm from its place"):
        stack(planes([(0, 0, 0), (0.5, 0, 3), (0, 0, 6), (0, 0, 9)]))


def test_a_single_image_is_refused() -> None:
    with pytest.raises(UnsupportedImage, match="one 2-D image, which is not a volume"):
        stack(planes([(0, 0, 0)]))


def test_a_single_image_is_a_slice_as_thick_as_it_says() -> None:
    grid = stack(planes([(1, 2, 3)], SliceThickness=5), allow_2d=True).grid
    assert (grid.shape, grid.spacing_mm) == ((1, 7, 9), (5, 1.5, 1.25))
    np.testing.assert_array_equal(grid.origin_mm, (1, 2, 3))
    with pytest.raises(MissingAttribute, match=r"expected SliceThickness in 0\.dcm"):
        stack(planes([(1, 2, 3)]), allow_2d=True)
    with pytest.raises(MissingAttribute, match=r"positive SliceThickness in 0\.dcm"):
        stack(planes([(1, 2, 3)], SliceThickness=0), allow_2d=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Rows": 8}, "one image size"),
        ({"PixelSpacing": [1.5, 1.5]}, "one Pixel Spacing"),
        ({"FrameOfReferenceUID": "9.9"}, "one Frame of Reference"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.9998, 0.02]}, "one orientation"),
        ({"ImageOrientationPatient": list(ORIENTATIONS["sagittal"])}, "one orientation"),
    ],
)
def test_mixed_geometry_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SeriesError, match=message):
        stack(planes([(0, 0, 0), (0, 0, 3)]) + planes([(0, 0, 6)], **changes))


@settings(max_examples=100, deadline=None)
@given(
    gap_mm=st.floats(0.3, 8),
    jitter_mm=st.lists(st.tuples(*[st.floats(-0.1, 0.1)] * 3), min_size=2, max_size=6),
    scale=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
    name=st.sampled_from(sorted(ORIENTATIONS)),
)
def test_whatever_is_accepted_puts_every_slice_where_its_header_says(gap_mm, jitter_mm, scale, name) -> None:
    orientation = np.array(ORIENTATIONS[name], float)
    normal = np.cross(orientation[:3], orientation[3:])
    positions = [tuple(n * gap_mm * normal + scale * np.array(jitter)) for n, jitter in enumerate(jitter_mm)]
    try:
        found = stack(planes(positions, ImageOrientationPatient=orientation.tolist()))
    except MedfuseError:
        assert scale > 0
        return
    for k, plane in enumerate(found.planes):
        tolerance_mm = max(0.01, 0.01 * found.grid.spacing_mm[0]) + 1e-9
        place = found.grid.index_of([plane.position_mm])[0]
        assert abs(place[0] - k) * found.grid.spacing_mm[0] <= tolerance_mm
        if not found.resampled:
            assert np.linalg.norm(found.grid.points_mm([(k, 0, 0)])[0] - plane.position_mm) <= tolerance_mm
