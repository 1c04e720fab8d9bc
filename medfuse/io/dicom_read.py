"""One DICOM series to a `Volume`: `plan` decides everything from the headers, `read_series` then reads the pixels."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless
from pydicom.valuerep import DT

from medfuse.errors import InputError, MedfuseWarning, SeriesError, UnreadableFile, UnsupportedImage
from medfuse.io.decoding import Decoder, Request, is_decodable
from medfuse.io.dicom_header import count, damage_in, frames_in, leniently, read_dataset, word, words
from medfuse.io.dicom_parts import Part, listed, parts_of, planes_in
from medfuse.io.dicom_pixels import check_bits, check_length
from medfuse.io.dicom_planes import Plane, group
from medfuse.io.dicom_range import within_range
from medfuse.io.dicom_series import Series
from medfuse.io.dicom_stack import Stack, stack
from medfuse.io.dicom_straighten import straighten
from medfuse.io.dicom_suv import SuvFactor, corrected_to, suv_factor
from medfuse.io.dicom_values import COLORS, linear, rescaled, slope_and_intercept, to_rgb, unit_of
from medfuse.io.limits import check_voxels
from medfuse.io.samples import replace_nan
from medfuse.volume import Modality, Source, Step, Unit, Volume, value_outside

#: Transfer syntaxes that only lossy compression has.
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
#: What is true of a volume where any of its files says it, and how: once compressed with loss, always (PS3.3 section
#: C.7.6.1.1.5); one slice is enough to name the patient.
CATCHING = {"LossyImageCompression": "01", "BurnedInAnnotation": "YES", "RecognizableVisualFeatures": "YES"}
#: Elements that hold pixels or are only of use with them.
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "IconImageSequence")


@dataclass(frozen=True)
class Reading:
    """How a DICOM series is to be read.

    Args:
        modality: Overrides what the headers say.
        frame: Which time point of a series that holds several, from 1; None refuses such a series.
        allow_gaps: Resample slices at uneven distances to even ones, instead of refusing them.
        allow_2d: Take a single image as a volume of one slice.
        units: "suv" makes SUV of PET values and refuses where it cannot; "native" leaves the file's own unit; None
            makes SUV where that can be had.
        fill_nan: Finite value to put in place of NaN and infinity, which float pixels may hold; None refuses them.
    """

    modality: Modality | None = None
    frame: int | None = None
    allow_gaps: bool = False
    allow_2d: bool = False
    units: str | None = None
    fill_nan: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a series will be as a volume.

    Args:
        stack: The images in slice order, and the grid that they form.
        modality: What made them.
        modality_from: What said so: "argument" or "header".
        unit: What a voxel's number will mean.
        stored_unit: What it means in the files, once rescaled.
        suv: What makes SUV of that, where something is to.
        frames: What sets the time points of the series apart, in words; one where there is one.
        parameters: What else the history should say of the reading.
        warnings: What a person should know although it is read; the parameters say it too.
    """

    stack: Stack
    modality: Modality
    modality_from: str
    unit: Unit
    stored_unit: Unit
    suv: SuvFactor | None
    frames: tuple[str, ...]
    parameters: dict[str, object]
    warnings: tuple[str, ...] = ()


@leniently()
def parts(series: Series) -> tuple[Part, ...]:
    """The volumes that a series holds, told apart by headers alone.

    Args:
        series: What `dicom_series.choose` chose, or one of what `scan` found.

    Raises:
        InputError: As `plan`.
    """
    for path, header in series.files:
        with damage_in(path.name):
            _check_kind(header, path.name)
    patients = {(word(header, "PatientID"), words(header, "PatientName")) for _, header in series.files}
    if len(patients) > 1:
        raise SeriesError(
            f"expected images of one patient in the series, found {len(patients)} different patients",
            "Separate the patients' files; their series must not share a UID",
        )
    signs = Counter(word(header, "PixelRepresentation") for _, header in series.files)
    if len(signs) > 1:
        raise SeriesError(
            f"expected one PixelRepresentation in the series, found {len(signs)} among {signs.total()} images",
            "Export the series again; a header is damaged, or two series are mixed",
        )
    planes: list[Plane] = []
    for path, header in series.files:
        with damage_in(path.name):
            planes.extend(planes_in(path, header))
    return parts_of(planes)


