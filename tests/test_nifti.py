"""NIfTI: geometry against nibabel and SimpleITK, round trips, refusals."""

from __future__ import annotations

import gzip
import struct
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from agreement import assert_agrees_with_nifti, assert_grid_is_of_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.imageglobals import logger

from medfuse.errors import (
    GeometryError,
    MedfuseWarning,
    MissingAttribute,
    OutputError,
    SeriesError,
    UnreadableFile,
    UnsupportedImage,
)
from medfuse.grid import Grid
from medfuse.io import limits
from medfuse.io.files import inspect, read
from medfuse.io.nifti import read_nifti, write_nifti
from medfuse.volume import Modality, Unit, Volume

RAS = np.array([[-1.2, 0.1, 0, 20.0], [0.1, 1.2, 0, -30], [0, 0, 2.5, 40], [0, 0, 0, 1]])


def color_of(volume: Volume) -> Volume:
    rgb = np.random.default_rng(3).integers(0, 256, (*volume.grid.shape, 3), np.uint8)
    return Volume(rgb, volume.grid, Modality.FUSED, Unit.RGB)


def save(path: Path, data: np.ndarray, *, sform: int = 1, qform: int = 0, **header: object) -> Path:
    image = nib.Nifti1Image(data, RAS)
    image.header.set_xyzt_units("mm")
    image.set_sform(RAS, code=sform)
    image.set_qform(RAS, code=qform)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("color", [False, True])
def test_what_is_written_reads_the_same_everywhere(
    oblique_volume: Volume, tmp_path: Path, suffix: str, color: bool
) -> None:
    volume = color_of(oblique_volume) if color else oblique_volume
    path = tmp_path / f"x{suffix}"
    write_nifti(volume, path)
    back = read(path)
    assert back.grid.matches(volume.grid, 1e-4)
    np.testing.assert_array_equal(back.array, volume.array)
    assert back.array.dtype == (np.uint8 if color else np.float32)
    assert_agrees_with_nifti(volume, path)
    image = sitk.ReadImage(str(path))
    assert_grid_is_of_image(volume, image, 1e-3)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.array)


def test_header_states_both_forms_and_millimetres(oblique_volume: Volume, tmp_path: Path) -> None:
    write_nifti(oblique_volume, tmp_path / "x.nii")
    header = nib.load(tmp_path / "x.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"]), header.get_xyzt_units()[0]) == (1, 1, "mm")
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)
    assert header.get_data_dtype() == np.float32


