"""The functional scan on the grid of the fused series: right values at the right places, in a valid object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from edits import change_all
from phantoms import phantom
from test_dicom_companions import NUDGE, OTHER, POSE, affine, complaints, in_simpleitk, posed

from medfuse.align import Transform
from medfuse.alignment import align
from medfuse.cli import app
from medfuse.errors import InputError, OutputError, UnsupportedImage
from medfuse.fusion import Engine
from medfuse.grid import Grid
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.files import read
from medfuse.pipeline import fuse, resampled, write_fused
from medfuse.sample.series import write_series
from medfuse.volume import Modality, Source, Unit, Volume

FRAME = "1.2.826.0.1.999.1"
KEY = b"0123456789abcdef"


@pytest.fixture(scope="module")
def rule() -> Engine:
    return Engine("maximum", device="cpu")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """An MR, and a PET and a CT of the same body in another pose and frame of reference."""
    write_series(phantom(Modality.MR, (12, 18, 20), FRAME), tmp_path / "mr", description="MR", number=1)
    for number, modality in ((2, Modality.PT), (3, Modality.CT)):
        volume = posed(phantom(modality, (18, 20, 22), FRAME), OTHER)
        write_series(volume, tmp_path / modality.value, description=modality.value, number=number)
    return tmp_path


def written(mr: Volume, functional: Volume, rule: Engine, out: Path, format: str = "dicom", **how: object) -> Volume:
    """What was moved, written beside what was fused."""
    alignment = align(mr, functional, transform=Transform(POSE))
    fused = fuse(mr, functional, transform=alignment, engine=rule)
    moved = resampled(functional, fused, alignment)
    write_fused(fused, out, format, resampled=moved, **how)
    return moved


@pytest.mark.parametrize(("modality", "unit"), [("PT", Unit.SUV), ("CT", Unit.HU), ("NM", Unit.COUNTS)])
def test_it_keeps_its_values_and_its_unit(study: Path, rule: Engine, modality: str, unit: Unit) -> None:
    functional = read(study / ("PT" if modality == "NM" else modality))
    if modality == "NM":
        functional = replace(functional, modality=Modality.NM, unit=Unit.COUNTS)
    moved = written(read(study / "mr"), functional, rule, study / "out")
    found = read(study / "out" / "resampled")
    assert (found.modality.value, found.unit) == (modality, unit)
    assert found.grid.matches(moved.grid)
    assert found.grid.frame_of_reference == FRAME
    step = {"PT": float(moved.array.max()) / 65535, "CT": 1, "NM": 0}[modality]
    np.testing.assert_allclose(found.array, moved.array, rtol=0, atol=0.51 * step)


def test_what_the_values_were_acquired_with_goes_with_them(tmp_path: Path, rule: Engine) -> None:
    """Not the patient's weight on the day of the MR, nor the MR's protocol where another MR lies on it."""
    for name, modality, number in (("mr", Modality.MR, 1), ("pt", Modality.PT, 2), ("dwi", Modality.MR, 3)):
        write_series(phantom(modality, (12, 18, 20), FRAME), tmp_path / name, description=name, number=number)
    change_all(tmp_path / "mr", lambda one: setattrs(one, PatientWeight="120", EchoTime="12", ContrastBolusAgent="GD"))
    change_all(tmp_path / "pt", lambda one: setattrs(one, PatientWeight="66.2", PatientSize=None))
    change_all(tmp_path / "dwi", lambda one: setattrs(one, EchoTime="95", MagneticFieldStrength="1.5"))
    mr = read(tmp_path / "mr")
    for name in ("pt", "dwi"):
        written(mr, read(tmp_path / name), rule, tmp_path / f"on-{name}")
    pet, dwi = (pydicom.dcmread(tmp_path / f"on-{name}" / "resampled" / "resampled-0001.dcm") for name in ("pt", "dwi"))
    assert (pet.PatientWeight, pet.get("PatientSize")) == (66.2, None)
    assert (dwi.EchoTime, dwi.MagneticFieldStrength, dwi.get("ContrastBolusAgent")) == (95, 1.5, None)


def test_of_a_scan_that_says_nothing_nothing_is_made_up(tmp_path: Path, rule: Engine) -> None:
    write_series(phantom(Modality.MR, (12, 18, 20), FRAME), tmp_path / "mr", description="mr", number=1)
    change_all(tmp_path / "mr", lambda one: setattrs(one, EchoTime="12", ContrastBolusAgent="GD"))
    written(read(tmp_path / "mr"), phantom(Modality.MR, (12, 18, 20), FRAME), rule, tmp_path / "out")
    found = pydicom.dcmread(tmp_path / "out" / "resampled" / "resampled-0001.dcm")
    assert (found.get("EchoTime"), found.get("ContrastBolusAgent")) == (None, None)


def two_beds(start: datetime, **attributes: object) -> Callable[[pydicom.Dataset], None]:
    """A change of slices as of two beds, 40 minutes apart, the upper one first; all are corrected to `start`."""

    def change(one: pydicom.Dataset) -> None:
        one.SeriesDate, one.SeriesTime = start.strftime("%Y%m%d"), start.strftime("%H%M%S")
        second = one.ImagePositionPatient[2] < 40
        begin = start + timedelta(minutes=40 * second)
        one.AcquisitionTime = begin.strftime("%H%M%S")
        one.DecayFactor = None
        one.FrameReferenceTime = 0
        setattrs(one, **{name: value[second] if type(value) is tuple else value for name, value in attributes.items()})

    return change


#: Mean of the activity in a frame of 10 minutes, half-life 6586.2 s: seconds after its start, see `dicom_suv`.
MEAN_S = 298.4


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"SeriesTime": "233000", "DecayFactor": (2 ** (MEAN_S / 6586.2), 2 ** ((2400 + MEAN_S) / 6586.2))},
        {"SeriesTime": "233000", "FrameReferenceTime": (1000 * MEAN_S, 1000 * (2400 + MEAN_S))},
        {"DecayCorrection": "ADMIN", "DecayFactor": (1.5, 1.9)},
    ],
    ids=["series time", "decay factor", "frame reference time", "injection"],
)
def test_activity_reads_back_with_the_same_factor_to_suv(
    study: Path, rule: Engine, attributes: dict[str, object]
) -> None:
    pet = replace(read(study / "PT"), unit=Unit.BQML)
    write_series(pet, study / "bqml", description="PT", number=4)
    start = datetime.strptime(pydicom.dcmread(next((study / "bqml").iterdir())).SeriesTime, "%H%M%S")
    change_all(study / "bqml", two_beds(start.replace(2024, 1, 15), **attributes))
    assert len({pydicom.dcmread(path).AcquisitionTime for path in (study / "bqml").iterdir()}) == 2
    factor = suv_step(read(study / "bqml"))["factor"]
    moved = written(read(study / "mr"), read(study / "bqml", units="native"), rule, study / "out")
    assert moved.unit is Unit.BQML
    found = read(study / "out" / "resampled")
    assert suv_step(found)["factor"] == pytest.approx(factor, rel=1e-9)
    np.testing.assert_allclose(found.array, moved.array * factor, rtol=0, atol=1e-4 * found.array.max())
    assert complaints(study / "out" / "resampled" / "resampled-0001.dcm") == []


def suv_step(volume: Volume) -> Mapping[str, Any]:
    (parameters,) = (step.parameters for step in volume.history if step.name == "suv")
    return parameters


@pytest.mark.parametrize("deidentify", [None, KEY])
def test_where_nothing_tells_the_time_of_the_values_nobody_makes_suv(
    study: Path, rule: Engine, deidentify: bytes | None
) -> None:
    write_series(replace(read(study / "PT"), unit=Unit.BQML), study / "bqml", description="PT", number=4)
    if deidentify is None:
        change_all(study / "bqml", lambda one: setattrs(one, DecayFactor=7))  # contradicts the times
    pet = read(study / "bqml", units="native")
    written(read(study / "mr"), pet, rule, study / "out", deidentify=deidentify)
    path = study / "out" / "resampled" / "resampled-0001.dcm"
    image = pydicom.dcmread(path)
    (tracer,) = image.RadiopharmaceuticalInformationSequence
    assert (image.DecayCorrection, image.AcquisitionTime, "RadionuclideTotalDose" in tracer) == ("START", "", False)
    with pytest.raises(InputError, match="for SUV, found none"):
        read(path.parent, units="suv")
    assert complaints(path) == []


def setattrs(dataset: pydicom.Dataset, **attributes: object) -> None:
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)


@pytest.mark.parametrize("number", [2**31 - 1, 2**31 - 400])
def test_a_series_number_at_its_bound_is_no_obstacle(study: Path, rule: Engine, number: int) -> None:
    written(read(study / "mr"), read(study / "PT"), rule, study / "out", dicom=DicomOptions(series_number=number))
    found = pydicom.dcmread(study / "out" / "resampled" / "resampled-0001.dcm").SeriesNumber
    assert found == min(number + 300, 2**31 - 1)


def test_simpleitk_resamples_to_the_same_values(study: Path, rule: Engine) -> None:
    written(read(study / "mr"), read(study / "PT"), rule, study / "out")
    pet, mr = in_simpleitk(study / "PT"), in_simpleitk(study / "mr")
    expected = sitk.GetArrayFromImage(sitk.Resample(pet, mr, affine(POSE)))
    found = sitk.GetArrayFromImage(in_simpleitk(study / "out" / "resampled"))
    inside = expected > 0
    factor = read(study / "PT").array.max() / sitk.GetArrayViewFromImage(pet).max()
    assert np.corrcoef(found[inside], expected[inside] * factor)[0, 1] > 0.99


def test_it_is_a_derived_series_of_the_same_study(study: Path, rule: Engine) -> None:
    written(read(study / "mr"), read(study / "PT"), rule, study / "out")
    fused = pydicom.dcmread(study / "out" / "fused-0001.dcm")
    images = [pydicom.dcmread(path) for path in sorted((study / "out" / "resampled").iterdir())]
    assert len(images) == 12
    assert [image.ImageIndex for image in images] == list(range(1, 13))
    for image in images:
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "StudyDate"):
            assert image[keyword].value == fused[keyword].value, keyword
        assert (image.Modality, image.Units, image.SUVType) == ("PT", "GML", "BW")
        assert image.ImageType[0] == "DERIVED"
        assert image.SeriesNumber == 1301
        assert image.SeriesDescription == "medfuse PT resampled - not for diagnostic use"
        assert len(image.SourceImageSequence) == 18  # those of the PET: the MR gave its grid alone
        assert image.DerivationCodeSequence[0].CodeValue == "113085"
    assert len({image.SeriesInstanceUID for image in images} | {fused.SeriesInstanceUID}) == 2
    assert len({image.SOPInstanceUID for image in images}) == 12


@pytest.mark.parametrize("format", ["dicom", "nifti", "both"])
def test_every_format_holds_it(study: Path, rule: Engine, format: str) -> None:
    moved = written(read(study / "mr"), read(study / "PT"), rule, study / "out", format)
    found = {"dicom": ["resampled"], "nifti": ["resampled.nii.gz"], "both": ["resampled.nii.gz", "dicom/resampled"]}
    for name in found[format]:
        np.testing.assert_allclose(read(study / "out" / name).array, moved.array, rtol=0, atol=1e-4)
    assert (study / "out" / "resampled").exists() == (format == "dicom")


def test_a_run_without_it_replaces_one_with_it(study: Path, rule: Engine) -> None:
    written(read(study / "mr"), read(study / "PT"), rule, study / "out")
    write_fused(fuse(study / "mr", study / "PT", transform=Transform(POSE), engine=rule), study / "out", overwrite=True)
    assert not (study / "out" / "resampled").exists()


@pytest.mark.parametrize("before", ["nifti", "both"])
def test_a_run_in_one_format_replaces_one_in_another(study: Path, rule: Engine, before: str) -> None:
    mr, pet = read(study / "mr"), read(study / "PT")
    for format in (before, "dicom"):
        written(mr, pet, rule, study / "out", format, overwrite=True)
    assert {path.name for path in (study / "out").iterdir()} >= {"fused-0001.dcm", "resampled"}
    assert not list((study / "out").glob("*.nii.gz"))
    (study / "out" / "dicom").mkdir()
    (study / "out" / "dicom" / "mine.dcm").touch()
    with pytest.raises(OutputError, match="found 1 other kinds of files"):
        written(mr, pet, rule, study / "out", overwrite=True)


def test_deidentified_it_names_nobody(study: Path, rule: Engine) -> None:
    written(read(study / "mr"), read(study / "PT"), rule, study / "out", deidentify=KEY)
    source = pydicom.dcmread(next((study / "PT").iterdir()))
    for path in (study / "out" / "resampled").iterdir():
        content = path.read_bytes()
        for secret in (source.PatientID, source.StudyInstanceUID, source.FrameOfReferenceUID, source.SOPInstanceUID):
            assert str(secret).encode() not in content
        assert complaints(path) == []


def test_the_command_line_writes_it(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fuse", str(study / "mr"), str(study / "PT"), "--method", "maximum", "--device", "cpu", "--resampled"]
    app([*arguments, "--register", "none", "-o", str(study / "out")], standalone_mode=False)
    assert len(list((study / "out" / "resampled").iterdir())) == 12
    with pytest.raises(Exception, match="expected another grid than functional"):
        app([*arguments, "--grid", "functional", "-o", str(study / "x")], standalone_mode=False)


def test_what_has_no_unit_or_no_folder_is_refused(study: Path, rule: Engine) -> None:
    mr = read(study / "mr")
    alignment = align(mr, mr, "none")
    fused = fuse(mr, read(study / "PT"), transform=Transform(POSE), engine=rule)
    with pytest.raises(UnsupportedImage, match="found a colour volume"):
        resampled(fused, fused, alignment)
    with pytest.raises(OutputError, match="folder for two series"):
        write_fused(fused, study / "x.nii.gz", resampled=mr)


@pytest.mark.parametrize("patient", ["STS_003", "STS_051"])
@pytest.mark.parametrize(("structural", "functional"), [("MR_T1", "PET"), ("MR_T1", "CT"), ("CT", "MR_T1")])
def test_dciodvfy_finds_nothing_in_those_of_real_scans(
    shared: Path, tmp_path: Path, rule: Engine, patient: str, structural: str, functional: str
) -> None:
    folder = shared / "ibsi-sts" / "dicom" / patient
    one, other = read(folder / structural), read(folder / functional)
    middle = Grid.from_axes((2, 8, 9), one.grid.center_mm, (5, 5, 5), one.grid.direction, one.grid.frame_of_reference)
    alignment = align(one, other, transform=Transform(NUDGE))
    fused = fuse(one, other, transform=alignment, engine=rule, grid=middle)
    write_fused(fused, tmp_path / "out", "dicom", resampled=resampled(other, fused, alignment))
    for path in (tmp_path / "out" / "resampled").iterdir():
        assert complaints(path) == []


@pytest.mark.filterwarnings("ignore:not in SUV")
def test_lean_body_mass_is_not_taken_for_body_weight(study: Path, rule: Engine) -> None:
    for path in (study / "PT").iterdir():
        image = pydicom.dcmread(path)
        image.SUVType = "LBM"
        image.save_as(path)
    functional = read(study / "PT")
    assert functional.unit is Unit.ARBITRARY
    written(read(study / "mr"), functional, rule, study / "out")
    assert pydicom.dcmread(study / "out" / "resampled" / "resampled-0001.dcm").SUVType == "LBM"
    assert read(study / "out" / "resampled").unit is Unit.ARBITRARY


@pytest.mark.parametrize("extreme", [40000.0, -33000.0])
def test_hounsfield_units_beyond_16_bits_do_not_wrap_around(study: Path, rule: Engine, extreme: float) -> None:
    functional = read(study / "CT")
    array = functional.array.copy()
    array[7:11, 8:12, 9:13] = extreme
    moved = written(read(study / "mr"), replace(functional, array=array), rule, study / "out")
    images = [pydicom.dcmread(path) for path in sorted((study / "out" / "resampled").iterdir())]
    found = np.stack([image.pixel_array * float(image.RescaleSlope) for image in images])
    assert np.abs(moved.array).max() > 2**15
    np.testing.assert_allclose(found, moved.array, rtol=0, atol=0.51 * float(images[0].RescaleSlope))


@pytest.mark.parametrize("modality", ["PT", "CT"])
def test_dciodvfy_finds_nothing_in_those_of_scans_that_say_little(study: Path, rule: Engine, modality: str) -> None:
    for path in (study / "mr").iterdir():
        image = pydicom.dcmread(path)
        del image.PatientPosition
        image.save_as(path)
    functional = read(study / modality)
    written(read(study / "mr"), replace(functional, source=Source("nifti")), rule, study / "out")
    assert complaints(study / "out" / "resampled" / "resampled-0001.dcm") == []
