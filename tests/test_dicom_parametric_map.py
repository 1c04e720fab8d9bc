"""Grey as a Parametric Map, judged by dciodvfy, highdicom, dcm2niix and pydicom; and maps of others, read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
from agreement import assert_agrees_with_nifti
from derived import SHAPE, expected_values, fake_header, grid_of, instances, objects, unexplained, volume_of
from programs import dcm2niix
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ParametricMapStorage

from medfuse.errors import OutputError, UnsupportedImage
from medfuse.grid import Grid
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.files import read, write
from medfuse.volume import Modality, Source, Unit, Volume

GREY = ("fused", "whole", "signed", "real")


@pytest.fixture(params=[False, True], ids=["right-handed", "left-handed"])
def grid(request: pytest.FixtureRequest) -> Grid:
    return grid_of(left_handed=request.param)


def one(volume: Volume, folder: Path) -> Dataset:
    (dataset,) = objects(volume, folder, grey_as="parametric-map")
    return dataset


def source(**attributes: object) -> Source:
    return Source("dicom", fake_header(SeriesInstanceUID="1.8", **attributes), instances("1.8", 5))


def along(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Places in mm, (K, J, I, 3), and float32 values, slices along the normal."""
    flipped = np.linalg.det(volume.grid.lps_from_index[:3, 2::-1]) < 0
    places = volume.grid.points_mm(list(np.ndindex(SHAPE))).reshape(*SHAPE, 3)
    step = -1 if flipped else 1
    return places[::step], volume.array[::step].astype(np.float32)


@pytest.mark.parametrize("kind", GREY)
@pytest.mark.parametrize(
    "of",
    [
        Source("nifti"),
        source(),
        source(BodyPartExamined="BRAIN", Laterality="L"),
        source(BodyPartExamined=None, Laterality=None),
        source(SOPClassUID=CTImageStorage, Modality="CT", FrameOfReferenceUID="1.2.3"),
    ],
    ids=["no header", "knee", "brain", "unknown", "ct"],
)
def test_dciodvfy_finds_nothing_that_is_not_explained(kind: str, of: Source, tmp_path: Path) -> None:
    one(volume_of(kind, source=of), tmp_path)
    assert unexplained([tmp_path / "fused.dcm"]) == set()


@pytest.mark.parametrize("kind", GREY)
def test_highdicom_reads_the_same_volume(kind: str, grid: Grid, tmp_path: Path) -> None:
    volume = volume_of(kind, grid)
    one(volume, tmp_path)
    found = highdicom.pm.ParametricMap.from_file(tmp_path / "fused.dcm").get_volume()
    kji = np.c_[list(np.ndindex(SHAPE)), np.ones(np.prod(SHAPE))]
    found_mm = (kji @ found.affine.T)[:, :3].reshape(*SHAPE, 3)
    places, values = along(volume)
    step = -1 if np.linalg.norm(found_mm[0] - places[0]) > 1 else 1
    np.testing.assert_allclose(found_mm[::step], places, atol=1e-6)
    np.testing.assert_array_equal(found.array[::step].astype(np.float32), values)


def test_dcm2niix_reads_the_same_volume(grid: Grid, tmp_path: Path) -> None:
    volume = volume_of("fused", grid)
    one(volume, tmp_path / "dicom")
    (file,) = dcm2niix(tmp_path / "dicom", tmp_path / "nifti")
    assert_agrees_with_nifti(replace(volume, array=volume.array.astype(np.float32)), file, tolerance=0)


@pytest.mark.parametrize("kind", GREY)
def test_medfuse_reads_it_again(kind: str, grid: Grid, tmp_path: Path) -> None:
    volume = volume_of(kind, grid)
    write(volume, tmp_path / "out", dicom=DicomOptions(grey_as="parametric-map"))
    found = read(tmp_path / "out")
    places, values = along(volume)
    assert (found.modality, found.unit) == (volume.modality, Unit.ARBITRARY)
    np.testing.assert_array_equal(found.array, values)
    np.testing.assert_allclose(found.grid.points_mm(list(np.ndindex(SHAPE))), places.reshape(-1, 3), atol=1e-6)


def test_a_fused_map_read_again_can_be_written_as_mr(tmp_path: Path) -> None:
    volume = volume_of("fused")
    write(volume, tmp_path / "map", dicom=DicomOptions(grey_as="parametric-map"))
    images = objects(read(tmp_path / "map"), tmp_path / "mr")
    np.testing.assert_array_equal(np.stack([image.pixel_array for image in images]), expected_values(volume))


