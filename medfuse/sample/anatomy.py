"""A human head that nobody has: which tissue lies at a point, as a formula, so that every scanner samples it natively.

The head's own coordinates are LPS millimetres about the middle of the brain, the nose towards -y. Left and right differ
everywhere: the whole head is bent, and cavities, ventricles and folds differ from side to side. The anatomy is painted
in layers, from the air inwards; a layer that a scanner's table does not list is transparent to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfuse.sample import organs
from medfuse.sample.organs import Layer, Tissue
from medfuse.sample.shapes import Distance, Ellipsoid, Points, Ripple, Solid, united, without

#: A scanner's value for each tissue that it sees.
Table: TypeAlias = Mapping[Tissue, float | NDArray[np.float32]]

_BEND = Ripple.of(150, seed=11, count=4)
_SWAY = Ripple.of(120, seed=12, count=4)
_COARSE = Ripple.of(60, seed=13)
_CELLS = Ripple.of(9, seed=14)
_STREAKS = Ripple.of(34, seed=15)
_ROUGH = Ripple.of(26, seed=17)
_FOLDS = Ripple.of(27, seed=16, count=12)


class _Canvas:
    """The values of some points, painted over layer by layer.

    Args:
        points: Bent head coordinates, (3, N).
        table: A scanner's value, or (C,) values, for each tissue that it sees.
        edge_mm: Width of the ramp from one tissue to the next.
    """

    def __init__(self, points: Points, table: Table, edge_mm: float) -> None:
        self.points = points
        self.table = {tissue: np.atleast_1d(np.asarray(value, np.float32)) for tissue, value in table.items()}
        self.edge_mm = edge_mm
        self.values: NDArray[np.float32] = np.repeat(self.table[Tissue.AIR][:, None], points.shape[1], axis=1)
        self._low: list[float] = points.min(axis=1, initial=np.inf).tolist()
        self._high: list[float] = points.max(axis=1, initial=-np.inf).tolist()

    def paint(self, tissue: Tissue, distance: Distance, where: NDArray[np.intp] | slice = slice(None)) -> None:
        """Cover what lies inside a surface, given for all points or for some of them."""
        if tissue not in self.table:
            return
        cover = np.clip(np.float32(0.5) - distance / np.float32(self.edge_mm), 0, 1)
        self.values[:, where] += cover * (self.table[tissue][:, None] - self.values[:, where])

    def paint_layers(
        self, layers: Iterable[Layer], within: Distance | None = None, rough: Distance | None = None
    ) -> None:
        """Cover what lies inside each solid, its surface made rough, and within another surface."""
        for tissue, solid in layers:
            near = self._near(solid)
            if tissue not in self.table or not near.size:
                continue
            distance = solid.distance(self.points[:, near])
            if rough is not None:
                distance += rough[near]
            if within is not None:
                distance = np.maximum(distance, within[near])
            self.paint(tissue, distance, near)

    def _near(self, solid: Solid) -> NDArray[np.intp]:
        """Which points lie near a solid."""
        center, radius = solid.ball
        reach = radius + self.edge_mm + 2
        if any(low > c + reach or high < c - reach for low, c, high in zip(self._low, center, self._high, strict=True)):
            return np.empty(0, np.intp)
        x, y, _ = self.points
        return np.flatnonzero((np.abs(x - np.float32(center[0])) < reach) & (np.abs(y - np.float32(center[1])) < reach))

    @contextmanager
    def part(self, wanted: NDArray[np.bool_]) -> Iterator[tuple[_Canvas, NDArray[np.intp]]]:
        """A canvas of the wanted points, whose values come back here at the end; and their numbers."""
        chosen = np.flatnonzero(wanted)
        part = _Canvas(self.points[:, chosen], self.table, self.edge_mm)
        part.values = self.values[:, chosen]
        yield part, chosen
        self.values[:, chosen] = part.values


def render(points_mm: ArrayLike, table: Table, edge_mm: float = 1.5) -> NDArray[np.float32]:
    """What a scanner with this table would measure, free of noise and blur.

    Args:
        points_mm: Head coordinates, (3, N) mm.
        table: The value, or (C,) values, of each tissue that the scanner sees; AIR must be among them.
        edge_mm: Width of the ramp from one tissue to the next, for partial volume.

    Returns:
        (C, N) values; C is 1 for a table of numbers.
    """
    canvas = _Canvas(_bent(np.asarray(points_mm, np.float32)), table, edge_mm)
    cavity = _cavity(canvas.points)
    skull = cavity - _thickness(canvas.points)
    skin = _skin(canvas.points, skull)
    with canvas.part(skin < edge_mm) as (head, chosen):
        _paint_outside(head, skin[chosen], skull[chosen], cavity[chosen])
    with canvas.part(cavity < edge_mm) as (brain, chosen):
        _paint_brain(brain, cavity[chosen])
    return canvas.values


def tissue_at(points_mm: ArrayLike, edge_mm: float = 1.5) -> NDArray[np.float32]:
    """The share of each tissue at points of the head.

    Args:
        points_mm: Head coordinates, (3, N) mm.
        edge_mm: Width of the ramp from one tissue to the next.

    Returns:
        (number of tissues, N), from 0 to 1, summing to 1 over the tissues; row t is `Tissue(t)`.
    """
    table = dict(zip(Tissue, np.eye(len(Tissue), dtype=np.float32), strict=True))
    return render(points_mm, table, edge_mm)


def _bent(points: Points) -> Points:
    """The points on an unbent, nearly symmetric head: the bend makes the real one lopsided."""
    x, y, z = points
    torque = 4 * np.sin((y + 25) / 60) + 2.5 * np.sin(z / 40 + 1) + 2 * _BEND(points)
    bulge = x * (0.035 * np.sin((y - 10) / 50) + 0.02 * np.cos(z / 35))
    rise = 2 * _SWAY(points) + 0.03 * x
    bent: Points = np.stack([x + torque + bulge, y + 1.5 * _BEND(points[[1, 2, 0]]) - 0.04 * x, z + rise])
    return bent.astype(np.float32, copy=False)


def _both(solid: Solid, points: Points, right_scale: float = 1.0) -> Distance:
    """A solid and its image on the right, in one."""
    return united(solid.distance(points), solid.mirrored(right_scale).distance(points))


def _cavity(points: Points) -> Distance:
    """The inside of the skull and of the spine."""
    cerebrum = without(organs.CEREBRUM.distance(points), points[2] + 17 + 0.12 * np.maximum(points[1], 0), 8)
    cavity = united(cerebrum, _both(organs.TEMPORAL, points, 1.03), 12)
    cavity = united(cavity, organs.FOSSA.distance(points), 20)
    cavity = without(cavity, _both(organs.PETROUS, points), 4)
    cavity = without(cavity, organs.CLIVUS.distance(points), 4)
    return united(cavity, organs.CANAL.distance(points), 5)


def _thickness(points: Points) -> Distance:
    """Of the skull, in mm."""
    thickness: Distance = 6.3 + 0.9 * _COARSE(points) + 0.02 * np.maximum(points[1], 0)
    return thickness


def _skin(points: Points, skull: Distance) -> Distance:
    """The surface of scalp, face, ears and neck."""
    cheeks = united(_both(organs.CHEEK, points), _both(organs.JAW, points), 8)
    face = united(united(organs.FACE.distance(points), cheeks, 18), organs.NOSE.distance(points), 9)
    face = united(face, organs.CHIN.distance(points), 14)
    head = united(united(skull - 5.5, face, 22), organs.NECK.distance(points), 24)
    return united(head, _both(organs.EAR, points, 0.94), 5)


def _paint_outside(canvas: _Canvas, skin: Distance, skull: Distance, cavity: Distance) -> None:
    """All but the content of the cranial cavity: scalp, face, neck, skull, air spaces, orbits."""
    points = canvas.points
    rough = 1.6 * _ROUGH(points)
    streaks = np.abs(_STREAKS(points))
    inner = np.maximum(skin + 3.5, 3 - _both(organs.EAR, points, 0.94))
    canvas.paint(Tissue.SKIN, skin)
    canvas.paint(Tissue.FAT, inner - 1.3)
    canvas.paint(Tissue.MUSCLE, np.maximum(inner + 3, 1.2 - 5 * streaks))
    canvas.paint_layers(organs.MUSCLES, within=inner)
    canvas.paint(Tissue.BONE, skull)
    canvas.paint(Tissue.MARROW, np.maximum(skull + 1.9, 1.9 - cavity))
    canvas.paint_layers(organs.BONES, within=inner, rough=rough)
    canvas.paint_layers(organs.TEETH, within=inner)
    canvas.paint_layers(organs.AIRWAYS, rough=rough)
    _paint_air_cells(canvas)
    orbit = _both(organs.ORBIT, points)
    canvas.paint(Tissue.BONE, np.maximum.reduce([orbit - 2.5, -82 - points[1], inner]))
    canvas.paint(Tissue.FAT, np.maximum(orbit, inner - 1))
    canvas.paint_layers(organs.EYES)


def _paint_air_cells(canvas: _Canvas) -> None:
    """The honeycombs of the mastoids and of the ethmoid."""
    points = canvas.points
    mastoids = united(Ellipsoid((59, 31, -42), (9, 12, 15)).distance(points),
                      Ellipsoid((-58, 30, -40), (6, 8, 9)).distance(points))  # fmt: skip
    ethmoid = Ellipsoid((0, -58, -21), (11, 22, 10)).distance(points)
    with canvas.part(np.minimum(mastoids, ethmoid) < canvas.edge_mm) as (part, near):
        walls = 0.75 - 1.6 * np.abs(_CELLS(part.points))
        part.paint(Tissue.BONE, ethmoid[near] - 1)
        part.paint(Tissue.AIR, np.maximum(np.minimum(mastoids, ethmoid)[near], walls))


def _paint_brain(canvas: _Canvas, cavity: Distance) -> None:
    """The content of the cranial cavity: fluid, brain, dura, lesions."""
    points = canvas.points
    tent = _tentorium(points)
    midline = points[0] - 1.5 * np.sin(points[1] / 23) - 1.2 * np.sin(points[2] / 17)
    canvas.paint(Tissue.CSF, cavity)
    canvas.paint(Tissue.DURA, np.maximum(cavity, -0.8 - cavity))
    _paint_cerebellum(canvas, cavity, tent)
    _paint_cerebrum(canvas, cavity, tent, midline)
    canvas.paint_layers(organs.STEM)
    canvas.paint_layers(organs.NUCLEI)
    canvas.paint_layers(organs.VENTRICLES)
    falx = np.maximum(np.abs(midline) - 0.6, _callosal(points) * -1 + 9)
    canvas.paint(Tissue.DURA, np.maximum.reduce([falx, cavity, tent]))
    back = np.maximum(36 - points[1] - 0.25 * np.abs(points[0]), np.abs(tent) - 0.7)
    canvas.paint(Tissue.DURA, np.maximum(back, cavity))
    canvas.paint_layers((lesion.tissue, lesion.solid) for lesion in organs.LESIONS)


def _tentorium(points: Points) -> Distance:
    """How far in mm a point lies within the posterior fossa, under the tent and behind the petrous bones; < 0: not."""
    x, y, z = points
    roof = 5 - 0.32 * np.maximum(y - 38, 0) - 0.4 * np.maximum(32 - y, 0) - 0.34 * np.abs(x) - 0.0012 * x * x
    under: Distance = np.minimum(roof - z, y - 8 - 0.45 * np.abs(x)) * np.float32(0.9)
    return under


def _callosal(points: Points) -> Distance:
    """How far in mm outside the corpus callosum's arch a point lies, seen from the side."""
    y, z = (points[1] - 1) / 40, (points[2] - 6) / 25
    outside: Distance = (np.sqrt(y * y + z * z) - 1) * 28
    return outside


