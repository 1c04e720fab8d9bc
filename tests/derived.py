"""Volumes to write as DICOM, their sources, and what dciodvfy says of what was written."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pydicom
from conftest import oblique_direction
from programs import external
from pydicom import Dataset
from pydicom.uid import MRImageStorage

from medfuse.grid import Grid
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.dicom_write import write_dicom
from medfuse.volume import Modality, Source, Unit, Volume

SHAPE = (5, 7, 9)
KINDS = ("color", "fused", "whole", "signed", "real")
#: The kinds of objects that are written, as dciodvfy calls them.
IODS = ("SCImage", "MRImage", "MultiframeTrueColorSCImage", "ParametricMap")
#: What dciodvfy warns of in objects that are as they should be, and why. Of all else it must be silent.
EXPLAINED = {
    r"Attribute is not present in standard DICOM IOD": "a Standard Extended SOP Class: single-frame Secondary Capture "
    "with an image plane, multi-frame with Frame Content and Derivation Image (PS3.2 section 7.3.1)",
    r"this is a Standard Extended SOP Class": "follows from that",
    r"needed to build DICOMDIR": "the source has no such value, and none is made up",
    r"Retired Person Name form": "a source's name of one component is carried on as it is",
    r"only permitted to be empty when actually unknown": "the source says no laterality, so it is unknown",
    r"Unrecognized defined term.*Scan ?Options|Scan ?Options.*Unrecognized defined term": "a scanner's own word",
    r"CodingSchemeDesignator is deprecated .*= <SRT>": "the source's own code of the region is carried on",
}


def grid_of(left_handed: bool = False, seed: int = 1, frame: str | None = "1.2.826.0.1.999") -> Grid:
    direction = oblique_direction(seed)
    if left_handed:
        direction = direction * (-1, 1, 1)
    return Grid.from_axes(SHAPE, (-31.5, 44.25, 117.123456789), (3.0, 1.5, 1.25), direction, frame)


def volume_of(kind: str, grid: Grid | None = None, source: Source | None = None) -> Volume:
    rng = np.random.default_rng(3)
    grid, source = grid or grid_of(), source or Source()
    if kind == "color":
        color = rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
        return Volume(color, grid, Modality.FUSED, Unit.RGB, source)
    array = {
        "fused": rng.permutation(np.linspace(0, 1, np.prod(SHAPE))),
        "whole": rng.integers(0, 60_000, SHAPE).astype(np.float32),
        "signed": rng.integers(-500, 3000, SHAPE),
        "real": rng.normal(0, 1e-3, SHAPE),
    }[kind]
    modality = Modality.FUSED if kind == "fused" else Modality.MR
    return Volume(array.reshape(SHAPE), grid, modality, source=source)


def expected_values(volume: Volume) -> np.ndarray:
    """The values that a reader finds: grey fused ones are stored as 0-4095."""
    is_grey_fused = volume.modality is Modality.FUSED and not volume.is_color
    return np.rint(volume.array * 4095) if is_grey_fused else volume.array


def tolerance(volume: Volume) -> float:
    """Half a step of 16 bits where values are not whole."""
    return 0.0 if volume.array.dtype.kind in "iu" else 0.51 * float(np.ptp(volume.array)) / 65535


def fake_header(**attributes: object) -> Dataset:
    header = Dataset()
    for keyword, value in {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": MRImageStorage,
        "Modality": "MR",
        "Manufacturer": "Scanner & Söhne",
        "PatientName": "Müller^Jürgen",
        "PatientID": "case 7",
        "PatientBirthDate": "19501231",
        "PatientSex": "O",
        "PatientWeight": "70.5",
        "StudyInstanceUID": "1.2.3.4",
        "StudyDate": "20200102",
        "StudyTime": "101112.5",
        "StudyID": "S1",
        "AccessionNumber": "A1",
        "StudyDescription": "Knie",
        "ReferringPhysicianName": "Æsop",
        "SeriesNumber": 7,
        "FrameOfReferenceUID": "1.2.826.0.1.999",
        "PositionReferenceIndicator": "SN",
        "BodyPartExamined": "KNEE",
        "Laterality": "L",
        "PatientPosition": "FFP",
        "ScanningSequence": ["SE", "IR"],
        "SequenceVariant": "SK",
        "MRAcquisitionType": "2D",
        "RepetitionTime": "500",
        "EchoTime": "12",
        "InversionTime": "100",
        **attributes,
    }.items():
        setattr(header, keyword, value)
    return header


def instances(root: str, count: int, sop_class: str = MRImageStorage) -> tuple[tuple[str, str], ...]:
    return tuple((sop_class, f"{root}.{n}") for n in range(count))


def written(volume: Volume, folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in write_dicom(volume, folder)]


def objects(volume: Volume, folder: Path, **options: object) -> list[Dataset]:
    """What is written of a volume, read again."""
    folder.mkdir(exist_ok=True)
    return [pydicom.dcmread(path) for path in write_dicom(volume, folder, options=DicomOptions(**options))]


def lines_of_dciodvfy(paths: list[Path]) -> list[str]:
    """What dciodvfy says of files under its older and its newer reading of the standard, the kind of object apart."""
    command, lines = external("dciodvfy"), []
    for path in paths:
        for options in ([], ["-new"]):
            run = subprocess.run([command, *options, path], capture_output=True, text=True, check=False)
            said = (run.stdout + run.stderr).splitlines()
            assert any(line in IODS for line in said), said
            lines += [line for line in said if line not in IODS]
    return lines


def complaints(paths: list[Path]) -> list[str]:
    """The lines in which dciodvfy finds an error."""
    return [line for line in lines_of_dciodvfy(paths) if "Error" in line]


def unexplained(paths: list[Path]) -> set[str]:
    """What dciodvfy says that nothing explains, errors among it."""
    allowed = re.compile("|".join(EXPLAINED))
    return {line for line in lines_of_dciodvfy(paths) if "Error" in line or not allowed.search(line)}
