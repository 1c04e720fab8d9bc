"""What lies beside a fused series, judged by SimpleITK, pydicom, highdicom and dciodvfy."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from phantoms import BALL, phantom
from programs import external
from pydicom import Dataset
from pydicom.pixels import apply_color_lut, apply_rescale
from pydicom.uid import NuclearMedicineImageStorage
from scipy.spatial.transform import Rotation

from medfuse.align import Transform, read_transform, resample
from medfuse.cli import app
from medfuse.color import apply_palette, parse_window
from medfuse.fusion import Engine
from medfuse.grid import Grid
from medfuse.io.dicom_companions import write_companions
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.dicom_provenance import source_references
from medfuse.io.dicom_uids import stable_uids
from medfuse.io.files import inspect, read
from medfuse.pipeline import fuse, write_fused
from medfuse.sample.series import Study, write_series
from medfuse.volume import Modality, Source, Volume

FRAME, OTHER = "1.2.826.0.1.999.1", "1.2.826.0.1.999.2"
#: From the structural world to the functional one; far from its own inverse.
POSE = np.eye(4)
POSE[:3, :3] = Rotation.from_rotvec((0.2, -0.3, 0.4)).as_matrix()
POSE[:3, 3] = (25, -14, 9)
#: How a patient may have moved.
NUDGE = np.eye(4)
NUDGE[:3, :3] = Rotation.from_rotvec((0.01, -0.02, 0.01)).as_matrix()
NUDGE[:3, 3] = (3, -4, 2)

#: What dciodvfy warns of and why it stays. The rest of what it says must be nothing.
ALLOWED = {
    r"Attribute is not present in standard DICOM IOD": "its table of this presentation state lacks what PS3.3 section "
    "C.11.33 names, modality, VOI and palette LUTs, and C.7.4.1, the frame of reference",
    r"this is a Standard Extended SOP Class": "follows from that",
    r"needed to build DICOMDIR": "the source states no Study ID, which is carried on as it is",
    r"Retired Person Name form": "the source's name has one component, which is carried on as it is",
    r"is only permitted to be empty when actually unknown": "the source says no laterality, so it is unknown",
    r"Unrecognized defined term.*SLSENS": "a term of the source that the standard's list does not have",
    r"CodingSchemeDesignator.*(is deprecated|SNM3)": "codes of the source, which are carried on as they are",
    r"Non-identity Modality LUT Module": "values that are no whole numbers are restored by it; MR readers apply it",
}


@pytest.fixture(scope="module")
def rule() -> Engine:
    return Engine("maximum", device="cpu")


def posed(volume: Volume, frame: str) -> Volume:
    """The same voxels where the pose brings them, in another frame of reference."""
    grid = volume.grid
    return replace(volume, grid=Grid(grid.shape, POSE @ grid.lps_from_index, frame))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """An MR, and a PET of the same body in another pose and frame of reference."""
    write_series(phantom(Modality.MR, (12, 18, 20), FRAME), tmp_path / "mr", description="MR", number=1)
    pet = posed(phantom(Modality.PT, (18, 20, 22), FRAME), OTHER)
    write_series(pet, tmp_path / "pet", description="PET", number=2)
    return tmp_path


@pytest.fixture
def fused(study: Path, rule: Engine) -> Volume:
    return fuse(study / "mr", study / "pet", transform=Transform(POSE), engine=rule)


def companions(fused: Volume, folder: Path) -> dict[str, Dataset]:
    folder.mkdir()
    return {path.stem: pydicom.dcmread(path) for path in write_companions(fused, folder, stable_uids(fused))}


def matrix_of(registration: Dataset, frame: str) -> NDArray[np.float64]:
    """The matrix of an item, read with pydicom alone."""
    (item,) = (item for item in registration.RegistrationSequence if item.FrameOfReferenceUID == frame)
    (matrix,) = item.MatrixRegistrationSequence[0].MatrixSequence
    return np.array(matrix.FrameOfReferenceTransformationMatrix, dtype=np.float64).reshape(4, 4)


def in_simpleitk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    reader.SetOutputPixelType(sitk.sitkFloat32)
    return reader.Execute()


def affine(matrix: NDArray[np.float64]) -> sitk.AffineTransform:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return transform


def middle_of_the_ball(image: sitk.Image) -> NDArray[np.float64]:
    """Where the hottest voxels lie, LPS mm."""
    values = sitk.GetArrayViewFromImage(image)
    hot = np.argwhere(values > 0.8 * values.max())[:, ::-1].tolist()
    return np.mean([image.TransformIndexToPhysicalPoint(index) for index in hot], axis=0)


def test_simpleitk_brings_the_functional_scan_to_the_structural_one(study: Path, fused: Volume) -> None:
    """PS3.3 section C.20.2.1.1: the matrix takes a point of its item's frame of reference into the registered one."""
    registration = companions(fused, study / "out")["registration"]
    assert registration.FrameOfReferenceUID == FRAME
    structural_from_functional = matrix_of(registration, OTHER)
    mr, pet = in_simpleitk(study / "mr"), in_simpleitk(study / "pet")
    assert np.linalg.norm(middle_of_the_ball(pet) - BALL) > 15
    there = sitk.Resample(pet, mr, affine(structural_from_functional).GetInverse())
    assert np.linalg.norm(middle_of_the_ball(there) - BALL) < 2
    astray = sitk.Resample(pet, mr, affine(structural_from_functional))
    assert not sitk.GetArrayViewFromImage(astray).any()  # the other way leads out of the field of view


