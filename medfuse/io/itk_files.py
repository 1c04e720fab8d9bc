"""NRRD and MetaImage files to and from `Volume`, through SimpleITK, which converts either's space to LPS."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from medfuse.errors import MissingAttribute, OutputError, UnreadableFile, UnsupportedImage
from medfuse.grid import Grid
from medfuse.io.limits import check_voxels
from medfuse.io.sidecar import meaning_of
from medfuse.itk import to_grid, to_image
from medfuse.volume import Modality, Source, Step, Unit, Volume

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
_DATA_FILE = {"data file", "datafile", "elementdatafile"}
_HEADER_BYTES = 65536


@dataclass(frozen=True)
class ItkHeader:
    """What the header of an NRRD or MetaImage file says.

    Args:
        grid: The geometry.
        is_color: Whether the voxels are three 8-bit samples.
    """

    grid: Grid
    is_color: bool


def format_of(start: bytes) -> str | None:
    """The format by the first bytes of a file, "nrrd" or "metaimage", else None."""
    if re.match(rb"NRRD\d{4}\s", start):
        return NRRD
    if re.match(rb"(?:#[^\n]*\n|\s)*(?:ObjectType|NDims)\s*=", start):
        return METAIMAGE
    return None


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
    return _header(_open(path, format), path.name)


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
    reader = _open(path, format)
    header = _header(reader, path.name)
    with _damage_in(path.name):
        stored = sitk.GetArrayFromImage(reader.Execute())
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes infinite, and is refused as such
        array = stored.astype(np.uint8 if header.is_color else np.float32)
    if fill_nan is not None and not header.is_color:
        np.nan_to_num(array, copy=False, nan=fill_nan, posinf=fill_nan, neginf=fill_nan)
    meaning = meaning_of(path, modality)
    step = Step("read", {"format": format, "files": 1, "modality_from": meaning.modality_from, "fill_nan": fill_nan})
    unit = Unit.RGB if header.is_color else meaning.unit
    return Volume(array, header.grid, meaning.modality, unit, Source(format), (*meaning.history, step))


def write_itk(volume: Volume, path: Path, format: str) -> None:
    """Write a volume, compressed: float32, or three 8-bit samples for colour.

    Args:
        volume: What to write.
        path: The file to write.
        format: "nrrd" or "metaimage".

    Raises:
        OutputError: ITK could not write it.
    """
    try:
        sitk.WriteImage(to_image(volume), str(path), useCompression=True, imageIO=_READERS[format])
    except RuntimeError as error:
        raise OutputError(f"could not write {path.name}", "Check the space left on the disk") from error


@contextmanager
def _damage_in(name: str) -> Iterator[None]:
    """Turn ITK's errors into `UnreadableFile`, and keep its warnings off the screen."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except RuntimeError as error:
        raise UnreadableFile(
            f"expected a whole image file, found {name} cut short or damaged", "Copy or convert the file again"
        ) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _open(path: Path, format: str) -> sitk.ImageFileReader:
    """An ITK reader that has read the header, after checking that the header states its geometry."""
    _check_stated(_fields(path), format, path.name)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[format])
    reader.SetFileName(str(path))
    with _damage_in(path.name):
        reader.ReadImageInformation()
    return reader


def _fields(path: Path) -> dict[str, str]:
    """The fields of the text header; keys in lower case."""
    with path.open("rb") as file:
        text = file.read(_HEADER_BYTES).decode("latin-1")
    fields: dict[str, str] = {}
    for line in text.splitlines():
        field = re.match(r"([^#:=][^:=]*?)\s*[:=]\s*(.*?)\s*$", line)
        if field:
            fields.setdefault(field[1].lower(), field[2])
        if not line.strip() or "elementdatafile" in fields:
            break
    return fields


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
    if any(re.search(r"[/\\]", fields.get(key, "")) for key in _DATA_FILE):
        raise UnsupportedImage(
            f"expected the voxels in {name} or in a file beside it, found a path to another folder",
            "Put header and voxels into one file",
        )


def _header(reader: sitk.ImageFileReader, name: str) -> ItkHeader:
    """Check what ITK found and give its geometry."""
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
