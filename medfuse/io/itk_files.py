"""NRRD and MetaImage files to and from `Volume`, through SimpleITK, which converts either's space to LPS."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medfuse.errors import InputError, MissingAttribute, OutputError, UnreadableFile, UnsupportedImage
from medfuse.grid import Grid
from medfuse.io.deflate import MAX_RATIO, inflated
from medfuse.io.limits import check_voxels
from medfuse.io.samples import from_stored, replace_nan, to_float32
from medfuse.io.sidecar import meaning_of
from medfuse.itk import itk_path, to_grid, to_image
from medfuse.process import shared
from medfuse.volume import Modality, Source, Step, Unit, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk

NRRD, METAIMAGE = "nrrd", "metaimage"
_READERS = {NRRD: "NrrdImageIO", METAIMAGE: "MetaImageIO"}
#: Without these words ITK makes the geometry up. Where a format knows several words for a thing, one will do.
_GEOMETRY = {
    NRRD: ({"space"}, {"space directions"}, {"space origin"}),
    METAIMAGE: (
        {"transformmatrix", "rotation", "orientation"},
        {"offset", "position", "origin"},
        {"elementspacing", "elementsize"},
    ),
}
#: The spaces of NRRD that ITK converts to LPS; of others it takes the numbers as they are.
_SPACES = {
    *("left-posterior-superior", "right-anterior-superior", "left-anterior-superior"),
    *("lps", "ras", "las"),
}
_DATA_FILE = ("data file", "datafile", "elementdatafile")
_HEADER_BYTES = 65536
_ENCODINGS = {"raw": "raw", "gz": "gzip", "gzip": "gzip", **dict.fromkeys(("txt", "text", "ascii", "hex"), "text")}
#: Most bytes of voxels that a byte of the file can stand for.
_RATIOS = {"raw": 1, "text": 8, "gzip": MAX_RATIO}


@dataclass(frozen=True)
class ItkHeader:
    """What the header of an NRRD or MetaImage file says.

    Args:
        grid: The geometry.
        is_color: Whether the voxels are three 8-bit samples.
        frames: What sets several volumes apart; files of several are refused.
        warnings: What a person should know before trusting the geometry; there is nothing.
    """

    grid: Grid
    is_color: bool
    frames: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Text:
    """The text of a header.

    Args:
        fields: Its fields; keys in lower case.
        size: Its length in bytes, up to where voxels in the same file begin.
    """

    fields: dict[str, str]
    size: int


def format_of(start: bytes) -> str | None:
    """The format by the first bytes of a file, "nrrd" or "metaimage", else None."""
    if re.match(rb"NRRD\d{4}\s", start):
        return NRRD
    if re.match(rb"(?:#[^\n]*\n|\s)*(?:ObjectType|NDims)\s*=", start):
        return METAIMAGE
    return None


def data_beside(path: Path) -> Path:
    """The file with the voxels of a header: the file itself, or one that lies beside it.

    Raises:
        UnsupportedImage: They lie in another folder.
        UnreadableFile: They are not there, or in several files.
    """
    return _data_path(path, _text(path))


def read_itk_header(path: Path, format: str) -> ItkHeader:
    """Read the header alone.

    Args:
        path: The file.
        format: "nrrd" or "metaimage", as `format_of` found it.

    Raises:
        MissingAttribute: Origin, spacing or directions are not stated.
        UnreadableFile: The header is damaged.
        UnsupportedImage: Not three dimensions, neither real numbers nor RGB, or a space that is not the patient's.
        GeometryError: The axes are not at right angles.
    """
    return _header(_open(path, format)[0], path.name)


def read_itk(path: Path, format: str, modality: Modality | None = None, fill_nan: float | None = None) -> Volume:
    """Read an NRRD or MetaImage file.

    Args:
        path: The file.
        format: "nrrd" or "metaimage", as `format_of` found it.
        modality: Overrides what the sidecar or the file's name says.
        fill_nan: Value to put in place of NaN and infinity; None refuses them.

    Returns:
        float32 of shape (K, J, I), or uint8 RGB of shape (K, J, I, 3).

    Raises:
        InputError: As `read_itk_header`; UnreadableFile also where the data is damaged or cut short.
    """
    import SimpleITK as sitk

    reader, text = _open(path, format)
    header = _header(reader, path.name)
    checksum = _check_data(path, text, reader)
    with _damage_in(path.name):
        stored = sitk.GetArrayFromImage(reader.Execute())
        if checksum not in (None, zlib.crc32(stored), zlib.crc32(stored.byteswap())):
            raise zlib.error("other bytes than were packed")
    array = stored.astype(np.uint8) if header.is_color else from_stored(stored, path.name)
    meaning = meaning_of(path, modality)
    parameters = {"format": format, "files": 1, "modality_from": meaning.modality_from}
    step = Step("read", parameters | replace_nan(array, fill_nan))
    unit = Unit.RGB if header.is_color else meaning.unit
    return Volume(array, header.grid, meaning.modality, unit, Source(format), (*meaning.history, step))


def write_itk(volume: Volume, path: Path, format: str) -> None:
    """Write a volume, compressed: float32, or three 8-bit samples for colour.

    Args:
        volume: What to write.
        path: The file to write.
        format: "nrrd" or "metaimage".

    Raises:
        OutputError: ITK could not write it, or float32 cannot hold its values.
    """
    import SimpleITK as sitk

    image = to_image(volume if volume.is_color else replace(volume, array=to_float32(volume.array)))
    known = path.with_suffix(path.suffix.lower())  # MetaImageIO does not know .MHA
    try:
        sitk.WriteImage(image, itk_path(known, OutputError), useCompression=True, imageIO=_READERS[format])
        reader, text = _open(known, format)
        _check_data(known, text, reader)  # ITK takes no notice of a full disk
        known.replace(path)
    except (RuntimeError, InputError) as error:
        raise OutputError(f"could not write {path.name}", "Check the space left on the disk") from error


@contextmanager
def _damage_in(name: str) -> Iterator[None]:
    """Turn ITK's errors into `UnreadableFile`, and keep its warnings off the screen."""
    try:
        with _silently():
            yield
    except (RuntimeError, MemoryError, OverflowError, zlib.error) as error:
        raise UnreadableFile(
            f"expected a whole image file, found {name} cut short or damaged", "Copy or convert the file again"
        ) from error


