"""De-identification: no name, number, date or UID of the patient is left, and what belongs together stays together."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from edits import edit
from phantoms import phantom
from pydicom import Dataset
from pydicom.sequence import Sequence
from test_dicom_companions import OTHER, POSE, complaints, matrix_of, posed

from medfuse.align import Transform, resample
from medfuse.alignment import align, ride_along
from medfuse.cli import app
from medfuse.errors import OutputError
from medfuse.fusion import Engine
from medfuse.io.dicom_deidentify import deidentified, pseudonym_uid
from medfuse.io.dicom_uids import fingerprint
from medfuse.io.files import read, write
from medfuse.pipeline import fuse, write_fused
from medfuse.sample.series import write_series
from medfuse.volume import Modality, Source, Volume

FRAME = "1.2.826.0.1.999.1"
KEY = b"0123456789abcdef"
#: What must not be found in anything that is written, beside UIDs.
SECRETS = {
    "PatientName": "Secretname^Given",
    "PatientID": "SECRET-4711",
    "PatientBirthDate": "19471231",
    "PatientAddress": "12 Secret Lane",
    "AccessionNumber": "ACC998877",
    "StudyDate": "20010203",
    "SeriesDate": "20010203",
    "AcquisitionDate": "20010204",
    "StudyID": "SECRETSTUDY",
    "ReferringPhysicianName": "Secretdoctor^X",
    "OperatorsName": "Secretoperator",
    "InstitutionName": "Secret Hospital",
    "StationName": "SECRETSTATION",
    "DeviceSerialNumber": "SN5544332211",
    "StudyDescription": "Secret study",
    "SeriesDescription": "Secret series",
    "ProtocolName": "Secret protocol",
    "PatientComments": "Secret comment",
}


@pytest.fixture(scope="module")
def rule() -> Engine:
    return Engine("maximum", device="cpu")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """An MR and a PET full of what identifies."""
    mr = phantom(Modality.MR, (5, 18, 20), FRAME)
    pet = posed(phantom(Modality.PT, (4, 10, 12), FRAME), OTHER)
    for number, (name, volume) in enumerate({"mr": mr, "pet": pet}.items(), start=1):
        for path in write_series(volume, tmp_path / "study" / name, description=name, number=number):
            dataset = pydicom.dcmread(path)
            for keyword, value in SECRETS.items():
                setattr(dataset, keyword, value)
            nested = Dataset()
            nested.PatientName, nested.StudyDate = SECRETS["PatientName"], SECRETS["StudyDate"]
            dataset.PerformedProtocolCodeSequence = Sequence([nested])
            dataset.save_as(path)
    return tmp_path / "study"


def secrets_of(study: Path) -> set[bytes]:
    """All words to look for: the values above, and every UID that the standard does not define."""
    found = {value.encode() for value in SECRETS.values()} | {b"Secretname"}
    for path in study.rglob("*.dcm"):
        for element in pydicom.dcmread(path).iterall():
            if element.VR == "UI" and not str(element.value).startswith("1.2.840.10008."):
                found.add(str(element.value).encode())
    return found


def leaks(folder: Path, words: set[bytes]) -> set[tuple[str, bytes]]:
    content = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    content = {path: gzip.decompress(data) if path.suffix == ".gz" else data for path, data in content.items()}
    names = {(path.name, word) for path in folder.rglob("*") for word in words if word in path.name.encode()}
    return names | {(path.name, word) for path, data in content.items() for word in words if word in data}


def fused_of(study: Path, rule: Engine, **how: object) -> Volume:
    return fuse(study / "mr", study / "pet", transform=Transform(POSE), engine=rule, **how)


@pytest.mark.parametrize("grid", ["structural", "functional"])
def test_nothing_of_the_patient_is_left(study: Path, rule: Engine, tmp_path: Path, grid: str) -> None:
    fused = fused_of(study, rule, grid=grid)
    write_fused(fused, tmp_path / "named", "both")
    assert {word for _, word in leaks(tmp_path / "named", secrets_of(study))} >= {b"SECRET-4711", b"20010203"}
    write_fused(fused, tmp_path / "out", "both", also=fused, deidentify=KEY)
    assert leaks(tmp_path / "out", secrets_of(study)) == set()


def test_sidecars_name_nobody_without_being_asked_to(study: Path, rule: Engine, tmp_path: Path) -> None:
    write_fused(fused_of(study, rule), tmp_path / "out", "nifti")
    assert leaks(tmp_path / "out", secrets_of(study)) == set()


@pytest.mark.filterwarnings("ignore::medfuse.errors.MedfuseWarning")
def test_the_names_of_files_reach_neither_sidecars_nor_dicom(study: Path, rule: Engine, tmp_path: Path) -> None:
    write(read(study / "mr"), tmp_path / "mr.nii")
    image = nib.load(tmp_path / "mr.nii")
    image.header.set_xyzt_units(0)
    image.header["qoffset_x"] += 5
    nib.save(image, mr := tmp_path / "Secretname_mr.nii")
    fused = fuse(mr, study / "pet", transform=Transform(POSE), engine=rule)
    told = fused.history[1].parameters["structural"]["history"][-1]["parameters"]["warnings"]
    assert len(told) == 2
    write_fused(fused, tmp_path / "named", "both")
    write_fused(fused, tmp_path / "out", "both", deidentify=KEY)
    for folder in ("named", "out"):
        assert leaks(tmp_path / folder, {b"Secretname_mr"}) == set()


def test_what_belongs_together_stays_together(study: Path, rule: Engine, tmp_path: Path) -> None:
    fused = fused_of(study, rule)
    write_fused(fused, tmp_path / "named", "dicom")
    write_fused(fused, tmp_path / "out", "dicom", deidentify=KEY)
    named, clean = (
        {path.name: pydicom.dcmread(path) for path in sorted(folder.iterdir())}
        for folder in (tmp_path / "named", tmp_path / "out")
    )
    assert len(named) == len(clean) == 7
    for keyword in ("StudyInstanceUID", "PatientID", "FrameOfReferenceUID"):
        assert len({str(dataset[keyword].value) for dataset in clean.values()}) == 1, keyword
    for name, dataset in clean.items():
        assert dataset.StudyInstanceUID == pseudonym_uid(named[name].StudyInstanceUID, KEY)
        assert dataset.FrameOfReferenceUID == pseudonym_uid(FRAME, KEY)
        references = [
            [one.ReferencedSOPInstanceUID for one in d.get("SourceImageSequence", ())] for d in (named[name], dataset)
        ]
        assert references[1] == [pseudonym_uid(uid, KEY) for uid in references[0]]
    assert (
        matrix_of(clean["registration.dcm"], pseudonym_uid(OTHER, KEY)) == matrix_of(named["registration.dcm"], OTHER)
    ).all()
    palettes = [item.PaletteColorLookupTableSequence[0] for item in clean["blending.dcm"].AdvancedBlendingSequence]
    assert palettes[1].PaletteColorLookupTableUID == "1.2.840.10008.1.5.1"  # which names nobody


def test_it_says_that_and_how_it_was_done(study: Path, rule: Engine, tmp_path: Path) -> None:
    write_fused(fused_of(study, rule), tmp_path / "out", "dicom", deidentify=KEY)
    for path in (tmp_path / "out").iterdir():
        dataset = pydicom.dcmread(path)
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.LongitudinalTemporalInformationModified == "REMOVED"
        assert "PS3.15 Basic Application Level Confidentiality Profile" in dataset.DeidentificationMethod
        assert [code.CodeValue for code in dataset.DeidentificationMethodCodeSequence] == ["113100"]
        assert dataset.PatientName == dataset.PatientID
        assert str(dataset.PatientID).startswith("MF")
        assert dataset.StudyDate == ""
        assert "not for diagnostic use" in dataset.SeriesDescription
        assert complaints(path) == []


def test_a_key_makes_the_same_pseudonyms_again(study: Path, rule: Engine) -> None:
    fused = fused_of(study, rule)
    one, two, other = (deidentified(fused, key).source for key in (KEY, KEY, KEY[::-1]))
    assert one.header.PatientID == two.header.PatientID != other.header.PatientID
    assert one.instances == two.instances
    assert not set(one.instances) & set(other.instances)
    assert one.header.PatientID == one.also[0].header.PatientID


def test_the_voxels_and_what_was_done_stay(study: Path, rule: Engine) -> None:
    fused = fused_of(study, rule)
    before = fused.source.header.to_json()
    clean = deidentified(fused, KEY)
    assert np.shares_memory(clean.array, fused.array)
    assert clean.history == fused.history
    assert clean.grid.matches(replace(fused.grid, frame_of_reference=clean.grid.frame_of_reference))
    assert fused.source.header.to_json() == before


def test_no_hash_of_the_original_uids_is_left(study: Path, rule: Engine, tmp_path: Path) -> None:
    """Who has the images could make that hash again, and so find out whose they are."""
    mr, pet = read(study / "mr"), read(study / "pet")
    riding = ride_along(align(mr, pet, transform=Transform(POSE)), pet, pet)
    fused = fuse(mr, resample(pet.derive("align", riding.to_json()), mr.grid), transform=riding, engine=rule)
    words = {str(riding.of).encode()}
    for name, key in {"named": None, "one": KEY, "two": KEY, "other": KEY[::-1]}.items():
        write_fused(fused, tmp_path / name, "both", deidentify=key)
        assert bool(leaks(tmp_path / name, words)) == (key is None)
    one, two, other = ((tmp_path / name / "fused.json").read_text() for name in ("one", "two", "other"))
    assert one == two != other
    assert one.count('"of_sha256"') == 2  # one of them in the history of what went in


def test_what_cannot_be_read_goes() -> None:
    header = Dataset()
    header.PatientID = "SECRET"
    tag = pydicom.tag.Tag(0x00189073)  # Acquisition Duration, which the profile keeps
    header[tag] = pydicom.dataelem.RawDataElement(tag, "FD", 3, b"SEC", 0, False, True)
    volume = replace(phantom(Modality.MR, (2, 3, 4)), source=Source("dicom", header))
    assert tag not in deidentified(volume, KEY).source.header


@pytest.mark.parametrize("which", [0, 3])
def test_what_names_the_patient_in_its_pixels_is_refused(study: Path, which: int) -> None:
    edit(sorted((study / "mr").iterdir())[which], BurnedInAnnotation="YES")
    volume = read(study / "mr")
    with pytest.raises(OutputError, match="text in their pixels"):
        deidentified(volume, KEY)


def test_a_short_key_is_refused(study: Path) -> None:
    with pytest.raises(OutputError, match="at least 16 bytes, found 3"):
        deidentified(read(study / "mr"), b"abc")


def test_the_command_line_does_it_too(study: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    for name in ("one", "two"):
        app(
            [
                *("fuse", str(study / "mr"), str(study / "pet"), "-o", str(tmp_path / name), "--method", "maximum"),
                *("--device", "cpu", "--register", "none", "--deidentify", "--deidentify-key", str(tmp_path / "key")),
            ],
            standalone_mode=False,
        )
        assert leaks(tmp_path / name, secrets_of(study)) == set()
    one, two = (pydicom.dcmread(tmp_path / name / "fused-0001.dcm") for name in ("one", "two"))
    assert (one.PatientID, one.StudyInstanceUID) == (two.PatientID, two.StudyInstanceUID)


def test_nor_is_it_told_to_a_script(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    also = tmp_path / "pet"
    shutil.copytree(study / "pet", also)
    words = ["fuse", str(study / "mr"), str(study / "pet"), "--also", str(also), "--register", "none"]
    words += ["--method", "average", "--json"]
    original = fingerprint(read(study / "pet"))
    for given, told in ((["--deidentify"], False), ([], True)):
        app([*words, *given, "-o", str(tmp_path / f"out-{told}")], standalone_mode=False)
        out = capsys.readouterr().out
        assert '"of_sha256"' in out
        assert (original in out) == told
