"""Between NIfTI files and `Volume`. The only file that knows RAS and the index order (i, j, k).

In nibabel +x points to the patient's Right, +y to the Anterior, +z to the Superior, and the first index runs along a
row. Both are set right here and nowhere else: ``lps_from_kji = lps_from_ras @ ras_from_ijk @ ijk_from_kji``.
"""

from __future__ import annotations

import gzip
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medfuse._version import __version__
from medfuse.errors import MissingAttribute, OutputError, UnreadableFile, UnsupportedImage
from medfuse.grid import Grid
from medfuse.io.limits import check_voxels
from medfuse.io.sidecar import meaning_of
from medfuse.volume import Modality, Source, Step, Unit, Volume

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_IJK_FROM_KJI = np.eye(4)[[2, 1, 0, 3]]
_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1e3, "micron": 1e-3}
_GZIP = b"\x1f\x8b"
#: Offset and values of the magic string of single files (NIfTI-1 and -2) and of header files with a separate image.
_MAGIC = {b"n+1\0": 344, b"n+2\0": 4}
_PAIRS = {b"ni1\0": 344, b"ni2\0": 4}


@dataclass(frozen=True)
class NiftiHeader:
    """What a NIfTI header says.

    Args:
        grid: The geometry.
        is_color: Whether the voxels are RGB24.
    """

    grid: Grid
    is_color: bool


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


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read the header alone.

    Raises:
        MissingAttribute: Neither sform nor qform is set.
        UnreadableFile: The header is damaged.
        UnsupportedImage: Not three dimensions, not real numbers or RGB24, or a header apart from its image.
        GeometryError: The axes are not at right angles.
    """
    with ExitStack() as stack:
        return _header(_open(path, stack), path.name)


def read_nifti(path: Path, modality: Modality | None = None, fill_nan: float | None = None) -> Volume:
    """Read a NIfTI-1 or -2 file, gzipped or not.

    Args:
        path: The file.
        modality: Overrides what the sidecar or the file's name says.
        fill_nan: Value to put in place of NaN and infinity; None refuses them.

    Returns:
        float32 of shape (K, J, I) with the header's scaling applied, or uint8 RGB of shape (K, J, I, 3).

    Raises:
        InputError: As `read_nifti_header`; UnreadableFile also where the data is damaged or cut short.
    """
    with ExitStack() as stack:
        image = _open(path, stack)
        header = _header(image, path.name)
        try:
            array = _array(image, header)
        except Exception as error:
            raise UnreadableFile(
                f"expected {' × '.join(map(str, image.shape))} voxels in {path.name}, found it cut short or damaged",
                "Copy or convert the file again",
            ) from error
    if fill_nan is not None and not header.is_color:
        np.nan_to_num(array, copy=False, nan=fill_nan, posinf=fill_nan, neginf=fill_nan)
    meaning = meaning_of(path, modality)
    step = Step("read", {"format": "nifti", "files": 1, "modality_from": meaning.modality_from, "fill_nan": fill_nan})
    unit = Unit.RGB if header.is_color else meaning.unit
    return Volume(array, header.grid, meaning.modality, unit, Source("nifti"), (*meaning.history, step))


def _open(path: Path, stack: ExitStack) -> Any:
    """The nibabel image of a file whose name may be anything; its data stays on disk until the stack is closed."""
    start = start_of(path)
    if any(start[at : at + 4] == magic for magic, at in _PAIRS.items()):
        raise UnsupportedImage(
            f"expected header and image in one file, found a header alone in {path.name}", "Convert it to one .nii file"
        )
    kind = nib.Nifti2Image if start[4:8] == b"n+2\0" else nib.Nifti1Image
    try:
        file = stack.enter_context(path.open("rb"))
        gzipped = file.read(2) == _GZIP
        file.seek(0)
        return kind.from_stream(stack.enter_context(gzip.GzipFile(fileobj=file)) if gzipped else file)
    except Exception as error:
        raise UnreadableFile(
            f"expected a NIfTI file, found {path.name} damaged ({type(error).__name__})",
            "Copy or convert the file again",
        ) from error


def _header(image: Any, name: str) -> NiftiHeader:
    """Check a nibabel image and give its geometry; sform goes before qform, as in nibabel."""
    dtype, shape = image.get_data_dtype(), image.shape
    if dtype != _RGB and dtype.kind not in "iuf":
        raise UnsupportedImage(
            f"expected real numbers or RGB24, found {dtype} in {name}", "Convert it to float32 or RGB24"
        )
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise UnsupportedImage(
            f"expected three dimensions, found {' × '.join(map(str, shape))} in {name}",
            "Give one 3-D volume; choose one time point, echo or channel of a 4-D file first",
        )
    check_voxels(shape[:3], name)
    try:
        ras_from_ijk = image.get_sform(coded=True)[0]
        if ras_from_ijk is None:
            ras_from_ijk = image.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError) as error:
        raise UnreadableFile(
            f"expected an orientation in {name}, found a damaged one", "Convert the file again"
        ) from error
    if ras_from_ijk is None:
        raise MissingAttribute(
            f"expected sform or qform in {name}, found neither, so its position in the patient is unknown",
            "Convert it again from its source, with the orientation kept",
        )
    mm = _MM[image.header.get_xyzt_units()[0]]
    grid = Grid(shape[2::-1], _LPS_FROM_RAS @ np.diag([mm, mm, mm, 1.0]) @ ras_from_ijk @ _IJK_FROM_KJI)
    return NiftiHeader(grid, dtype == _RGB)


def _array(image: Any, header: NiftiHeader) -> NDArray[Any]:
    """The voxels as (K, J, I) float32 or (K, J, I, 3) uint8."""
    if header.is_color:
        rgb = np.asarray(image.dataobj).reshape(image.shape[:3], order="A").transpose(2, 1, 0)
        return np.stack([rgb[channel] for channel in "RGB"], axis=-1)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes infinite, and is refused as such
        data = np.asarray(image.dataobj)
        data = data.reshape(image.shape[:3], order="A").transpose(2, 1, 0)
        return np.array(data, dtype=np.float32, order="C")


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume as NIfTI-1, gzipped where the name ends with .gz: float32, or RGB24 for colour.

    sform and qform are both set, code 1 (scanner); the same volume gives the same bytes.

    Args:
        volume: What to write.
        path: A name that ends with .nii or .nii.gz, in a folder that exists.

    Raises:
        OutputError: The volume does not fit into NIfTI-1.
    """
    if volume.is_color:
        data = np.ascontiguousarray(volume.array).view(_RGB)[..., 0]
    else:
        data = volume.array.astype(np.float32, copy=False)
    ras_from_ijk = _LPS_FROM_RAS @ volume.grid.lps_from_index @ _IJK_FROM_KJI
    try:
        image = nib.Nifti1Image(data.transpose(2, 1, 0), ras_from_ijk)
        image.set_sform(ras_from_ijk, code=1)
        image.set_qform(ras_from_ijk, code=1)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = f"medfuse {__version__}"
        with ExitStack() as stack:
            file: Any = stack.enter_context(path.open("wb"))
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0))
            image.to_stream(file)
    except HeaderDataError as error:
        raise OutputError(
            f"could not write {' × '.join(map(str, volume.grid.shape))} voxels as NIfTI: {error}", "Use --format mha"
        ) from error
