"""Deformable transforms: what they do to points, how much they fold, and back; SimpleITK maps the points to compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import files_of_at_most, oblique_direction

from medfuse.align.transform import Transform, Warp, read_transform, write_transform
from medfuse.align.warp import folding
from medfuse.errors import OutputError, RegistrationError, UnsupportedImage
from medfuse.grid import Grid
from medfuse.itk import to_image, to_image_of
from medfuse.volume import Modality, Volume

GRID = Grid.from_axes((20, 32, 40), (-31.5, 44.25, 117.0), (6.0, 4.0, 3.0), oblique_direction())
RIGID = sitk.Euler3DTransform(GRID.center_mm.tolist(), 0.2, -0.3, 0.4, (12, -7, 20))


def spline(size_mm: float, grid: Grid = GRID) -> sitk.BSplineTransform:
    """A B-spline over a grid whose control points, about 40 mm apart, move at random."""
    image = to_image(Volume(np.zeros(grid.shape, np.float32), grid, Modality.CT))
    bent = sitk.BSplineTransformInitializer(image, [3, 3, 3], 3)
    bent.SetParameters((np.random.default_rng(5).normal(size=len(bent.GetParameters())) * size_mm).tolist())
    return bent


def field(size_mm: float) -> sitk.DisplacementFieldTransform:
    bent = spline(size_mm)
    image = to_image(Volume(np.zeros(GRID.shape, np.float32), GRID, Modality.CT))
    values = sitk.TransformToDisplacementField(
        bent, sitk.sitkVectorFloat64, image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()
    )
    return sitk.DisplacementFieldTransform(values)


def warp(size_mm: float = 6) -> Warp:
    return Warp(Transform.from_itk(RIGID), sitk.CompositeTransform([RIGID, spline(size_mm)]))


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    index = np.random.default_rng(3).uniform(0, 1, (300, 3)) * (np.array(GRID.shape) - 1)
    return GRID.points_mm(index)


def itk_maps(itk: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([itk.TransformPoint(point) for point in points.tolist()])


def test_maps_every_point_as_itk_does(points: np.ndarray) -> None:
    bent, turned = spline(6), Transform.from_itk(RIGID)
    np.testing.assert_allclose(warp().apply(points), turned.apply(itk_maps(bent, points)), atol=1e-9)
    np.testing.assert_allclose(itk_maps(warp().to_itk(), points), warp().apply(points), atol=1e-12)
    assert warp().apply(np.empty((0, 3))).shape == (0, 3)


def test_its_linear_part_is_what_it_is_given(points: np.ndarray) -> None:
    turned = Transform.from_itk(RIGID)
    assert warp().rotation_degrees == turned.rotation_degrees
    np.testing.assert_array_equal(warp().moving_from_fixed, turned.moving_from_fixed)
    bending = np.linalg.norm(itk_maps(spline(6), points) - points, axis=1)  # a rotation keeps lengths
    np.testing.assert_allclose(warp().distance_mm(turned, points), bending, atol=1e-9)
    np.testing.assert_allclose(turned.distance_mm(warp(), points), bending, atol=1e-9)


def test_later_changes_do_not_reach_it(points: np.ndarray) -> None:
    itk = spline(6)
    kept = Warp(Transform.identity(), itk)
    before = kept.apply(points)
    itk.SetParameters([0.0] * len(itk.GetParameters()))
    np.testing.assert_array_equal(kept.apply(points), before)


@pytest.mark.parametrize("bent", [spline(6), field(6)], ids=["b-spline", "displacement"])
def test_there_and_back_is_where_it_began(bent: sitk.Transform, points: np.ndarray) -> None:
    there = Warp(Transform.from_itk(RIGID), sitk.CompositeTransform([RIGID, bent]))
    back = there.inverse()
    assert there.distance_mm(there.linear, points).max() > 5
    assert np.linalg.norm(back.apply(there.apply(points)) - points, axis=1).max() < 0.3
    np.testing.assert_allclose(back.moving_from_fixed @ there.moving_from_fixed, np.eye(4), atol=1e-9)


def test_bending_after_a_turn_can_be_undone_too() -> None:
    """ITK allows any order; here the linear part comes first, and turns the space that is bent."""
    there = Warp.from_itk(sitk.CompositeTransform([spline(6), RIGID]))
    points = Transform.from_itk(RIGID).inverse().apply(GRID.points_mm([(5, 9, 12), (10, 20, 30), (14, 8, 25)]))
    assert np.linalg.norm(there.inverse().apply(there.apply(points)) - points, axis=1).max() < 0.3


@pytest.mark.parametrize("turn", [None, RIGID])
def test_a_field_of_a_part_of_the_scan_is_undone_beyond_it_too(turn: sitk.Transform | None) -> None:
    """Another program's field that ends at 0, alone or after a linear part; outside there is the linear part alone."""
    pushed = np.zeros((*GRID.shape, 3))
    pushed[..., 0] = 8 * np.prod(np.meshgrid(*map(np.hanning, GRID.shape), indexing="ij"), axis=0)
    bent = sitk.DisplacementFieldTransform(to_image_of(pushed, GRID))
    there = Warp.from_itk(bent if turn is None else sitk.CompositeTransform([turn, bent]))
    lattice = np.array([GRID.shape])
    inside, outside = GRID.points_mm(lattice * 0.5), GRID.points_mm(lattice * np.array([[-1], [-0.2], [1.3], [3]]))
    outer = Transform.identity() if turn is None else Transform.from_itk(turn)
    assert there.distance_mm(outer, inside).max() > 7
    assert there.distance_mm(outer, outside).max() < 1e-9
    assert there.distance_mm(there.linear, outside).max() > 0.2  # which is the best fit where it bends
    back = there.inverse()
    for points, tolerance in ((inside, 0.3), (outside, 1e-6)):
        assert np.linalg.norm(back.apply(there.apply(points)) - points, axis=1).max() < tolerance


