"""A grey derived volume → one Parametric Map of floats (PS3.3 section A.75), whose numbers are without a unit.

Fused values are for display, 0 black and 1 white: never HU, never SUV. The real world value map says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ParametricMapStorage

from medfuse.io.dicom_derived import UNPAIRED, Result, decimal, describe, frame_anatomies, save, side, update
from medfuse.io.dicom_header import word
from medfuse.io.dicom_multiframe import FILE, frames_of, set_frames
from medfuse.io.dicom_provenance import code_item
from medfuse.io.dicom_series import FUSED
from medfuse.io.dicom_slices import robust_window
from medfuse.io.dicom_uids import all_sources
from medfuse.volume import Modality, Source, Unit, Volume

#: Serial number of the equipment, which must be given: software has none.
NO_SERIAL_NUMBER = "none"
#: Units that a value may have (UCUM; PS3.16 CID 84 and 85).
UNITS = {
    Unit.COUNTS: codes.UCUM.Counts,
    Unit.BQML: codes.UCUM.BecquerelsPerMilliliter,
    Unit.SUV: codes.UCUM.StandardizedUptakeValueBodyWeight,
}
#: Body parts (PS3.16 annex L) whose words are no key of pydicom's list of regions (PS3.16 CID 4031).
REGIONS = {
    "BRAIN": codes.SCT.Brain,
    "WHOLEBODY": codes.cid4031.EntireBody,
    "CSPINE": codes.cid4031.CervicalSpine,
    "TSPINE": codes.cid4031.ThoracicSpine,
    "LSPINE": codes.cid4031.LumbarSpine,
}


def write_parametric_map(result: Result, folder: Path) -> list[Path]:
    """Write a grey volume as one Parametric Map of 32-bit floats.

    Args:
        result: The volume, fused (0-1) or an MR, and how it is to be named and numbered.
        folder: An existing, empty folder.

    Returns:
        The file, ``fused.dcm``.

    Raises:
        OutputError: The file cannot be written, or its voxels are too many for one object.
    """
    from highdicom.base import SOPClass

    volume = result.volume
    dataset = SOPClass(
        sop_class_uid=ParametricMapStorage,
        modality="OT" if volume.modality is Modality.FUSED else volume.modality.value,
        device_serial_number=NO_SERIAL_NUMBER,
        **result.identity,
    )
    describe(dataset, result)
    dataset.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]  # DERIVED\\PRIMARY in PS3.3 section C.8.32.2
    dataset.pop("Laterality", None)  # every frame says it
    dataset.ContentQualification = "RESEARCH"
    dataset.ContentLabel = FUSED if volume.modality is Modality.FUSED else volume.modality.value
    dataset.ContentDescription = "For display only, not for diagnostic use"
    dataset.ContentCreatorName = None
    dataset.RecognizableVisualFeatures = _recognizable(volume.source)
    dataset.AcquisitionContextSequence = []
    dataset.PixelPresentation = "MONOCHROME"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SamplesPerPixel = 1
    dataset.BitsAllocated = 32
    set_frames(dataset, result, _meaning(volume, dataset.ImageType))
    dataset.FloatPixelData = frames_of(result, "<f4")
    return [save(dataset, folder / FILE)]


def _meaning(volume: Volume, frame_type: list[str]) -> Dataset:
    """The functional groups that say what a voxel's number means and how it is shown."""
    shared, kind, anatomy, identity, window = (Dataset() for _ in range(5))
    kind.FrameType = frame_type
    header = volume.source.header or Dataset()
    anatomy.AnatomicRegionSequence = [_region(header)]
    anatomy.FrameLaterality = _laterality(header)
    identity.RescaleIntercept, identity.RescaleSlope, identity.RescaleType = 0, 1, "US"  # US: unspecified
    fused = {"WindowCenter": decimal(0.5), "WindowWidth": decimal(1)}
    update(window, fused if volume.modality is Modality.FUSED else robust_window(volume.array))
    window.VOILUTFunction = "LINEAR_EXACT"
    shared.ParametricMapFrameTypeSequence = [kind]
    shared.FrameAnatomySequence = [anatomy]
    shared.PixelValueTransformationSequence = [identity]
    shared.FrameVOILUTSequence = [window]
    shared.RealWorldValueMappingSequence = [_mapping(volume)]
    return shared


def _mapping(volume: Volume) -> Dataset:
    """That the stored value is the value, and its unit, if any (PS3.3 section C.7.6.16.2.11; PS3.16 CID 7181)."""
    from highdicom.pm import RealWorldValueMapping

    is_fused = volume.modality is Modality.FUSED
    unit = UNITS.get(volume.unit, codes.UCUM.NoUnits)
    mapping: Dataset = RealWorldValueMapping(
        lut_label="DISPLAY" if is_fused else "SIGNAL",
        lut_explanation="0 black to 1 white, neither HU nor SUV" if is_fused else unit.meaning,
        unit=unit,
        value_range=(0.0, 1.0) if is_fused else _ends(volume),
        slope=1.0,
        intercept=0.0,
    )
    return mapping


def _ends(volume: Volume) -> tuple[float, float]:
    """The lowest and the highest value as they are stored."""
    return float(np.float32(volume.array.min())), float(np.float32(volume.array.max()))


def _recognizable(source: Source) -> str:
    """YES, as a head's surface shows a face, unless all sources say that nobody can be recognized."""
    headers = [one.header or Dataset() for one in all_sources(source)]
    return "NO" if all(word(header, "RecognizableVisualFeatures") == "NO" for header in headers) else "YES"


def _region(header: Dataset) -> Dataset:
    """The anatomic region as the source codes it, else by its word for the body part, else none in particular."""
    for stated in (header, *frame_anatomies(header)):
        if given := stated.get("AnatomicRegionSequence"):
            return given[0]
    part = word(header, "BodyPartExamined").upper()
    known = {name.upper(): getattr(codes.cid4031, name) for name in codes.cid4031.dir()} | REGIONS
    return code_item(known.get(part, codes.SCT.AnatomicalStructure))


def _laterality(header: Dataset) -> str:
    """The side (PS3.3 section C.7.6.16.2.8): "U", unpaired, also where the source does not say."""
    return "U" if word(header, "BodyPartExamined") in UNPAIRED else side(header) or "U"
