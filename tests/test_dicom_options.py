"""What may be said of a DICOM series, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from derived import fake_header, objects, volume_of

from medfuse.io.dicom_options import DicomOptions
from medfuse.volume import Source, Step, Volume

WARNING = " - not for diagnostic use"


def fused(**align: object) -> Volume:
    told = {"structural": {"modality": "MR"}, "functional": {"modality": "PT"}, "method": "dilran", "strategy": "mean"}
    volume = volume_of("color", source=Source("dicom", fake_header(SpecificCharacterSet="ISO_IR 100")))
    return Volume(
        volume.array,
        volume.grid,
        volume.modality,
        volume.unit,
        volume.source,
        (Step("align", align), Step("fuse", told)),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{structural}/{functional} {method} {strategy}", "MR/PT dilran mean"),
        ("Fusion für Nr. {{7}}", "Fusion für Nr. {7}"),
        ("融合", "融合"),
        ("x" * 99, "x" * (64 - len(WARNING))),
    ],
)
def test_description_by_template(text: str, expected: str, tmp_path: Path) -> None:
    for dataset in objects(fused(), tmp_path, series_description=text):
        assert dataset.SeriesDescription == expected + WARNING
        assert dataset.PatientName == "Müller^Jürgen"


def test_a_doubtful_match_is_said_after_any_text(tmp_path: Path) -> None:
    volume = fused(registered=True, trust="doubtful")
    dataset = objects(volume, tmp_path, series_description="mine " * 20)[0]
    assert dataset.SeriesDescription.endswith(" (doubtful match)" + WARNING)
    assert len(dataset.SeriesDescription) <= 64


def test_a_field_that_the_history_does_not_fill_is_empty(tmp_path: Path) -> None:
    dataset = objects(volume_of("whole"), tmp_path, series_description="MR{method}{functional}")[0]
    assert dataset.SeriesDescription == "MR" + WARNING


@pytest.mark.parametrize(
    "field", ["{patient}", "{}", "{0}", "{method!r}", "{method:>9}", "{method.name}", "{method[0]}"]
)
def test_other_fields_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=r"fields of \{structural\}, \{functional\}, \{method\}, \{strategy\}"):
        DicomOptions(series_description=f"a {field}")


@pytest.mark.parametrize("text", ["a\\b", "a\nb", "", "  ", "a\x1b[2J"])
def test_texts_that_dicom_cannot_hold_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="printable characters without a backslash"):
        DicomOptions(series_description=text)


def test_an_unbalanced_brace_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fields in the series description as \{method\}"):
        DicomOptions(series_description="{method")


@pytest.mark.parametrize(("given", "nth", "expected"), [(1, 1, 1), (50, 1, 50), (50, 2, 51), (2**31 - 1, 2, 2**31 - 1)])
def test_series_number(given: int, nth: int, expected: int, tmp_path: Path) -> None:
    from medfuse.io.dicom_derived import series_number

    assert series_number(fused(), nth, given) == expected
    assert objects(fused(), tmp_path, series_number=given)[0].SeriesNumber == given


@pytest.mark.parametrize("number", [0, -1, 2**31])
def test_series_numbers_out_of_range_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="series number of 1 to 2147483647"):
        DicomOptions(series_number=number)


def test_other_forms_of_grey_are_refused() -> None:
    with pytest.raises(ValueError, match="grey as mr or parametric-map, got 'ct'"):
        DicomOptions(grey_as="ct")
