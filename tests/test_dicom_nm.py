"""SPECT as Nuclear Medicine images; geometry against GDCM, in SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from agreement import assert_grid_is_of_image
from edits import edit
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, NuclearMedicineImageStorage, generate_uid

from medfuse.errors import MedfuseError, MissingAttribute, UnreadableFile, UnsupportedImage
from medfuse.io.files import inspect, read
from medfuse.volume import Modality, Unit

STORED = np.random.default_rng(11).permutation(4 * 6 * 5).reshape(4, 6, 5).astype(np.uint16)


@pytest.fixture
def spect(tmp_path: Path) -> Path:
    """Four reconstructed slices."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = NuclearMedicineImageStorage, generate_uid()
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = generate_uid(), generate_uid(), "1.2.3"
    ds.Modality, ds.SeriesNumber, ds.PatientID, ds.PatientName = "NM", 5, "P", "P"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    ds.NumberOfFrames, ds.Rows, ds.Columns = STORED.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelSpacing = [4.8, 4.4]
    ds.SliceThickness, ds.SpacingBetweenSlices = "3.9", "3.9"
    ds.FrameIncrementPointer = tag_for_keyword("SliceVector")
    ds.SliceVector = [1, 2, 3, 4]
    ds.NumberOfSlices = 4
    detector = Dataset()
    detector.ImagePositionPatient = [-120.5, -110.25, 300]
    detector.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.DetectorInformationSequence = [detector]
    ds.PixelData = STORED.astype("<u2").tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(tmp_path / "spect.dcm", enforce_file_format=True)
    return tmp_path / "spect.dcm"


def test_a_reconstruction_is_a_volume_of_counts(spect: Path) -> None:
    volume = read(spect)
    assert (volume.modality, volume.unit) == (Modality.NM, Unit.COUNTS)
    np.testing.assert_array_equal(volume.array, STORED)
    assert volume.grid.spacing_mm == pytest.approx((3.9, 4.8, 4.4))
    assert volume.grid.frame_of_reference == "1.2.3"
    np.testing.assert_array_equal(volume.grid.origin_mm, (-120.5, -110.25, 300))
    assert_grid_is_of_image(volume, sitk.ReadImage(spect), 1e-6)


def test_slices_against_the_normal_where_the_spacing_is_negative(spect: Path) -> None:
    edit(spect, SpacingBetweenSlices="-3.9")
    volume = read(spect)
    np.testing.assert_array_equal(volume.array, STORED[::-1])
    np.testing.assert_allclose(volume.grid.origin_mm, (-120.5, -110.25, 300 - 3 * 3.9))
    np.testing.assert_allclose(volume.grid.points_mm([(3, 0, 0)])[0], (-120.5, -110.25, 300))


def test_an_oblique_reconstruction(spect: Path) -> None:
    ds = pydicom.dcmread(spect)
    ds.DetectorInformationSequence[0].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    ds.save_as(spect)
    assert_grid_is_of_image(read(spect), sitk.ReadImage(spect), 1e-6)


def test_the_slope_of_the_file_is_used(spect: Path) -> None:
    edit(spect, RescaleSlope="0.5", RescaleIntercept="0")
    np.testing.assert_array_equal(read(spect).array, STORED / 2)


@pytest.mark.parametrize(
    ("start_mm", "labels"), [(301.95, ["file 1", "file 2"]), (300 + 4 * 3.9, [None]), (300 + 4.5 * 3.9, [None])]
)
def test_two_files_that_reach_into_one_another_are_two_volumes(
    spect: Path, start_mm: float, labels: list[str | None]
) -> None:
    """Half a slice apart they would be one regular stack; one after the other they are, or leave a gap."""
    ds = pydicom.dcmread(spect)
    ds.SOPInstanceUID = generate_uid()
    ds.DetectorInformationSequence[0].ImagePositionPatient = [-120.5, -110.25, start_mm]
    ds.save_as(spect.with_name("spect2.dcm"))
    assert [info.label for info in inspect(spect.parent).series] == labels
    if len(labels) > 1:
        np.testing.assert_array_equal(read(spect.parent, series=":2").array, STORED)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]}, UnsupportedImage, "projections that are not rec"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "STATIC", "EMISSION"]}, UnsupportedImage, "a static planar image"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "WHOLE BODY"]}, UnsupportedImage, "a planar whole-body image"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "RECON GATED TOMO"]}, UnsupportedImage, "a gated reconstruction"),
        ({"ImageType": ["ORIGINAL", "PRIMARY"]}, UnsupportedImage, "another kind"),
        ({"FrameIncrementPointer": [0x00540070, 0x00540080]}, UnsupportedImage, "frames that differ by slice alone"),
        ({"SliceVector": [1, 2, 3]}, UnreadableFile, "4 finite numbers as SliceVector"),
        ({"SliceVector": [1, 2, 3, 3]}, UnreadableFile, "the numbers 1 to 4 as SliceVector"),
        ({"SliceVector": [4, 3, 2, 1]}, UnsupportedImage, "the first frame to be slice 1"),
        ({"DetectorInformationSequence": None}, MissingAttribute, "expected DetectorInformationSequence"),
        ({"DetectorInformationSequence": [Dataset()]}, MissingAttribute, "expected ImageOrientationPatient"),
        ({"SpacingBetweenSlices": None}, MissingAttribute, "expected SpacingBetweenSlices"),
        ({"SpacingBetweenSlices": "1e300"}, UnreadableFile, "at most 100000 mm from the origin"),
        ({"SpacingBetweenSlices": "0"}, MedfuseError, "found 4 images at 1 position"),
    ],
)
def test_what_is_no_reconstruction_is_refused_by_name(
    spect: Path, changes: dict[str, Any], error: type, message: str
) -> None:
    edit(spect, **changes)
    with pytest.raises(error, match=message):
        read(spect)
