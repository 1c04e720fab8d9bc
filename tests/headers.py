"""Headers with nothing but geometry, and the planes that they make."""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset

from medfuse.io.dicom_planes import Plane, planes_of

ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": (0.60883, 0.790737, 0.063724, -0.142762, 0.188227, -0.971694),
}


def header(position: tuple[float, float, float] = (0, 0, 0), **changes: object) -> Dataset:
    ds = Dataset()
    ds.Rows, ds.Columns = 7, 9
    ds.ImagePositionPatient = list(position)
    ds.ImageOrientationPatient = list(ORIENTATIONS["axial"])
    ds.PixelSpacing = [1.5, 1.25]
    ds.FrameOfReferenceUID = "1.2.3"
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def planes(positions: list[tuple[float, float, float]], **changes: object) -> list[Plane]:
    return [
        plane
        for n, position in enumerate(positions)
        for plane in planes_of(Path(f"{n}.dcm"), header(position, **changes))
    ]
