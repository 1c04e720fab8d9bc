"""A derived volume → single-frame DICOM images, one for each slice.

Colour becomes Secondary Capture Image Storage (PS3.3 section A.8.1) with the attributes of the Image Plane and Frame of
Reference modules added, which makes it a Standard Extended SOP Class (PS3.2 section 7.3.1). Grey becomes MR Image
Storage (PS3.3 section A.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import MRImageStorage
from pydicom.valuerep import DS

from medfuse.errors import OutputError
from medfuse.io.dicom_derived import (
    Result,
    along_normal,
    decimal,
    describe,
    encoded,
    measures,
    normal,
    orientation,
    position,
    save,
    set_rgb,
    update,
)
from medfuse.io.dicom_header import word
from medfuse.io.dicom_provenance import SourceReferences, carry
from medfuse.volume import Modality, Volume

#: Largest stored value of a fused grey image, 12 bits.
FUSED_MAX = 4095
#: Share of voxels, in percent, that the window of a converted MR leaves black and white at either end.
WINDOW_TAIL_PERCENT = 0.5
#: Share of the range of an MR's values, background and as many voxels at either end left out, that a step may be.
LARGEST_STEP = 0.002
MR_ACQUISITION = (
    *("ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "SequenceName", "RepetitionTime"),
    *("EchoTime", "EchoTrainLength", "EchoNumbers", "InversionTime", "TriggerTime", "FlipAngle", "NumberOfAverages"),
    *("MagneticFieldStrength", "ImagingFrequency", "ImagedNucleus", "PixelBandwidth", "ReceiveCoilName"),
    *("AcquisitionDate", "AcquisitionTime", "AcquisitionNumber", "ContrastBolusAgent", "ProtocolName"),
)
#: MR attributes of type 1 and 2 (PS3.3 section C.8.3.1) where the source does not give them: "research mode", or empty.
MR_UNKNOWN: dict[str, str | None] = {
    **{"ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": None, "MRAcquisitionType": None},
    **{"RepetitionTime": None, "EchoTime": None, "EchoTrainLength": None, "PatientPosition": None},
}


@dataclass(frozen=True)
class Storage:
    """How the values of a grey volume are stored: ``value = slope * stored + intercept``.

    Args:
        dtype: Little-endian integers of 16 bits.
        bits: Bits stored.
        attributes: What the image says about it: window, and the rescaling where values are to be restored by it.
        slope: Value of one step.
        intercept: Value of stored 0.
    """

    dtype: str
    bits: int
    attributes: dict[str, Any]
    slope: float = 1.0
    intercept: float = 0.0

    def stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values as integers, rounded to the nearest."""
        return np.rint((values.astype(np.float64) - self.intercept) / self.slope).astype(self.dtype)


def write_slices(result: Result, folder: Path) -> list[Path]:
    """Write a volume as one DICOM series, a file for each slice.

    Files and Instance Numbers ascend along the normal of the image plane (row direction × column direction), whatever
    the handedness of the grid, as readers sort slices that way. Grey fused values 0-1 become stored 0-4095, for display
    only. An MR's whole numbers are kept; others are scaled to 16 bits, with the rescaling that restores them to half a
    step.

    Args:
        result: The volume, colour or grey, and how it is to be named and numbered.
        folder: An existing, empty folder.

    Returns:
        The files, ``fused-0001.dcm`` and so on.

    Raises:
        OutputError: A file cannot be written, or 16 bits from the lowest to the highest value would lose the others.
    """
    storage = None if result.volume.is_color else storage_of(result.volume)
    dataset = _color_template(result) if storage is None else _grey_template(result)
    describe(dataset, result)
    return save_slices(dataset, result, storage, folder)


def save_slices(dataset: Dataset, result: Result, storage: Storage | None, folder: Path) -> list[Path]:
    """Add pixels and places to an image that has all else, and save it for each slice.

    Args:
        dataset: The image, which is altered.
        result: What is written.
        storage: How grey values are stored; None for colour, of which the image says it already.
        folder: As for `write_slices`, as are the files.

    Raises:
        OutputError: A file cannot be written.
    """
    volume = result.volume
    if storage is not None:
        _set_grey(dataset, volume, storage)
    for shared in (orientation(volume.grid), measures(volume.grid)):
        dataset.update(shared)
    dataset = encoded(dataset)
    references = SourceReferences(volume)
    paths = []
    for number, k in enumerate(along_normal(volume.grid), start=1):
        pixels = volume.array[k] if storage is None else storage.stored(volume.array[k])
        _place(dataset, result, k, number)
        references.set_on(dataset, k)
        dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        paths.append(save(dataset, folder / f"fused-{number:04d}.dcm"))
    return paths