def test_the_same_volume_gives_the_same_bytes(oblique_volume: Volume, tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(oblique_volume, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert b"a.nii" not in (tmp_path / "a.nii.gz").read_bytes()


def test_a_size_beyond_nifti_1_is_an_output_error(tmp_path: Path) -> None:
    volume = Volume(np.zeros((40_000, 1, 1), np.float32), Grid((40_000, 1, 1), np.eye(4)), Modality.MR)
    with pytest.raises(OutputError, match="as NIfTI"):
        write_nifti(volume, tmp_path / "x.nii")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    left_handed=st.booleans(),
)
def test_round_trip_of_any_grid(tmp_path: Path, seed, shape, spacing, origin, left_handed) -> None:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q if (np.linalg.det(q) < 0) is left_handed else -q
    grid = Grid.from_axes(shape, origin, spacing, q)
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    write_nifti(Volume(array, grid, Modality.MR), tmp_path / "x.nii")
    back = read(tmp_path / "x.nii")
    assert back.grid.matches(grid, 1e-4)
    np.testing.assert_array_equal(back.array, array)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2"])
def test_types_and_scaling(tmp_path: Path, dtype: str) -> None:
    data = np.arange(24).reshape(2, 3, 4).astype(dtype)
    save(tmp_path / "x.nii", data)
    raw = bytearray((tmp_path / "x.nii").read_bytes())
    raw[112:120] = np.array([2.5, -3], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "x.nii").write_bytes(raw)
    np.testing.assert_array_equal(read(tmp_path / "x.nii").array, data.T.astype(np.float32) * 2.5 - 3)


def test_nifti_2_gzip_and_any_name(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = nib.Nifti2Image(data, RAS)
    image.header.set_xyzt_units("mm")
    raw = image.to_bytes()
    (tmp_path / "noname").write_bytes(gzip.compress(raw))
    (tmp_path / "wrong.nii.gz").write_bytes(raw)
    for name in ("noname", "wrong.nii.gz"):
        volume = read(tmp_path / name)
        np.testing.assert_array_equal(volume.array, data.T)
        np.testing.assert_allclose(volume.grid.points_mm([(1, 2, 0)])[0], [-20.2, 27.6, 42.5])


def test_a_point_where_nibabel_puts_it(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii", np.zeros((2, 3, 4), np.float32))
    ras = nib.affines.apply_affine(nib.load(path).affine, (1, 2, 3))
    np.testing.assert_allclose(read(path).grid.points_mm([(3, 2, 1)])[0], ras * (-1, -1, 1), atol=1e-5)


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 1)])
def test_either_form_will_do(tmp_path: Path, sform: int, qform: int) -> None:
    volume = read(save(tmp_path / "x.nii", np.zeros((2, 3, 4), np.float32), sform=sform, qform=qform))
    ijk_from_kji = np.eye(4)[[2, 1, 0, 3]]
    np.testing.assert_allclose(volume.grid.lps_from_index, np.diag((-1, -1, 1, 1)) @ RAS @ ijk_from_kji, atol=1e-5)
    said_by = {1: "sform (scanner)", 2: "sform (aligned)", 0: "qform (scanner)"}[sform]
    assert volume.history[0].parameters["position_from"] == said_by
    assert "warnings" not in volume.history[0].parameters


def test_forms_that_disagree_are_told_and_the_sform_is_used(tmp_path: Path) -> None:
    data = np.zeros((2, 3, 4), np.float32)
    path = save(tmp_path / "s.nii", data, sform=4, qform=1, qoffset_x=99)
    with pytest.warns(MedfuseWarning, match=r"s\.nii: sform \(MNI\) and qform \(scanner\) disagree"):
        volume = read(path)
    np.testing.assert_allclose(volume.grid.origin_mm, (-20, 30, 40))
    told = ["sform (MNI) and qform (scanner) disagree by up to 79.0 mm; the sform was used"]
    assert volume.history[0].parameters["warnings"] == told
    assert inspect(path).series[0].usable


def test_forms_within_rounding_agree(tmp_path: Path) -> None:
    path = save(tmp_path / "s.nii", np.zeros((2, 3, 4), np.float32), sform=1, qform=1, qoffset_x=20.05)
    assert "warnings" not in read(path).history[0].parameters


def test_a_damaged_qform_is_told_and_a_damaged_sform_refused(tmp_path: Path) -> None:
    data = np.zeros((2, 3, 4), np.float32)
    path = save(tmp_path / "q.nii", data, sform=1, qform=1, quatern_b=np.nan)
    with pytest.warns(MedfuseWarning, match=r"q\.nii: sform .* disagree \(the latter is damaged\); the sform was used"):
        volume = read(path)
    np.testing.assert_allclose(volume.grid.origin_mm, (-20, 30, 40))
    path = save(tmp_path / "s.nii", data, sform=1, qform=1)
    whole = path.read_bytes()
    for at, value in ((280, np.nan), (320, np.inf)):  # srow_x[0], srow_z[2]
        path.write_bytes(whole[:at] + np.float32(value).tobytes() + whole[at + 4 :])
        with pytest.raises(UnreadableFile, match=r"as sform \(scanner\) in s\.nii.*position in the patient is unknown"):
            read(path)
    path = save(tmp_path / "x.nii", data, sform=0, qform=1)
    whole = path.read_bytes()
    path.write_bytes(whole[:272] + np.float32(np.inf).tobytes() + whole[276:])  # qoffset_y
    with pytest.raises(UnreadableFile, match=r"as qform \(scanner\) in x\.nii.*position in the patient is unknown"):
        read(path)


