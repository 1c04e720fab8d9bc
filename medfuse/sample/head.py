"""CT, T1 MR and PET of the digital head, as if the patient had lain differently in the MR than in the PET/CT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medfuse.grid import Grid
from medfuse.sample.anatomy import Table, render
from medfuse.sample.organs import Tissue
from medfuse.sample.series import Study, write_series
from medfuse.volume import Modality, Unit, Volume

Matrix: TypeAlias = NDArray[np.float64]
Floats: TypeAlias = NDArray[np.float32]
Vector: TypeAlias = tuple[float, float, float] | NDArray[np.floating[Any]]
Counts: TypeAlias = tuple[int, int, int]  # along (k, j, i)

#: The known misalignment between PET/CT and MR; its axis and direction depend on the seed.
TURN_DEG = 8.0
SHIFT_MM = 12.0

_HU: Table = {
    Tissue.AIR: -1000,
    Tissue.SKIN: 55,
    Tissue.FAT: -95,
    Tissue.MUSCLE: 58,
    Tissue.MUCOSA: 42,
    Tissue.BONE: 1250,
    Tissue.MARROW: 520,
    Tissue.ENAMEL: 2200,
    Tissue.VITREOUS: 12,
    Tissue.LENS: 80,
    Tissue.DURA: 62,
    Tissue.CSF: 6,
    Tissue.GREY: 38,
    Tissue.WHITE: 28,
    Tissue.FOLIA: 37,
    Tissue.STEM: 31,
    Tissue.CALCIUM: 600,
}
_T1: Table = {
    Tissue.AIR: 0,
    Tissue.SKIN: 480,
    Tissue.FAT: 960,
    Tissue.MUSCLE: 390,
    Tissue.MUCOSA: 430,
    Tissue.BONE: 35,
    Tissue.MARROW: 480,
    Tissue.ENAMEL: 10,
    Tissue.VITREOUS: 130,
    Tissue.LENS: 330,
    Tissue.DURA: 310,
    Tissue.CSF: 150,
    Tissue.GREY: 520,
    Tissue.WHITE: 770,
    Tissue.FOLIA: 540,
    Tissue.STEM: 705,
    Tissue.OEDEMA: 350,
}
_SUV: Table = {
    Tissue.AIR: 0,
    Tissue.SKIN: 0.6,
    Tissue.FAT: 0.3,
    Tissue.MUSCLE: 0.9,
    Tissue.MUCOSA: 1.6,
    Tissue.BONE: 0.4,
    Tissue.MARROW: 0.9,
    Tissue.ENAMEL: 0.2,
    Tissue.VITREOUS: 0.4,
    Tissue.LENS: 0.4,
    Tissue.DURA: 1.0,
    Tissue.CSF: 0.5,
    Tissue.GREY: 9.2,
    Tissue.WHITE: 2.3,
    Tissue.FOLIA: 6.8,
    Tissue.STEM: 4.2,
    Tissue.FOCUS: 15,
}


@dataclass(frozen=True, eq=False)
class HeadScans:
    """Three scans of the digital head, and how they truly lie to one another.

    Args:
        ct: CT in HU, gently tilted; of one frame of reference with the PET.
        mr: T1-weighted MR, double oblique, of another frame of reference.
        pet: FDG PET in SUV, axial.
        mr_from_pet: (4, 4) matrix from LPS mm of the PET's and CT's world to the same tissue in the MR's.
        head_from_mr: (4, 4) matrix from LPS mm of the MR's world to the coordinates of `anatomy`.
    """

    ct: Volume
    mr: Volume
    pet: Volume
    mr_from_pet: Matrix
    head_from_mr: Matrix

    @property
    def head_from_pet(self) -> Matrix:
        """(4, 4) matrix from LPS mm of the PET's and CT's world to the coordinates of `anatomy`."""
        matrix: Matrix = self.head_from_mr @ self.mr_from_pet
        return matrix


@dataclass(frozen=True)
class SampleFolders:
    """Where the series of the sample were written."""

    mr: Path
    ct: Path
    pet: Path


def head_scans(seed: int = 0) -> HeadScans:
    """Scan the digital head three times.

    Args:
        seed: Of the noise, and of the direction of the misalignment.
    """
    rng = np.random.default_rng(seed)
    head_from_pet = _rigid((-2.0, 1.5, 3.0), (3.0, -7.0, 11.0), (0.0, 0.0, 0.0))
    center_in_pet = np.linalg.inv(head_from_pet)[:3, 3]
    axis, direction = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
    mr_from_pet = _rigid(TURN_DEG * axis, SHIFT_MM * direction, center_in_pet)
    head_from_mr = head_from_pet @ np.linalg.inv(mr_from_pet)
    center_in_mr = np.linalg.inv(head_from_mr)[:3, 3]
    pet_frame, mr_frame = (generate_uid(entropy_srcs=["medfuse sample", name, str(seed)]) for name in ("PET/CT", "MR"))
    pet_center, ct_center = center_in_pet + np.array([(1.0, -7.0, 2.0), (-2.0, -5.0, 0.0)])
    mr_center = center_in_mr + np.array((1.5, -8.5, 19.0))
    pet_grid = _grid((46, 66, 58), (4.0, 3.5, 3.5), (0, 0, 0), pet_center, pet_frame)
    ct_grid = _grid((78, 180, 154), (2.5, 1.25, 1.25), (5.0, 0, 1.5), ct_center, pet_frame)
    mr_grid = _grid((52, 186, 156), (3.0, 1.2, 1.2), (9.0, -6.0, 2.0), mr_center, mr_frame)
    return HeadScans(
        ct=_ct(ct_grid, head_from_pet, rng),
        mr=_mr(mr_grid, head_from_mr, rng),
        pet=_pet(pet_grid, head_from_pet, rng),
        mr_from_pet=mr_from_pet,
        head_from_mr=head_from_mr,
    )


def write_sample(folder: Path, scans: HeadScans | None = None) -> SampleFolders:
    """Write the three scans as the DICOM series of one patient and study.

    Args:
        folder: Gets the folders mr, ct and pet.
        scans: What to write; `head_scans()` where None.

    Raises:
        OutputError: A file could not be written.
    """
    scans = scans or head_scans()
    study = Study()
    folders = SampleFolders(mr=folder / "mr", ct=folder / "ct", pet=folder / "pet")
    write_series(scans.mr, folders.mr, description="T1 oblique", number=4, study=study)
    write_series(scans.ct, folders.ct, description="CT head", number=2, study=study)
    write_series(scans.pet, folders.pet, description="FDG PET", number=3, study=study)
    return folders


def _rigid(turn_deg: Vector, shift_mm: Vector, center_mm: Vector) -> Matrix:
    """(4, 4) matrix that turns about a centre and then shifts; the turn is its axis times its angle."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = np.add(center_mm, shift_mm) - matrix[:3, :3] @ np.asarray(center_mm)
    return matrix