def storage_of(volume: Volume) -> Storage:
    """How a grey volume is stored as integers."""
    low, high = float(volume.array.min()), float(volume.array.max())
    if volume.modality is Modality.FUSED:
        return Storage("<u2", 12, display_window(FUSED_MAX), slope=1 / FUSED_MAX)
    attributes = {"VOILUTFunction": "LINEAR_EXACT", **robust_window(volume.array)}
    whole = all(np.array_equal(plane, np.rint(plane)) for plane in volume.array)
    if whole and low >= 0 and high < 2**16:
        return Storage("<u2", 12 if high < 2**12 else 16, attributes)
    if whole and low >= -(2**15) and high < 2**15:
        return Storage("<i2", 16, attributes)
    slope, intercept = decimal((high - low) / (2**16 - 1) or 1), decimal(low)
    _check_step(float(slope), volume.array)
    rescale = {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "US"}  # US: unspecified
    return Storage("<u2", 16, {**attributes, **rescale}, float(slope), float(intercept))


def _check_step(step: float, array: NDArray[Any]) -> None:
    """Refuse steps so large, for the sake of a few voxels, that little would be left of the others."""
    lowest = array.min()
    found = array[array > lowest]
    if found.size == 0:
        return
    lower, upper = np.percentile(found, (WINDOW_TAIL_PERCENT, 100 - WINDOW_TAIL_PERCENT), overwrite_input=True)
    share = step / float(upper - lower or upper - lowest)
    if share > LARGEST_STEP:
        raise OutputError(
            f"expected values that 16 bits can hold, found some so far out that a step would be {share:.2g} of the "
            f"range of {100 - 2 * WINDOW_TAIL_PERCENT:g} % of the others",
            "Write it as NIfTI, which keeps them, or correct the outlying voxels",
        )


def display_window(largest: int) -> dict[str, DS]:
    """The linear window that shows 0 black and the largest stored value white (PS3.3 section C.11.2.1.2.1)."""
    return {"WindowCenter": decimal((largest + 1) / 2), "WindowWidth": decimal(largest + 1)}


def robust_window(array: NDArray[Any]) -> dict[str, Any]:
    """Centre and width, in values after rescaling, that leave the extremes out (PS3.3 section C.11.2.1.3.2)."""
    sample = array.flat[:: max(1, array.size // 1_000_000)]
    low, high = np.percentile(sample, (WINDOW_TAIL_PERCENT, 100 - WINDOW_TAIL_PERCENT))
    return {"WindowCenter": decimal((low + high) / 2), "WindowWidth": decimal(high - low or 1)}


def _color_template(result: Result) -> Dataset:
    """A Secondary Capture image with everything but what describes origin, geometry and slice."""
    from highdicom.sc import SCImage

    _, column, row = result.volume.grid.direction.T  # along which j and i increase
    dataset = SCImage(
        pixel_array=result.volume.array[0],
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=(_toward(row), _toward(column)),
        **result.identity,
    )
    set_rgb(dataset)
    return dataset


def _grey_template(result: Result) -> Dataset:
    """An MR image with everything but what describes origin, pixels, geometry and slice."""
    from highdicom.base import SOPClass

    dataset = SOPClass(sop_class_uid=MRImageStorage, modality="MR", **result.identity)
    update(dataset, MR_UNKNOWN)
    header = result.volume.source.header if result.acquired is None else result.acquired
    if header is not None and word(header, "SOPClassUID") == MRImageStorage:
        carry(header, dataset, MR_ACQUISITION)
    return dataset


def _set_grey(dataset: Dataset, volume: Volume, storage: Storage) -> None:
    """Set how grey pixels are stored, and those of the first slice."""
    _, dataset.Rows, dataset.Columns = volume.grid.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 16
    dataset.BitsStored = storage.bits
    dataset.HighBit = storage.bits - 1
    dataset.PixelRepresentation = int(storage.dtype == "<i2")
    update(dataset, storage.attributes)
    dataset.PixelData = storage.stored(volume.array[0]).tobytes()


def _place(dataset: Dataset, result: Result, k: int, number: int) -> None:
    """Set what tells slice `k` from the others, its pixels and sources apart."""
    grid = result.volume.grid
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = result.sop_instance_uid(number)
    dataset.InstanceNumber = number
    if "ImageIndex" in dataset:  # of PET
        dataset.ImageIndex = number
    dataset.update(position(grid, k))
    dataset.SliceLocation = decimal(normal(grid) @ grid.points_mm([(k, 0, 0)])[0])


def _toward(direction: NDArray[np.float64]) -> str:
    """The letter of the side of the patient that a direction points to most (PS3.3 section C.7.6.1.1.1)."""
    axis = int(np.abs(direction).argmax())
    return ("LR", "PA", "HF")[axis][int(direction[axis] < 0)]