@pytest.mark.parametrize(
    ("at", "value", "match"),
    [
        (
            108,
            struct.pack("<f", 0),
            r"voxels behind the header of x\.nii \(vox_offset of at least 352\), found them at 0",
        ),
        (88, struct.pack("<f", 0), r"expected finite numbers as qform \(scanner\)"),
        (254, struct.pack("<h", 6), "expected 0 to 5 as sform_code of x.nii, found 6"),
        (252, struct.pack("<h", -1), "expected 0 to 5 as qform_code of x.nii, found -1"),
    ],
)
def test_what_nibabel_would_repair_is_refused_without_a_word_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], at: int, value: bytes, match: str
) -> None:
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.diag((1, 1, 2, 1)))
    image.set_sform(None, 0)
    image.set_qform(np.diag((1, 1, 2, 1)), 1)
    nib.save(image, tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    content[at : at + len(value)] = value
    (tmp_path / "x.nii").write_bytes(content)
    with pytest.raises(UnreadableFile, match=match):
        read_nifti(tmp_path / "x.nii")
    assert capfd.readouterr() == ("", "")


def test_threads_leave_nibabels_log_as_it_was(oblique_volume: Volume, tmp_path: Path) -> None:
    write_nifti(oblique_volume, tmp_path / "x.nii")
    level, interval = logger.level, sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: read_nifti(tmp_path / "x.nii"), range(100)))
    finally:
        sys.setswitchinterval(interval)
    assert logger.level == level


def test_without_sform_and_qform_the_position_is_not_made_up(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii", np.zeros((2, 3, 4), np.float32), sform=0, qform=0)
    with pytest.raises(MissingAttribute, match=r"expected sform or qform in x\.nii, found neither"):
        read(path)
    assert not inspect(path).series[0].usable


@pytest.mark.parametrize(("units", "factor"), [("meter", 1000), ("micron", 0.001)])
def test_units_of_length(tmp_path: Path, units: str, factor: float) -> None:
    path = save(tmp_path / "x.nii", np.zeros((2, 3, 4), np.float32), xyzt_units=nib.nifti1.unit_codes[units])
    grid = read(path).grid
    np.testing.assert_allclose(grid.spacing_mm[0], 2.5 * factor, rtol=1e-6)
    np.testing.assert_allclose(grid.origin_mm, np.array((-20, 30, 40)) * factor, rtol=1e-6)


@pytest.mark.parametrize("code", [0, 7, 8])
def test_an_unknown_unit_of_length_is_told(tmp_path: Path, code: int) -> None:
    path = save(tmp_path / "x.nii", np.zeros((2, 3, 4), np.float32), xyzt_units=code)
    with pytest.warns(MedfuseWarning, match=r"x\.nii: the unit of length is not stated"):
        volume = read(path)
    np.testing.assert_allclose(volume.grid.origin_mm, (-20, 30, 40))
    told = ["the unit of length is not stated; millimetres were assumed"]
    assert volume.history[0].parameters["warnings"] == told


def test_one_volume_of_several_is_chosen_by_its_number(tmp_path: Path) -> None:
    data = np.arange(96, dtype=np.int16).reshape(2, 3, 4, 4)
    for name in ("x.nii", "x.nii.gz"):
        path = save(tmp_path / name, data, scl_slope=2, scl_inter=1, pixdim=[1, 1, 1, 1, 2.5, 0, 0, 0], xyzt_units=10)
        for number in (1, 3, 4):
            volume = read(path, frame=number)
            np.testing.assert_array_equal(volume.array, data[..., number - 1].T * 2.0 + 1)
            assert volume.history[0].parameters["frame"] == number
        with pytest.raises(
            SeriesError, match=r"one volume, found 4 volumes in x\.nii.*, 0 s to 7\.5 s. .*frames 1 to 4 with --frame"
        ):
            read(path)
        for number in (0, 5, -1):
            with pytest.raises(SeriesError, match=f"a frame of 1 to 4, not {number}, found 4"):
                read(path, frame=number)


def test_components_of_a_vector_are_of_one_time(tmp_path: Path) -> None:
    data = np.arange(72, dtype=np.float32).reshape(2, 3, 4, 1, 3)
    path = save(tmp_path / "x.nii", data, pixdim=[1, 1, 1, 1, 1, 1, 0, 0], xyzt_units=10)
    assert inspect(path).series[0].frames == ("", "", "")
    np.testing.assert_array_equal(read(path, frame=3).array, data[..., 0, 2].T)


def test_one_volume_in_colour_of_several(tmp_path: Path) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 3, 3), np.uint8)
    path = save(tmp_path / "x.nii", rgb.view([(channel, "u1") for channel in "RGB"])[..., 0])
    np.testing.assert_array_equal(read_nifti(path, frame=2).array, rgb[:, :, :, 1].transpose(2, 1, 0, 3))


