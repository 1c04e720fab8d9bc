"""What all derived DICOM images share: whose they are, where they lie, how they are numbered and saved.

Patient and study are those of the structural source; series, equipment and instances are new. What is said about where
the images come from is written by `medfuse.io.dicom_provenance`.
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
from pydicom import Dataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import DA, DS, TM

from medfuse._version import __version__
from medfuse.errors import OutputError
from medfuse.grid import Grid
from medfuse.io.dicom_header import count, word, words
from medfuse.io.dicom_options import IS_MAX, DicomOptions
from medfuse.io.dicom_provenance import carry, describe_origin, series_description
from medfuse.io.dicom_series import FUSED
from medfuse.io.dicom_uids import Uids
from medfuse.io.sidecar import MAKER
from medfuse.volume import Modality, Volume

PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize"),
    *("PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    *("LongitudinalTemporalInformationModified", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("StudyDescription", "ReferringPhysicianName"),
)
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

#: What is added to the Series Number of a fused series for what lies beside it, by its form.
SERIES_AFTER = {"registration": 100, "blending": 200, "resampled": 300}


@dataclass(frozen=True)
class Result:
    """One series to write.

    Args:
        volume: What it shows.
        form: In which form: a word for the UIDs, that no two forms share any.
        options: What the user may say of it.
        uids: Where its UIDs come from.
        nth: Which of the series that one run makes of a source, from 1.
        acquired: Header of the scan whose values the voxels are, where that is not the volume's first source.
    """

    volume: Volume
    form: str
    options: DicomOptions
    uids: Uids
    nth: int = 1
    acquired: Dataset | None = None

    @property
    def series_instance_uid(self) -> UID:
        """The UID of the series."""
        return self.uids.of("series", self.form, self.nth)

    def sop_instance_uid(self, number: int) -> UID:
        """The UID of the instance of a number, from 1."""
        return self.uids.of("instance", self.form, self.nth, number)

    @property
    def identity(self) -> dict[str, Any]:
        """The arguments that all of highdicom's SOP classes take."""
        number = series_number(self.volume, self.nth, self.options.series_number) + SERIES_AFTER.get(self.form, 0)
        return {
            "study_instance_uid": self.uids.study(self.volume),
            "series_instance_uid": self.series_instance_uid,
            "series_number": min(number, IS_MAX),
            "series_description": series_description(self.volume, self.options.series_description),
            "sop_instance_uid": self.sop_instance_uid(1),
            "instance_number": 1,
            "manufacturer": MAKER,
            "manufacturer_model_name": MAKER,
            "software_versions": __version__,
            "transfer_syntax_uid": ExplicitVRLittleEndian,
        }


def series_number(volume: Volume, nth: int = 1, given: int | None = None) -> int:
    """The Series Number of the `nth` series of one run: counted from a given one, or 1000 a time above the source's."""
    if given is not None:
        return min(given + nth - 1, IS_MAX)
    return min(max(count(volume.source.header or Dataset(), "SeriesNumber"), 0) + 1000 * nth, IS_MAX)


def describe(dataset: Dataset, result: Result) -> None:
    """Set what all forms share beside pixels and places: patient, study, series, dates, origin, frame of reference."""
    volume = result.volume
    header = volume.source.header or Dataset()
    describe_study(dataset, header)
    carry(header, dataset, ("PatientPosition",))
    dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER", *([FUSED] if volume.modality is Modality.FUSED else [])]
    describe_origin(dataset, volume)
    if not dataset.SeriesDescription.isascii():
        dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.FrameOfReferenceUID = result.uids.frame_of_reference(volume)
    dataset.PositionReferenceIndicator = ""
    if word(header, "FrameOfReferenceUID") == volume.grid.frame_of_reference:
        carry(header, dataset, ("PositionReferenceIndicator",))


def describe_study(dataset: Dataset, header: Dataset) -> None:
    """Set patient, study, region and dates, as the header of the structural source says them and as of now."""
    carry(header, dataset, PATIENT_AND_STUDY)
    carry_region(header, dataset)
    settle_conditions(dataset)
    now = datetime.now()
    for event in ("Series", "Content", "InstanceCreation"):
        update(dataset, {f"{event}Date": DA(now.date()), f"{event}Time": TM(now.time())})