@leniently()
def plan(series: Series, reading: Reading | None = None, found: Sequence[Part] = ()) -> Plan:
    """Decide from the headers alone whether and how a series becomes a volume.

    Args:
        series: What `dicom_series.choose` chose.
        reading: How to read it.
        found: What `parts` found in it, if that was done before.

    Raises:
        SeriesError: The images do not form one regular stack, are several volumes, or belong to several patients.
        MissingAttribute: A header lacks something that must not be guessed.
        UnsupportedImage: A kind of image that is not read.
        UnreadableFile: A header is damaged.
    """
    reading = reading or Reading()
    part = _chosen_part(series, found or parts(series))
    planes = part.frames[_chosen_frame(part, reading.frame)]
    stacked = stack(planes, allow_gaps=reading.allow_gaps, allow_2d=reading.allow_2d)
    check_voxels(stacked.grid.shape, "the series")
    modality = reading.modality or series.modality
    units, falling = set(), set()
    for plane in stacked.planes:
        with damage_in(plane.path.name):
            units.add(unit := unit_of(plane, modality))
            rescale = slope_and_intercept(plane, unit)
            falling.add(rescale is not None and rescale[0] < 0)
    if len(falling) > 1:
        raise SeriesError(
            "expected rescale slopes of one sign in the series, found positive and negative ones",
            "Export the series again; a header is damaged",
        )
    if len(units) > 1:
        raise SeriesError(
            f"expected one unit in the series, found {', '.join(sorted(unit.value for unit in units))}",
            "Export images of one unit as a series of their own",
        )
    parameters: dict[str, object] = {"part": part.label} if part.label else {}
    parameters |= {"allow_2d": True} if len(stacked.planes) == 1 else {}
    if len(part.frames) > 1:
        parameters |= {"frame": reading.frame, "frames": len(part.frames)}
    stored_unit = units.pop()
    headers = [header for _, header in series.files]  # of all time points, for the scan begins with the first
    unit, suv, refusal = _suv(headers, modality, stored_unit, reading.units)
    told = [*series.remarks, *_warnings(stacked), *refusal]
    if falling == {True}:
        told.append("the rescale slope is negative: the highest stored value becomes the lowest")
    parameters |= {"warnings": told} if told else {}
    modality_from = "argument" if reading.modality else "header"
    return Plan(stacked, modality, modality_from, unit, stored_unit, suv, part.labels, parameters, tuple(told))


def _suv(
    headers: Sequence[Dataset], modality: Modality, unit: Unit, wanted: str | None
) -> tuple[Unit, SuvFactor | None, list[str]]:
    """The unit that values will have, what makes SUV of the stored ones, and why nothing does, where one wonders."""
    functional = modality.is_functional and unit is not Unit.RGB
    if wanted == "native" or (wanted is None and not (functional and word(headers[0], "Modality") == "PT")):
        return unit, None, []
    stated = any(word(header, "Units") for header in headers)
    if unit is Unit.SUV and not stated:
        return unit, None, []  # a real world value map says so
    try:
        if not functional:
            raise UnsupportedImage(f"expected PET or SPECT for SUV, found {modality.value}", "Leave out --units suv")
        with damage_in("the series"):
            factor = suv_factor(headers)
    except InputError as error:
        if wanted == "suv":
            raise
        return Unit.ARBITRARY if unit is Unit.SUV else unit, None, [f"not in SUV: {error.args[0]}"]
    return Unit.SUV, None if unit is Unit.SUV else factor, []


def _chosen_part(series: Series, found: Sequence[Part]) -> Part:
    """The part of a series that was asked for, or the only one."""
    name = "" if series.number is None else series.number
    if series.part is None and len(found) == 1:
        return found[0]
    if series.part is not None and 1 <= series.part <= len(found):
        return found[series.part - 1]
    asked = "one volume in the series" if series.part is None else f"a part of the series, not {series.part}"
    raise SeriesError(
        f"expected {asked}, found {len(found)}: {listed(found, lambda n: f'{name}:{n}')}",
        f"Choose one with --series {name}:N (in Python: series='{name}:N')",
    )


def _chosen_frame(part: Part, frame: int | None) -> int:
    """The index of the time point that was asked for, or of the only one."""
    count = len(part.frames)
    if (frame is None and count == 1) or (frame is not None and 1 <= frame <= count):
        return (frame or 1) - 1
    images = len(part.frames[0])
    asked = "one volume" if frame is None else f"a frame of 1 to {count}, not {frame}"
    which = f": {listed(part.labels, str)}" if count > 1 else ""
    raise SeriesError(
        f"expected {asked}, found {count} of {images} image{'s' * (images > 1)} each{which}",
        "Choose one by its number with --frame (in Python: frame=)",
    )


