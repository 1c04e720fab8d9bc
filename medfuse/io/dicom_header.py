"""Read DICOM headers and their attributes without trusting them: everything malformed ends in a `MedfuseError`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset, config
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import DA, TM, PersonName

from medfuse.errors import MedfuseError, MissingAttribute, UnreadableFile
from medfuse.io import limits
from medfuse.io.deflate import BARE, inflated
from medfuse.process import shared

#: What is read of every file before one series is chosen, as tags: pydicom would look keywords up anew for each file.
#: No patient's name leaves this package.
TAGS = [
    Tag(one)
    for one in (
        *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName"),
        *("Modality", "ImageType", "SeriesNumber", "SeriesDescription", "Units", "SUVType", "FrameOfReferenceUID"),
        *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation"),
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
        *("RescaleType", "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *("RealWorldValueMappingSequence", "SliceThickness", "SpacingBetweenSlices", "DetectorInformationSequence"),
        *("FrameIncrementPointer", "SliceVector", "InstanceNumber", "AcquisitionNumber", "EchoTime", "EchoNumbers"),
        *("ComplexImageComponent", "DiffusionBValue", "DiffusionGradientOrientation", "InversionTime", "FlipAngle"),
        *("ConvolutionKernel", "KVP", "SequenceName", "TemporalPositionIdentifier", "TriggerTime", "ContentLabel"),
        *("FrameReferenceTime", "AcquisitionTime", "ContentTime", "DimensionIndexSequence", "Manufacturer"),
        *(0x00290010, 0x00291010),  # Siemens CSA header, which describes mosaics
        *("PixelRepresentation", "BitsStored", "HighBit", "PixelPaddingValue", "PixelPaddingRangeLimit"),
        *("DecayCorrection", "CorrectedImage", "DecayFactor", "ActualFrameDuration", "SeriesDate", "SeriesTime"),
        *("AcquisitionDate", "TimezoneOffsetFromUTC", "PatientWeight", "RadiopharmaceuticalInformationSequence"),
        *("ContentDate", "NumberOfSlices", "ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber"),
        # GE's and Philips' PET elements (`dicom_suv`), in the first blocks that their creators may have reserved
        *(0x00090000 + at for block in (0x10, 0x11, 0x12) for at in (block, (block << 8) + 0x0D)),
        *(0x70530000 + at for block in (0x10, 0x11, 0x12) for at in (block, block << 8, (block << 8) + 0x09)),
    )
]


@shared
@contextmanager
def leniently() -> Iterator[None]:
    """Silence pydicom about files that break a rule but can be understood. Also a decorator."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)


#: A context in which a source's illegal name or identifier stays as it is.
unvalidated = shared(config.disable_value_validation)


@contextmanager
def damage_in(name: str) -> Iterator[None]:
    """Turn whatever pydicom and its decoders raise on damaged content into `UnreadableFile`.

    Args:
        name: Name of the file. The library's own words are left out, for they may quote the header.
    """
    try:
        yield
    except MedfuseError:
        raise
    except Exception as error:
        raise UnreadableFile(
            f"expected a whole DICOM file, found {name} truncated or damaged ({type(error).__name__})",
            "Export or copy the file again",
        ) from error


