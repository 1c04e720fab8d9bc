"""A deformable transform between two patient coordinate systems: a linear one, and what bends beyond it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from medfuse.align.linear import Transform
from medfuse.errors import RegistrationError, UnsupportedImage
from medfuse.grid import Grid

#: A warp is sampled no finer than this, and at no more points: it bends over centimetres.
FINEST_MM = 2.0
MOST_POINTS = 1_000_000
#: No patient is farther from anything: the extent of a deformation, and its origin.
WIDEST_MM = 100_000.0
#: Points of a field with the margin into which it moves any; to be inverted they take 100 bytes each.
MOST_PADDED = 16_000_000
#: Points along each axis, at most, at which a map is looked at.
ALONG = 20
#: How far there and back may miss a point for an inverse to be one.
INVERSE_TOLERANCE_MM = 1.0
#: How near two linear maps are one, and how far beyond the deformed space an inverse is looked at.
SAME_MM, BEYOND_MM = 1e-6, 50.0
#: Share of a B-spline's extent that is left out at each face, for ITK does not bend the faces themselves.
RIM = 1e-4


@dataclass(frozen=True, eq=False)
class Warp:
    """From the fixed volume's world to the moving volume's, bending on the way; the sibling of `Transform`.

    Args:
        linear: What it would be without the bending: from the fixed world to the moving one.
        itk: The whole map, the linear part included: a SimpleITK transform of LPS mm, of which some part is a B-spline
            or a displacement field. Outside the block of space that these cover it is linear.

    Raises:
        ValueError: `itk` is not three-dimensional.
    """

    linear: Transform
    itk: sitk.Transform

    def __post_init__(self) -> None:
        if self.itk.GetDimension() != 3:
            raise ValueError(f"expected a 3-D transform, got one in {self.itk.GetDimension()} dimensions")
        object.__setattr__(self, "itk", sitk.Transform(self.itk))

    @classmethod
    def from_itk(cls, itk: sitk.Transform) -> Warp:
        """A warp from any SimpleITK transform; its linear part is the best fit over the space that it deforms.

        Raises:
            UnsupportedImage: It is not 3-D, holds no B-spline and no displacement field, or numbers that make no sense.
        """
        if itk.GetDimension() != 3:
            raise UnsupportedImage(f"expected a 3-D transform, found one in {itk.GetDimension()} dimensions")
        nonsense = UnsupportedImage(
            "expected a deformation of finite numbers that does not flatten space, found another",
            "Check the numbers in its file",
        )
        if not all(np.isfinite(_numbers(part)).all() for part in parts_of(itk)):
            raise nonsense
        points = _deformed(itk).spread_mm(ALONG)
        mapped = _mapped(itk, points)
        try:
            from_points = np.linalg.lstsq(np.column_stack([points, np.ones(len(points))]), mapped, rcond=None)[0].T
            return cls(Transform(np.vstack([from_points, (0, 0, 0, 1)])), itk)
        except (ValueError, np.linalg.LinAlgError) as error:
            raise nonsense from error

    @property
    def moving_from_fixed(self) -> NDArray[np.float64]:
        """(4, 4) matrix of the linear part, in LPS mm."""
        return self.linear.moving_from_fixed

    @cached_property
    def sha256(self) -> str:
        """A hash of all its numbers, which tells it from a warp of the same linear part."""
        found = sha256()
        for part in parts_of(self.itk):
            found.update(part.GetName().encode())
            found.update(np.array(part.GetFixedParameters(), np.float64).data)
            found.update(np.ascontiguousarray(_numbers(part), np.float64).data)
        return found.hexdigest()

    @property
    def rotation_degrees(self) -> float:
        """Angle of the rotation in the linear part, 0 to 180."""
        return self.linear.rotation_degrees

    def apply(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Points (N, 3) of the fixed world, in LPS mm, in the moving world."""
        return _mapped(self.itk, np.asarray(points_mm, dtype=np.float64))

    def distance_mm(self, other: Transform | Warp, points_mm: ArrayLike) -> NDArray[np.float64]:
        """How far apart two transforms put the same points (N, 3); N distances in mm."""
        distance: NDArray[np.float64] = np.linalg.norm(self.apply(points_mm) - other.apply(points_mm), axis=1)
        return distance

    def to_itk(self) -> sitk.Transform:
        """The whole map as a SimpleITK transform."""
        return sitk.Transform(self.itk)

    def inverse(self) -> Warp:
        """From the moving volume's world to the fixed one's: the bending inverted as a displacement field.

        The field is inverted by fixed-point iteration (ITK's `InvertDisplacementFieldImageFilter`; Chen et al., Med.
        Phys. 35(1), 2008), and the result is checked at points all over the deformed space. Outside that space, where a
        transform of another program need not go on as it does inside, what is linear there is undone.

        Raises:
            RegistrationError: It cannot be inverted: there and back misses a point by more than
                `INVERSE_TOLERANCE_MM`, because space is folded or torn.
        """
        whole, back = _deformed(self.itk), self.linear.inverse()
        inverted = sitk.InvertDisplacementField(
            _padded(_bending(self, _sampled(whole))),
            maximumNumberOfIterations=20,
            maxErrorToleranceThreshold=0.02,
            meanErrorToleranceThreshold=0.001,
            enforceBoundaryCondition=False,
        )
        bent = sitk.DisplacementFieldTransform(sitk.Image(inverted))
        inverse = Warp(back, sitk.CompositeTransform([bent, back.to_itk()]))
        points = whole.spread_mm(ALONG)
        _, outer = _lattices(self.itk)
        if outer.distance_mm(self.linear, whole.corners_mm).max() > SAME_MM:
            reach_mm = outer.distance_mm(self, _faces(whole)).max()
            moved = sitk.CompositeTransform([inverse.itk, outer.to_itk()])
            near = sitk.DisplacementFieldTransform(_displacements(moved, _sampled(_grown(whole, reach_mm))))
            inverse = Warp(back, sitk.CompositeTransform([near, outer.inverse().to_itk()]))
            if reach_mm < INVERSE_TOLERANCE_MM:
                points = np.concatenate([points, _grown(whole, BEYOND_MM).spread_mm(ALONG)])
        missed = float(np.linalg.norm(inverse.apply(self.apply(points)) - points, axis=1).max())
        if not missed <= INVERSE_TOLERANCE_MM:
            raise RegistrationError(
                f"expected a deformation that can be undone to {INVERSE_TOLERANCE_MM:g} mm, found one that misses by "
                f"{missed:.1f} mm",
                "Fuse on the structural scan's grid, or register with --register rigid or affine",
            )
        return inverse


