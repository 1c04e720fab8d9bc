"""Sort the images of a series by where they lie, check that they form one regular stack, and give its grid.

The geometry comes from Image Position, Image Orientation and Pixel Spacing (PS3.3 section C.7.6.2.1.1) alone: Slice
Thickness and Spacing Between Slices say how the slices were meant, the positions where they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medfuse.errors import MissingAttribute, SeriesError, UnreadableFile, UnsupportedImage
from medfuse.grid import ORTHOGONAL_TOLERANCE, Grid
from medfuse.io.dicom_header import count, numbers, word
from medfuse.io.limits import check_voxels

#: Largest difference between direction cosines of one series: 0.05 mm at the edge of a 500 mm image, and twice what
#: rounding to four decimals makes.
ORIENTATION_TOLERANCE = 2e-4
#: Largest deviation of a direction cosine vector's length from 1; rounding to two decimals stays below.
LENGTH_TOLERANCE = 1e-2
#: A slice may lie this far from its place in a regular stack: 0.01 mm (positions are often rounded to 0.01 mm), or this
#: share of the distance between slices, far below what interpolating between them can show.
POSITION_TOLERANCE_MM, POSITION_TOLERANCE = 0.01, 0.01


@dataclass(frozen=True, eq=False)
class Plane:
    """One image of a series: a file, or a frame of a multi-frame file.

    Args:
        path: The file.
        frame: Index of the frame in the file, from 0.
        header: The file's header.
        position_mm: LPS position of the centre of the first pixel, (3,).
        row_direction: LPS unit vector along a row (column index increases).
        column_direction: LPS unit vector along a column (row index increases).
        spacing_mm: Distance between (rows, columns).
        shape: Number of (rows, columns).
    """

    path: Path
    frame: int
    header: Dataset
    position_mm: NDArray[np.float64]
    row_direction: NDArray[np.float64]
    column_direction: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the plane, towards which slices are counted; right-handed with (column, row)."""
        return np.cross(self.row_direction, self.column_direction)


def group(header: Dataset, frame: int, sequence: str) -> Dataset:
    """What holds an attribute of one frame: its functional group, else the shared one, else the header itself."""
    for groups, item in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = header.get(groups) or []
        if item < len(items) and items[item].get(sequence):
            return items[item][sequence][0]
    return header


