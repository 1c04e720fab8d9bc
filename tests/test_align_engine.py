"""The parts a registration is made of: the measure and its slope, the search, the climb, what is compared."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from scipy.stats import entropy
from skimage.metrics import normalized_mutual_information

from medfuse.align.engine.information import BINS, Information
from medfuse.align.engine.intensities import comparable
from medfuse.align.engine.pyramid import Level, cubic, levels, trimmed
from medfuse.align.engine.refine import Affine, Rigid, refined
from medfuse.align.engine.search import candidates, orientations
from medfuse.align.engine.second import second_opinion
from medfuse.align.transform import Transform
from medfuse.color import apply_palette
from medfuse.errors import RegistrationError
from medfuse.grid import Grid
from medfuse.itk import to_image_of
from medfuse.volume import Modality, Unit, Volume

RNG = np.random.default_rng(3)
BLOBS = gaussian_filter(RNG.normal(size=(40, 44, 36)), 3).astype(np.float32)
BLOBS = (BLOBS - BLOBS.min()) / np.ptp(BLOBS)
INSIDE = (
    np.linalg.norm((np.indices(BLOBS.shape) - np.reshape((20, 22, 17), (3, 1, 1, 1))).T / (16, 19, 13), axis=3).T < 1
)
BODY = np.where(INSIDE, 0.3 + 0.7 * BLOBS, 0).astype(np.float32)
#: Another modality: the tissues in another order of brightness.
OTHER = np.where(INSIDE, 0.5 + 0.5 * np.sin(7 * BODY), 0).astype(np.float32)
DIRECTION = Rotation.from_euler("zyx", (10, -20, 30), degrees=True).as_matrix()


def oblique(array: np.ndarray, spacing: tuple[float, float, float] = (4, 3, 3.5)) -> Level:
    return Level(array, Grid.from_axes(array.shape, (-70, -60, 30), spacing, DIRECTION))


def rigid(
    vector_degrees: tuple[float, float, float], shift_mm: tuple[float, float, float], about: np.ndarray
) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(vector_degrees, degrees=True).as_matrix()
    matrix[:3, 3] = about + shift_mm - matrix[:3, :3] @ about
    return matrix


def displaced(level: Level, matrix: np.ndarray) -> Level:
    return Level(level.array, Grid(level.grid.shape, matrix @ level.grid.lps_from_index))


def test_the_measure_agrees_with_one_written_out() -> None:
    fixed, moving = oblique(BODY), oblique(OTHER)
    measure = Information(fixed, moving, 3_000)
    index = fixed.grid.index_of(measure.points_mm).T
    first, second = (map_coordinates(array, index, order=1, mode="nearest") * (BINS - 1) for array in (BODY, OTHER))
    # Each moving value counts in every bin by a cubic B-spline about it; each fixed one in the nearest bin.
    spline = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    weights = np.nan_to_num(spline(second[:, None] - np.arange(-1, BINS + 1)))
    joint = np.eye(BINS)[np.rint(first).astype(int)].T @ weights
    expected = (entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))) / entropy(joint.ravel())
    assert measure(np.eye(4))[0] == pytest.approx(expected, abs=1e-4)
    # Without the spline, which blurs: what everyone has.
    assert normalized_mutual_information(first, second, bins=BINS) > expected
    assert measure(np.eye(4))[0] > 1.1


def test_the_measure_of_independent_volumes_is_near_1() -> None:
    noise = [RNG.random(BODY.shape).astype(np.float32) for _ in range(2)]
    value, _ = Information(oblique(noise[0]), oblique(noise[1]), 60_000)(np.eye(4))
    assert 1 < value < 1.005


@pytest.mark.parametrize("model", [Rigid, Affine])
def test_the_slope_is_that_of_the_measure(model: type[Rigid] | type[Affine]) -> None:
    # A moving volume so large that no point leaves it, and smooth, so that the measure has a slope.
    fixed = oblique(gaussian_filter(BODY, 1))
    spacing = np.array((4.3, 3.9, 4.1))
    array = np.pad(gaussian_filter(OTHER, 2), 14)
    origin = fixed.grid.center_mm - DIRECTION @ ((np.array(array.shape) - 1) / 2 * spacing)
    wide = Level(array, Grid.from_axes(array.shape, origin, spacing, DIRECTION))
    measure = Information(fixed, wide, 150_000)
    near = model(rigid((5, -3, 4), (2, 1, -3), fixed.grid.center_mm), fixed.grid.center_mm, 50)
    at = np.random.default_rng(1).normal(size=near.size) * 6
    assert measure.share_inside(near.matrix(at)) == 1
    slope = near.slope(at, measure(near.matrix(at))[1])
    steps = np.eye(near.size) * 0.5
    expected = [(measure(near.matrix(at + step))[0] - measure(near.matrix(at - step))[0]) / 1.0 for step in steps]
    np.testing.assert_allclose(slope, expected, atol=0.03 * np.abs(expected).max())


def test_too_little_overlap_is_no_information() -> None:
    fixed = oblique(BODY)
    far = np.eye(4)
    far[:3, 3] = 500
    value, slope = Information(fixed, fixed, 5_000)(far)
    assert value == 1
    assert not slope.any()
    assert Information(fixed, fixed, 5_000).share_inside(far) == 0
    assert Information(fixed, fixed, 5_000).share_inside(np.eye(4)) == 1


def test_a_part_is_the_measure_over_its_points() -> None:
    measure = Information(oblique(BODY), oblique(OTHER), 5_000)
    every = measure.part(np.ones(5_000, bool))
    assert every(np.eye(4))[0] == measure(np.eye(4))[0]
    half = measure.part(measure.points_mm[:, 2] < np.median(measure.points_mm[:, 2]))
    assert len(half.points_mm) == 2_500
    assert len(measure.points_mm) == 5_000


@given(
    vector=st.tuples(*[st.floats(-6, 6)] * 3),
    shift=st.tuples(*[st.floats(-6, 6)] * 3),
)
@settings(max_examples=8, deadline=None)
def test_the_climb_recovers_a_displacement(vector: tuple[float, ...], shift: tuple[float, ...]) -> None:
    fixed = oblique(BODY)
    truth = rigid(vector, shift, fixed.grid.center_mm)  # type: ignore[arg-type]
    measure = Information(fixed, displaced(oblique(OTHER), truth), 20_000)
    found = refined(measure, Rigid(np.eye(4), fixed.grid.center_mm, 50))
    assert Transform(found).distance_mm(Transform(truth), fixed.body_mm).mean() < 0.5
    assert measure(found)[0] >= measure(np.eye(4))[0]
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-12)


def test_the_second_engine_recovers_a_displacement() -> None:
    fixed = oblique(BODY)
    truth = rigid((4, -3, 5), (3, -4, 2), fixed.grid.center_mm)
    found = second_opinion(fixed, displaced(oblique(OTHER), truth), np.eye(4), fixed.grid.center_mm)
    assert Transform(found).distance_mm(Transform(truth), fixed.body_mm).mean() < 0.8


def test_the_second_engine_stays_where_nothing_overlaps() -> None:
    far = np.eye(4)
    far[:3, 3] = 5000
    np.testing.assert_array_equal(second_opinion(oblique(BODY), oblique(OTHER), far, np.zeros(3)), far)


@pytest.mark.parametrize("turn", [(0, 0, 0), (180, 0, 0), (0, 180, 0), (0, 0, 180)])
def test_the_search_comes_near_whatever_the_turn(turn: tuple[float, float, float]) -> None:
    small = cubic(to_image_of(BODY, oblique(BODY).grid), 8)
    truth = rigid((22, -16, 12), (30, 40, -25), np.zeros(3)) @ rigid(turn, (300, -500, 700), np.zeros(3))
    there = displaced(oblique(np.pad(OTHER, ((0, 9), (7, 0), (0, 0)))), truth)
    origin = Level(OTHER, oblique(OTHER).grid)
    index = there.grid.lps_from_index.copy()
    index[:3, 3] = (truth @ np.append(origin.grid.points_mm([[0, -7, 0]])[0], 1))[:3]
    large = cubic(to_image_of(there.array, Grid(there.grid.shape, index)), 8)
    best = candidates(small, large, orientations(20))[:5]
    assert min(Transform(pose.matrix).distance_mm(Transform(truth), small.body_mm).mean() for pose in best) < 25
    assert [pose.score for pose in best] == sorted((pose.score for pose in best), reverse=True)


def test_the_search_finds_a_slab_that_is_one_voxel_thick() -> None:
    index = oblique(BODY).grid.lps_from_index.copy()
    index[:3, 3] = oblique(BODY).grid.points_mm([(19, 0, 0)])[0]
    thin = Level(BODY[19:21], Grid((2, *BODY.shape[1:]), index))
    truth = rigid((0, 180, 0), (300, -500, 700), np.zeros(3))
    small, large = (
        cubic(to_image_of(level.array, level.grid), 9) for level in (thin, displaced(oblique(OTHER), truth))
    )
    assert min(small.array.shape) == 1
    poses = candidates(small, large, orientations(20))  # all are climbed from
    assert min(Transform(pose.matrix).distance_mm(Transform(truth), small.body_mm).mean() for pose in poses) < 15


def test_the_search_does_not_depend_on_threads() -> None:
    small, large = (cubic(to_image_of(array, oblique(array).grid), 12) for array in (BODY, OTHER))
    one, three = candidates(small, large, orientations(20)), candidates(small, large, orientations(20), threads=3)
    np.testing.assert_array_equal([pose.matrix for pose in one], [pose.matrix for pose in three])


def test_any_tilt_is_near_an_orientation() -> None:
    vectors = np.random.default_rng(5).normal(size=(2_000, 3))
    vectors *= np.random.default_rng(6).uniform(0, 40, (2_000, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    known = Rotation.from_matrix(np.array(orientations(20)))
    for turn, within in (((0, 0, 0), 21), ((180, 0, 0), 26), ((0, 180, 0), 26), ((0, 0, 180), 26)):
        tilts = Rotation.from_rotvec(vectors, degrees=True) * Rotation.from_rotvec(turn, degrees=True)
        apart = np.min([np.degrees((tilts * one.inv()).magnitude()) for one in known], axis=0)
        assert apart.max() < within


def test_cubic_voxels_fill_the_same_block() -> None:
    level = oblique(BODY, (6, 2, 3))
    same = cubic(to_image_of(BODY, level.grid), 6)
    assert same.grid.spacing_mm == pytest.approx((6, 6, 6))
    np.testing.assert_allclose(same.grid.center_mm, level.grid.center_mm, atol=3)
    np.testing.assert_allclose(same.grid.extent_mm, level.grid.extent_mm, atol=6)
    assert same.array.mean() == pytest.approx(BODY.mean(), rel=0.08)


def test_levels_keep_the_place() -> None:
    image = to_image_of(BODY, oblique(BODY, (1, 1, 1)).grid)
    for level, size in zip(levels(image, (1, 2, 4)), (1, 2, 4), strict=True):
        assert level.grid.spacing_mm == pytest.approx((size,) * 3)
        where = level.grid.points_mm([np.average(np.argwhere(level.array > -1), axis=0, weights=level.array.ravel())])
        expected = oblique(BODY, (1, 1, 1)).grid.points_mm(
            [np.average(np.argwhere(BODY > -1), axis=0, weights=BODY.ravel())]
        )
        np.testing.assert_allclose(where, expected, atol=0.4)


def test_the_dark_is_trimmed_but_for_a_margin() -> None:
    level = oblique(np.pad(BODY, 20))
    small = trimmed(level, 12)
    assert np.prod(small.array.shape) < 0.4 * level.array.size
    assert small.array.sum() == pytest.approx(level.array.sum())
    values = np.argwhere(small.array == small.array.max())[:1]
    there = np.argwhere(level.array == level.array.max())[:1]
    np.testing.assert_allclose(small.grid.points_mm(values), level.grid.points_mm(there), atol=1e-9)
    nothing = oblique(np.zeros((5, 6, 7), np.float32))
    assert trimmed(nothing, 4).array.shape == (5, 6, 7)


def volume(array: np.ndarray, modality: Modality, unit: Unit = Unit.ARBITRARY) -> Volume:
    return Volume(array, oblique(array).grid, modality, unit)


def test_soft_tissue_gets_most_of_the_scale_of_a_ct() -> None:
    hu = np.tile(np.float32([-1000, -100, 50, 1500]), 30).reshape(2, 6, 10)
    air, fat, muscle, bone = np.unique(sitk.GetArrayFromImage(comparable(volume(hu, Modality.CT, Unit.HU))))
    assert (air, bone) == (0, 1)
    assert muscle - fat > 0.2  # linearly it would be 0.06


def test_the_root_of_uptake_shows_the_body() -> None:
    uptake = np.tile(np.float32([0, 0.5, 20, 0.5]), 30).reshape(2, 6, 10)
    plain, root = (
        np.unique(sitk.GetArrayFromImage(comparable(volume(uptake, Modality.PT, Unit.SUV), root=root)))[1]
        for root in (False, True)
    )
    assert plain == pytest.approx(0.025)
    assert root == pytest.approx(0.025**0.5)
    mr = volume(uptake, Modality.MR)
    np.testing.assert_array_equal(*(sitk.GetArrayFromImage(comparable(mr, root=root)) for root in (False, True)))


def test_colour_is_compared_by_its_luminance() -> None:
    grey = np.random.default_rng(0).random((3, 5, 7)).astype(np.float32)
    colors = Volume(apply_palette(grey, "GREY"), oblique(grey).grid, Modality.PT, Unit.RGB)
    found = sitk.GetArrayFromImage(comparable(colors))
    assert np.corrcoef(found.ravel(), grey.ravel())[0, 1] > 0.999


def test_a_volume_of_one_value_is_refused() -> None:
    with pytest.raises(RegistrationError, match="every voxel has the same value"):
        comparable(volume(np.full((4, 5, 6), 7, np.int16), Modality.MR))
    lonely = np.zeros((20, 20, 20), np.float32)
    lonely[3, 4, 5] = 1
    assert sitk.GetArrayFromImage(comparable(volume(lonely, Modality.MR))).max() == 1
