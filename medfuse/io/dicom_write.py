"""A derived volume → one DICOM series of single-frame images, in the geometry of the volume's grid.

Colour becomes Secondary Capture Image Storage (PS3.3 section A.8.1) with the attributes of the Image Plane and Frame of
Reference modules added, which makes it a Standard Extended SOP Class (PS3.2 section 7.3.1). Grey becomes MR Image
Storage (PS3.3 section A.4). Patient and study are those of the structural source; series, equipment and instances are
new. What is said about where the images come from is written by `medfuse.io.dicom_provenance`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DA, DS, TM

from medfuse._version import __version__
from medfuse.errors import OutputError
from medfuse.grid import Grid
from medfuse.io.dicom_header import count, leniently, word, words
from medfuse.io.dicom_provenance import SourceReferences, carry, describe_origin, series_description
from medfuse.volume import Modality, Volume

#: Largest stored value of a fused grey image, 12 bits.
FUSED_MAX = 4095
#: Share of voxels, in percent, that the window of a converted MR leaves black and white at either end.
WINDOW_TAIL_PERCENT = 0.5
#: Largest value of the VR IS (PS3.5 section 6.2).
IS_MAX = 2**31 - 1

PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize"),
    *("PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    *("LongitudinalTemporalInformationModified", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("StudyDescription", "ReferringPhysicianName"),
)
SERIES = ("BodyPartExamined", "Laterality", "PatientPosition")
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
#: Body parts of which there is one, where Laterality must not be present (PS3.16 annex L).
UNPAIRED = (
    *("ABDOMEN", "ABDOMENPELVIS", "AORTA", "BLADDER", "BRAIN", "CEREBELLUM", "CERVIX", "CHEST", "CHESTABDOMEN"),
    *("CHESTABDPELVIS", "CIRCLEOFWILLIS", "COCCYX", "COLON", "CORONARYARTERY", "CSPINE", "CTSPINE", "DUODENUM"),
    *("ESOPHAGUS", "FACE", "GALLBLADDER", "HEAD", "HEADNECK", "HEART", "ILEUM", "JAW", "JEJUNUM", "LARYNX"),
    *("LIVER", "LSPINE", "LSSPINE", "MAXILLA", "MEDIASTINUM", "MOUTH", "NECK", "NECKCHEST", "NECKCHESTABDOMEN"),
    *("NECKCHESTABDPELV", "NOSE", "PANCREAS", "PELVIS", "PENIS", "PHARYNX", "PROSTATE", "RECTUM", "SKULL", "SPINE"),
    *("SPLEEN", "SSPINE", "STERNUM", "STOMACH", "THYMUS", "THYROID", "TLSPINE", "TONGUE", "TRACHEA", "TSPINE"),
    *("URETHRA", "UTERUS", "VAGINA", "VULVA", "WHOLEBODY"),
)


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


def write_dicom(volume: Volume, folder: Path, nth: int = 1) -> list[Path]:
    """Write a volume as one DICOM series, a file for each slice.

    Files and Instance Numbers ascend along the normal of the image plane (row direction × column direction), whatever
    the handedness of the grid, as readers sort slices that way. Grey fused values 0-1 become stored 0-4095, for display
    only. An MR's whole numbers are kept; others are scaled to 16 bits, with the rescaling that restores them.

    Args:
        volume: Colour of any modality, grey `Modality.FUSED` with values in [0, 1], or a grey MR.
        folder: An existing, empty folder.
        nth: Which of the series that one run makes of a source, from 1; so often is 1000 added to the source's Series
            Number.

    Returns:
        The files, ``fused-0001.dcm`` and so on.

    Raises:
        OutputError: A file cannot be written, or DICOM has no place for the volume here (grey CT, PET, SPECT).
        ValueError: A grey fused volume has values outside [0, 1].
    """
    with leniently(), config.disable_value_validation():  # a source's illegal name or identifier stays as it is
        storage = None if volume.is_color else _storage(volume)
        dataset = _color_template(volume, nth) if storage is None else _grey_template(volume, nth, storage)
        _describe(dataset, volume)
        dataset = _encoded(dataset)
        references = SourceReferences(volume)
        paths = []
        for number, k in enumerate(_along_normal(volume.grid), start=1):
            pixels = volume.array[k] if storage is None else storage.stored(volume.array[k])
            _place(dataset, volume.grid, k, number)
            references.set_on(dataset, k)
            dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
            paths.append(_save(dataset, folder / f"fused-{number:04d}.dcm"))
    return paths


def _encoded(dataset: Dataset) -> Dataset:
    """The same data set with its elements encoded, which pydicom then writes as they are: once instead of per slice."""
    with BytesIO() as buffer:
        dataset.save_as(buffer, enforce_file_format=True)
        buffer.seek(0)
        return dcmread(buffer)


def _save(dataset: Dataset, path: Path) -> Path:
    try:
        dataset.save_as(path, enforce_file_format=True, overwrite=False)
    except OSError as error:
        raise OutputError(
            f"expected to write {path.name}, found: {error.strerror or type(error).__name__}",
            "Check that the output folder exists, is empty and can be written to, and that the disk has space",
        ) from error
    return path


def _storage(volume: Volume) -> Storage:
    """How a grey volume is to be stored; the checks of what can be."""
    low, high = float(volume.array.min()), float(volume.array.max())
    if volume.modality is Modality.FUSED:
        if low < 0 or high > 1:
            raise ValueError(f"expected fused values in [0, 1], got {low:g} to {high:g}")
        # The linear window of PS3.3 section C.11.2.1.2.1 that shows 0 black and FUSED_MAX white.
        window = {"WindowCenter": _ds((FUSED_MAX + 1) / 2), "WindowWidth": _ds(FUSED_MAX + 1)}
        return Storage("<u2", 12, window, slope=1 / FUSED_MAX)
    if volume.modality is not Modality.MR:
        raise OutputError(
            f"expected a fused volume, a colour one or an MR to write as DICOM, found grey {volume.modality.value}",
            "Write it as NIfTI instead",
        )
    attributes = {"VOILUTFunction": "LINEAR_EXACT", **_robust_window(volume.array)}
    whole = all(np.array_equal(plane, np.rint(plane)) for plane in volume.array)
    if whole and low >= 0 and high < 2**16:
        return Storage("<u2", 12 if high < 2**12 else 16, attributes)
    if whole and low >= -(2**15) and high < 2**15:
        return Storage("<i2", 16, attributes)
    slope, intercept = _ds((high - low) / (2**16 - 1) or 1), _ds(low)
    rescale = {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "US"}  # US: unspecified
    return Storage("<u2", 16, {**attributes, **rescale}, float(slope), float(intercept))


def _robust_window(array: NDArray[Any]) -> dict[str, Any]:
    """Centre and width, in values after rescaling, that leave the extremes out (PS3.3 section C.11.2.1.3.2)."""
    sample = array.flat[:: max(1, array.size // 1_000_000)]
    low, high = np.percentile(sample, (WINDOW_TAIL_PERCENT, 100 - WINDOW_TAIL_PERCENT))
    return {"WindowCenter": _ds((low + high) / 2), "WindowWidth": _ds(high - low or 1)}


def _color_template(volume: Volume, nth: int) -> Dataset:
    """A Secondary Capture image with everything but what describes origin, geometry and slice."""
    from highdicom.sc import SCImage

    _, column, row = volume.grid.direction.T  # along which j and i increase
    dataset = SCImage(
        pixel_array=volume.array[0],
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=(_toward(row), _toward(column)),
        **_identity(volume, nth),
    )
    dataset.ConversionType = "WSD"
    dataset.ICCProfile = _srgb_profile()
    dataset.ColorSpace = "SRGB"
    return dataset


def _grey_template(volume: Volume, nth: int, storage: Storage) -> Dataset:
    """An MR image with everything but what describes origin, geometry and slice."""
    from highdicom.base import SOPClass

    dataset = SOPClass(sop_class_uid=MRImageStorage, modality="MR", **_identity(volume, nth))
    _update(dataset, MR_UNKNOWN)
    header = volume.source.header
    if header is not None and word(header, "SOPClassUID") == MRImageStorage:
        carry(header, dataset, MR_ACQUISITION)
    _, dataset.Rows, dataset.Columns = volume.grid.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 16
    dataset.BitsStored = storage.bits
    dataset.HighBit = storage.bits - 1
    dataset.PixelRepresentation = int(storage.dtype == "<i2")
    _update(dataset, storage.attributes)
    dataset.PixelData = storage.stored(volume.array[0]).tobytes()
    return dataset


def _identity(volume: Volume, nth: int) -> dict[str, Any]:
    """The arguments that all of highdicom's SOP classes take."""
    header = volume.source.header or Dataset()
    return {
        "study_instance_uid": word(header, "StudyInstanceUID") or generate_uid(prefix=None),
        "series_instance_uid": generate_uid(prefix=None),
        "series_number": min(max(count(header, "SeriesNumber"), 0) + 1000 * nth, IS_MAX),
        "series_description": series_description(volume),
        "sop_instance_uid": generate_uid(prefix=None),
        "instance_number": 1,
        "manufacturer": "medfuse",
        "manufacturer_model_name": "medfuse",
        "software_versions": __version__,
        "transfer_syntax_uid": ExplicitVRLittleEndian,
    }