def _warnings(stacked: Stack) -> list[str]:
    """What a person should know of images that are read all the same."""
    planes = stacked.planes
    found = []
    # (0054,0081), of one volume of a PET or SPECT: at the end of a stack no gap would tell
    stated = max(count(plane.header, "NumberOfSlices") for plane in planes)
    if len(planes) < stated:
        images = f"{len(planes)} image{'s' * (len(planes) > 1)}"
        found.append(f"{images} where the header says that a volume has {stated}; slices may be missing")
    holders = [group(plane.header, plane.frame, "PixelMeasuresSequence") for plane in planes]
    thicknesses = {word(holder, "SliceThickness") for holder in holders} - {""}
    if len(thicknesses) > 1:
        found.append(f"slice thickness differs: {', '.join(sorted(thicknesses))} mm")
    if any(word(plane.header, "PhotometricInterpretation") == "MONOCHROME1" for plane in planes):
        found.append("MONOCHROME1: values are kept as they are, though the file asks to show the lowest as white")
    if "tilt_degrees" in stacked.resampled:
        found.append(f"a gantry tilt of {stacked.resampled['tilt_degrees']}° is resampled to right angles")
    return found


def _check_kind(header: Dataset, name: str) -> None:
    """Refuse the kinds of images that are not read."""
    photometric = word(header, "PhotometricInterpretation")
    syntax = UID(word(header.file_meta, "TransferSyntaxUID"))
    if photometric not in ("MONOCHROME1", "MONOCHROME2", *COLORS):
        raise UnsupportedImage(
            f"expected MONOCHROME, RGB, YBR or palette colour, found {photometric or 'no photometric interpretation'} "
            f"in {name}",
            "Convert the images to MONOCHROME2 first",
        )
    if not is_decodable(syntax):
        raise UnsupportedImage(
            f"expected a transfer syntax that can be decoded here, found {syntax.name or 'none'} in {name}",
            "Decompress the images first, e.g. with dcmdjpeg or gdcmconv --raw",
        )
    check_bits(header, name)
    if syntax == JPEGExtended12Bit and count(header, "BitsStored") > 8:
        raise UnsupportedImage(
            f"expected JPEG of 8 bits, or without loss, found {count(header, 'BitsStored')} bits with loss in {name}",
            "Decompress the images first, e.g. with dcmdjpeg",
        )


@leniently()
def read_series(series: Series, reading: Reading | None = None) -> Volume:
    """Read a series; values are rescaled slice by slice with each image's own slope and intercept.

    PET becomes SUV where its headers allow it; padding of a CT becomes air. A stack that is sheared by a tilted
    gantry, or, where that was asked for, one with gaps, is interpolated once onto a regular grid.

    Args:
        series: What `dicom_series.choose` chose.
        reading: How to read it.

    Returns:
        float32 of shape (K, J, I), or uint8 RGB of shape (K, J, I, 3).

    Raises:
        InputError: As `plan`; UnreadableFile also where pixel data is damaged or cut short.
    """
    reading = reading or Reading()
    planned = plan(series, reading)
    stacked, color = planned.stack, planned.unit is Unit.RGB
    shape = (len(stacked.planes), *stacked.planes[0].shape)
    array = np.empty((*shape, 3) if color else shape, np.uint8 if color else np.float32)
    instances: dict[tuple[str, str], tuple[float, float] | None] = {}
    frames: dict[tuple[str, str], tuple[int, ...]] = {}
    source: Dataset | None = None
    start = 0
    caught: set[str] = set()
    used: dict[Path, list[Plane]] = defaultdict(list)  # one file after the other, or by turns
    for plane in stacked.planes:
        used[plane.path].append(plane)
    files = [(path, list(run)) for path, run in groupby(stacked.planes, key=lambda plane: plane.path)]
    requests = [_request(planes) for _, planes in files]
    with Decoder(requests) as decoder:
        for (path, planes), request in zip(files, requests, strict=True):
            with damage_in(path.name):
                dataset = read_dataset(path)
                check_length(dataset, path.name)
                out = array[start : start + len(planes)]
                _read_frames(decoder.frames(request, dataset), dataset, planes, planned.stored_unit, out)
                instance = word(dataset, "SOPClassUID"), word(dataset, "SOPInstanceUID")
                if instance[1] and instance not in instances:
                    instances[instance] = linear(used[path], planned.stored_unit)
                    numbers = sorted({plane.frame + 1 for plane in used[path]})
                    is_part = len(numbers) < frames_in(dataset)
                    frames[instance] = tuple(numbers) if is_part else ()
                caught.update(keyword for keyword, value in CATCHING.items() if word(dataset, keyword) == value)
                if word(dataset.file_meta, "TransferSyntaxUID") in LOSSY:  # whatever the file says
                    caught.add("LossyImageCompression")
                source = source or _header_of(dataset)
            start += len(planes)
    for keyword in caught:
        setattr(source, keyword, CATCHING[keyword])
    if source is not None and planned.modality is Modality.PT and word(source, "DecayCorrection"):
        moment = corrected_to([header for _, header in series.files])  # of which one slice's times tell nothing
        source.DecayCorrectionDateTime = moment and DT(moment)
    step = Step(
        "read",
        {
            "format": "dicom",
            "files": len({plane.path for plane in stacked.planes}),
            "modality_from": planned.modality_from,
            **planned.parameters,
            **replace_nan(array, reading.fill_nan),
        },
    )
    for message in planned.warnings:
        warnings.warn(message, MedfuseWarning, stacklevel=4)  # at the caller of `medfuse.read`
    history: tuple[Step, ...] = (step,)
    if planned.suv:
        array *= np.float32(planned.suv.factor)
        suv = {"factor": planned.suv.factor, "how": planned.suv.how, "from": planned.stored_unit.value}
        history = (*history, Step("suv", suv))
    if stacked.resampled:
        array, straightened = _straightened(array, stacked, planned.unit)
        history = (*history, straightened)
    factor = planned.suv.factor if planned.suv else 1.0
    rescales = tuple((factor * pair[0], factor * pair[1]) for pair in instances.values() if pair)
    origin = Source(
        "dicom",
        source,
        tuple(instances),
        rescales=rescales if len(rescales) == len(instances) else (),
        frames=tuple(frames.values()) if any(frames.values()) else (),
    )
    return Volume(array, stacked.grid, planned.modality, planned.unit, origin, history)


