"""A volume as the DICOM series that a scanner would have written: one single-frame file per slice.

For making sample data and tests only. Results of a fusion are written by `medfuse.io`, which tells the world that they
are derived; what is written here says that it is original.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from medfuse._version import __version__
from medfuse.errors import OutputError
from medfuse.volume import Modality, Unit, Volume

_SOP_CLASS = {
    Modality.CT: CTImageStorage,
    Modality.MR: MRImageStorage,
    Modality.PT: PositronEmissionTomographyImageStorage,
}
_PET_UNITS = {Unit.SUV: "GML", Unit.BQML: "BQML", Unit.COUNTS: "CNTS"}
_CT_INTERCEPT_HU = -1024
_PET_FRAME = timedelta(minutes=10)
_FDG_UPTAKE = timedelta(minutes=60)
_F18_HALF_LIFE_S = 6586.2
_LARGEST = np.iinfo(np.int16).max

#: How the patient lies, as SNOMED CT codes, by the last and the first letter of Patient Position (0018,5100).
_POSTURE = {"S": ("40199007", "supine"), "P": ("1240000", "prone")}
_ENTRY = {"H": ("102540008", "headfirst"), "F": ("102541007", "feet-first")}


@dataclass(frozen=True)
class Study:
    """What the series of one examination have in common.

    Args:
        patient_id: Patient ID (0010,0020).
        patient_name: Patient's Name (0010,0010).
        patient_weight_kg: Patient's Weight (0010,1030), on which SUV rests.
        study_instance_uid: Study Instance UID (0020,000D), or "" for one made from the other fields.
        start: When the study began; series number n follows 10 n minutes later.
        injected_bq: Activity of the tracer at its injection, an hour before the PET series.
    """

    patient_id: str = "MEDFUSE-PHANTOM"
    patient_name: str = "PHANTOM^HEAD"
    patient_weight_kg: float = 72.0
    study_instance_uid: str = ""
    start: datetime = datetime(2024, 1, 15, 9, 30)
    injected_bq: float = 185e6

    @property
    def uid(self) -> str:
        """The Study Instance UID."""
        return self.study_instance_uid or generate_uid(
            entropy_srcs=[self.patient_id, self.patient_name, self.start.isoformat()]
        )


def write_series(
    volume: Volume,
    folder: Path,
    *,
    description: str,
    number: int,
    study: Study | None = None,
    position: str = "HFS",
) -> list[Path]:
    """Write a volume as an original-looking CT, MR or PET series.

    Slices, rows and columns run as in the array. CT is stored as HU + 1024, MR as it is, both rounded to integers; PET
    with a rescale slope of its own per slice, so that the slice's largest value fills 16 bits. Files are numbered in an
    order that is not that of the slices. The same arguments give the same bytes, UIDs included.

    Args:
        volume: Grey CT in HU, MR, or PET as SUV, BQML or COUNTS; array (K, J, I).
        folder: Where to; made where missing.
        description: Series Description (0008,103E).
        number: Series Number (0020,0011).
        study: The examination, the phantom's where None. Its UID joins series.
        position: HFS, HFP, FFS or FFP: Patient Position (0018,5100), which in PET becomes a sequence of codes.

    Returns:
        The files, in the order of the slices.

    Raises:
        ValueError: The volume is of another kind, or a value does not fit 16 bits.
        OutputError: A file could not be written.
    """
    if volume.modality not in _SOP_CLASS or volume.is_color:
        raise ValueError(f"expected a grey CT, MR or PT volume, got {volume.modality.name} in {volume.unit.name}")
    if volume.modality is Modality.PT and volume.unit not in _PET_UNITS:
        raise ValueError(f"expected PET in SUV, BQML or COUNTS, got {volume.unit.name}")
    if position[:1] not in _ENTRY or position[2:] not in _POSTURE or position[1:2] != "F":
        raise ValueError(f"expected a patient position HFS, HFP, FFS or FFP, got {position}")
    study = study or Study()
    series = _series_header(volume, study, description, number, position)
    paths = [folder / f"IM{n:04d}.dcm" for n in _file_numbers(len(volume.array))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, path in enumerate(paths):
            _slice(series, volume, index).save_as(path, enforce_file_format=True)
    except OSError as error:
        raise OutputError(
            f"expected to write {len(paths)} files, found that this is not possible: {error.strerror}",
            "Give a folder that can be written to, on a disk with room",
        ) from error
    return paths


def _file_numbers(count: int) -> NDArray[np.int_]:
    """For each slice the number of its file, from 1: every other slice from the last one on, then those between."""
    acquired = [*range(count - 1, -1, -2), *range(count - 2, -1, -2)]
    return np.argsort(acquired) + 1


def _series_header(volume: Volume, study: Study, description: str, number: int, position: str) -> Dataset:
    """All that the slices of a series have in common."""
    content = hashlib.sha256(np.ascontiguousarray(volume.array).tobytes() + volume.grid.lps_from_index.tobytes())
    entropy = [study.uid, volume.modality.value, description, str(number), position, content.hexdigest()]
    started = study.start + timedelta(minutes=10 * number)
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = _SOP_CLASS[volume.modality]
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=entropy)
    ds.FrameOfReferenceUID = volume.grid.frame_of_reference or generate_uid(entropy_srcs=[*entropy, "frame"])
    ds.PositionReferenceIndicator = ""
    ds.Modality = volume.modality.value
    ds.SeriesDescription = description
    ds.SeriesNumber = number
    ds.BodyPartExamined = "HEAD"
    ds.SeriesDate, ds.SeriesTime = _date_and_time(started)
    ds.AcquisitionDate, ds.AcquisitionTime = _date_and_time(started)
    ds.ContentDate, ds.ContentTime = _date_and_time(started)
    _add_study(ds, study)
    _add_equipment(ds)
    _add_plane(ds, volume)
    if volume.modality is Modality.CT:
        ds.PatientPosition = position
        _add_ct(ds)
    elif volume.modality is Modality.MR:
        ds.PatientPosition = position
        _add_mr(ds, volume)
    else:
        _add_posture(ds, position)
        _add_pet(ds, volume, study, started)
    return ds


def _date_and_time(moment: datetime) -> tuple[str, str]:
    """A moment as DICOM's DA and TM."""
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")