def _describe(dataset: Dataset, volume: Volume) -> None:
    """Set what all slices share beside their pixels' form: patient, study, series, dates, origin, geometry."""
    header = volume.source.header
    if header is not None:
        carry(header, dataset, (*PATIENT_AND_STUDY, *SERIES))
    _settle_conditions(dataset)
    now = datetime.now()
    for event in ("Series", "Content", "InstanceCreation"):
        _update(dataset, {f"{event}Date": DA(now.date()), f"{event}Time": TM(now.time())})
    dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    dataset.BurnedInAnnotation = "NO"
    describe_origin(dataset, volume)

    grid = volume.grid
    thickness, row_spacing, column_spacing = grid.spacing_mm
    _, column, row = grid.direction.T
    dataset.ImageOrientationPatient = _ds_list((*row, *column))
    dataset.PixelSpacing = _ds_list((row_spacing, column_spacing))
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _ds(thickness)
    dataset.FrameOfReferenceUID = grid.frame_of_reference or generate_uid(prefix=None)
    dataset.PositionReferenceIndicator = ""
    if header is not None and word(header, "FrameOfReferenceUID") == grid.frame_of_reference:
        carry(header, dataset, ("PositionReferenceIndicator",))


def _settle_conditions(dataset: Dataset) -> None:
    """Add or drop what PS3.3 demands or forbids by the value of another attribute (types 1C and 2C)."""
    conditions = {
        "Laterality": dataset.get("BodyPartExamined") not in UNPAIRED,
        "InversionTime": "IR" in words(dataset, "ScanningSequence"),
        "TriggerTime": not {"CG", "PPG"}.isdisjoint(words(dataset, "ScanOptions")),
    }
    for keyword, is_required in conditions.items():
        if is_required and keyword not in dataset:
            setattr(dataset, keyword, None)
        elif not is_required and keyword in dataset:
            delattr(dataset, keyword)
    if dataset.get("PatientIdentityRemoved") == "YES" and not dataset.dir("DeidentificationMethod"):
        dataset.DeidentificationMethod = "Not stated by the source"


