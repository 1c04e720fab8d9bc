"""Siemens mosaics: against dcm2niix in test_reading_table.py; here what may be wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medfuse.errors import MissingAttribute, UnreadableFile
from medfuse.io.dicom_mosaic import CSA_CREATOR, CSA_IMAGE
from medfuse.io.files import read


@pytest.fixture
def mosaic(shared: Path, tmp_path: Path) -> Path:
    """One mosaic of 35 sagittal slices, as a copy."""
    source = min((shared / "mosaic-4d" / "sagasc35").iterdir())
    return Path(shutil.copyfile(source, tmp_path / "mosaic.dcm"))


def test_one_mosaic_is_one_volume(mosaic: Path) -> None:
    volume = read(mosaic)
    assert volume.array.shape == (35, 64, 64)
    stored = pydicom.dcmread(mosaic).pixel_array
    # Siemens stacked these against the normal of the planes, row × column: the last slice is the first tile
    np.testing.assert_array_equal(volume.array[34], stored[:64, :64])
    np.testing.assert_array_equal(volume.array[27], stored[64:128, 64:128])  # six tiles in a row
    np.testing.assert_array_equal(volume.array[0], stored[320:, 256:320])
    assert volume.grid.spacing_mm == pytest.approx((3.6, 3.25, 3.25), abs=1e-6)


def test_a_mosaic_goes_before_a_single_image(mosaic: Path) -> None:
    ds = pydicom.dcmread(mosaic)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    ds.SeriesInstanceUID = pydicom.uid.generate_uid()
    ds.SeriesNumber = 99
    ds.save_as(mosaic.with_name("single.dcm"))
    assert read(mosaic.parent).array.shape == (35, 64, 64)


def test_the_stated_normal_says_which_way_tiles_are_stacked(mosaic: Path) -> None:
    before = read(mosaic)
    ds = pydicom.dcmread(mosaic)
    csa = bytes(ds[CSA_IMAGE].value)
    at = csa.index(b"SliceNormalVector")
    text = csa.index(b"1.00000000", at)
    ds[CSA_IMAGE].value = csa[:text] + b"-1.0000000" + csa[text + 10 :]
    ds.save_as(mosaic)
    after = read(mosaic)
    np.testing.assert_array_equal(after.array, before.array[::-1])
    np.testing.assert_allclose(after.grid.origin_mm, before.grid.points_mm([(34, 0, 0)])[0], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("no CSA header", MissingAttribute, "expected NumberOfImagesInMosaic in the CSA header"),
        ("another creator", MissingAttribute, "expected NumberOfImagesInMosaic in the CSA header"),
        ("damaged CSA header", UnreadableFile, "truncated or damaged"),
        ("other size", UnreadableFile, "expected 6 × 6 tiles of one size .* found 383 × 384 pixels"),
        ("other normal", UnreadableFile, "SliceNormalVector at right angles"),
        ("no spacing", MissingAttribute, "expected SpacingBetweenSlices"),
    ],
)
def test_what_contradicts_itself_is_refused(mosaic: Path, change: str, error: type, message: str) -> None:
    ds = pydicom.dcmread(mosaic)
    if change == "no CSA header":
        del ds[CSA_IMAGE]
    elif change == "another creator":
        ds[CSA_CREATOR].value = "SOMEONE ELSE"
    elif change == "damaged CSA header":
        ds[CSA_IMAGE].value = bytes(ds[CSA_IMAGE].value)[:200]
    elif change == "other size":
        ds.Rows = 383
    elif change == "other normal":
        ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    else:
        del ds.SpacingBetweenSlices
    ds.save_as(mosaic)
    with pytest.raises(error, match=message):
        read(mosaic)
