"""What a transform file of ITK says, looked at before ITK reads it.

ITK makes up what a file lacks, follows the names of other files in it, and takes memory for a lattice of any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from medfuse.errors import UnreadableFile, UnsupportedImage

#: How a text of ITK begins, and a file of HDF5.
TEXT, HDF5 = b"#Insight", b"\x89HDF\r\n\x1a\n"
#: Longer than any linear transform in MATLAB's format.
MOST_MATLAB_BYTES = 1_000_000
#: What the kinds that bend space are called: those with points on a lattice, and others.
ON_LATTICE, OTHERS = ("BSpline", "DisplacementField"), ("Velocity", "Diffeomorphic")


@dataclass(frozen=True)
class _Said:
    """A transform as its file says it: its kind, its fixed parameters, and how many parameters it can have at most."""

    kind: str
    fixed: Sequence[str]
    most: int


def suffix_for_itk(path: Path, start: bytes) -> str:
    """The suffix at which ITK takes a file for what it is; "" where any will do.

    Args:
        path: The file.
        start: How it begins.

    Raises:
        UnreadableFile: It is no transform of ITK, or not all of one.
        UnsupportedImage: It holds several transforms side by side, or a kind that is not known here.
    """
    if start.startswith(HDF5):
        return ""
    if start.startswith(TEXT):
        _check(_of_text(path), path.name)
        return ".tfm"
    if path.suffix.lower() == ".mat":
        _check(_of_matlab(path), path.name)
        return ".mat"
    raise unreadable(path.name)  # of all else ITK would ask libraries that print


def is_whole_text(path: Path) -> bool:
    """Whether a text that ITK has written holds all of it: every parameter, and the end of the last line."""
    return path.read_bytes().endswith(b"\n") and _of_text(path) is not None


def unreadable(name: str) -> UnreadableFile:
    """The refusal of a file that is no transform."""
    return UnreadableFile(
        f"expected a transform, cannot read {name}",
        "Give an ITK transform (.tfm, .h5, or .mat by that name), 16 numbers as text, or a DICOM spatial registration",
    )


def _check(found: Sequence[_Said] | None, name: str) -> None:
    if found and len(found) > 1 and not found[0].kind.startswith("Composite"):
        raise UnsupportedImage(
            f"expected one transform, or one composed of several, found {len(found)} side by side in {name}",
            "Compose them to one; of several ITK takes the first",
        )
    unknown = [one.kind for one in found or () if any(word in one.kind for word in OTHERS)]
    if unknown:
        raise UnsupportedImage(
            f"expected a linear transform, a B-spline or a displacement field, found another kind in {name}",
            "Convert it to a displacement field",
        )
    if not found or not all(map(_has_its_lattice, found)):
        raise UnreadableFile(f"expected all parameters of every transform, cannot read {name}", "Give the whole file")


def _has_its_lattice(said: _Said) -> bool:
    """Whether it can have as many points as it says, if it has any: ITK takes memory for them before it looks."""
    if not any(word in said.kind for word in ON_LATTICE):
        return True
    dimensions = {2 * (3 + 2): 2, 3 * (3 + 3): 3}.get(len(said.fixed), 0)  # sizes, origin, spacing and directions
    try:
        sizes = [int(size) for size in said.fixed[:dimensions]]
    except ValueError:
        return False
    return bool(sizes) and min(sizes) > 0 and dimensions * math.prod(sizes) <= said.most


def _of_text(path: Path) -> list[_Said] | None:
    """The transforms in a text of ITK; None where one has not just its parameters, but less or the name of a file."""
    with path.open("rb") as file:
        lines = [[part.strip() for part in line.partition(b":")[::2]] for line in file]
    lines = [[key, value] for key, value in lines if key and not key.startswith(b"#")]
    starts = [at for at, (key, _) in enumerate(lines) if key == b"Transform"]
    if not starts or starts[0] > 0:
        return None
    found = []
    for at, end in pairwise([*starts, len(lines)]):
        kind = lines[at][1].decode("latin-1")
        values: dict[bytes, bytes] = dict(lines[at + 1 : end])
        wanted = set() if kind.startswith("Composite") else {b"Parameters", b"FixedParameters"}
        if values.keys() != wanted or end - at - 1 != len(wanted):
            return None
        fixed = values.get(b"FixedParameters", b"").decode("latin-1").split()
        most = (len(values.get(b"Parameters", b"")) + 1) // 2  # a digit each, and a space between two
        found.append(_Said(kind, fixed, most))
    return found if any(not one.kind.startswith("Composite") for one in found) else None


def _of_matlab(path: Path) -> list[_Said] | None:
    """The transform in a MATLAB file of level 4, ANTs' .mat: a matrix by the name of its kind, and one named fixed."""
    import scipy.io

    if path.stat().st_size > MOST_MATLAB_BYTES:
        return None
    try:
        names = [name for name, *_ in scipy.io.whosmat(path)]
        values = scipy.io.loadmat(path)
    except Exception:  # SciPy raises whatever comes of what is no such file
        return None
    if len(names) != 2 or names[1] != "fixed":
        return None
    fixed = [f"{number:g}" for number in values["fixed"].ravel().tolist()]
    return [_Said(names[0], fixed, values[names[0]].size)]
