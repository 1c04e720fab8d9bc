"""Bending beyond a linear alignment: how much of a known deformation is found, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import oblique_direction
from scipy.ndimage import gaussian_filter

from medfuse.align.engine.deformable import _Fit, _Lattice, deform
from medfuse.align.engine.information import Information
from medfuse.align.engine.intensities import comparable
from medfuse.align.engine.pyramid import levels
from medfuse.align.resample import resample
from medfuse.align.transform import Transform, Warp
from medfuse.align.warp import folding
from medfuse.errors import RegistrationError
from medfuse.grid import Grid
from medfuse.itk import to_image
from medfuse.sample import HeadScans, head_scans
from medfuse.volume import Modality, Unit, Volume


@pytest.fixture(scope="module")
def head() -> HeadScans:
    return head_scans()


@pytest.fixture(scope="module")
def bending(head: HeadScans) -> sitk.Transform:
    """A smooth deformation of the MR's world, of 8 mm where it is largest, that is no B-spline."""
    grid = head.mr.grid.with_spacing(6.0)
    rng = np.random.default_rng(2)
    moves = np.stack([gaussian_filter(rng.normal(size=grid.shape), 35 / 6, mode="reflect") for _ in range(3)], axis=-1)
    image = sitk.GetImageFromArray(moves * 8 / np.linalg.norm(moves, axis=-1).max(), isVector=True)
    image.CopyInformation(to_image(Volume(np.zeros(grid.shape, np.float32), grid, Modality.MR)))
    return sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))


@pytest.fixture(scope="module")
def bent_mr(head: HeadScans, bending: sitk.Transform) -> Volume:
    return resample(head.mr, head.mr.grid, Warp(Transform.identity(), bending))


def body_mm(volume: Volume) -> np.ndarray:
    points = volume.grid.points_mm(np.argwhere(gaussian_filter(volume.array.astype(float), 2) > 120))
    return np.random.default_rng(0).permutation(points)[:2000]


def median_mm(found: Warp | Transform, truth: Warp | Transform, volume: Volume) -> float:
    return float(np.median(truth.distance_mm(found, body_mm(volume))))


@pytest.mark.parametrize(("scan", "left"), [("ct", 0.55), ("pet", 0.6)])
def test_finds_a_known_deformation(
    scan: str, left: float, head: HeadScans, bending: sitk.Transform, bent_mr: Volume
) -> None:
    start = Transform(np.linalg.inv(head.mr_from_pet))
    truth = Warp(start, sitk.CompositeTransform([start.to_itk(), bending]))
    steps = []
    found = deform(comparable(bent_mr), comparable(getattr(head, scan)), start, lambda *step: steps.append(step))
    before = median_mm(start, truth, bent_mr)
    assert before > 2
    assert median_mm(found, truth, bent_mr) < left * before
    assert folding(found, bent_mr.grid) == 0
    np.testing.assert_array_equal(found.moving_from_fixed, start.moving_from_fixed)
    assert steps == sorted(set(steps))
    assert steps[-1] == (80, 80)


def test_bends_where_a_small_scan_lies_in_a_large_one(
    head: HeadScans, bending: sitk.Transform, bent_mr: Volume
) -> None:
    start = Transform(np.linalg.inv(head.mr_from_pet))
    truth = Warp(start, sitk.CompositeTransform([start.to_itk(), bending]))
    first, last = (np.array(head.ct.grid.shape) * share // 16 for share in (2, 9))
    index = head.ct.grid.lps_from_index.copy()
    index[:3, 3] = head.ct.grid.points_mm([first])[0]
    array = head.ct.array[tuple(map(slice, first, last))]
    block = Volume(array, Grid(array.shape, index), head.ct.modality, head.ct.unit)
    assert np.prod(block.grid.extent_mm) < 0.12 * np.prod(bent_mr.grid.extent_mm)
    found = deform(comparable(bent_mr), comparable(block), start)
    points = body_mm(bent_mr)
    points = points[block.grid.contains(start.apply(points))]
    before, after = (np.median(truth.distance_mm(one, points)) for one in (start, found))
    assert before > 1
    assert after < 0.6 * before
    assert folding(found, bent_mr.grid) == 0


def test_leaves_alone_what_fits(head: HeadScans) -> None:
    start = Transform(np.linalg.inv(head.mr_from_pet))
    found = deform(comparable(head.mr), comparable(head.ct), start)
    assert median_mm(found, start, head.mr) < 0.4
    again = deform(comparable(head.mr), comparable(head.ct), start)
    np.testing.assert_array_equal(found.apply(body_mm(head.mr)), again.apply(body_mm(head.mr)))


def volume(seed: int, shape: tuple[int, int, int] = (24, 40, 36)) -> Volume:
    grid = Grid.from_axes(shape, (-31.5, 44.25, 117.0), (5.0, 3.0, 2.5), oblique_direction())
    array = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5).astype(np.float32)
    return Volume(array, grid, Modality.MR, Unit.ARBITRARY)


