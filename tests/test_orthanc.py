"""The real Orthanc: a stable study goes to `medfuse serve` and its fused series comes back; push and pull."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from dicomweb_client import DICOMwebClient
from nodes import free_port, wait_for
from programs import ORTHANC, external
from pydicom import Dataset, dcmread

from medfuse.cli import app
from medfuse.errors import InputError, NetworkError
from medfuse.pacs.client import holds
from medfuse.pacs.send import send
from medfuse.pacs.settings import Destination
from medfuse.sample.series import Study, write_series
from medfuse.volume import Modality, Unit, Volume

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "orthanc"
STUDY = Study(patient_id="ORTHANC-ID-77", patient_name="Zweistein^Oda", study_instance_uid="1.2.826.0.1.4711.1")
SHIPPED = ["--aetitle", "STORESCU", "-aec", "ORTHANC"]


@dataclass
class Ward:
    """Orthanc and medfuse, running, and what they have logged."""

    dicom_port: int
    url: str
    monitor: str
    puller_port: int
    config: Path
    log: Path

    @property
    def web(self) -> DICOMwebClient:
        return DICOMwebClient(f"{self.url}/dicom-web")

    def send(self, folder: Path) -> None:
        subprocess.run(
            [external("storescu"), *SHIPPED, "+sd", "127.0.0.1", str(self.dicom_port), str(folder)],
            check=True,
            capture_output=True,
            timeout=60,
        )

    def series(self) -> dict[str, list[Dataset]]:
        found = map(Dataset.from_json, self.web.search_for_series(STUDY.study_instance_uid))
        by_modality: dict[str, list[Dataset]] = {}
        for one in found:
            by_modality.setdefault(one.Modality, []).append(one)
        return by_modality

    def queue(self) -> dict[str, Any]:
        ran = subprocess.run(
            [sys.executable, "-m", "medfuse", "queue", "list", str(self.config), "--json"],
            check=True,
            capture_output=True,
            text=True,
        )
        return dict(json.loads(ran.stdout))


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """The example with ports and folders of its own, and results sent by C-STORE and by STOW-RS."""
    tmp_path = tmp_path_factory.mktemp("ward")
    http, dicom, node, monitor, puller = (free_port() for _ in range(5))
    orthanc = json.loads((EXAMPLE / "orthanc.json").read_text())
    orthanc |= {"HttpPort": http, "DicomPort": dicom, "StableAge": 1, "StorageDirectory": str(tmp_path / "orthanc")}
    orthanc["DicomModalities"]["medfuse"][2] = node
    orthanc["DicomModalities"]["puller"] = ["PULLER", "127.0.0.1", puller]
    orthanc["LuaScripts"] = [str(EXAMPLE / script) for script in orthanc["LuaScripts"]]
    (tmp_path / "orthanc.json").write_text(json.dumps(orthanc))
    settings = yaml.safe_load((EXAMPLE / "node.yaml").read_text())
    settings |= {"port": node, "monitor_port": monitor, "quiet_seconds": 1, "rules": "rules.yaml"}
    settings["bounds"] = {"free_mib": 1}
    settings["destinations"][0]["port"] = dicom
    settings["destinations"].append({"name": "web", "url": f"http://127.0.0.1:{http}/dicom-web"})
    settings["priors_from"] = "web"
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(settings))
    rule = {"name": "near", "structural": {"modality": "MR"}, "functional": {"modality": "PT"}, "within_days": 3}
    rules = {"fusion": {"method": "average", "register": "none"}, "rules": [rule]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    (tmp_path / settings["spool"]).mkdir(mode=0o755)  # as an administrator may have made it
    log = tmp_path / "medfuse.log"
    programs = [
        [external(*ORTHANC), str(tmp_path / "orthanc.json")],
        [sys.executable, "-m", "medfuse", "serve", str(tmp_path / "node.yaml")],
    ]
    with (tmp_path / "orthanc.log").open("w") as orthanc_log, log.open("w") as medfuse_log:
        running = [
            subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=written, cwd=tmp_path)
            for program, written in zip(programs, (orthanc_log, medfuse_log), strict=True)
        ]
        try:
            wait_for(lambda: requests.get(f"http://127.0.0.1:{http}/system", timeout=5).ok, 60)
            wait_for(lambda: requests.get(f"http://127.0.0.1:{monitor}/readyz", timeout=5).ok, 60)
            address = "http://127.0.0.1:{}"
            yield Ward(dicom, address.format(http), address.format(monitor), puller, tmp_path / "node.yaml", log)
        finally:
            for one in running:
                one.terminate()
            for one in running:
                one.wait(timeout=30)


def test_what_the_node_keeps_is_for_its_own_user(ward: Ward) -> None:
    spool = ward.config.parent / yaml.safe_load(ward.config.read_text())["spool"]
    kept = list(spool.rglob("*"))
    assert any(path.name == "queue.sqlite3" for path in kept)
    assert [path.name for path in kept if path.stat().st_mode & 0o077] == []


def test_a_stable_study_grows_a_fused_series(ward: Ward, oblique_volume: Volume, tmp_path: Path) -> None:
    mr = replace(oblique_volume, array=oblique_volume.array + 40, modality=Modality.MR, unit=Unit.ARBITRARY)
    apart = replace(oblique_volume.grid, frame_of_reference="1.2.826.0.1.998")  # so that there is something to register
    values = (oblique_volume.array + 40) / 31
    pet = replace(oblique_volume, array=values, grid=apart, modality=Modality.PT, unit=Unit.SUV)
    for volume, number in ((mr, 3), (pet, 4)):
        write_series(volume, tmp_path / "study" / str(number), description="scan", number=number, study=STUDY)
    write_series(mr, tmp_path / "other", description="never sent", number=9, study=STUDY)
    sources = {str(dcmread(path).SeriesInstanceUID) for path in (tmp_path / "study").rglob("*.dcm")}
    ward.send(tmp_path / "study" / "3")
    ward.send(tmp_path / "study" / "4")

    def delivered() -> bool:
        studies = ward.queue()["studies"]
        return bool(studies) and studies[0]["state"] in ("done", "dead")

    wait_for(delivered, 90)
    (study,) = ward.queue()["studies"]
    assert study["state"] == "done", study["note"]
    by_modality = ward.series()
    assert by_modality.keys() == {"MR", "PT", "OT", "REG", "PR"}
    (colored,), (registration,), (blending,) = (by_modality[kind] for kind in ("OT", "REG", "PR"))

    slices = ward.web.retrieve_series(STUDY.study_instance_uid, colored.SeriesInstanceUID)
    assert len(slices) == 5
    assert {one.StudyInstanceUID for one in slices} == {STUDY.study_instance_uid}
    assert {one.PatientID for one in slices} == {STUDY.patient_id}
    first = min(slices, key=lambda one: int(one.InstanceNumber))
    assert np.allclose(sorted(float(one.ImagePositionPatient[2]) for one in slices), sorted(_levels(mr)), atol=1e-3)
    assert first.pixel_array.shape == (7, 9, 3)
    (transform,) = ward.web.retrieve_series(STUDY.study_instance_uid, registration.SeriesInstanceUID)
    assert transform.SOPClassUID.name == "Spatial Registration Storage"
    assert {one.FrameOfReferenceUID for one in transform.RegistrationSequence} == {"1.2.826.0.1.999", "1.2.826.0.1.998"}
    (shown,) = ward.web.retrieve_series(STUDY.study_instance_uid, blending.SeriesInstanceUID)
    assert shown.SOPClassUID.name == "Advanced Blending Presentation State Storage"
    assert sources <= set(re.findall(r"[0-9.]{20,}", str(shown)))

    result = tmp_path / "result.dcm"
    first.save_as(result, enforce_file_format=True)
    for at in (
        Destination("dicom", "ORTHANC", "127.0.0.1", ward.dicom_port),
        Destination("web", url=f"{ward.url}/dicom-web"),
    ):
        assert holds(result, at)
        assert not holds(next((tmp_path / "other").iterdir()), at)

    # What came back made the study stable again: it is sent once more, and nothing is fused or sent anew.
    wait_for(lambda: 'received_total{result="known"} 10' in requests.get(f"{ward.monitor}/metrics", timeout=5).text, 60)
    time.sleep(2)
    assert ward.queue()["studies"] == [study]
    assert sum(map(len, ward.series().values())) == 5
    log = ward.log.read_text()
    assert "quiet" in log
    for name in ("Zweistein", STUDY.patient_id, STUDY.study_instance_uid):
        assert name not in log


def test_a_study_is_paired_with_one_of_days_before(ward: Ward, oblique_volume: Volume, tmp_path: Path) -> None:
    shown = replace(oblique_volume, array=oblique_volume.array + 40)
    mr = replace(shown, modality=Modality.MR, unit=Unit.ARBITRARY)
    pet = replace(shown, array=shown.array / 31, modality=Modality.PT, unit=Unit.SUV)
    # By day: a pair; another patient's PET, and one too far away.
    cases = {"10": ("PRIOR-1", mr), "11": ("PRIOR-10", pet), "19": ("PRIOR-1", pet), "12": ("PRIOR-1", pet)}
    uids = {day: f"1.2.826.0.1.4711.9.{day}" for day in cases}

    def fused_of(uid: str) -> list[str]:
        found = map(Dataset.from_json, ward.web.search_for_series(uid))
        return [str(one.SeriesInstanceUID) for one in found if one.Modality == "OT"]

    def send(days: list[str]) -> list[str]:
        before = len(ward.queue()["studies"])
        for day in days:
            patient, volume = cases[day]
            study = Study(patient, "Zweistein^Oda", 70.0, uids[day], datetime(2024, 3, int(day), 9))
            write_series(volume, tmp_path / day, description="scan", number=1, study=study)
            ward.send(tmp_path / day)

        def ended() -> list[str]:
            found = [one for one in ward.queue()["studies"][before:] if one["state"] in ("done", "dead")]
            return [one["note"] for one in found] if len(found) == len(days) else []

        return list(wait_for(ended, 90))

    assert send(["10", "11", "19"]) == ["no pair to fuse"] * 3
    assert send(["12"]) == [""]
    assert {day: len(fused_of(uid)) for day, uid in uids.items()} == {"10": 1, "11": 0, "19": 0, "12": 0}
    slices = ward.web.retrieve_series(uids["10"], fused_of(uids["10"])[0])
    assert {one.PatientID for one in slices} == {"PRIOR-1"}
    named = {str(one.ReferencedSOPInstanceUID) for one in slices[0].SourceImageSequence}
    for day in ("10", "12"):
        assert named & {str(dcmread(path).SOPInstanceUID) for path in (tmp_path / day).iterdir()}


def with_private_object(volume: Volume, folder: Path, study: Study) -> None:
    """Five slices, and a sixth that is a CSA object of Siemens."""
    write_series(volume, folder, description="CT", number=1, study=study)
    private = dcmread(next(folder.iterdir()))
    private.SOPClassUID = private.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.9.1"
    private.SOPInstanceUID = private.file_meta.MediaStorageSOPInstanceUID = f"{study.study_instance_uid}.1"
    private.save_as(folder / "private.dcm")


def test_a_study_with_a_private_object_comes_whole(ward: Ward, oblique_volume: Volume, tmp_path: Path) -> None:
    study = Study("PRIVATE-1", "Zweistein^Oda", study_instance_uid="1.2.826.0.1.4711.8")
    with_private_object(oblique_volume, tmp_path, study)
    before = len(ward.queue()["studies"])
    list(send(sorted(tmp_path.iterdir()), Destination("dicom", "ORTHANC", "127.0.0.1", ward.dicom_port)))

    def ended() -> list[dict[str, Any]]:
        return [one for one in ward.queue()["studies"][before:] if one["state"] in ("done", "dead")]

    (found,) = wait_for(ended, 60)
    ran = [sys.executable, "-m", "medfuse", "queue", "show", str(ward.config), found["key"], "--json"]
    assert json.loads(subprocess.run(ran, check=True, capture_output=True).stdout)["received"] == 6


def _levels(volume: Volume) -> list[float]:
    return [float(volume.grid.points_mm([(k, 0, 0)])[0][2]) for k in range(volume.grid.shape[0])]


def medfuse(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    app([*words, "--json"], standalone_mode=False)
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("by", ["C-STORE and C-GET", "C-STORE and C-MOVE", "DICOMweb"])
def test_what_is_pushed_is_pulled(
    ward: Ward, oblique_volume: Volume, tmp_path: Path, by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uid = f"1.2.826.0.1.4711.{sum(by.encode())}"
    study = Study(patient_id=f"PULLED-{len(by)}", patient_name="Zweistein^Oda", study_instance_uid=uid)
    for number in (3, 4):
        write_series(oblique_volume, tmp_path / "in" / str(number), description="CT", number=number, study=study)
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")
    node, web = f"ORTHANC@127.0.0.1:{ward.dicom_port}", f"{ward.url}/dicom-web"
    place = web if by == "DICOMweb" else node
    assert medfuse(capsys, "push", str(tmp_path / "in"), "--to", place) == {"sent": 10, "ignored": 1}

    listed = medfuse(capsys, "pull", "--from", place, "--patient", study.patient_id)
    assert [one["uid"] for one in listed["studies"]] == [uid]
    assert listed["studies"][0]["modalities"] == ["CT"]
    assert listed["studies"][0]["instances"] == 10
    move = ("--move", f"127.0.0.1:{ward.puller_port}", "--aet", "PULLER") if "MOVE" in by else ()
    told = medfuse(capsys, "pull", "--from", place, "--study", uid, "-o", str(tmp_path / "out"), *move)
    assert told["files"] == 10

    def contents(folder: Path) -> dict[str, tuple[str, bytes]]:
        read = [dcmread(path) for path in folder.rglob("*.dcm")]
        return {str(one.SOPInstanceUID): (str(one.PatientName), one.PixelData) for one in read}

    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    series = dcmread(next((tmp_path / "in" / "4").glob("*.dcm"))).SeriesInstanceUID
    words = ("--study", uid, "--series", series, "-o", str(tmp_path / "one"))
    assert medfuse(capsys, "pull", "--from", place, *words, *move)["files"] == 5


@pytest.mark.parametrize("by", ["C-GET", "C-MOVE", "DICOMweb"])
def test_a_study_with_a_private_object_is_pulled_whole(
    ward: Ward, oblique_volume: Volume, tmp_path: Path, by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(f"PRIVATE-{by}", "Zweistein^Oda", study_instance_uid=f"1.2.826.0.1.4712.{sum(by.encode())}")
    (tmp_path / "in").mkdir()
    with_private_object(oblique_volume, tmp_path / "in", study)
    node = f"ORTHANC@127.0.0.1:{ward.dicom_port}"
    medfuse(capsys, "push", str(tmp_path / "in"), "--to", node)
    place = f"{ward.url}/dicom-web" if by == "DICOMweb" else node
    move = ("--move", f"127.0.0.1:{ward.puller_port}", "--aet", "PULLER") if by == "C-MOVE" else ()
    words = ("--study", study.study_instance_uid, "-o", str(tmp_path / "out"))
    assert medfuse(capsys, "pull", "--from", place, *words, *move)["files"] == 6


def test_what_is_not_there_is_told(ward: Ward, tmp_path: Path) -> None:
    node, web = f"ORTHANC@127.0.0.1:{ward.dicom_port}", f"{ward.url}/dicom-web"
    for place in (node, web):
        with pytest.raises(InputError, match="expected one study that matches, found 0"):
            app(["pull", "--from", place, "--study", "1.2.3.4", "-o", str(tmp_path / "out")], standalone_mode=False)
        assert not (tmp_path / "out").exists()
    (tmp_path / "no.dcm").write_text("no DICOM")
    with pytest.raises(InputError, match=r"expected DICOM files in no\.dcm, found none"):
        app(["push", str(tmp_path / "no.dcm"), "--to", node], standalone_mode=False)
    with pytest.raises(NetworkError, match=r"expected .* to do what it was asked, found HTTP status 404"):
        app(["pull", "--from", f"{ward.url}/nothing", "--study", "1.2.3.4"], standalone_mode=False)
