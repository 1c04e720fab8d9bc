"""Between NIfTI files and `Volume`. The only file that knows RAS and the index order (i, j, k).

In nibabel +x points to the patient's Right, +y to the Anterior, +z to the Superior, and the first index runs along a
row. Both are set right here and nowhere else: ``lps_from_kji = lps_from_ras @ ras_from_ijk @ ijk_from_kji``.

A header can state the position twice, as sform and as qform. The sform goes before the qform, as in nibabel; a form
whose code is 0 is not stated. (NIfTI-1 standard, nifti1.h, sections "3D image (volume) orientation and location in
space" and "units of spatial and temporal dimensions".)
"""

from __future__ import annotations

import gzip
import logging
import math
import warnings
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse._version import __version__
from medfuse.errors import (
    MedfuseError,
    MedfuseWarning,
    MissingAttribute,
    OutputError,
    SeriesError,
    UnreadableFile,
    UnsupportedImage,
)
from medfuse.grid import Grid
from medfuse.io import limits
from medfuse.io.deflate import MAX_RATIO
from medfuse.io.limits import check_unpacked, check_voxels
from medfuse.io.samples import from_stored, replace_nan, to_float32
from medfuse.io.sidecar import meaning_of
from medfuse.process import Setting
from medfuse.volume import Modality, Source, Step, Unit, Volume

