"""Pairs of which the true alignment is known: digital head, limbs of `ibsi-sts`, brain of `spect-mr-epilepsy`."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfuse.align import Transform
from medfuse.io.files import read
from medfuse.sample.head import HeadScans, head_scans
from medfuse.volume import Modality, Volume
from registering.timing import TIMING, sampled

#: Median target error asked for, mm. Of CT-PET nothing is asked; it gets that of PET-MR.
TOLERANCE_MM = {"ct-mr": 1.0, "pet-mr": 2.0, "ct-pet": 2.0, "spect-mr": 2.0}
PHANTOM_TOLERANCE_MM = 0.5
PATIENTS = ("STS_002", "STS_003", "STS_018", "STS_051")
#: The patients measured unless --cases says otherwise.
USUAL_PATIENTS = ("STS_002", "STS_051")
TARGETS = 2_000


@dataclass(frozen=True, eq=False)
class Case:
    """Two volumes and how they truly lie to one another.

    Args:
        name: As --cases takes it.
        fixed: The volume that stays: MR where there is one, else CT.
        moving: The volume to be displaced.
        truth: From the fixed world to the moving one, before any displacement.
        tolerance_mm: Target error asked for at the median.
    """

    name: str
    fixed: Volume
    moving: Volume
    truth: Transform
    tolerance_mm: float

    def targets_mm(self) -> NDArray[np.float64]:
        """LPS mm, shape (N, 3): points of the fixed volume's body (above its mean) that the moving volume shows too."""
        index = np.argwhere(self.fixed.array > self.fixed.array.mean())
        np.random.default_rng(0).shuffle(index)
        points = self.fixed.grid.points_mm(index[: 20 * TARGETS])
        return points[self.moving.grid.contains(self.truth.apply(points))][:TARGETS]


def anchors_mm(points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Six points, shape (6, 3), with the mean and covariance of many: enough to compare transforms later."""
    mean = points_mm.mean(axis=0)
    lengths, axes = np.linalg.eigh(np.cov(points_mm.T, bias=True))
    reach: NDArray[np.float64] = (axes * np.sqrt(3 * np.maximum(lengths, 0))).T
    return np.concatenate([mean + reach, mean - reach])


def case_names(data: Path | None, patterns: list[str] | None = None) -> list[str]:
    """Names of the cases that can be run, by shell patterns; the usual ones where there are none."""
    names = ["head/ct-mr", "head/pet-mr"]
    usual = list(names)
    if data is not None:
        patients = [patient for patient in PATIENTS if (data / "ibsi-sts" / "dicom" / patient).is_dir()]
        for patient in patients:
            limb = [f"{patient.lower()}/{pair}" for pair in ("ct-mr", "pet-mr", "ct-pet")]
            names += limb
            usual += limb if patient in USUAL_PATIENTS else []
        if (data / "spect-mr-epilepsy").is_dir():
            names.append("epilepsy/spect-mr")
            usual.append("epilepsy/spect-mr")
    if not patterns:
        return usual
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


@lru_cache(maxsize=2)
def load_case(name: str, data: Path | None) -> Case:
    """Read or make the volumes of a case."""
    subject, pair = name.split("/")
    if subject in ("head", "timing"):
        return _head(name)
    if data is None:
        raise ValueError(f"{name} needs the folder of real scans")
    tolerance = TOLERANCE_MM[pair]
    if subject == "epilepsy":
        folder = data / "spect-mr-epilepsy"
        fixed = read(folder / "RM_brain.nii.gz", modality=Modality.MR)
        moving = read(folder / "masked_ictal.nii.gz", modality=Modality.NM)
    else:
        fixed_kind, moving_kind = {"ct-mr": ("mr", "ct"), "pet-mr": ("mr", "pet"), "ct-pet": ("ct", "pet")}[pair]
        fixed, moving = limb(data, subject.upper(), fixed_kind), limb(data, subject.upper(), moving_kind)
    return Case(name, fixed, moving, Transform.identity(), tolerance)


def limb(data: Path, patient: str, kind: str) -> Volume:
    """One scan ("mr", "ct" or "pet") of a patient of `ibsi-sts`; all three share one frame of reference."""
    folder = {"mr": "MR_T1", "ct": "CT", "pet": "PET"}[kind]
    return read(data / "ibsi-sts" / "dicom" / patient / folder / "image")


@lru_cache(maxsize=1)
def head() -> HeadScans:
    """The digital head, scanned once a process."""
    return head_scans()


def _head(name: str) -> Case:
    scans = head()
    fixed, moving = scans.mr, scans.pet if name == "head/pet-mr" else scans.ct
    if name == TIMING:
        fixed, moving = sampled(fixed), sampled(moving)
    return Case(name, fixed, moving, Transform(scans.mr_from_pet).inverse(), PHANTOM_TOLERANCE_MM)