def test_medfuse_takes_the_same_pose_from_it(study: Path, fused: Volume, tmp_path: Path) -> None:
    write_fused(fused, study / "out", "dicom")
    again = tmp_path / "again"
    app(
        [
            *("fuse", str(study / "mr"), str(study / "pet"), "-o", str(again), "--method", "maximum"),
            *("--device", "cpu", "--transform", str(study / "out" / "registration.dcm")),
        ],
        standalone_mode=False,
    )
    assert np.array_equal(read(again).array, read(study / "out").array)
    for out in (study / "out", again):
        found = read_transform(out / "registration.dcm", read(study / "mr").grid, read(study / "pet").grid)
        np.testing.assert_allclose(found.moving_from_fixed, POSE, rtol=0, atol=1e-11)


def test_on_the_functional_grid_it_leads_the_same_way(study: Path, rule: Engine) -> None:
    fused = fuse(study / "mr", study / "pet", transform=Transform(POSE), engine=rule, grid="functional")
    registration = companions(fused, study / "out")["registration"]
    assert registration.FrameOfReferenceUID == FRAME
    np.testing.assert_allclose(matrix_of(registration, OTHER), np.linalg.inv(POSE), rtol=0, atol=1e-11)
    np.testing.assert_array_equal(matrix_of(registration, FRAME), np.eye(4))


@pytest.mark.parametrize(("scale", "kind"), [(1.0, "RIGID"), (1.02, "AFFINE")])
def test_the_type_of_a_matrix_is_told(study: Path, rule: Engine, scale: float, kind: str) -> None:
    matrix = POSE @ np.diag([scale, 1, 1, 1])
    fused = fuse(study / "mr", study / "pet", transform=Transform(matrix), engine=rule)
    registration = companions(fused, study / "out")["registration"]
    item = registration.RegistrationSequence[1].MatrixRegistrationSequence[0]
    assert item.MatrixSequence[0].FrameOfReferenceTransformationMatrixType == kind
    assert item.RegistrationTypeCodeSequence == []  # a matrix that was given says not how it was found