def _add_study(ds: Dataset, study: Study) -> None:
    """Patient, Patient Study and General Study modules (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2)."""
    ds.PatientID = study.patient_id
    ds.PatientName = study.patient_name
    ds.PatientBirthDate = ""
    ds.PatientSex = "O"
    ds.PatientWeight = _decimal(study.patient_weight_kg)
    ds.StudyInstanceUID = study.uid
    ds.StudyDate, ds.StudyTime = _date_and_time(study.start)
    ds.StudyID = "1"
    ds.StudyDescription = "Digital head phantom"
    ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ""


def _add_equipment(ds: Dataset) -> None:
    """General Equipment module (PS3.3 C.7.5.1)."""
    ds.Manufacturer = "medfuse"
    ds.ManufacturerModelName = "Digital phantom"
    ds.DeviceSerialNumber = "1"
    ds.SoftwareVersions = __version__


def _add_plane(ds: Dataset, volume: Volume) -> None:
    """What the slices share of the Image Plane and Image Pixel modules (PS3.3 C.7.6.2, C.7.6.3)."""
    slice_mm, row_mm, column_mm = volume.grid.spacing_mm
    _, along_j, along_i = volume.grid.direction.T
    ds.ImageOrientationPatient = [_coordinate(value) for value in (*along_i, *along_j)]
    ds.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]
    ds.SliceThickness = _decimal(slice_mm)
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    _, ds.Rows, ds.Columns = volume.array.shape
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1


def _add_ct(ds: Dataset) -> None:
    """CT Image module (PS3.3 C.8.2.1)."""
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.AcquisitionNumber = 1
    ds.RescaleIntercept = str(_CT_INTERCEPT_HU)
    ds.RescaleSlope = "1"
    ds.RescaleType = "HU"
    ds.KVP = "120"
    ds.XRayTubeCurrent = 250
    ds.ExposureTime = 1000
    ds.GantryDetectorTilt = "0"
    ds.ConvolutionKernel = "STANDARD"
    ds.WindowCenter, ds.WindowWidth = "40", "80"


def _add_mr(ds: Dataset, volume: Volume) -> None:
    """MR Image module (PS3.3 C.8.3.1), of a T1-weighted spoiled gradient echo after an inversion."""
    ds.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    ds.AcquisitionNumber = 1
    ds.ScanningSequence = ["GR", "IR"]
    ds.SequenceVariant = ["SP", "MP"]
    ds.ScanOptions = ""
    ds.MRAcquisitionType = "3D"
    ds.SequenceName = "T1"
    ds.RepetitionTime, ds.EchoTime, ds.InversionTime = "1900", "2.98", "900"
    ds.FlipAngle = "9"
    ds.EchoTrainLength = 1
    ds.MagneticFieldStrength = "1.5"
    ds.ImagingFrequency = "63.87"
    ds.ImagedNucleus = "1H"
    ds.NumberOfAverages = "1"
    ds.SpacingBetweenSlices = _decimal(volume.grid.spacing_mm[0])
    low, high = np.percentile(volume.array, (1, 99))
    ds.WindowCenter = _decimal(round(float(low + high) / 2))
    ds.WindowWidth = _decimal(max(1, round(float(high - low))))


