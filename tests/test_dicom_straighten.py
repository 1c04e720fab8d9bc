"""Tilted stacks and stacks with gaps: the voxels' millimetres must stay right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from headers import ORIENTATIONS, header
from hypothesis import given, settings
from hypothesis import strategies as st

from medfuse.errors import UnsupportedImage
from medfuse.io.dicom_planes import Plane, planes_of
from medfuse.io.dicom_stack import Stack, stack
from medfuse.io.dicom_straighten import straighten

OUTSIDE = -5e5


def leaning(name: str, heights: list[float], shear: tuple[float, float]) -> list[Plane]:
    """Images in an orientation, at heights along their normal, moved sideways by so much a mm of height."""
    orientation = np.array(ORIENTATIONS[name])
    row, column = orientation[:3] / np.linalg.norm(orientation[:3]), orientation[3:] / np.linalg.norm(orientation[3:])
    step = np.cross(row, column) + shear[0] * row + shear[1] * column
    return [
        plane
        for height in heights
        for plane in planes_of(
            Path(f"{height}.dcm"),
            header(tuple((-31.5, 44.25, 117.0) + height * step), ImageOrientationPatient=orientation.tolist()),
        )
    ]


def values_at(points_mm: np.ndarray) -> np.ndarray:
    """A function of the place in the patient that linear interpolation keeps exactly."""
    return points_mm @ (1.0, -2.0, 3.0) + 7


def sampled(stacked: Stack) -> np.ndarray:
    """What a scanner with those slices would store."""
    slices = []
    for plane in stacked.planes:
        j, i = np.indices(plane.shape)
        points = (
            plane.position_mm
            + j[..., None] * plane.spacing_mm[0] * plane.column_direction
            + i[..., None] * plane.spacing_mm[1] * plane.row_direction
        )
        slices.append(values_at(points))
    return np.array(slices)


def straightened(stacked: Stack) -> np.ndarray:
    return straighten(sampled(stacked), [plane.position_mm for plane in stacked.planes], stacked.grid, OUTSIDE)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(ORIENTATIONS)),
    gaps=st.lists(st.sampled_from([1.14, 3.0, 4.22, 7.38]), min_size=1, max_size=6),
    shear=st.tuples(*[st.sampled_from([0.0, 0.1, -0.35, 0.6])] * 2),
)
def test_every_voxel_has_the_value_of_its_millimetre(name, gaps, shear) -> None:
    heights = np.concatenate([[0], np.cumsum(gaps)]).tolist()
    stacked = stack(leaning(name, heights, shear), allow_gaps=True)
    if not stacked.resampled:
        return
    array = straightened(stacked)
    expected = values_at(stacked.grid.points_mm(np.indices(array.shape).reshape(3, -1).T)).reshape(array.shape)
    # Beside one of two slices the other one decides, from half a gap away, and from half a pixel beyond its outer ones.
    away_mm = np.linalg.norm((max(gaps) / 2, 1.5 / 2, 1.25 / 2))
    assert np.abs(array - expected)[array != OUTSIDE].max() <= np.linalg.norm((1, -2, 3)) * away_mm + 1e-6
    index = np.array([stacked.grid.index_of([plane.position_mm])[0] for plane in stacked.planes])
    low, high = index[:, 1:].max(axis=0), index[:, 1:].min(axis=0) + np.array(stacked.planes[0].shape) - 1
    j, i = (slice(int(np.ceil(a - 1e-6)), int(np.floor(b + 1e-6)) + 1) for a, b in zip(low, high, strict=True))
    np.testing.assert_allclose(array[:, j, i], expected[:, j, i], atol=1e-6)  # where every slice has pixels


def test_a_tilted_stack_keeps_its_own_slices() -> None:
    stacked = stack(leaning("axial", [0, 3, 6, 9], (0.0, 0.5)))
    array = straightened(stacked)
    assert stacked.resampled["tilt_degrees"] == pytest.approx(26.57)
    np.testing.assert_allclose(array[2][2:9], sampled(stacked)[2])  # moved by 6 × 0.5 mm, two rows of 1.5 mm
    assert (array[2][:2] == OUTSIDE).all()
    assert (array[0][7:] == OUTSIDE).all()


def test_slices_where_there_are_some_and_means_between_them() -> None:
    stacked = stack(leaning("coronal", [0, 3, 6, 12], (0.0, 0.0)), allow_gaps=True)
    slices, array = sampled(stacked), straightened(stacked)
    for ours, theirs in ((0, 0), (1, 1), (2, 2), (4, 3)):
        np.testing.assert_array_equal(array[ours], slices[theirs])
    np.testing.assert_allclose(array[3], (slices[2] + slices[3]) / 2)


def test_nan_does_not_spread() -> None:
    stacked = stack(leaning("axial", [0, 3, 9], (0.0, 0.0)), allow_gaps=True)
    slices = sampled(stacked)
    slices[1, 2, 3] = np.nan
    with pytest.raises(UnsupportedImage, match="finite values to interpolate, found NaN"):
        straighten(slices, [plane.position_mm for plane in stacked.planes], stacked.grid, OUTSIDE)


def test_color_is_interpolated_channel_by_channel() -> None:
    stacked = stack(leaning("axial", [0, 3, 9], (0.0, 0.0)), allow_gaps=True)
    rgb = np.random.default_rng(3).integers(0, 256, (3, 7, 9, 3), np.uint8)
    array = straighten(rgb, [plane.position_mm for plane in stacked.planes], stacked.grid, 0)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array[[0, 1, 3]], rgb)
    np.testing.assert_array_equal(array[2], np.rint((rgb[1].astype(float) + rgb[2]) / 2))
