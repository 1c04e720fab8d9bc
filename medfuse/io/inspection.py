"""What a path holds, told from headers alone: the answer of `inspect`, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medfuse.errors import MedfuseError
from medfuse.grid import Grid
from medfuse.io import itk_files
from medfuse.io.dicom_header import count, leniently, word
from medfuse.io.dicom_read import plan
from medfuse.io.dicom_series import Series
from medfuse.io.nifti import read_nifti_header
from medfuse.io.sidecar import meaning_of
from medfuse.volume import Modality, Unit


@dataclass(frozen=True)
class SeriesInfo:
    """One series, or one file that is a volume.

    Args:
        format: "dicom", "nifti", "nrrd" or "metaimage".
        name: DICOM: None; else the file's name.
        uid: Series Instance UID, DICOM only.
        number: Series Number, DICOM only.
        description: Series Description, DICOM only.
        modality: A value of `Modality`.
        unit: A value of `Unit`; None where the series cannot be used.
        files: Number of files.
        shape: (K, J, I), as far as the headers say.
        spacing_mm: Along (k, j, i); None where the series cannot be used.
        orientation: As `orientation` says; None where the series cannot be used.
        origin_mm: LPS position of voxel (0, 0, 0); None where the series cannot be used.
        frame_of_reference: DICOM Frame of Reference UID.
        usable: Whether `read` would take it, as far as headers can tell.
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
def inspect_series(series: Series, modality: Modality | None = None) -> SeriesInfo:
    """What a DICOM series is, and whether and why not it can be used."""
    header = series.header
    known: dict[str, Any] = {
        "format": "dicom",
        "files": len(series.files),
        "uid": series.uid,
        "number": series.number,
        "description": word(header, "SeriesDescription") or None,
        "modality": (modality or series.modality).value,
    }
    try:
        planned = plan(series, modality)
    except MedfuseError as error:
        return SeriesInfo(
            **known,
            shape=(series.images, count(header, "Rows"), count(header, "Columns")),
            frame_of_reference=word(header, "FrameOfReferenceUID") or None,
            usable=False,
            reason=str(error),
        )
    return SeriesInfo(**known, unit=planned.unit.value, **_of_grid(planned.grid))


def inspect_file(path: Path, format: str, modality: Modality | None = None) -> SeriesInfo:
    """What a NIfTI, NRRD or MetaImage file is, and whether and why not it can be used."""
    known: dict[str, Any] = {"format": format, "files": 1, "name": path.name}
    try:
        meaning = meaning_of(path, modality)
        known["modality"] = meaning.modality.value
        header = read_nifti_header(path) if format == "nifti" else itk_files.read_itk_header(path, format)
    except MedfuseError as error:
        return SeriesInfo(**{"modality": Modality.OTHER.value} | known, usable=False, reason=str(error))
    unit = Unit.RGB if header.is_color else meaning.unit
    return SeriesInfo(**known, unit=unit.value, **_of_grid(header.grid))
