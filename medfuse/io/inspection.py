"""What a path holds, told from headers alone: the answer of `inspect`, for people and as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from medfuse.errors import MedfuseError
from medfuse.grid import Grid
from medfuse.io import itk_files
from medfuse.io.dicom_header import count, damage_in, leniently, read_dataset, word, words
from medfuse.io.dicom_parts import Part
from medfuse.io.dicom_read import Reading, parts, plan
from medfuse.io.dicom_series import Series
from medfuse.io.nifti import read_nifti_header
from medfuse.io.sidecar import MAKER, meaning_of
from medfuse.volume import Modality, Unit


@dataclass(frozen=True)
class SeriesInfo:
    """One series, or one file that is a volume.

    Args:
        format: "dicom", "nifti", "nrrd" or "metaimage".
        name: DICOM: None; else the file's name.
        uid: Series Instance UID, DICOM only.
        number: Series Number, DICOM only.
        description: Series Description, DICOM only; "…" stands for the patient's ID and family name in it.
        modality: A value of `Modality`.
        unit: A value of `Unit`; None where the series cannot be used.
        files: Number of files.
        shape: (K, J, I), as far as the headers say.
        spacing_mm: Along (k, j, i); None where the series cannot be used.
        orientation: As `orientation` says; None where the series cannot be used.
        origin_mm: LPS position of voxel (0, 0, 0); None where the series cannot be used.
        frame_of_reference: DICOM Frame of Reference UID.
        part: Which of the volumes that the series holds this is, from 1; None where it holds one.
        label: What sets the part apart from the others, in words.
        frames: What sets each of several time points apart, in words; `read` then wants one by its number, from 1.
        suv_factor: What makes SUV of the values in the files' own unit, DICOM PET only; None where nothing does.
        warnings: What a person should know although it can be read.
        by_medfuse: Whether it is a result of medfuse, fused, resampled or converted, DICOM only.
        usable: Whether `read` would take it, or one of its time points, as far as headers can tell.
        reason: Why not.
    """

    format: str
    modality: str
    files: int
    name: str | None = None
    uid: str | None = None
    number: int | None = None
    description: str | None = None
    unit: str | None = None
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    orientation: str | None = None
    origin_mm: tuple[float, ...] | None = None
    frame_of_reference: str | None = None
    part: int | None = None
    label: str | None = None
    frames: tuple[str, ...] = ()
    suv_factor: float | None = None
    warnings: tuple[str, ...] = ()
    by_medfuse: bool = False
    usable: bool = True
    reason: str | None = None


@dataclass(frozen=True)
class Inspection:
    """What a path holds.

    Args:
        series: The series, or the files that are volumes.
        left_out: What else is there and why it is no scan, as "1 file: RT Structure Set holds no image".
    """

    series: tuple[SeriesInfo, ...]
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values. Holds no patient's name or ID, but the series' description and UID."""
        return asdict(self)


def orientation(grid: Grid) -> str:
    """How the slices lie: the nearest of axial, coronal and sagittal, and the angle between the two if over 0.1°.

    >>> orientation(Grid.from_axes((2, 3, 4), (0, 0, 0), (5, 1, 1), np.eye(3)[:, ::-1]))
    'axial'
    """
    _, row, column = grid.direction.T
    normal = np.abs(np.cross(row, column))
    name = ("sagittal", "coronal", "axial")[int(normal.argmax())]
    degrees = float(np.degrees(np.arccos(min(1.0, normal.max()))))
    return f"{name}, {degrees:.1f}° oblique" if degrees > 0.1 else name


def _of_grid(grid: Grid) -> dict[str, Any]:
    """The fields that a grid fills."""
    return {
        "shape": grid.shape,
        "spacing_mm": grid.spacing_mm,
        "orientation": orientation(grid),
        "origin_mm": tuple(grid.origin_mm.tolist()),
        "frame_of_reference": grid.frame_of_reference,
    }


@leniently()
def inspect_series(series: Series) -> list[SeriesInfo]:
    """What a DICOM series is, or each of the volumes that it holds, and whether and why not it can be used."""
    header = series.header
    known = SeriesInfo(
        format="dicom",
        files=len(series.files),
        uid=series.uid,
        number=series.number,
        description=_described(header) or None,
        modality=series.modality.value,
        shape=(series.images, count(header, "Rows"), count(header, "Columns")),
        frame_of_reference=word(header, "FrameOfReferenceUID") or None,
        by_medfuse=_is_made_here(series),
    )
    try:
        found = parts(series)
    except MedfuseError as error:
        return [replace(known, usable=False, reason=str(error))]
    if len(found) == 1:
        return [_of_part(series, found, 1, known)]
    return [
        _of_part(series, found, n, replace(known, part=n, label=part.label)) for n, part in enumerate(found, start=1)
    ]


def _is_made_here(series: Series) -> bool:
    """Whether medfuse derived the first image of a series (its sample, which it draws, is marked original)."""
    path, header = series.files[0]
    if "DERIVED" not in words(header, "ImageType"):
        return False
    keywords = ["Manufacturer", "ContributingEquipmentSequence", "SOPClassUID"]
    try:
        with damage_in(path.name):
            header = read_dataset(path, specific_tags=keywords, stop_before_pixels=True)
    except (MedfuseError, OSError):
        return False
    makers: Iterable[Dataset] = (header, *(header.get("ContributingEquipmentSequence") or ()))
    return any(word(maker, "Manufacturer") == MAKER for maker in makers)


def _described(header: Dataset) -> str:
    """Series Description without the patient's ID and family name, which some write into it."""
    text = word(header, "SeriesDescription")
    for known in (word(header, "PatientID"), word(header, "PatientName").partition("^")[0].strip()):
        if len(known) > 3:  # shorter ones are in many words
            text = re.sub(re.escape(known), "…", text, flags=re.IGNORECASE)
    return text


def _of_part(series: Series, found: Sequence[Part], n: int, known: SeriesInfo) -> SeriesInfo:
    """What volume n of a series, from 1, is; of several time points, the first."""
    part = found[n - 1]
    several = len(part.frames) > 1
    planes = [plane for frame in part.frames for plane in frame]
    known = replace(
        known,
        files=len({plane.path for plane in planes}),
        shape=(len(part.frames[0]), *planes[0].shape),
        frames=part.labels if several else (),
    )
    try:
        planned = plan(replace(series, part=n), Reading(frame=1 if several else None), found)
    except MedfuseError as error:
        return replace(known, usable=False, reason=str(error))
    factor = planned.suv.factor if planned.suv else None
    known = replace(known, unit=planned.unit.value, suv_factor=factor, warnings=planned.warnings)
    return replace(known, **_of_grid(planned.stack.grid))


def inspect_file(path: Path, format: str) -> SeriesInfo:
    """What a NIfTI, NRRD or MetaImage file is, and whether and why not it can be used."""
    known: dict[str, Any] = {"format": format, "files": 1, "name": path.name}
    try:
        meaning = meaning_of(path)
        known["modality"] = meaning.modality.value
        header = read_nifti_header(path) if format == "nifti" else itk_files.read_itk_header(path, format)
    except MedfuseError as error:
        return SeriesInfo(**{"modality": Modality.OTHER.value} | known, usable=False, reason=str(error))
    known |= {"unit": (Unit.RGB if header.is_color else meaning.unit).value, "frames": header.frames}
    return SeriesInfo(**known, warnings=header.warnings, **_of_grid(header.grid))
