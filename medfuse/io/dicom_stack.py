"""Sort the images of one volume by where they lie, and give the grid that they form or are to be resampled to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.errors import MissingAttribute, SeriesError, UnsupportedImage
from medfuse.grid import ORTHOGONAL_TOLERANCE, Grid
from medfuse.io.dicom_header import numbers, word
from medfuse.io.dicom_planes import Plane, group
from medfuse.io.limits import check_voxels

#: Largest difference between direction cosines of one series: 0.05 mm at the edge of a 500 mm image, and twice what
#: rounding to four decimals makes.
ORIENTATION_TOLERANCE = 2e-4
#: A slice may lie this far from its place in a regular stack: 0.01 mm (positions are often rounded to 0.01 mm), or this
#: share of the distance between slices, far below what interpolating between them can show.
POSITION_TOLERANCE_MM, POSITION_TOLERANCE = 0.01, 0.01
#: Largest shear that is taken for a gantry tilt, in degrees; gantries tilt by 30° at most.
MAX_TILT = 45.0
#: Distances that a message lists.
LISTED = 5


@dataclass(frozen=True, eq=False)
class Stack:
    """Images in slice order, and the grid of their volume.

    Args:
        planes: The images, sorted along their normal.
        grid: The grid of the volume, whose axes (slice, row, column) are right-handed in reverse.
        resampled: Why and how the images must be resampled to the grid, for the history: `tilt_degrees`, `gaps_mm`.
            Empty where every image is a slice of the grid.
    """

    planes: tuple[Plane, ...]
    grid: Grid
    resampled: Mapping[str, Any] = field(default_factory=dict)


def stack(planes: Sequence[Plane], *, allow_gaps: bool = False, allow_2d: bool = False) -> Stack:
    """Sort planes along their normal and give the grid that they form.

    The first axis of the grid is the vector from the first to the last position, divided by the number of steps. A
    stack that is sheared, as a tilted CT gantry makes it, gets the grid of the block that encloses it.

    Args:
        planes: All images of the volume, in any order.
        allow_gaps: Lay slices at uneven distances on a regular grid, instead of refusing them.
        allow_2d: Take a single image as a volume of one slice, Slice Thickness thick.

    Raises:
        SeriesError: The planes differ in size, spacing, orientation or frame of reference, share positions, or leave
            gaps.
        UnsupportedImage: There is only one.
        MissingAttribute: There is only one, without Slice Thickness.
    """
    first = planes[0]
    _check_alike(planes)
    if len(planes) < 2:
        return Stack((first,), _grid(first, 1, _thickness(first, allow_2d) * first.normal, first.position_mm))
    ordered = tuple(sorted(planes, key=lambda plane: float(plane.position_mm @ first.normal)))
    positions_mm = np.array([plane.position_mm for plane in ordered])
    _check_places(positions_mm, first.normal)
    step_mm: NDArray[np.float64] = (positions_mm[-1] - positions_mm[0]) / (len(planes) - 1)
    off_mm = _off(positions_mm, step_mm)
    even = off_mm <= max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE * float(np.linalg.norm(step_mm)))
    if not (even or allow_gaps):
        raise SeriesError(
            f"expected equal distances between slices, found gaps of {_list_gaps(positions_mm)}; a slice lies "
            f"{off_mm:.2f} mm from its place in a regular stack",
            "Check that no slice is missing; --allow-gaps (in Python: allow_gaps=True) resamples what is there",
        )
    tilt = _tilt(step_mm, first.normal)
    if even and not tilt:
        return Stack(ordered, _grid(first, len(planes), step_mm, positions_mm[0]))
    reasons: dict[str, Any] = {"tilt_degrees": round(tilt, 2)} if tilt else {}
    if not even:
        reasons["gaps_mm"] = _list_gaps(positions_mm)
    slices = len(planes) if even else _regular_count(positions_mm @ first.normal)
    return Stack(ordered, _enclosing(first, positions_mm, slices), reasons)


def _grid(first: Plane, slices: int, step_mm: NDArray[np.float64], origin_mm: NDArray[np.float64]) -> Grid:
    """The grid of so many slices like the first one, a step apart."""
    matrix = np.eye(4)
    matrix[:3, 0] = step_mm
    matrix[:3, 1] = first.column_direction * first.spacing_mm[0]
    matrix[:3, 2] = first.row_direction * first.spacing_mm[1]
    matrix[:3, 3] = origin_mm
    return Grid((slices, *first.shape), matrix, word(first.header, "FrameOfReferenceUID") or None)


def _thickness(plane: Plane, allow_2d: bool) -> float:
    """Slice Thickness of a single image in mm, if one image may be a volume."""
    if not allow_2d:
        raise UnsupportedImage(
            "expected two or more slices, found one 2-D image, which is not a volume",
            "Give the folder that holds the whole series; --allow-2d (in Python: allow_2d=True) takes one slice",
        )
    thickness = float(
        numbers(group(plane.header, plane.frame, "PixelMeasuresSequence"), "SliceThickness", 1, plane.path.name)[0]
    )
    if thickness <= 0:
        raise MissingAttribute(
            f"expected a positive SliceThickness in {plane.path.name}, found {thickness}",
            "A single image needs a thickness to be a volume",
        )
    return thickness


def _check_alike(planes: Sequence[Plane]) -> None:
    """Refuse planes that differ in size, spacing, frame of reference or orientation."""
    hint = "Choose one acquisition and export it as a series of its own"
    for what, values in (
        ("image size", {plane.shape for plane in planes}),
        ("Pixel Spacing", {tuple(np.round(plane.spacing_mm, 5)) for plane in planes}),
        ("Frame of Reference", {word(plane.header, "FrameOfReferenceUID") for plane in planes}),
    ):
        if len(values) > 1:
            raise SeriesError(
                f"expected one {what} in the series, found {len(values)} among {len(planes)} images", hint
            )
    rows = np.array([plane.row_direction for plane in planes])
    columns = np.array([plane.column_direction for plane in planes])
    spread = max(np.abs(rows - rows[0]).max(), np.abs(columns - columns[0]).max())
    if spread > ORIENTATION_TOLERANCE:
        raise SeriesError(
            f"expected one orientation in the series, found images whose direction cosines differ by {spread:.4f}", hint
        )


def _check_places(positions_mm: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Refuse sorted positions, (K, 3), of which two lie in one plane."""
    slices, places = len(positions_mm), int(places_of(positions_mm @ normal).max()) + 1
    if places < slices:
        raise SeriesError(
            f"expected one image at each position, found {slices} images at {places} position{'s' * (places > 1)} "
            "(several echoes, phases, times or volumes in one series)",
            "Export one of them as a series of its own",
        )


