"""One DICOM series to a `Volume`: `plan` decides everything from the headers, `read_series` then reads the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, iter_pixels
from pydicom.uid import UID, NuclearMedicineImageStorage

from medfuse.errors import SeriesError, UnreadableFile, UnsupportedImage
from medfuse.grid import Grid
from medfuse.io.dicom_header import count, damage_in, leniently, numbers, read_dataset, word, words
from medfuse.io.dicom_planes import Plane, group, planes_of, stack
from medfuse.io.dicom_series import Series
from medfuse.io.limits import check_voxels
from medfuse.volume import Modality, Source, Step, Unit, Volume

#: PET Units (0054,1001), PS3.3 section C.8.9.1.1.3.
PET_UNITS = {"GML": Unit.SUV, "BQML": Unit.BQML, "CNTS": Unit.COUNTS}
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
#: Elements that hold pixels or are only of use with them.
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "IconImageSequence")


@dataclass(frozen=True)
class Plan:
    """What a series will be as a volume.

    Args:
        planes: The images in slice order.
        grid: The grid that they form.
        modality: What made them.
        modality_from: What said so: "argument" or "header".
        unit: What a voxel's number will mean.
    """

    planes: tuple[Plane, ...]
    grid: Grid
    modality: Modality
    modality_from: str
    unit: Unit


@leniently()
def plan(series: Series, modality: Modality | None = None) -> Plan:
    """Decide from the headers alone whether and how a series becomes a volume.

    Args:
        series: What `dicom_series.choose` chose.
        modality: Overrides what the headers say.

    Raises:
        SeriesError: The images do not form one regular stack, or belong to several patients.
        MissingAttribute: A header lacks something that must not be guessed.
        UnsupportedImage: A kind of image that is not read.
        UnreadableFile: A header is damaged.
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
    if len(series.files) > 1 and any(count(header, "NumberOfFrames", 1) > 1 for _, header in series.files):
        raise SeriesError(
            f"expected one multi-frame file in the series, found {len(series.files)} files",
            "Give the path of one of the files",
        )
    planes: list[Plane] = []
    for path, header in series.files:
        with damage_in(path.name):
            planes.extend(planes_of(path, header))
    ordered, grid = stack(planes)
    check_voxels(grid.shape, "the series")
    chosen = modality or series.modality
    units = set()
    for plane in ordered:
        with damage_in(plane.path.name):
            units.add(unit := _unit(plane, chosen))
            _slope_and_intercept(plane, unit)
    if len(units) > 1:
        raise SeriesError(
            f"expected one unit in the series, found {', '.join(sorted(unit.value for unit in units))}",
            "Export images of one unit as a series of their own",
        )
    return Plan(tuple(ordered), grid, chosen, "argument" if modality else "header", units.pop())


def _check_kind(header: Dataset, name: str) -> None:
    """Refuse the kinds of images that are not read."""
    photometric = word(header, "PhotometricInterpretation")
    syntax = UID(word(header.file_meta, "TransferSyntaxUID"))
    try:
        readable = get_decoder(syntax).is_available
    except NotImplementedError:
        readable = False
    if "MOSAIC" in words(header, "ImageType"):
        raise UnsupportedImage(
            f"expected one slice in each image, found a Siemens mosaic in {name}",
            "Convert it with dcm2niix, or export the series as single slices",
        )
    if word(header, "SOPClassUID") == NuclearMedicineImageStorage:
        raise UnsupportedImage(
            f"expected CT, MR, PET or secondary capture images, found a Nuclear Medicine image in {name}",
            "Convert it to NIfTI first",
        )
    if photometric != "MONOCHROME2" and photometric not in COLORS:
        raise UnsupportedImage(
            f"expected MONOCHROME2, RGB, YBR or palette colour, found {photometric or 'no photometric interpretation'} "
            f"in {name}",
            "Convert the images to MONOCHROME2 first",
        )
    if not readable:
        raise UnsupportedImage(
            f"expected a transfer syntax that can be decoded here, found {syntax.name or 'none'} in {name}",
            "Decompress the images first, e.g. with dcmdjpeg or gdcmconv --raw",
        )


def _unit(plane: Plane, modality: Modality) -> Unit:
    """What the number of a voxel means, from the header."""
    header = plane.header
    if word(header, "PhotometricInterpretation") in COLORS:
        return Unit.RGB
    if modality is Modality.CT:
        values = group(header, plane.frame, "PixelValueTransformationSequence")
        return Unit.HU if word(values, "RescaleType") in ("", "HU") else Unit.ARBITRARY
    if modality in (Modality.PT, Modality.NM):
        unit = PET_UNITS.get(word(header, "Units"), Unit.ARBITRARY)
        by_weight = word(header, "SUVType") in ("", "BW")
        return unit if by_weight or unit is not Unit.SUV else Unit.ARBITRARY
    return Unit.ARBITRARY


