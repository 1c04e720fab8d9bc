"""Finding the transform between two volumes, and what speaks for it: the only file that runs a registration.

Every shift at many orientations is tried at a coarse resolution; the best poses are refined from there, uphill in
normalized mutual information, and the best of them at finer resolutions. Then others are asked, and the result is
judged by how far they agree (docs/alignment.md). The registration works on smoothed copies; what is fused is resampled
once, from the original voxels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from medfuse.align.engine.deformable import STEPS, deform
from medfuse.align.engine.information import MOST_ROOM, Floats, Information
from medfuse.align.engine.intensities import comparable
from medfuse.align.engine.pyramid import Level, cubic, levels, trimmed
from medfuse.align.engine.refine import Affine, Rigid, refined
from medfuse.align.engine.search import PEAKS, Candidate, candidates, orientations
from medfuse.align.engine.second import second_opinion
from medfuse.align.transform import Transform
from medfuse.align.verdict import Evidence, Verdict, judge
from medfuse.align.warp import Warp, folding
from medfuse.errors import RegistrationError
from medfuse.volume import Volume

KINDS = ("rigid", "affine", "deformable")
#: Steps beyond those of a rigid registration.
MORE_STEPS = {"rigid": 0, "affine": 1, "deformable": STEPS}

#: Voxels of the smaller volume in the search, and how many the search may handle at each orientation.
SEARCH_VOXELS, SEARCH_ROOM = 6_000, 400_000
#: How much of the dark around the larger volume's body is searched, as a share of the smaller one's diagonal.
MARGIN = 0.15
#: Between orientations of the search, degrees: usually, and where the larger volume is so many times the smaller.
STEP, FINE_STEP, LARGER = 20.0, 14.0, 8
#: Voxel sizes of the search, mm, and of the refinements, as shares of the search's.
SEARCH_MM = (4.0, 40.0)
SHARES = (0.6, 0.3, 0.15)
#: Points at which the two are compared at each of these.
POINTS = (8_000, 30_000, 60_000)
#: These levels, coarse to fine.
COARSE, MIDDLE, FINE = range(3)
#: With fewer voxels there is nothing but chance.
FEWEST_VOXELS = 1_000
#: All poses of the search are refined a little, at few points; the best of them in earnest.
GLANCE_POINTS, GLANCE_ITERATIONS, REFINED = 1_000, 8, 8
#: How far apart two poses must end to be rivals, as a share of the smaller volume's diagonal.
APART = 0.15
#: What the score of a pose counts that is turned by more than 90° against the headers: patients seldom are.
TURNED = 0.95

#: Called with (step, steps) as a registration goes on.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Registration:
    """A found transform, and what to think of it.

    Args:
        transform: From the fixed world to the moving one.
        kind: "rigid", "affine" or "deformable".
        verdict: Whether it can be trusted, and the numbers that say so.
    """

    transform: Transform | Warp
    kind: str
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Plain values; the matrix (of a deformable transform: its linear part) as nested lists."""
        matrix = self.transform.moving_from_fixed.tolist()
        return {"kind": self.kind, "transform": matrix, **self.verdict.to_json()}