def test_scans_of_one_frame_that_were_moved_are_registered_by_their_images(tmp_path: Path, rule: Engine) -> None:
    write_series(phantom(Modality.MR, (12, 18, 20), FRAME), tmp_path / "mr", description="MR", number=1)
    write_series(phantom(Modality.PT, (9, 10, 12), FRAME), tmp_path / "pet", description="PET", number=2)
    fused = fuse(tmp_path / "mr", tmp_path / "pet", transform=Transform(POSE), engine=rule)
    registration = companions(fused, tmp_path / "out")["registration"]
    assert not any("FrameOfReferenceUID" in item for item in registration.RegistrationSequence)
    images = [len(item.ReferencedImageSequence) for item in registration.RegistrationSequence]
    assert images == [12, 9]


def test_scans_of_one_frame_that_were_not_moved_need_no_registration(tmp_path: Path, rule: Engine) -> None:
    write_series(phantom(Modality.MR, (12, 18, 20), FRAME), tmp_path / "mr", description="MR", number=1)
    write_series(phantom(Modality.PT, (9, 10, 12), FRAME), tmp_path / "pet", description="PET", number=2)
    blending = companions(fuse(tmp_path / "mr", tmp_path / "pet", engine=rule), tmp_path / "out")
    assert list(blending) == ["blending"]
    assert "ReferencedSpatialRegistrationSequence" not in blending["blending"].AdvancedBlendingSequence[1]


@pytest.mark.parametrize("change", ["deformable", "from nifti", "no frame"])
def test_what_cannot_be_said_is_not_written(fused: Volume, tmp_path: Path, change: str) -> None:
    if change == "deformable":
        align, last = fused.history
        fused = replace(fused, history=(replace(align, parameters={**align.parameters, "deformable": True}), last))
    elif change == "from nifti":
        fused = replace(fused, source=replace(fused.source, also=(Source("nifti"),)))
    else:
        del fused.source.header.FrameOfReferenceUID
    assert companions(fused, tmp_path / "out") == {}


def test_a_scan_that_was_resampled_before_does_not_lie_where_its_files_say(study: Path, rule: Engine) -> None:
    mr, pet = read(study / "mr"), read(study / "pet")
    laid = resample(pet, mr.grid, Transform(POSE))
    for grid in ("structural", "functional"):
        assert companions(fuse(mr, laid, grid=grid, engine=rule), study / grid) == {}


def test_of_a_file_of_several_volumes_the_frames_that_were_fused_are_named(fused: Volume, tmp_path: Path) -> None:
    source = fused.source
    used = ((3, 4), *((),) * (len(source.instances) - 1))
    written = companions(replace(fused, source=replace(source, frames=used)), tmp_path / "out")
    named = [
        written["registration"].RegistrationSequence[0].ReferencedImageSequence,
        written["blending"].AdvancedBlendingSequence[0].ReferencedImageSequence,
        written["blending"].SourceImageSequence,
        source_references(replace(source, frames=used)),
    ]
    for first, second, *_ in named:
        assert list(first.ReferencedFrameNumber) == [3, 4]
        assert "ReferencedFrameNumber" not in second


# Blending


def shown_by(item: Dataset, image: Dataset) -> NDArray[np.uint8]:
    """What an item of a blending shows of one of its images, by pydicom: rescaling, window, palette (PS3.4 N.2)."""
    steps = Dataset()
    steps.update({element.tag: element for element in item if element.keyword.startswith("Rescale")})
    for window in item.SoftcopyVOILUTSequence:
        of = [one.ReferencedSOPInstanceUID for one in window.get("ReferencedImageSequence", ())]
        if not of or image.SOPInstanceUID in of:
            steps.WindowCenter, steps.WindowWidth = window.WindowCenter, window.WindowWidth
            steps.VOILUTFunction = window.VOILUTFunction
    steps.PhotometricInterpretation = "MONOCHROME2"
    steps.BitsStored, steps.PixelRepresentation = image.BitsStored, image.PixelRepresentation
    values = apply_rescale(image.pixel_array, steps).astype(np.float64)
    center, width = float(steps.WindowCenter), float(steps.WindowWidth)
    assert steps.VOILUTFunction == "LINEAR_EXACT"
    grey = np.clip((values - center) / width + 0.5, 0, 1)  # PS3.3 section C.11.2.1.3.2
    colors = apply_color_lut(np.rint(255 * grey).astype(np.uint8), item.PaletteColorLookupTableSequence[0])
    return (colors >> 8).astype(np.uint8)


