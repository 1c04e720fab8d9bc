"""The options of `medfuse fuse` that name, number and shape a DICOM series."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage, ParametricMapStorage
from typer.testing import CliRunner

from medfuse.cli import app

WORDS = ("--method", "average", "--device", "cpu")


def run(*words: object) -> str:
    result = CliRunner().invoke(app, ["fuse", *map(str, words), *WORDS])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_named_and_numbered_object(ct_series: Path, pt_series: Path, tmp_path: Path) -> None:
    text = "{structural} with {functional} by {method}"
    options = ("--multiframe", "--stable-uids", "--series-number", 50, "--series-description", text)
    found = []
    for name in ("one", "two"):
        run(ct_series, pt_series, "-o", tmp_path / name, *options)
        found.append(pydicom.dcmread(tmp_path / name / "fused.dcm"))
    assert found[0].SOPClassUID == MultiFrameTrueColorSecondaryCaptureImageStorage
    assert found[0].SeriesDescription == "CT with PT by average - not for diagnostic use"
    assert found[0].SeriesNumber == 50
    assert found[0].SOPInstanceUID == found[1].SOPInstanceUID


def test_grey_as_a_map(ct_series: Path, tmp_path: Path) -> None:
    options = ("--functional-modality", "mr", "--grey-as", "parametric-map")
    run(ct_series, ct_series, "-o", tmp_path / "out", *options)
    assert pydicom.dcmread(tmp_path / "out" / "fused.dcm").SOPClassUID == ParametricMapStorage


def test_what_rides_along_gets_the_next_number(ct_series: Path, pt_series: Path, tmp_path: Path) -> None:
    run(ct_series, pt_series, "--also", pt_series, "--series-number", 50, "-o", tmp_path / "out")
    paths = [tmp_path / "out" / "fused-0001.dcm", tmp_path / "out" / "also" / "fused-0001.dcm"]
    assert [pydicom.dcmread(path).SeriesNumber for path in paths] == [50, 51]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--series-description", "{patient}"), "expected fields of {structural}"),
        (("--series-number", "0"), "expected a series number of 1 to"),
        (("--grey-as", "ct"), "expected grey as mr or parametric-map"),
        (("--format", "nifti", "--multiframe"), "expected a DICOM series with the options of one"),
        (("--format", "nifti", "--stable-uids"), "expected a DICOM series with the options of one"),
    ],
)
def test_wrong_words_are_refused_before_reading(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fuse", "no-such-a", "no-such-b", "-o", str(tmp_path / "out"), *options, *WORDS])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
