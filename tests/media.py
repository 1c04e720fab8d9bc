"""Scans as they travel: in a zip archive, on a medium with a DICOMDIR."""

from __future__ import annotations

import zipfile
from pathlib import Path

from pydicom.fileset import FileSet


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    """A zip archive of the files of a folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
    return path


def write_medium(series: Path, folder: Path) -> Path:
    """The files of a series on a medium of their own, as pydicom writes one; returns its DICOMDIR."""
    files = FileSet()
    for path in series.iterdir():
        files.add(path)
    files.write(folder)
    files._stage["t"].cleanup()
    return folder / "DICOMDIR"
