"""Solids and smooth noise as functions of points: how far, in mm, a point lies outside (< 0: inside) a surface.

Points are (3, N) float32, rows x, y, z in mm. The distances are exact at the surface and good near it, which is all
that a soft edge needs. They can be united, cut and shrunk by plain arithmetic: `solid - 2` is the solid grown by 2 mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Points: TypeAlias = NDArray[np.float32]
Distance: TypeAlias = NDArray[np.float32]
Point: TypeAlias = tuple[float, float, float]


class Solid(Protocol):
    """Something that has a surface, inside a known ball."""

    @property
    def ball(self) -> tuple[Point, float]:
        """Centre and radius in mm of a ball that holds it."""

    def distance(self, points: Points) -> Distance:
        """How far outside its surface the points lie, (N,) mm."""

    def mirrored(self, scale: float) -> Solid:
        """Its image on the patient's other side, `scale` times as thick."""


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with axes x, y and z.

    Args:
        center: LPS position in mm.
        radii: Half axes in mm.
        yaw_deg: Turn about +z.
    """

    center: Point
    radii: Point
    yaw_deg: float = 0.0

    @cached_property
    def ball(self) -> tuple[Point, float]:
        """Centre and radius in mm of a ball that holds it."""
        return self.center, max(self.radii)

    def distance(self, points: Points) -> Distance:
        """How far outside its surface the points lie, (N,) mm; first order in the distance."""
        x, y, z = (points[n] - np.float32(self.center[n]) for n in range(3))
        if self.yaw_deg:
            cos, sin = (np.float32(f(np.radians(self.yaw_deg))) for f in (np.cos, np.sin))
            x, y = cos * x + sin * y, cos * y - sin * x
        a, b, c = (np.float32(radius) for radius in self.radii)
        x, y, z = x / a, y / b, z / c
        norm = np.sqrt(x * x + y * y + z * z)
        x, y, z = x / a, y / b, z / c
        slope = np.sqrt(x * x + y * y + z * z) + np.float32(1e-6)
        distance: Distance = norm * (norm - 1) / slope
        return distance

    def mirrored(self, scale: float) -> Ellipsoid:
        """Its image on the patient's other side, `scale` times as thick."""
        x, y, z = self.center
        a, b, c = self.radii
        return Ellipsoid((-x, y, z), (a * scale, b * scale, c * scale), -self.yaw_deg)


@dataclass(frozen=True)
class Tube:
    """A chain of balls' hulls: a line through points, with a radius at each.

    Args:
        points: LPS positions in mm, at least two.
        radii: Radius in mm at each point.
    """

    points: tuple[Point, ...]
    radii: tuple[float, ...]

    @cached_property
    def ball(self) -> tuple[Point, float]:
        """Centre and radius in mm of a ball that holds it."""
        points = np.array(self.points)
        center = points.mean(axis=0)
        reach = np.linalg.norm(points - center, axis=1) + self.radii
        return (float(center[0]), float(center[1]), float(center[2])), float(reach.max())

    def distance(self, points: Points) -> Distance:
        """How far outside its surface the points lie, (N,) mm."""
        nearest: Distance = np.full(points.shape[1], np.inf, np.float32)
        ends = np.array(self.points, np.float32)
        for start, end, first, last in zip(ends[:-1], ends[1:], self.radii[:-1], self.radii[1:], strict=True):
            along = end - start
            x, y, z = (points[n] - start[n] for n in range(3))
            share = np.clip((x * along[0] + y * along[1] + z * along[2]) / (along @ along), 0, 1)
            x, y, z = x - share * along[0], y - share * along[1], z - share * along[2]
            radius = np.float32(first) + share * np.float32(last - first)
            np.minimum(nearest, np.sqrt(x * x + y * y + z * z) - radius, out=nearest)
        return nearest

    def mirrored(self, scale: float) -> Tube:
        """Its image on the patient's other side, `scale` times as thick."""
        return Tube(tuple((-x, y, z) for x, y, z in self.points), tuple(radius * scale for radius in self.radii))


@dataclass(frozen=True, eq=False)
class Ripple:
    """Smooth noise of one scale: the sum of plane waves of one length in all directions. Mean 0, variance 1.

    Where it is 0 there run winding sheets, about half a wavelength apart.
    """

    waves: NDArray[np.float32]
    phases: NDArray[np.float32]

    @classmethod
    def of(cls, wavelength_mm: float, seed: int, count: int = 7) -> Ripple:
        """Noise of a wavelength in mm, of `count` waves, drawn with a seed."""
        rng = np.random.default_rng(seed)
        waves = rng.normal(size=(count, 3))
        waves *= 2 * np.pi / wavelength_mm / np.linalg.norm(waves, axis=1, keepdims=True)
        return cls(waves.astype(np.float32), rng.uniform(0, 2 * np.pi, count).astype(np.float32))

    def __call__(self, points: Points) -> NDArray[np.float32]:
        """The noise at the points, (N,)."""
        total = np.zeros(points.shape[1], np.float32)
        for wave, phase in zip(self.waves, self.phases, strict=True):
            total += np.sin(wave[0] * points[0] + wave[1] * points[1] + wave[2] * points[2] + phase)
        return total * np.float32(np.sqrt(2 / len(self.phases)))

    def gradient(self, points: Points) -> Points:
        """The noise's gradient at the points, (3, N) per mm."""
        total = np.zeros_like(points)
        for wave, phase in zip(self.waves, self.phases, strict=True):
            slope = np.cos(wave[0] * points[0] + wave[1] * points[1] + wave[2] * points[2] + phase)
            total += wave[:, None] * slope
        return total * np.float32(np.sqrt(2 / len(self.phases)))


def united(first: Distance, second: Distance, blend_mm: float = 0.0) -> Distance:
    """The union of two solids, its crease rounded over `blend_mm`."""
    if not blend_mm:
        return np.minimum(first, second)
    overlap = np.maximum(blend_mm - np.abs(first - second), 0)
    union: Distance = np.minimum(first, second) - overlap * overlap * np.float32(0.25 / blend_mm)
    return union


def without(solid: Distance, cut: Distance, blend_mm: float = 0.0) -> Distance:
    """A solid less another, the edge rounded over `blend_mm`."""
    return -united(-solid, cut, blend_mm)
