"""A functional scan on the grid of a fused series → a derived DICOM series that keeps its unit.

PET stays PET (PS3.3 section A.21), CT stays CT (section A.3) and MR stays MR (section A.4), single-frame. SPECT becomes
one Parametric Map with its unit (section A.75): an NM image is a list of frames of one acquisition, with detectors and
energy windows, which a resampled volume no longer has.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import CTImageStorage, PositronEmissionTomographyImageStorage
from pydicom.valuerep import DA, DT, TM

from medfuse.io.dicom_derived import Result, decimal, describe, update
from medfuse.io.dicom_header import leniently, unvalidated, word, words
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.dicom_parametric_map import write_parametric_map
from medfuse.io.dicom_provenance import carry
from medfuse.io.dicom_slices import Storage, robust_window, save_slices, write_slices
from medfuse.io.dicom_uids import Uids
from medfuse.io.dicom_values import PET_UNITS
from medfuse.volume import Modality, Source, Unit, Volume

#: Units (0054,1001) of what medfuse reads as these.
UNITS = {unit: stated for stated, unit in PET_UNITS.items()}
PET_ACQUISITION = (
    *("CountsSource", "CorrectedImage", "RandomsCorrectionMethod", "AttenuationCorrectionMethod"),
    *("ScatterCorrectionMethod", "DecayCorrection", "ReconstructionMethod", "CollimatorType"),
    *("RadiopharmaceuticalInformationSequence", "PatientOrientationCodeSequence"),
    *("PatientGantryRelationshipCodeSequence", "ActualFrameDuration", "AcquisitionDate"),
)
#: What SUV is made of beside the activity.
OF_SUV = ("PatientWeight", "PatientSize")
#: PET attributes of type 1 and 2 where the source does not give them.
PET_UNKNOWN: dict[str, Any] = {
    **{"CountsSource": "EMISSION", "CorrectedImage": None, "DecayCorrection": "NONE", "CollimatorType": None},
    **{"RadiopharmaceuticalInformationSequence": [], "PatientOrientationCodeSequence": []},
    **{"PatientGantryRelationshipCodeSequence": [], "FrameReferenceTime": 0, "ActualFrameDuration": None},
    **{"AcquisitionDate": None, "AcquisitionTime": None},
}
CT_ACQUISITION = ("KVP", "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime", "ContrastBolusAgent")


@leniently()
def write_resampled(
    volume: Volume, structural: Source, folder: Path, uids: Uids, options: DicomOptions | None = None
) -> list[Path]:
    """Write a functional scan that was laid on the grid of a fused series, as a series of the same study.

    Args:
        volume: Grey, on the grid of the fused series; its source is the functional scan.
        structural: Source of the fused series, whose patient and study are carried on.
        folder: An existing, empty folder.
        uids: Those of the result.
        options: Those of the fused series, whose number is counted from.

    Returns:
        The files, ``resampled-0001.dcm`` and so on, or ``resampled.dcm``.

    Raises:
        OutputError: A file cannot be written.
    """
    owner = replace(volume, source=Source(structural.format, structural.header, also=(volume.source,)))
    how = replace(options or DicomOptions(), series_description=f"medfuse {volume.modality.value} resampled")
    header = volume.source.header or Dataset()
    result = Result(owner, "resampled", how, uids, acquired=header)
    with unvalidated():
        if volume.modality is Modality.PT:
            paths = save_slices(_pet(result, header), result, _storage(volume), folder)
        elif volume.modality is Modality.CT:
            paths = save_slices(_ct(result, header), result, _storage(volume), folder)
        else:
            paths = (write_slices if volume.modality is Modality.MR else write_parametric_map)(result, folder)
    return [path.rename(path.with_name(path.name.replace("fused", "resampled"))) for path in paths]


def _storage(volume: Volume) -> Storage:
    """16 bits from 0, as PET must have it; CT by whole HU, as far as they fit."""
    window = {"VOILUTFunction": "LINEAR_EXACT", **robust_window(volume.array)}
    low, high = float(volume.array.min()), float(volume.array.max())
    largest = max(high, -low)
    is_whole = volume.unit is Unit.HU and largest <= 2**15 - 1
    dtype, most = ("<i2", 2**15 - 1) if is_whole or low < 0 else ("<u2", 2**16 - 1)
    slope = 1.0 if is_whole else float(decimal(largest / most or 1))
    return Storage(dtype, 16, {"RescaleSlope": decimal(slope), "RescaleIntercept": 0, **window}, slope)


def _pet(result: Result, header: Dataset) -> Dataset:
    """A PET image with everything but pixels and place."""
    from highdicom.base import SOPClass

    volume = result.volume
    dataset = SOPClass(sop_class_uid=PositronEmissionTomographyImageStorage, modality="PT", **result.identity)
    update(dataset, PET_UNKNOWN)
    carry(header, dataset, PET_ACQUISITION)
    describe(dataset, result)
    for keyword in OF_SUV:  # not those of the structural scan, which may be of another day
        dataset.pop(keyword, None)
    carry(header, dataset, OF_SUV)
    for item in dataset.RadiopharmaceuticalInformationSequence:
        item.setdefault("RadionuclideCodeSequence", [])
    _time(dataset, header)
    dataset.Units = UNITS.get(volume.unit) or word(header, "Units") or "PROPCNTS"
    if dataset.Units == "GML":  # of which weight, lean mass or surface; without a word it would be the first
        dataset.SUVType = "BW" if volume.unit is Unit.SUV else word(header, "SUVType")
    static = "STATIC" if words(header, "SeriesType")[:1] == ("STATIC",) else "WHOLE BODY"
    dataset.SeriesType = [static, "IMAGE"]
    dataset.NumberOfSlices = volume.grid.shape[0]
    dataset.ImageIndex = 1
    dataset.ImageType = ["DERIVED", "PRIMARY"]  # value 2 may be nothing else (PS3.3 section C.8.9.4.1.1)
    dataset.pop("PatientPosition", None)  # the codes of PET say it
    return dataset


def _time(dataset: Dataset, header: Dataset) -> None:
    """Set the time for which the values hold: a resampled slice lies between beds or frames that began at several.

    Where values are corrected to the start of the scan, that is the time of the series (PS3.3 section C.8.9.1.1.1) and
    of every slice. Where it is not known, the activity goes, without which nobody makes SUV by another time.
    """
    moment = header.get("DecayCorrectionDateTime") if dataset.DecayCorrection == "START" else None
    if moment:
        start = DT(moment)
        for event in ("Series", "Acquisition"):
            update(dataset, {f"{event}Date": DA(start.date()), f"{event}Time": TM(start.time())})
    elif dataset.DecayCorrection != "ADMIN":
        for item in dataset.RadiopharmaceuticalInformationSequence:
            item.pop("RadionuclideTotalDose", None)
    if dataset.DecayCorrection != "NONE":
        dataset.DecayFactor = 1


def _ct(result: Result, header: Dataset) -> Dataset:
    """A CT image with everything but pixels and place."""
    from highdicom.base import SOPClass

    dataset = SOPClass(sop_class_uid=CTImageStorage, modality="CT", **result.identity)
    update(dataset, {"KVP": None, "AcquisitionNumber": None, "PatientPosition": None})
    carry(header, dataset, CT_ACQUISITION)
    describe(dataset, result)
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.RescaleType = "HU" if result.volume.unit is Unit.HU else "US"
    return dataset