def carry_region(header: Dataset, dataset: Dataset) -> None:
    """Copy which part of the body was scanned, and which side, wherever the header says it."""
    carry(header, dataset, ("BodyPartExamined",))
    if known := side(header):
        dataset.Laterality = known


def side(header: Dataset) -> str:
    """L or R; "" where nothing says it, or not all frames agree.

    Images say it in Laterality, or in Image Laterality (PS3.3 section C.7.6.1), frames in Frame Laterality (section
    C.7.6.16.2.8).
    """
    stated = word(header, "Laterality") or word(header, "ImageLaterality")
    sides = {stated} if stated else {word(anatomy, "FrameLaterality") for anatomy in frame_anatomies(header)}
    return sides.pop() if len(sides) == 1 and sides <= {"L", "R"} else ""


def frame_anatomies(header: Dataset) -> list[Dataset]:
    """The Frame Anatomy of all frames together, or of each (PS3.3 section C.7.6.16.2.8)."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    each = header.get("PerFrameFunctionalGroupsSequence") or []
    return [item for of in (*shared, *each) for item in of.get("FrameAnatomySequence") or []]


def settle_conditions(dataset: Dataset) -> None:
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


def orientation(grid: Grid) -> Dataset:
    """Image Orientation (Patient) of every slice (PS3.3 section C.7.6.2.1.1)."""
    _, column, row = grid.direction.T  # along which j and i increase
    item = Dataset()
    item.ImageOrientationPatient = decimals((*row, *column))
    return item


def measures(grid: Grid) -> Dataset:
    """Size and distance of the voxels, as in a Pixel Measures item (PS3.3 section C.7.6.16.2.1)."""
    thickness, row_spacing, column_spacing = grid.spacing_mm
    item = Dataset()
    item.PixelSpacing = decimals((row_spacing, column_spacing))
    item.SliceThickness = item.SpacingBetweenSlices = decimal(thickness)
    return item


def position(grid: Grid, k: int) -> Dataset:
    """Image Position (Patient) of slice `k`."""
    item = Dataset()
    item.ImagePositionPatient = decimals(grid.points_mm([(k, 0, 0)])[0])
    return item


def along_normal(grid: Grid) -> range:
    """Slice indices in the order in which they lie along the normal."""
    slices = range(grid.shape[0])
    return slices if grid.direction[:, 0] @ normal(grid) > 0 else slices[::-1]


def normal(grid: Grid) -> NDArray[np.float64]:
    """The normal of the image plane: row direction × column direction (PS3.3 section C.7.6.2.1.1)."""
    _, column, row = grid.direction.T
    found: NDArray[np.float64] = np.cross(row, column)
    return found


def set_rgb(dataset: Dataset) -> None:
    """Set what tells how colours are meant: sRGB, as a profile and by name; and that software made the image."""
    from PIL import ImageCms

    profile: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    dataset.ICCProfile = profile[:12] + b"scnr" + profile[16:]  # an input device (PS3.3 section C.11.15.1.1)
    dataset.ColorSpace = "SRGB"
    dataset.ConversionType = "WSD"


def encoded(dataset: Dataset) -> Dataset:
    """The same data set with its elements encoded, which pydicom then writes as they are: once instead of per slice."""
    with BytesIO() as buffer:
        dataset.save_as(buffer, enforce_file_format=True)
        buffer.seek(0)
        return dcmread(buffer)


def save(dataset: Dataset, path: Path) -> Path:
    """Write a data set to a new file.

    Raises:
        OutputError: The file exists or cannot be written.
    """
    try:
        dataset.save_as(path, enforce_file_format=True, overwrite=False)
    except OSError as error:  # that of the system, or pydicom's, which names an element and loses what the system said
        reason = error.strerror or getattr(error.__cause__, "strerror", None) or type(error).__name__
        raise OutputError(
            f"expected to write {path.name}, found: {reason}",
            "Check that the output folder exists, is empty and can be written to, and that the disk has space",
        ) from error
    return path


def decimal(value: float) -> DS:
    """A decimal string with all the digits that fit into its 16 characters (PS3.5 section 6.2)."""
    return DS(float(value) + 0.0, auto_format=True)  # + 0.0 makes -0.0 a plain 0.0


def decimals(values: Iterable[float]) -> list[DS]:
    """The same of several numbers."""
    return [decimal(value) for value in values]


def update(dataset: Dataset, attributes: dict[str, Any]) -> None:
    """Set attributes by their keywords."""
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
