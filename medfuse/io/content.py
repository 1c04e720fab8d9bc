"""What a file is, by its content."""

from __future__ import annotations

from pathlib import Path

from medfuse.errors import MedfuseError
from medfuse.io import itk_files
from medfuse.io.dicom_header import looks_like_dicom
from medfuse.io.nifti import header_beside, image_beside, looks_like_nifti, start_of

DICOM, NIFTI, ZIP = "dicom", "nifti", "zip"
NRRD, METAIMAGE = itk_files.NRRD, itk_files.METAIMAGE
#: The formats of one file, one volume.
VOLUMES = (NIFTI, NRRD, METAIMAGE)


def format_of(path: Path) -> str | None:
    """The format of a file: "dicom", "nifti", "nrrd", "metaimage" or "zip"; None for all else.

    The name plays no part. A file that cannot be opened has no format.
    """
    try:
        start = start_of(path)
    except OSError:
        return None
    if start[:4] == b"PK\x03\x04":
        return ZIP
    if looks_like_nifti(start):
        return NIFTI
    return itk_files.format_of(start) or (DICOM if looks_like_dicom(start) else None)


def header_of(path: Path) -> Path:
    """The file that says what a file is: for the .img of a NIfTI pair the .hdr beside it, else the file itself."""
    try:
        return header_beside(path)
    except OSError:
        return path


def voxels_of(path: Path, format: str) -> Path:
    """The file that holds the voxels of an image: the file itself, or the one beside its header.

    Args:
        path: The file.
        format: One of `VOLUMES`, as `format_of` found it.
    """
    try:
        return image_beside(path) if format == NIFTI else itk_files.data_beside(path)
    except (MedfuseError, OSError):
        return path
