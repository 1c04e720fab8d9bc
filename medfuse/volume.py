"""Voxels with their geometry and meaning: `Volume`, and `Pair`, two volumes on one grid."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfuse._version import __version__
from medfuse.errors import GridMismatch, UnsupportedImage
from medfuse.grid import Grid

if TYPE_CHECKING:
    from pydicom import Dataset

#: Air, in HU.
AIR_HU = -1000.0


class Modality(str, enum.Enum):
    """What made the image; the values are DICOM's defined terms for Modality (0008,0060), FUSED apart."""

    CT = "CT"
    MR = "MR"
    PT = "PT"
    NM = "NM"  #: SPECT
    OTHER = "OT"  #: the file does not say
    FUSED = "FUSED"

    @property
    def is_functional(self) -> bool:
        """Whether it shows tracer uptake and is therefore drawn in colour."""
        return self in (Modality.PT, Modality.NM)


class Unit(str, enum.Enum):
    """What a voxel's number means."""

    HU = "HU"  #: CT, Hounsfield units
    SUV = "SUV"  #: PET, standardised uptake value by body weight, g/ml
    BQML = "BQML"  #: PET and SPECT, activity concentration, Bq/ml
    COUNTS = "COUNTS"
    ARBITRARY = "ARBITRARY"
    RGB = "RGB"  #: colour, uint8 0-255, last axis 3


@dataclass(frozen=True)
class Step:
    """One thing that was done to a volume.

    Args:
        name: What was done, a verb: "read", "register", "resample", "fuse".
        parameters: With what; plain JSON values only, and no patient data.
        version: Version of medfuse that did it.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__


def value_outside(array: NDArray[Any], unit: Unit) -> float:
    """What lies outside the field of view of a scan: air for HU, otherwise 0, or the lowest value where it is less."""
    return AIR_HU if unit is Unit.HU else min(0.0, float(array.min()))


def parameters_of(history: Iterable[Step], name: str) -> Mapping[str, Any]:
    """The parameters of the last step of a name; empty where there is none."""
    return next((step.parameters for step in reversed(tuple(history)) if step.name == name), {})


@dataclass(frozen=True)
class Source:
    """What a writer must carry on from the files that a volume came from.

    Args:
        format: "dicom", "nifti", "nrrd", "metaimage" or "memory".
        header: DICOM only: the data set of the first slice, without pixel data and private elements; what any slice
            says of loss by compression, text in the pixels and recognizable features, it says too; and of a PET
            with Decay Correction START to which time all slices are corrected (Decay Correction DateTime).
        instances: DICOM only: (SOP Class UID, SOP Instance UID) of every file used, in slice order.
        also: Of a fused volume, the sources of the other volumes that went into it.
        rescales: DICOM only: (slope, intercept) of each of the files, from its stored values to the volume's unit;
            empty where a file has more than one such pair, or none.
        frames: DICOM only: of each of the files the frames used, from 1, or () where it was used whole; empty where
            all were.

    Its repr shows no header and no UID, so that neither reaches a log.
    """

    format: str = "memory"
    header: Dataset | None = field(default=None, repr=False, compare=False)
    instances: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    also: tuple[Source, ...] = ()
    rescales: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    frames: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    @property
    def images(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """SOP Class UID, SOP Instance UID, and the frames used of every file, or () of one that was used whole."""
        frames = self.frames or ((),) * len(self.instances)
        return ((*instance, used) for instance, used in zip(self.instances, frames, strict=True))


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels of one scan, with their geometry and meaning. Read-only; `derive` makes the next one.

    Args:
        array: (K, J, I), or (K, J, I, 3) uint8 for colour. Any real dtype.
        grid: Where the voxels lie; its shape is the array's first three axes.
        modality: What made the image.
        unit: What a number means.
        source: What a writer must carry on.
        history: What was done, oldest first.

    Raises:
        ValueError: Array, grid and unit do not fit together.
        UnsupportedImage: The array holds NaN or infinity.
    """

    array: NDArray[Any]
    grid: Grid
    modality: Modality
    unit: Unit = Unit.ARBITRARY
    source: Source = field(default_factory=Source)
    history: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        array = np.asarray(self.array).view()
        if array.shape[:3] != self.grid.shape or array.ndim not in (3, 4):
            raise ValueError(f"expected an array of shape {self.grid.shape} (or with 3 colours), got {array.shape}")
        is_color = array.ndim == 4
        if is_color and (array.shape[3] != 3 or array.dtype != np.uint8):
            raise ValueError(f"expected colour as uint8 with last axis 3, got {array.dtype} {array.shape}")
        if is_color != (self.unit is Unit.RGB):
            raise ValueError(f"unit {self.unit.name} does not go with an array of shape {array.shape}")
        if array.dtype.kind not in "biuf":
            raise ValueError(f"expected real numbers, got {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite((array.min(), array.max())).all():  # NaN is both
            count = int(array.size - np.count_nonzero(np.isfinite(array)))
            raise UnsupportedImage(
                f"expected finite values, found {count} of {array.size} voxels that are NaN or infinite",
                "Give the value to put in their place with --fill-nan (in Python: fill_nan=)",
            )
        array.setflags(write=False)
        object.__setattr__(self, "array", array)

    @property
    def is_color(self) -> bool:
        """Whether the array is (K, J, I, 3) RGB."""
        return self.array.ndim == 4

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of it, step by step."""
        return tuple(message for step in self.history for message in step.parameters.get("warnings", ()))

    def derive(self, name: str, parameters: Mapping[str, Any] | None = None, **changes: Any) -> Volume:
        """A new volume with some fields changed and one more `Step` in its history.

        Args:
            name: The step's name.
            parameters: The step's parameters.
            **changes: Fields of `Volume` to replace.
        """
        return replace(self, **changes, history=(*self.history, Step(name, dict(parameters or {}))))


@dataclass(frozen=True, eq=False)
class Pair:
    """Two volumes of one patient on one grid.

    Args:
        structural: MR or CT; always grey.
        functional: PET or SPECT, or the other structural modality (CT beside an MR), or a colour volume.

    Raises:
        GridMismatch: The grids differ.
        UnsupportedImage: The structural volume is in colour.
    """

    structural: Volume
    functional: Volume

    def __post_init__(self) -> None:
        if self.structural.is_color:
            raise UnsupportedImage(
                "expected a grey structural volume, found a colour one",
                "Give the colour volume as the functional one, and the MR or CT as the structural one",
            )
        if not self.structural.grid.matches(self.functional.grid):
            raise GridMismatch(
                f"expected two volumes on one grid, found shapes {self.structural.grid.shape} and "
                f"{self.functional.grid.shape} or different positions",
                "Resample one onto the grid of the other first (medfuse.resample)",
            )