@leniently()
def read_series(series: Series, modality: Modality | None = None) -> Volume:
    """Read a series; values are rescaled slice by slice with each image's own slope and intercept.

    Pixel padding is left as the values that it has.

    Args:
        series: What `dicom_series.choose` chose.
        modality: Overrides what the headers say.

    Returns:
        float32 of shape (K, J, I), or uint8 RGB of shape (K, J, I, 3).

    Raises:
        InputError: As `plan`; UnreadableFile also where pixel data is damaged or cut short.
    """
    planned = plan(series, modality)
    color = planned.unit is Unit.RGB
    array = np.empty((*planned.grid.shape, 3) if color else planned.grid.shape, np.uint8 if color else np.float32)
    instances: list[tuple[str, str]] = []
    source: Dataset | None = None
    start = 0
    for path, run in groupby(planned.planes, key=lambda plane: plane.path):
        planes = list(run)
        with damage_in(path.name):
            dataset = read_dataset(path)
            _read_frames(dataset, planes, planned.unit, array[start : start + len(planes)])
            instances.append((word(dataset, "SOPClassUID"), word(dataset, "SOPInstanceUID")))
            source = source or _header_of(dataset)
        start += len(planes)
    step = Step("read", {"format": "dicom", "files": len(instances), "modality_from": planned.modality_from})
    return Volume(
        array, planned.grid, planned.modality, planned.unit, Source("dicom", source, tuple(instances)), (step,)
    )


def _read_frames(dataset: Dataset, planes: Sequence[Plane], unit: Unit, out: NDArray[np.generic]) -> None:
    """Decode the frames of one file into `out`, one plane after the other.

    Raises:
        UnreadableFile: The file has another number or size of frames than its header says.
        UnsupportedImage: Colour has more than 8 bits.
    """
    name = planes[0].path.name
    if "PixelData" not in dataset:
        raise UnreadableFile(f"expected Pixel Data in {name}, found none", "Export the series again")
    done = 0
    for plane, stored, values in zip(
        planes, iter_pixels(dataset, indices=[plane.frame for plane in planes]), out, strict=False
    ):
        frame = _color(stored, dataset, name) if unit is Unit.RGB else _rescaled(stored, plane, unit)
        if frame.shape != values.shape:
            raise UnreadableFile(
                f"expected an image of shape {values.shape} in {name}, found {frame.shape}", "Export the series again"
            )
        values[...] = frame
        done += 1
    if done < len(planes):
        raise UnreadableFile(f"expected {len(planes)} frames in {name}, found {done}", "Export the series again")


def _slope_and_intercept(plane: Plane, unit: Unit) -> tuple[float, float] | None:
    """Rescale slope and intercept of a plane, or None where the stored values are the values.

    Raises:
        MissingAttribute: One is absent, though the unit rests on it.
        UnsupportedImage: The slope is zero, or values would overflow.
    """
    name, values = plane.path.name, group(plane.header, plane.frame, "PixelValueTransformationSequence")
    if unit is Unit.RGB or "ModalityLUTSequence" in values:
        return None
    if unit is Unit.ARBITRARY and not word(values, "RescaleSlope"):
        return None
    slope = float(numbers(values, "RescaleSlope", 1, name)[0])
    intercept = float(numbers(values, "RescaleIntercept", 1, name)[0])
    if slope == 0 or max(abs(slope), abs(intercept)) * 2.0**32 > float(np.finfo(np.float32).max):
        raise UnsupportedImage(
            f"expected a rescale slope and intercept that keep values apart, found {slope} and {intercept} in {name}",
            "Export the series again; the header is damaged",
        )
    return slope, intercept


def _rescaled(stored: NDArray[np.generic], plane: Plane, unit: Unit) -> NDArray[np.generic]:
    """Stored values after the modality transformation (PS3.3 section C.11.1), in float64 where there is one."""
    values = group(plane.header, plane.frame, "PixelValueTransformationSequence")
    if "ModalityLUTSequence" in values:
        looked_up: NDArray[np.generic] = apply_modality_lut(stored, values)
        return looked_up
    rescale = _slope_and_intercept(plane, unit)
    return stored if rescale is None else stored.astype(np.float64) * rescale[0] + rescale[1]


def _color(stored: NDArray[np.generic], dataset: Dataset, name: str) -> NDArray[np.generic]:
    """Stored values as RGB of 8 bits; YBR was already converted on decoding."""
    if word(dataset, "PhotometricInterpretation") == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        if stored.dtype == np.uint16:
            stored = np.right_shift(stored, 8, dtype=np.uint16).astype(np.uint8)
    if stored.dtype != np.uint8:
        raise UnsupportedImage(
            f"expected colour of 8 bits a sample, found {stored.dtype} in {name}", "Convert the images to 8-bit RGB"
        )
    return stored[..., :3]


def _header_of(dataset: Dataset) -> Dataset:
    """The data set without pixels, overlays and private elements."""
    for keyword in PIXELS:
        if keyword in dataset:
            del dataset[keyword]
    for tag in [tag for tag in list(dataset._dict) if 0x6000 <= tag.group <= 0x60FF]:
        del dataset[tag]
    dataset.remove_private_tags()
    return dataset