#: Farthest that sform and qform may put a corner voxel apart and still agree; rounding stays far below.
FORM_TOLERANCE_MM = 0.1
#: Farthest that the numbers of a written header, which are float32, may move a corner voxel.
WRITTEN_TOLERANCE_MM = 0.01

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_IJK_FROM_KJI = np.eye(4)[[2, 1, 0, 3]]
_RGB = np.dtype([(channel, "u1") for channel in "RGB"])
_RGBA = np.dtype([(channel, "u1") for channel in "RGBA"])
#: Millimetres in a unit of length, by the lowest three bits of xyzt_units; of others nothing is known.
_MM = {1: 1e3, 2: 1.0, 3: 1e-3}
_NIBABEL_LOG = logging.getLogger("nibabel.global")
#: How loud nibabel's log is; Python puts on the screen what no handler takes.
_LOUDNESS = Setting(lambda: _NIBABEL_LOG.level, _NIBABEL_LOG.setLevel)
#: What the codes of sform and qform say the position is relative to.
_CODES = {1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI", 5: "template"}
_GZIP = b"\x1f\x8b"
#: Most bytes that may follow the voxels in a gzipped file.
_TRAILING_BYTES = 2**20
#: Offset and values of the magic string of single files (NIfTI-1 and -2) and of header files with a separate image.
_MAGIC = {b"n+1\0": 344, b"n+2\0": 4}
_PAIRS = {b"ni1\0": 344, b"ni2\0": 4}


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI header says.

    Args:
        grid: The geometry.
        is_color: Whether the voxels are RGB24 or RGBA32.
        position_from: The form that says where the voxels lie, as "sform (scanner)".
        warnings: What a person should know before trusting the geometry, a sentence each, without the file's name:
            they go into the history of what is made of it.
        frames: What sets the volumes of a 4-D file apart, as "2.5 s"; empty in a file of one volume.
    """

    grid: Grid
    is_color: bool
    position_from: str
    warnings: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()


def looks_like_nifti(start: bytes) -> bool:
    """Whether the first 352 bytes, unpacked, are a NIfTI header: its size, 348 or 540, and its magic string."""
    sizes = {348, 540} & {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    return bool(sizes) and any(start[at : at + 4] == magic for magic, at in {**_MAGIC, **_PAIRS}.items())


def start_of(path: Path) -> bytes:
    """The first 352 bytes of a file, unpacked if it is gzipped; fewer if it is shorter or damaged."""
    with path.open("rb") as file:
        start = file.read(352)
    if start[:2] != _GZIP:
        return start
    try:
        with gzip.open(path) as file:
            return file.read(352)
    except (OSError, EOFError, zlib.error):
        return b""


def image_beside(path: Path) -> Path:
    """The file with the voxels of a NIfTI header: the file itself, or for a pair, the .img or .img.gz beside it."""
    start = start_of(path)
    if not any(start[at : at + 4] == magic for magic, at in _PAIRS.items()):
        return path
    found = _named_alike(path, ".img")
    if len(found) != 1:
        raise UnreadableFile(
            f"expected the voxels of {path.name} in one .img file beside it, found {len(found)} such files",
            "Copy both files of the pair into one folder",
        )
    return found[0]


def header_beside(path: Path) -> Path:
    """The .hdr or .hdr.gz that belongs to the .img of a pair; any other path is given back as it is."""
    if not path.name.lower().endswith((".img", ".img.gz")) or looks_like_nifti(start_of(path)):
        return path
    found = _named_alike(path, ".hdr")
    return found[0] if len(found) == 1 and looks_like_nifti(start_of(found[0])) else path


def _named_alike(path: Path, suffix: str) -> list[Path]:
    """The files beside one that have its name, in any case, with another suffix, gzipped or not."""
    stem = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    names = {(Path(stem).stem + end).lower() for end in (suffix, f"{suffix}.gz")}
    return sorted(other for other in path.parent.iterdir() if other.name.lower() in names and other.is_file())


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read the header alone.

    Args:
        path: The file, or the .hdr of a pair.

    Raises:
        MissingAttribute: Neither sform nor qform is set.
        UnreadableFile: The header is damaged, or the file too short for the voxels it speaks of.
        UnsupportedImage: Not three or four dimensions, or not real numbers, RGB24 or RGBA32.
        GeometryError: The axes are not at right angles.
    """
    with ExitStack() as stack:
        return _header(*_open(path, stack), path.name)


def read_nifti(
    path: Path, modality: Modality | None = None, fill_nan: float | None = None, frame: int | None = None
) -> Volume:
    """Read a NIfTI-1 or -2 file, gzipped or not, or a pair of .hdr and .img.

    What a person should know before trusting the geometry is told as a `MedfuseWarning` and noted in the history.

    Args:
        path: The file, or the .hdr of a pair.
        modality: Overrides what the sidecar or the file's name says.
        fill_nan: Value to put in place of NaN and infinity; None refuses them.
        frame: Number of the volume in a 4-D file, from 1; None refuses a file with several.

    Returns:
        float32 of shape (K, J, I) with the header's scaling applied, or uint8 RGB of shape (K, J, I, 3).

    Raises:
        InputError: As `read_nifti_header`; UnreadableFile also where the data is damaged, UnsupportedImage for colour
            that is partly transparent, and SeriesError where `frame` does not name one volume.
    """
    with ExitStack() as stack:
        image, stream = _open(path, stack)
        header = _header(image, stream, path.name)
        _check_frame(header, frame, path.name)
        try:
            array = _array(image, header, frame or 1, path.name)
            _check_end(image, stream)
        except MedfuseError:
            raise
        except Exception as error:
            raise UnreadableFile(
                f"expected {' × '.join(map(str, image.shape))} voxels in {path.name}, found it cut short or damaged",
                "Copy or convert the file again",
            ) from error
    for message in header.warnings:
        warnings.warn(f"{path.name}: {message}", MedfuseWarning, stacklevel=3)
    meaning = meaning_of(path, modality)
    parameters = {"format": "nifti", "files": 1, "modality_from": meaning.modality_from}
    parameters |= {**replace_nan(array, fill_nan), "position_from": header.position_from}
    parameters |= {"frame": frame, "frames": len(header.frames)} if header.frames else {}
    parameters |= {"warnings": list(header.warnings)} if header.warnings else {}
    unit = Unit.RGB if header.is_color else meaning.unit
    history = (*meaning.history, Step("read", parameters))
    return Volume(array, header.grid, meaning.modality, unit, Source("nifti"), history)


def _open(path: Path, stack: ExitStack) -> tuple[Any, Any]:
    """The nibabel image of a file whose name may be anything, and the stream of its voxels.

    The voxels stay on disk until the stack is closed.
    """
    import nibabel as nib
    from nibabel.fileholders import FileHolder

    start = start_of(path)
    image_path = image_beside(path)
    version_2 = start[4:8] in (b"n+2\0", b"ni2\0")
    kinds = (nib.Nifti1Image, nib.Nifti2Image) if image_path == path else (nib.Nifti1Pair, nib.Nifti2Pair)
    try:
        streams = {"header": _stream(path, stack), "image": _stream(image_path, stack)}
        stated = kinds[version_2].header_class.from_fileobj(streams["header"], check=False)
        streams["header"].seek(0)
        with _LOUDNESS.at(logging.CRITICAL + 1):
            image = kinds[version_2].from_file_map({key: FileHolder(fileobj=file) for key, file in streams.items()})
    except Exception as error:
        raise UnreadableFile(
            f"expected a NIfTI file, found {path.name} damaged ({type(error).__name__})",
            "Copy or convert the file again",
        ) from error
    if image_path == path and image.dataobj.offset < stated.single_vox_offset:
        raise UnreadableFile(
            f"expected voxels behind the header of {path.name} (vox_offset of at least {stated.single_vox_offset}), "
            f"found them at {image.dataobj.offset}",
            "Convert it again from its source",
        )
    for form in ("sform_code", "qform_code"):
        if not 0 <= (code := int(stated[form])) <= max(_CODES):
            raise UnreadableFile(
                f"expected 0 to {max(_CODES)} as {form} of {path.name}, found {code}, so it is not known what states "
                "where it lies in the patient",
                "Convert it again from its source, with the orientation kept",
            )
    with np.errstate(all="ignore"):  # of NaN
        image.header["pixdim"][1:4][stated["pixdim"][1:4] == 0] = 0  # nibabel puts 1 there
    return image, streams["image"]


def _stream(path: Path, stack: ExitStack) -> Any:
    """A file, unpacked where it is gzipped, that is closed with the stack."""
    file = stack.enter_context(path.open("rb"))
    gzipped = file.read(2) == _GZIP
    file.seek(0)
    return stack.enter_context(gzip.GzipFile(fileobj=file)) if gzipped else file


def _header(image: Any, stream: Any, name: str) -> NiftiHeader:
    """Check a nibabel image and give its geometry."""
    dtype, shape = image.get_data_dtype(), image.shape
    if dtype not in (_RGB, _RGBA) and dtype.kind not in "iuf":
        raise UnsupportedImage(
            f"expected real numbers, RGB24 or RGBA32, found {dtype} in {name}", "Convert it to float32 or RGB24"
        )
    several = [n for n in shape[3:] if n != 1]
    if len(shape) < 3 or len(several) > 1 or max(several, default=1) > limits.MAX_FRAMES:
        raise UnsupportedImage(
            f"expected three dimensions, or four, found {' × '.join(map(str, shape))} in {name}",
            "Give one 3-D volume, or a 4-D file of several",
        )
    check_voxels((*shape[:3], *(n for n in several if n < 1)), name)
    _check_size(image, stream, name)
    ras_from_ijk, position_from, notes = _position(image, name)
    mm = _MM.get(int(image.header["xyzt_units"]) & 7)
    if mm is None:
        notes.append("the unit of length is not stated; millimetres were assumed")
        mm = 1.0
    grid = Grid(shape[2::-1], _LPS_FROM_RAS @ np.diag([mm, mm, mm, 1.0]) @ ras_from_ijk @ _IJK_FROM_KJI)
    frames = _times(image, several[0]) if several else ()
    return NiftiHeader(grid, dtype in (_RGB, _RGBA), position_from, tuple(notes), frames)


def _check_frame(header: NiftiHeader, frame: int | None, name: str) -> None:
    """Refuse to leave open, or to miss, which volume of a file is meant."""
    count = len(header.frames) or 1
    if (frame is None and count == 1) or (frame is not None and 1 <= frame <= count):
        return
    asked = "one volume" if frame is None else f"a frame of 1 to {count}, not {frame}"
    when = f", {header.frames[0]} to {header.frames[-1]}" if header.frames and header.frames[0] else ""
    raise SeriesError(
        f"expected {asked}, found {count} volume{'s' * (count > 1)} in {name}{when}",
        f"Choose one of frames 1 to {count} with --frame (in Python: frame=)" if count > 1 else "Leave out --frame",
    )


def _times(image: Any, count: int) -> tuple[str, ...]:
    """When each of several volumes was taken, as "2.5 s"; "" where the header does not say, or they are no times."""
    seconds = {8: 1.0, 16: 1e-3, 24: 1e-6}.get(int(image.header["xyzt_units"]) & 56)
    step = float(image.header["pixdim"][4])
    told = seconds is not None and math.isfinite(step) and step > 0 and image.shape[3] == count  # the axis of time
    return tuple(f"{n * step * (seconds or 0):g} s" if told else "" for n in range(count))


def _position(image: Any, name: str) -> tuple[NDArray[np.float64], str, list[str]]:
    """The (4, 4) matrix from index (i, j, k) to RAS in the header's unit, what states it, and warnings."""
    sform, qform = _form(image, "sform"), _form(image, "qform")
    used = sform or qform
    if used is None:
        raise MissingAttribute(
            f"expected sform or qform in {name}, found neither (both codes are 0), so its position in the patient is "
            "unknown",
            "Convert it again from its source, with the orientation kept",
        )
    ras_from_ijk, said_by = used
    if ras_from_ijk is None or not np.isfinite(ras_from_ijk).all():
        raise UnreadableFile(
            f"expected finite numbers as {said_by} in {name}, found others, so its position in the patient is unknown",
            "Convert it again from its source, with the orientation kept",
        )
    notes = []
    if sform and qform:
        apart_mm = _apart(image, ras_from_ijk, qform[0])
        if not apart_mm <= FORM_TOLERANCE_MM:
            by = f"by up to {apart_mm:.1f} mm" if math.isfinite(apart_mm) else "(the latter is damaged)"
            notes.append(f"{sform[1]} and {qform[1]} disagree {by}; the sform was used")
    return ras_from_ijk, said_by, notes


def _form(image: Any, which: str) -> tuple[NDArray[np.float64] | None, str] | None:
    """A form's (4, 4) matrix, None where it is damaged, and its name with what it is relative to; None if not set."""
    from nibabel.spatialimages import HeaderDataError

    code = int(image.header[f"{which}_code"])
    if code == 0:
        return None
    named = f"{which} ({_CODES[code]})"
    try:
        with np.errstate(all="ignore"):
            if which == "qform" and (image.header["pixdim"][1:4] == 0).any():
                return None, named
            return np.asarray(getattr(image, f"get_{which}")(), dtype=np.float64), named
    except (HeaderDataError, ValueError, ArithmeticError):
        return None, named


def _apart(image: Any, first: NDArray[np.float64], second: NDArray[np.float64] | None) -> float:
    """The largest distance in mm between the places that two forms give one corner voxel; infinite if damaged."""
    if second is None or not np.isfinite(second).all():
        return math.inf
    mm = _MM.get(int(image.header["xyzt_units"]) & 7, 1.0)
    corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)]) * (*(np.array(image.shape[:3]) - 1), 1)
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(corners @ (first - second).T, axis=1).max() * mm)