def _straightened(array: NDArray[np.generic], stacked: Stack, unit: Unit) -> tuple[NDArray[np.generic], Step]:
    """The slices on the stack's grid, and what was done to them."""
    outside = value_outside(array, unit)
    positions_mm = [plane.position_mm for plane in stacked.planes]
    straight = straighten(array, positions_mm, stacked.grid, outside)
    parameters = {
        **stacked.resampled,
        "interpolation": "linear, once",
        "shape_before": list(array.shape[:3]),
        "shape": list(stacked.grid.shape),
        "outside": outside,
    }
    return straight, Step("straighten", parameters)


def _request(planes: Sequence[Plane]) -> Request:
    """The frames of one file that its planes are made of."""
    header = planes[0].header
    return Request(
        planes[0].path,
        tuple(index for index, _ in groupby(planes, key=lambda plane: plane.frame)),
        word(header.file_meta, "TransferSyntaxUID"),
        (count(header, "Rows"), count(header, "Columns")),
        frames_in(header),
    )


def _read_frames(
    decoded: Iterator[NDArray[np.generic]],
    dataset: Dataset,
    planes: Sequence[Plane],
    unit: Unit,
    out: NDArray[np.generic],
) -> None:
    """Put the decoded frames of one file into `out`, one plane after the other.

    Raises:
        UnreadableFile: The file has another number or size of frames than its header says.
        UnsupportedImage: Colour has more than 8 bits, or values are beyond what can be kept.
    """
    name = planes[0].path.name
    if not any(keyword in dataset for keyword in PIXELS[:3]):
        raise UnreadableFile(f"expected Pixel Data in {name}, found none", "Export the series again")
    frames = [(index, list(tiles)) for index, tiles in groupby(planes, key=lambda plane: plane.frame)]
    done = 0
    for (_, tiles), stored in zip(frames, decoded, strict=False):
        for plane in tiles:
            (row, column), (rows, columns) = plane.tile, plane.shape
            pixels = stored[row : row + rows, column : column + columns] if _is_tile(plane, dataset) else stored
            if unit is Unit.RGB:
                values = to_rgb(pixels, dataset, name)
            else:
                values = within_range(rescaled(pixels, plane, unit), pixels, plane, unit)
            if values.shape != out[done].shape:
                raise UnreadableFile(
                    f"expected an image of shape {out[done].shape} in {name}, found {values.shape}",
                    "Export the series again",
                )
            out[done] = values
            done += 1
    if done < len(planes):
        raise UnreadableFile(f"expected {len(planes)} frames in {name}, found {done}", "Export the series again")


def _is_tile(plane: Plane, dataset: Dataset) -> bool:
    """Whether a plane is only a part of its frame's pixels."""
    return plane.shape != (count(dataset, "Rows"), count(dataset, "Columns"))


def _header_of(dataset: Dataset) -> Dataset:
    """The data set without pixels, overlays and private elements."""
    for keyword in PIXELS:
        if keyword in dataset:
            del dataset[keyword]
    for tag in [tag for tag in list(dataset.keys()) if 0x6000 <= tag.group <= 0x60FF]:
        del dataset[tag]
    dataset.remove_private_tags()
    return dataset
