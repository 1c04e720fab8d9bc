"""DICOM Spatial Registration objects: the matrix between two frames of reference (PS3.3 section C.20.2).

Each item of such an object maps the points of one frame of reference, its source, into the registered frame of
reference, that of the object itself. The way from the fixed scan to the moving one is therefore into the registered
frame by the fixed scan's item, and out of it by the inverse of the moving scan's.
"""

from __future__ import annotations

import warnings
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medfuse.align.linear import Transform
from medfuse.errors import MedfuseError, MissingAttribute, UnreadableFile, UnsupportedImage
from medfuse.grid import Grid

if TYPE_CHECKING:
    from pydicom import Dataset

#: How far a matrix that is called rigid may be from it, in cosines and scales.
RIGID_TOLERANCE = 1e-3
#: How far apart two maps may put a point of the body and still be one.
SAME_MM = 0.01
#: Points about a body, at which maps are compared, LPS mm.
BODY_MM = np.array([(x, y, z) for x in (-300, 300) for y in (-300, 300) for z in (-1000, 1000)], dtype=np.float64)


def read_spatial_registration(path: Path, fixed: Grid | None, moving: Grid | None) -> Transform:
    """The transform from the fixed scan's frame of reference to the moving one's.

    Args:
        path: A DICOM file.
        fixed: Grid of the structural scan, which states its frame of reference.
        moving: Grid of the functional scan, likewise.

    Raises:
        UnreadableFile: The file is damaged.
        MissingAttribute: The object lacks a matrix.
        UnsupportedImage: It is another kind of object, or its matrices are of another kind than they say; the scans
            state no two frames of reference, or the object does not place both, or places one twice.
    """
    ends = _frame(fixed, "structural"), _frame(moving, "functional")
    if ends[0] == ends[1]:
        raise UnsupportedImage(
            "expected two scans of different frames of reference, found that both state the same one",
            f"Leave {path.name} away, or register the scans with --register rigid",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, of values that break a rule but can be understood
            registered_from = _registered_from(_read(path), path.name)
    except MedfuseError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged values, and quotes them
        raise UnreadableFile(
            f"expected a whole DICOM file, found {path.name} damaged ({type(error).__name__})",
            "Export or copy the file again",
        ) from error
    registered_from_fixed = _only(registered_from.get(ends[0], []), "structural", path.name)
    registered_from_moving = _only(registered_from.get(ends[1], []), "functional", path.name)
    return _product(registered_from_moving.inverse(), registered_from_fixed)


def _frame(grid: Grid | None, name: str) -> str:
    if grid is None:
        raise UnsupportedImage(
            "expected both scans beside a DICOM registration, for their frames of reference say which way it leads",
            "Pass the grids of both",
        )
    if grid.frame_of_reference is None:
        raise UnsupportedImage(
            f"expected two scans with a frame of reference, found that the {name} one states none",
            "Give DICOM series with a DICOM registration, or the transform as an ITK file or 16 numbers",
        )
    return grid.frame_of_reference


def _read(path: Path) -> Dataset:
    import pydicom
    from pydicom.uid import DeformableSpatialRegistrationStorage, SpatialRegistrationStorage

    wanted: list[str | int] = ["SOPClassUID", "FrameOfReferenceUID", "RegistrationSequence"]
    dataset = pydicom.dcmread(path, specific_tags=wanted)
    found = dataset.get("SOPClassUID")
    if found != SpatialRegistrationStorage:
        kind = "a deformable one" if found == DeformableSpatialRegistrationStorage else "another kind of object"
        raise UnsupportedImage(
            f"expected a DICOM Spatial Registration, found {kind} in {path.name}",
            "Give a registration by matrices, or the transform as an ITK file",
        )
    return dataset


def _registered_from(dataset: Dataset, name: str) -> dict[str, list[Transform]]:
    """The maps into the registered frame of reference, by the frame that they lead from."""
    found: dict[str, list[Transform]] = {str(dataset.get("FrameOfReferenceUID", "")): [Transform.identity()]}
    for item in dataset.get("RegistrationSequence", ()):
        source = item.get("FrameOfReferenceUID")
        if source:  # otherwise it names images, not a frame
            found.setdefault(str(source), []).append(_map(item, name))
    return found


def _map(item: Dataset, name: str) -> Transform:
    """One item's map. Where it is a sequence of matrices, their order must not matter.

    PS3.3 equation C.20.2-2 gives an order, but readers disagree on which matrix is applied first.
    """
    registrations = item.get("MatrixRegistrationSequence") or [{}]
    matrices = [_matrix(each, name) for each in registrations[0].get("MatrixSequence") or ()]
    if not matrices:
        raise MissingAttribute(f"expected a Matrix Sequence (0070,030A), found none in an item of {name}")
    forward = backward = Transform.identity()
    for matrix in matrices:
        forward, backward = _product(matrix, forward), _product(backward, matrix)
    if _apart_mm(forward, backward) > SAME_MM:
        raise UnsupportedImage(
            f"expected one matrix for each frame of reference, found {len(matrices)} whose order matters in {name}",
            "Export the registration as a single matrix, or give it as 16 numbers",
        )
    return forward


def _matrix(item: Dataset, name: str) -> Transform:
    kind = str(item.get("FrameOfReferenceTransformationMatrixType", ""))
    numbers = np.array([float(number) for number in item.get("FrameOfReferenceTransformationMatrix") or ()])
    if numbers.size != 16:
        raise MissingAttribute(
            f"expected the 16 numbers of a Frame of Reference Transformation Matrix (3006,00C6), found {numbers.size} "
            f"in {name}"
        )
    try:
        transform = Transform(numbers.reshape(4, 4))
    except ValueError as error:
        raise UnsupportedImage(
            f"expected an invertible matrix with last row 0 0 0 1, found another in {name}", "Export it again"
        ) from error
    if not _is(kind, transform.moving_from_fixed[:3, :3]):
        raise UnsupportedImage(
            f"expected a matrix that is RIGID, RIGID_SCALE or AFFINE as its type says, found another in {name}",
            "Export it again, or give the transform as an ITK file or 16 numbers",
        )
    return transform


def _is(kind: str, matrix: NDArray[np.float64]) -> bool:
    """Whether a (3, 3) matrix is of the type that it is said to be (PS3.3 section C.20.2.1.2, PS3.17 annex P)."""
    if kind == "AFFINE":
        return True
    if kind == "RIGID_SCALE":  # scaled along the axes of the one frame or of the other
        by_rows, by_columns = (each / np.linalg.norm(each, axis=0) for each in (matrix.T, matrix))
        return _is("RIGID", by_rows) or _is("RIGID", by_columns)
    orthonormal = float(np.abs(matrix.T @ matrix - np.eye(3)).max()) <= RIGID_TOLERANCE
    return kind == "RIGID" and orthonormal and bool(np.linalg.det(matrix) > 0)


def _only(maps: list[Transform], scan: str, name: str) -> Transform:
    if not maps:
        raise UnsupportedImage(
            f"expected a registration of the frames of reference of both scans, found none of the {scan} one in {name}",
            "Give the registration that was made of these two scans",
        )
    if any(_apart_mm(one, other) > SAME_MM for one, other in combinations(maps, 2)):
        raise UnsupportedImage(
            f"expected one place for the frame of reference of the {scan} scan, found several in {name}",
            "Give a registration of this scan alone, or the transform as an ITK file or 16 numbers",
        )
    return maps[-1]


def _product(last: Transform, first: Transform) -> Transform:
    return Transform(last.moving_from_fixed @ first.moving_from_fixed)


def _apart_mm(one: Transform, other: Transform) -> float:
    return float(one.distance_mm(other, BODY_MM).max())
