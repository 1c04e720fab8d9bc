"""The door: what is read, inspected and written, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import files_of_at_most

from medfuse.errors import OutputError, SeriesError, UnreadableFile
from medfuse.io import limits
from medfuse.io.files import check_output, inspect, read, write
from medfuse.volume import Modality, Source, Step, Unit, Volume


@pytest.fixture
def color_volume(oblique_volume: Volume) -> Volume:
    """A fused colour volume on the oblique grid."""
    rgb = np.random.default_rng(3).integers(0, 256, (*oblique_volume.grid.shape, 3), np.uint8)
    return Volume(rgb, oblique_volume.grid, Modality.FUSED, Unit.RGB, history=(Step("fuse", {"method": "average"}),))


def packed(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path("inner") / file.relative_to(folder))
    return path


# --- reading -----------------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="found nothing named absent"):
        read(tmp_path / "absent")
    with pytest.raises(UnreadableFile, match="found nothing named absent"):
        inspect(tmp_path / "absent")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SeriesError, match=r"expected a scan in .*, found none of DICOM"):
        read(tmp_path)
    assert inspect(tmp_path).series == ()


@pytest.mark.parametrize("content", [b"", b"Just some text.\n" * 30, b"\x00" * 500, b"\x1f\x8b" + b"junk" * 90])
def test_a_file_that_is_no_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.nii.gz").write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"found none of these in notes\.nii\.gz"):
        read(tmp_path / "notes.nii.gz")
    with pytest.raises(SeriesError, match="found none of DICOM"):
        read(tmp_path)
    assert inspect(tmp_path).left_out == ("1 file: no image format that is known",)


def test_a_single_slice_is_no_volume_but_its_file_is_dicom(ct_series: Path) -> None:
    path = sorted(ct_series.iterdir())[0]
    info = inspect(path).series[0]
    assert (info.usable, info.shape, info.modality) == (False, (1, 7, 9), "CT")
    assert "one 2-D image, which is not a volume" in str(info.reason)


def test_a_truncated_dicom_file(ct_series: Path) -> None:
    path = sorted(ct_series.iterdir())[0]
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UnreadableFile, match="expected whole DICOM files"):
        read(path)
    assert inspect(path).left_out == ("1 file: damaged DICOM file without SOPClassUID",)


def test_several_volumes_in_a_folder_are_listed(oblique_volume: Volume, tmp_path: Path) -> None:
    write(oblique_volume, tmp_path / "a.nii")
    assert read(tmp_path).source.format == "nifti"
    write(oblique_volume, tmp_path / "deep" / "b.nrrd")
    with pytest.raises(SeriesError, match=r"found 2: a\.nii, b\.nrrd"):
        read(tmp_path)
    assert [info.name for info in inspect(tmp_path).series] == ["a.nii", "b.nrrd"]


def test_dicom_goes_before_other_formats(oblique_volume: Volume, ct_series: Path) -> None:
    write(oblique_volume, ct_series / "copy.nii")
    assert read(ct_series).source.format == "dicom"


def test_series_and_modality_are_passed_on(ct_series: Path, pt_series: Path) -> None:
    root = ct_series.parent
    assert read(root, series=4).modality is Modality.PT
    assert read(root, series="3").modality is Modality.CT
    assert read(root, modality="PET").unit is Unit.SUV
    with pytest.raises(SeriesError, match="expected one series, found 2"):
        read(root)
    with pytest.raises(ValueError, match="expected a modality"):
        read(root, modality="x-ray")


def test_headers_alone_are_enough_to_inspect(ct_series: Path) -> None:
    for path in ct_series.iterdir():
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        ds.save_as(path)
    assert inspect(ct_series).series[0].usable


def test_inspection_says_what_reading_finds(ct_series: Path, pt_series: Path) -> None:
    told = inspect(ct_series.parent)
    for info, folder in zip(told.series, (ct_series, pt_series), strict=True):
        volume = read(folder)
        assert info.usable
        assert (info.shape, info.spacing_mm) == (volume.grid.shape, volume.grid.spacing_mm)
        assert (info.modality, info.unit) == (volume.modality.value, volume.unit.value)
        assert info.origin_mm == tuple(volume.grid.origin_mm)
        assert info.frame_of_reference == volume.grid.frame_of_reference
        assert info.files == 5
    assert json.loads(json.dumps(told.to_json()))["series"][0]["number"] == 3


@pytest.mark.parametrize(
    ("case", "orientation"),
    [("generic/anatomical/001", "sagittal"), ("siemens_multiframe/anatomical/001", "axial, 2.6° oblique")],
)
def test_orientation_in_words(shared: Path, case: str, orientation: str) -> None:
    assert inspect(shared / "dicom2nifti" / case).series[0].orientation == orientation


def test_inspecting_needs_no_torch(ct_series: Path) -> None:
    code = "import sys; from medfuse.io.files import inspect; inspect(sys.argv[1]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, ct_series], check=True, cwd=Path(__file__).parents[1])


# --- archives ----------------------------------------------------------------------------------------------------


def test_an_archive_is_read_and_leaves_nothing(
    ct_series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    path = packed(ct_series, tmp_path / "scan.data")
    np.testing.assert_array_equal(read(path).array, read(ct_series).array)
    assert inspect(path).series[0].usable
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:\\evil", "..\\evil"])
def test_an_archive_must_not_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(UnreadableFile, match=r"a path that leads out of it in x\.zip"):
        read(tmp_path / "x.zip")


def test_an_archive_must_not_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"\0" * 100_000)
    monkeypatch.setattr(limits, "MAX_UNPACKED_BYTES", 99_999)
    with pytest.raises(UnreadableFile, match=r"at most 99999 bytes in .*, found 100000 in 1 in x\.zip"):
        read(tmp_path / "x.zip")


def test_a_damaged_archive(ct_series: Path, tmp_path: Path) -> None:
    path = packed(ct_series, tmp_path / "x.zip")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:300] + b"\xff" * 40 + whole[340:]):
        path.write_bytes(damaged)
        with pytest.raises(UnreadableFile, match=r"found x\.zip damaged"):
            read(path)


# --- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.nrrd", "x.mha"])
@pytest.mark.parametrize("color", [False, True])
def test_round_trip_with_meaning_and_history(
    oblique_volume: Volume, color_volume: Volume, tmp_path: Path, name: str, color: bool
) -> None:
    pet = replace(oblique_volume, modality=Modality.PT, unit=Unit.SUV, history=(Step("resample", {"mm": 2}),))
    volume = color_volume if color else pet
    assert write(volume, tmp_path / "out" / name) == [tmp_path / "out" / name, tmp_path / "out" / "x.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([name, "x.json"])
    back = read(tmp_path / "out" / name)
    assert back.grid.matches(volume.grid, 1e-4)
    np.testing.assert_array_equal(back.array, volume.array)
    assert (back.modality, back.unit) == (volume.modality, volume.unit)
    assert back.history[:-1] == volume.history
    assert back.history[-1].name == "read"


def test_dicom_is_the_format_of_a_name_without_suffix(color_volume: Volume, tmp_path: Path) -> None:
    written = write(color_volume, tmp_path / "out")
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    assert len(written) == 5
    back = read(tmp_path / "out")
    assert back.grid.matches(color_volume.grid, 1e-4)
    np.testing.assert_array_equal(back.array, color_volume.array)


@pytest.mark.parametrize("modality", [Modality.CT, Modality.PT, Modality.OTHER])
def test_scans_that_dicom_has_no_place_for_here(oblique_volume: Volume, tmp_path: Path, modality: Modality) -> None:
    volume = replace(oblique_volume, modality=modality, unit=Unit.ARBITRARY)
    with pytest.raises(OutputError, match=f"found {modality.value} in ARBITRARY.*name that ends with \\.nii\\.gz"):
        write(volume, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "format"), [("x.nii", "mha"), ("x", "nifti"), ("x.nrrd", "dicom"), ("x.mhd", None)])
def test_name_and_format_must_agree(oblique_volume: Volume, tmp_path: Path, name: str, format: str | None) -> None:
    with pytest.raises(OutputError, match="Change the name or the format"):
        write(oblique_volume, tmp_path / name, format=format)
    with pytest.raises(ValueError, match="expected a format of dicom, nifti"):
        write(oblique_volume, tmp_path / name, format="jpeg")
    assert list(tmp_path.iterdir()) == []


def test_existing_files_and_inputs_are_spared(oblique_volume: Volume, tmp_path: Path) -> None:
    write(oblique_volume, tmp_path / "x.nii")
    before = (tmp_path / "x.nii").read_bytes()
    changed = replace(oblique_volume, array=oblique_volume.array + 1)
    with pytest.raises(OutputError, match=r"x\.nii exists"):
        write(changed, tmp_path / "x.nii")
    with pytest.raises(OutputError, match="is or holds an input"):
        write(changed, tmp_path / "x.nii", overwrite=True, inputs=[tmp_path / "x.nii"])
    assert (tmp_path / "x.nii").read_bytes() == before
    write(changed, tmp_path / "x.nii", overwrite=True)
    np.testing.assert_array_equal(read(tmp_path / "x.nii").array, changed.array)
    shutil.move(tmp_path / "x.nii", tmp_path / "y.nii")
    with pytest.raises(OutputError, match=r"x\.json exists"):
        write(changed, tmp_path / "x.nii")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "y.nii"]


@pytest.mark.parametrize("missing", [1, 200])
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.nrrd", "x.mha", "x"])
def test_a_full_disk_is_told_and_leaves_nothing(
    oblique_volume: Volume, tmp_path: Path, name: str, missing: int
) -> None:
    if name == "x":
        missing += 200  # UIDs differ in their length
    volume = replace(oblique_volume, modality=Modality.MR, unit=Unit.ARBITRARY)
    size = max(file.stat().st_size for file in write(volume, tmp_path / "whole" / name))
    with files_of_at_most(size - missing), pytest.raises(OutputError, match=r"File too large|space"):
        write(volume, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_what_is_written_through_a_link_takes_its_sidecar_along(
    oblique_volume: Volume, tmp_path: Path, suffix: str
) -> None:
    """The link stays, and no file is left beside a sidecar that speaks of another scan."""
    target, link = tmp_path / f"scan{suffix}", tmp_path / f"latest{suffix}"
    write(oblique_volume, target)
    link.symlink_to(target.name)
    mr = Volume(oblique_volume.array, oblique_volume.grid, Modality.MR)
    written = write(mr, link, overwrite=True)
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {target.name, "scan.json", link.name}
    assert {path.name for path in written} == {target.name, "scan.json"}
    for path in (target, link):
        assert (read(path).modality, read(path).unit) == (Modality.MR, Unit.ARBITRARY)
    link.rename(tmp_path / "latest.nii")
    with pytest.raises(OutputError, match="scan" + suffix.replace(".", r"\.") + " exists"):
        write(mr, tmp_path / "latest.nii")


def test_a_sidecar_beside_a_link_goes_before_that_of_its_target(oblique_volume: Volume, tmp_path: Path) -> None:
    write(oblique_volume, tmp_path / "a.nii")
    (tmp_path / "mine.nii").symlink_to("a.nii")
    assert read(tmp_path / "mine.nii").modality is Modality.CT
    (tmp_path / "mine.json").write_text('{"Modality": "MR"}')
    assert read(tmp_path / "mine.nii").modality is Modality.MR


def test_the_sidecar_of_an_input_is_spared(oblique_volume: Volume, tmp_path: Path) -> None:
    write(oblique_volume, tmp_path / "x.nii")
    with pytest.raises(OutputError, match=r"x\.json is or holds an input"):
        write(oblique_volume, tmp_path / "x.nrrd", overwrite=True, inputs=[tmp_path / "x.nii"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.nii"]


def test_an_input_without_a_sidecar_gets_none(oblique_volume: Volume, tmp_path: Path) -> None:
    """It would be read with it from then on."""
    write(oblique_volume, tmp_path / "x.nii")
    (tmp_path / "x.json").unlink()
    with pytest.raises(
        OutputError, match=r"another name, found that x\.json, its sidecar, would be taken for that of an"
    ):
        write(oblique_volume, tmp_path / "x.nii.gz", inputs=[tmp_path / "x.nii"])
    assert [path.name for path in tmp_path.iterdir()] == ["x.nii"]


@pytest.mark.parametrize(("folder", "kept"), [("x.nii.gz", "x.json"), ("x.json", "x.nii.gz")])
def test_a_folder_in_the_place_of_one_of_two_files_spares_the_other(
    oblique_volume: Volume, tmp_path: Path, folder: str, kept: str
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / kept).write_text("mine")
    with pytest.raises(OutputError, match="expected a file to write, found the folder"):
        check_output(tmp_path / "x.nii.gz", overwrite=True)
    with pytest.raises(OutputError, match="expected a file to write, found the folder"):
        write(oblique_volume, tmp_path / "x.nii.gz", overwrite=True)
    assert (tmp_path / kept).read_text() == "mine"


@pytest.mark.parametrize("suffix", [".NII", ".NII.GZ", ".NRRD", ".MHA", ".Mha"])
def test_suffixes_in_capitals(oblique_volume: Volume, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    assert [written.name for written in write(oblique_volume, path)] == [path.name, "x.json"]
    assert sorted(written.name for written in tmp_path.iterdir()) == sorted([path.name, "x.json"])
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == (suffix == ".NII.GZ")
    np.testing.assert_array_equal(read(path).array, oblique_volume.array)


def test_an_unwritable_place(oblique_volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"could not write x\.nii"):
        write(oblique_volume, tmp_path / "file" / "x.nii")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_patient_reaches_a_file_that_cannot_say_so(ct_series: Path, tmp_path: Path) -> None:
    for path in ct_series.iterdir():
        ds = pydicom.dcmread(path)
        ds.PatientName, ds.PatientID = "SECRET^NAME", "SECRET-ID"
        ds.save_as(path)
    volume = read(ct_series)
    assert volume.source.header is not None
    assert volume.source != Source()
    for name in ("x.nii", "y.nrrd", "z.mha"):
        for path in write(volume, tmp_path / name):
            assert b"SECRET" not in path.read_bytes()


def test_what_is_neither_file_nor_folder_is_refused() -> None:
    with pytest.raises(UnreadableFile, match="found that null is neither"):
        read(os.devnull)


@pytest.mark.parametrize("suffix", [".nii", ".mha"])
def test_a_file_that_has_no_series_has_not_the_one_that_was_asked_for(
    tmp_path: Path, oblique_volume: Volume, suffix: str
) -> None:
    write(oblique_volume, tmp_path / f"x{suffix}")
    with pytest.raises(SeriesError, match=f"expected a DICOM series, found x{suffix}, which has none"):
        read(tmp_path / f"x{suffix}", series=4)


def test_a_path_that_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"found that a+ cannot be looked at \(.*\)\. Check the path"):
        read(tmp_path / ("a" * 300))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_path_that_is_not_utf_8_ends_no_process(tmp_path: Path, oblique_volume: Volume, suffix: str) -> None:
    folder = tmp_path / os.fsdecode(b"J\xf6rg")
    folder.mkdir()
    with pytest.raises(OutputError, match="expected a path in UTF-8 for NRRD, MetaImage and transforms"):
        check_output(folder / f"x{suffix}")
    write(oblique_volume, tmp_path / f"x{suffix}")
    (tmp_path / f"x{suffix}").rename(folder / f"x{suffix}")
    with pytest.raises(UnreadableFile, match="expected a path in UTF-8"):
        read(folder / f"x{suffix}")
    write(oblique_volume, folder / "y.nii.gz")
    listed = {one.name: one.reason for one in inspect(folder).series}
    assert listed["y.nii.gz"] is None
    assert "expected a path in UTF-8" in listed[f"x{suffix}"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose start no one can read")
def test_a_file_that_cannot_be_read_is_an_error_of_that_file() -> None:
    with pytest.raises(UnreadableFile, match=r"\(mem: file that cannot be opened\)"):
        read("/proc/self/mem")


def test_a_description_does_not_tell_who_the_patient_is(ct_series: Path) -> None:
    for path in ct_series.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PatientID, dataset.PatientName = "A(12)34", "Doe-Roe^Jane"
        dataset.SeriesDescription = "a(12)34 CT of DOE-ROE, thin"
        dataset.save_as(path)
    assert inspect(ct_series).series[0].description == "… CT of …, thin"
