"""Scans in zip archives: read from a temporary folder, which an archive may neither fill nor leave."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from media import write_medium, zipped

from medfuse.errors import SeriesError, UnreadableFile
from medfuse.io import limits
from medfuse.io.archive import _check_count, unpacked
from medfuse.io.files import inspect, read, write
from medfuse.volume import Volume


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_members_are_told_by_content_in_folders_of_any_depth(
    ct_series: Path, oblique_volume: Volume, tmp_path: Path, temporary: Path
) -> None:
    contents = [path.read_bytes() for path in ct_series.iterdir()]
    members = [(f"a{n}/" * n + f"IM{n}", content) for n, content in enumerate(contents)]
    path = zip_of(tmp_path / "scan.data", ("readme.txt", b"no scan"), *members)
    np.testing.assert_array_equal(read(path).array, oblique_volume.array)
    told = inspect(path)
    assert told.series[0].usable
    assert told.left_out == ("1 file: no image format that is known",)
    assert list(temporary.iterdir()) == []


def test_the_folder_goes_with_the_block(ct_series: Path, tmp_path: Path, temporary: Path) -> None:
    with unpacked(zipped(ct_series, tmp_path / "x.zip")) as folder:
        assert folder.parent == temporary
        assert len(list(folder.iterdir())) == 5
    assert list(temporary.iterdir()) == []
    with pytest.raises(ZeroDivisionError, match="zero"), unpacked(tmp_path / "x.zip"):
        _ = 1 / 0
    assert list(temporary.iterdir()) == []


def test_what_is_no_archive_is_given_back(ct_series: Path) -> None:
    for path in (ct_series, next(ct_series.iterdir())):
        with unpacked(path) as same:
            assert same == path


def test_what_macos_adds_is_left_packed(ct_series: Path, oblique_volume: Volume, tmp_path: Path) -> None:
    members = [(path.name, path.read_bytes()) for path in ct_series.iterdir()]
    added = [(f"__MACOSX/._{name}", b"\0\5\x16\7") for name, _ in members]
    np.testing.assert_array_equal(read(zip_of(tmp_path / "x.zip", *members, *added)).array, oblique_volume.array)


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "C:\\evil", "..\\evil", "a/..\\..\\evil", "//h/s/x"]
)
def test_no_path_leads_out(tmp_path: Path, temporary: Path, name: str) -> None:
    path = zip_of(tmp_path / "x.zip", ("first", b"x"), (name, b"x"))
    with pytest.raises(UnreadableFile, match=r"a path that leads out of it in x\.zip"):
        read(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["temporary", "x.zip"]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (kind | 0o777) << 16
    with pytest.raises(UnreadableFile, match=r"found a link or device in x\.zip"):
        read(zip_of(tmp_path / "x.zip", (link, b"/etc/passwd")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"one name 2 times in x\.zip"):
        read(zip_of(tmp_path / "x.zip", ("a", b"1"), ("a", b"2")))


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_UNPACKED_BYTES", 99_999, r"at most 99999 bytes in .*, found 100001 in 2 in x\.zip"),
        ("MAX_UNPACKED_FILES", 1, r"in 1 files, found 100001 in 2 in x\.zip"),
        ("RATIO_FROM_BYTES", 10_000, r"at most 200 times its size, found x\.zip to unpack to 100001 bytes"),
    ],
)
def test_bombs_are_refused_before_they_are_unpacked(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, message: str
) -> None:
    monkeypatch.setattr(limits, limit, value)
    with pytest.raises(UnreadableFile, match=message):
        read(zip_of(tmp_path / "x.zip", ("zeros", bytes(100_000)), ("one", b"1")))
    assert list(temporary.iterdir()) == []


def test_a_member_never_unpacks_to_more_than_it_says(tmp_path: Path, temporary: Path) -> None:
    path = zip_of(tmp_path / "x.zip", ("zeros", bytes(1_000_000)))
    honest, lie = (1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(honest, lie))
    with pytest.raises(UnreadableFile, match=r"found x\.zip damaged"):
        read(path)


def test_room_is_asked_for_first(ct_series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(UnreadableFile, match=r"expected room for \d+ bytes to unpack x\.zip"):
        read(zipped(ct_series, tmp_path / "x.zip"))


def test_encrypted_and_oddly_packed_archives_are_refused(ct_series: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", b"x" * 100)
    with pytest.raises(UnreadableFile, match=r"deflate or bzip2, found another method in x\.zip"):
        read(tmp_path / "x.zip")
    raw = bytearray(zip_of(tmp_path / "y.zip", ("a", b"x")).read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "y.zip").write_bytes(raw)
    with pytest.raises(UnreadableFile, match=r"found y\.zip encrypted"):
        read(tmp_path / "y.zip")


@pytest.mark.parametrize("field", [28, 32])
def test_members_that_damage_hides_are_missed(ct_series: Path, tmp_path: Path, field: int) -> None:
    """The length of a name or of a comment that swallows what is listed after it."""
    raw = bytearray(zipped(ct_series, tmp_path / "x.zip").read_bytes())
    place = [at.start() for at in re.finditer(b"PK\1\2", raw)][2]
    raw[place + field + 1] = 0x10
    (tmp_path / "x.zip").write_bytes(raw)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert len(archive.infolist()) == 3  # of five
    with pytest.raises(UnreadableFile, match=r"expected a whole zip archive, found 3 of 5 files in x\.zip"):
        read(tmp_path / "x.zip")


def test_large_archives_say_elsewhere_how_many_files_they_have(tmp_path: Path) -> None:
    count = 2**16 + 3
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.comment = b"a comment"
        for number in range(count):
            archive.writestr(str(number), b"")
    _check_count(count, tmp_path / "x.zip")
    with pytest.raises(UnreadableFile, match=f"found {count - 1} of {count} files"):
        _check_count(count - 1, tmp_path / "x.zip")


def test_an_archive_in_an_archive_stays_packed_and_is_told(ct_series: Path, tmp_path: Path) -> None:
    inner = zipped(ct_series, tmp_path / "inner.zip").read_bytes()
    outer = zip_of(tmp_path / "outer.zip", ("inner.zip", inner), ("again", inner))
    assert inspect(outer).left_out == ("2 files: zip archive, which is opened only where it is given itself",)
    with pytest.raises(SeriesError, match="a zip in a folder or a zip stays packed"):
        read(outer)


@pytest.mark.parametrize("content", [b"PK\3\4", b"PK\3\4" + bytes(500)])
def test_what_only_begins_as_an_archive_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"found x\.zip damaged"):
        read(tmp_path / "x.zip")


def test_files_that_belong_together_stay_together(oblique_volume: Volume, tmp_path: Path) -> None:
    """A sidecar, the two files of a NIfTI pair, and a medium with its DICOMDIR."""
    image, sidecar = write(oblique_volume, tmp_path / "x.nii")
    loaded = nib.load(image)
    pair = nib.Nifti1Pair(np.asarray(loaded.dataobj), loaded.affine, loaded.header)
    nib.save(pair, tmp_path / "pair.hdr")
    names = {"x.hdr": "pair.hdr", "x.img": "pair.img", "x.json": sidecar.name}
    packed = zip_of(tmp_path / "x.zip", *((new, (tmp_path / old).read_bytes()) for new, old in names.items()))
    volume = read(packed)
    np.testing.assert_array_equal(volume.array, oblique_volume.array)
    assert volume.modality is oblique_volume.modality
    assert inspect(packed).left_out == ()


def test_a_medium_in_an_archive(ct_series: Path, oblique_volume: Volume, tmp_path: Path) -> None:
    root = write_medium(ct_series, tmp_path / "medium").parent
    packed = Path(shutil.make_archive(str(tmp_path / "x"), "zip", root))
    np.testing.assert_array_equal(read(packed).array, oblique_volume.array)
