"""Voxels onto another grid: the same place gets the same value, checked against scipy and SimpleITK."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from medfuse import interpolation
from medfuse.align import Transform, overlap, resample
from medfuse.align.warp import Warp
from medfuse.errors import NoOverlap
from medfuse.grid import Grid
from medfuse.itk import to_image
from medfuse.volume import Modality, Unit, Volume

AXIAL = np.eye(3)[:, ::-1]


def rigid(degrees: float, shift: tuple[float, float, float], center: np.ndarray) -> Transform:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * np.array((0.48, -0.6, 0.64))).as_matrix()
    matrix[:3, 3] = center + shift - matrix[:3, :3] @ center
    return Transform(matrix)


@pytest.fixture
def fixed(oblique_grid: Grid) -> Grid:
    """A grid that crosses the oblique one at other angles, as fine as it or finer."""
    direction = Rotation.from_euler("zyx", (25, -10, 35), degrees=True).as_matrix()
    center = oblique_grid.center_mm
    shape, spacing = (11, 8, 10), (1.4, 1.3, 1.1)
    first = center - direction @ ((np.array(shape) - 1) / 2 * spacing)
    return Grid.from_axes(shape, first, spacing, direction, "1.2.826.0.1.888")


@pytest.fixture
def moved(oblique_grid: Grid) -> Transform:
    return rigid(14, (1.5, -2.0, 1.0), oblique_grid.center_mm)


def pulled(array: np.ndarray, volume: Volume, grid: Grid, transform: Transform, outside: float) -> np.ndarray:
    """What scipy reads off the volume's array at the places where the grid's voxels come to lie."""
    index = np.indices(grid.shape).reshape(3, -1)
    moving_from_grid = volume.grid.index_from_lps @ transform.moving_from_fixed @ grid.lps_from_index
    at = moving_from_grid[:3, :3] @ index + moving_from_grid[:3, 3:]
    values = map_coordinates(array.astype(float), at, order=1, mode="nearest")
    last = np.array(volume.grid.shape)[:, None] - 0.5
    inside = ((at >= -0.5) & (at <= last)).all(axis=0)
    return np.where(inside, values, outside).reshape(grid.shape)


def test_agrees_with_scipy(oblique_volume: Volume, fixed: Grid, moved: Transform) -> None:
    laid = resample(oblique_volume, fixed, moved)
    expected = pulled(oblique_volume.array, oblique_volume, fixed, moved, outside=-1000)
    assert laid.array.dtype == np.float32
    assert 0.3 < (expected != -1000).mean() < 1  # both inside and outside are tried
    np.testing.assert_allclose(laid.array, expected, atol=1e-3)


def test_agrees_with_simpleitk(oblique_volume: Volume, fixed: Grid, moved: Transform) -> None:
    reference = sitk.Image(*fixed.shape[::-1], sitk.sitkFloat32)
    reference.SetOrigin(fixed.origin_mm.tolist())
    reference.SetSpacing(fixed.spacing_mm[::-1])
    reference.SetDirection(fixed.direction[:, ::-1].ravel().tolist())
    itk = sitk.Euler3DTransform()
    itk.SetMatrix(moved.moving_from_fixed[:3, :3].ravel().tolist(), 1e-9)
    itk.SetTranslation(moved.moving_from_fixed[:3, 3].tolist())
    theirs = sitk.Resample(to_image(oblique_volume), reference, itk, sitk.sitkLinear, -1000.0)
    np.testing.assert_allclose(resample(oblique_volume, fixed, moved).array, sitk.GetArrayFromImage(theirs), atol=1e-3)


def test_a_landmark_lands_where_the_transform_says(oblique_grid: Grid) -> None:
    """Bright at one point p of the moving world; the fixed voxel q with moving_from_fixed(q) = p must be bright."""
    fixed = Grid.from_axes((30, 36, 40), (0, 0, 0), (2, 2, 2), AXIAL)
    moving = Grid.from_axes((31, 37, 41), (95, -40, 12), (2, 2, 2), oblique_grid.direction)
    q = np.array((34.0, 40.0, 22.0))
    p = moving.points_mm([(17, 16, 23)])[0]
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zyx", (20, 40, -15), degrees=True).as_matrix()
    matrix[:3, 3] = p - matrix[:3, :3] @ q
    distance = np.linalg.norm(moving.points_mm(np.indices(moving.shape).reshape(3, -1).T) - p, axis=1)
    array = np.exp(-((distance / 4) ** 2)).reshape(moving.shape).astype(np.float32)
    laid = resample(Volume(array, moving, Modality.PT), fixed, Transform(matrix))
    brightest = np.unravel_index(laid.array.argmax(), fixed.shape)
    np.testing.assert_allclose(fixed.points_mm([brightest])[0], q, atol=1e-9)
    assert laid.array.max() == pytest.approx(1, abs=1e-3)


def test_identity_returns_the_very_same_object(oblique_volume: Volume) -> None:
    again = Grid(oblique_volume.grid.shape, oblique_volume.grid.lps_from_index)
    assert resample(oblique_volume, oblique_volume.grid) is oblique_volume
    assert resample(oblique_volume, again, Transform.identity()) is oblique_volume


def test_the_same_place_in_another_frame_of_reference_is_told_as_that(oblique_volume: Volume) -> None:
    there = replace(oblique_volume.grid, frame_of_reference="2.25.4")
    laid = resample(oblique_volume, there, Transform.identity())
    assert np.shares_memory(laid.array, oblique_volume.array)
    assert (laid.grid, laid.history[-1].name) == (there, "resample")


def test_the_smallest_shift_is_not_identity(oblique_volume: Volume) -> None:
    shift = rigid(0, (0, 0, 1e-4), np.zeros(3))
    assert resample(oblique_volume, oblique_volume.grid, shift) is not oblique_volume


def test_result_lies_on_the_grid_and_remembers(oblique_volume: Volume, fixed: Grid, moved: Transform) -> None:
    laid = resample(oblique_volume, fixed, moved)
    assert laid.grid is fixed
    assert (laid.modality, laid.unit, laid.source) == (Modality.CT, Unit.HU, oblique_volume.source)
    (step,) = laid.history
    assert step.name == "resample"
    assert step.parameters["moving_from_fixed"] == moved.moving_from_fixed.tolist()
    assert step.parameters["overlap"] == round(overlap(fixed, oblique_volume.grid, moved), 4)


@pytest.mark.parametrize(
    ("unit", "lift", "outside"), [(Unit.HU, 0, -1000), (Unit.SUV, 100, 0), (Unit.ARBITRARY, 0, -40)]
)
def test_outside_is_nothing(oblique_volume: Volume, fixed: Grid, unit: Unit, lift: float, outside: float) -> None:
    volume = replace(oblique_volume, array=oblique_volume.array + lift, unit=unit)
    far = Transform(rigid(0, (6, 6, 4), np.zeros(3)).moving_from_fixed)
    laid = resample(volume, fixed, far)
    expected = pulled(volume.array, volume, fixed, far, outside=1e6)
    assert (expected == 1e6).any()
    assert set(laid.array[expected == 1e6]) == {outside}


def test_colour_is_interpolated_by_channel_and_rounded(rgb: Volume, fixed: Grid, moved: Transform) -> None:
    laid = resample(rgb, fixed, moved)
    assert laid.is_color
    for channel in range(3):
        expected = pulled(rgb.array[..., channel], rgb, fixed, moved, outside=0)
        assert np.abs(laid.array[..., channel] - expected).max() <= 0.5 + 1e-3


def test_colour_onto_a_coarser_grid_is_smoothed_as_grey_is(rgb: Volume) -> None:
    coarse = rgb.grid.with_spacing((6.0, 4.0, 4.0))
    laid = resample(rgb, coarse)
    for channel in range(3):
        grey = Volume(rgb.array[..., channel].astype(np.float32), rgb.grid, Modality.PT)
        assert np.abs(laid.array[..., channel] - resample(grey, coarse).array).max() <= 0.5 + 1e-3


def test_detail_that_a_coarser_grid_cannot_hold_does_not_come_back_as_noise() -> None:
    grid = Grid.from_axes((8, 48, 48), (0, 0, 0), (2, 1, 1), AXIAL)
    noise = Volume(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid, Modality.MR)
    coarse = resample(noise, grid.with_spacing((2.0, 4.0, 4.0)))
    assert coarse.grid.shape == (8, 12, 12)
    assert coarse.array.std() < 0.35  # linear interpolation alone leaves 0.5
    spacing = (2.0, 1.0, 4.0)  # coarser along one axis: smoothed along that one only
    sigma = 0.4 * np.sqrt(4.0**2 - 1)
    smoothed = gaussian_filter(noise.array.astype(float), (0, 0, sigma), mode="nearest")
    target = grid.with_spacing(spacing)
    expected = pulled(smoothed, noise, target, Transform.identity(), outside=0)
    np.testing.assert_allclose(resample(noise, target).array, expected, atol=0.08)  # ITK's kernel is a discrete one


def test_smoothing_follows_the_transform() -> None:
    """A quarter turn about z: the grid's coarse columns run along the volume's rows."""
    grid = Grid.from_axes((6, 48, 48), (0, 0, 0), (2, 1, 1), AXIAL)
    noise = Volume(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid, Modality.MR)
    turn = Transform.from_itk(sitk.Euler3DTransform(grid.center_mm.tolist(), 0, 0, np.pi / 2, (0, 0, 0)))
    target = grid.with_spacing((2.0, 1.0, 4.0))
    smoothed = gaussian_filter(noise.array.astype(float), (0, 0.4 * np.sqrt(4.0**2 - 1), 0), mode="nearest")
    expected = pulled(smoothed, noise, target, turn, outside=0)
    np.testing.assert_allclose(resample(noise, target, turn).array, expected, atol=0.08)


def test_a_constant_stays_constant_however_coarse() -> None:
    grid = Grid.from_axes((4, 30, 30), (0, 0, 0), (3, 1, 1), AXIAL)
    volume = Volume(np.full(grid.shape, 5.0), grid, Modality.MR)
    np.testing.assert_allclose(resample(volume, grid.with_spacing(6)).array, 5, rtol=1e-5)


def test_a_grid_as_fine_takes_the_voxels_as_they_are(oblique_volume: Volume) -> None:
    grid = oblique_volume.grid
    inner = Grid.from_axes((3, 4, 5), grid.points_mm([(1, 2, 3)])[0], grid.spacing_mm, grid.direction)
    np.testing.assert_allclose(resample(oblique_volume, inner).array, oblique_volume.array[1:4, 2:6, 3:8], atol=1e-3)


def test_refuses_volumes_that_lie_apart(oblique_volume: Volume) -> None:
    apart = Transform(rigid(0, (500, 0, 0), np.zeros(3)).moving_from_fixed)
    with pytest.raises(NoOverlap, match="no voxel of one inside the other"):
        resample(oblique_volume, oblique_volume.grid, apart)
    assert overlap(oblique_volume.grid, oblique_volume.grid, apart) == 0


def test_overlap_is_the_share_of_the_fixed_grid() -> None:
    grid = Grid.from_axes((10, 20, 40), (0, 0, 0), (3, 2, 1), AXIAL)
    assert overlap(grid, grid) == 1
    half = Transform(rigid(0, (20, 0, 0), np.zeros(3)).moving_from_fixed)
    assert overlap(grid, grid, half) == pytest.approx(0.5, abs=0.02)
    inner = Grid.from_axes((5, 10, 20), (5, 4, 3), (3, 2, 1), AXIAL)
    assert overlap(grid, inner) == pytest.approx(1 / 8)
    assert overlap(inner, grid) == 1


def test_a_thin_slab_in_a_large_volume_is_found() -> None:
    large = Grid.from_axes((400, 300, 300), (0, 0, 0), (1, 1, 1), AXIAL)
    for k in range(200, 207):
        slab = Grid.from_axes((2, 300, 300), (0, 0, k), (1, 1, 1), AXIAL)
        assert 0.004 < overlap(large, slab) < 0.02  # truly 0.005, on a sample of the points
        assert overlap(slab, large) == 1


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("spacing", [None, (1.4, 1.3, 1.1), (2.0, 3.0, 9.0), (7.0, 6.0, 8.0), 0.7])
@pytest.mark.parametrize("coloured", [False, True])
def test_a_device_gives_what_simpleitk_gives(
    request: pytest.FixtureRequest,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    oblique_volume: Volume,
    fixed: Grid,
    moved: Transform,
    spacing: tuple[float, float, float] | float | None,
    turned: bool,
    coloured: bool,
) -> None:
    volume = request.getfixturevalue("rgb") if coloured else oblique_volume
    grid = fixed if spacing is None else fixed.with_spacing(spacing)
    transform = moved if turned else Transform.identity()
    monkeypatch.setattr(
        interpolation, "AT_ONCE", 3 * grid.shape[1] * grid.shape[2]
    )  # more than once, the last one short
    there, here = resample(volume, grid, transform, device=device), resample(volume, grid, transform)
    assert there.array.dtype == here.array.dtype
    assert there.grid is grid
    assert there.history == here.history
    difference = np.abs(there.array.astype(float) - here.array)
    assert difference.max() <= (1 if coloured else 5e-4)  # of up to 1,000 HU
    assert (difference > 0.5).mean() < 1e-2


def test_a_device_keeps_a_border_voxel_out_to_its_face(device: str, oblique_volume: Volume) -> None:
    grid = oblique_volume.grid
    wider = Grid.from_axes((9, 11, 13), grid.points_mm([(-2, -2, -2)])[0], grid.spacing_mm, grid.direction)
    for shift in (-0.49, -0.25, 0.0, 0.25, 0.49):  # voxels, along all axes
        matrix = np.eye(4)
        matrix[:3, 3] = grid.direction @ (shift * np.array(grid.spacing_mm))
        there, here = (resample(oblique_volume, wider, Transform(matrix), device=where) for where in (device, None))
        np.testing.assert_allclose(there.array, here.array, atol=5e-4)
        assert (there.array != -1000).sum() == 5 * 7 * 9


def test_a_device_takes_the_same_one_of_two_opposite_faces(device: str) -> None:
    volume = Volume(
        np.full((10, 10, 10), 100, np.float32), Grid.from_axes((10,) * 3, (0, 0, 0), (4, 4, 4), AXIAL), Modality.PT
    )
    halves = Grid.from_axes((24,) * 3, (-4, -4, -4), (2, 2, 2), AXIAL)  # with centres on the faces
    there, here = (resample(volume, halves, device=where) for where in (device, None))
    np.testing.assert_array_equal(there.array, here.array)
    assert (here.array > 0).sum() == 20**3


@pytest.mark.parametrize(
    ("origin", "spacing", "start", "step", "inside"),
    [(6, 1.5, 4, 1.25, 6), (9, 3, 3.5, 2, 8), (-10, 1.5, -11.25, 0.5, 13), (6, 1.25, 4.125, 1.25, 5)],
)
def test_a_device_does_not_let_rounding_choose_the_face(
    device: str, origin: float, spacing: float, start: float, step: float, inside: int
) -> None:
    volume = Volume(
        np.full((5,) * 3, 100, np.float32), Grid.from_axes((5,) * 3, (origin,) * 3, (spacing,) * 3, AXIAL), Modality.PT
    )
    grid = Grid.from_axes((14,) * 3, (start,) * 3, (step,) * 3, AXIAL)  # with centres on a face, but for rounding
    there, here = (resample(volume, grid, device=where) for where in (device, None))
    np.testing.assert_array_equal(there.array, here.array)
    assert (there.array > 0).sum() == inside**3


@pytest.mark.parametrize("kind", ["turned round", ">f4", ">i2", np.longdouble])
def test_a_device_takes_any_array(
    device: str, oblique_volume: Volume, fixed: Grid, moved: Transform, kind: str
) -> None:
    array = oblique_volume.array
    array = array[::-1, :, ::-1] if kind == "turned round" else array.astype(kind)
    volume = replace(oblique_volume, array=array)
    there, here = (resample(volume, fixed, moved, device=where) for where in (device, None))
    np.testing.assert_allclose(there.array, here.array, atol=5e-4)


def test_a_device_without_the_memory_leaves_it_to_simpleitk(
    monkeypatch: pytest.MonkeyPatch, oblique_volume: Volume, fixed: Grid, moved: Transform
) -> None:
    def too_much(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(interpolation, "_at", too_much)
    np.testing.assert_array_equal(
        resample(oblique_volume, fixed, moved, device="cpu").array, resample(oblique_volume, fixed, moved).array
    )


@pytest.mark.parametrize("bends", [True, False])
def test_a_device_that_is_not_there_is_refused(
    oblique_volume: Volume, fixed: Grid, moved: Transform, bends: bool
) -> None:
    for name in ("cuda:99", "gpu"):
        with pytest.raises(ValueError, match=r"expected a device of auto, cpu, cuda|this machine has no device"):
            resample(oblique_volume, fixed, bent(fixed, 2, moved) if bends else moved, device=name)


def test_apples_gpu_is_left_out(
    monkeypatch: pytest.MonkeyPatch, oblique_volume: Volume, fixed: Grid, moved: Transform
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    there, here = (resample(oblique_volume, fixed, moved, device=where) for where in ("mps", None))
    np.testing.assert_array_equal(there.array, here.array)


def test_a_warp_is_left_to_simpleitk(oblique_volume: Volume, fixed: Grid, moved: Transform) -> None:
    warp = bent(fixed, 2, moved)
    there, here = (resample(oblique_volume, fixed, warp, device=where) for where in ("cpu", None))
    np.testing.assert_array_equal(there.array, here.array)


def bent(grid: Grid, size_mm: float, turn: Transform) -> Warp:
    """A linear transform after a B-spline over a grid that moves its control points at random."""
    image = to_image(Volume(np.zeros(grid.shape, np.float32), grid, Modality.CT))
    spline = sitk.BSplineTransformInitializer(image, [2, 2, 2], 3)
    spline.SetParameters((np.random.default_rng(1).normal(size=len(spline.GetParameters())) * size_mm).tolist())
    return Warp(turn, sitk.CompositeTransform([turn.to_itk(), spline]))


def test_a_warp_is_followed_voxel_by_voxel(oblique_volume: Volume, fixed: Grid, moved: Transform) -> None:
    warp = bent(fixed, 2, moved)
    at = oblique_volume.grid.index_of(warp.apply(fixed.points_mm(np.indices(fixed.shape).reshape(3, -1).T))).T
    values = map_coordinates(oblique_volume.array.astype(float), at, order=1, mode="nearest")
    inside = ((at >= -0.5) & (at <= np.array(oblique_volume.grid.shape)[:, None] - 0.5)).all(axis=0)
    laid = resample(oblique_volume, fixed, warp)
    np.testing.assert_allclose(laid.array.ravel(), np.where(inside, values, -1000), atol=1e-2)
    assert np.abs(laid.array - resample(oblique_volume, fixed, moved).array).max() > 50
    assert overlap(fixed, oblique_volume.grid, warp) == pytest.approx(inside.mean(), abs=1e-6)
    (step,) = laid.history
    assert step.parameters["deformable"] is True
    assert resample(oblique_volume, fixed, moved).history[0].parameters["deformable"] is False


def test_a_warp_that_leaves_the_corners_is_not_identity(oblique_volume: Volume) -> None:
    still = bent(oblique_volume.grid, 0, Transform.identity())
    laid = resample(oblique_volume, oblique_volume.grid, still)
    assert laid is not oblique_volume
    np.testing.assert_allclose(laid.array, oblique_volume.array, atol=1e-3)


def test_a_thin_slab_is_found_through_a_warp() -> None:
    large = Grid.from_axes((400, 300, 300), (0, 0, 0), (1, 1, 1), AXIAL)
    slab = Grid.from_axes((2, 300, 300), (0, 0, 202), (1, 1, 1), AXIAL)
    assert 0.004 < overlap(large, slab, bent(slab, 0, Transform.identity())) < 0.02
