"""Registration: what it recovers on phantoms whose displacement is known, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from medfuse.align import Transform, Trust, Warp, register
from medfuse.color import apply_palette
from medfuse.errors import RegistrationError
from medfuse.grid import Grid
from medfuse.sample import HeadScans, head_scans
from medfuse.volume import Modality, Unit, Volume

TISSUE = gaussian_filter(np.random.default_rng(11).normal(size=(56, 56, 56)), 5)
TISSUE = (TISSUE - TISSUE.min()) / np.ptp(TISSUE)


def tissue(points_mm: np.ndarray) -> np.ndarray:
    """A smooth body of 140 mm, 0 to 1, read at points; 0 outside its skin."""
    inside = 1 / (1 + np.exp((np.linalg.norm(points_mm / (55, 65, 45), axis=1) - 1) * 20))
    return inside * (0.3 + 0.7 * map_coordinates(TISSUE, points_mm.T / 3 + 27.5, order=1, mode="nearest"))


def scan(grid: Grid, body_from_lps: np.ndarray, contrast: str) -> Volume:
    points = Transform(body_from_lps).apply(grid.points_mm(np.indices(grid.shape).reshape(3, -1).T))
    values = tissue(points).reshape(grid.shape).astype(np.float32)
    if contrast == "bright":
        return Volume(values * 900, grid, Modality.MR)
    # Another modality: the tissues in another order of brightness, and blurred.
    return Volume(gaussian_filter(4 * np.sin(3.5 * values) ** 2, 0.7), grid, Modality.PT, Unit.SUV)


def rigid(rng: np.random.Generator, degrees: float, mm: float) -> np.ndarray:
    axis, direction = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * axis).as_matrix()
    matrix[:3, 3] = mm * direction
    return matrix


def grid(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], turn: tuple[float, float, float]) -> Grid:
    """Oblique, about the origin."""
    direction = Rotation.from_euler("zyx", turn, degrees=True).as_matrix()[:, ::-1]
    return Grid.from_axes(shape, -direction @ ((np.array(shape) - 1) / 2 * spacing_mm), spacing_mm, direction)


FIXED = grid((20, 26, 24), (7, 6, 6.4), (8, -5, 12))
MOVING = grid((24, 22, 26), (6.5, 7, 6.2), (-20, 6, 3))


def skin() -> np.ndarray:
    """Points of the body, where an error counts."""
    points = np.random.default_rng(0).normal(size=(200, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True) * (50, 60, 40)


def error_mm(found: Transform, truth: np.ndarray, points_mm: np.ndarray) -> float:
    return float(found.distance_mm(Transform(truth), points_mm).mean())


@pytest.fixture(scope="module")
def bright() -> Volume:
    return scan(FIXED, np.eye(4), "bright")


@pytest.mark.parametrize(("seed", "degrees", "mm"), [(0, 6, 10), (1, 12, 5), (2, 3, 25)])
def test_recovers_a_known_displacement_across_modalities(bright: Volume, seed: int, degrees: float, mm: float) -> None:
    truth = rigid(np.random.default_rng(seed), degrees, mm)
    moving = scan(MOVING, np.linalg.inv(truth), "other")  # moving_from_fixed = truth: the body is the fixed world
    found = register(bright, moving)
    assert error_mm(found.transform, truth, skin()) < 0.8
    assert found.verdict.evidence.rotated_degrees == pytest.approx(degrees, abs=0.8)
    assert found.kind == "rigid"
    np.testing.assert_allclose(np.linalg.det(found.transform.moving_from_fixed[:3, :3]), 1, atol=1e-9)


def test_numbers_say_what_was_done(bright: Volume) -> None:
    truth = rigid(np.random.default_rng(4), 5, 12)
    steps = []
    found = register(bright, scan(MOVING, np.linalg.inv(truth), "other"), progress=lambda *step: steps.append(step))
    evidence = found.verdict.evidence
    assert evidence.nmi_after > 1.2 * evidence.nmi_before - 0.2 > 0.8
    corners = FIXED.corners_mm
    moved = np.linalg.norm(found.transform.apply(corners) - corners, axis=1).max()
    assert evidence.moved_mm == pytest.approx(moved)
    assert 0.9 < evidence.overlap_after <= 1
    assert evidence.shift_mm == pytest.approx(
        Transform(truth).distance_mm(Transform.identity(), skin()).mean(), rel=0.3
    )
    assert set(evidence.agreement_mm) == {"start", "inverse", "engine", "halves"}
    assert evidence.agreement_mm["start"] < 1
    assert evidence.agreement_mm["inverse"] < 1
    assert evidence.uncertainty_mm == max(evidence.agreement_mm.values())
    assert evidence.folded is evidence.stretched is None
    done = [step for step, _ in steps]
    assert done == sorted(done)
    assert {total for _, total in steps} == {done[-1]}
    assert done[-2] > 0.9 * done[-1]  # nothing to speak of is jumped over at the end
    values = found.to_json()
    np.testing.assert_allclose(values["transform"], found.transform.moving_from_fixed)
    assert values["nmi_after"] == round(evidence.nmi_after, 4)
    assert values["trust"] == found.verdict.trust.value


def test_headers_that_put_the_scans_apart(bright: Volume) -> None:
    truth = np.eye(4)
    truth[:3, 3] = (400, -300, 1000)
    found = register(bright, scan_far(truth))
    assert found.verdict.evidence.nmi_before == 1
    assert found.verdict.evidence.overlap_before == 0
    assert error_mm(found.transform, truth, skin()) < 0.8


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_patient_who_lay_the_other_way_round(bright: Volume, axis: int) -> None:
    truth = rigid(np.random.default_rng(axis), 25, 40)
    truth[:3, :3] @= Rotation.from_rotvec(180 * np.eye(3)[axis], degrees=True).as_matrix()
    found = register(bright, scan_far(truth))
    assert error_mm(found.transform, truth, skin()) < 0.8
    assert found.verdict.trust is not Trust.FAILED  # the body is nearly symmetric: turned, it fits almost as well


def scan_far(truth: np.ndarray) -> Volume:
    there = Grid(MOVING.shape, truth @ MOVING.lps_from_index)
    return scan(there, np.linalg.inv(truth), "other")


def test_equal_input_gives_an_equal_result(bright: Volume) -> None:
    moving = scan(MOVING, np.linalg.inv(rigid(np.random.default_rng(0), 4, 6)), "other")
    first, second = register(bright, moving), register(bright, moving)
    np.testing.assert_array_equal(first.transform.moving_from_fixed, second.transform.moving_from_fixed)
    assert first.verdict == second.verdict
    one = register(bright, moving, threads=1)
    np.testing.assert_array_equal(one.transform.moving_from_fixed, first.transform.moving_from_fixed)
    assert one.verdict == first.verdict


def test_affine_recovers_scale_and_shear(bright: Volume) -> None:
    truth = rigid(np.random.default_rng(5), 4, 6) @ np.diag([1.06, 0.95, 1.03, 1])
    truth[0, 1] += 0.04
    moving = scan(MOVING, np.linalg.inv(truth), "bright")
    found = register(bright, moving, "affine")
    assert found.kind == "affine"
    assert error_mm(register(bright, moving).transform, truth, skin()) > 3.5  # what a rigid transform leaves
    assert error_mm(found.transform, truth, skin()) < 2
    assert found.verdict.evidence.stretched == pytest.approx(0.07, abs=0.03)


def test_deformable_bends_what_rigid_leaves(bright: Volume) -> None:
    def bend(points_mm: np.ndarray) -> np.ndarray:
        return points_mm + np.stack([5 * np.cos(points_mm[:, 1] / 18), *np.zeros((2, len(points_mm)))], axis=1)

    points = bend(MOVING.points_mm(np.indices(MOVING.shape).reshape(3, -1).T))
    moving = Volume(tissue(points).reshape(MOVING.shape).astype(np.float32), MOVING, Modality.MR)
    found = register(bright, moving, "deformable")
    assert isinstance(found.transform, Warp)
    assert found.verdict.evidence.folded == 0

    def left(transform: Transform | Warp) -> float:
        return float(np.linalg.norm(bend(transform.apply(skin())) - skin(), axis=1).mean())

    assert left(found.transform) < 0.8 * left(found.transform.linear)


def test_colour_is_registered_by_its_luminance(bright: Volume) -> None:
    truth = rigid(np.random.default_rng(6), 5, 8)
    other = scan(MOVING, np.linalg.inv(truth), "other")
    colors = Volume(apply_palette(other.array / 4, "HOT_IRON"), MOVING, Modality.PT, Unit.RGB)
    assert error_mm(register(bright, colors).transform, truth, skin()) < 1


@pytest.mark.parametrize("thin", ["fixed", "moving"])
def test_a_slab_of_three_slices(thin: str, bright: Volume) -> None:
    truth = rigid(np.random.default_rng(7), 2, 4)
    slab = grid((3, 44, 44), (5, 3, 3), (3, 2, -4))
    if thin == "fixed":
        found = register(scan(slab, np.eye(4), "bright"), scan(MOVING, np.linalg.inv(truth), "other"))
        points = slab.corners_mm * 0.5
    else:
        found = register(bright, scan(Grid(slab.shape, truth @ slab.lps_from_index), np.linalg.inv(truth), "other"))
        points = slab.corners_mm * 0.5
    assert error_mm(found.transform, truth, points) < 2


def test_any_dtype(bright: Volume) -> None:
    truth = rigid(np.random.default_rng(8), 3, 5)
    moving = scan(MOVING, np.linalg.inv(truth), "other")
    whole = replace(bright, array=np.rint(bright.array).astype(np.int16))
    double = replace(moving, array=moving.array.astype(np.float64))
    assert error_mm(register(whole, double).transform, truth, skin()) < 1


def test_refuses_a_kind(bright: Volume) -> None:
    with pytest.raises(ValueError, match="expected a kind of rigid, affine, deformable, got 'elastic'"):
        register(bright, bright, "elastic")


@pytest.mark.parametrize("which", ["fixed", "moving", "both"])
def test_refuses_a_volume_of_one_value(bright: Volume, which: str) -> None:
    empty = replace(bright, array=np.full(bright.grid.shape, 7, np.int16))
    pair = {"fixed": (empty, bright), "moving": (bright, empty), "both": (empty, empty)}[which]
    with pytest.raises(RegistrationError, match="every voxel has the same value"):
        register(*pair)


def test_volumes_with_nothing_in_common_are_not_trusted(bright: Volume) -> None:
    noise = np.random.default_rng(0).normal(size=(2, *FIXED.shape)).astype(np.float32)
    for pair in (
        (replace(bright, array=noise[0]), replace(bright, array=noise[1])),
        (bright, replace(bright, array=noise[0])),
        (bright, replace(bright, array=np.random.default_rng(1).permutation(bright.array))),  # slices in disorder
    ):
        verdict = register(*pair).verdict
        assert verdict.trust is not Trust.TRUSTED
        assert verdict.reasons
    lonely = np.zeros(FIXED.shape, np.float32)
    lonely[3, 4, 5] = 1
    assert register(bright, replace(bright, array=lonely)).verdict.trust is Trust.FAILED


def test_refuses_no_thread(bright: Volume) -> None:
    with pytest.raises(ValueError, match="expected at least 1 thread, got 0"):
        register(bright, bright, threads=0)


@pytest.mark.parametrize("shape", [(1, 40, 40), (40, 1, 40), (5, 7, 9), (1, 1, 1)])
def test_refuses_a_volume_too_small_to_compare(bright: Volume, shape: tuple[int, int, int]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    array.flat[0] = 5
    small = Volume(np.append(array.ravel()[:-1], -5).reshape(shape), grid(shape, (2, 2, 2), (0, 0, 0)), Modality.MR)
    for pair in ((bright, small), (small, bright)):
        with pytest.raises(
            RegistrationError, match=r"at least 2 slices and 1000 voxels|every voxel has the same value"
        ):
            register(*pair)


@pytest.fixture(scope="module")
def scans() -> HeadScans:
    return head_scans(1)


def coarsened(volume: Volume, factors: tuple[int, int, int]) -> Volume:
    """Every few voxels joined into one, so that the test is quick; SimpleITK keeps the place."""
    image = sitk.GetImageFromArray(volume.array.astype(np.float32))
    image.SetSpacing(volume.grid.spacing_mm[::-1])
    image.SetOrigin(volume.grid.origin_mm.tolist())
    image.SetDirection(volume.grid.direction[:, ::-1].ravel().tolist())
    image = sitk.BinShrink(image, factors[::-1])
    k, j, i = image.GetSize()[::-1]
    direction = np.array(image.GetDirection()).reshape(3, 3)[:, ::-1]
    there = Grid.from_axes((k, j, i), image.GetOrigin(), image.GetSpacing()[::-1], direction)
    return replace(volume, array=sitk.GetArrayFromImage(image), grid=there)


@pytest.mark.parametrize("name", ["ct", "pet"])
def test_registers_the_sample_head(scans: HeadScans, name: str) -> None:
    moving = coarsened(scans.ct, (2, 4, 4)) if name == "ct" else scans.pet
    fixed = coarsened(scans.mr, (2, 5, 5))
    truth = np.linalg.inv(scans.mr_from_pet)  # from the MR's world to that of CT and PET
    points = fixed.grid.points_mm(np.argwhere(fixed.array > np.median(fixed.array))[::50])
    assert error_mm(Transform.identity(), truth, points) > 5
    found = register(fixed, moving)
    assert error_mm(found.transform, truth, points) < 1
    assert found.verdict.trust is Trust.TRUSTED
