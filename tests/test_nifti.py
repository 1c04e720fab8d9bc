"""NIfTI: geometry against nibabel and SimpleITK, round trips, refusals."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from agreement import assert_agrees_with_nifti, assert_grid_is_of_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfuse.errors import GeometryError, MissingAttribute, OutputError, UnreadableFile, UnsupportedImage
from medfuse.grid import Grid
from medfuse.io import limits
from medfuse.io.files import inspect, read
from medfuse.io.nifti import write_nifti
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
    image = nib.Nifti1Image(data, RAS)
    image.header.set_slope_inter(1, 0)
    nib.save(image, tmp_path / "x.nii")
    raw = bytearray((tmp_path / "x.nii").read_bytes())
    raw[112:120] = np.array([2.5, -3], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "x.nii").write_bytes(raw)
    np.testing.assert_array_equal(read(tmp_path / "x.nii").array, data.T.astype(np.float32) * 2.5 - 3)


def test_nifti_2_gzip_and_any_name(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    raw = nib.Nifti2Image(data, RAS).to_bytes()
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


def test_sform_goes_before_qform_and_either_will_do(tmp_path: Path) -> None:
    data = np.zeros((2, 3, 4), np.float32)
    sform = read(save(tmp_path / "s.nii", data, sform=2, qform=1, qoffset_x=99)).grid
    qform = read(save(tmp_path / "q.nii", data, sform=0, qform=1)).grid
    np.testing.assert_allclose(sform.lps_from_index, qform.lps_from_index, atol=1e-5)


def test_without_sform_and_qform_the_position_is_not_made_up(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii", np.zeros((2, 3, 4), np.float32), sform=0, qform=0)
    with pytest.raises(MissingAttribute, match=r"expected sform or qform in x\.nii, found neither"):
        read(path)
    assert not inspect(path).series[0].usable


@pytest.mark.parametrize(("units", "factor"), [("meter", 1000), ("micron", 0.001), ("unknown", 1)])
def test_units_of_length(tmp_path: Path, units: str, factor: float) -> None:
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.float32), RAS)
    image.header.set_xyzt_units(units)
    nib.save(image, tmp_path / "x.nii")
    np.testing.assert_allclose(read(tmp_path / "x.nii").grid.spacing_mm[0], 2.5 * factor, rtol=1e-6)


def test_a_trailing_axis_of_one_is_dropped_and_a_real_one_refused(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(read(save(tmp_path / "x.nii", data[..., None])).array, data.T)
    with pytest.raises(UnsupportedImage, match=r"three dimensions, found 2 × 3 × 4 × 2"):
        read(save(tmp_path / "y.nii", np.stack([data, data], axis=-1)))
    with pytest.raises(UnsupportedImage, match=r"three dimensions, found 2 × 3"):
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
    with pytest.raises(UnsupportedImage, match="real numbers or RGB24, found complex64"):
        read(save(tmp_path / "x.nii", np.zeros((2, 3, 4), np.complex64)))
    rgba = np.zeros((2, 3, 4), np.dtype([(channel, "u1") for channel in "RGBA"]))
    with pytest.raises(UnsupportedImage, match="real numbers or RGB24"):
        read(save(tmp_path / "y.nii", rgba))


def test_sheared_axes_are_refused(tmp_path: Path) -> None:
    shear = RAS.copy()
    shear[0, 2] = 0.5
    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), np.float32), shear), tmp_path / "x.nii")
    with pytest.raises(GeometryError, match="at right angles"):
        read(tmp_path / "x.nii")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95])
def test_a_file_cut_short_is_unreadable(tmp_path: Path, compressed: bool, keep: float) -> None:
    data = np.random.default_rng(1).normal(size=(8, 9, 10)).astype(np.float32)
    path = save(tmp_path / ("x.nii.gz" if compressed else "x.nii"), data)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UnreadableFile, match="cut short or damaged"):
        read(path)


def test_a_header_apart_from_its_image_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros((2, 3, 4), np.float32), RAS), tmp_path / "x.img")
    with pytest.raises(UnsupportedImage, match=r"found a header alone in x\.hdr"):
        read(tmp_path / "x.hdr")


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


@pytest.mark.parametrize("name", ["spect-mr-epilepsy/masked_ictal.nii.gz", "spect-ct-lu177/p_3_scan_1_ct.nii.gz"])
def test_real_files_lie_where_simpleitk_puts_them(shared: Path, name: str) -> None:
    volume = read(shared / name)
    image = sitk.ReadImage(str(shared / name))
    assert_grid_is_of_image(volume, image, 1e-3)
    np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(image), rtol=1e-6)
