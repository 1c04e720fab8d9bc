"""Which other studies of a patient are fetched for a rule that pairs series some days apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from medfuse.pacs import priors
from medfuse.pacs.client import Found
from medfuse.pacs.priors import MOST, days_of, fetch_priors
from medfuse.pacs.rules import Rules, read_rules
from medfuse.pacs.settings import Destination
from medfuse.sample.series import Study, write_series
from medfuse.volume import Modality, Unit, Volume

Write = Callable[..., Path]
UNITS = {"CT": Unit.HU, "MR": Unit.ARBITRARY, "PT": Unit.SUV}
ARCHIVE = Destination("archive", "ARCHIVE", "pacs.example")


def rules(*days: int | None) -> Rules:
    one = {"structural": {"modality": "MR"}, "functional": {"modality": "CT"}}
    return read_rules(
        None, {"rules": [{"name": f"r{n}", **one, **({"within_days": d} if d else {})} for n, d in enumerate(days)]}
    )


class Asked:
    """An archive: what it was asked for, and which studies were fetched from it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *has: Found) -> None:
        self.matches: list[dict[str, str]] = []
        self.fetched: list[str] = []
        self.has = list(has)
        monkeypatch.setattr(priors, "find", self.find)
        monkeypatch.setattr(priors, "pull", self.pull)

    def find(self, at: Destination, matches: dict[str, str], _ae_title: str) -> list[Found]:
        assert at is ARCHIVE
        self.matches.append(matches)
        return self.has

    def pull(self, study: str, series: str | None, *_others: Any) -> None:
        assert series is None
        self.fetched.append(study)


@pytest.fixture
def study(oblique_volume: Volume, tmp_path: Path) -> Callable[..., Path]:
    """Writes a study with a series of each modality, perhaps with other attributes; its folder."""

    def write(*modalities: str, **attributes: str) -> Path:
        folder, made = tmp_path / "in", Study("SECRET-4711", "Zweistein^Oda", 70.0, "1.2", datetime(2024, 2, 29, 9))
        for number, name in enumerate(modalities or ("CT",)):
            volume = replace(oblique_volume, array=abs(oblique_volume.array), modality=Modality(name), unit=UNITS[name])
            write_series(volume, folder / name, description=name, number=number, study=made)
        for path in folder.rglob("*.dcm") if attributes else ():
            dataset = dcmread(path)
            for keyword, value in attributes.items():
                setattr(dataset, keyword, value)
            dataset.save_as(path)
        return folder

    return write


def test_the_widest_rule_counts() -> None:
    assert [days_of(rules(*days)) for days in ((None,), (3,), (None, 3, 30))] == [None, 3, 30]


def test_the_nearest_with_what_the_rules_lack_are_fetched(
    tmp_path: Path, study: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Asked(
        monkeypatch,
        Found("1.2", "20240229", ("CT",), 9),
        Found("1.3", "20240229", ("US", "SR"), 9),
        Found("1.4", "20240301", (), 9),
        *(Found(f"1.5.{day}", f"202402{day:02d}", ("MR", "SR"), 9) for day in range(20, 29)),
        Found("1.6", "", ("MR",), 9),
        Found("1.7", "20240229", ("CT",), 9),  # as the study itself
    )
    assert fetch_priors(study(), rules(None, 30), ARCHIVE, tmp_path) == MOST
    assert archive.fetched == ["1.4", "1.5.28", "1.5.27", "1.5.26", "1.5.25"]
    assert archive.matches == [{"patient": "SECRET-4711", "date": "20240129-20240331"}]


@pytest.mark.parametrize(
    "attributes", [{"PatientID": ""}, {"PatientID": "SECRET*"}, {"PatientID": "A?"}, {"StudyDate": ""}]
)
def test_without_a_patient_or_a_date_nothing_is_asked(
    tmp_path: Path, study: Write, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, str]
) -> None:
    archive = Asked(monkeypatch, Found("1.4", "20240301", ("MR",), 9))
    assert fetch_priors(study(**attributes), rules(30), ARCHIVE, tmp_path) == 0
    assert (archive.matches, archive.fetched) == ([], [])


@pytest.mark.parametrize("modalities", [("PT",), ("CT", "MR")], ids=["nothing of a pair", "a whole pair"])
def test_what_lacks_nothing_asks_for_nothing(
    tmp_path: Path, study: Write, monkeypatch: pytest.MonkeyPatch, modalities: tuple[str, ...]
) -> None:
    archive = Asked(monkeypatch, Found("1.4", "20240301", ("MR", "CT"), 9))
    assert fetch_priors(study(*modalities), rules(30), ARCHIVE, tmp_path) == 0
    assert archive.matches == []


def test_without_such_a_rule_nothing_is_asked(tmp_path: Path, study: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Asked(monkeypatch, Found("1.4", "20240301", ("MR",), 9))
    assert fetch_priors(study(), rules(None), ARCHIVE, tmp_path) == 0
    assert archive.matches == []
