"""What `write_dicom` writes, judged by dciodvfy, dcm2niix, SimpleITK and highdicom."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from agreement import assert_agrees_with_nifti
from derived import (
    KINDS,
    SHAPE,
    complaints,
    expected_values,
    fake_header,
    grid_of,
    instances,
    objects,
    tolerance,
    volume_of,
    written,
)
from edits import edit
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import dcm2niix
from pydicom import Dataset, Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
)

import medfuse
from medfuse.errors import OutputError
from medfuse.grid import Grid
from medfuse.io.dicom_write import write_dicom
from medfuse.sample.series import write_series
from medfuse.volume import Modality, Source, Unit


@pytest.fixture(params=["no header", "MR_T1", "CT"])
def real_source(request: pytest.FixtureRequest) -> Source:
    """A source with the header of a real series, or with none."""
    if request.param == "no header":
        return Source("nifti")
    shared: Path = request.getfixturevalue("shared")
    file = min((shared / "ibsi-sts" / "dicom" / "STS_003" / request.param / "image").iterdir())
    with pydicom.config.disable_value_validation():  # Study ID is longer than its 16 characters
        header = pydicom.dcmread(file, stop_before_pixels=True)
        header.remove_private_tags()
    also = Source("dicom", None, instances("1.9", 3, PositronEmissionTomographyImageStorage))
    return Source("dicom", header, instances("1.8", 5, header.SOPClassUID), (also,))


@pytest.fixture(params=[False, True], ids=["right-handed", "left-handed"])
def grid(request: pytest.FixtureRequest) -> Grid:
    return grid_of(left_handed=request.param)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"Laterality": "L"}, "L"),
        ({"Laterality": "", "ImageLaterality": "R"}, "R"),
        ({"SharedFunctionalGroupsSequence": [("R",)]}, "R"),
        ({"PerFrameFunctionalGroupsSequence": [("L",), ("L",)]}, "L"),
        ({"PerFrameFunctionalGroupsSequence": [("L",), ("R",)]}, None),
        ({"ImageLaterality": "B"}, None),
        ({"BodyPartExamined": "HEAD", "ImageLaterality": "R"}, "absent"),
    ],
)
def test_the_side_is_found_wherever_a_source_says_it(
    stated: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    groups = {key: [anatomy(*of) for of in value] for key, value in stated.items() if key.endswith("Sequence")}
    header = fake_header(**{"BodyPartExamined": "KNEE", "Laterality": None} | stated | groups)
    dataset, *_ = objects(volume_of("color", source=Source("dicom", header)), tmp_path / "color")
    assert (dataset.Laterality or None if "Laterality" in dataset else "absent") == expected
    (mapped,) = objects(volume_of("fused", source=Source("dicom", header)), tmp_path / "map", grey_as="parametric-map")
    frame = mapped.SharedFunctionalGroupsSequence[0].FrameAnatomySequence[0]
    assert frame.FrameLaterality == (expected if expected in ("L", "R") else "U")


def anatomy(side: str) -> Dataset:
    group, item = Dataset(), Dataset()
    item.FrameLaterality = side
    group.FrameAnatomySequence = [item]
    return group


@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error(kind: str, real_source: Source, tmp_path: Path) -> None:
    volume = volume_of(kind, source=real_source).derive("resample", {"grid": "structural"})
    assert complaints(write_dicom(volume, tmp_path)) == []


@pytest.mark.parametrize("kind", ["color", "fused"])
@pytest.mark.parametrize("sop_class", [MRImageStorage, EnhancedMRImageStorage, CTImageStorage])
def test_dciodvfy_finds_no_error_with_a_full_header(kind: str, sop_class: str, tmp_path: Path) -> None:
    source = Source("dicom", fake_header(SOPClassUID=sop_class), instances("1.8", 1, sop_class))
    assert complaints(write_dicom(volume_of(kind, source=source), tmp_path)) == []


@pytest.mark.parametrize(
    "attributes",
    [
        {"BodyPartExamined": "HEAD", "Laterality": "L"},
        {"BodyPartExamined": "KNEE", "Laterality": None},
        {"BodyPartExamined": None, "Laterality": None},
        {"ScanningSequence": "SE", "InversionTime": "100"},
        {"ScanningSequence": "IR", "InversionTime": None},
        {"ScanOptions": ["FS", "CG"], "TriggerTime": None},
        {"ScanOptions": ["FS"], "TriggerTime": "5"},
        {"PatientIdentityRemoved": "YES"},
    ],
    ids=str,
)
def test_dciodvfy_agrees_with_what_depends_on_another_value(attributes: dict[str, object], tmp_path: Path) -> None:
    volume = volume_of("fused", source=Source("dicom", fake_header(**attributes)))
    assert complaints(write_dicom(volume, tmp_path)[:1]) == []


@pytest.mark.parametrize("kind", ["color", "fused"])
def test_dciodvfy_finds_no_error_where_the_source_breaks_rules(kind: str, tmp_path: Path) -> None:
    header = fake_header(PatientSex="U", Laterality="B", PatientPosition="UP", LossyImageCompression="01")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        header.StudyID = "longer than sixteen characters"
        header.StudyTime = "25:99"
        paths = write_dicom(volume_of(kind, source=Source("dicom", header)), tmp_path)
    assert complaints(paths) == []
    dataset = pydicom.dcmread(paths[0])
    assert (dataset.StudyID, dataset.StudyTime, dataset.PatientSex, dataset.Laterality) == ("", "", "", "")
    assert dataset.LossyImageCompression == "01"


@pytest.mark.parametrize("kind", KINDS)
def test_simpleitk_reads_the_same_volume(kind: str, grid: Grid, tmp_path: Path) -> None:
    volume = volume_of(kind, grid)
    write_dicom(volume, tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    assert image.GetSize() == SHAPE[::-1]
    assert image.GetSpacing() == pytest.approx(grid.spacing_mm[::-1], abs=1e-3)
    flipped = np.linalg.det(grid.lps_from_index[:3, 2::-1]) < 0
    points = [(float(i), float(j), float(k)) for k, j, i in np.ndindex(SHAPE)]
    found_mm = np.array([image.TransformContinuousIndexToPhysicalPoint(point) for point in points])
    expected_mm = grid.points_mm(list(np.ndindex(SHAPE))).reshape(*SHAPE, 3)
    np.testing.assert_allclose(found_mm.reshape(*SHAPE, 3)[:: -1 if flipped else 1], expected_mm, atol=1e-3)
    found = sitk.GetArrayFromImage(image)[:: -1 if flipped else 1]
    np.testing.assert_allclose(found, expected_values(volume), rtol=0, atol=tolerance(volume))


@pytest.mark.parametrize("kind", KINDS)
def test_dcm2niix_reads_the_same_volume(kind: str, grid: Grid, tmp_path: Path) -> None:
    volume = volume_of(kind, grid)
    (tmp_path / "dicom").mkdir()
    write_dicom(volume, tmp_path / "dicom")
    (file,) = dcm2niix(tmp_path / "dicom", tmp_path / "nifti")
    loss = tolerance(volume) + 1e-6 * float(np.abs(volume.array).max()) * (kind == "real")  # NIfTI scales in float32
    assert_agrees_with_nifti(replace(volume, array=expected_values(volume)), file, tolerance=loss)


@pytest.mark.parametrize("kind", ["color", "fused", "signed"])
def test_highdicom_reads_the_same_volume(kind: str, grid: Grid, tmp_path: Path) -> None:
    volume = volume_of(kind, grid)
    images = [highdicom.imread(path) for path in write_dicom(volume, tmp_path)]
    found = highdicom.get_volume_from_series(images)
    assert found.frame_of_reference_uid == grid.frame_of_reference
    same_order = found.affine[:3, 0] @ grid.direction[:, 0] > 0
    step = 1 if same_order else -1
    first = grid.points_mm([(0 if same_order else SHAPE[0] - 1, 0, 0)])[0]
    np.testing.assert_allclose(found.affine[:3, 3], first, atol=1e-6)
    np.testing.assert_allclose(found.affine[:3, :3], grid.lps_from_index[:3, :3] * (step, 1, 1), atol=1e-6)
    np.testing.assert_array_equal(found.array[::step], expected_values(volume))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), left_handed=st.booleans())
def test_every_slice_is_where_the_grid_says(
    seed: int, left_handed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grid = grid_of(left_handed, seed)
    datasets = written(volume_of("fused", grid), tmp_path_factory.mktemp("series"))
    ordered = datasets[::-1] if left_handed else datasets
    for k, dataset in enumerate(ordered):
        np.testing.assert_allclose(dataset.ImagePositionPatient, grid.points_mm([(k, 0, 0)])[0], rtol=0, atol=1e-9)
        row, column = np.reshape(np.array(dataset.ImageOrientationPatient, dtype=float), (2, 3))
        np.testing.assert_allclose(row, grid.direction[:, 2], atol=1e-12)
        np.testing.assert_allclose(column, grid.direction[:, 1], atol=1e-12)
        assert [float(n) for n in dataset.PixelSpacing] == [1.5, 1.25]
        assert (dataset.SliceThickness, dataset.SpacingBetweenSlices) == (3, 3)
    along = [np.cross(row, column) @ np.array(d.ImagePositionPatient, dtype=float) for d in datasets]
    np.testing.assert_allclose(np.diff(along), 3, atol=1e-6)
    np.testing.assert_allclose([d.SliceLocation for d in datasets], along, atol=1e-6)
    assert [d.InstanceNumber for d in datasets] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_one_series_of_new_instances(kind: str, tmp_path: Path) -> None:
    paths = write_dicom(volume_of(kind), tmp_path)
    assert [path.name for path in paths] == [f"fused-000{n}.dcm" for n in range(1, 6)]
    assert sorted(tmp_path.iterdir()) == paths
    datasets = [pydicom.dcmread(path) for path in paths]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber", "SeriesTime"):
        assert len({dataset[keyword].value for dataset in datasets}) == 1, keyword
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == 5
    assert all(d.file_meta.MediaStorageSOPInstanceUID == d.SOPInstanceUID for d in datasets)


@pytest.mark.parametrize("kind", KINDS)
def test_what_must_be_said_is_said(kind: str, tmp_path: Path) -> None:
    private = Dataset()
    private.CodeValue, private.CodingSchemeDesignator, private.CodeMeaning = "113100", "DCM", "Basic"
    private.private_block(0x0009, "someone", create=True).add_new(1, "LO", "secret")
    header = fake_header(DeidentificationMethodCodeSequence=Sequence([private]), PatientIdentityRemoved="YES")
    header.private_block(0x0009, "someone", create=True).add_new(1, "LO", "secret")
    for dataset in written(volume_of(kind, source=Source("dicom", header)), tmp_path):
        assert list(dataset.ImageType)[:2] == ["DERIVED", "SECONDARY"]
        assert dataset.BurnedInAnnotation == "NO"
        assert dataset.LossyImageCompression == "00"
        assert "not for diagnostic use" in dataset.SeriesDescription
        assert "not for diagnostic use" in dataset.DerivationDescription
        assert dataset.Manufacturer == "medfuse"
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert "RescaleType" not in dataset or dataset.RescaleType == "US"
        assert [element.tag for element in dataset.iterall() if element.tag.is_private] == []


def test_color_is_secondary_capture_in_srgb(tmp_path: Path) -> None:
    dataset = written(volume_of("color"), tmp_path)[0]
    assert dataset.SOPClassUID == SecondaryCaptureImageStorage
    assert (dataset.PhotometricInterpretation, dataset.PlanarConfiguration, dataset.BitsStored) == ("RGB", 0, 8)
    assert (dataset.Modality, dataset.ConversionType, dataset.ColorSpace) == ("OT", "WSD", "SRGB")
    assert highdicom.color.ColorManager(dataset.ICCProfile) is not None
    assert dataset.ICCProfile[12:16] == b"scnr"
    assert len(dataset.PixelData) == 7 * 9 * 3 + 1  # padded to an even length


@pytest.mark.parametrize(
    ("axes", "letters"),
    [(((0, 0, 1), (0, 1, 0), (1, 0, 0)), ["L", "P"]), (((1, 0, 0), (0, 0, -1), (0, -1, 0)), ["A", "F"])],
)
def test_color_names_the_sides_of_the_patient(axes: tuple, letters: list[str], tmp_path: Path) -> None:
    grid = Grid.from_axes(SHAPE, (0, 0, 0), (1, 1, 1), np.transpose(axes))
    assert written(volume_of("color", grid), tmp_path)[0].PatientOrientation == letters


def test_fused_grey_has_twelve_bits_all_shown(tmp_path: Path) -> None:
    datasets = written(volume_of("fused"), tmp_path)
    assert datasets[0].SOPClassUID == MRImageStorage
    assert (datasets[0].BitsAllocated, datasets[0].BitsStored, datasets[0].HighBit) == (16, 12, 11)
    pixels = np.stack([dataset.pixel_array for dataset in datasets])
    assert (pixels.min(), pixels.max()) == (0, 4095)
    shown = pydicom.pixels.apply_windowing(pixels, datasets[0])
    np.testing.assert_allclose(shown, pixels, atol=1e-9)
    assert "RescaleSlope" not in datasets[0]


@pytest.mark.parametrize(
    ("values", "bits", "signed"), [((0, 4095), 12, 0), ((0, 65535), 16, 0), ((-32768, 32767), 16, 1)]
)
def test_whole_numbers_of_an_mr_are_kept(values: tuple[int, int], bits: int, signed: int, tmp_path: Path) -> None:
    array = np.resize(np.array(values, dtype=np.float64), SHAPE)
    datasets = written(replace(volume_of("whole"), array=array), tmp_path)
    np.testing.assert_array_equal(np.stack([dataset.pixel_array for dataset in datasets]), array)
    assert (datasets[0].BitsStored, datasets[0].PixelRepresentation) == (bits, signed)
    assert "RescaleSlope" not in datasets[0]
    assert datasets[0].WindowWidth > 0


@pytest.mark.parametrize("value", [0.25, 7.0, -70000.0])
def test_a_constant_mr_keeps_its_value(value: float, tmp_path: Path) -> None:
    datasets = written(replace(volume_of("whole"), array=np.full(SHAPE, value)), tmp_path)
    found = pydicom.pixels.apply_modality_lut(datasets[0].pixel_array, datasets[0])
    np.testing.assert_allclose(found, value)
    assert datasets[0].WindowWidth > 0


@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO_IR 100"])
@pytest.mark.parametrize("kind", ["color", "fused"])
def test_patient_and_study_are_carried_on(kind: str, charset: str, tmp_path: Path) -> None:
    header = fake_header(SpecificCharacterSet=charset)
    original = tmp_path / "original.dcm"
    pydicom.dcmwrite(original, header, implicit_vr=True, little_endian=True)
    read = pydicom.dcmread(original, force=True)
    (tmp_path / "series").mkdir()
    dataset = written(volume_of(kind, source=Source("dicom", read)), tmp_path / "series")[-1]
    for keyword in (
        *("SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientWeight"),
        *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription"),
        *("ReferringPhysicianName", "BodyPartExamined", "Laterality", "PatientPosition", "FrameOfReferenceUID"),
        "PositionReferenceIndicator",
    ):
        assert dataset[keyword].value == header[keyword].value, keyword
    assert dataset.SeriesNumber == 1007
    assert dataset.ContributingEquipmentSequence[0].Manufacturer == "Scanner & Söhne"
    codec = {"ISO_IR 192": "utf-8", "ISO_IR 100": "latin-1"}[charset]
    assert "Müller^Jürgen".encode(codec) in (tmp_path / "series" / "fused-0001.dcm").read_bytes()


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize("charset", ["ISO-IR 100", "LATIN1", "ISO_IR 6", ""])
def test_texts_that_the_character_set_does_not_hold_become_utf8(charset: str, tmp_path: Path) -> None:
    """A misspelt set, one that nobody knows, and none, where there are letters beyond ASCII all the same."""
    dataset = written(volume_of("color", source=Source("dicom", fake_header(SpecificCharacterSet=charset))), tmp_path)[
        0
    ]
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert "Müller^Jürgen".encode() in (tmp_path / "fused-0001.dcm").read_bytes()


def test_texts_of_two_character_sets_become_utf8(tmp_path: Path) -> None:
    other = fake_header(SpecificCharacterSet="ISO_IR 144", Manufacturer="Завод", Modality="PT")
    header = fake_header(SpecificCharacterSet="ISO_IR 100")
    dataset = written(volume_of("color", source=Source("dicom", header, (), (Source("dicom", other),))), tmp_path)[0]
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert dataset.PatientName == "Müller^Jürgen"
    makers = [item.Manufacturer for item in dataset.ContributingEquipmentSequence]
    assert makers == ["Scanner & Söhne", "Завод", "medfuse"]
    assert [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in dataset.ContributingEquipmentSequence] == [
        *("109101", "109101", "109102")
    ]


@pytest.mark.parametrize("options", [{}, {"multiframe": True, "grey_as": "parametric-map"}], ids=str)
@pytest.mark.parametrize("kind", ["color", "fused", "whole"])
@pytest.mark.parametrize("said", [("YES", "NO"), ("NO", "YES"), ("NO", None)])
def test_text_in_the_pixels_of_a_source_is_told(
    kind: str, options: dict[str, object], said: tuple[str, str | None], tmp_path: Path
) -> None:
    own, also = (Source("dicom", fake_header(BurnedInAnnotation=word)) for word in said)
    for dataset in objects(volume_of(kind, source=replace(own, also=(also,))), tmp_path, **options):
        assert dataset.BurnedInAnnotation == ("YES" if "YES" in said else "NO")


def test_identifiers_are_never_shortened(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        header = fake_header(AccessionNumber="longer than sixteen characters")
        dataset = written(volume_of("color", source=Source("dicom", header)), tmp_path)[0]
        assert dataset.AccessionNumber == "longer than sixteen characters"


def test_without_a_header_the_patient_is_empty_and_the_study_new(tmp_path: Path) -> None:
    volume = volume_of("color", grid_of(frame=None))
    studies = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        dataset = written(volume, tmp_path / name)[0]
        assert (dataset.PatientName, dataset.PatientID, dataset.StudyDate) == ("", "", "")
        assert dataset.FrameOfReferenceUID
        studies |= {dataset.StudyInstanceUID, dataset.FrameOfReferenceUID}
    assert len(studies) == 4


def test_acquisition_is_carried_on_from_single_frame_mr_only(tmp_path: Path) -> None:
    found = []
    for name, sop_class in (("mr", MRImageStorage), ("enhanced", EnhancedMRImageStorage), ("ct", CTImageStorage)):
        (tmp_path / name).mkdir()
        source = Source("dicom", fake_header(SOPClassUID=sop_class))
        dataset = written(volume_of("fused", source=source), tmp_path / name)[0]
        found.append((dataset.ScanningSequence, dataset.EchoTime, dataset.get("InversionTime")))
    assert found == [(["SE", "IR"], 12, 100), ("RM", None, None), ("RM", None, None)]


@pytest.mark.parametrize("number", [None, -5, 2**31 - 1])
def test_series_number_stays_in_range(number: int | None, tmp_path: Path) -> None:
    source = Source("dicom", fake_header(SeriesNumber=number))
    found = written(volume_of("color", source=source), tmp_path)[0].SeriesNumber
    assert found == (2**31 - 1 if number == 2**31 - 1 else 1000)


def test_series_that_one_run_makes_have_numbers_of_their_own(tmp_path: Path) -> None:
    volume = volume_of("fused", source=Source("dicom", fake_header(SeriesNumber=4)))
    numbers = []
    for nth in (1, 2):
        (tmp_path / str(nth)).mkdir()
        path = write_dicom(volume, tmp_path / str(nth), nth)[0]
        numbers.append(pydicom.dcmread(path).SeriesNumber)
    assert numbers == [1004, 2004]


def referenced(dataset: Dataset) -> list[str]:
    return [item.ReferencedSOPInstanceUID for item in dataset.SourceImageSequence]


@pytest.mark.parametrize("kind", ["color", "fused"])
def test_each_slice_names_its_sources(kind: str, grid: Grid, tmp_path: Path) -> None:
    also = Source("dicom", None, instances("1.9", 3, PositronEmissionTomographyImageStorage))
    position = [float(n) for n in grid.origin_mm.round(6)]
    source = Source("dicom", fake_header(ImagePositionPatient=position), instances("1.8", 5), (also,))
    datasets = written(volume_of(kind, grid, source), tmp_path)
    flipped = np.linalg.det(grid.lps_from_index[:3, 2::-1]) < 0
    for k, dataset in enumerate(datasets[:: -1 if flipped else 1]):
        assert referenced(dataset) == [f"1.8.{k}", "1.9.0", "1.9.1", "1.9.2"]
        first, second = dataset.SourceImageSequence[:2]
        assert first.ReferencedSOPClassUID == MRImageStorage
        assert second.ReferencedSOPClassUID == PositronEmissionTomographyImageStorage
        purpose = second.PurposeOfReferenceCodeSequence[0]
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("121322", "DCM")
        assert dataset.DerivationCodeSequence[0].CodeValue == "113085"


@pytest.mark.parametrize(("count", "shift_mm"), [(4, 0.0), (1, 0.0), (5, 2.0)])
def test_slices_that_are_not_the_sources_own_name_all(count: int, shift_mm: float, tmp_path: Path) -> None:
    grid = grid_of()
    position = [float(n) for n in (grid.origin_mm + shift_mm).round(6)]
    source = Source("dicom", fake_header(ImagePositionPatient=position), instances("1.8", count))
    for dataset in written(volume_of("color", grid, source), tmp_path):
        assert referenced(dataset) == [f"1.8.{n}" for n in range(count)]


@pytest.mark.parametrize("options", [{}, {"grey_as": "parametric-map"}], ids=str)
def test_slices_made_of_two_name_all(options: dict[str, object], tmp_path: Path) -> None:
    """Five images 5, 5, 6 and 6 mm apart become five slices 5.5 mm apart, of which two alone lie on an image."""
    for name in ("gaps", "even"):
        grid = Grid.from_axes(SHAPE, (0, 0, 0), (5, 1.5, 1.25), np.eye(3)[:, ::-1], "1.2.826.0.1.999")
        write_series(volume_of("signed", grid), tmp_path / name, description=name, number=1)
    for path in (tmp_path / "gaps").iterdir():
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x, y, z + max(0, z - 10) / 5])
    gaps, even = medfuse.read(tmp_path / "gaps", allow_gaps=True), medfuse.read(tmp_path / "even")
    assert gaps.grid.spacing_mm[0] == pytest.approx(5.5)
    how = {"method": "average", "device": "cpu", "register": "none", "palette": "GREY"}
    results = {
        "converted": (gaps, 5),
        "below": (medfuse.fuse(gaps, even, **how), 5),
        "above": (medfuse.fuse(even, gaps, **how), 1),
        "on its grid": (medfuse.fuse(even, gaps, grid="functional", **how), 5),
    }
    for name, (volume, count) in results.items():
        own = {uid for _, uid in volume.source.instances}
        for dataset in objects(volume, tmp_path / name, **options):
            assert {len(own & set(referenced(one))) for one in derivations(dataset)} == {count}, name


def derivations(dataset: Dataset) -> list[Dataset]:
    """What refers to the sources of each slice or frame: the image, or an item of each frame or of all."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return [dataset]
    groups = [*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence]
    return [one for group in groups for one in group.get("DerivationImageSequence", ())]