@pytest.mark.parametrize(("palette", "window"), [("HOT_IRON", "0:10"), ("PET", "0.5:4"), ("GREY", "1%:95%")])
def test_it_shows_what_was_fused(study: Path, rule: Engine, palette: str, window: str) -> None:
    """Slope for slope: the PET's differ, so that each of its images needs a window of its own."""
    scans = {"mr": read(study / "mr"), "pet": read(study / "pet")}
    fused = fuse(*scans.values(), transform=Transform(POSE), engine=rule, palette=palette, window=window)
    blending = companions(fused, study / "out")["blending"]
    said = fused.history[-1].parameters
    for item, (name, scan), place, colors in zip(
        blending.AdvancedBlendingSequence, scans.items(), ("structural", "functional"), ("GREY", palette), strict=True
    ):
        images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, (study / name).iterdir())}
        for k, (_, instance) in enumerate(scan.source.instances):
            expected = apply_palette(parse_window(said[place]["window"]).apply(scan.array[k]), colors)
            found = shown_by(item, images[instance])
            assert np.mean(np.abs(found.astype(int) - expected) > 3) < 0.01, (name, k)
    assert len(blending.AdvancedBlendingSequence[0].SoftcopyVOILUTSequence) == 1
    assert len(blending.AdvancedBlendingSequence[1].SoftcopyVOILUTSequence) == 18


def test_the_functional_scan_is_the_foreground(fused: Volume, tmp_path: Path) -> None:
    written = companions(fused, tmp_path / "out")
    blending, registration = written["blending"], written["registration"]
    assert blending.SOPClassUID == pydicom.uid.AdvancedBlendingPresentationStateStorage
    (display,) = blending.BlendingDisplaySequence
    assert (display.BlendingMode, display.RelativeOpacity) == ("FOREGROUND", 0.5)
    assert [item.BlendingInputNumber for item in display.BlendingDisplayInputSequence] == [2, 1]
    structural, functional = blending.AdvancedBlendingSequence
    assert "ReferencedSpatialRegistrationSequence" not in structural
    (place,) = functional.ReferencedSpatialRegistrationSequence
    (series,) = place.ReferencedSeriesSequence
    assert place.StudyInstanceUID == registration.StudyInstanceUID
    assert series.SeriesInstanceUID == registration.SeriesInstanceUID
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == registration.SOPInstanceUID
    assert functional.PaletteColorLookupTableSequence[0].PaletteColorLookupTableUID == "1.2.840.10008.1.5.1"


@pytest.mark.parametrize("options", [DicomOptions(), DicomOptions(multiframe=True)], ids=["single", "multi-frame"])
def test_color_needs_neither_window_nor_palette(
    study: Path, rule: Engine, tmp_path: Path, options: DicomOptions
) -> None:
    write_fused(fuse(study / "mr", study / "mr", engine=rule, palette="PET"), tmp_path / "grey", "dicom")
    color = fuse(study / "mr", study / "pet", transform=Transform(POSE), engine=rule)
    write_fused(color, tmp_path / "color", "dicom", companions=False, dicom=options)
    blending = companions(fuse(study / "mr", tmp_path / "color", engine=rule), tmp_path / "out")["blending"]
    assert "PaletteColorLookupTableSequence" in blending.AdvancedBlendingSequence[0]
    assert "PaletteColorLookupTableSequence" not in blending.AdvancedBlendingSequence[1]
    assert "SoftcopyVOILUTSequence" not in blending.AdvancedBlendingSequence[1]


