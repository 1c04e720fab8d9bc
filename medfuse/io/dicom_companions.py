"""What lies beside a fused DICOM series: how the two scans lie to one another, and how to see them blended.

A Spatial Registration object (PS3.3 section A.39.1) holds the matrix from the functional scan's frame of reference to
the structural scan's. An Advanced Blending Presentation State (PS3.3 section A.33.7) shows the two original series, the
structural one in grey and, above it, the functional one in the palette and window of the fusion. Both objects are of
the fused series' study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SpatialRegistrationStorage

from medfuse.color import PALETTES, Window, parse_window
from medfuse.color.palette import table_of
from medfuse.io.dicom_derived import Result, decimal, describe_study, save, update
from medfuse.io.dicom_header import count, leniently, unvalidated, word
from medfuse.io.dicom_mosaic import is_mosaic
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.dicom_provenance import (
    carry,
    code_item,
    companion_description,
    describe_equipment,
    of_study,
    refer,
    reference,
    source_references,
)
from medfuse.io.dicom_uids import Uids
from medfuse.volume import Source, Volume, parameters_of

if TYPE_CHECKING:
    from highdicom.pr import AdvancedBlending, AdvancedBlendingPresentationState

REGISTRATION, BLENDING = "registration.dcm", "blending.dcm"
#: How much of the functional scan is seen where both are.
OPACITY = 0.5
#: How far a matrix may be from orthonormal and be rigid: more than decimal strings and float64 leave of one.
RIGID_TOLERANCE = 1e-6
#: What highdicom asks of every image; the values are carried over as for a fused series.
OF_PATIENT_AND_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
#: What makes 16 bits of 8: 0xFFFF / 0xFF.
TO_16_BITS = 257


@dataclass(frozen=True)
class Side:
    """One of the two scans that were fused.

    Args:
        header: Header of its first file.
        source: Its files, with their rescaling.
        window: What becomes black and white, in the volume's unit; None for colour, which is shown as it is.
        palette: Name of its palette.
        is_hu: Whether its values are HU.
    """

    header: Dataset
    source: Source
    window: Window | None
    palette: str
    is_hu: bool

    @property
    def frame(self) -> str:
        """Its frame of reference; "" where it states none."""
        return word(self.header, "FrameOfReferenceUID")

    @property
    def images(self) -> list[Dataset]:
        """An item for each of its files, with the frames that were used, where not all were."""
        return [reference(*image) for image in self.source.images]


@leniently()
def write_companions(
    fused: Volume, folder: Path, uids: Uids, nth: int = 1, options: DicomOptions | None = None
) -> list[Path]:
    """Write what can be said about two DICOM scans beside their fused series.

    - `registration.dcm`, where the transform is linear, the structural scan states a frame of reference, and the
      functional one states another or was moved;
    - `blending.dcm`, where the transform is linear and the values of both are shown by windows or are RGB.

    Args:
        fused: What `medfuse.fuse` returned: its history and its sources say all.
        folder: The folder of the fused series.
        uids: Those of the result.
        nth: As for `write_dicom`.
        options: Those of the fused series, whose number is counted from.

    Returns:
        The files, none where one of the scans was not DICOM.

    Raises:
        OutputError: A file cannot be written.
    """
    sides = _sides(fused)
    alignment = parameters_of(fused.history, "align")
    options = options or DicomOptions()
    if sides is None or not sides[0].frame or alignment.get("deformable", True):
        return []
    with unvalidated():
        structural, functional = sides
        moving_from_fixed = np.array(alignment["moving_from_fixed"], dtype=np.float64)
        is_apart = functional.frame != structural.frame or not np.array_equal(moving_from_fixed, np.eye(4))
        written, registration = [], None
        if is_apart:
            fixed_from_moving = np.asarray(np.linalg.inv(moving_from_fixed), dtype=np.float64)
            result = Result(fused, "registration", options, uids, nth)
            registration = _registration(result, sides, fixed_from_moving, alignment)
            written.append(save(registration, folder / REGISTRATION))
        if _can_be_shown(structural) and _can_be_shown(functional):
            blending = _blending(Result(fused, "blending", options, uids, nth), sides, registration)
            written.append(save(blending, folder / BLENDING))
        return written


def _sides(fused: Volume) -> tuple[Side, Side] | None:
    """The structural and the functional scan, if both were DICOM and are fused as their files have them."""
    step = parameters_of(fused.history, "fuse")
    earlier = [past["name"] for name in ("structural", "functional") for past in step.get(name, {}).get("history", ())]
    if "resample" in earlier:  # its voxels no longer lie where its files say
        return None
    sources = [fused.source, *fused.source.also]
    if step.get("grid") == "functional":
        sources.reverse()
    if len(sources) != 2 or any(not word(source.header or Dataset(), "StudyInstanceUID") for source in sources):
        return None
    structural, functional = (
        _side(source, step[name]) for source, name in zip(sources, ("structural", "functional"), strict=True)
    )
    return (structural, functional) if structural.source.instances and functional.source.instances else None


def _side(source: Source, described: Mapping[str, Any]) -> Side:
    window = None if described["window"] == "as it is" else parse_window(described["window"])
    header = Dataset() if source.header is None else source.header
    shown = window if isinstance(window, Window) else None
    return Side(header, source, shown, described["palette"] or "GREY", described["unit"] == "HU")


def _registration(
    result: Result,
    sides: Sequence[Side],
    fixed_from_moving: NDArray[np.float64],
    alignment: Mapping[str, Any],
) -> Dataset:
    """A Spatial Registration whose registered frame of reference is the structural scan's (PS3.3 section C.20.2).

    Its items name their images, and their frame of reference where the two scans have two of them.
    """
    from highdicom.base import SOPClass

    structural, functional = sides
    dataset = SOPClass(sop_class_uid=SpatialRegistrationStorage, modality="REG", **_identity(result))
    _describe(dataset, result, structural.header)
    dataset.ContentLabel = "REGISTRATION"
    dataset.ContentDescription = "From the functional scan to the structural scan"
    dataset.ContentCreatorName = None
    kind = codes.DCM.ImageContentBasedAlignment if alignment.get("registered") else None
    two_frames = "" not in (structural.frame, functional.frame) and structural.frame != functional.frame
    dataset.RegistrationSequence = [
        _placed(structural, np.eye(4), codes.DCM.FrameOfReferenceIdentity, two_frames),
        _placed(functional, fixed_from_moving, kind, two_frames),
    ]
    refer(dataset, [side.source for side in sides])
    return dataset


def _placed(side: Side, registered_from_source: NDArray[np.float64], kind: Any, by_frame: bool) -> Dataset:
    """An item of the Registration Sequence: a scan, and the matrix from its world to the registered one."""
    matrix, registration, item = Dataset(), Dataset(), Dataset()
    axes = registered_from_source[:3, :3]
    rigid = np.allclose(axes.T @ axes, np.eye(3), rtol=0, atol=RIGID_TOLERANCE) and np.linalg.det(axes) > 0
    matrix.FrameOfReferenceTransformationMatrixType = "RIGID" if rigid else "AFFINE"
    matrix.FrameOfReferenceTransformationMatrix = [decimal(number) for number in registered_from_source.flat]
    registration.RegistrationTypeCodeSequence = [code_item(kind)] if kind else []
    registration.MatrixSequence = [matrix]
    if by_frame:
        item.FrameOfReferenceUID = side.frame
    item.ReferencedImageSequence = side.images
    item.MatrixRegistrationSequence = [registration]
    return item


def _can_be_shown(side: Side) -> bool:
    """Whether a presentation state can say how a scan's stored values become what was fused."""
    if count(side.header, "SamplesPerPixel") == 3:
        return side.window is None
    has_rescales = len(side.source.rescales) == len(side.source.instances)
    return side.window is not None and has_rescales and min(side.source.rescales)[0] > 0 and not is_mosaic(side.header)


