"""The contract of containers: where the folders are, what the task says, what the result tells, and when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edits import change_all
from phantoms import phantom
from pydicom import dcmread
from test_pacs_study import FRAME, IDENTITY, PATIENT, incoming, out  # noqa: F401

import medfuse
from medfuse.errors import InputError, MedfuseError, OutputError, SeriesError, UnreadableFile
from medfuse.pacs import contract
from medfuse.pacs.contract import PLACES, Report, Settings, folders, read_settings, run
from medfuse.pacs.rules import read_rules
from medfuse.pacs.study import Engines
from medfuse.sample.series import write_series
from medfuse.volume import Modality

AVERAGE = {"fusion": {"method": "average"}}
Work = Callable[..., Report]


def task(folder: Path, settings: object) -> None:
    """Mercure's task file, which names the patient, too."""
    process = {"module_name": "medfuse", "settings": settings}
    content = {"id": "1", "info": {"mrn": IDENTITY, "patient_name": "MUSTERMANN"}, "process": process}
    (folder / "task.json").write_text(json.dumps(content))


def shorten(folder: Path) -> None:
    """Take the last pixels from the images of a series."""
    change_all(folder, lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[:-8]))


def result(out: Path) -> dict[str, Any]:  # noqa: F811
    content = json.loads((out / "result.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.fixture
def work(incoming: Path, out: Path) -> Work:  # noqa: F811
    """Work off the folder, by default with a method that is quick."""

    def call(**words: Any) -> Report:
        settings = {"rules": read_rules(None, AVERAGE), **words}
        return run(incoming, out, lambda: Settings(**settings), Engines("cpu"))

    return call


@pytest.mark.parametrize("host", PLACES)
def test_the_environment_names_the_folders(host: str) -> None:
    names = PLACES[host]
    environment = dict(zip(names, ("/data/in", "/data/out"), strict=True))
    assert folders(None, None, environment) == (Path("/data/in"), Path("/data/out"), host)
    assert folders(Path("a"), Path("b"), environment) == (Path("a"), Path("b"), "")
    with pytest.raises(ValueError, match="or in the environment one of: MERCURE_IN_DIR and MERCURE_OUT_DIR; MONAI"):
        folders(None, None, {names[0]: "/data/in", names[1]: ""})
    with pytest.raises(ValueError, match="got one of them"):
        folders(Path("a"), None, environment)


def test_settings_without_a_task(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == Settings(read_rules(), "folders", False, False)
    given = read_settings(tmp_path, layout="flat", require=True, allow_failures=True)
    assert given == Settings(read_rules(), "flat", True, True)


def test_the_task_goes_before_the_caller(tmp_path: Path) -> None:
    task(tmp_path, {**AVERAGE, "require": False, "allow_failures": True, "layout": "folders"})
    given = read_settings(tmp_path, layout="flat", require=True)
    assert given == Settings(read_rules(None, AVERAGE), "folders", False, True)


@pytest.mark.parametrize("content", ["{}", '{"process": null}', '{"process": {"settings": null}}', '{"process": []}'])
def test_a_task_without_settings_makes_the_layout_flat(tmp_path: Path, content: str) -> None:
    (tmp_path / "task.json").write_text(content)
    assert read_settings(tmp_path) == Settings(read_rules(), "flat")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "expected a task as JSON, cannot read task.json"),
        ("[]", "expected a task as JSON, cannot read task.json"),
        ("[" * 100_000, "expected a task as JSON, cannot read task.json"),
        ('{"process": [{"settings": {}}]}', "expected one process with its settings in task.json"),
        ('{"process": {"settings": [1]}}', "expected one process with its settings in task.json"),
        ('{"process": {"settings": {"colour": 1}}}', "the settings: expected keys of fusion, rules, found colour"),
        ('{"process": {"settings": {"require": 1}}}', "expected true or false as require in task.json"),
        ('{"process": {"settings": {"layout": "round"}}}', "expected a layout of folders, flat"),
    ],
)
def test_tasks_that_are_refused(tmp_path: Path, content: str, match: str) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(InputError, match=match):
        read_settings(tmp_path)


def test_a_task_beyond_bounds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task(tmp_path, {})
    monkeypatch.setattr(contract, "MAX_TASK_BYTES", 10)
    with pytest.raises(InputError, match=r"at most 10 bytes in task\.json"):
        read_settings(tmp_path)


def test_the_result_tells_what_was_done(work: Work, out: Path) -> None:  # noqa: F811
    report = work()
    told = result(out)
    assert told == json.loads(json.dumps(report.to_json()))
    assert (told["schema"], told["status"], told["exit_code"]) == (1, "fused", 0)
    assert [pair["rule"] for pair in told["pairs"]] == ["uptake-on-mr", "ct-on-mr"]
    assert told["files"] == {"images": 27, "ignored": 1, "left_out": []}
    assert told["__mercure_notification"] == {"text": "medfuse: 2 of 2 pairs fused", "requested": False}
    for pair in told["pairs"]:
        assert all((out / name).is_file() for name in pair["files"])


def test_flat_files_are_named_as_mercure_does(work: Work, out: Path) -> None:  # noqa: F811
    for _ in range(2):  # the second run replaces what the first wrote
        report = work(layout="flat")
        listed = {name for pair in report.study.pairs for name in pair.files}
        assert {path.name for path in out.iterdir()} == {*listed, "result.json"}
    assert len(listed) >= 18
    for name in listed:
        header = dcmread(out / name, stop_before_pixels=True)
        assert name == f"{header.SeriesInstanceUID}#{header.SOPInstanceUID}.dcm"