@pytest.mark.parametrize("is_color", [False, True])
def test_a_scan_may_lie_in_several_multi_frame_files(
    study: Path, rule: Engine, fused: Volume, tmp_path: Path, is_color: bool
) -> None:
    """Windows of stored values stand beside a rescaling that leaves these as they are; colour has neither."""
    if is_color:
        write_fused(fused, tmp_path / "color", "dicom", companions=False)
        fused = fuse(study / "mr", tmp_path / "color", engine=rule)
    (functional,) = fused.source.also
    instances = tuple((NuclearMedicineImageStorage, uid) for _, uid in functional.instances)
    fused = replace(fused, source=replace(fused.source, also=(replace(functional, instances=instances),)))
    item = companions(fused, tmp_path / "out")["blending"].AdvancedBlendingSequence[1]
    assert [one.ReferencedSOPInstanceUID for one in item.ReferencedImageSequence] == [uid for _, uid in instances]
    assert len(item.get("SoftcopyVOILUTSequence", [])) == (0 if is_color else len(instances))
    rescaling = {keyword: item.get(f"Rescale{keyword}") for keyword in ("Slope", "Intercept")}
    assert rescaling == ({"Slope": None, "Intercept": None} if is_color else {"Slope": 1, "Intercept": 0})


# Both


def test_they_are_of_the_study_of_the_fused_series(fused: Volume, study: Path) -> None:
    write_fused(fused, study / "out", "dicom")
    slices = [pydicom.dcmread(path) for path in sorted((study / "out").glob("fused-*.dcm"))]
    both = [pydicom.dcmread(study / "out" / f"{name}.dcm") for name in ("registration", "blending")]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate", "StudyID"):
        assert len({str(dataset.get(keyword)) for dataset in (*slices, *both)}) == 1, keyword
    assert len({dataset.SeriesInstanceUID for dataset in (*slices, *both)}) == 3
    assert [dataset.SeriesNumber for dataset in both] == [1101, 1201]
    for dataset in both:
        assert "not for diagnostic use" in dataset.SeriesDescription
        of = {item.SeriesInstanceUID: len(item.ReferencedInstanceSequence) for item in dataset.ReferencedSeriesSequence}
        assert sorted(of.values()) == ([12, 18] if dataset.Modality == "REG" else [1, 12, 18])
        roles = [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in dataset.ContributingEquipmentSequence]
        assert roles == ["109101", "109101", "109102"]
        assert [element.tag for element in dataset.iterall() if element.tag.is_private] == []