@shared
@contextmanager
def _silently() -> Iterator[None]:
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _open(path: Path, format: str) -> tuple[sitk.ImageFileReader, _Text]:
    """An ITK reader that has read the header, after checking that the header states its geometry."""
    import SimpleITK as sitk

    text = _text(path)
    _check_stated(text.fields, format, path.name)
    _data_path(path, text)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[format])
    reader.SetFileName(itk_path(path))
    with _damage_in(path.name):
        reader.ReadImageInformation()
    return reader, text


def _text(path: Path) -> _Text:
    """The text header of a file.

    ITK opens whatever file it is named, so nothing may be named that is not seen here: not by a line that ends in
    another way, not a second time, not after what is looked at.

    Raises:
        UnreadableFile: It is not clear what ITK would read.
    """
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
        is_all = not file.read(1)
    fields: dict[str, str] = {}
    size = named = 0
    is_nrrd = format_of(start) == NRRD
    for line in start.split(b"\n"):
        size += len(line) + 1
        text = line.decode("latin-1").strip()
        if "\r" in text or (is_nrrd and not text):
            break
        field = re.match(r"([^#:=][^:=]*?)\s*[:=]\s*(.*)$", text)
        if field:
            fields.setdefault(field[1].lower(), field[2])
            named += field[1].lower() in _DATA_FILE
            if field[1] == "ElementDataFile":
                break
    is_whole = line in (b"", b"\r") or is_all if is_nrrd else named > 0
    if not is_whole or "\r" in text or named > 1:
        raise UnreadableFile(
            f"expected a header of plain lines, {_HEADER_BYTES} bytes at most, that names the file of the voxels once, "
            f"found another in {path.name}",
            "Convert it again from its source",
        )
    return _Text(fields, min(size, len(start)))


