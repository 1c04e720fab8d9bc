"""The right series of a folder become pairs: by modality, looks, study and day; some never do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edits import change_all
from phantoms import phantom
from pydicom import Dataset

from medfuse.errors import UnreadableFile
from medfuse.grid import Grid
from medfuse.io.files import write
from medfuse.pacs.pairs import Found, find_pairs
from medfuse.pacs.rules import DEFAULT, read_rules
from medfuse.sample.series import Study, write_series
from medfuse.volume import Modality, Unit, Volume

CT, MR, PT = Modality.CT, Modality.MR, Modality.PT
FRAME = "1.2.826.0.1.999.1"
DAY = datetime(2024, 3, 1, 8, 0)


class Folder:
    """A folder that series are put into, each by its number."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        number: int,
        modality: Modality,
        *,
        slices: int = 8,
        frame: str | None = FRAME,
        days: int = 0,
        patient: str = "P1",
        description: str = "series",
        **header: object,
    ) -> Path:
        place = self.path / str(number)
        study = Study(patient, start=DAY + timedelta(days=days))
        volume = phantom(modality, (slices, 6, 7), frame)
        write_series(volume, place, description=description, number=number, study=study)
        changes = {"Manufacturer": "ACME"} | header
        change_all(place, lambda dataset: _set(dataset, changes))
        return place

    def find(self, *rules: Mapping[str, Any]) -> Found:
        return find_pairs(self.path, read_rules(None, {"rules": list(rules)} if rules else None))

    def pairs(self, *rules: Mapping[str, Any]) -> list[tuple[str, int | None, int | None]]:
        """Rule, number of the structural series and of the functional one."""
        return [
            (match.rule.name, match.structural.series.number, match.functional.series.number)
            for match in self.find(*rules).matches
        ]

    def reasons(self, *rules: Mapping[str, Any]) -> dict[int | None, str]:
        return {one.series.number: reason for one, reason in self.find(*rules).passed_over}


def _set(dataset: Dataset, changes: Mapping[str, object]) -> None:
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def rule(structural: Mapping[str, Any] | None = None, functional: Mapping[str, Any] | None = None, **words: Any) -> Any:
    return {
        "name": "one",
        "structural": {"modality": "MR"} | dict(structural or {}),
        "functional": {"modality": "PT"} | dict(functional or {}),
        **words,
    }


def test_without_rules_uptake_lies_on_mr_and_so_does_ct(folder: Folder) -> None:
    for number, modality in ((1, CT), (2, PT), (3, MR)):
        folder.add(number, modality)
    assert folder.pairs() == [("uptake-on-mr", 3, 2), ("ct-on-mr", 3, 1)]


@pytest.mark.parametrize("name", ["Smith^A", "Dixon^A", "Post^A"])
def test_a_description_is_matched_whole_whatever_the_patient_is_called(folder: Folder, name: str) -> None:
    folder.add(1, MR, description="T1 VIBE DIXON", PatientName=name)
    folder.add(2, MR, slices=9, description="T1 VIBE DIXON POST GD", PatientName=name)
    folder.add(9, PT, PatientName=name)
    assert folder.pairs(rule({"description": "dixon", "not_description": "post"})) == [("one", 1, 9)]


@pytest.mark.parametrize("first", [1, 2])
def test_each_volume_of_a_series_is_judged_by_its_own_header(folder: Folder, first: int) -> None:
    """A diffusion series that holds its ADC map, which the rules leave out, whichever file comes first."""
    kinds = {first: ["ORIGINAL", "PRIMARY", "DWI", "NONE"], 3 - first: ["DERIVED", "PRIMARY", "ADC", "NONE"]}
    for number, kind in kinds.items():
        folder.add(number, MR, ImageType=kind, SeriesInstanceUID="1.2.826.0.1.7", SeriesNumber=1)
    folder.add(9, PT)
    (match,) = folder.find().matches
    assert match.structural.is_original
    assert "DWI" in match.structural.header.ImageType
    assert "image type ADC" in folder.reasons()[1]