@pytest.mark.parametrize("shape", [(24, 40, 36), (1, 60, 60), (3, 40, 36)])
def test_two_images_of_noise_are_not_folded(shape: tuple[int, int, int]) -> None:
    one, other = volume(1, shape), volume(2, shape)
    found = deform(comparable(one), comparable(other), Transform.identity())
    assert folding(found, one.grid) == 0


def test_refuses_images_that_lie_apart() -> None:
    apart = Transform(np.eye(4) + 500 * np.outer((1, 0, 0, 0), (0, 0, 0, 1)))
    with pytest.raises(RegistrationError, match="two scans that overlap"):
        deform(comparable(volume(1)), comparable(volume(2)), apart)


@pytest.fixture
def moves() -> np.ndarray:
    lattice = _Lattice.over(volume(1).grid)
    return np.random.default_rng(4).normal(size=(*lattice.shape, 3)) * 3


def test_its_b_spline_is_that_of_itk(moves: np.ndarray) -> None:
    grid = volume(1).grid
    lattice = _Lattice.over(grid)
    points = grid.points_mm(np.random.default_rng(3).uniform(0, 1, (200, 3)) * (np.array(grid.shape) - 1))
    itk = lattice.to_itk(moves)
    expected = np.array([itk.TransformPoint(point) for point in points.tolist()]) - points
    own = (lattice.weights(points) @ moves.reshape(-1, 3)) @ grid.direction.T
    np.testing.assert_allclose(own, expected, atol=1e-9)
    assert np.abs(expected).max() > 1


def test_strain_is_the_mean_square_of_the_derivatives(moves: np.ndarray) -> None:
    """Against differences of ITK's displacements over the whole grid."""
    grid = volume(1).grid
    lattice = _Lattice.over(grid)
    fine = grid.with_spacing(1.0)
    field = sitk.TransformToDisplacementField(
        lattice.to_itk(moves),
        sitk.sitkVectorFloat64,
        fine.shape[::-1],
        fine.origin_mm.tolist(),
        fine.spacing_mm[::-1],
        fine.direction[:, ::-1].ravel().tolist(),
    )
    first = np.gradient(sitk.GetArrayFromImage(field), axis=(0, 1, 2))
    second = [np.gradient(each, axis=(0, 1, 2)) for each in first]
    inner = (slice(2, -2),) * 3
    stretching = sum(np.square(each[inner]).sum(-1).mean() for each in first)
    bending = sum(np.square(each[inner]).sum(-1).mean() for row in second for each in row)
    assert lattice.strain(moves)[0] == pytest.approx(1.0 * stretching + 2000 * bending, rel=0.15)


def test_the_slope_of_the_cost_is_its_slope(moves: np.ndarray) -> None:
    one, other = (levels(comparable(volume(seed)), (3.0,))[0] for seed in (1, 1))
    lattice = _Lattice.over(volume(1).grid)
    fit = _Fit(Information(one, other, 20_000), Transform.identity(), lattice, 1.5)
    shares = (moves / lattice.spacing_mm).ravel() / 4
    way = fit.cost(shares)[1]
    step = 1e-3 * way / np.linalg.norm(way)
    difference = fit.cost(shares + step)[0] - fit.cost(shares - step)[0]
    assert difference == pytest.approx(2 * (way @ step), rel=0.05)
