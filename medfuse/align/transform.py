"""The transforms between two patient coordinate systems, linear or deformable, and their files.

All map a point of the fixed (structural) world to the same tissue in the moving (functional) one, in LPS mm: the
direction that ITK reports and that resampling pulls.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medfuse.align.itk_transforms import is_whole_text, suffix_for_itk, unreadable
from medfuse.align.linear import Transform
from medfuse.align.warp import Warp, parts_of
from medfuse.errors import OutputError, UnreadableFile, UnsupportedImage
from medfuse.grid import Grid
from medfuse.itk import itk_path
from medfuse.output import check_target, whole

__all__ = ["SUFFIXES", "Transform", "Warp", "check_transform_target", "read_transform", "write_transform"]

SUFFIXES = (".tfm", ".h5", ".txt")
#: More than two scans of one patient can differ by: how much longer or shorter a transform may make anything.
MOST_STRETCH = 2.0
#: What HDF5 has around the numbers of a transform, at most (8.4 kB were found); and a mebibyte.
HDF5_BYTES, MIB = 2**16, 2**20
#: A longer file is no list of 16 numbers.
MOST_TEXT_BYTES = 16_384


def read_transform(path: Path | str, fixed: Grid | None = None, moving: Grid | None = None) -> Transform | Warp:
    """Read a transform from the fixed (structural) world to the moving (functional) one; the content says what it is.

    - an ITK transform (.tfm, .txt, .h5, or ANTs' .mat): linear, or with B-splines or displacement fields in it;
    - text of 16 numbers, the rows of a (4, 4) matrix of LPS mm; what follows a # is a comment;
    - a DICOM Spatial Registration, whose direction the frames of reference of the two scans decide.

    Args:
        path: The file.
        fixed: Grid of the structural scan; needed for DICOM.
        moving: Grid of the functional scan; needed for DICOM.

    Raises:
        UnreadableFile: No file is there, or it is no transform.
        UnsupportedImage: It holds a transform that cannot be used, or none between these scans; it mirrors the patient,
            or stretches by more than `MOST_STRETCH`.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UnreadableFile(f"expected a transform file, found nothing named {path.name}", "Check the path")
    with path.open("rb") as file:
        start = file.read(MOST_TEXT_BYTES + 1)
    if start[128:132] == b"DICM":
        from medfuse.align.spatial_registration import read_spatial_registration

        return _of_a_patient(read_spatial_registration(path, fixed, moving), path.name)
    numbers = _numbers(start)
    found = _from_numbers(numbers, path.name) if numbers is not None else _read_itk(path, start)
    return _of_a_patient(found, path.name)


def _of_a_patient(transform: Transform | Warp, name: str) -> Transform | Warp:
    """The transform, unless no two scans of one patient can lie so: a sign of other coordinates than LPS mm."""
    u, stretches, v = np.linalg.svd(transform.moving_from_fixed[:3, :3])
    most = float(max(stretches[0], 1 / stretches[-1]))
    if most <= MOST_STRETCH * (1 + 1e-6) and np.linalg.det(u @ v) > 0:
        return transform
    found = "mirrors the patient" if np.linalg.det(u @ v) < 0 else f"stretches {most:.3g} times"
    raise UnsupportedImage(
        f"expected a transform between two scans of one patient, found one in {name} that {found}",
        "Convert it to LPS millimetres: voxel indices and the coordinates of FSL are others",
    )


def check_transform_target(
    path: Path | str, *, overwrite: bool = False, deformable: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Refuse a name that `write_transform` would refuse, before long work.

    Args:
        path: Where the transform shall be.
        overwrite: Whether an existing file may be replaced.
        deformable: Whether the transform will be a `Warp`, which is no matrix.
        inputs: What was read, and must not be replaced.

    Raises:
        OutputError: The suffix is none that can hold it, or the place cannot be written to.
    """
    path = Path(path)
    suffixes = [suffix for suffix in SUFFIXES if not (deformable and suffix == ".txt")]
    if path.suffix not in suffixes:
        what = "file for a deformable transform" if deformable else "transform file"
        raise OutputError(f"expected a {what} ending in {' or '.join(suffixes)}, got {path.name}", "Choose such a name")
    if path.suffix != ".txt":
        itk_path(Path(os.path.realpath(path)), OutputError)
    check_target(path, overwrite, inputs)


def write_transform(
    transform: Transform | Warp, path: Path | str, *, overwrite: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Write a transform: by the suffix as ITK's text (.tfm), ITK's HDF5 (.h5), or the 16 numbers of its matrix (.txt).

    It appears whole or not at all.

    Args:
        transform: What to write.
        path: Where the transform shall be.
        overwrite: Whether an existing file may be replaced.
        inputs: What was read, and must not be replaced.

    Raises:
        OutputError: The suffix is another, or .txt for a deformable transform; the file exists; it cannot be written.
    """
    path, inputs = Path(path), tuple(inputs)
    check_transform_target(path, overwrite=overwrite, deformable=isinstance(transform, Warp), inputs=inputs)
    with whole(path, overwrite=overwrite, inputs=inputs) as beside:
        if path.suffix == ".txt":
            beside.write_text(_as_text(transform.moving_from_fixed), encoding="utf-8")
            return
        itk = transform.to_itk()
        if path.suffix == ".h5":
            _check_space(beside, itk)
        try:
            sitk.WriteTransform(itk, itk_path(beside, OutputError))
        except RuntimeError as error:
            raise OutputError(f"cannot write {path.name}: ITK could not write it") from error
        if path.suffix == ".tfm" and not is_whole_text(beside):  # ITK takes no notice of a full disk
            raise OutputError(f"cannot write {path.name} whole", "Check the space left on the disk")


def _check_space(path: Path, itk: sitk.Transform) -> None:
    """Fill the disk with as much as a file will have, and free it: HDF5, where space runs out, crashes as Python ends.

    Raises:
        OSError: There is no space for it.
    """
    numbers = sum(part.GetNumberOfParameters() + part.GetNumberOfFixedParameters() for part in parts_of(itk))
    with path.open("wb") as file:
        for _ in range((8 * numbers + HDF5_BYTES) // MIB + 1):
            file.write(bytes(MIB))
    path.unlink()


def _read_itk(path: Path, start: bytes) -> Transform | Warp:
    suffix = suffix_for_itk(path, start)
    try:
        with _named_for_itk(path, suffix) as known:
            itk = sitk.ReadTransform(itk_path(known))
    except RuntimeError as error:
        raise unreadable(path.name) from error
    except KeyError as error:  # by SimpleITK, of a kind that it has no class for
        raise UnsupportedImage(
            f"expected a kind of transform that SimpleITK knows, found another in {path.name}",
            "Convert it to an affine transform",
        ) from error
    return Transform.from_itk(itk) if itk.IsLinear() else Warp.from_itk(itk)


@contextmanager
def _named_for_itk(path: Path, suffix: str) -> Iterator[Path]:
    """The file, or a copy by a name at which ITK takes it for what it is."""
    if suffix in ("", path.suffix):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="medfuse-") as folder:
        yield Path(shutil.copyfile(path, Path(folder, f"transform{suffix}")))


def _numbers(content: bytes) -> list[float] | None:
    """The numbers of a text that holds nothing else, or None."""
    try:
        text = re.sub(r"#.*", "", content.decode("utf-8-sig"))
        numbers = [float(word) for word in re.split(r"[\s,;\[\]()]+", text) if word]
    except ValueError:
        return None
    return numbers or None


def _from_numbers(numbers: list[float], name: str) -> Transform:
    if len(numbers) != 16:
        raise UnsupportedImage(
            f"expected the 16 numbers of a 4 x 4 matrix, found {len(numbers)} in {name}",
            "Give the matrix row by row, from structural to functional LPS millimetres",
        )
    try:
        return Transform(np.reshape(numbers, (4, 4)))
    except ValueError as error:
        raise UnsupportedImage(
            f"expected an invertible matrix with last row 0 0 0 1, found another in {name}",
            "Give the matrix row by row, from structural to functional LPS millimetres",
        ) from error


def _as_text(matrix: NDArray[np.float64]) -> str:
    rows = "\n".join(" ".join(repr(number) for number in row) for row in matrix.tolist())
    return f"# from the structural (fixed) scan's world to the functional (moving) one's, LPS mm\n{rows}\n"