@pytest.mark.parametrize("modality", [PT, CT])
def test_of_several_that_could_be_laid_on_a_scan_one_of_its_frame_goes_before_a_longer_one(
    folder: Folder, modality: Modality
) -> None:
    folder.add(1, MR, slices=9)
    folder.add(2, modality)
    folder.add(3, modality, slices=12, frame="1.2.826.0.1.999.2")
    assert [pair[1:] for pair in folder.pairs()] == [(1, 2)]


def test_without_an_mr_uptake_lies_on_ct(folder: Folder) -> None:
    folder.add(1, CT)
    folder.add(2, PT)
    assert folder.pairs() == [("uptake-on-ct", 1, 2)]
    assert folder.reasons() == {}


def test_spect_is_uptake(folder: Folder) -> None:
    folder.add(1, CT)
    folder.add(2, PT, Modality="NM", Units="CNTS")
    assert folder.pairs() == [("uptake-on-ct", 1, 2)]


def test_one_scan_alone_is_no_pair(folder: Folder) -> None:
    folder.add(1, MR)
    assert folder.pairs() == []
    assert folder.reasons() == {1: "fits uptake-on-mr, ct-on-mr, where it has no partner or another was chosen"}


def test_studies_and_patients_stay_apart(folder: Folder) -> None:
    folder.add(1, MR)
    folder.add(2, PT, days=1)
    folder.add(3, PT, patient="P2")
    folder.add(4, MR, patient="P2")
    assert folder.pairs() == [("uptake-on-mr", 4, 3)]


@pytest.mark.parametrize(("within", "paired"), [(None, False), (6, False), (7, True), (8, True)])
def test_one_patient_within_days(folder: Folder, within: int | None, paired: bool) -> None:
    folder.add(1, MR)
    folder.add(2, PT, days=7)
    folder.add(3, PT, days=7, patient="P2")
    assert folder.pairs(rule(within_days=within)) == [("one", 1, 2)] * paired


@pytest.mark.parametrize("lacking", [{"PatientID": ""}, {"SeriesDate": "", "AcquisitionDate": ""}])
def test_days_need_a_patient_and_a_date(folder: Folder, lacking: dict[str, str]) -> None:
    folder.add(1, MR, **lacking)
    folder.add(2, PT, days=7, **lacking)
    assert folder.pairs(rule(within_days=10_000)) == []


def test_of_a_pair_with_a_series_beside_one_is_of_the_folder(folder: Folder, tmp_path: Path) -> None:
    beside = Folder(tmp_path / "beside")
    beside.add(1, MR)
    beside.add(2, PT)
    own = Folder(tmp_path / "own")
    own.add(3, PT, days=1)
    rules = read_rules(None, {"rules": [rule(within_days=2)]})
    found = find_pairs(own.path, rules, beside.path)
    assert [(one.structural.series.number, one.functional.series.number) for one in found.matches] == [(1, 3)]
    assert len(find_pairs(folder.path, rules).matches) == 2  # without a folder beside, all count


def test_of_several_studies_the_own_one_goes_before_and_then_the_nearest(folder: Folder) -> None:
    folder.add(1, MR, slices=20, days=-2)
    folder.add(2, MR, slices=20, days=5)
    folder.add(3, PT)
    assert folder.pairs(rule(within_days=30)) == [("one", 1, 3)]
    folder.add(4, MR, slices=6)
    assert folder.pairs(rule(within_days=30)) == [("one", 4, 3)]