def folding(warp: Warp, grid: Grid, points_mm: ArrayLike | None = None) -> float:
    """Share, 0 to 1, of a grid's space that a warp turns inside out or flattens: Jacobian determinant at most 0.

    Args:
        warp: From the grid's world; its whole map counts, the linear part included.
        grid: In the fixed world; sampled at 2 mm or coarser.
        points_mm: (N, 3) points of the grid to look at instead of all, such as those of the body, in LPS mm.
    """
    sampled = _sampled(grid)
    folded = _jacobian(warp, sampled) <= 0
    if points_mm is None:
        return float(folded.mean())
    nearest = np.rint(sampled.index_of(points_mm)).astype(int)
    k, j, i = np.clip(nearest, 0, np.array(sampled.shape) - 1).T
    return float(folded[k, j, i].mean())


def _jacobian(warp: Warp, grid: Grid) -> NDArray[np.float64]:
    """Determinant of the map's derivative at each voxel: that of the bending times that of the linear part.

    ITK's filter halves derivatives at the faces, which what is left without the linear part bears; and it takes the
    components of the field for ones along the image's axes, whatever its direction. They are therefore turned into that
    frame first, where the determinant is the same.
    """
    vectors = sitk.GetArrayFromImage(_bending(warp, grid)) @ grid.direction[:, ::-1]
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.SetSpacing(grid.spacing_mm[::-1])
    bending: NDArray[np.float64] = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    return bending * float(np.linalg.det(warp.moving_from_fixed[:3, :3]))


