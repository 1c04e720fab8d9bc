"""What a file is, by its content, and the folder that an archive unpacks to."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from medfuse.errors import MedfuseError, UnreadableFile
from medfuse.io import itk_files, limits
from medfuse.io.dicom_header import looks_like_dicom
from medfuse.io.nifti import looks_like_nifti, start_of

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


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder that a zip archive unpacks to, for the time of the block; any other path is given back as it is.

    Raises:
        UnreadableFile: The archive is damaged or encrypted, would write outside the folder, or is too large; this is
            found before anything is unpacked.
    """
    if not path.is_file() or format_of(path) != ZIP:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="medfuse-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                _check_archive(archive.infolist(), path.name)
                archive.extractall(folder)
        except MedfuseError:
            raise
        except Exception as error:  # zipfile passes on what its decompressors raise
            raise UnreadableFile(
                f"expected a whole zip archive, found {path.name} damaged ({type(error).__name__})",
                "Make the archive again, or unpack it and give the folder",
            ) from error
        yield Path(folder)


def _check_archive(entries: list[zipfile.ZipInfo], name: str) -> None:
    """Refuse an archive that is encrypted, too large, or that names files outside its own folder."""
    size = sum(entry.file_size for entry in entries)
    if size > limits.MAX_UNPACKED_BYTES or len(entries) > limits.MAX_UNPACKED_FILES:
        raise UnreadableFile(
            f"expected an archive of at most {limits.MAX_UNPACKED_BYTES} bytes in {limits.MAX_UNPACKED_FILES} files, "
            f"found {size} in {len(entries)} in {name}",
            "Unpack it and give the folder",
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise UnreadableFile(f"expected an open archive, found {name} encrypted", "Unpack it and give the folder")
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts + PureWindowsPath(entry.filename).parts
        if ".." in parts or PurePosixPath(entry.filename).is_absolute() or PureWindowsPath(entry.filename).anchor:
            raise UnreadableFile(
                f"expected files inside the archive's own folder, found a path that leads out of it in {name}",
                "Do not trust this archive",
            )