def test_refuses_to_invert_what_folds() -> None:
    with pytest.raises(RegistrationError, match=r"can be undone to 1 mm, found one that misses by \d+\.\d mm"):
        warp(40).inverse()


def test_its_hash_tells_it_from_another() -> None:
    turned = sitk.Euler3DTransform(RIGID)
    turned.SetTranslation((12, -7, 20.5))
    bends = (spline(6), spline(6.1), field(6), field(6.1))
    all_of = [Warp.from_itk(sitk.CompositeTransform([turn, bent])) for turn in (RIGID, turned) for bent in bends]
    assert len({one.sha256 for one in all_of}) == len(all_of)
    assert Warp.from_itk(sitk.CompositeTransform([RIGID, field(6)])).sha256 == all_of[2].sha256


def numeric_jacobian(of: Warp, point: np.ndarray, step: float = 1e-3) -> float:
    ahead, behind = of.apply(point + step * np.eye(3)), of.apply(point - step * np.eye(3))
    return float(np.linalg.det((ahead - behind) / (2 * step)))


def test_folding_counts_the_points_where_space_turns_inside_out(points: np.ndarray) -> None:
    """Against derivatives taken point by point, on an oblique grid: ITK's own filter forgets the direction."""
    assert folding(warp(), GRID) == 0
    folded = np.array([numeric_jacobian(warp(60), point) <= 0 for point in points])
    assert 0.02 < folded.mean() < 0.5
    assert folding(warp(60), GRID) == pytest.approx(folded.mean(), abs=0.03)
    assert folding(warp(60), GRID, points) == pytest.approx(folded.mean(), abs=0.03)
    assert folding(warp(60), GRID, points[folded]) > 0.7
    assert folding(warp(60), GRID, points[~folded]) < 0.03


def test_a_mirror_in_the_linear_part_folds_everything() -> None:
    mirror = sitk.ScaleTransform(3, (1.0, -1.0, 1.0))
    assert folding(Warp.from_itk(sitk.CompositeTransform([mirror, spline(1)])), GRID) == 1


def test_a_half_turn_folds_nothing() -> None:
    turned = sitk.Euler3DTransform(GRID.center_mm.tolist(), 0, 0, np.pi)
    assert folding(Warp(Transform.from_itk(turned), sitk.CompositeTransform([turned, spline(6)])), GRID) == 0


def test_folding_of_a_single_slice() -> None:
    one = Grid.from_axes((1, 32, 40), GRID.points_mm([(10, 0, 0)])[0], GRID.spacing_mm, GRID.direction)
    assert folding(warp(), one) == 0


def test_folding_of_a_large_grid_takes_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Grid.from_axes((2000, 600, 600), (0, 0, 0), (1, 1, 1), np.eye(3)[:, ::-1])
    sizes = []
    original = sitk.TransformToDisplacementField
    monkeypatch.setattr(sitk, "TransformToDisplacementField", lambda *a: sizes.append(np.prod(a[2])) or original(*a))
    assert folding(Warp(Transform.identity(), spline(1)), large) == 0
    assert 500_000 < sizes[0] < 1_100_000


