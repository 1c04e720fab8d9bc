"""Voxels with their meaning: what a volume and a pair refuse, and that they cannot be changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from medfuse import __version__
from medfuse.errors import GridMismatch, UnsupportedImage
from medfuse.grid import Grid
from medfuse.volume import Modality, Pair, Source, Step, Unit, Volume


def test_modalities_are_dicom_terms() -> None:
    assert Modality("PT") is Modality.PT
    assert {m for m in Modality if m.is_functional} == {Modality.PT, Modality.NM}


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int32", "float16", "float32", "float64"])
def test_takes_any_real_dtype(oblique_grid: Grid, dtype: str) -> None:
    volume = Volume(np.ones(oblique_grid.shape, dtype), oblique_grid, Modality.MR)
    assert volume.array.dtype == dtype
    assert not volume.is_color
    assert volume.unit is Unit.ARBITRARY


@pytest.mark.parametrize("dtype", ["complex64", "U1", "object", "datetime64[s]"])
def test_refuses_what_is_no_number(oblique_grid: Grid, dtype: str) -> None:
    with pytest.raises(ValueError, match="expected real numbers"):
        Volume(np.zeros(oblique_grid.shape, dtype), oblique_grid, Modality.MR)


@pytest.mark.parametrize("shape", [(5, 7), (9, 7, 5), (1, 5, 7, 9), (5, 7, 9, 3, 1)])
def test_refuses_a_shape_that_is_not_the_grids(oblique_grid: Grid, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 7, 9\)"):
        Volume(np.zeros(shape), oblique_grid, Modality.MR)


@pytest.mark.parametrize(("dtype", "channels"), [("float32", 3), ("uint16", 3), ("uint8", 4), ("uint8", 1)])
def test_refuses_a_colour_that_is_not_rgb_bytes(oblique_grid: Grid, dtype: str, channels: int) -> None:
    with pytest.raises(ValueError, match="uint8 with last axis 3"):
        Volume(np.zeros((5, 7, 9, channels), dtype), oblique_grid, Modality.PT, Unit.RGB)


def test_unit_and_array_must_agree(oblique_grid: Grid, rgb: Volume) -> None:
    assert rgb.is_color
    with pytest.raises(ValueError, match="unit RGB does not go"):
        Volume(np.zeros((5, 7, 9), np.uint8), oblique_grid, Modality.PT, Unit.RGB)
    with pytest.raises(ValueError, match="unit SUV does not go"):
        replace(rgb, unit=Unit.SUV)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_voxels_without_a_value(oblique_grid: Grid, value: float) -> None:
    array = np.zeros(oblique_grid.shape, np.float32)
    array[1, 2, 3] = array[4, 6, 8] = value
    with pytest.raises(UnsupportedImage, match=r"found 2 of 315 voxels.*--fill-nan"):
        Volume(array, oblique_grid, Modality.MR)


def test_is_read_only_and_leaves_the_callers_array_writable(oblique_grid: Grid) -> None:
    array = np.zeros(oblique_grid.shape)
    volume = Volume(array, oblique_grid, Modality.MR)
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0] = 1
    with pytest.raises(FrozenInstanceError, match="cannot assign"):
        volume.modality = Modality.CT
    array[0, 0, 0] = 1
    assert np.shares_memory(volume.array, array)  # no copy of what may be a gigabyte


def test_derive_keeps_what_it_does_not_change_and_remembers(oblique_volume: Volume) -> None:
    parameters = {"kind": "rigid"}
    derived = oblique_volume.derive("read").derive("register", parameters, modality=Modality.OTHER)
    parameters["kind"] = "affine"
    assert derived.history == (Step("read", {}, __version__), Step("register", {"kind": "rigid"}, __version__))
    assert derived.modality is Modality.OTHER
    assert derived.unit is oblique_volume.unit
    assert np.shares_memory(derived.array, oblique_volume.array)
    assert oblique_volume.history == ()


def test_nothing_of_the_patient_reaches_a_log(oblique_volume: Volume) -> None:
    header = Dataset()
    header.PatientName = "Doe^Jane"
    uid = generate_uid()
    source = Source("dicom", header, ((uid, uid),))
    volume = replace(oblique_volume, source=replace(source, also=(source,)))
    for text in (repr(volume), str(volume), repr(source), repr(Pair(volume, volume))):
        assert "dicom" in text
        assert "Doe" not in text
        assert uid not in text


def test_pair_is_on_one_grid(oblique_volume: Volume, rgb: Volume) -> None:
    pair = Pair(oblique_volume, rgb)
    assert pair.structural is oblique_volume
    assert pair.functional is rgb


def test_pair_refuses_two_grids(oblique_volume: Volume) -> None:
    grid = oblique_volume.grid
    origin = grid.origin_mm + np.array((0, 0, 0.01))
    moved = replace(oblique_volume, grid=Grid.from_axes(grid.shape, origin, grid.spacing_mm, grid.direction))
    with pytest.raises(GridMismatch, match=r"one grid.*medfuse\.resample"):
        Pair(oblique_volume, moved)


def test_pair_refuses_a_colour_structural(rgb: Volume) -> None:
    with pytest.raises(UnsupportedImage, match="grey structural"):
        Pair(rgb, rgb)
