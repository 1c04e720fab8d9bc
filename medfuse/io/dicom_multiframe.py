"""A derived volume → one DICOM object of all slices, each a frame placed by its functional groups.

Colour becomes Multi-frame True Color Secondary Capture Image Storage (PS3.3 section A.8.5) with the Multi-frame
Functional Groups module, which gives every frame its place in the patient (PS3.3 section C.7.6.16). What such objects
share serves `medfuse.io.dicom_parametric_map`, too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage

from medfuse.errors import OutputError
from medfuse.io.dicom_derived import (
    Result,
    along_normal,
    describe,
    measures,
    orientation,
    position,
    save,
    set_rgb,
)
from medfuse.io.dicom_provenance import is_slice_to_slice, refer, source_references, spatial_resampling
from medfuse.io.dicom_uids import all_sources

#: Name of the only file of a series.
FILE = "fused.dcm"
#: Longest value of an element (PS3.5 section 7.1.2): its length is a number of 32 bits, of which one value is taken.
MAX_BYTES = 2**32 - 2
#: The dimensions of the frames: the stack, and the place in it (PS3.3 section C.7.6.17).
DIMENSIONS = ("StackID", "InStackPositionNumber")


def write_multiframe(result: Result, folder: Path) -> list[Path]:
    """Write a colour volume as one Multi-frame True Color Secondary Capture object.

    Args:
        result: The volume, in colour, and how it is to be named and numbered.
        folder: An existing, empty folder.

    Returns:
        The file, ``fused.dcm``.

    Raises:
        OutputError: The file cannot be written, or its pixels are too many for one object.
    """
    from highdicom.base import SOPClass

    dataset = SOPClass(sop_class_uid=MultiFrameTrueColorSecondaryCaptureImageStorage, modality="OT", **result.identity)
    describe(dataset, result)
    set_rgb(dataset)
    dataset.PhotometricInterpretation = "RGB"
    dataset.SamplesPerPixel = 3
    dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.PatientOrientation = None
    if result.volume.grid.shape[0] > 1:  # PS3.3 sections C.7.6.6.1.2 and C.8.6.3
        dataset.FrameIncrementPointer = Tag("PerFrameFunctionalGroupsSequence")
    set_frames(dataset, result, Dataset())
    dataset.PixelData = frames_of(result, "u1")
    return [save(dataset, folder / FILE)]


def frames_of(result: Result, dtype: str) -> bytes:
    """The voxels of all frames, slices along the normal, padded to an even length.

    Args:
        result: What is written.
        dtype: Type of what is stored, little-endian.

    Raises:
        OutputError: They are too many for one object.
    """
    array = result.volume.array
    found = array.size * np.dtype(dtype).itemsize
    if found > MAX_BYTES:
        raise OutputError(
            f"expected at most {MAX_BYTES} bytes of pixels for one DICOM object, found {found}",
            "Write single-frame images (without --multiframe or --grey-as), or choose a coarser grid",
        )
    ordered = array[:: along_normal(result.volume.grid).step].astype(dtype, copy=False)
    return ordered.tobytes() + b"\0" * (found % 2)


def set_frames(dataset: Dataset, result: Result, shared: Dataset) -> None:
    """Set number, size, places and sources of the frames.

    Args:
        dataset: The object, of which size, Source Image Sequence and the modules Multi-frame Functional Groups,
            Multi-frame Dimension and Common Instance Reference are set.
        result: What it shows. Frames lie along the normal of the image plane.
        shared: Functional groups that all frames share beside orientation, measures and sources; taken over.
    """
    volume = result.volume
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = volume.grid.shape
    shared.PlaneOrientationSequence = [orientation(volume.grid)]
    shared.PixelMeasuresSequence = [measures(volume.grid)]
    sources = list(all_sources(volume.source))
    references = [source_references(source) for source in sources]
    slice_to_slice = is_slice_to_slice(volume)
    if any(references):
        dataset.SourceImageSequence = [item for items in references for item in items]
        refer(dataset, sources)
        if not slice_to_slice:
            shared.DerivationImageSequence = [_derivation([item for items in references for item in items])]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number, k in enumerate(along_normal(volume.grid), start=1):
        content, frame = Dataset(), Dataset()
        content.StackID = "1"
        content.InStackPositionNumber = number
        content.DimensionIndexValues = [1, number]
        frame.FrameContentSequence = [content]
        frame.PlanePositionSequence = [position(volume.grid, k)]
        if slice_to_slice:
            frame.DerivationImageSequence = [_derivation([references[0][k]])]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    _set_dimensions(dataset, result)


def _set_dimensions(dataset: Dataset, result: Result) -> None:
    """Say that the frames are one stack (PS3.3 section C.7.6.17)."""
    organization = Dataset()
    organization.DimensionOrganizationUID = result.uids.of("dimensions", result.form, result.nth)
    dataset.DimensionOrganizationSequence = [organization]
    dataset.DimensionOrganizationType = "3D"
    dataset.DimensionIndexSequence = []
    for keyword in DIMENSIONS:
        item = Dataset()
        item.DimensionOrganizationUID = organization.DimensionOrganizationUID
        item.DimensionIndexPointer = Tag(keyword)
        item.FunctionalGroupPointer = Tag("FrameContentSequence")
        item.DimensionDescriptionLabel = keyword
        dataset.DimensionIndexSequence.append(item)


def _derivation(sources: list[Dataset]) -> Dataset:
    """An item of the Derivation Image Sequence (PS3.3 section C.7.6.16.2.6)."""
    item = Dataset()
    item.DerivationCodeSequence = [spatial_resampling()]
    item.SourceImageSequence = sources
    return item
