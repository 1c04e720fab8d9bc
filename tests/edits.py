"""Changes to DICOM files that were written well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
from pydicom import Dataset


def edit(path: Path, **changes: object) -> None:
    """Change or, with None, delete attributes of a file."""
    ds = pydicom.dcmread(path)
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
            if keyword == "SOPClassUID":
                ds.file_meta.MediaStorageSOPClassUID = value
    ds.save_as(path)


def change_all(folder: Path, change: Callable[[Dataset], object]) -> None:
    """Do something to the data set of every file of a folder."""
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)
