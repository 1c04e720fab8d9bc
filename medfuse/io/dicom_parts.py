"""Tell apart the volumes that one series may hold: orientations, echoes, phases, acquisitions, time points.

A `Part` is what `--series NUMBER:PART` chooses; its `frames` are volumes of the same place, one after another in time,
and `--frame` chooses one of them.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag, tag_for_keyword

from medfuse.errors import SeriesError
from medfuse.io.dicom_header import moment_of, word, words
from medfuse.io.dicom_mosaic import is_mosaic, planes_of_mosaic
from medfuse.io.dicom_nm import is_nuclear, planes_of_nuclear
from medfuse.io.dicom_planes import Plane, group, planes_of
from medfuse.io.dicom_stack import ORIENTATION_TOLERANCE, POSITION_TOLERANCE, POSITION_TOLERANCE_MM, places_of

#: Where images that were converted from single frames keep what no functional group is made for (PS3.3 C.7.6.16.2).
LEGACY = "UnassignedPerFrameConvertedAttributesSequence"
#: What tells volumes of one place apart, the likeliest first: the attribute, and the functional group that holds it in
#: an enhanced image.
KINDS = (
    ("EffectiveEchoTime", "MREchoSequence"),
    ("EchoTime", LEGACY),
    ("EchoNumbers", LEGACY),
    ("FrameType", "MRImageFrameTypeSequence"),
    ("ComplexImageComponent", "MRImageFrameTypeSequence"),
    ("FrameType", "CTImageFrameTypeSequence"),
    ("FrameType", "PETFrameTypeSequence"),
    ("ImageType", LEGACY),
    ("DiffusionBValue", "MRDiffusionSequence"),
    ("InversionTime", LEGACY),
    ("FlipAngle", "MRTimingAndRelatedParametersSequence"),
    ("ConvolutionKernel", "CTReconstructionSequence"),
    ("KVP", "CTXRayDetailsSequence"),
    ("SequenceName", LEGACY),
)
#: What the stacks of one series differ in that are volumes of their own.
STACKS = (("AcquisitionNumber", LEGACY), *KINDS)
TIMES = (
    ("TemporalPositionIndex", "FrameContentSequence"),
    ("TemporalPositionIdentifier", LEGACY),
    ("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence"),
    ("TriggerTime", LEGACY),
    ("FrameReferenceTime", LEGACY),
    ("FrameAcquisitionNumber", "FrameContentSequence"),
    ("AcquisitionNumber", LEGACY),
    ("DiffusionGradientOrientation", "MRDiffusionSequence"),
    ("FrameAcquisitionDateTime", "FrameContentSequence"),
    ("AcquisitionTime", LEGACY),
    ("ContentTime", LEGACY),
    ("InstanceNumber", ""),
)
#: Dimensions of an enhanced image that say where a frame lies.
PLACES = {tag_for_keyword(word) for word in ("StackID", "InStackPositionNumber", "ImagePositionPatient")}
#: What an image is one of `n` of, where nothing but the order of the images tells them apart.
BY_ORDER = "image"
#: What the slices of a SPECT lie in, where no attribute tells volumes apart.
FILE = "file"
#: Times of day, with what holds their date; they are shown as seconds after the first.
CLOCKS = {"AcquisitionTime": "AcquisitionDate", "ContentTime": "ContentDate", "FrameAcquisitionDateTime": ""}
#: A series with more different geometries than these is no scan.
MOST_GEOMETRIES = 200
#: Parts or frames that a message lists.
LISTED = 8

Value = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """Images of one series that are one volume, or the same volume several times.

    Args:
        label: What sets it apart from the other parts of its series, in words; "" where there is one part.
        frames: The images of each time point, unsorted.
        labels: What sets each time point apart.
    """

    label: str
    frames: tuple[tuple[Plane, ...], ...]
    labels: tuple[str, ...]

    def __str__(self) -> str:
        images = len(self.frames[0])
        times = f"{len(self.frames)} times " if len(self.frames) > 1 else ""
        return f"{self.label or 'all'}: {times}{images} image{'s' if images > 1 else ''}"


def planes_in(path: Path, header: Dataset) -> Iterator[Plane]:
    """The planes of a file of any kind; errors as the reader of its kind raises them."""
    if is_mosaic(header):
        return planes_of_mosaic(path, header)
    if is_nuclear(header):
        return planes_of_nuclear(path, header)
    return planes_of(path, header)


def parts_of(planes: Sequence[Plane]) -> tuple[Part, ...]:
    """Tell the volumes of a series apart.

    Images of different size, spacing, orientation, frame of reference or stack are different parts. Where several
    images share a position, the attribute is sought by which they fall into volumes of one image a position each.

    Raises:
        SeriesError: Images share positions, and nothing in their headers tells them apart.
    """
    parts: list[Part] = []
    geometries = _by_geometry(planes)
    for n, (label, alike) in enumerate(geometries, start=1):
        name = f"geometry {n} ({label})" if len(geometries) > 1 else ""
        parts.extend(_divided(name, alike))
    return tuple(parts)


def _by_geometry(planes: Sequence[Plane]) -> list[tuple[str, list[Plane]]]:
    """Images that can be one stack, and how they lie, in words; in the order of the first image of each."""
    found: list[tuple[tuple[object, ...], list[Plane]]] = []
    for plane in planes:
        key = (
            plane.shape,
            tuple(np.round(plane.spacing_mm, 5)),
            words(plane.header, "FrameOfReferenceUID"),
            words(group(plane.header, plane.frame, "FrameContentSequence"), "StackID"),
            words(plane.header, "SamplesPerPixel"),
        )
        for known, alike in found:
            if known == key and _parallel(alike[0], plane):
                alike.append(plane)
                break
        else:
            found.append((key, [plane]))
        if len(found) > MOST_GEOMETRIES:
            raise SeriesError(
                f"expected images of one geometry in the series, found more than {MOST_GEOMETRIES}",
                "Export one stack of parallel images as a series of its own",
            )
    return [(_described(alike[0]), alike) for _, alike in found]


def _parallel(one: Plane, other: Plane) -> bool:
    """Whether two planes have the same rows and columns."""
    rows = np.abs(one.row_direction - other.row_direction).max()
    columns = np.abs(one.column_direction - other.column_direction).max()
    return bool(max(rows, columns) <= ORIENTATION_TOLERANCE)


def _described(plane: Plane) -> str:
    """Orientation and size of a plane, in words."""
    name = ("sagittal", "coronal", "axial")[int(np.abs(plane.normal).argmax())]
    return f"{name}, {plane.shape[0]} × {plane.shape[1]}"


def _divided(label: str, planes: list[Plane]) -> list[Part]:
    """The volumes among images that can be one stack."""
    heights_mm = np.array([float(plane.position_mm @ planes[0].normal) for plane in planes])
    places = places_of(heights_mm)
    times = len(planes) / (int(places.max()) + 1)
    if times == 1:
        return _overlapping(label, planes, heights_mm) or [Part(label, (tuple(planes),), ("",))]
    names, keys = _distinction(planes, places.tolist(), times)
    sizes = Counter(keys).values()
    uneven = min(sizes) < max(sizes)  # then they are no time points of one place
    kinds = [n for n, name in enumerate(names) if uneven or name in {keyword for keyword, _ in KINDS}]
    volumes: dict[tuple[Value, ...], dict[tuple[Value, ...], list[Plane]]] = defaultdict(lambda: defaultdict(list))
    for plane, key in zip(planes, keys, strict=True):
        kind = tuple(key[n] for n in kinds)
        volumes[kind][tuple(value for n, value in enumerate(key) if n not in kinds)].append(plane)
    parts = []
    for kind, frames in sorted(volumes.items(), key=lambda item: _order(item[0])):
        in_time = sorted(frames.items(), key=lambda item: _order(item[0]))
        told = _told([names[n] for n in kinds], kind)
        later = [name for n, name in enumerate(names) if n not in kinds]
        labels = tuple(_told(later, key, in_time[0][0]) for key, _ in in_time)
        described = ", ".join(word for word in (label, told) if word)
        parts.append(Part(described, tuple(tuple(frame) for _, frame in in_time), labels))
    return parts


def _overlapping(label: str, planes: list[Plane], heights_mm: NDArray[np.float64]) -> list[Part]:
    """The stacks among images that have a place each, where two or more of them reach into one another.

    As when a place was acquired twice, a part of a gap apart. Empty where no attribute divides the images into regular
    stacks: then it is for `dicom_stack` to judge them. Nor does Acquisition Number, where all images are one regular
    stack: its slices may have been acquired by turns.
    """
    if len(planes) < 3:
        return []
    columns = [
        (keyword, [words(group(plane.header, plane.frame, sequence), keyword) for plane in planes])
        for keyword, sequence in (KINDS if _is_regular(heights_mm) else STACKS)
    ]
    if is_nuclear(planes[0].header):  # every file is a reconstruction of its own
        numbers = {path: str(n) for n, path in enumerate(dict.fromkeys(plane.path for plane in planes), start=1)}
        columns.append((FILE, [(numbers[plane.path],) for plane in planes]))
    for name, values in columns:
        groups: dict[Value, list[int]] = defaultdict(list)
        for n, value in enumerate(values):
            groups[value].append(n)
        if len(groups) < 2 or not all(len(of) > 2 and _is_regular(heights_mm[of]) for of in groups.values()):
            continue
        ends = sorted((heights_mm[of].min(), heights_mm[of].max()) for of in groups.values())
        if all(above[0] > below[1] for below, above in itertools.pairwise(ends)):
            continue
        return [
            Part(", ".join(filter(None, (label, _told([name], (value,))))), (tuple(planes[n] for n in of),), ("",))
            for value, of in sorted(groups.items(), key=lambda item: _order((item[0],)))
        ]
    return []


def _is_regular(heights_mm: NDArray[np.float64]) -> bool:
    """Whether heights, in any order, lie equal distances apart."""
    gaps_mm = np.diff(np.sort(heights_mm))
    return bool(np.ptp(gaps_mm) <= 2 * max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE * float(gaps_mm.mean())))


def _distinction(
    planes: list[Plane], places: list[int], times: float
) -> tuple[tuple[str, ...], list[tuple[Value, ...]]]:
    """The attributes by which images fall into volumes of one image a position, and their values for every image.

    First those are tried that give volumes of the same positions: one attribute, two, three; then one of `STACKS` that
    gives volumes which overlap in part; then the order of the images at each position; then one attribute that gives
    volumes of different positions.
    """
    columns: dict[str, list[Value]] = {}
    for keyword, sequence in (*KINDS, *TIMES):
        groups = [group(plane.header, plane.frame, sequence) for plane in planes]
        if keyword == "DiffusionGradientOrientation":  # in an enhanced image one level deeper
            groups = [(of.get("DiffusionGradientDirectionSequence") or [of])[0] for of in groups]
        values = [words(of, keyword) for of in groups] if keyword not in CLOCKS else _moments(groups, keyword)
        if len(set(values)) > 1:
            columns.setdefault(keyword, values)
    columns |= _dimensions(planes)
    few = [name for name in _unlike(columns) if len(set(columns[name])) <= times]
    for size in (1, 2, 3):
        for names in itertools.combinations(few, size):
            keys = list(zip(*(columns[name] for name in names), strict=True))
            if len(set(keys)) == times and len(set(zip(keys, places, strict=True))) == len(planes):
                return names, keys
    dividing = [
        (name, values)
        for name, values in sorted(columns.items(), key=lambda column: len(set(column[1])))
        if name not in CLOCKS
        and min(Counter(values).values()) > 1
        and len(set(zip(values, places, strict=True))) == len(planes)
    ]
    stacks = {keyword for keyword, _ in STACKS}
    overlapping = [(name, values) for name, values in dividing if name in stacks and _overlap_in_part(values, places)]
    if not overlapping and (ordered := _by_order(planes, places, times)):
        return (BY_ORDER,), ordered
    if dividing:
        name, values = (overlapping or dividing)[0]
        return (name,), [(value,) for value in values]
    count = max(places) + 1
    raise SeriesError(
        f"expected one image at each position, found {len(planes)} images at {count} position{'s' * (count > 1)}, and "
        "nothing in their headers that tells them apart",
        "Export one of them as a series of its own",
    )


def _overlap_in_part(values: list[Value], places: list[int]) -> bool:
    """Whether two volumes, told by their values, share positions, and one lies at others, too."""
    taken: dict[Value, set[int]] = defaultdict(set)
    for value, place in zip(values, places, strict=True):
        taken[value].add(place)
    return sum(map(len, set(map(frozenset, taken.values())))) > len(set(places))


def _moments(headers: list[Dataset], keyword: str) -> list[Value]:
    """Dates and times of day, so that midnight comes after the evening; no dates where not all headers have one."""
    found = []
    for header in headers:
        (text, *_), dated_by = words(header, keyword) or ("",), CLOCKS[keyword]
        if dated_by:
            date, time = word(header, dated_by), text
        else:  # without the time zone, which is that of all
            date, time = text[:8], re.split("[+-]", text[8:])[0]
        found.append((date, time) if text else ())
    are_dated = all(value and re.fullmatch(r"\d{8}", value[0]) for value in found)
    return [value if are_dated or not value else ("", value[1]) for value in found]


def _unlike(columns: dict[str, list[Value]]) -> list[str]:
    """The attributes, without those that tell images apart just as an earlier one does."""
    found: dict[tuple[int, ...], str] = {}
    for name, values in columns.items():
        seen: dict[Value, int] = {}
        found.setdefault(tuple(seen.setdefault(value, len(seen)) for value in values), name)
    return list(found.values())


def _dimensions(planes: list[Plane]) -> dict[str, list[Value]]:
    """The index of every image along each dimension of an enhanced image that is none of place (PS3.3 C.7.6.17)."""
    first = planes[0].header
    pointers = [int(item.get("DimensionIndexPointer") or 0) for item in first.get("DimensionIndexSequence") or []]
    indices = [
        words(group(plane.header, plane.frame, "FrameContentSequence"), "DimensionIndexValues") for plane in planes
    ]
    images = {word(plane.header, "ConcatenationUID") or str(plane.path) for plane in planes}
    if any(len(index) != len(pointers) for index in indices) or len(images) > 1:
        return {}
    found = {}
    for n, pointer in enumerate(pointers):
        values: list[Value] = [(index[n],) for index in indices]
        if pointer not in PLACES and len(set(values)) > 1:
            found[f"dimension {keyword_for_tag(pointer) or n + 1}"] = values
    return found


def _by_order(planes: list[Plane], places: list[int], times: float) -> list[tuple[Value, ...]]:
    """For each image its number, from 1, among those at its position; empty where Instance Numbers do not say."""
    numbers = [words(plane.header, "InstanceNumber") for plane in planes]
    if times % 1 or len(set(numbers)) < len(planes) or not all(number[:1] != () for number in numbers):
        return []
    found: list[tuple[Value, ...]] = [()] * len(planes)
    seen: dict[int, int] = defaultdict(int)
    for n in sorted(range(len(planes)), key=lambda n: _order((numbers[n],))):
        seen[places[n]] += 1
        found[n] = ((str(seen[places[n]]),),)
    return found if set(seen.values()) == {int(times)} else []


def _order(values: tuple[Value, ...]) -> list[tuple[float, str]]:
    """Sorts numbers by size, and words by the alphabet."""
    return [(_number(word), word) for value in values for word in value or ("",)]


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return float("inf")


def _short(word: str) -> str:
    """A number without idle digits; words as they are."""
    number = _number(word)
    return f"{number:.6g}" if np.isfinite(number) else word


def _told(names: list[str], values: tuple[Value, ...], first: tuple[Value, ...] = ()) -> str:
    """Attributes and values in words; times of day as seconds after the first one."""
    told = []
    for n, (name, value) in enumerate(zip(names, values, strict=True)):
        if name in CLOCKS:
            told.append(f"{name} + {_seconds(value) - _seconds(first[n]):g} s")
        else:
            told.append(f"{name} {'/'.join(map(_short, value)) or 'none'}")
    return ", ".join(told)


def _seconds(value: Value) -> float:
    """A date and a time of day in seconds from some day on; 0 where there is no such time."""
    if not value:
        return 0.0
    moment = moment_of(*value) or moment_of("00010101", value[1]) or datetime.min
    return (moment - datetime.min).total_seconds()


def listed(items: Sequence[object], name: Callable[[int], str]) -> str:
    """Things by their numbers, from 1; long lists cut in the middle."""
    told = [f"{name(n)} ({item})" for n, item in enumerate(items, start=1)]
    if len(told) > LISTED:
        told = [*told[: LISTED - 2], "…", told[-1]]
    return "; ".join(told)