def test_a_converted_mr_is_not_said_to_be_resampled(tmp_path: Path) -> None:
    dataset = written(volume_of("whole").derive("read"), tmp_path)[0]
    assert "DerivationCodeSequence" not in dataset
    assert "SourceImageSequence" not in dataset


@pytest.mark.parametrize("value", [-0.001, 1.001])
def test_fused_values_outside_the_range_are_refused(value: float, tmp_path: Path) -> None:
    volume = volume_of("fused")
    array = volume.array.copy()
    array[2, 3, 4] = value
    with pytest.raises(ValueError, match=r"fused values in \[0, 1\]"):
        write_dicom(replace(volume, array=array), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("outlier", "kept"), [(3.5, True), (250.0, True), (1e6, False), (-1e6, False)])
def test_a_voxel_far_out_does_not_flatten_the_others(outlier: float, kept: bool, tmp_path: Path) -> None:
    rng, shape = np.random.default_rng(5), (5, 20, 30)
    seconds = np.where(rng.random(shape) < 0.4, 0, rng.uniform(0.5, 3, shape))  # a map of T1
    seconds[2, 3, 4] = outlier
    volume = replace(volume_of("real"), array=seconds, grid=replace(grid_of(), shape=shape))
    if kept:
        write_dicom(volume, tmp_path)
        np.testing.assert_allclose(medfuse.read(tmp_path).array, seconds, rtol=0, atol=0.001 * 2.5)
        return
    with pytest.raises(OutputError, match="found some so far out that a step would be"):
        write_dicom(volume, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [(0.25, 0.25), (0.25, 0.75), (-0.5, 0.0)])