def _blending(result: Result, sides: Sequence[Side], registration: Dataset | None) -> Dataset:
    """An Advanced Blending Presentation State, the functional scan as foreground (PS3.4 section N.2.6)."""
    from highdicom.pr import AdvancedBlendingPresentationState, BlendingDisplay, BlendingDisplayInput

    identity = _identity(result)
    study_instance_uid = identity.pop("study_instance_uid")
    images = [_images(side, study_instance_uid) for side in sides]
    inputs = [_input(side, some, number) for number, (side, some) in enumerate(zip(sides, images, strict=True), 1)]
    dataset: AdvancedBlendingPresentationState = AdvancedBlendingPresentationState(
        referenced_images=[image for some in images for image in some],
        blending=inputs,
        blending_display=[
            BlendingDisplay("FOREGROUND", [BlendingDisplayInput(2), BlendingDisplayInput(1)], relative_opacity=OPACITY)
        ],
        content_label="BLENDING",
        content_description="The two scans that were fused, blended",
        device_serial_number=None,
        **identity,
    )
    _describe(dataset, result, sides[0].header)
    # highdicom knows one study and one frame of reference; PS3.3 section C.11.33 allows more, with a registration
    for side, blended in zip(sides, inputs, strict=True):
        blended.StudyInstanceUID = word(side.header, "StudyInstanceUID")
        blended.ReferencedImageSequence = side.images
    referred = [side.source for side in sides]
    if registration is not None:
        inputs[1].ReferencedSpatialRegistrationSequence = [_place_of(registration)]
        referred.append(Source("dicom", registration, ((registration.SOPClassUID, registration.SOPInstanceUID),)))
    dataset.SourceImageSequence = [item for side in sides for item in source_references(side.source)]
    refer(dataset, referred)
    return dataset