def register(
    fixed: Volume,
    moving: Volume,
    kind: str = "rigid",
    progress: Progress | None = None,
    threads: int | None = None,
) -> Registration:
    """Find the transform that lays the moving volume on the fixed one, and judge it.

    Args:
        fixed: The volume that stays; any modality.
        moving: The volume to move; any modality, colour by its luminance.
        kind: "rigid" (3 rotations, 3 shifts), "affine" (scales and skews too) or "deformable" (a B-spline after
            the rigid transform).
        progress: Called as steps are done.
        threads: How many to use; None for one a core.

    Returns:
        The transform and the verdict, which may be that it failed. Equal input gives an equal result on one machine.

    Raises:
        ValueError: An unknown kind, or no thread.
        RegistrationError: A volume is constant or too small to be compared, or no alignment could be compared at all.
    """
    if kind not in KINDS:
        raise ValueError(f"expected a kind of {', '.join(KINDS)}, got {kind!r}")
    threads = (os.cpu_count() or 1) if threads is None else threads
    if threads < 1:
        raise ValueError(f"expected at least 1 thread, got {threads}")
    pair = _Pair(fixed, moving)
    steps = _Steps(progress, (1 + PEAKS) * len(pair.rotations) + REFINED + 5 + MORE_STEPS[kind])
    found, rival = _global(pair, threads, steps.tick)
    found, agreement = _rigid(pair, found, steps.tick)
    if kind == "affine":
        found = pair.refined(pair.refined(found, Affine, MIDDLE), Affine, FINE)
    transform: Transform | Warp = pair.oriented(found)
    folded = None
    if kind == "deformable":
        images = pair.images[::-1] if pair.swapped else pair.images
        transform = deform(images[0], images[1], pair.oriented(found), lambda *_: steps.tick())
        folded = folding(transform, fixed.grid)
    steps.finish()
    evidence = _evidence(pair, found, agreement, rival)
    return Registration(transform, kind, judge(replace(evidence, folded=folded)))


class _Steps:
    """Counts steps towards a total."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def tick(self) -> None:
        """One more is done."""
        self.done = min(self.done + 1, self.total)
        if self.progress:
            self.progress(self.done, self.total)

    def finish(self) -> None:
        """All are done, also those that were not needed."""
        while self.done < self.total:
            self.tick()


class _Pair:
    """Both volumes at every resolution. The smaller one is laid into the larger one, whichever of them is fixed."""

    def __init__(self, fixed: Volume, moving: Volume) -> None:
        self.fixed = fixed.grid
        self.swapped = float(np.prod(moving.grid.extent_mm)) < float(np.prod(fixed.grid.extent_mm))
        self.volumes = (moving, fixed) if self.swapped else (fixed, moving)
        for volume in self.volumes:
            if min(volume.grid.shape) < 2 or np.prod(volume.grid.shape) < FEWEST_VOXELS:
                raise RegistrationError(
                    f"expected at least 2 slices and {FEWEST_VOXELS} voxels to compare, found a volume of shape "
                    f"{volume.grid.shape}",
                    "Give a larger scan or a --transform, or take the header's alignment with --register none",
                )
        self.images = tuple(comparable(volume) for volume in self.volumes)
        self.roots = tuple(
            comparable(volume, root=True) if volume.modality.is_functional else image
            for volume, image in zip(self.volumes, self.images, strict=True)
        )
        self.center = self.volumes[0].grid.center_mm
        self.diagonal_mm = float(np.linalg.norm(self.volumes[0].grid.extent_mm))
        self.radius_mm = self.diagonal_mm / 4
        self.search_mm = self._search_mm()

    @cached_property
    def rotations(self) -> list[Floats]:
        """The orientations to search: the less the volumes' outlines say, the more."""
        small, large = (float(np.prod(volume.grid.extent_mm)) for volume in self.volumes)
        return orientations(FINE_STEP if large > LARGER * small else STEP)

    def _search_mm(self) -> float:
        """Voxel size of the search: fine enough for the small volume, coarse enough for the body in the large one."""
        small, large = (np.array(volume.grid.extent_mm) for volume in self.volumes)
        body = trimmed(cubic(self.roots[1], float(np.prod(large) / SEARCH_ROOM) ** (1 / 3)), MARGIN * self.diagonal_mm)
        fine = float(np.prod(small) / SEARCH_VOXELS) ** (1 / 3)
        coarse = float(np.prod(np.array(body.grid.extent_mm) + self.diagonal_mm) / SEARCH_ROOM) ** (1 / 3)
        return float(np.clip(max(fine, coarse), *SEARCH_MM))

    @cached_property
    def levels(self) -> list[tuple[Level, Level]]:
        """Small and large at each share of the search's voxel size, coarse to fine."""
        sizes = tuple(share * self.search_mm for share in SHARES[::-1])
        small, large = (levels(image, sizes)[::-1] for image in self.images)
        return list(zip(small, large, strict=True))

    @cached_property
    def search(self) -> tuple[Level, Level]:
        """For the search: cubic voxels, uptake by its root."""
        small, large = (cubic(image, self.search_mm) for image in self.roots)
        return small, trimmed(large, MARGIN * self.diagonal_mm)

    @cached_property
    def measures(self) -> list[Information]:
        """The measure at each level."""
        return [Information(*level, points) for level, points in zip(self.levels, POINTS, strict=True)]

    @cached_property
    def rooted(self) -> tuple[Level, Level]:
        """Small and large at the coarsest level, uptake by its root."""
        small, large = (levels(image, (SHARES[COARSE] * self.search_mm,))[0] for image in self.roots)
        return small, large

    @cached_property
    def body_mm(self) -> NDArray[np.float64]:
        """LPS mm of the small volume's body, (N, 3)."""
        return self.search[0].body_mm

    def refined(self, start: Floats, model: type[Rigid] | type[Affine], level: int) -> Floats:
        """Where a start (4, 4) from small to large leads at one of the levels."""
        return refined(self.measures[level], model(start, self.center, self.radius_mm))

    def distance_mm(self, one: Floats, other: Floats) -> float:
        """Mean distance between two transforms over the small volume's body."""
        return float(Transform(one).distance_mm(Transform(other), self.body_mm).mean())

    def oriented(self, matrix: Floats) -> Transform:
        """The transform from fixed to moving, of one from small to large; or the other way."""
        return Transform(matrix).inverse() if self.swapped else Transform(matrix)


