"""DICOMDIR: the file that lists what is on a DICOM medium (PS3.3 annex F, PS3.10 section 8).

A DICOMDIR stands for its medium. The list tells which files must be there; what they are stands in the files. A name
leads from the folder of the DICOMDIR downwards, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import MediaStorageDirectoryStorage

from medfuse.errors import UnreadableFile
from medfuse.io import limits
from medfuse.io.dicom_header import damage_in, leniently, looks_like_dicom, read_dataset, word, words
from medfuse.io.dicom_series import files_below

#: A File ID has at most this many components (PS3.10 section 8.2).
_MAX_COMPONENTS = 8


def directory_in(folder: Path) -> Path | None:
    """The DICOMDIR of a folder that is a medium, whatever the case of its name; None where there is none."""
    try:
        return next((path for path in sorted(folder.iterdir()) if _file_id(path.name) == "DICOMDIR"), None)
    except OSError:
        return None  # whoever looks for files in it will say so


@leniently()
def files_of_medium(path: Path) -> list[Path] | None:
    """All files of the medium that a DICOMDIR belongs to, sorted; None if `path` is no DICOMDIR.

    They are all files below its folder, listed or not, so that a damaged list loses no slice; and those that are listed
    but absent, for each may have been a slice.

    Raises:
        UnreadableFile: The DICOMDIR is damaged, or lists files outside its folder.
    """
    try:
        with path.open("rb") as file:
            if not looks_like_dicom(file.read(132)):
                return None
    except OSError:
        return None  # likewise below
    try:
        with damage_in(path.name):
            dataset = read_dataset(path, specific_tags=["DirectoryRecordSequence"], stop_before_pixels=True)
    except UnreadableFile:
        return None  # whoever reads it as an image will say so
    if word(dataset.file_meta, "MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
        return None
    with damage_in(path.name):
        medium = _Medium(path.parent, path.name)
        listed = {medium.find(components) for components in set(_names(dataset, path.name))}
    return sorted(listed | set(files_below(path.parent)))


def _names(directory: Dataset, name: str) -> Iterator[tuple[str, ...]]:
    """The components of every File ID in use."""
    records = directory.get("DirectoryRecordSequence") or []
    if len(records) > limits.MAX_UNPACKED_FILES:
        raise UnreadableFile(
            f"expected at most {limits.MAX_UNPACKED_FILES} records, found {len(records)} in {name}",
            "Give the folder that holds the images",
        )
    for record in records:
        components = words(record, "ReferencedFileID")
        if not any(components) or word(record, "RecordInUseFlag") == "0":
            continue
        if len(components) > _MAX_COMPONENTS or any(not _is_plain(component) for component in components):
            raise UnreadableFile(
                f"expected names of files below the folder of {name}, found one that leads elsewhere",
                "Do not trust this medium; give the folder that holds the images",
            )
        yield components


def _is_plain(component: str) -> bool:
    """Whether a component is the name of a file or folder and nothing more."""
    return component not in ("", ".", "..") and not any(sign in component for sign in "/\\:\0")


def _file_id(name: str) -> str:
    """A name as a File ID has it: in upper case, without the version number that ISO 9660 adds."""
    return name.upper().split(";")[0].rstrip(".")


class _Medium:
    """The folders of a medium, each listed once.

    Args:
        root: The folder of the DICOMDIR.
        name: Name of the DICOMDIR, for messages.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._root, self._name = root, name
        self._inside = os.path.realpath(root)
        self._entries: dict[Path, dict[str, str]] = {}

    def find(self, components: tuple[str, ...]) -> Path:
        """The file of a File ID, whatever the case of its name on this medium.

        Raises:
            UnreadableFile: A link leads out of the medium.
        """
        path = self._root
        for component in components:
            path /= self._listed(path).get(component.upper(), component)
        if not Path(os.path.realpath(path)).is_relative_to(self._inside):  # resolve() may fail at links in a circle
            raise UnreadableFile(
                f"expected files below the folder of {self._name}, found a link that leads elsewhere",
                "Do not trust this medium; give the folder that holds the images",
            )
        return path

    def _listed(self, folder: Path) -> dict[str, str]:
        """The names in a folder, by their upper case and without the version number that ISO 9660 adds."""
        if folder not in self._entries:
            names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
            self._entries[folder] = {_file_id(name): name for name in names}
        return self._entries[folder]
