"""Where every image of a file lies: a single-frame file, or each frame of an enhanced multi-frame one.

The geometry comes from Image Position, Image Orientation and Pixel Spacing (PS3.3 section C.7.6.2.1.1) alone: Slice
Thickness and Spacing Between Slices say how the slices were meant, the positions where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medfuse.errors import GeometryError, MissingAttribute, UnreadableFile, UnsupportedImage
from medfuse.grid import ORTHOGONAL_TOLERANCE
from medfuse.io.dicom_header import count, frames_in, numbers
from medfuse.io.limits import check_voxels

#: Largest deviation of a direction cosine vector's length from 1; rounding to two decimals stays below.
LENGTH_TOLERANCE = 1e-2
#: Farther from the origin lies no patient, mm; and no pixel is larger than the tenth of that.
FARTHEST_MM = 1e5


@dataclass(frozen=True, eq=False)
class Plane:
    """One image of a series: a file, a frame of a multi-frame file, or a tile of a mosaic.

    Args:
        path: The file.
        frame: Index of the frame in the file, from 0.
        header: The file's header.
        position_mm: LPS position of the centre of the first pixel, (3,).
        row_direction: LPS unit vector along a row (column index increases).
        column_direction: LPS unit vector along a column (row index increases).
        spacing_mm: Distance between (rows, columns).
        shape: Number of (rows, columns).
        tile: First (row, column) of the image in the pixels of its frame; (0, 0) but in a mosaic.

    Raises:
        UnreadableFile: It lies farther away, or is larger, than can be.
    """

    path: Path
    frame: int
    header: Dataset
    position_mm: NDArray[np.float64]
    row_direction: NDArray[np.float64]
    column_direction: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    tile: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not (np.abs(self.position_mm).max() <= FARTHEST_MM and max(self.spacing_mm) <= FARTHEST_MM / 10):
            raise UnreadableFile(
                f"expected an image at most {FARTHEST_MM:g} mm from the origin, of pixels of at most "
                f"{FARTHEST_MM / 10:g} mm, found more in {self.path.name}",
                "Export the series again; the header is damaged",
            )

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
    shape, frames = size_of(header, path.name)
    if frames > 1 and len(header.get("PerFrameFunctionalGroupsSequence") or []) != frames:
        raise UnsupportedImage(
            f"expected a functional group for each of {frames} frames, found other numbers in {path.name}",
            "Only enhanced multi-frame images are read; export the series as single-frame images",
        )
    for frame in range(frames):
        row, column = directions_of(group(header, frame, "PlaneOrientationSequence"), path.name)
        spacing = spacing_of(group(header, frame, "PixelMeasuresSequence"), path.name)
        position = numbers(group(header, frame, "PlanePositionSequence"), "ImagePositionPatient", 3, path.name)
        yield Plane(path, frame, header, position, row, column, spacing, shape)


def size_of(header: Dataset, name: str) -> tuple[tuple[int, int], int]:
    """(Rows, columns) and number of frames of a file, not too many to hold.

    Raises:
        MissingAttribute: Rows or Columns are absent.
        UnsupportedImage: There are too many voxels.
    """
    shape = count(header, "Rows"), count(header, "Columns")
    frames = frames_in(header)
    if min(shape) < 1:
        raise MissingAttribute(f"expected Rows and Columns in {name}, found none", "Export the series again")
    check_voxels((frames, *shape), name)
    return shape, frames


def directions_of(holder: Dataset, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along a row and along a column from Image Orientation (Patient), each (3,).

    Raises:
        MissingAttribute: It is absent.
        UnreadableFile: It does not hold two unit vectors.
        GeometryError: They are not at right angles.
    """
    orientation = numbers(holder, "ImageOrientationPatient", 6, name)
    lengths = np.linalg.norm(orientation.reshape(2, 3), axis=1)
    if np.abs(lengths - 1).max() > LENGTH_TOLERANCE:
        raise UnreadableFile(
            f"expected two unit vectors as ImageOrientationPatient in {name}, found lengths "
            f"{lengths[0]:.3f} and {lengths[1]:.3f}",
            "Export the series again; the header is damaged",
        )
    row, column = orientation.reshape(2, 3) / lengths[:, None]
    if abs(row @ column) > ORTHOGONAL_TOLERANCE:
        raise GeometryError(
            f"expected rows and columns at right angles as ImageOrientationPatient in {name}, found them "
            f"{np.degrees(np.arcsin(min(1.0, abs(row @ column)))):.2f}° off",
            "Export the series again; the header is damaged",
        )
    return row, column


def spacing_of(holder: Dataset, name: str) -> tuple[float, float]:
    """Distance in mm between (rows, columns) from Pixel Spacing.

    Raises:
        MissingAttribute: It is absent.
        UnreadableFile: It does not hold two positive numbers.
    """
    spacing = numbers(holder, "PixelSpacing", 2, name)
    if spacing.min() <= 0:
        raise UnreadableFile(
            f"expected a positive PixelSpacing in {name}, found {spacing.tolist()}",
            "Export the series again; the header is damaged",
        )
    return float(spacing[0]), float(spacing[1])