@pytest.mark.parametrize(
    ("criteria", "fitting"),
    [
        ({"description": "T1"}, {1}),
        ({"description": "t[12]"}, {1, 2}),
        ({"not_description": "sag"}, {2, 3}),
        ({"min_slices": 8}, {2, 3}),
        ({"max_slices": 8}, {1, 2}),
        ({"min_slices": 8, "max_slices": 8}, {2}),
        ({"exclude_image_types": ["DERIVED"]}, {1, 2}),
        ({"exclude_image_types": []}, {1, 2, 3}),
    ],
)
def test_criteria(folder: Folder, criteria: dict[str, Any], fitting: set[int]) -> None:
    folder.add(1, MR, slices=6, description="T1 SAG")
    folder.add(2, MR, slices=8, description="Ax T2")
    folder.add(3, MR, slices=12, description="FLAIR", ImageType=["DERIVED", "SECONDARY"])
    folder.add(9, PT)
    found = folder.pairs(rule({**criteria, "choose": "all"}))
    assert {structural for _, structural, _ in found} == fitting


@pytest.mark.parametrize("kind", ["MIP", "PROJECTION IMAGE", "ADC"])
def test_what_shows_no_anatomy_is_not_paired(folder: Folder, kind: str) -> None:
    folder.add(1, MR, ImageType=["DERIVED", "PRIMARY", kind])
    folder.add(2, PT)
    assert folder.pairs() == []
    assert folder.reasons()[1] == f"does not fit a rule: image type {kind}"


@pytest.mark.parametrize("name", ["axial", "coronal", "sagittal"])
def test_orientation(folder: Folder, name: str) -> None:
    along = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
    for number, axes in enumerate(along.values(), start=1):
        direction = np.eye(3)[:, axes]
        turned = direction if np.linalg.det(direction) < 0 else direction * (-1, 1, 1)
        grid = Grid.from_axes((6, 5, 7), (0, 0, 0), (3, 2, 2), turned, FRAME)
        volume = Volume(np.arange(210, dtype=np.float32).reshape(6, 5, 7), grid, MR, Unit.ARBITRARY)
        write_series(volume, folder.path / str(number), description="x", number=number, study=Study("P1", start=DAY))
    folder.add(9, PT)
    assert folder.pairs(rule({"orientation": name})) == [("one", 1 + list(along).index(name), 9)]


def test_how_one_of_several_is_chosen(folder: Folder) -> None:
    folder.add(1, MR, slices=9)
    folder.add(2, MR, slices=9, frame="1.2.826.0.1.999.2", SeriesTime="235959", AcquisitionTime="235959")
    folder.add(3, MR, slices=12, frame="1.2.826.0.1.999.2")
    folder.add(9, PT)
    chosen = {word: folder.pairs(rule({"choose": word})) for word in ("best", "most-slices", "latest", "all")}
    assert chosen == {
        "best": [("one", 1, 9)],  # in the frame of reference of the PET
        "most-slices": [("one", 3, 9)],
        "latest": [("one", 2, 9)],
        "all": [("one", 1, 9), ("one", 2, 9), ("one", 3, 9)],
    }


def test_the_best_pet_is_attenuation_corrected_and_original(folder: Folder) -> None:
    folder.add(1, CT)
    folder.add(2, PT, slices=12, CorrectedImage=["DECY"])
    folder.add(3, PT, slices=10, ImageType=["DERIVED", "SECONDARY"])
    folder.add(4, PT, slices=8)
    assert folder.pairs() == [("uptake-on-ct", 1, 4)]
    assert folder.pairs(rule({"modality": "CT"}, {"choose": "most-slices"})) == [("one", 1, 2)]


def test_of_equals_the_first_number_is_taken(folder: Folder) -> None:
    same = {"SeriesTime": "120000", "AcquisitionTime": "120000"}
    for number in (5, 4, 6):
        folder.add(number, MR, **same)
    folder.add(9, PT)
    assert folder.pairs() == [("uptake-on-mr", 4, 9)]


def test_two_rules_do_not_do_the_same_twice(folder: Folder) -> None:
    folder.add(1, MR)
    folder.add(2, PT)
    same = [{**DEFAULT[0], "name": name} for name in ("a", "b")]
    assert folder.pairs(*same) == [("a", 1, 2)]
    other = {**same[1], "fusion": {"method": "average"}}
    assert folder.pairs(same[0], other) == [("a", 1, 2), ("b", 1, 2)]