def planes_of(path: Path, header: Dataset) -> Iterator[Plane]:
    """The planes of one file, in the order of its frames.

    Raises:
        MissingAttribute: A position, orientation, spacing or size is absent.
        UnreadableFile: One is malformed.
        UnsupportedImage: A multi-frame image without functional groups (PS3.3 section C.7.6.16), or too large a one.
    """
    shape = count(header, "Rows"), count(header, "Columns")
    frames = max(1, count(header, "NumberOfFrames", 1))
    if min(shape) < 1:
        raise MissingAttribute(f"expected Rows and Columns in {path.name}, found none", "Export the series again")
    check_voxels((frames, *shape), path.name)
    if frames > 1 and len(header.get("PerFrameFunctionalGroupsSequence") or []) != frames:
        raise UnsupportedImage(
            f"expected a functional group for each of {frames} frames, found other numbers in {path.name}",
            "Only enhanced multi-frame images are read; export the series as single-frame images",
        )
    for frame in range(frames):
        orientation = numbers(group(header, frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6, path.name)
        lengths = np.linalg.norm(orientation.reshape(2, 3), axis=1)
        if np.abs(lengths - 1).max() > LENGTH_TOLERANCE:
            raise UnreadableFile(
                f"expected two unit vectors as ImageOrientationPatient in {path.name}, found lengths "
                f"{lengths[0]:.3f} and {lengths[1]:.3f}",
                "Export the series again; the header is damaged",
            )
        row, column = orientation.reshape(2, 3) / lengths[:, None]
        spacing = numbers(group(header, frame, "PixelMeasuresSequence"), "PixelSpacing", 2, path.name)
        if spacing.min() <= 0:
            raise UnreadableFile(
                f"expected a positive PixelSpacing in {path.name}, found {spacing.tolist()}",
                "Export the series again; the header is damaged",
            )
        position = numbers(group(header, frame, "PlanePositionSequence"), "ImagePositionPatient", 3, path.name)
        yield Plane(path, frame, header, position, row, column, (float(spacing[0]), float(spacing[1])), shape)


def stack(planes: Sequence[Plane]) -> tuple[list[Plane], Grid]:
    """Sort planes along their normal and give the grid that they form.

    The first axis of the grid is the vector from the first to the last position, divided by the number of steps.

    Returns:
        The planes in slice order, and the grid, whose axes (slice, row, column) are right-handed in reverse.

    Raises:
        SeriesError: The planes differ in size, spacing, orientation or frame of reference, share positions, or leave
            gaps.
        UnsupportedImage: There is only one, or the stack is sheared (gantry tilt).
    """
    first = planes[0]
    if len(planes) < 2:
        raise UnsupportedImage(
            "expected two or more slices, found one 2-D image, which is not a volume",
            "Give the folder that holds the whole series",
        )
    _check_alike(planes)
    planes = sorted(planes, key=lambda plane: float(plane.position_mm @ first.normal))
    positions_mm = np.array([plane.position_mm for plane in planes])
    step_mm = _regular_step(positions_mm, first.normal)
    matrix = np.eye(4)
    matrix[:3, 0] = step_mm
    matrix[:3, 1] = first.column_direction * first.spacing_mm[0]
    matrix[:3, 2] = first.row_direction * first.spacing_mm[1]
    matrix[:3, 3] = positions_mm[0]
    return planes, Grid((len(planes), *first.shape), matrix, word(first.header, "FrameOfReferenceUID") or None)


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


def _regular_step(positions_mm: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector from one slice to the next, (3,), of sorted positions, (K, 3), that must form a regular stack."""
    gaps_mm = np.diff(positions_mm @ normal)
    slices = len(positions_mm)
    if gaps_mm.min() < POSITION_TOLERANCE_MM:
        places = 1 + np.count_nonzero(gaps_mm >= POSITION_TOLERANCE_MM)
        raise SeriesError(
            f"expected one image at each position, found {slices} images at {places} positions "
            "(several echoes, phases, times or volumes in one series)",
            "Export one of them as a series of its own",
        )
    step_mm: NDArray[np.float64] = (positions_mm[-1] - positions_mm[0]) / (slices - 1)
    length_mm = float(np.linalg.norm(step_mm))
    tilt = np.linalg.norm(np.cross(step_mm / length_mm, normal))
    if tilt > ORTHOGONAL_TOLERANCE:
        raise UnsupportedImage(
            f"expected slices stacked at right angles, found a stack sheared by {np.degrees(np.arcsin(tilt)):.1f}° "
            "(gantry tilt)",
            "Reconstruct or resample the series without tilt",
        )
    off_mm = np.linalg.norm(positions_mm - positions_mm[0] - np.arange(slices)[:, None] * step_mm, axis=1).max()
    if off_mm > max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE * length_mm):
        raise SeriesError(
            f"expected equal distances between slices, found gaps of {_list_gaps(gaps_mm)}; a slice lies "
            f"{off_mm:.2f} mm from its place in a regular stack",
            "Check that no slice is missing, or export the series again",
        )
    return step_mm


def _list_gaps(gaps_mm: NDArray[np.float64], most: int = 5) -> str:
    """The commonest gaps, as "3.00 mm (×40), 6.00 mm (×1)"."""
    counted = Counter(f"{gap:.2f}" for gap in gaps_mm).most_common()
    listed = ", ".join(f"{gap} mm (×{times})" for gap, times in counted[:most])
    return listed + (f" and {len(counted) - most} others" if len(counted) > most else "")