def _global(pair: _Pair, threads: int, tick: Callable[[], None]) -> tuple[Floats, float]:
    """The best pose (4, 4) from small to large, and the best rival's score as a share of its own."""
    starts = [np.eye(4), *(pose.matrix for pose in candidates(*pair.search, pair.rotations, threads, tick))]
    glances = _climbed(pair, starts, GLANCE_POINTS, GLANCE_ITERATIONS, threads, tick)
    starts = [pose.matrix for pose in _apart(pair, glances)[:REFINED]]
    poses = _apart(pair, _climbed(pair, starts, POINTS[COARSE], 40, threads, tick))
    best = max(poses, key=lambda pose: pose.score * (TURNED if pose.is_turned else 1))
    if best.score <= 0:
        raise RegistrationError(
            "expected two volumes that show the same anatomy, found no alignment in which they can be compared",
            "Check that both are of one patient and one body part, or give a --transform",
        )
    return best.matrix, max((pose.score for pose in poses if pose is not best), default=0.0) / best.score


def _climbed(
    pair: _Pair, starts: Sequence[Floats], points: int, iterations: int, threads: int, tick: Callable[[], None]
) -> list[Candidate]:
    """Where starts (4, 4) lead at the coarsest level, best first."""
    measure = Information(*pair.rooted, points)

    def climbed(start: Floats) -> Candidate:
        matrix = refined(measure, Rigid(start, pair.center, pair.radius_mm), iterations)
        tick()
        return Candidate((measure(matrix)[0] - 1) * measure.share_inside(matrix), matrix)

    with ThreadPoolExecutor(threads) as pool:
        return sorted(pool.map(climbed, starts), key=lambda pose: -pose.score)


def _apart(pair: _Pair, poses: Sequence[Candidate]) -> list[Candidate]:
    """Of poses, best first, those that are no neighbours of a better one."""
    kept: list[Candidate] = []
    for pose in poses:
        if all(pair.distance_mm(pose.matrix, other.matrix) > APART * pair.diagonal_mm for other in kept):
            kept.append(pose)
    return kept


def _rigid(pair: _Pair, start: Floats, tick: Callable[[], None]) -> tuple[Floats, dict[str, float]]:
    """The pose refined at every level, and how far independent runs end from it, by their names, mm over the body."""
    found = pair.refined(pair.refined(start, Rigid, COARSE), Rigid, MIDDLE)
    others = _others(pair, found, tick)
    halves = [refined(half, Rigid(found, pair.center, pair.radius_mm), 30) for half in _halves(pair)]
    # Whoever found something better is followed.
    best = max([found, *others.values(), *halves], key=lambda matrix: pair.measures[MIDDLE](matrix)[0])
    found = pair.refined(pair.refined(best, Rigid, MIDDLE), Rigid, FINE)
    tick()
    agreement = {name: pair.distance_mm(matrix, found) for name, matrix in others.items()}
    spread = np.sqrt(np.mean([pair.distance_mm(matrix, found) ** 2 for matrix in halves]))
    return found, {**agreement, "halves": float(spread)}