def test_flat_files_of_other_formats_are_named_by_the_pair(work: Work, out: Path) -> None:  # noqa: F811
    rules = read_rules(None, {"fusion": {"method": "average", "format": "nifti"}})
    pair = work(rules=rules, layout="flat").study.pairs[0]
    assert [name.split("-fused")[1] for name in pair.files] == [".json", ".nii.gz"]


def test_flat_files_are_all_there_or_none(work: Work, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    names = iter(["a.dcm", "b.dcm", "missing/c.dcm"])
    monkeypatch.setattr(contract, "_flat_name", lambda *_: next(names, "missing/d.dcm"))
    report = work(layout="flat")
    assert [pair.failure.kind for pair in report.study.pairs if pair.failure] == ["OutputError", "OutputError"]
    assert report.exit_code == 7
    assert [path.name for path in out.iterdir()] == ["result.json"]


def test_nothing_to_fuse_is_fine_unless_required(work: Work, incoming: Path, out: Path) -> None:  # noqa: F811
    for path in [*(incoming / "mr").iterdir(), *(incoming / "ct").iterdir()]:
        path.unlink()
    report = work()
    assert (report.exit_code, report.told, result(out)["status"]) == (0, "nothing to fuse", "nothing")
    assert [one["modality"] for one in result(out)["passed_over"]] == ["PT"]
    with pytest.raises(SeriesError, match=r"expected a pair to fuse, found none \(PT: fits uptake-on-mr"):
        work(require=True)
    told = result(out)
    assert (told["status"], told["exit_code"], told["failure"]["kind"]) == ("refused", 3, "SeriesError")
    assert told["__mercure_notification"]["requested"]


def test_failures_count_unless_allowed(work: Work, incoming: Path, out: Path) -> None:  # noqa: F811
    shorten(incoming / "pet")
    report = work()
    assert (report.exit_code, result(out)["status"]) == (3, "partly")
    assert report.told == "1 of 2 pairs fused; failed: uptake-on-mr"
    assert work(allow_failures=True).exit_code == 0
    shorten(incoming / "ct")
    assert work(allow_failures=True).exit_code == 3  # nothing was fused


def test_an_earlier_result_does_not_stay(work: Work, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    work()

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("now")

    monkeypatch.setattr(contract, "fuse_study", stop)
    with pytest.raises(KeyboardInterrupt, match="now"):
        work()
    assert not (out / "result.json").exists()


def test_refused_settings_are_told(incoming: Path, out: Path) -> None:  # noqa: F811
    task(incoming, {"fusion": {"method": "magic"}})
    with pytest.raises(InputError, match="expected method of"):
        run(incoming, out, lambda: read_settings(incoming))
    told = result(out)
    assert told["failure"]["kind"] == "InputError"
    assert "expected method of" in told["failure"]["message"]


def test_a_missing_folder_is_told(tmp_path: Path, out: Path) -> None:  # noqa: F811
    with pytest.raises(UnreadableFile, match="found none named none"):
        run(tmp_path / "none", out, lambda: read_settings(tmp_path / "none"))
    assert result(out)["failure"]["exit_code"] == 3


def test_an_output_that_cannot_be_made_is_refused(incoming: Path) -> None:  # noqa: F811
    with pytest.raises(OutputError, match=r"could not make the folder notes\.txt"):
        run(incoming, incoming / "notes.txt", lambda: read_settings(incoming))


def test_no_patient_data_in_the_result(work: Work, incoming: Path, out: Path) -> None:  # noqa: F811
    task(incoming, AVERAGE)
    work()
    text = (out / "result.json").read_text()
    assert not any(word in text for word in (IDENTITY, "MUSTERMANN", "ERIKA"))


def test_of_every_error_the_code_is_told(out: Path, tmp_path: Path) -> None:  # noqa: F811
    kinds = [MedfuseError, *MedfuseError.__subclasses__()]
    assert len(kinds) > 4
    for kind in kinds:
        error = kind("what was found", "what to do")

        def refuse(error: MedfuseError = error) -> Settings:
            raise error

        with pytest.raises(kind, match="what was found"):
            run(tmp_path, out, refuse)
        assert (result(out)["exit_code"], result(out)["failure"]["kind"]) == (kind.exit_code, kind.__name__)


def test_a_container_without_a_home_and_a_name(tmp_path: Path) -> None:
    """As Kubernetes and mercure run it: any user number, no home, nothing writable but the folder out and TMPDIR."""
    for name, modality, number in (("mr", Modality.MR, 1), ("pet", Modality.PT, 2)):
        write_series(phantom(modality, (6, 9, 8), FRAME), tmp_path / "in" / name, description=name, number=number)
    for name in ("out", "tmp", "work"):
        (tmp_path / name).mkdir()
    task(tmp_path / "in", AVERAGE)
    before = {
        path: path.stat().st_mtime_ns for path in Path(medfuse.__file__).parent.rglob("*") if path.suffix != ".pyc"
    }
    environment = {
        **{"MONAI_INPUTPATH": str(tmp_path / "in"), "MONAI_OUTPUTPATH": str(tmp_path / "out")},
        **{"HOME": "/nonexistent", "TMPDIR": str(tmp_path / "tmp"), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "medfuse", "run", "--device", "cpu"]
    ran = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path / "work", timeout=120
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert result(tmp_path / "out")["status"] == "fused"
    assert [list((tmp_path / name).iterdir()) for name in ("tmp", "work")] == [[], []]
    assert before == {path: path.stat().st_mtime_ns for path in before}