def test_one_or_two_values_are_kept_as_they_are(values: tuple[float, float], tmp_path: Path) -> None:
    array = np.full(SHAPE, values[0])
    array[2, 3, 4] = values[1]
    write_dicom(replace(volume_of("real"), array=array), tmp_path)
    np.testing.assert_allclose(medfuse.read(tmp_path).array, array, rtol=0, atol=1e-9)


def test_grey_pet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="found grey PT"):
        write_dicom(replace(volume_of("whole"), modality=Modality.PT, unit=Unit.SUV), tmp_path)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"fused-0001\.dcm, found: No such file or directory") as caught:
        write_dicom(volume_of("color"), tmp_path / "absent")
    assert str(tmp_path) not in str(caught.value)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "fused-0001.dcm").write_text("mine")
    with pytest.raises(OutputError, match="File exists"):
        write_dicom(volume_of("color"), tmp_path)
    assert (tmp_path / "fused-0001.dcm").read_text() == "mine"


@pytest.mark.parametrize("options", [{}, {"multiframe": True}, {"grey_as": "parametric-map"}], ids=str)
@pytest.mark.parametrize("kind", ["color", "fused"])
def test_the_software_is_named_with_version_and_weights(kind: str, options: dict[str, object], tmp_path: Path) -> None:
    volume = volume_of(kind, source=Source("dicom", fake_header()))
    volume = volume.derive("fuse", {"method": "dilran", "weights_sha256": "ab" * 32})
    item = objects(volume, tmp_path, **options)[0].ContributingEquipmentSequence[-1]
    assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert (item.Manufacturer, item.SoftwareVersions) == ("medfuse", medfuse.__version__)
    assert item.ContributionDescription == f"not for diagnostic use, method dilran, weights SHA-256 {'ab' * 32}"


@pytest.mark.parametrize(
    ("kind", "modality"), [("color", Modality.FUSED), ("fused", Modality.MR), ("whole", Modality.MR)]
)
def test_what_medfuse_reads_it_as(kind: str, modality: Modality, tmp_path: Path) -> None:
    volume = volume_of(kind)
    write_dicom(volume, tmp_path)
    found = medfuse.read(tmp_path)
    assert found.modality is modality
    assert found.grid.matches(volume.grid)
    np.testing.assert_array_equal(found.array, expected_values(volume))


def test_color_of_other_makers_is_not_taken_for_fused(tmp_path: Path) -> None:
    for dataset in written(volume_of("color"), tmp_path):
        dataset.Manufacturer = "someone"
        dataset.save_as(dataset.filename)
    assert medfuse.read(tmp_path).modality is Modality.OTHER