def test_real_series_in_time_are_refused_or_one_is_chosen(shared: Path) -> None:
    path = shared / "mosaic-4d" / "cor_asc_35sl_16.nii"
    with pytest.raises(SeriesError, match=r"found 2 volumes in .*, 0 s to \d\S* s. "):
        read(path)
    image = nib.load(path)
    volume = read_nifti(path, frame=2)
    np.testing.assert_array_equal(volume.array, np.asarray(image.dataobj)[..., 1].T)


def test_a_trailing_axis_of_one_is_dropped_and_other_axes_refused(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(read(save(tmp_path / "x.nii", data[..., None])).array, data.T)
    np.testing.assert_array_equal(read(tmp_path / "x.nii", frame=1).array, data.T)
    with pytest.raises(SeriesError, match=r"a frame of 1 to 1, not 2, found 1 volume in x\.nii.*Leave out --frame"):
        read(tmp_path / "x.nii", frame=2)
    with pytest.raises(UnsupportedImage, match=r"or four, found 2 × 3 × 4 × 2 × 2"):
        read(save(tmp_path / "y.nii", np.stack([np.stack([data, data], axis=-1)] * 2, axis=-1)))
    with pytest.raises(UnsupportedImage, match=r"three dimensions, or four, found 2 × 3 in"):
        read(save(tmp_path / "z.nii", data[..., 0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_is_refused_or_filled(tmp_path: Path, bad: float) -> None:
    data = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    data[1, 2, 3] = bad
    path = save(tmp_path / "x.nii", data)
    with pytest.raises(UnsupportedImage, match=r"found 1 of 24 voxels that are NaN or infinite.*--fill-nan"):
        read(path)
    volume = read(path, fill_nan=-7)
    assert volume.array[3, 2, 1] == -7
    assert volume.array[0, 0, 1] == data[1, 0, 0]
    assert volume.history[0].parameters["fill_nan"] == -7


def test_other_voxels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedImage, match="real numbers, RGB24 or RGBA32, found complex64"):
        read(save(tmp_path / "x.nii", np.zeros((2, 3, 4), np.complex64)))
    with pytest.raises(UnsupportedImage, match="real numbers, RGB24 or RGBA32, found complex128"):
        read(save(tmp_path / "y.nii", np.zeros((2, 3, 4), np.complex128)))


def test_colour_with_an_alpha_channel_must_be_opaque(tmp_path: Path) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 4), np.uint8)
    for alpha in (0, 255):
        rgba[..., 3] = alpha
        path = save(tmp_path / "x.nii", rgba.view([(channel, "u1") for channel in "RGBA"])[..., 0])
        np.testing.assert_array_equal(read(path).array, rgba[..., :3].transpose(2, 1, 0, 3))
    rgba[0, 0, 0, 3] = 128
    with pytest.raises(UnsupportedImage, match=r"expected opaque colour, found transparent voxels in y\.nii"):
        read(save(tmp_path / "y.nii", rgba.view([(channel, "u1") for channel in "RGBA"])[..., 0]))


def test_scaling_of_colour_is_ignored(tmp_path: Path) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 3), np.uint8)
    path = save(tmp_path / "x.nii", rgb.view([(channel, "u1") for channel in "RGB"])[..., 0])
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([2.5, -3], "<f4").tobytes()
    path.write_bytes(raw)
    np.testing.assert_array_equal(read(path).array, rgb.transpose(2, 1, 0, 3))