def _data_path(path: Path, text: _Text) -> Path:
    """As `data_beside`."""
    named = next((text.fields[key] for key in _DATA_FILE if key in text.fields), "LOCAL")
    if named.upper() == "LOCAL":
        return path
    if re.search(r"[/\\]", named):
        raise UnsupportedImage(
            f"expected the voxels in {path.name} or in a file beside it, found a path to another folder",
            "Put header and voxels into one file",
        )
    data = path.with_name(named) if named not in ("", ".", "..") and "\0" not in named else path.parent
    if not data.is_file() or named.startswith("LIST") or "%" in named:  # lists and patterns of files to ITK
        raise UnreadableFile(
            f"expected the voxels in {path.name} or in one file beside it, found no such file",
            "Copy both files into one folder, or put header and voxels into one file",
        )
    return data


def _check_data(path: Path, text: _Text, reader: sitk.ImageFileReader) -> int | None:
    """Refuse data that cannot hold the voxels, before anything is allocated, and compressed data that is damaged.

    ITK passes over damage in compressed MetaImage files, and over a missing checksum in NRRD files.

    Returns:
        The CRC-32 of compressed voxels once unpacked; None if they are not compressed.
    """
    import SimpleITK as sitk

    fields, data = text.fields, _data_path(path, text)
    encoding = _ENCODINGS.get(fields.get("encoding", "raw").lower())
    if fields.get("compresseddata", "")[:1].lower() in ("t", "1"):  # as MetaIO understands it
        encoding = "gzip"
    elif fields.get("binarydata", "t")[:1].lower() not in ("t", "1"):
        encoding = "text"
    skips = [fields[key] for key in ("line skip", "lineskip", "byte skip", "byteskip") if key in fields]
    if encoding is None or (encoding == "gzip" and set(skips) - {"0"}):
        raise UnsupportedImage(
            f"expected the encoding raw, text, hex or gzip in {path.name}, found another", "Write it again with gzip"
        )
    sample_bytes = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    needed = math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * sample_bytes
    size, stated = data.stat().st_size, fields.get("compresseddatasize", "")
    if needed > size * _RATIOS[encoding] or (stated and not (stated.isdigit() and int(stated) <= size)):
        raise UnreadableFile(
            f"expected {' × '.join(map(str, reader.GetSize()))} voxels in {data.name}, found it cut short or damaged",
            "Copy or convert the file again",
        )
    if encoding != "gzip":
        return None
    with _damage_in(data.name), data.open("rb") as file:
        file.seek(text.size if data == path else 0)
        unpacked, checksum = inflated(file, needed)
        if unpacked != needed:
            raise zlib.error("another number of bytes than the header says")
    return checksum


def _check_stated(fields: dict[str, str], format: str, name: str) -> None:
    """Refuse headers that leave the geometry open, or that point at files elsewhere."""
    missing = [min(words) for words in _GEOMETRY[format] if not words & fields.keys()]
    if missing:
        raise MissingAttribute(
            f"expected the position in the patient in {name}, found no {', '.join(missing)}",
            "Convert it again from its source, with the geometry kept",
        )
    if format == NRRD and fields["space"].lower() not in _SPACES:
        raise UnsupportedImage(
            f"expected the space LPS, RAS or LAS in {name}, found another", "Convert it to LPS first"
        )
    units = fields.get("space units", fields.get("distanceunits", "mm")).replace('"', " ").split()
    if set(units) - {"mm", "?"}:
        raise UnsupportedImage(f"expected millimetres in {name}, found another unit", "Convert it to millimetres first")


def _header(reader: sitk.ImageFileReader, name: str) -> ItkHeader:
    """Check what ITK found and give its geometry."""
    import SimpleITK as sitk

    size, samples, pixel = reader.GetSize(), reader.GetNumberOfComponents(), reader.GetPixelID()
    if len(size) != 3:
        raise UnsupportedImage(
            f"expected three dimensions, found {' × '.join(map(str, size))} in {name}",
            "Give one 3-D volume; choose one time point, echo or channel first",
        )
    is_color = samples == 3 and pixel == sitk.sitkVectorUInt8
    if not is_color and (samples != 1 or pixel in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)):
        raise UnsupportedImage(
            f"expected real numbers or 8-bit RGB, found {samples} samples of "
            f"{sitk.GetPixelIDValueAsString(pixel)} in {name}",
            "Convert it to one real number a voxel",
        )
    check_voxels(size, name)
    return ItkHeader(to_grid(reader), is_color)
