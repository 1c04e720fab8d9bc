"""Zip archives: what is in one, in a temporary folder, for as long as it is needed.

Nothing that an archive says of itself is trusted. It is looked through before anything is unpacked, and a member never
unpacks to more than the size that was looked at. An archive in an archive stays packed.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from medfuse.errors import MedfuseError, UnreadableFile
from medfuse.io import limits
from medfuse.io.content import ZIP, format_of

#: How members may be packed. LZMA's own header can demand gigabytes of memory.
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
#: What macOS adds beside the files that were packed.
_ADDED = "__MACOSX"
#: Within so many bytes an archive ends: 22 of the last record, a comment, and two records of large archives.
_END_BYTES = 22 + 2**16 + 20 + 56


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
                _check_count(len(archive.infolist()), path)
                members = [one for one in archive.infolist() if PurePosixPath(one.filename).parts[:1] != (_ADDED,)]
                _check_sizes(members, path)
                _check_names(members, path.name)
                archive.extractall(folder, members)
        except MedfuseError:
            raise
        except Exception as error:  # zipfile passes on what its decompressors raise
            raise UnreadableFile(
                f"expected a whole zip archive, found {path.name} damaged ({type(error).__name__})",
                "Make the archive again, or unpack it and give the folder",
            ) from error
        yield Path(folder)


def _check_count(count: int, path: Path) -> None:
    """Refuse an archive that lists another number of files than it says: zipfile passes over those that damage hides.

    Args:
        count: How many it lists.
        path: The archive; its end (APPNOTE.TXT 6.3.10, sections 4.3.14 and 4.3.16) says how many there are.
    """
    with path.open("rb") as file:
        file.seek(-min(_END_BYTES, path.stat().st_size), os.SEEK_END)
        end = file.read()
    record = end.rfind(b"PK\5\6")
    large = end.rfind(b"PK\6\6", 0, record)
    stated, listed = int.from_bytes(end[record + 10 : record + 12], "little"), count % 2**16
    if stated == 2**16 - 1 and large >= 0:
        stated, listed = int.from_bytes(end[large + 32 : large + 40], "little"), count
    if stated != listed:
        raise UnreadableFile(
            f"expected a whole zip archive, found {count} of {stated} files in {path.name}",
            "Make the archive again, or unpack it and give the folder",
        )


def _check_sizes(members: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Refuse an archive that is encrypted, packed in an unusual way, or unpacks to too much."""
    name, size = path.name, sum(member.file_size for member in members)
    if size > limits.MAX_UNPACKED_BYTES or len(members) > limits.MAX_UNPACKED_FILES:
        raise UnreadableFile(
            f"expected an archive of at most {limits.MAX_UNPACKED_BYTES} bytes in {limits.MAX_UNPACKED_FILES} files, "
            f"found {size} in {len(members)} in {name}",
            "Unpack it and give the folder",
        )
    if size > max(limits.RATIO_FROM_BYTES, limits.MAX_UNPACKED_RATIO * path.stat().st_size):
        raise UnreadableFile(
            f"expected an archive that unpacks to at most {limits.MAX_UNPACKED_RATIO} times its size, found {name} to "
            f"unpack to {size} bytes",
            "Do not trust this archive; more can be let in by setting medfuse.io.limits.MAX_UNPACKED_RATIO",
        )
    if size > shutil.disk_usage(tempfile.gettempdir()).free:
        raise UnreadableFile(
            f"expected room for {size} bytes to unpack {name}, found less in the temporary folder",
            "Set TMPDIR to a folder with more room",
        )
    if any(member.flag_bits & 1 for member in members):
        raise UnreadableFile(f"expected an open archive, found {name} encrypted", "Unpack it and give the folder")
    if {member.compress_type for member in members} - _METHODS:
        raise UnreadableFile(
            f"expected an archive packed with deflate or bzip2, found another method in {name}",
            "Unpack it and give the folder",
        )


def _check_names(members: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Refuse an archive that names files outside its own folder, links, or one file twice."""
    for member in members:
        posix, windows = PurePosixPath(member.filename), PureWindowsPath(member.filename)
        if ".." in posix.parts + windows.parts or posix.is_absolute() or windows.anchor:
            raise UnreadableFile(
                f"expected files inside the archive's own folder, found a path that leads out of it in {name}",
                "Do not trust this archive",
            )
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnreadableFile(
                f"expected files and folders in the archive, found a link or device in {name}",
                "Unpack it, if you trust it, and give the folder",
            )
    (_, most), *_ = Counter(member.filename for member in members).most_common(1) or [("", 1)]
    if most > 1:
        raise UnreadableFile(
            f"expected every file once in the archive, found one name {most} times in {name}",
            "Make the archive again",
        )