def _images(side: Side, study_instance_uid: str) -> list[Dataset]:
    """What highdicom asks of images that are referred to: stand-ins that hold no more than what it looks at."""
    images = []
    for sop_class_uid, sop_instance_uid in side.source.instances:
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = sop_class_uid, sop_instance_uid
        image.StudyInstanceUID = study_instance_uid
        image.SeriesInstanceUID = word(side.header, "SeriesInstanceUID")
        image.FrameOfReferenceUID = ""
        image.Rows, image.Columns = count(side.header, "Rows"), count(side.header, "Columns")
        image.SamplesPerPixel = count(side.header, "SamplesPerPixel", 1)
        image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [Dataset()], []
        update(image, dict.fromkeys(OF_PATIENT_AND_STUDY))
        images.append(image)
    return images


def _input(side: Side, images: list[Dataset], number: int) -> AdvancedBlending:
    """A scan with its window and its palette.

    Where all files have one rescaling it is applied, and the window is in the unit that was shown; otherwise, as for
    PET of one slope a slice, none is applied, and each file gets a window of its stored values.
    """
    from highdicom import ModalityLUTTransformation, PaletteColorLUTTransformation
    from highdicom.content import ReferencedImageSequence
    from highdicom.pr import AdvancedBlending, SoftcopyVOILUTTransformation

    if side.window is None:
        return AdvancedBlending(images[:1], number)  # of several multi-frame images highdicom asks for a rescaling

    def windowed(slope: float, intercept: float, **of: Any) -> SoftcopyVOILUTTransformation:
        assert side.window is not None
        lower, upper = ((end - intercept) / slope for end in (side.window.lower, side.window.upper))
        return SoftcopyVOILUTTransformation(
            decimal((lower + upper) / 2), decimal(upper - lower), voi_lut_function="LINEAR_EXACT", **of
        )

    if len(set(side.source.rescales)) == 1:
        slope, intercept = side.source.rescales[0]
        rescale = ModalityLUTTransformation(decimal(intercept), decimal(slope), "HU" if side.is_hu else "US")
        windows = [windowed(1, 0)]
    else:
        rescale = ModalityLUTTransformation(0.0, 1.0, "US")
        windows = [
            windowed(*pair, referenced_images=ReferencedImageSequence([image]))
            for image, pair in zip(images, side.source.rescales, strict=True)
        ]
    colors = table_of(side.palette).astype(np.uint16) * TO_16_BITS
    palette = PaletteColorLUTTransformation.from_combined_lut(colors, 0, PALETTES[side.palette])
    return AdvancedBlending(images, number, rescale, windows, palette)


def _identity(result: Result) -> dict[str, Any]:
    """The arguments that all of highdicom's SOP classes take."""
    return result.identity | {"series_description": companion_description(result.form, result.volume.history)}


def _describe(dataset: Dataset, result: Result, structural: Dataset) -> None:
    """Set patient, study, dates, equipment, and the structural scan's frame of reference."""
    fused = result.volume
    describe_study(dataset, fused.source.header or Dataset())
    dataset.FrameOfReferenceUID = word(structural, "FrameOfReferenceUID")
    dataset.PositionReferenceIndicator = None
    carry(structural, dataset, ("PositionReferenceIndicator",))
    describe_equipment(dataset, fused)


def _place_of(written: Dataset) -> Dataset:
    """A reference to an object by study and series (PS3.3 table C.17-3)."""
    series = Dataset()
    series.SeriesInstanceUID = written.SeriesInstanceUID
    series.ReferencedSOPSequence = [reference(written.SOPClassUID, written.SOPInstanceUID)]
    return of_study(written.StudyInstanceUID, [series])
