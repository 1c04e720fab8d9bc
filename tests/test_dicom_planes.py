"""Where each image of a file lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from headers import header

from medfuse.errors import GeometryError, MissingAttribute, UnreadableFile, UnsupportedImage
from medfuse.io.dicom_planes import planes_of


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
        ({"ImagePositionPatient": [1, 2, 1e300]}, "at most 100000 mm from the origin"),
        ({"PixelSpacing": [1, 1e300]}, "pixels of at most 10000 mm"),
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


@pytest.mark.parametrize(("column", "degrees"), [((1, 0, 0), "90.00"), ((0.6, 0.8, 0), "36.87")])
def test_rows_and_columns_that_are_not_at_right_angles(column: tuple[float, ...], degrees: str) -> None:
    skewed = header(ImageOrientationPatient=[1, 0, 0, *column])
    with pytest.raises(GeometryError, match=rf"as ImageOrientationPatient in x\.dcm, found them {degrees}° off"):
        list(planes_of(Path("x.dcm"), skewed))
