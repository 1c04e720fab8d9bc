"""Finding, grouping, leaving out and choosing DICOM series."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from edits import edit
from pydicom.uid import RTStructureSetStorage, SecondaryCaptureImageStorage, SegmentationStorage, UltrasoundImageStorage

from medfuse.errors import SeriesError, UnreadableFile
from medfuse.grid import Grid
from medfuse.io.dicom_read import plan
from medfuse.io.dicom_series import Series, choose, files_below, scan
from medfuse.io.files import inspect
from medfuse.sample.series import write_series
from medfuse.volume import Modality, Unit, Volume


def found_in(folder: Path) -> list[Series]:
    return list(scan(files_below(folder)).series)


def test_files_of_any_name_and_depth_are_found_among_others(ct_series: Path, pt_series: Path) -> None:
    root = ct_series.parent
    for n, path in enumerate(sorted(pt_series.iterdir())):
        deeper = ct_series / f"d{n}" / "e"
        deeper.mkdir(parents=True)
        path.rename(deeper / f"{n}")
    (ct_series / ".DS_Store").write_bytes(b"\0" * 200)
    (ct_series / "empty").touch()
    (ct_series / "notes.txt").write_text("DICM")
    result = scan(files_below(root))
    assert [(one.number, one.modality, one.images) for one in result.series] == [
        (3, Modality.CT, 5),
        (4, Modality.PT, 5),
    ]
    assert sorted(path.name for path in result.others) == [".DS_Store", "empty", "notes.txt"]
    assert not result.left_out


def test_choice_by_number_uid_or_modality(ct_series: Path, pt_series: Path) -> None:
    result = scan(files_below(ct_series.parent))
    ct, pt = result.series
    assert choose(result, 3) is ct
    assert choose(result, "4") is pt
    assert choose(result, pt.uid) is pt
    assert choose(result, modality=Modality.CT) is ct


def test_ambiguous_or_absent_choice_lists_the_candidates(ct_series: Path, pt_series: Path) -> None:
    result = scan(files_below(ct_series.parent))
    listed = r"number 3 \(CT, 5 images of 7 × 9\); number 4 \(PT, 5 images of 7 × 9\)"
    with pytest.raises(SeriesError, match=rf"expected one series, found 2 among 2: {listed}\. .*--series"):
        choose(result)
    with pytest.raises(SeriesError, match=rf"found none that fits among 2: {listed}"):
        choose(result, 9)
    with pytest.raises(SeriesError, match=rf"found none that fits among 2: {listed}"):
        choose(result, modality=Modality.MR)


def test_the_only_series_that_can_be_a_volume_is_chosen(ct_series: Path, pt_series: Path) -> None:
    for path in sorted(pt_series.iterdir())[1:]:
        path.unlink()
    result = scan(files_below(ct_series.parent))
    assert choose(result).number == 3
    assert choose(result, 4).images == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SOPClassUID": RTStructureSetStorage, "Rows": None}, "RT Structure Set holds no image"),
        ({"SOPClassUID": SegmentationStorage}, "Segmentation is not a scan"),
        ({"SOPClassUID": UltrasoundImageStorage}, "Ultrasound Image is not a scan"),
        ({"SOPClassUID": "1.2.3.4.5"}, "object of an unknown class is not a scan"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer (scout) image"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen capture, without a place in the patient"),
        (
            {"SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None},
            "screen capture, without a place in the patient",
        ),
    ],
)
def test_what_is_no_scan_is_left_out_with_its_reason(ct_series: Path, changes: dict[str, object], reason: str) -> None:
    edit(sorted(ct_series.iterdir())[0], **changes)
    result = scan(files_below(ct_series))
    assert result.list_left_out() == [f"1 file: {reason}"]
    assert result.series[0].images == 4
    for path in ct_series.iterdir():
        edit(path, **changes) if path.name != sorted(ct_series.iterdir())[0].name else None
    with pytest.raises(SeriesError, match="expected a series of images, found none"):
        choose(scan(files_below(ct_series)))


def test_copies_of_a_file_count_once_but_not_another_image_with_its_uid(ct_series: Path) -> None:
    first = min(ct_series.iterdir())
    shutil.copy(first, ct_series / "copy")
    result = scan(files_below(ct_series))
    assert result.series[0].images == 5
    assert result.list_left_out() == ["1 file: copy of an image that is there already"]
    edit(ct_series / "copy", InstanceNumber=99)
    assert found_in(ct_series)[0].images == 6


@pytest.mark.parametrize("length", [140, 350, 500, 700, 1000])
def test_a_damaged_file_may_be_a_slice_and_stops_the_choice(ct_series: Path, length: int) -> None:
    last = sorted(ct_series.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:length])
    with pytest.raises(UnreadableFile, match="found 1 damaged or unreadable, which may belong to the series"):
        choose(scan(files_below(ct_series)))


def test_several_patients_in_one_series_are_refused(ct_series: Path) -> None:
    edit(sorted(ct_series.iterdir())[0], PatientID="SECRET-2")
    with pytest.raises(SeriesError, match="found 2 different patients") as caught:
        plan(found_in(ct_series)[0])
    assert "SECRET" not in str(caught.value)


def test_a_file_without_preamble_is_dicom_too(ct_series: Path) -> None:
    for path in ct_series.iterdir():
        ds = pydicom.dcmread(path)
        del ds.file_meta
        ds.preamble = None
        pydicom.dcmwrite(path, ds, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    assert found_in(ct_series)[0].images == 5
    assert plan(found_in(ct_series)[0]).stack.grid.shape == (5, 7, 9)


def test_a_thousand_files_are_one_series(oblique_grid: Grid, tmp_path: Path) -> None:
    grid = Grid.from_axes((1000, 4, 4), (0, 0, 0), (1, 1, 1), oblique_grid.direction, "1.2.3")
    array = np.zeros(grid.shape, np.float32)
    write_series(Volume(array, grid, Modality.CT, Unit.HU), tmp_path, description="CT", number=1)
    (info,) = inspect(tmp_path).series
    assert (info.files, info.shape, info.usable) == (1000, (1000, 4, 4), True)


def test_real_series_and_structure_sets_are_told_apart(shared: Path) -> None:
    result = scan(files_below(shared / "ibsi-sts" / "dicom" / "STS_002"))
    assert [(one.modality, one.images) for one in result.series] == [
        (Modality.CT, 48),
        (Modality.PT, 48),
        (Modality.MR, 35),
    ]
    assert result.list_left_out() == ["3 files: RT Structure Set holds no image"]


def test_links_to_nothing_may_have_been_slices(ct_series: Path) -> None:
    """As where the content of a file was not fetched; a loop of links ends likewise."""
    (ct_series / "notes").symlink_to(ct_series / "notes")
    assert len(scan(files_below(ct_series)).series[0].files) == 5
    (ct_series / "z.dcm").symlink_to(ct_series / "nowhere")
    with pytest.raises(UnreadableFile, match=r"\(z\.dcm: file that cannot be opened\)"):
        choose(scan(files_below(ct_series)))


def test_a_folder_that_cannot_be_looked_into_is_not_passed_over(
    ct_series: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ct_series / "closed").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UnreadableFile, match=r"found that closed cannot be \(Permission denied\)"):
        files_below(ct_series)


def test_notes_of_macos_are_not_damaged_images(ct_series: Path) -> None:
    (ct_series / "._IM0001.dcm").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(100))
    assert len(choose(scan(files_below(ct_series))).files) == 5


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "SOPClassUID", "Rows"])
def test_what_an_image_lacks_is_named(ct_series: Path, keyword: str) -> None:
    path = min(ct_series.iterdir())
    dataset = pydicom.dcmread(path)
    del dataset[keyword]
    dataset.save_as(path)
    with pytest.raises(UnreadableFile, match=rf"\({path.name}: damaged DICOM file without {keyword}\)"):
        choose(scan(files_below(ct_series)))


def test_linked_folders_are_looked_into_once_and_not_upwards(ct_series: Path, pt_series: Path) -> None:
    """As in trees that a data manager keeps; a link to a folder above would have the whole disk read."""
    tree = ct_series.parent / "tree"
    (tree / "deep").mkdir(parents=True)
    for name, target in {"ct": ct_series, "again": ct_series, "deep/up": tree.parent, "deep/self": tree}.items():
        (tree / name).symlink_to(target, target_is_directory=True)
    result = scan(files_below(tree))
    assert [len(one.files) for one in result.series] == [5]
    assert not result.left_out
    assert len(scan(files_below(tree / "ct")).series[0].files) == 5
