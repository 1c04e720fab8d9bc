"""DICOMDIR: stands for its medium, and leads nowhere else."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from media import write_medium
from pydicom import Dataset

from medfuse.errors import UnreadableFile
from medfuse.io import limits
from medfuse.io.dicomdir import files_of_medium
from medfuse.io.files import inspect, read
from medfuse.volume import Volume


@pytest.fixture
def directory(ct_series: Path, tmp_path: Path) -> Path:
    return write_medium(ct_series, tmp_path / "medium")


def images(path: Path) -> list[Path]:
    return sorted(file for file in path.parent.rglob("*") if file.is_file() and file != path)


def change_records(path: Path, change: Callable[[Dataset], None]) -> None:
    dataset = pydicom.dcmread(path)
    for record in dataset.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            change(record)
    dataset.save_as(path)


def test_a_dicomdir_is_read_as_its_medium(directory: Path, oblique_volume: Volume) -> None:
    assert files_of_medium(directory) == sorted([directory, *images(directory)])
    np.testing.assert_array_equal(read(directory).array, oblique_volume.array)
    np.testing.assert_array_equal(read(directory.parent).array, oblique_volume.array)
    told = inspect(directory)
    assert (told.series[0].files, told.series[0].usable) == (5, True)


@pytest.mark.parametrize("case", [str.lower, lambda name: name + ";1", lambda name: name + "."])
def test_names_that_a_medium_writes_in_another_way(
    directory: Path, oblique_volume: Volume, case: Callable[[str], str]
) -> None:
    for path in images(directory):
        path.rename(path.with_name(case(path.name)))
    np.testing.assert_array_equal(read(directory).array, oblique_volume.array)


def test_a_slice_that_is_listed_but_absent_is_missed(directory: Path) -> None:
    """Without the list a missing slice at an end would pass unseen."""
    images(directory)[0].unlink()
    packed = directory.with_name("medium.zip")
    with zipfile.ZipFile(packed, "w") as archive:
        for path in directory.parent.rglob("*"):
            if path.is_file() and path != packed:
                archive.write(path, path.relative_to(directory.parent))
    packed = packed.rename(directory.parent.with_name("medium.zip"))
    for place in (directory, directory.parent, packed):
        with pytest.raises(UnreadableFile, match="1 damaged or unreadable, which may belong to the series"):
            read(place)
        assert "1 file: file that cannot be opened" in inspect(place).left_out
    directory.rename(directory.with_name("dicomdir;1"))
    with pytest.raises(UnreadableFile, match="1 damaged or unreadable, which may belong to the series"):
        read(directory.parent)


def test_a_slice_that_is_not_listed_is_read_all_the_same(directory: Path, oblique_volume: Volume) -> None:
    dataset = pydicom.dcmread(directory)
    del dataset.DirectoryRecordSequence[-1]
    dataset.save_as(directory)
    np.testing.assert_array_equal(read(directory).array, oblique_volume.array)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize(
    "components", [["..", "X"], ["/etc/passwd"], ["A", "..", ".."], ["C:", "X"], ["A/B"], ["."] * 2]
)
def test_no_name_leads_out(directory: Path, components: list[str]) -> None:
    change_records(directory, lambda record: setattr(record, "ReferencedFileID", components))
    with pytest.raises(UnreadableFile, match="below the folder of DICOMDIR, found one that leads elsewhere"):
        read(directory)


def test_no_link_leads_out(directory: Path, tmp_path: Path) -> None:
    image = images(directory)[0]
    image.rename(tmp_path / "elsewhere")
    image.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnreadableFile, match="below the folder of DICOMDIR, found a link that leads elsewhere"):
        read(directory)


def test_a_link_in_a_circle_is_a_slice_that_is_missed(directory: Path) -> None:
    image = images(directory)[0]
    image.unlink()
    image.symlink_to(image)
    with pytest.raises(UnreadableFile, match="1 damaged or unreadable, which may belong to the series"):
        read(directory)


def test_records_out_of_use_are_passed_over(directory: Path, oblique_volume: Volume) -> None:
    def retire(record: Dataset) -> None:
        record.RecordInUseFlag = 0
        record.ReferencedFileID = ["GONE"]

    change_records(directory, retire)
    np.testing.assert_array_equal(read(directory).array, oblique_volume.array)


def test_a_list_without_end_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_UNPACKED_FILES", 7)
    with pytest.raises(UnreadableFile, match="at most 7 records, found 8 in DICOMDIR"):
        read(directory)


def test_what_is_no_dicomdir_stands_for_itself(ct_series: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no DICOM")
    for path in (next(ct_series.iterdir()), tmp_path / "text"):
        assert files_of_medium(path) is None