def test_scans_of_two_studies_are_told_apart(study: Path, rule: Engine) -> None:
    other = Study(study_instance_uid="1.2.3.4.5")
    pet = posed(phantom(Modality.PT, (9, 10, 12), FRAME), OTHER)
    write_series(pet, study / "other", description="PET", number=2, study=other)
    fused = fuse(study / "mr", study / "other", transform=Transform(POSE), engine=rule)
    written = companions(fused, study / "out")
    mr = read(study / "mr").source.header.StudyInstanceUID
    for dataset in written.values():
        assert dataset.StudyInstanceUID == mr
        (elsewhere,) = dataset.StudiesContainingOtherReferencedInstancesSequence
        assert elsewhere.StudyInstanceUID == "1.2.3.4.5"
        assert len(elsewhere.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 9
    assert [item.StudyInstanceUID for item in written["blending"].AdvancedBlendingSequence] == [mr, "1.2.3.4.5"]


def test_the_folder_still_holds_one_scan(fused: Volume, study: Path) -> None:
    write_fused(fused, study / "out", "dicom")
    assert np.array_equal(read(study / "out").array, fused.array)
    found = inspect(study / "out")
    assert len(found.series) == 1
    assert len(found.left_out) == 2


def test_leave_to_replace_holds_for_a_run_without_them(fused: Volume, study: Path) -> None:
    write_fused(fused, study / "out", "both")
    written = write_fused(fused, study / "out", "both", companions=False, overwrite=True)
    assert {path.name for path in (study / "out" / "dicom").iterdir()} == {path.name for path in written[2:]}
    assert not any(path.name in ("registration.dcm", "blending.dcm") for path in written)


def test_a_doubtful_registration_is_named(fused: Volume, tmp_path: Path) -> None:
    align, last = fused.history
    doubt = {**align.parameters, "registered": True, "trust": "doubtful"}
    written = companions(replace(fused, history=(replace(align, parameters=doubt), last)), tmp_path / "out")
    assert all("(doubtful match)" in dataset.SeriesDescription for dataset in written.values())
    item = written["registration"].RegistrationSequence[1].MatrixRegistrationSequence[0]
    assert item.RegistrationTypeCodeSequence[0].CodeValue == "125024"  # image content-based alignment


def test_stable_uids_name_every_object_once(fused: Volume, tmp_path: Path) -> None:
    one, two = (companions(fused, tmp_path / name) for name in ("one", "two"))
    assert [d.SOPInstanceUID for d in one.values()] == [d.SOPInstanceUID for d in two.values()]
    uids = [uid for d in one.values() for uid in (d.SOPInstanceUID, d.SeriesInstanceUID)]
    assert len(set(uids)) == 4


def complaints(path: Path) -> list[str]:
    """What dciodvfy says beyond what is allowed, under its older and its newer reading of the standard."""
    runs = [
        subprocess.run([external("dciodvfy"), *options, path], capture_output=True, text=True, check=False)
        for options in ([], ["-new"])
    ]
    lines = [line for run in runs for line in (run.stdout + run.stderr).splitlines()]
    told = [line for line in lines if line.startswith(("Error", "Warning"))]
    assert len(told) < len(lines)  # it also names the kind of object that it knows it to be
    return [line for line in told if not any(re.search(each, line) for each in ALLOWED)]


def test_dciodvfy_finds_nothing_in_them(fused: Volume, study: Path) -> None:
    write_fused(fused, study / "out", "dicom")
    for name in ("registration", "blending"):
        assert complaints(study / "out" / f"{name}.dcm") == []


@pytest.mark.parametrize("patient", ["STS_003", "STS_051"])
@pytest.mark.parametrize(("structural", "functional"), [("MR_T1", "PET"), ("CT", "PET"), ("MR_T1", "CT")])
@pytest.mark.parametrize("pose", [None, NUDGE], ids=["in place", "moved"])
def test_dciodvfy_finds_nothing_in_those_of_real_scans(
    shared: Path, tmp_path: Path, rule: Engine, patient: str, structural: str, functional: str, pose: NDArray | None
) -> None:
    folder = shared / "ibsi-sts" / "dicom" / patient
    one, other = read(folder / structural), read(folder / functional)
    middle = Grid.from_axes((1, 8, 8), one.grid.center_mm, (5, 5, 5), one.grid.direction, one.grid.frame_of_reference)
    transform = None if pose is None else Transform(pose)
    fused = fuse(one, other, transform=transform, engine=rule, grid=middle, register="auto" if transform else "none")
    written = write_companions(fused, tmp_path, stable_uids(fused))
    assert [path.stem for path in written] == ["registration"] * (pose is not None) + ["blending"]
    assert [line for path in written for line in complaints(path)] == []


def test_highdicom_reads_the_palettes(fused: Volume, tmp_path: Path) -> None:
    blending = companions(fused, tmp_path / "out")["blending"]
    for item in blending.AdvancedBlendingSequence:
        palette = item.PaletteColorLookupTableSequence[0]
        found = highdicom.PaletteColorLUTTransformation.extract_from_dataset(palette)
        assert (found.red_lut.number_of_entries, found.red_lut.bits_per_entry) == (256, 16)
