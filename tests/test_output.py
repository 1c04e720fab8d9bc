"""`whole`: a result is there whole, or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from medfuse.align.transform import check_transform_target
from medfuse.errors import OutputError
from medfuse.io.files import check_output
from medfuse.output import check_target, whole


def _write_folder(path: Path, names: list[str], *, overwrite: bool = False, text: str = "new") -> None:
    with whole(path, overwrite=overwrite) as beside:
        beside.mkdir()
        for name in names:
            (beside / name).write_text(text)


def _fail_half_way(path: Path, error: BaseException) -> None:
    with whole(path, overwrite=True) as beside:
        beside.mkdir()
        (beside / "half").write_text("half")
        raise error


def test_file_and_folder_appear_with_their_parents(tmp_path: Path) -> None:
    with whole(tmp_path / "a" / "b" / "result.nii.gz", overwrite=False) as beside:
        assert beside.name == "result.nii.gz"
        beside.write_text("x")
        assert not (tmp_path / "a" / "b" / "result.nii.gz").exists()
    _write_folder(tmp_path / "folder", ["fused-0001.dcm"])
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == [
        "a/b/result.nii.gz",
        "folder/fused-0001.dcm",
    ]
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["result.nii.gz"]


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt("boom"), OutputError("boom")])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error), match="boom"):
        _fail_half_way(tmp_path / "new" / "deep" / "x", error)
    assert list(tmp_path.iterdir()) == []


def test_old_result_survives_an_error(tmp_path: Path) -> None:
    _write_folder(tmp_path / "out", ["fused-1.dcm"], text="old")
    with pytest.raises(RuntimeError, match="boom"):
        _fail_half_way(tmp_path / "out", RuntimeError("boom"))
    assert (tmp_path / "out" / "fused-1.dcm").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_old_folder_comes_back_when_the_last_move_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_folder(tmp_path / "out", ["fused-1.dcm"], text="old")
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if self.parent.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OutputError, match="No space left on device"):
        _write_folder(tmp_path / "out", ["fused-1.dcm"], overwrite=True)
    assert (tmp_path / "out" / "fused-1.dcm").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_existing_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "x.nii").write_text("old")
    with (
        pytest.raises(OutputError, match=r"found that x\.nii exists.*--overwrite"),
        whole(tmp_path / "x.nii", overwrite=False),
    ):
        pytest.fail("the block was entered")
    assert (tmp_path / "x.nii").read_text() == "old"


def test_overwrite_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.nii").write_text("old")
    with whole(tmp_path / "x.nii", overwrite=True) as beside:
        beside.write_text("new")
    assert (tmp_path / "x.nii").read_text() == "new"


def test_an_empty_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    _write_folder(tmp_path / "out", ["fused-1.dcm"])
    assert (tmp_path / "out" / "fused-1.dcm").is_file()


def test_overwrite_replaces_an_earlier_result_of_another_length(tmp_path: Path) -> None:
    _write_folder(tmp_path / "out", [f"fused-{n:04d}.dcm" for n in range(30)])
    _write_folder(tmp_path / "out", ["fused-0001.dcm"], overwrite=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["fused-0001.dcm"]


@pytest.mark.parametrize("stranger", ["notes.txt", "fused-1.dcm.bak", "sub/fused-1.dcm"])
def test_overwrite_spares_a_folder_with_files_of_others(tmp_path: Path, stranger: str) -> None:
    _write_folder(tmp_path / "out", ["fused-1.dcm"], text="old")
    (tmp_path / "out" / stranger).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / stranger).write_text("mine")
    with pytest.raises(OutputError, match="other kinds of files"):
        _write_folder(tmp_path / "out", ["fused-1.dcm"], overwrite=True)
    assert (tmp_path / "out" / stranger).read_text() == "mine"
    assert (tmp_path / "out" / "fused-1.dcm").read_text() == "old"


def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    with pytest.raises(OutputError, match="found the folder"), whole(tmp_path / "folder", overwrite=True) as beside:
        beside.write_text("new")
    with pytest.raises(OutputError, match="found the file"):
        _write_folder(tmp_path / "file", ["a"], overwrite=True)
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("target", ["scan", ".", "scan/1.dcm"])
def test_inputs_are_never_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "1.dcm").write_text("patient")
    with (
        pytest.raises(OutputError, match="is or holds an input"),
        whole(tmp_path / target, overwrite=True, inputs=[tmp_path / "scan"]),
    ):
        pytest.fail("the block was entered")
    assert (tmp_path / "scan" / "1.dcm").read_text() == "patient"


def test_an_input_is_known_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scan")
    with (
        pytest.raises(OutputError, match="is or holds an input"),
        whole(tmp_path / "link", overwrite=True, inputs=[tmp_path / "scan"]),
    ):
        pytest.fail("the block was entered")


def test_a_file_in_place_of_a_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(OutputError, match="could not write result"),
        whole(tmp_path / "file" / "result", overwrite=False),
    ):
        pytest.fail("the block was entered")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc, where nobody may write")
def test_an_unwritable_folder_is_an_output_error() -> None:
    with (
        pytest.raises(OutputError, match="could not write result"),
        whole(Path("/proc/medfuse/result"), overwrite=False),
    ):
        pytest.fail("the block was entered")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_was_there_keeps_its_rights(tmp_path: Path, overwrite: bool) -> None:
    target = tmp_path / "private"
    target.mkdir()
    target.chmod(0o700)
    if overwrite:
        (target / "a.dcm").write_text("old")
    with whole(target, overwrite=overwrite) as beside:
        beside.mkdir()
        (beside / "a.dcm").write_text("new")
    assert (target / "a.dcm").read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="needs a mount point")
def test_a_mount_point_is_refused_before_any_work() -> None:
    with pytest.raises(OutputError, match=r"found that proc is a mount point. Name a folder in it, such as proc/fused"):
        check_target(Path("/proc"), overwrite=True, inputs=())


def test_a_name_that_the_system_does_not_take_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"could not write a+: "):
        check_target(tmp_path / ("a" * 300), overwrite=False, inputs=())


@pytest.mark.skipif(sys.platform == "win32", reason="makes links")
def test_a_loop_of_links_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for check, name in ((check_output, "x.mha"), (check_output, "x.nii.gz"), (check_transform_target, "x.tfm")):
        with pytest.raises(OutputError, match=f"could not write {name}: "):
            check(tmp_path / "loop" / name)
