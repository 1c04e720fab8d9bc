"""Files that are left out beside a series and may have to do with it, and those that it lacks by its own word."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset

from medfuse.errors import MedfuseError
from medfuse.io.dicom_header import count, damage_in, numbers, read_dataset, word

#: What says how an image lies, its position apart.
LOOK = ("StudyInstanceUID", "SOPClassUID", "FrameOfReferenceUID", "Rows", "Columns")
#: Largest difference of direction cosines between images that seem to lie alike.
LOOK_TOLERANCE = 1e-3


def is_copy(one: tuple[Path, Dataset], other: tuple[Path, Dataset]) -> bool:
    """Whether two files with one SOP Instance UID are the same image.

    They are if every byte is the same; or, as after another export or a change of the patient's data, if what is read
    of the header and all stored pixels are the same.

    Args:
        one: Path and header, `dicom_header.TAGS` only.
        other: The same of the other file.
    """
    if filecmp.cmp(one[0], other[0], shallow=False):
        return True
    if not word(one[1], "SOPInstanceUID"):
        return False
    try:
        with damage_in(one[0].name):
            return bool(one[1] == other[1]) and _stored(one[0]) == _stored(other[0])
    except (MedfuseError, OSError):
        return False


def _stored(path: Path) -> tuple[object, bytes]:
    """The stored pixels of a file, and how they are encoded; byte order apart, native encodings are one."""
    dataset = read_dataset(path)
    syntax = dataset.file_meta.TransferSyntaxUID
    encoding = syntax if syntax.is_compressed else syntax.is_little_endian
    return encoding, bytes(dataset.PixelData)


def remarks(
    headers: Sequence[Dataset], copies: int, scouts: Sequence[Dataset], apart: Sequence[Dataset]
) -> tuple[str, ...]:
    """What a person should know of files that a series lacks or left out beside it; nothing where nothing is odd.

    Args:
        headers: Those of the images of the series.
        copies: How many copies of its images were left out.
        scouts: The headers of images with its UID that were left out as localizers.
        apart: The headers of images that are alone in other series.
    """
    header, found = headers[0], list(_lacking(headers))
    if copies:
        found.append(f"left out: {copies} {'copy' if copies == 1 else 'copies'} of images that are there already")
    if marked := sum(_look_alike(header, scout) for scout in scouts):
        found.append(f"left out: {_images(marked)} of this series marked as localizer, yet placed as its slices are")
    if alone := sum(_look_alike(header, other) for other in apart):
        found.append(
            f"left out: {_images(alone)} of the same study, size, orientation and frame of reference, alone in a "
            "series of its own; a slice may be missing"
        )
    return tuple(found)


def _images(number: int) -> str:
    return f"{number} image{'s' * (number > 1)}"


def _lacking(headers: Sequence[Dataset]) -> Iterator[str]:
    """What is not there by the word of what is.

    The files of a concatenation, one image in parts, are counted by each of them (PS3.3 section C.7.6.16.2.2.4).
    """
    parts: dict[str, set[int]] = defaultdict(set)
    for header in headers:
        parts[word(header, "ConcatenationUID")].add(count(header, "InConcatenationNumber"))
    total = {word(header, "ConcatenationUID"): count(header, "InConcatenationTotalNumber") for header in headers}
    for uid, found in parts.items():
        if uid and len(found) < total[uid]:
            yield f"{len(found)} of the {total[uid]} files of a concatenation; slices may be missing"


def _look_alike(one: Dataset, other: Dataset) -> bool:
    """Whether two images of one file each could be slices of one series, as far as headers say."""
    if any(word(one, keyword) != word(other, keyword) for keyword in LOOK):
        return False
    try:
        directions = [numbers(header, "ImageOrientationPatient", 6, "") for header in (one, other)]
    except MedfuseError:
        return False
    return bool(np.abs(directions[0] - directions[1]).max() <= LOOK_TOLERANCE)