def _check_size(image: Any, stream: Any, name: str) -> None:
    """Refuse a file that cannot hold the voxels its header speaks of, before anything is allocated for them."""
    packed = isinstance(stream, gzip.GzipFile)
    file = stream.fileobj if packed else stream
    here = file.tell()
    size = file.seek(0, 2)
    file.seek(here)
    needed = _end_of(image)
    if packed:
        check_unpacked(needed, name)
    if needed > size * (MAX_RATIO if packed else 1):
        raise UnreadableFile(
            f"expected {' × '.join(map(str, image.shape))} voxels in {name}, found it cut short or damaged",
            "Copy or convert the file again",
        )


def _end_of(image: Any) -> int:
    """Where the voxels of an image end in its unpacked file, in bytes."""
    return int(image.dataobj.offset) + math.prod(map(int, image.shape)) * int(image.get_data_dtype().itemsize)


def _check_end(image: Any, stream: Any) -> None:
    """Read a gzipped file to its end, where its checksum lies (RFC 1952), so that no damage passes unseen."""
    if not isinstance(stream, gzip.GzipFile):
        return
    stream.seek(_end_of(image))
    if len(stream.read(_TRAILING_BYTES)) == _TRAILING_BYTES:
        raise ValueError("more data than the header speaks of")


def _array(image: Any, header: NiftiHeader, frame: int, name: str) -> NDArray[Any]:
    """The voxels as (K, J, I) float32 or (K, J, I, 3) uint8."""
    at: Any = (..., *(frame - 1 if n != 1 else 0 for n in image.shape[3:]))
    if header.is_color:
        voxels = np.asarray(image.dataobj.get_unscaled())[at].transpose(2, 1, 0)
        if voxels.dtype == _RGBA and np.ptp(voxels["A"]) > 0:
            raise UnsupportedImage(
                f"expected opaque colour, found transparent voxels in {name}", "Convert it to RGB24 first"
            )
        return np.stack([voxels[channel] for channel in "RGB"], axis=-1)
    return from_stored(image.dataobj[at].transpose(2, 1, 0), name)


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume as NIfTI-1, gzipped where the name ends with .gz: float32, or RGB24 for colour.

    sform and qform are both set, code 1 (scanner); the same volume gives the same bytes.

    Args:
        volume: What to write.
        path: A name that ends with .nii or .nii.gz, in a folder that exists.

    Raises:
        OutputError: The volume's size, position or values do not fit into NIfTI-1.
    """
    import nibabel as nib
    from nibabel.spatialimages import HeaderDataError

    data = np.ascontiguousarray(volume.array).view(_RGB)[..., 0] if volume.is_color else to_float32(volume.array)
    ras_from_ijk = _LPS_FROM_RAS @ volume.grid.lps_from_index @ _IJK_FROM_KJI
    try:
        image = nib.Nifti1Image(data.transpose(2, 1, 0), ras_from_ijk)
        image.set_sform(ras_from_ijk, code=1)
        image.set_qform(ras_from_ijk, code=1)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = f"medfuse {__version__}"
        if not _apart(image, image.get_sform(), ras_from_ijk) <= WRITTEN_TOLERANCE_MM:
            raise HeaderDataError("its position is too far from the origin for the header's float32")
        with ExitStack() as stack:
            file: Any = stack.enter_context(path.open("wb"))
            if path.suffix.lower() == ".gz":
                file = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0))
            image.to_stream(file)
    except HeaderDataError as error:
        raise OutputError(
            f"could not write {' × '.join(map(str, volume.grid.shape))} voxels as NIfTI: {error}",
            "Give it a name that ends with .mha",
        ) from error
