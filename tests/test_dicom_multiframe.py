"""One object of all slices, judged by dciodvfy, SimpleITK, dcm2niix, highdicom and pydicom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from agreement import assert_agrees_with_nifti
from derived import SHAPE, fake_header, grid_of, instances, objects, unexplained, volume_of
from programs import dcm2niix
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage, PositronEmissionTomographyImageStorage

from medfuse.errors import OutputError
from medfuse.grid import Grid
from medfuse.io import dicom_multiframe
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.files import read, write
from medfuse.volume import Modality, Source, Unit, Volume

PET = Source(
    "dicom",
    fake_header(Modality="PT", StudyInstanceUID="1.2.3.9", SeriesInstanceUID="1.9"),
    instances("1.9", 3, PositronEmissionTomographyImageStorage),
)


@pytest.fixture(params=[False, True], ids=["right-handed", "left-handed"])
def grid(request: pytest.FixtureRequest) -> Grid:
    return grid_of(left_handed=request.param)


def color(grid: Grid | None = None, shift_mm: float = 0.0, *also: Source) -> Volume:
    grid = grid or grid_of()
    position = [float(n) for n in (grid.origin_mm + shift_mm).round(6)]
    header = fake_header(ImagePositionPatient=position, SeriesInstanceUID="1.8")
    return volume_of("color", grid, Source("dicom", header, instances("1.8", 5), also or (PET,)))


def one(volume: Volume, folder: Path) -> Dataset:
    (dataset,) = objects(volume, folder, multiframe=True)
    return dataset


def places_mm(grid: Grid) -> np.ndarray:
    """Where every voxel lies, (K, J, I, 3), slices along the normal."""
    places = grid.points_mm(list(np.ndindex(SHAPE))).reshape(*SHAPE, 3)
    return places[::-1] if is_left_handed(grid) else places


def along(volume: Volume) -> np.ndarray:
    return volume.array[::-1] if is_left_handed(volume.grid) else volume.array


def is_left_handed(grid: Grid) -> bool:
    return bool(np.linalg.det(grid.lps_from_index[:3, 2::-1]) < 0)


def test_dciodvfy_finds_nothing_that_is_not_explained(grid: Grid, tmp_path: Path) -> None:
    for n, volume in enumerate((color(grid), color(grid, 2.0), volume_of("color", grid, Source("nifti")))):
        one(volume, tmp_path / str(n))
        assert unexplained([tmp_path / str(n) / "fused.dcm"]) == set()


def test_simpleitk_reads_the_same_volume(grid: Grid, tmp_path: Path) -> None:
    volume = color(grid)
    one(volume, tmp_path)
    image = sitk.ReadImage(str(tmp_path / "fused.dcm"))
    points = [(float(i), float(j), float(k)) for k, j, i in np.ndindex(SHAPE)]
    found_mm = np.array([image.TransformContinuousIndexToPhysicalPoint(point) for point in points])
    np.testing.assert_allclose(found_mm.reshape(*SHAPE, 3), places_mm(grid), atol=1e-3)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), along(volume))


def test_dcm2niix_reads_the_same_volume(grid: Grid, tmp_path: Path) -> None:
    volume = color(grid)
    one(volume, tmp_path / "dicom")
    (file,) = dcm2niix(tmp_path / "dicom", tmp_path / "nifti")
    assert_agrees_with_nifti(volume, file, tolerance=0)


def test_highdicom_reads_the_same_volume(grid: Grid, tmp_path: Path) -> None:
    volume = color(grid)
    one(volume, tmp_path)
    found = highdicom.imread(tmp_path / "fused.dcm").get_volume()
    kji = np.c_[list(np.ndindex(SHAPE)), np.ones(np.prod(SHAPE))]
    found_mm = (kji @ found.affine.T)[:, :3].reshape(*SHAPE, 3)
    flipped = bool(np.linalg.norm(found_mm[0] - places_mm(grid)[0]) > 1)
    np.testing.assert_allclose(found_mm[:: -1 if flipped else 1], places_mm(grid), atol=1e-6)
    np.testing.assert_array_equal(found.array[:: -1 if flipped else 1], along(volume))
    assert found.frame_of_reference_uid == grid.frame_of_reference


def test_medfuse_reads_it_as_fused(grid: Grid, tmp_path: Path) -> None:
    volume = color(grid)
    write(volume, tmp_path / "out", dicom=DicomOptions(multiframe=True))
    found = read(tmp_path / "out")
    assert (found.modality, found.unit) == (Modality.FUSED, Unit.RGB)
    np.testing.assert_array_equal(found.array, along(volume))
    np.testing.assert_allclose(found.grid.points_mm(list(np.ndindex(SHAPE))), places_mm(grid).reshape(-1, 3), atol=1e-6)


def test_what_it_says(tmp_path: Path) -> None:
    dataset = one(color(), tmp_path)
    assert dataset.SOPClassUID == MultiFrameTrueColorSecondaryCaptureImageStorage
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert (dataset.PhotometricInterpretation, dataset.PlanarConfiguration, dataset.BitsStored) == ("RGB", 0, 8)
    assert (dataset.ConversionType, dataset.BurnedInAnnotation, dataset.ColorSpace) == ("WSD", "NO", "SRGB")
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY", "OTHER", "FUSED"]
    assert dataset.ICCProfile[12:16] == b"scnr"
    assert dataset.FrameIncrementPointer == tag_for_keyword("PerFrameFunctionalGroupsSequence")
    assert dataset.SeriesDescription.endswith("not for diagnostic use")
    assert (dataset.PatientName, dataset.StudyInstanceUID, dataset.SeriesNumber) == ("Müller^Jürgen", "1.2.3.4", 1007)
    assert dataset.DerivationCodeSequence[0].CodeValue == "113085"
    assert len(dataset.PixelData) == 5 * 7 * 9 * 3 + 1  # padded to an even length
    assert [element.tag for element in dataset.iterall() if element.tag.is_private] == []


def referenced(items: list[Dataset]) -> list[str]:
    assert {item.PurposeOfReferenceCodeSequence[0].CodeValue for item in items} == {"121322"}
    return [item.ReferencedSOPInstanceUID for item in items]


def test_each_frame_names_its_own_slice_and_the_object_all(grid: Grid, tmp_path: Path) -> None:
    dataset = one(color(grid), tmp_path)
    assert referenced(dataset.SourceImageSequence) == [*(f"1.8.{n}" for n in range(5)), "1.9.0", "1.9.1", "1.9.2"]
    assert "DerivationImageSequence" not in dataset.SharedFunctionalGroupsSequence[0]
    frames = [frame.DerivationImageSequence[0] for frame in dataset.PerFrameFunctionalGroupsSequence]
    order = range(5)[::-1] if is_left_handed(grid) else range(5)
    assert [referenced(frame.SourceImageSequence) for frame in frames] == [[f"1.8.{n}"] for n in order]
    assert {frame.DerivationCodeSequence[0].CodeValue for frame in frames} == {"113085"}


def test_frames_that_are_not_the_sources_own_share_all(tmp_path: Path) -> None:
    dataset = one(color(None, 2.0), tmp_path)
    shared = dataset.SharedFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
    assert len(referenced(shared)) == 8
    assert all("DerivationImageSequence" not in frame for frame in dataset.PerFrameFunctionalGroupsSequence)


def test_references_are_listed_by_study_and_series(tmp_path: Path) -> None:
    dataset = one(color(), tmp_path)
    (own,) = dataset.ReferencedSeriesSequence
    (other,) = dataset.StudiesContainingOtherReferencedInstancesSequence
    assert (own.SeriesInstanceUID, len(own.ReferencedInstanceSequence)) == ("1.8", 5)
    assert other.StudyInstanceUID == "1.2.3.9"
    assert other.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.9"
    assert len(other.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 3


def test_no_references_without_images(tmp_path: Path) -> None:
    dataset = one(volume_of("color", source=Source("nifti")), tmp_path)
    assert "SourceImageSequence" not in dataset
    assert "ReferencedSeriesSequence" not in dataset
    assert "DerivationImageSequence" not in dataset.SharedFunctionalGroupsSequence[0]


def test_more_pixels_than_an_element_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_multiframe, "MAX_BYTES", 944)
    with pytest.raises(OutputError, match="at most 944 bytes of pixels for one DICOM object, found 945"):
        write(color(), tmp_path / "out", dicom=DicomOptions(multiframe=True))
    assert not (tmp_path / "out").exists()


def test_one_form_replaces_the_other(tmp_path: Path) -> None:
    volume, names = color(), []
    for multiframe in (False, True, False):
        write(volume, tmp_path / "out", dicom=DicomOptions(multiframe=multiframe), overwrite=True)
        names.append(sorted(path.name for path in (tmp_path / "out").iterdir()))
    slices = [f"fused-000{n}.dcm" for n in range(1, 6)]
    assert names == [slices, ["fused.dcm"], slices]


def test_grey_stays_single_frame(tmp_path: Path) -> None:
    assert len(objects(replace(volume_of("fused"), source=Source("nifti")), tmp_path, multiframe=True)) == 5


def test_a_single_slice(tmp_path: Path) -> None:
    volume = color()
    flat = replace(volume, array=volume.array[:1], grid=Grid((1, 7, 9), volume.grid.lps_from_index))
    dataset = one(flat, tmp_path)
    assert dataset.NumberOfFrames == 1
    assert unexplained([tmp_path / "fused.dcm"]) == set()
    assert pydicom.dcmread(tmp_path / "fused.dcm").pixel_array.shape[-3:] == (7, 9, 3)