def _paint_cerebellum(canvas: _Canvas, cavity: Distance, tent: Distance) -> None:
    """Cerebellum: folia round a tree of white matter."""
    points = canvas.points
    body = united(_both(organs.CEREBELLUM, points, 0.96), organs.VERMIS.distance(points), 6)
    body = np.maximum.reduce([body, cavity + 2, 2 - tent])
    reach = Ellipsoid((0, 24, -24), (1, 1, 0.8)).distance(points)
    canvas.paint(Tissue.FOLIA, body + 0.5 + 0.5 * np.sin(1.45 * reach))
    canvas.paint(Tissue.WHITE, body + 8 + 3.2 * np.sin(0.85 * reach + 0.04 * points[0]))


def _paint_cerebrum(canvas: _Canvas, cavity: Distance, tent: Distance, midline: Distance) -> None:
    """Cerebral hemispheres: a ribbon of grey matter along every surface, white matter within."""
    points = canvas.points
    x, y, z = points
    low = without(organs.CEREBRUM.distance(points), z + 15, 8)
    body = united(low, _both(organs.TEMPORAL, points, 1.03), 10)
    depth = -np.maximum.reduce([body + 1, cavity + 2.4 + 0.6 * np.maximum(-y, 0) / 60, tent + 1.6])
    fissure = np.hypot(midline, np.maximum(3 - _callosal(points), 0)) - 1.5
    side = z + 7 - 0.32 * y - 0.05 * x + 1.5 * np.sin(y / 9)
    sylvian = np.hypot(side, np.maximum(np.maximum(34 - np.abs(x), np.abs(y + 4) - 32), 0)) - 1.8
    inland = np.minimum.reduce([depth, fissure, sylvian])
    pial = np.minimum(inland, _sulci(points, inland))
    ribbon = 2.9 + 0.4 * _COARSE(points)
    canvas.paint(Tissue.GREY, -pial)
    canvas.paint(Tissue.WHITE, ribbon - pial)


def _sulci(points: Points, depth: Distance) -> Distance:
    """Distance in mm from the furrows of the cortex, which stand upright on its surface, at a depth in mm."""
    outward = points - np.array([[0], [4], [4]], np.float32)
    radius = np.sqrt((outward * outward).sum(axis=0)) + np.float32(1)
    outward /= radius
    spots = 50 * outward + 0.45 * points
    slope = _FOLDS.gradient(spots)
    slope -= outward * (slope * outward).sum(axis=0)
    steepness = np.sqrt((slope * slope).sum(axis=0)) * (50 / radius + 0.45)
    sheet = np.abs(_FOLDS(spots)) / np.maximum(steepness, 0.08)
    floor = 17 + 4 * _COARSE(points[[2, 0, 1]])
    buried = np.maximum(np.maximum(depth - floor, -organs.CORE.distance(points)), 0)
    furrow: Distance = np.hypot(sheet, buried) - np.float32(1.3) + 0.03 * depth
    return furrow