def _grid(shape: Counts, spacing_mm: Vector, turn_deg: Vector, center_mm: Vector, frame: str) -> Grid:
    """An axial grid, turned, about a centre."""
    direction = Rotation.from_rotvec(turn_deg, degrees=True).as_matrix()[:, ::-1]
    half = direction @ ((np.array(shape) - 1) / 2 * np.asarray(spacing_mm))
    return Grid.from_axes(shape, np.asarray(center_mm) - half, spacing_mm, direction, frame)


def _sampled(grid: Grid, head_from_lps: Matrix, table: Table, edge_mm: float, fine: Counts) -> Floats:
    """The head on a grid `fine` times as dense along (k, j, i), slab by slab; shape (K, J, I) times `fine`."""
    k, j, i = (n * f for n, f in zip(grid.shape, fine, strict=True))
    step = 1 / np.array(fine)
    first = (step - 1) / 2
    head_from_index = head_from_lps @ grid.lps_from_index
    matrix = (head_from_index[:3, :3] * step).astype(np.float32)
    offset = (head_from_index @ [*first, 1])[:3].astype(np.float32)
    rows, columns = (axis.ravel() for axis in np.mgrid[:j, :i].astype(np.float32))
    plane = matrix[:, 1:2] * rows + matrix[:, 2:] * columns + offset[:, None]
    array = np.empty((k, j, i), np.float32)
    for index in range(k):
        array[index] = render(plane + matrix[:, :1] * np.float32(index), table, edge_mm)[0].reshape(j, i)
    return array


def _binned(array: Floats, fine: Counts) -> Floats:
    """Means over blocks of `fine` voxels."""
    (k, j, i), (a, b, c) = array.shape, fine
    means: Floats = array.reshape(k // a, a, j // b, b, i // c, c).mean(axis=(1, 3, 5))
    return means


def _ct(grid: Grid, head_from_ct: Matrix, rng: np.random.Generator) -> Volume:
    """CT: faintly correlated noise."""
    hu = _sampled(grid, head_from_ct, _HU, 1.6, (1, 1, 1))
    hu += 10 * gaussian_filter(rng.standard_normal(hu.shape, np.float32), (0, 0.6, 0.6))
    return Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), grid, Modality.CT, Unit.HU)


def _mr(grid: Grid, head_from_mr: Matrix, rng: np.random.Generator) -> Volume:
    """MR: partial volume across thick slices, a coil's uneven sensitivity, Rician noise."""
    fine = (2, 1, 1)
    signal = _binned(_sampled(grid, head_from_mr, _T1, 1.5, fine), fine)
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in grid.shape), indexing="ij", sparse=True)
    signal *= 1 + 0.08 * i - 0.06 * j + 0.05 * k - 0.10 * i * j + 0.07 * (i - 0.3) ** 2 + 0.06 * j * k
    real, imaginary = rng.standard_normal((2, *grid.shape), np.float32) * 14
    magnitude = np.hypot(signal + real, imaginary)
    return Volume(np.rint(magnitude).astype(np.int16), grid, Modality.MR, Unit.ARBITRARY)


def _pet(grid: Grid, head_from_pet: Matrix, rng: np.random.Generator) -> Volume:
    """PET: blurred to 6 mm, then noise that grows with the counts and is as smooth as a reconstruction's."""
    fine = (2, 2, 2)
    blur = 6.0 / np.sqrt(8 * np.log(2)) / np.array(grid.spacing_mm)
    suv = _binned(gaussian_filter(_sampled(grid, head_from_pet, _SUV, 1.8, fine), blur * fine), fine)
    noise = gaussian_filter(rng.standard_normal(suv.shape, np.float32), 0.8)
    suv += 0.35 * np.sqrt(suv + 0.02) * noise
    return Volume(np.maximum(suv, 0), grid, Modality.PT, Unit.SUV)