def test_sheared_axes_are_refused(tmp_path: Path) -> None:
    shear = RAS.copy()
    shear[0, 2] = 0.5
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), np.float32), shear), tmp_path / "x.nii")
    with pytest.raises(GeometryError, match="at right angles"):
        read(tmp_path / "x.nii")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95, 0.9995])
def test_a_file_cut_short_is_unreadable(tmp_path: Path, compressed: bool, keep: float) -> None:
    data = np.random.default_rng(1).normal(size=(8, 9, 10)).astype(np.float32)
    path = save(tmp_path / ("x.nii.gz" if compressed else "x.nii"), data)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UnreadableFile, match="cut short or damaged"):
        read(path)


@pytest.mark.parametrize("lost", [1, 4, 8])
def test_a_gzipped_file_without_its_last_bytes_is_unreadable(tmp_path: Path, lost: int) -> None:
    """All voxels are there; only the checksum behind them is not."""
    path = save(tmp_path / "x.nii.gz", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(UnreadableFile, match=r"in x\.nii\.gz, found it cut short or damaged"):
        read(path)


def test_a_wrong_checksum_is_not_passed_over(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii.gz", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UnreadableFile, match="cut short or damaged"):
        read(path)
    assert inspect(path).series[0].usable  # headers alone do not tell


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("name", ["x.img", "X.IMG", "x.img.gz"])
def test_a_header_with_its_image_in_a_file_beside(tmp_path: Path, kind: type, name: str) -> None:
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = kind(data, RAS)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "t.hdr")
    header = (tmp_path / "t.hdr").rename(tmp_path / name.lower().replace(".gz", "").replace("img", "hdr"))
    voxels = (tmp_path / "t.img").read_bytes()
    (tmp_path / "t.img").unlink()
    (tmp_path / name).write_bytes(gzip.compress(voxels) if name.endswith("gz") else voxels)
    volume = read(header)
    np.testing.assert_array_equal(volume.array, data.T)
    np.testing.assert_allclose(volume.grid.points_mm([(0, 0, 0)])[0], (-20, 30, 40))
    np.testing.assert_array_equal(read(tmp_path).array, data.T)
    (tmp_path / name).unlink()
    with pytest.raises(UnreadableFile, match=r"voxels of x\.hdr in one \.img file beside it, found 0"):
        read(header)
    assert not inspect(tmp_path).series[0].usable


def test_absurd_sizes_are_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.nii", np.zeros((2, 3, 4), np.float32))
    raw = bytearray(path.read_bytes())
    raw[40:56] = np.array([3, 32000, 32000, 32000, 1, 1, 1, 1], "<i2").tobytes()
    path.write_bytes(raw)
    with pytest.raises(UnsupportedImage, match="32000 × 32000 × 32000"):
        read(path)
    monkeypatch.setattr(limits, "MAX_VOXELS", 23)
    with pytest.raises(UnsupportedImage, match="expected 1 to 23 voxels"):
        read(save(tmp_path / "y.nii", np.zeros((2, 3, 4), np.float32)))


def header_saying(path: Path, shape: tuple[int, ...]) -> bytes:
    """The header of a NIfTI file of so many float32 voxels, without the voxels."""
    raw = bytearray(save(path, np.zeros((2, 3, 4), np.float32)).read_bytes()[:352])
    raw[40:56] = np.array([len(shape), *shape, *[1] * (7 - len(shape))], "<i2").tobytes()
    return bytes(raw)


@pytest.mark.parametrize("compressed", [False, True])
def test_nothing_is_allocated_for_voxels_that_cannot_be_there(tmp_path: Path, compressed: bool) -> None:
    raw = header_saying(tmp_path / "x.nii", (1000, 1000, 1000))
    (tmp_path / "x.nii").write_bytes(gzip.compress(raw) if compressed else raw)
    tracemalloc.start()
    with pytest.raises(UnreadableFile, match=r"1000 × 1000 × 1000 voxels in x\.nii, found it cut short"):
        read(tmp_path / "x.nii")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_bomb_of_many_volumes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    raw = header_saying(tmp_path / "x.nii", (1000, 1000, 1000, 32000))
    (tmp_path / "x.nii").write_bytes(gzip.compress(raw))
    with pytest.raises(UnreadableFile, match=r"at most \d+ bytes once unpacked, found 128000000000352 in x\.nii"):
        read(tmp_path / "x.nii", frame=1)


def test_a_bomb_behind_the_voxels_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii", np.zeros((2, 3, 4), np.float32))
    (tmp_path / "y.nii.gz").write_bytes(gzip.compress(path.read_bytes() + bytes(2**24)))
    with pytest.raises(UnreadableFile, match=r"in y\.nii\.gz, found it cut short or damaged"):
        read(tmp_path / "y.nii.gz")


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.float64])
def test_numbers_that_float32_cannot_hold_are_not_written(tmp_path: Path, dtype: type) -> None:
    grid = Grid((1, 1, 2), np.eye(4))
    large = 1e39 if dtype is np.float64 else 2**24 + 1
    with pytest.raises(OutputError, match=r"float32 holds, found"):
        write_nifti(Volume(np.array([[[0, large]]], dtype), grid, Modality.MR), tmp_path / "x.nii")
    fits = 1e38 if dtype is np.float64 else 2**24
    write_nifti(Volume(np.array([[[0, fits]]], dtype), grid, Modality.MR), tmp_path / "x.nii")
    assert nib.load(tmp_path / "x.nii").get_fdata().max() == np.float32(fits)