def test_what_medfuse_made_is_never_paired(folder: Folder) -> None:
    folder.add(1, MR, Manufacturer="medfuse", ImageType=["DERIVED", "SECONDARY"])
    contributor = Dataset()
    contributor.Manufacturer = "medfuse"
    folder.add(2, MR, ContributingEquipmentSequence=[contributor], ImageType=["DERIVED", "SECONDARY"])
    folder.add(3, PT)
    assert folder.pairs() == []
    reasons = folder.reasons()
    assert (reasons[1], reasons[2]) == ("a result of medfuse", "a result of medfuse")
    assert reasons[3].startswith("fits uptake-on-mr")


def test_a_series_in_colour_is_not_paired(folder: Folder) -> None:
    folder.add(2, PT)
    mr = phantom(MR, (6, 6, 7), FRAME)
    array = np.repeat(mr.array.astype(np.uint8)[..., None], 3, axis=3)
    write(Volume(array, mr.grid, Modality.FUSED, Unit.RGB), folder.path / "rgb", format="dicom")
    changes = {"Manufacturer": "ACME", "ContributingEquipmentSequence": [], "Modality": "MR", "SeriesNumber": 1}
    change_all(folder.path / "rgb", lambda dataset: _set(dataset, changes))
    assert folder.reasons()[1] == "a colour series"


def test_localizers_and_files_that_are_no_images_are_left_out(folder: Folder) -> None:
    folder.add(1, MR, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    folder.add(2, PT)
    folder.add(3, CT)
    (folder.path / "notes.txt").write_text("not DICOM")
    found = folder.find()
    assert [match.structural.series.number for match in found.matches] == [3]
    assert found.scan.list_left_out() == ["8 files: localizer (scout) image"]
    assert [path.name for path in found.scan.others] == ["notes.txt"]


def test_a_series_that_cannot_be_read_is_passed_over_with_its_reason(folder: Folder) -> None:
    place = folder.add(1, MR, slices=12)
    sorted(place.iterdir())[3].unlink()
    folder.add(2, MR, slices=6)
    folder.add(3, PT)
    assert folder.pairs() == [("uptake-on-mr", 2, 3)]
    assert "even" in folder.reasons()[1] or "gap" in folder.reasons()[1]


def test_a_modality_that_no_rule_asks_for(folder: Folder) -> None:
    folder.add(1, CT)
    assert folder.reasons(rule()) == {1: "no rule asks for the modality CT"}


def test_flat_folders_are_found_alike(folder: Folder, tmp_path: Path) -> None:
    for number, modality in ((1, CT), (2, PT)):
        place = folder.add(number, modality)
        for path in list(place.iterdir()):
            path.rename(tmp_path / f"{number}-{path.name}.x")
        place.rmdir()
    assert folder.pairs() == [("uptake-on-ct", 1, 2)]


def test_no_patient_is_in_a_repr(folder: Folder) -> None:
    folder.add(1, MR, patient="PID-271828")
    folder.add(2, PT, patient="PID-271828")
    found = folder.find()
    assert len(found.matches) == 1
    assert "271828" not in repr(found.matches)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="expected a folder, found none named none"):
        find_pairs(tmp_path / "none", read_rules())


def test_a_patient_of_the_real_data(shared: Path) -> None:
    found = find_pairs(shared / "ibsi-sts" / "dicom" / "STS_018", read_rules())
    told = [(match.rule.name, match.structural.info, match.functional.info) for match in found.matches]
    assert [(name, one.description, other.description) for name, one, other in told] == [
        ("uptake-on-mr", "IBSI_1_…_MR_T1_image", "IBSI_1_…_PET_image"),
        ("ct-on-mr", "IBSI_1_…_MR_T1_image", "IBSI_1_…_CT_image"),
    ]
    assert found.passed_over == ()
