"""A folder is worked off by rules: every pair into its own folder, one bad pair beside the others, the same again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import SimpleITK as sitk
from edits import change_all
from phantoms import moved, phantom
from pydicom import Dataset, dcmread

from medfuse import pipeline
from medfuse.errors import OutputError, RegistrationError, UnreadableFile
from medfuse.fusion import Engine
from medfuse.io.files import read
from medfuse.pacs import study
from medfuse.pacs.rules import DEFAULT, Rules, read_rules
from medfuse.pacs.study import Engines, Failure, StudyResult, fuse_study
from medfuse.sample.series import Study, write_series
from medfuse.volume import Modality

FRAME = "1.2.826.0.1.999.1"
NAME, IDENTITY = "MUSTERMANN^ERIKA", "PID-271828"
PATIENT = Study(IDENTITY, NAME)
SERIES = {"mr": (Modality.MR, (9, 15, 16), 1), "pet": (Modality.PT, (6, 9, 8), 2), "ct": (Modality.CT, (12, 10, 11), 3)}


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """MR, PET and CT of one patient in one frame of reference, in a folder each, and a file of another kind."""
    folder = tmp_path / "in"
    for name, (modality, shape, number) in SERIES.items():
        description = f"{name} {IDENTITY}"
        write_series(
            phantom(modality, shape, FRAME), folder / name, description=description, number=number, study=PATIENT
        )
    (folder / "notes.txt").write_text("not DICOM")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def rules(**fusion: object) -> Rules:
    return read_rules(None, {"fusion": {"method": "average", **fusion}})


def uids(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): dcmread(path).SOPInstanceUID for path in folder.rglob("*.dcm")}


def test_every_pair_has_its_folder(incoming: Path, out: Path) -> None:
    result = fuse_study(incoming, out, rules(), Engines("cpu"))
    assert (result.status, result.exit_code, result.images, result.ignored) == ("fused", 0, 27, 1)
    told = [(pair.rule, pair.structural.number, pair.functional.number, pair.trust) for pair in result.pairs]
    assert told == [("uptake-on-mr", 1, 2, None), ("ct-on-mr", 1, 3, None)]
    listed = {name for pair in result.pairs for name in pair.files}
    assert listed == {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {Path(name).parts[0] for name in listed} == {pair.folder for pair in result.pairs}
    for pair in result.pairs:
        assert sum("fused" in name for name in pair.files) == 9
        assert pair.alignment == "one frame of reference"
        assert not pair.needs_a_look


def test_the_pixels_are_those_of_fuse(incoming: Path, out: Path) -> None:
    result = fuse_study(incoming, out, rules(window="0:6", palette="PET"), Engines("cpu"))
    expected = pipeline.fuse(
        read(incoming / "mr"), read(incoming / "pet"), method="average", window="0:6", palette="PET", device="cpu"
    )
    files = sorted(str(path) for path in (out / result.pairs[0].folder).glob("fused-*.dcm"))
    assert (sitk.GetArrayFromImage(sitk.ReadImage(files)) == expected.array).all()


def test_series_of_one_study_get_numbers_of_their_own(incoming: Path, out: Path) -> None:
    def numbers(**fusion: object) -> list[int]:
        result = fuse_study(incoming, out, rules(companions=False, **fusion), Engines("cpu"))
        return [int(dcmread(out / pair.files[0]).SeriesNumber) for pair in result.pairs]

    assert numbers() == [1001, 2001]
    assert numbers(series_number=700) == [700, 701]
    assert numbers(grid="functional") == [1002, 1003]


def test_a_rerun_replaces_what_is_there(incoming: Path, out: Path) -> None:
    out.mkdir()
    (out / "other.txt").write_text("somebody else's")
    first = fuse_study(incoming, out, rules(), Engines("cpu"))
    before = uids(out)
    again = fuse_study(incoming, out, rules(), Engines("cpu"))
    assert len(before) >= 18
    assert uids(out) == before
    assert [pair.files for pair in again.pairs] == [pair.files for pair in first.pairs]
    assert {path.name for path in out.iterdir()} == {"other.txt", *(pair.folder for pair in first.pairs)}


def test_what_was_written_is_not_fused_again(incoming: Path) -> None:
    first = fuse_study(incoming, incoming, rules(), Engines("cpu"))
    again = fuse_study(incoming, incoming, rules(), Engines("cpu"))
    assert [pair.folder for pair in again.pairs] == [pair.folder for pair in first.pairs]
    assert {reason for _, reason in again.passed_over} == {"a result of medfuse"}


def test_one_bad_pair_does_not_stop_the_others(incoming: Path, out: Path) -> None:
    change_all(incoming / "pet", lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[:-8]))
    result = fuse_study(incoming, out, rules(), Engines("cpu"))
    bad, good = result.pairs
    assert (result.status, result.exit_code) == ("partly", 3)
    assert bad.failure is not None
    assert (bad.failure.kind, bad.failure.exit_code, bad.files, bad.needs_a_look) == ("UnreadableFile", 3, (), True)
    assert good.failure is None
    assert [path.name for path in out.iterdir()] == [good.folder]


def fails(error: Exception) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (RegistrationError("no alignment", "Look"), Failure("RegistrationError", "no alignment", "Look", 5)),
        (OutputError("no space"), Failure("OutputError", "no space", "", 7)),
        (KeyError(NAME), Failure("KeyError", "an unforeseen KeyError", "Please report it", 1)),
        (
            MemoryError(NAME),
            Failure("MemoryError", "not enough memory", "Fuse on a coarser grid, or give it more memory", 1),
        ),
    ],
)
def test_whatever_goes_wrong_is_told(
    incoming: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, failure: Failure
) -> None:
    monkeypatch.setattr(study, "fuse", fails(error))
    result = fuse_study(incoming, out, rules(), Engines("cpu"))
    assert [pair.failure for pair in result.pairs] == [failure, failure]
    assert (result.status, result.exit_code) == ("failed", failure.exit_code)
    assert list(out.iterdir()) == []


def test_rules_that_the_device_cannot_do_are_told(incoming: Path, out: Path) -> None:
    asked = read_rules(None, {"fusion": {"method": "dilran", "precision": "tf32"}})
    failure = fuse_study(incoming, out, asked, Engines("cpu")).pairs[0].failure
    assert failure is not None
    assert (failure.kind, failure.exit_code) == ("InputError", 3)
    assert failure.message == "expected a CUDA device for a precision of tf32, got cpu"


def test_an_interrupt_is_no_failure_of_a_pair(incoming: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "fuse", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt("now")))
    with pytest.raises(KeyboardInterrupt, match="now"):
        fuse_study(incoming, out, rules(), Engines("cpu"))


def test_two_patients_in_one_study_are_refused(incoming: Path, out: Path) -> None:
    change_all(incoming / "pet", lambda dataset: setattr(dataset, "PatientID", "another"))
    failure = fuse_study(incoming, out, rules(), Engines("cpu")).pairs[0].failure
    assert failure is not None
    assert failure.kind == "PatientMismatch"


def test_a_registration_that_is_not_trusted_is_told(incoming: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verdicts import registration

    from medfuse.align.verdict import Trust
    from medfuse.alignment import Alignment

    found = registration(Trust.DOUBTFUL)
    monkeypatch.setattr(study, "align", lambda *_, **__: Alignment(found.transform, "a doubt", found))
    pair = fuse_study(incoming, out, rules(), Engines("cpu")).pairs[0]
    assert (pair.trust, pair.registered, pair.needs_a_look) == ("doubtful", True, True)
    assert pair.warnings == ("a doubt. Look at the result before you rely on it",)


def test_uptake_on_white_is_told(incoming: Path, out: Path) -> None:
    uptake, ct = fuse_study(incoming, out, rules(method="maximum", structural_window="-2:-1"), Engines("cpu")).pairs
    assert len(uptake.warnings) == 1
    assert re.match(r"result: in [1-9] of 9 slices uptake that has a colour lies on white", uptake.warnings[0])
    assert (ct.warnings, uptake.needs_a_look) == ((), False)


def test_a_shifted_scan_is_registered(tmp_path: Path, out: Path) -> None:
    volumes = {"mr": phantom(Modality.MR, (18, 22, 24), "1.2.3"), "pet": phantom(Modality.PT, (18, 22, 24))}
    volumes["pet"] = moved(volumes["pet"], (4, -3, 5), "1.2.4")
    for number, (name, volume) in enumerate(volumes.items()):
        write_series(volume, tmp_path / "in" / name, description=name, number=number, study=PATIENT)
    (pair,) = fuse_study(tmp_path / "in", out, rules(accept_untrusted=True), Engines("cpu", threads=1)).pairs
    assert pair.failure is None
    assert pair.registered
    assert pair.trust in ("trusted", "doubtful", "failed")


def test_no_patient_data_in_the_result(incoming: Path, out: Path) -> None:
    result = fuse_study(incoming, out, rules(), Engines("cpu"))
    text = json.dumps(result.to_json()) + repr(result)
    for word in (IDENTITY, "MUSTERMANN", "ERIKA"):
        assert word not in text
    assert not any(word in str(path.relative_to(out)) for word in (IDENTITY, "ERIKA") for path in out.rglob("*"))


def test_one_engine_serves_all_pairs(incoming: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def make(*words: object, **options: object) -> Engine:
        made.append(words)
        return Engine(*words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(study, "Engine", make)
    engines = Engines("cpu")
    for _ in range(2):
        assert fuse_study(incoming, out, rules(), engines).status == "fused"
    assert len(made) == 1
    other = read_rules(None, {"rules": [DEFAULT[0], {**DEFAULT[2], "fusion": {"method": "maximum"}}]})
    mixed = Rules((replace(other.rules[0], fusion=rules().rules[0].fusion), other.rules[1]))
    assert fuse_study(incoming, out, mixed, engines).status == "fused"
    assert len(made) == 2


@pytest.mark.parametrize(
    ("format", "expected"), [("nifti", {"fused.nii.gz", "fused.json"}), ("both", {"fused.nii.gz"})]
)
def test_other_formats(incoming: Path, out: Path, format: str, expected: set[str]) -> None:
    pair = fuse_study(incoming, out, rules(format=format), Engines("cpu")).pairs[0]
    names = {Path(name).name for name in pair.files}
    assert expected <= names
    assert any(name.endswith(".dcm") for name in names) == (format == "both")


def test_an_empty_folder_holds_nothing_to_fuse(tmp_path: Path, out: Path) -> None:
    (tmp_path / "in").mkdir()
    result = fuse_study(tmp_path / "in", out)
    assert (result, result.status, result.exit_code) == (StudyResult(()), "nothing", 0)


def test_damage_that_may_hide_a_pair_is_refused(incoming: Path, out: Path) -> None:
    for name in ("pet", "ct"):
        sorted((incoming / name).iterdir())[3].write_bytes(b"")
    with pytest.raises(UnreadableFile, match="found 2 damaged or unreadable, which may belong to the series"):
        fuse_study(incoming, out, rules(), Engines("cpu"))


def test_folders_that_cannot_be_used_are_refused(incoming: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="found none named none"):
        fuse_study(tmp_path / "none", tmp_path / "out")
    with pytest.raises(OutputError, match=r"could not make the folder notes\.txt"):
        fuse_study(incoming, incoming / "notes.txt")


def test_a_patient_of_the_real_data(shared: Path, out: Path) -> None:
    folder = shared / "ibsi-sts" / "dicom" / "STS_002"
    result = fuse_study(folder, out, rules(), Engines("cpu"))
    assert [(pair.rule, pair.failure) for pair in result.pairs] == [("uptake-on-mr", None), ("ct-on-mr", None)]
    assert result.left_out == ("3 files: RT Structure Set holds no image",)
    source: Dataset = dcmread(sorted((folder / "MR_T1" / "image").iterdir())[0], stop_before_pixels=True)
    for pair in result.pairs:
        fused = dcmread(out / next(name for name in pair.files if "fused" in name), stop_before_pixels=True)
        assert (fused.StudyInstanceUID, fused.PatientID) == (source.StudyInstanceUID, source.PatientID)