def test_from_itk_finds_the_linear_part(points: np.ndarray) -> None:
    found = Warp.from_itk(sitk.CompositeTransform([RIGID, spline(0)]))
    np.testing.assert_allclose(found.moving_from_fixed, Transform.from_itk(RIGID).moving_from_fixed, atol=1e-8)
    assert found.distance_mm(found.linear, points).max() < 1e-6


@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
@pytest.mark.parametrize("bent", [spline(6), field(6)], ids=["b-spline", "displacement"])
def test_files_keep_it(bent: sitk.Transform, suffix: str, tmp_path: Path, points: np.ndarray) -> None:
    written = Warp(Transform.from_itk(RIGID), sitk.CompositeTransform([RIGID, bent]))
    path = tmp_path / f"bent{suffix}"
    write_transform(written, path)
    found = read_transform(path)
    assert isinstance(found, Warp)
    np.testing.assert_allclose(found.apply(points), written.apply(points), atol=1e-9)
    np.testing.assert_allclose(itk_maps(sitk.ReadTransform(str(path)), points), written.apply(points), atol=1e-9)


@pytest.mark.parametrize("suffix", [".tfm", ".h5", ".txt"])
@pytest.mark.parametrize("missing", [1, 100])
def test_a_full_disk_is_told_and_leaves_nothing(suffix: str, missing: int, tmp_path: Path) -> None:
    transform = Transform.from_itk(RIGID) if suffix == ".txt" else warp()
    write_transform(transform, tmp_path / f"whole{suffix}")
    size = (tmp_path / f"whole{suffix}").stat().st_size
    with files_of_at_most(size - missing), pytest.raises(OutputError, match=r"File too large|space|ITK"):
        write_transform(transform, tmp_path / f"x{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"whole{suffix}"]


def test_a_matrix_cannot_hold_it(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"deformable transform ending in \.tfm or \.h5, got bent\.txt"):
        write_transform(warp(), tmp_path / "bent.txt")
    assert not list(tmp_path.iterdir())


def test_refuses_what_is_no_3d_deformation() -> None:
    with pytest.raises(ValueError, match="3-D transform, got one in 2"):
        Warp(Transform.identity(), sitk.BSplineTransform(2))
    with pytest.raises(UnsupportedImage, match="3-D transform, found one in 2"):
        Warp.from_itk(sitk.BSplineTransform(2))
    with pytest.raises(UnsupportedImage, match="B-spline or a displacement field, found a transform without"):
        Warp.from_itk(RIGID)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_refuses_one_vector_that_is_no_number(number: float) -> None:
    vectors = np.zeros((101, 101, 101, 3))
    vectors[3, 3, 3, 0] = number  # between the points at which the linear part is fitted
    field = sitk.DisplacementFieldTransform(sitk.GetImageFromArray(vectors, isVector=True))
    with pytest.raises(UnsupportedImage, match="finite numbers"):
        Warp.from_itk(field)


@pytest.mark.parametrize("place", ["spacing", "origin"])
@pytest.mark.parametrize("length_mm", [1e6, 1e20, 1e300])
def test_refuses_a_deformation_wider_than_any_room(place: str, length_mm: float) -> None:
    image = sitk.Image((2, 2, 2), sitk.sitkVectorFloat64)
    getattr(image, f"Set{place.title()}")((1, 1, length_mm))
    with pytest.raises(UnsupportedImage, match="a deformation within 100 m"):
        Warp.from_itk(sitk.DisplacementFieldTransform(image))


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
def test_refuses_numbers_that_make_no_sense(number: float, tmp_path: Path) -> None:
    bent = spline(1)
    bent.SetParameters([number] * len(bent.GetParameters()))
    sitk.WriteTransform(bent, str(tmp_path / "bent.h5"))
    with pytest.raises(UnsupportedImage, match="finite numbers"):
        read_transform(tmp_path / "bent.h5")


def test_one_wrong_vector_does_not_take_all_memory() -> None:
    vectors = np.zeros((40, 40, 40, 3))
    vectors[20, 20, 20] = (500, 0, 0)
    image = sitk.GetImageFromArray(vectors, isVector=True)
    image.SetSpacing((4, 4, 4))
    bent = sitk.DisplacementFieldTransform(image)
    wrong = Warp(Transform(np.eye(4)), sitk.CompositeTransform([bent]))
    with pytest.raises(RegistrationError, match="can be inverted, found one that moves points by 500 mm"):
        wrong.inverse()