def test_a_place_that_the_header_cannot_hold_is_not_written(tmp_path: Path) -> None:
    grid = Grid.from_axes((2, 2, 2), (1e6 + 0.03, 0, 0), (1, 1, 1), np.eye(3))
    with pytest.raises(OutputError, match="too far from the origin"):
        write_nifti(Volume(np.zeros((2, 2, 2), np.float32), grid, Modality.MR), tmp_path / "x.nii")


def test_colour_of_a_peer_s_conversion(shared: Path) -> None:
    path = shared / "dicom2nifti" / "generic" / "rgb" / "001_ground_truth.nii.gz"
    volume = read(path)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image)[..., :3])
    assert_grid_is_of_image(volume, image, 1e-3)


@pytest.mark.parametrize("name", ["spect-mr-epilepsy/masked_ictal.nii.gz", "spect-ct-lu177/p_3_scan_1_ct.nii.gz"])
@pytest.mark.filterwarnings("ignore:.*unit of length:medfuse.errors.MedfuseWarning")
def test_real_files_lie_where_simpleitk_puts_them(shared: Path, name: str) -> None:
    volume = read(shared / name)
    image = sitk.ReadImage(str(shared / name))
    assert_grid_is_of_image(volume, image, 1e-3)
    np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(image), rtol=1e-6)


@pytest.mark.parametrize("end", [".img", ".img.gz"])
def test_the_image_of_a_pair_stands_for_the_pair(tmp_path: Path, end: str) -> None:
    image = nib.Nifti1Pair(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([2.0, 3, 4, 1]))
    image.header.set_xyzt_units("mm")
    header = end.replace("img", "hdr")
    image.to_filename(tmp_path / f"ct{header}")
    np.testing.assert_array_equal(read(tmp_path / f"ct{end}").array, read(tmp_path / f"ct{header}").array)
    assert inspect(tmp_path / f"ct{end}").series[0].usable
    (tmp_path / f"ct{header}").unlink()
    with pytest.raises(UnreadableFile, match="found none of these in ct"):
        read(tmp_path / f"ct{end}")


def test_inspect_tells_what_reading_would_warn_of(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii", np.zeros((2, 3, 4), np.int16))
    header = bytearray(path.read_bytes())
    header[123] = 0  # xyzt_units
    path.write_bytes(header)
    with pytest.warns(MedfuseWarning) as caught:
        read(path)
    assert [f"x.nii: {told}" for told in inspect(path).series[0].warnings] == [str(one.message) for one in caught]
