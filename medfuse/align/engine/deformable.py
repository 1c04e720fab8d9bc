"""What is left after a linear transform: a stiff cubic B-spline, uphill in normalized mutual information.

Free-form deformation (Rueckert et al., IEEE Trans. Med. Imaging 18(8), 1999): normalized mutual information minus what
the deformation costs is maximised over the control points of a uniform cubic B-spline, by L-BFGS-B (Zhu et al., ACM
Trans. Math. Softw. 23(4), 1997). Without that cost the information pays for nonsense (docs/alignment.md). No control
point moves by more than the share of the distance between two of them up to which such a B-spline cannot fold (Choi and
Lee, Graphical Models 62(6), 2000).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import scipy
import SimpleITK as sitk
from numpy.typing import NDArray

from medfuse.align.engine.information import MOST_ROOM, Floats, Information
from medfuse.align.engine.pyramid import levels
from medfuse.align.linear import Transform
from medfuse.align.warp import Warp
from medfuse.errors import RegistrationError
from medfuse.grid import Grid
from medfuse.itk import to_grid

#: Distance between control points, about: too wide to squeeze a vertebra or a tumour.
CONTROL_MM = 40.0
#: What bending and stretching cost: a mean square of the second derivatives of 1/mm², and one of the first of 1.
BENDING_MM2, STRETCHING = 2_000.0, 1.0
#: How far a control point may move along an axis, in distances between them; 1 / 2.4795 is where folding can begin.
REACH = 0.4
#: Voxel sizes to register at, fine to coarse, and the most steps at each.
SIZES_MM = (3.0, 6.0)
STEPS_EACH = 40
STEPS = STEPS_EACH * len(SIZES_MM)
#: Points at which the two are compared.
POINTS = 60_000


def deform(
    fixed: sitk.Image, moving: sitk.Image, start: Transform, progress: Callable[[int, int], None] | None = None
) -> Warp:
    """Bend a linear alignment so that the moving image fits the fixed one better, as far as the gain is worth it.

    Args:
        fixed: The image that stays, float32, 0 to 1.
        moving: The image to lay on it, likewise.
        start: The linear alignment, from the fixed world to the moving one. It stays the linear part of the result.
        progress: Called with (step, steps) as steps are done.

    Returns:
        The bent alignment, which folds nowhere. Equal input gives an equal result on one machine.

    Raises:
        RegistrationError: The two hardly overlap.
    """
    lattice = _Lattice.over(to_grid(fixed))
    room = _room(fixed, moving)
    shares: Floats = np.zeros(int(np.prod(lattice.shape)) * 3)
    done = 0

    def tick(to: int) -> None:
        nonlocal done
        if to > done and progress:
            progress(to, STEPS)
        done = to

    pyramid = zip(levels(fixed, SIZES_MM), levels(moving, SIZES_MM), strict=True)
    for number, images in enumerate(reversed(list(pyramid)), 1):
        information = Information(*images, int(POINTS * min(room, MOST_ROOM)))
        if room > 1:
            information = information.meeting(start.moving_from_fixed)
        fit = _Fit(information, start, lattice, room)
        found = scipy.optimize.minimize(
            fit.cost,
            shares,
            jac=True,
            method="L-BFGS-B",
            bounds=[(-REACH, REACH)] * len(shares),
            callback=lambda _: tick(done + 1),
            options={"maxiter": STEPS_EACH, "maxfun": 2 * STEPS_EACH, "ftol": 1e-6, "gtol": 1e-8},
        )
        shares = found.x
        tick(number * STEPS_EACH)
    return Warp(start, sitk.CompositeTransform([start.to_itk(), lattice.to_itk(lattice.moves(shares))]))


def _room(fixed: sitk.Image, moving: sitk.Image) -> float:
    """How many times the moving image fits into the fixed one, at least 1: it is compared and bent there alone."""
    of_fixed, of_moving = (float(np.prod(to_grid(image).extent_mm)) for image in (fixed, moving))
    return max(1.0, of_fixed / of_moving)


@dataclass(frozen=True)
class _Lattice:
    """The control points over a grid. They move along the grid's own axes (k, j, i), by mm.

    Args:
        grid: What they cover.
        mesh: Number of distances between control points along each axis of the grid.
    """

    grid: Grid
    mesh: tuple[int, int, int]

    @classmethod
    def over(cls, grid: Grid) -> _Lattice:
        k, j, i = np.maximum(1, np.rint(np.array(grid.extent_mm) / CONTROL_MM)).astype(int).tolist()
        return cls(grid, (k, j, i))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of control points along each axis: one before the grid, and two past the last distance."""
        k, j, i = (n + 3 for n in self.mesh)
        return k, j, i

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The distance between control points along each axis."""
        k, j, i = (length / n for length, n in zip(self.grid.extent_mm, self.mesh, strict=True))
        return k, j, i

    def moves(self, shares: Floats) -> Floats:
        """Moves (K, J, I, 3) in mm that are such shares (K·J·I·3,) of the distances between control points."""
        moves: Floats = shares.reshape(*self.shape, 3) * self.spacing_mm
        return moves

    def weights(self, points_mm: Floats) -> scipy.sparse.csr_array:
        """How much each control point moves each of N points inside the grid, (N, control points)."""
        at = ((self.grid.index_of(points_mm) + 0.5) / self.grid.shape * self.mesh).T
        cells = np.clip(np.floor(at).astype(int), 0, np.array(self.mesh)[:, None] - 1)
        near = cells[:, None] + np.arange(4)[:, None]  # (axis, one of four, point)
        weights = _cubic(at[:, None] + 1 - near)
        corners = list(product(range(4), repeat=3))
        values = [weights[0, a] * weights[1, b] * weights[2, c] for a, b, c in corners]
        columns = [np.ravel_multi_index((near[0, a], near[1, b], near[2, c]), self.shape) for a, b, c in corners]
        starts = np.arange(len(points_mm) + 1) * len(corners)
        shape = len(points_mm), int(np.prod(self.shape))
        return scipy.sparse.csr_array((np.stack(values, 1).ravel(), np.stack(columns, 1).ravel(), starts), shape)

    def strain(self, moves: Floats) -> tuple[float, Floats]:
        """What moves (K, J, I, 3) cost, and the slope of that: the mean over the grid, exact for B-splines."""
        slope = np.zeros_like(moves)
        for orders in product(range(3), repeat=3):
            if sum(orders) not in (1, 2):
                continue
            weight = STRETCHING if sum(orders) == 1 else BENDING_MM2 * (1 if 2 in orders else 2)
            grams = [
                _gram(n, order) / spacing ** (2 * order)
                for n, spacing, order in zip(self.mesh, self.spacing_mm, orders, strict=True)
            ]
            slope += 2 * weight * np.einsum("ak,bj,ci,kjix->abcx", *grams, moves, optimize=True)
        return float((slope * moves).sum()) / 2, slope

    def to_itk(self, moves: Floats) -> sitk.BSplineTransform:
        """The same as a SimpleITK transform of LPS mm."""
        spline = sitk.BSplineTransform(3, 3)
        spline.SetTransformDomainOrigin(self.grid.points_mm([(-0.5, -0.5, -0.5)])[0].tolist())
        spline.SetTransformDomainDirection(self.grid.direction[:, ::-1].ravel().tolist())
        spline.SetTransformDomainPhysicalDimensions(self.grid.extent_mm[::-1])
        spline.SetTransformDomainMeshSize(self.mesh[::-1])
        spline.SetParameters(np.moveaxis(moves @ self.grid.direction.T, -1, 0).ravel().tolist())
        return spline


class _Fit:
    """How well a bent alignment fits, less what the bending costs.

    Args:
        information: The measure for the two images.
        start: The linear alignment.
        lattice: The control points.
        room: What the cost of bending, a mean over the lattice, is multiplied by.
    """

    def __init__(self, information: Information, start: Transform, lattice: _Lattice, room: float) -> None:
        self.information, self.lattice, self.room = information, lattice, room
        self.weights = lattice.weights(information.points_mm)
        self.index = information.index(start.moving_from_fixed)
        index_from_fixed = information.index_from_lps @ start.moving_from_fixed
        self.index_from_move: Floats = index_from_fixed[:3, :3] @ lattice.grid.direction

    def cost(self, shares: Floats) -> tuple[float, Floats]:
        """The cost of moves by such shares, and its slope."""
        moves = self.lattice.moves(shares)
        index = self.index + (self.weights @ moves.reshape(-1, 3)) @ self.index_from_move.T
        gained, inside, by_index = self.information.at(index)
        if not inside.size:
            raise RegistrationError(
                "expected two scans that overlap, found next to nothing of the one inside the other",
                "Check that both show the same body part, or give a --transform",
            )
        by_point = np.zeros_like(index)
        by_point[inside] = by_index @ self.index_from_move
        strain, by_move = self.lattice.strain(moves)
        by_move = self.room * by_move - (self.weights.T @ by_point).reshape(moves.shape)
        return self.room * strain - gained, (by_move * self.lattice.spacing_mm).ravel()


@cache
def _splines() -> list[scipy.interpolate.BSpline]:
    """The uniform cubic B-spline about 0 and its first two derivatives."""
    spline = scipy.interpolate.BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    return [spline.derivative(order) for order in range(3)]


def _cubic(x: Floats, order: int = 0) -> Floats:
    values: Floats = np.nan_to_num(_splines()[order](x))
    return values


def _gram(mesh: int, order: int) -> NDArray[np.float64]:
    """Mean over the mesh of the products of the derivatives of its splines, (mesh + 3, mesh + 3)."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    at = (np.arange(mesh)[:, None] + (nodes + 1) / 2).ravel()
    splines = np.stack([_cubic(at + 1 - n, order) for n in range(mesh + 3)], axis=1)
    gram: NDArray[np.float64] = splines.T @ (splines * np.tile(weights / 2, mesh)[:, None]) / mesh
    return gram