def places_of(heights_mm: NDArray[np.float64]) -> NDArray[np.int_]:
    """The number of the place, from 0, of every height, (N,); heights closer than a hundredth of a mm share a place."""
    order = np.argsort(heights_mm, kind="stable")
    places = np.empty(len(heights_mm), dtype=np.int_)
    places[order] = np.concatenate([[0], np.cumsum(np.diff(heights_mm[order]) >= POSITION_TOLERANCE_MM)])
    return places


def _off(positions_mm: NDArray[np.float64], step_mm: NDArray[np.float64]) -> float:
    """How far a slice lies from its place in a regular stack at most, mm."""
    regular = positions_mm[0] + np.arange(len(positions_mm))[:, None] * step_mm
    return float(np.linalg.norm(positions_mm - regular, axis=1).max())


def _tilt(step_mm: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """The angle in degrees by which a stack is sheared; 0 where it stands upright.

    Raises:
        SeriesError: It is more than any gantry tilts.
    """
    sine = float(np.linalg.norm(np.cross(step_mm / np.linalg.norm(step_mm), normal)))
    if sine <= ORTHOGONAL_TOLERANCE:
        return 0.0
    degrees = float(np.degrees(np.arcsin(min(1.0, sine))))
    if degrees > MAX_TILT:
        raise SeriesError(
            f"expected slices stacked along their normal, found a stack sheared by {degrees:.1f}°",
            f"A gantry tilts by less than {MAX_TILT:.0f}°; check the positions in the headers",
        )
    return degrees


def _regular_count(heights_mm: NDArray[np.float64]) -> int:
    """How many slices fill a stack from end to end, if they lie about the commonest gap apart."""
    gaps_mm = np.diff(heights_mm)
    commonest = min(Counter(np.round(gaps_mm, 2).tolist()).items(), key=lambda item: (-item[1], item[0]))[0]
    alike = np.abs(gaps_mm - commonest) <= max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE * commonest)
    return max(1, round(float((heights_mm[-1] - heights_mm[0]) / gaps_mm[alike].mean()))) + 1


def _enclosing(first: Plane, positions_mm: NDArray[np.float64], slices: int) -> Grid:
    """The grid of so many slices with the planes' axes that holds all planes.

    The first and the last slice lie in the planes of the first and the last image.
    """
    check_voxels((slices, *first.shape), "the series")
    heights_mm = positions_mm[[0, -1]] @ first.normal
    step_mm = (heights_mm[1] - heights_mm[0]) / (slices - 1) * first.normal
    upright = _grid(first, slices, step_mm, positions_mm[0])
    index = upright.index_of(positions_mm)[:, 1:]  # where each image's first pixel lies, (row, column)
    low = np.floor(index.min(axis=0) + POSITION_TOLERANCE)
    more = np.ceil(index.max(axis=0) - POSITION_TOLERANCE) - low
    shape = (slices, first.shape[0] + int(more[0]), first.shape[1] + int(more[1]))
    check_voxels(shape, "the series")
    matrix = upright.lps_from_index.copy()
    matrix[:3, 3] = upright.points_mm([(0.0, *low)])[0]
    return Grid(shape, matrix, upright.frame_of_reference)


def _list_gaps(positions_mm: NDArray[np.float64]) -> str:
    """The commonest distances between neighbours, as "3.00 mm (×40), 6.00 mm (×1)"."""
    gaps_mm = np.linalg.norm(np.diff(positions_mm, axis=0), axis=1)
    counted = Counter(f"{gap:.2f}" for gap in gaps_mm).most_common()
    listed = ", ".join(f"{gap} mm (×{times})" for gap, times in counted[:LISTED])
    return listed + (f" and {len(counted) - LISTED} others" if len(counted) > LISTED else "")
