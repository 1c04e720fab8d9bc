"""Which stacks of images are one volume, and where it lies."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from medfuse.errors import MedfuseError, MissingAttribute, SeriesError, UnreadableFile, UnsupportedImage
from medfuse.io.dicom_planes import Plane, planes_of, stack

ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": (0.60883, 0.790737, 0.063724, -0.142762, 0.188227, -0.971694),
}


def header(position: tuple[float, float, float] = (0, 0, 0), **changes: object) -> Dataset:
    ds = Dataset()
    ds.Rows, ds.Columns = 7, 9
    ds.ImagePositionPatient = list(position)
    ds.ImageOrientationPatient = list(ORIENTATIONS["axial"])
    ds.PixelSpacing = [1.5, 1.25]
    ds.FrameOfReferenceUID = "1.2.3"
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def planes(positions: list[tuple[float, float, float]], **changes: object) -> list[Plane]:
    return [
        plane
        for n, position in enumerate(positions)
        for plane in planes_of(Path(f"{n}.dcm"), header(position, **changes))
    ]


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_grid_is_exact_in_every_order(name: str) -> None:
    orientation = np.array(ORIENTATIONS[name], float)
    row, column = orientation[:3] / np.linalg.norm(orientation[:3]), orientation[3:] / np.linalg.norm(orientation[3:])
    normal = np.cross(row, column)
    positions = [tuple((10, -20, 30) + 3.5 * n * normal) for n in range(4)]
    for order in itertools.permutations(positions):
        ordered, grid = stack(planes(list(order), ImageOrientationPatient=list(orientation)))
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
    _, grid = stack(planes([(0, 0, 0), (0, 0, 3), (0, 0, 6)], SliceThickness=5, SpacingBetweenSlices=-1))
    assert grid.spacing_mm == (3, 1.5, 1.25)


def test_positions_rounded_to_a_hundredth_are_regular() -> None:
    positions = [(0.0, 0.0, round(n * 0.625, 2)) for n in range(40)]
    _, grid = stack(planes(positions))
    assert grid.spacing_mm[0] == pytest.approx(positions[-1][2] / 39)


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ([0, 3, 6, 12, 15], r"3\.00 mm \(×3\), 6\.00 mm \(×1\)"),
        ([0, 4.22, 5.36, 12.74], r"4\.22 mm .*1\.14 mm .*7\.38 mm"),
        ([*np.arange(50) * 3.0, *(150 + np.arange(50) * 3.03)], "from its place"),  # each gap well, the sum not
        ([0, 3, 3, 6], "4 images at 3 positions"),
        ([0, 0, 3, 3, 6, 6], "6 images at 3 positions"),
        ([2, 2], "2 images at 1 positions"),
    ],
)
def test_uneven_or_repeated_positions_are_refused(heights: list[float], message: str) -> None:
    with pytest.raises(SeriesError, match=message):
        stack(planes([(0, 0, float(h)) for h in heights]))


def test_gantry_tilt_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedImage, match=r"sheared by 18\.4° \(gantry tilt\)"):
        stack(planes([(0.0, float(n), 3.0 * n) for n in range(5)]))


def test_a_slice_shifted_sideways_is_refused() -> None:
    with pytest.raises(SeriesError, match=r"a slice lies 0\.5\d mm from its place"):
        stack(planes([(0, 0, 0), (0.5, 0, 3), (0, 0, 6), (0, 0, 9)]))


def test_a_single_image_is_refused() -> None:
    with pytest.raises(UnsupportedImage, match="one 2-D image, which is not a volume"):
        stack(planes([(0, 0, 0)]))


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


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows"])
@pytest.mark.parametrize("empty", [False, True])
def test_missing_geometry_is_named(keyword: str, empty: bool) -> None:
    ds = header()
    if empty:
        setattr(ds, keyword, None)
    else:
        delattr(ds, keyword)
    with pytest.raises(MissingAttribute, match=rf"{keyword}.* in slice\.dcm"):
        list(planes_of(Path("slice.dcm"), ds))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PixelSpacing": [1.5]}, "expected 2 finite numbers as PixelSpacing"),
        ({"PixelSpacing": [1.5, 0]}, "positive PixelSpacing"),
        ({"PixelSpacing": [-1.5, 1]}, "positive PixelSpacing"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "two unit vectors"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 2, 0]}, "two unit vectors"),
        ({"ImagePositionPatient": [1, 2, float("nan")]}, "finite numbers as ImagePositionPatient"),
    ],
)
def test_malformed_geometry_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UnreadableFile, match=message):
        list(planes_of(Path("slice.dcm"), header(**changes)))


@pytest.mark.parametrize(("rows", "frames"), [(65535, 100_000), (7, 2**31 - 1)])
def test_absurd_sizes_are_refused_before_anything_is_allocated(rows: int, frames: int) -> None:
    with pytest.raises(UnsupportedImage, match=r"expected 1 to \d+ voxels"):
        list(planes_of(Path("slice.dcm"), header(Rows=rows, NumberOfFrames=frames)))


def test_frames_without_functional_groups_are_refused() -> None:
    with pytest.raises(UnsupportedImage, match="a functional group for each of 5 frames"):
        list(planes_of(Path("slice.dcm"), header(NumberOfFrames=5)))


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
        ordered, grid = stack(planes(positions, ImageOrientationPatient=orientation.tolist()))
    except MedfuseError:
        assert scale > 0
        return
    for k, plane in enumerate(ordered):
        tolerance_mm = max(0.01, 0.01 * grid.spacing_mm[0]) + 1e-9
        assert np.linalg.norm(grid.points_mm([(k, 0, 0)])[0] - plane.position_mm) <= tolerance_mm