def test_fused_values_have_no_unit(tmp_path: Path) -> None:
    dataset = one(volume_of("fused", source=source()), tmp_path)
    assert dataset.SOPClassUID == ParametricMapStorage
    assert (dataset.Modality, dataset.ContentLabel, dataset.ContentQualification) == ("OT", "FUSED", "RESEARCH")
    assert list(dataset.ImageType) == ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    unit = mapping.MeasurementUnitsCodeSequence[0]
    assert (unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning) == ("1", "UCUM", "no units")
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert "neither HU nor SUV" in mapping.LUTExplanation
    (window,) = shared.FrameVOILUTSequence
    assert (window.WindowCenter, window.WindowWidth, window.VOILUTFunction) == (0.5, 1, "LINEAR_EXACT")
    assert shared.PixelValueTransformationSequence[0].RescaleType == "US"
    assert "not for diagnostic use" in dataset.SeriesDescription
    assert dataset.DerivationCodeSequence[0].CodeValue == "113085"
    assert [element.tag for element in dataset.iterall() if element.tag.is_private] == []


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"BodyPartExamined": "KNEE", "Laterality": "L"}, (codes.cid4031.Knee.value, "L")),
        ({"BodyPartExamined": "BRAIN", "Laterality": "L"}, (codes.SCT.Brain.value, "U")),
        ({"BodyPartExamined": "WHOLEBODY", "Laterality": None}, (codes.cid4031.EntireBody.value, "U")),
        ({"BodyPartExamined": "NO SUCH PART", "Laterality": None}, (codes.SCT.AnatomicalStructure.value, "U")),
    ],
)
def test_region_and_side(attributes: dict[str, str], expected: tuple[str, str], tmp_path: Path) -> None:
    dataset = one(volume_of("fused", source=source(**attributes)), tmp_path)
    (anatomy,) = dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence
    assert (anatomy.AnatomicRegionSequence[0].CodeValue, anatomy.FrameLaterality) == expected
    assert "Laterality" not in dataset


@pytest.mark.parametrize(
    ("said", "expected"),
    [((None,), "YES"), (("NO",), "NO"), (("NO", "NO"), "NO"), (("NO", "YES"), "YES"), (("NO", None), "YES")],
    ids=str,
)
def test_a_face_may_be_seen_unless_all_sources_say_that_none_is(
    said: tuple[str | None, ...], expected: str, tmp_path: Path
) -> None:
    first, *others = (source(RecognizableVisualFeatures=word) for word in said)
    dataset = one(volume_of("fused", source=replace(first, also=tuple(others))), tmp_path)
    assert dataset.RecognizableVisualFeatures == expected


@pytest.mark.parametrize(
    ("modality", "unit"), [(Modality.CT, Unit.HU), (Modality.PT, Unit.SUV), (Modality.NM, Unit.BQML)]
)
def test_values_that_have_a_unit_are_refused(modality: Modality, unit: Unit, tmp_path: Path) -> None:
    volume = replace(volume_of("whole"), modality=modality, unit=unit)
    with pytest.raises(OutputError, match=f"found {modality.value} in {unit.value}"):
        write(volume, tmp_path / "out", dicom=DicomOptions(grey_as="parametric-map"))


def foreign(folder: Path) -> None:
    """A map of highdicom's own making, of whole numbers, over images of ours: value = stored / 4 - 3."""
    images = objects(volume_of("whole", source=source()), folder / "images")
    mapping = highdicom.pm.RealWorldValueMapping(
        "MAP", "a map", codes.UCUM.NoUnits, (0, 65535), slope=0.25, intercept=-3.0
    )
    pm = highdicom.pm.ParametricMap(
        source_images=images,
        pixel_array=np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE),
        series_instance_uid=highdicom.UID(),
        series_number=9,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="someone",
        manufacturer_model_name="something",
        software_versions="1",
        device_serial_number="1",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[highdicom.VOILUTTransformation(100, 200)],
    )
    (folder / "map").mkdir()
    pm.save_as(folder / "map" / "map.dcm")


def test_a_map_of_others_is_read_in_real_world_values(tmp_path: Path) -> None:
    foreign(tmp_path)
    found = read(tmp_path / "map")
    assert (found.modality, found.unit) == (Modality.OTHER, Unit.ARBITRARY)
    stored = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    np.testing.assert_array_equal(found.array, stored * 0.25 - 3)


def test_a_map_without_a_linear_mapping_is_refused(tmp_path: Path) -> None:
    dataset = one(volume_of("fused"), tmp_path)
    del dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0].RealWorldValueSlope
    dataset.save_as(tmp_path / "fused.dcm")
    with pytest.raises(UnsupportedImage, match="one linear real world value mapping in the parametric map"):
        read(tmp_path)