def _others(pair: _Pair, found: Floats, tick: Callable[[], None]) -> dict[str, Floats]:
    """Where independent runs end, all from another start."""
    away = _nudged(pair, found)
    small, large = pair.levels[MIDDLE]
    ends = {"start": pair.refined(pair.refined(away, Rigid, COARSE), Rigid, MIDDLE)}
    tick()
    room = float(np.prod(large.grid.extent_mm) / np.prod(small.grid.extent_mm))
    near = Information(large, small, int(POINTS[MIDDLE] * min(room, MOST_ROOM))).meeting(_inverted(found))
    # Not so far that a thin volume would leave the points drawn where it lies.
    thin = min(pair.volumes[0].grid.extent_mm) / pair.radius_mm
    model = Rigid(
        _inverted(_nudged(pair, found, min(1.0, thin))), found[:3, :3] @ pair.center + found[:3, 3], pair.radius_mm
    )
    ends["inverse"] = _inverted(refined(near, model))
    tick()
    ends["engine"] = away
    for level in pair.levels[:FINE]:
        ends["engine"] = second_opinion(*level, ends["engine"], pair.center)
    tick()
    return ends


def _inverted(matrix: Floats) -> Floats:
    return np.array(Transform(matrix).inverse().moving_from_fixed)


def _nudged(pair: _Pair, found: Floats, share: float = 1.0) -> Floats:
    """Another start: turned by 10° and shifted by a twentieth of the small volume's diagonal, or by a share of that."""
    vector = share * 10 * np.array([1, -1, 1]) / 3**0.5
    turn = scipy.spatial.transform.Rotation.from_rotvec(vector, degrees=True).as_matrix()
    pivot = found[:3, :3] @ pair.center + found[:3, 3]
    away = np.eye(4)
    away[:3, :3] = turn
    away[:3, 3] = pivot - turn @ pivot + share * 0.2 * pair.radius_mm * np.array([1, 1, -1]) / 3**0.5
    return np.asarray(away @ found)


def _halves(pair: _Pair) -> Iterator[Information]:
    """The measure over both halves of the small volume, along each of its axes."""
    measure = pair.measures[MIDDLE]
    offset = (measure.points_mm - pair.center) @ pair.volumes[0].grid.direction
    for axis in range(3):
        yield measure.part(offset[:, axis] < 0)
        yield measure.part(offset[:, axis] >= 0)


def _evidence(pair: _Pair, found: Floats, agreement: Mapping[str, float], rival: float) -> Evidence:
    measure = pair.measures[MIDDLE]
    header = np.eye(4)
    transform = pair.oriented(found)
    stretched = np.abs(np.linalg.svd(transform.moving_from_fixed[:3, :3], compute_uv=False) - 1).max()
    return Evidence(
        agreement_mm=agreement,
        start_mm=pair.distance_mm(_nudged(pair, found), found),
        rival=rival,
        nmi_before=measure(header)[0],
        nmi_after=measure(found)[0],
        overlap_before=_inside(pair, header),
        overlap_after=_inside(pair, found),
        shift_mm=pair.distance_mm(found, header),
        moved_mm=float(transform.distance_mm(Transform.identity(), pair.fixed.corners_mm).max()),
        rotated_degrees=transform.rotation_degrees,
        stretched=float(stretched) if stretched > 1e-6 else None,
    )


def _inside(pair: _Pair, matrix: Floats) -> float:
    """Share of the small volume's body that a transform puts inside the large volume."""
    return float(pair.volumes[1].grid.contains(Transform(matrix).apply(pair.body_mm)).mean())
