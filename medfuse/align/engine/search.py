"""Where to start: every shift at many orientations, at a coarse resolution.

At one orientation, how often each pair of tissue classes meets is a correlation, so a Fourier transform gives the joint
histogram, and with it normalized mutual information, at all shifts at once (after Öfverstedt, Lindblad and Sladoje,
Pattern Recognition Letters 159, 2022). Nothing is assumed of where the headers put the volumes, nor of a common centre.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from medfuse.align.engine.information import Floats
from medfuse.align.engine.pyramid import DARK, Level

#: Tissue classes, the first of them what is dark.
CLASSES = 5
#: Share of the smaller volume that must lie inside the larger one.
LEAST_INSIDE = 0.4
#: Best shifts kept of each orientation.
PEAKS = 2
#: Largest tilt that is tried, degrees.
TILT = 43.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """A pose, and how good it seems.

    Args:
        score: What the information is above chance's 1, times the share of the smaller volume that lies inside.
        matrix: (4, 4) rigid, from the smaller volume's world to the larger one's.
    """

    score: float
    matrix: Floats

    @property
    def is_turned(self) -> bool:
        """Whether it turns the volume by more than 90° against the headers."""
        return float(np.trace(self.matrix[:3, :3])) < 1


def orientations(step_degrees: float) -> list[Floats]:
    """Rotations (3, 3): as the headers say and turned by 180° about each axis of the patient, and each of these tilted.

    Head or feet first, supine or prone are such turns. The tilts are rotation vectors on a cubic lattice: any tilt of
    up to 40° is about as near to one of them as the step is wide. Those of the turns are 30° apart, which a
    refinement can just bridge.

    Args:
        step_degrees: Between tilts of the headers' orientation.
    """
    turns = _rotations(180 * np.eye(3))
    return _tilts(step_degrees) + [tilt @ turn for turn in turns for tilt in _tilts(30)]


def _tilts(step_degrees: float) -> list[Floats]:
    steps = int(TILT // step_degrees)
    axis = step_degrees * np.arange(-steps, steps + 1)
    lattice = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    return _rotations(lattice[np.linalg.norm(lattice, axis=1) <= TILT])


def _rotations(vectors: Floats) -> list[Floats]:
    """Rotations (3, 3) about vectors (N, 3) by their length in degrees."""
    return list(scipy.spatial.transform.Rotation.from_rotvec(vectors, degrees=True).as_matrix())


def candidates(
    small: Level, large: Level, rotations: list[Floats], threads: int = 1, tick: Callable[[], None] | None = None
) -> list[Candidate]:
    """The best poses of a small volume in a large one, best first.

    Args:
        small: On cubic voxels.
        large: On cubic voxels of the same size.
        rotations: The orientations to try, (3, 3) each.
        threads: How many orientations are tried at a time.
        tick: Called after each orientation.
    """
    search = _Search(small, large)
    with ThreadPoolExecutor(threads) as pool:
        found = []
        for poses in pool.map(search.at, rotations):
            found += poses
            if tick:
                tick()
    return sorted(found, key=lambda candidate: -candidate.score)


class _Search:
    """What all orientations share: the large volume's classes, transformed."""

    def __init__(self, small: Level, large: Level) -> None:
        self.small, self.large = small, large
        self.side = int(np.ceil(np.linalg.norm(small.array.shape)))  # the small volume fits in, however it is turned
        self.shape = [scipy.fft.next_fast_len(n + self.side - 1, real=True) for n in large.array.shape]
        self.of_small = _classes(small.array) + 1
        self.spectra = [self._spectrum(where) for where in _each(_classes(large.array) + 1)]

    def at(self, rotation: Floats) -> list[Candidate]:
        """The best shifts at one rotation (3, 3) of the world."""
        turn = self.large.grid.direction.T @ rotation @ self.small.grid.direction
        middle, center = np.full(3, (self.side - 1) / 2), (np.array(self.small.array.shape) - 1) / 2
        turned = scipy.ndimage.affine_transform(
            self.of_small,
            turn.T,
            center - turn.T @ middle,
            (self.side,) * 3,
            order=0,
            mode="grid-constant",  # voxels reach half a side past their middles: a slab of one voxel has a thickness
            prefilter=False,
        )
        counts = self._counts(turned)
        inside = counts.sum(axis=(0, 1))
        enough = inside >= LEAST_INSIDE * self.of_small.size
        if not enough.any():
            return []
        score = np.zeros(self.shape, np.float32)
        score[enough] = _score(counts[:, :, enough], inside[enough]) * inside[enough] / self.of_small.size
        peaks = np.argwhere((score == scipy.ndimage.maximum_filter(score, 3, mode="wrap")) & (score > 0))
        peaks = peaks[np.argsort(-score[tuple(peaks.T)], kind="stable")[:PEAKS]]
        return [Candidate(float(score[tuple(peak)]), self._matrix(rotation, peak + middle, center)) for peak in peaks]

    def _counts(self, turned: NDArray[np.int8]) -> NDArray[np.float32]:
        """How often each pair of classes meets, at each shift: (CLASSES, CLASSES, *shape)."""
        counts = np.empty((CLASSES, CLASSES, *self.shape), np.float32)
        for row, where in zip(counts, _each(turned), strict=True):
            spectrum = np.conj(self._spectrum(where))
            for cell, other in zip(row, self.spectra, strict=True):
                cell[...] = scipy.fft.irfftn(spectrum * other, self.shape)
        counts[counts < 0.5] = 0  # they are whole numbers, but for rounding
        return counts

    def _spectrum(self, where: NDArray[np.bool_]) -> NDArray[np.complex64]:
        spectrum: NDArray[np.complex64] = scipy.fft.rfftn(where.astype(np.float32), self.shape)
        return spectrum

    def _matrix(self, rotation: Floats, index: Floats, center: Floats) -> Floats:
        """The transform that turns the small volume and lays its middle on an index of the large one."""
        shape = np.array(self.large.array.shape)
        index = np.where(index - (self.side - 1) / 2 >= shape, index - self.shape, index)  # shifts wrap around
        matrix = np.eye(4)
        matrix[:3, :3] = rotation
        matrix[:3, 3] = self.large.grid.points_mm([index])[0] - rotation @ self.small.grid.points_mm([center])[0]
        return matrix


def _classes(array: NDArray[np.float32]) -> NDArray[np.int8]:
    """What is dark, and the rest in classes of equal size; 0 to CLASSES - 1."""
    bright = array[array >= DARK]
    if not bright.size:
        return np.zeros(array.shape, np.int8)
    edges = [DARK, *np.quantile(bright, np.arange(1, CLASSES - 1) / (CLASSES - 1))]
    return np.searchsorted(edges, array, side="right").astype(np.int8)


def _each(labels: NDArray[np.int8]) -> Iterator[NDArray[np.bool_]]:
    return (labels == label for label in range(1, CLASSES + 1))


def _score(counts: NDArray[np.float32], inside: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalized mutual information less 1, of counts (CLASSES, CLASSES, N) of which there are `inside` (N,)."""
    shares = counts / inside
    together = _entropy(shares.reshape(-1, shares.shape[-1]))
    apart = _entropy(shares.sum(axis=0)) + _entropy(shares.sum(axis=1))
    return np.where(together < 1e-3, 0, apart / np.maximum(together, 1e-3) - 1).astype(np.float32)


def _entropy(shares: NDArray[np.float32]) -> NDArray[np.float32]:
    entropy: NDArray[np.float32] = -(shares * np.log(shares + np.float32(1e-12))).sum(axis=0)
    return entropy