def _mapped(itk: sitk.Transform, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([itk.TransformPoint(point) for point in points_mm.tolist()], dtype=np.float64).reshape(-1, 3)


def _bending(warp: Warp, grid: Grid) -> sitk.Image:
    """What a warp does before its linear part: an image of displacements in LPS mm, at the voxels of a grid."""
    return _displacements(sitk.CompositeTransform([warp.linear.inverse().to_itk(), warp.itk]), grid)


def _displacements(itk: sitk.Transform, grid: Grid) -> sitk.Image:
    return sitk.TransformToDisplacementField(
        itk,
        sitk.sitkVectorFloat64,
        grid.shape[::-1],
        grid.origin_mm.tolist(),
        grid.spacing_mm[::-1],
        grid.direction[:, ::-1].ravel().tolist(),
    )


def _padded(field: sitk.Image) -> sitk.Image:
    """The field continued at its edges, so that what is moved across them can be brought back."""
    reach_mm = float(np.linalg.norm(sitk.GetArrayViewFromImage(field), axis=-1).max())
    margin = [int(np.ceil(reach_mm / spacing)) + 1 for spacing in field.GetSpacing()]
    if math.prod(size + 2 * more for size, more in zip(field.GetSize(), margin, strict=True)) > MOST_PADDED:
        raise RegistrationError(
            f"expected a deformation that can be inverted, found one that moves points by {reach_mm:.0f} mm, for which "
            "the memory does not do",
            "Look at the field: one wrong vector is enough; or leave the result on the structural grid",
        )
    return sitk.ZeroFluxNeumannPad(field, margin, margin)


def _sampled(grid: Grid) -> Grid:
    """A grid between the same outermost voxel centres with voxels of `FINEST_MM` or larger, `MOST_POINTS` at most."""
    length_mm = (np.array(grid.shape) - 1) * grid.spacing_mm
    step_mm = max(FINEST_MM, float(np.prod(length_mm + FINEST_MM) / MOST_POINTS) ** (1 / 3))
    k, j, i = np.minimum(np.ceil(length_mm / step_mm).astype(int) + 1, grid.shape).tolist()
    spacing = np.where(np.array((k, j, i)) > 1, length_mm / np.maximum(np.array((k, j, i)) - 1, 1), grid.spacing_mm)
    return Grid.from_axes((k, j, i), grid.origin_mm, spacing, grid.direction)


def _grown(grid: Grid, margin_mm: float) -> Grid:
    """A grid with voxels of the same size added on all sides."""
    margin = np.ceil(margin_mm / np.array(grid.spacing_mm)).astype(int)
    k, j, i = (np.array(grid.shape) + 2 * margin).tolist()
    return Grid.from_axes((k, j, i), grid.points_mm([-margin])[0], grid.spacing_mm, grid.direction)


def _faces(grid: Grid) -> NDArray[np.float64]:
    """Points all over the faces of a grid, (N, 3); a little inside, for ITK does not bend the faces themselves."""
    shares = np.stack(np.meshgrid(*[np.linspace(RIM, 1 - RIM, ALONG)] * 3, indexing="ij"), -1).reshape(-1, 3)
    on_face = ((shares == RIM) | (shares == 1 - RIM)).any(axis=1)
    return grid.points_mm(shares[on_face] * (np.array(grid.shape) - 1))


def _deformed(itk: sitk.Transform) -> Grid:
    """The block of the fixed world that the B-splines and displacement fields in a transform cover.

    Raises:
        UnsupportedImage: There are none.
    """
    lattices, _ = _lattices(itk)
    if not lattices:
        raise UnsupportedImage("expected a B-spline or a displacement field, found a transform without either")
    world_from_lattice, first = lattices[0]
    u, _, v = np.linalg.svd(world_from_lattice.moving_from_fixed[:3, :3] @ first.direction)
    corners = np.concatenate([world.apply(lattice.corners_mm) for world, lattice in lattices]) @ (u @ v)
    low, high = corners.min(axis=0), corners.max(axis=0)
    k, j, i = (np.ceil((high - low) / FINEST_MM).astype(int) + 1).tolist()
    spacing = (high - low) / np.maximum(np.array((k, j, i)) - 1, 1)
    return Grid.from_axes((k, j, i), (u @ v) @ low, np.where(spacing > 0, spacing, FINEST_MM), u @ v)


def _lattices(itk: sitk.Transform) -> tuple[list[tuple[Transform, Grid]], Transform]:
    """The blocks over which the parts of a transform bend, each with the map from its world to the fixed one.

    And what the transform is where none of them is: its linear parts alone.
    """
    before = Transform.identity()
    lattices: list[tuple[Transform, Grid]] = []
    for part in parts_of(itk):
        if part.IsLinear():
            before = Transform(Transform.from_itk(part).moving_from_fixed @ before.moving_from_fixed)
        else:
            lattices.append((before.inverse(), _lattice(part)))
    return lattices, before


def parts_of(itk: sitk.Transform) -> Iterator[sitk.Transform]:
    """The single transforms in one, in the order in which they are applied: of a composite, the last comes first."""
    part = itk.Downcast()
    if isinstance(part, sitk.CompositeTransform):
        for index in reversed(range(part.GetNumberOfTransforms())):
            yield from parts_of(part.GetNthTransform(index))
    else:
        yield part


def _numbers(part: sitk.Transform) -> NDArray[Any]:
    """The parameters of a single transform; those of a field as a view, for there may be gigabytes of them."""
    if isinstance(part, sitk.DisplacementFieldTransform):
        view: NDArray[Any] = sitk.GetArrayViewFromImage(part.GetDisplacementField())
        return view
    return np.array(part.GetParameters(), np.float64)


def _lattice(part: sitk.Transform) -> Grid:
    """The block of space over which a B-spline or a displacement field is defined; its corners are what counts."""
    if isinstance(part, sitk.DisplacementFieldTransform):
        field = part.GetDisplacementField()
        size, spacing, origin = field.GetSize(), field.GetSpacing(), field.GetOrigin()
        direction = field.GetDirection()
    elif isinstance(part, sitk.BSplineTransform):
        size, direction = (2, 2, 2), part.GetTransformDomainDirection()
        spacing = tuple((1 - 2 * RIM) * length for length in part.GetTransformDomainPhysicalDimensions())
        rim_mm = np.array(direction).reshape(3, 3) @ part.GetTransformDomainPhysicalDimensions() * RIM
        origin = part.GetTransformDomainOrigin() + rim_mm
    else:
        raise UnsupportedImage(f"expected a B-spline or a displacement field, found {part.GetName()}")
    if not np.abs([*origin, *np.multiply(size, spacing)]).max() <= WIDEST_MM:
        raise UnsupportedImage(
            f"expected a deformation within {WIDEST_MM / 1000:g} m, found one that begins or reaches farther",
            "Give its grid in millimetres",
        )
    return Grid.from_axes(size[::-1], origin, spacing[::-1], np.array(direction).reshape(3, 3)[:, ::-1])
