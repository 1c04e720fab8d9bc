"""The texts that say where a derived image comes from, and what is carried on from a header."""

from __future__ import annotations

import re
import string
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from medfuse.grid import Grid
from medfuse.io.dicom_provenance import carry, derivation_description, series_description
from medfuse.volume import Modality, Source, Step, Unit, Volume

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=20) | st.dictionaries(st.text(), values, max_size=5),
)
STEPS = st.lists(st.builds(Step, st.text(max_size=40), st.dictionaries(st.text(), PLAIN, max_size=6)), max_size=30)


def header(modality: str) -> Dataset:
    dataset = Dataset()
    dataset.Modality = modality
    return dataset


def fused(*modalities: str, history: tuple[Step, ...] = ()) -> Volume:
    """A colour volume of sources of these modalities, the structural one first."""
    first, *others = [Source("dicom", header(modality)) for modality in modalities] or [Source("nifti")]
    source = Source(first.format, first.header, (), tuple(others))
    grid = Grid((1, 1, 1), np.eye(4))
    return Volume(np.zeros((1, 1, 1, 3), np.uint8), grid, Modality.FUSED, Unit.RGB, source, history)


@pytest.mark.parametrize(
    ("modalities", "method", "expected"),
    [
        (("MR", "PT"), "dilran", "medfuse PT+MR dilran - not for diagnostic use"),
        (("MR", "CT"), "average", "medfuse CT+MR average - not for diagnostic use"),
        (("MR", "MR"), None, "medfuse MR - not for diagnostic use"),
        ((), "dilran", "medfuse dilran - not for diagnostic use"),
        ((), None, "medfuse - not for diagnostic use"),
        ((), "a\\b\nü", "medfuse a/b?? - not for diagnostic use"),
    ],
)
def test_series_description(modalities: tuple[str, ...], method: str | None, expected: str) -> None:
    history = (Step("read"), Step("fuse", {"method": method}), Step("write")) if method else ()
    assert series_description(fused(*modalities, history=history)) == expected


def test_a_converted_scan_without_header_is_named_by_its_modality() -> None:
    volume = Volume(np.zeros((1, 1, 1)), Grid((1, 1, 1), np.eye(4)), Modality.MR)
    assert series_description(volume) == "medfuse MR - not for diagnostic use"


@given(method=st.text())
def test_series_description_is_short_and_keeps_its_warning(method: str) -> None:
    text = series_description(fused("MR", "PT", history=(Step("fuse", {"method": method}),)))
    assert len(text) <= 64
    assert text.startswith("medfuse PT+MR")
    assert text.endswith(" - not for diagnostic use")
    assert set(text) <= set(string.printable[:95]) - {"\\"}


@given(history=STEPS)
def test_derivation_description_fits_its_value_representation(history: list[Step]) -> None:
    text = derivation_description(history)
    assert len(text) <= 1024
    assert text.isascii()
    assert text.isprintable()
    assert "not for diagnostic use" in text


@pytest.mark.parametrize("steps", [1, 100])
def test_what_the_alignment_rests_on_is_never_cut_away(steps: int) -> None:
    numbers = {
        "kind": "rigid",
        "nmi_before": 1.02,
        "shift_mm": 12.34567,
        "folded": None,
        "agreement_mm": {"start": 1.0},
    }
    aligned = Step("align", {"reason": "rigid registration, doubtful (agreement 9.1 mm)", "registration": numbers})
    text = derivation_description((aligned, *[Step("smooth", {"sigma_mm": 1.5})] * steps))
    assert (
        "; aligned by: rigid registration, doubtful (agreement 9.1 mm); registration: nmi_before 1.02, shift_" in text
    )
    assert "shift_mm 12.35; align(" in text
    endless = derivation_description((Step("align", {"reason": "rigid registration, failed (" + "x" * 5000}),))
    assert "; aligned by: rigid registration, failed (xxx" in endless
    assert len(endless) <= 1024


@pytest.mark.parametrize(
    ("registered", "trust", "expected"),
    [
        (True, "doubtful", "medfuse PT+MR zero-lea (doubtful match) - not for diagnostic use"),
        (True, "failed", "medfuse PT+MR zero-learn (failed match) - not for diagnostic use"),
        (True, "trusted", "medfuse PT+MR zero-learning - not for diagnostic use"),
        (True, "x" * 99, "medfuse PT+MR zero-learning - not for diagnostic use"),
        (False, "doubtful", "medfuse PT+MR zero-learning - not for diagnostic use"),
    ],
)
def test_a_series_that_lies_by_an_untrusted_registration_says_so(registered: bool, trust: str, expected: str) -> None:
    aligned = Step("align", {"registered": registered, "trust": trust})
    text = series_description(fused("MR", "PT", history=(aligned, Step("fuse", {"method": "zero-learning"}))))
    assert len(text) <= 64
    assert text == expected


def test_derivation_description_tells_every_step() -> None:
    history = (
        Step("register", {"kind": "rigid", "transform": [[1 / 3, 0.0], [0, 1]]}, "0.0.9"),
        Step("fuse", {"method": "dilran", "weights": "ab" * 32}),
    )
    text = derivation_description(history)
    assert 'register [0.0.9](kind="rigid", transform=[[0.3333333, 0.0], [0, 1]])' in text
    assert f'fuse(method="dilran", weights="{"ab" * 32}")' in text


def test_a_long_value_is_shortened_before_a_step_is_lost() -> None:
    history = (Step("register", {"samples": list(range(2000))}), Step("fuse", {"weights": "ab" * 32}))
    text = derivation_description(history)
    assert re.search(r"samples=\[0, 1, 2, .*\.\.\.\); fuse\(", text)
    assert "ab" * 32 in text


def test_too_many_steps_end_in_dots() -> None:
    assert derivation_description([Step("smooth", {"sigma_mm": 1.5})] * 100).endswith("...")


def test_carry_leaves_what_it_cannot_use() -> None:
    source, target = Dataset(), Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        source.StudyID = "longer than sixteen characters"
        source.PatientID = "p" * 70
        source.StudyTime = ""
        source.PatientSex = "X"
        source.PatientAge = "030Y"
        source.PatientWeight = "70.25"
        source.SoftwareVersions = ["1", "2"]
        target.StudyID = target.PatientAge = ""
        carry(source, target, [*source.dir(), "PatientSize"])
        assert target.PatientID == "p" * 70
    assert (target.StudyID, target.PatientAge, target.PatientWeight) == ("", "030Y", 70.25)
    assert list(target.SoftwareVersions) == ["1", "2"]
    assert not {"StudyTime", "PatientSex", "PatientSize"} & set(target.dir())


def test_carry_copies_sequences_by_value() -> None:
    source, target, item = Dataset(), Dataset(), Dataset()
    item.CodeValue = "113100"
    source.DeidentificationMethodCodeSequence = [item]
    carry(source, target, ["DeidentificationMethodCodeSequence"])
    target.DeidentificationMethodCodeSequence[0].CodeValue = "other"
    assert source.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