def looks_like_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes are those of a DICOM file (PS3.10 section 7.1), or of a bare data set.

    Files from before DICOM part 10 lack the preamble; they begin with an element of group 0002 or 0008.
    """
    return start[128:132] == b"DICM" or start[:2] in (b"\x02\x00", b"\x08\x00")


def read_header(path: Path) -> Dataset | None:
    """The `TAGS` of a DICOM file, or None if it is none, which a bare data set must prove by being whole.

    Raises:
        UnreadableFile: The file is DICOM, but damaged.
        OSError: The file cannot be opened.
    """
    with path.open("rb") as file:
        start = file.read(132)
        if not looks_like_dicom(start):
            return None
        try:
            with damage_in(path.name):
                return read_open(file, path.name, specific_tags=TAGS, stop_before_pixels=True)
        except UnreadableFile:
            if start[128:] == b"DICM":
                raise
            return None


def read_dataset(path: Path, **options: object) -> Dataset:
    """`pydicom.dcmread` that also takes a bare data set, whose encoding is then what pydicom found it to be.

    Raises:
        InvalidDicomError: It is not DICOM after all.
        UnreadableFile: It unpacks to too much.
    """
    with path.open("rb") as file:
        return read_open(file, path.name, **options)


def read_open(file: BinaryIO, name: str, **options: object) -> Dataset:
    """`read_dataset` of an open file, for who has begun to read it."""
    file.seek(0)
    bare = file.read(132)[128:] != b"DICM"
    file.seek(0 if bare else 132)
    _check_inflated(file, name)
    file.seek(0)
    dataset = pydicom.dcmread(file, force=bare, **options)
    if bare and "SOPClassUID" not in dataset:
        raise InvalidDicomError
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    _fill_from_shared(dataset)
    return dataset


def _fill_from_shared(header: Dataset) -> None:
    """Add what images converted from single frames keep for all of them, such as Units (PS3.3 section C.7.6.16.2)."""
    for groups in header.get("SharedFunctionalGroupsSequence") or []:
        for kept in groups.get("UnassignedSharedConvertedAttributesSequence") or []:
            header.update({tag: kept.get_item(tag) for tag in TAGS if tag in kept and tag not in header})


def _check_inflated(file: BinaryIO, name: str) -> None:
    """Refuse a deflated data set (PS3.5 annex A.5) that is damaged or too large, before it is unpacked in memory."""
    meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    if inflated(file, limits.MAX_INFLATED_BYTES, BARE)[0] > limits.MAX_INFLATED_BYTES:
        raise UnreadableFile(
            f"expected at most {limits.MAX_INFLATED_BYTES} bytes once unpacked, found more in {name}",
            "Check the file; more can be let in by setting medfuse.io.limits.MAX_INFLATED_BYTES",
        )


def words(header: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of an attribute as text, stripped; empty where it is absent, empty or cannot be decoded."""
    try:
        value = header.get(keyword)
        single = value is None or isinstance(value, str | PersonName) or not hasattr(value, "__iter__")
        values = (value,) if single else value
        return tuple(str(item).strip() for item in values if item is not None)
    except Exception:
        return ()


def word(header: Dataset, keyword: str) -> str:
    """The first value of an attribute as text; "" where there is none."""
    return next(iter(words(header, keyword)), "")


def numbers(header: Dataset, keyword: str, count: int, name: str) -> NDArray[np.float64]:
    """The `count` finite numbers that an attribute must hold.

    Args:
        header: A data set, or an item of a functional group.
        keyword: The attribute's keyword.
        count: How many numbers.
        name: Name of the file, for the message.

    Raises:
        MissingAttribute: The attribute is absent or empty.
        UnreadableFile: It holds something else than `count` finite numbers.
    """
    found = words(header, keyword)
    if not any(found):
        raise MissingAttribute(f"expected {keyword} in {name}, found none", "Export the series again with full headers")
    try:
        values = np.array(found, dtype=np.float64)
    except ValueError:
        values = np.array([])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise UnreadableFile(
            f"expected {count} finite numbers as {keyword} in {name}, found something else",
            "Export the series again; the header is damaged",
        )
    return values


def moment_of(date: str, time: str) -> datetime | None:
    """A date (DA) and a time of day (TM) as one moment; None where one is empty or malformed."""
    try:
        day, clock = DA(date), TM(time.replace(":", "")[: len("HHMMSS.FFFFFF")])
    except (ValueError, TypeError, OverflowError):
        return None
    return None if day is None or clock is None else datetime.combine(day, clock)


def frames_in(header: Dataset) -> int:
    """How many frames an image has, at least 1."""
    return max(1, count(header, "NumberOfFrames", 1))


def count(header: Dataset, keyword: str, default: int = 0) -> int:
    """An attribute as a whole number; `default` where it is absent or is not one."""
    try:
        return int(word(header, keyword))
    except ValueError:
        return default
