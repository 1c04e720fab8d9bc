"""SPECT: where the frames of a reconstructed Nuclear Medicine image lie (PS3.3 C.8.4.9, C.8.4.11, C.8.4.15)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import NuclearMedicineImageStorage

from medfuse.errors import MissingAttribute, UnreadableFile, UnsupportedImage
from medfuse.io.dicom_header import numbers, word, words
from medfuse.io.dicom_planes import Plane, directions_of, size_of, spacing_of

RECONSTRUCTED = "RECON TOMO"
#: What else value 3 of Image Type may say (PS3.3 section C.8.4.9.1.1), in words.
OTHERS = {
    "STATIC": "a static planar image",
    "WHOLE BODY": "a planar whole-body image",
    "DYNAMIC": "a dynamic planar image",
    "GATED": "a gated planar image",
    "TOMO": "projections that are not reconstructed",
    "GATED TOMO": "gated projections that are not reconstructed",
    "RECON GATED TOMO": "a gated reconstruction",
}


def is_nuclear(header: Dataset) -> bool:
    """Whether a file is a Nuclear Medicine image."""
    return bool(word(header, "SOPClassUID") == NuclearMedicineImageStorage)


def planes_of_nuclear(path: Path, header: Dataset) -> Iterator[Plane]:
    """The slices of a reconstructed SPECT, in the order of its frames.

    Detector Information Sequence has the place of the first slice. The others follow at Spacing Between Slices along
    the normal of the slices, row × column, or against it where that spacing is negative. Slice Vector says which frame
    is which slice.

    Raises:
        MissingAttribute: A position, orientation or spacing is absent.
        UnreadableFile: One is malformed.
        UnsupportedImage: It is no reconstruction, or one of several phases.
    """
    kind = (*words(header, "ImageType"), "", "", "")[2].upper()
    if kind != RECONSTRUCTED:
        raise UnsupportedImage(
            f"expected reconstructed SPECT (RECON TOMO) in {path.name}, found {OTHERS.get(kind, 'another kind')}",
            "Give the reconstructed slices, not gated",
        )
    shape, frames = size_of(header, path.name)
    detectors = header.get("DetectorInformationSequence") or []
    if not detectors:
        raise MissingAttribute(
            f"expected DetectorInformationSequence in {path.name}, found none", "Export the series again"
        )
    detector = detectors[0]
    row, column = directions_of(detector, path.name)
    spacing = spacing_of(header, path.name)
    first = numbers(detector, "ImagePositionPatient", 3, path.name)
    step = numbers(header, "SpacingBetweenSlices", 1, path.name)[0] if frames > 1 else 0.0
    lowest = Plane(path, 0, header, first, row, column, spacing, shape)
    for frame, number in enumerate(_slice_numbers(header, frames, path.name)):
        position = first + number * step * lowest.normal
        yield Plane(path, frame, header, position, row, column, spacing, shape)


def _slice_numbers(header: Dataset, frames: int, name: str) -> list[int]:
    """For each frame the number of its slice, from 0."""
    pointers = header.get("FrameIncrementPointer")
    pointers = [] if pointers is None else [pointers] if isinstance(pointers, int) else list(pointers)
    if any(pointer != tag_for_keyword("SliceVector") for pointer in pointers):
        raise UnsupportedImage(
            f"expected frames that differ by slice alone in {name}, found other dimensions (gates, times or windows)",
            "Export one of them as an image of its own",
        )
    if not words(header, "SliceVector"):
        return list(range(frames))
    found = numbers(header, "SliceVector", frames, name)
    if sorted(found.tolist()) != list(range(1, frames + 1)):
        raise UnreadableFile(
            f"expected the numbers 1 to {frames} as SliceVector in {name}, found others",
            "Export the series again; the header is damaged",
        )
    if found[0] != 1:  # the stated position is that of the first frame, or of the first slice: makers differ
        raise UnsupportedImage(
            f"expected the first frame to be slice 1 in {name}, found slice {found[0]:.0f}", "Export the series again"
        )
    return [int(number) - 1 for number in found]