def _add_pet(ds: Dataset, volume: Volume, study: Study, started: datetime) -> None:
    """PET Series and Image modules (PS3.3 C.8.9.1, C.8.9.4): one static frame, decay corrected to its start."""
    decays = math.log(2) * _PET_FRAME.total_seconds() / _F18_HALF_LIFE_S
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SeriesType = ["STATIC", "IMAGE"]
    ds.Units = _PET_UNITS[volume.unit]
    if volume.unit is Unit.SUV:
        ds.SUVType = "BW"
    ds.CountsSource = "EMISSION"
    ds.NumberOfSlices = len(volume.array)
    ds.CorrectedImage = ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "NORM"]
    ds.RandomsCorrectionMethod = "DLYD"
    ds.AttenuationCorrectionMethod = "CT"
    ds.ScatterCorrectionMethod = "Model-based"
    ds.ReconstructionMethod = "OSEM"
    ds.DecayCorrection = "START"
    ds.DecayFactor = _decimal(decays / -math.expm1(-decays))
    ds.FrameReferenceTime = _decimal(_PET_FRAME.total_seconds() * 500)
    ds.ActualFrameDuration = str(round(_PET_FRAME.total_seconds() * 1000))
    ds.CollimatorType = "NONE"
    ds.DoseCalibrationFactor = "1"
    ds.RescaleIntercept = "0"
    ds.RadiopharmaceuticalInformationSequence = [_tracer(study, started)]


def _add_posture(ds: Dataset, position: str) -> None:
    """How the patient lies, in PET's words (PS3.3 C.8.4.6), which exclude Patient Position (C.7.3.1.1.2)."""
    recumbent = _code("102538003", "recumbent")
    recumbent.PatientOrientationModifierCodeSequence = [_code(*_POSTURE[position[2:]])]
    ds.PatientOrientationCodeSequence = [recumbent]
    ds.PatientGantryRelationshipCodeSequence = [_code(*_ENTRY[position[:1]])]


def _tracer(study: Study, started: datetime) -> Dataset:
    """Item of Radiopharmaceutical Information Sequence (PS3.3 C.8.9.2): fluorodeoxyglucose."""
    injected = started - _FDG_UPTAKE
    ds = Dataset()
    ds.Radiopharmaceutical = "FDG"
    ds.RadiopharmaceuticalRoute = "IV"
    ds.RadiopharmaceuticalVolume = "5"
    ds.RadiopharmaceuticalStartTime = _date_and_time(injected)[1]
    ds.RadiopharmaceuticalStartDateTime = injected.strftime("%Y%m%d%H%M%S")
    ds.RadionuclideTotalDose = _decimal(study.injected_bq)
    ds.RadionuclideHalfLife = _decimal(_F18_HALF_LIFE_S)
    ds.RadionuclidePositronFraction = "0.967"
    ds.RadionuclideCodeSequence = [_code("77004003", "^18^Fluorine")]
    ds.RadiopharmaceuticalCodeSequence = [_code("35321007", "Fluorodeoxyglucose F^18^")]
    ds.AdministrationRouteCodeSequence = [_code("47625008", "Intravenous route")]
    return ds


def _code(value: str, meaning: str) -> Dataset:
    """Item of a code sequence, from SNOMED CT."""
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, "SCT", meaning
    return ds


def _slice(series: Dataset, volume: Volume, index: int) -> Dataset:
    """The data set of one slice, ready to be saved."""
    grid = volume.grid
    origin = grid.points_mm([(index, 0, 0)])[0]
    _, along_j, along_i = grid.direction.T
    ds = Dataset()
    ds.update(series)
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[series.SeriesInstanceUID, str(index)])
    ds.InstanceNumber = index + 1
    ds.ImagePositionPatient = [_coordinate(value) for value in origin]
    ds.SliceLocation = _coordinate(float(np.cross(along_i, along_j) @ origin))
    if volume.modality is Modality.PT:
        ds.ImageIndex = index + 1
    ds.PixelData = _stored(ds, volume.array[index], volume.modality).astype("<i2").tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def _stored(ds: Dataset, values: NDArray[np.generic], modality: Modality) -> NDArray[np.float64]:
    """The integers to store for the values of one slice, (J, I); sets the slope of a PET slice."""
    real = values.astype(np.float64)
    if modality is Modality.PT:
        ds.RescaleSlope = _decimal(float(np.abs(real).max()) / _LARGEST or 1.0)
        return np.clip(np.rint(real / float(ds.RescaleSlope)), -_LARGEST, _LARGEST)
    stored = np.rint(real - _CT_INTERCEPT_HU if modality is Modality.CT else real)
    if np.abs(stored).max() > _LARGEST:
        raise ValueError(f"expected values that fit 16 bits, got {real.min():g} to {real.max():g}")
    return stored


def _decimal(value: float) -> str:
    """A number as DICOM's DS, with all the digits that 16 characters hold (PS3.5 section 6.2)."""
    return str(format_number_as_ds(float(value) + 0.0))


def _coordinate(value: float) -> str:
    """A coordinate or direction cosine as DICOM's DS; what rounding left of a zero is 0."""
    return _decimal(round(float(value), 9))