def _place(dataset: Dataset, grid: Grid, k: int, number: int) -> None:
    """Set what tells slice `k` from the others, its pixels and sources apart."""
    position = grid.points_mm([(k, 0, 0)])[0]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(prefix=None)
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = _ds_list(position)
    dataset.SliceLocation = _ds(_normal(grid) @ position)


def _normal(grid: Grid) -> NDArray[np.float64]:
    """The normal of the image plane: row direction × column direction (PS3.3 section C.7.6.2.1.1)."""
    _, column, row = grid.direction.T
    normal: NDArray[np.float64] = np.cross(row, column)
    return normal


def _along_normal(grid: Grid) -> range:
    """Slice indices in the order in which they lie along the normal."""
    slices = range(grid.shape[0])
    return slices if grid.direction[:, 0] @ _normal(grid) > 0 else slices[::-1]


def _toward(direction: NDArray[np.float64]) -> str:
    """The letter of the side of the patient that a direction points to most (PS3.3 section C.7.6.1.1.1)."""
    axis = int(np.abs(direction).argmax())
    return ("LR", "PA", "HF")[axis][int(direction[axis] < 0)]


def _srgb_profile() -> bytes:
    """An sRGB profile of the class "input device", which PS3.3 section C.11.15.1.1 demands."""
    from PIL import ImageCms

    profile: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:12] + b"scnr" + profile[16:]


def _ds(value: float) -> DS:
    """A decimal string with all the digits that fit into its 16 characters (PS3.5 section 6.2)."""
    return DS(float(value) + 0.0, auto_format=True)  # + 0.0 makes -0.0 a plain 0.0


def _ds_list(values: Iterable[float]) -> list[DS]:
    return [_ds(value) for value in values]


def _update(dataset: Dataset, attributes: dict[str, Any]) -> None:
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
