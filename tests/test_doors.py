"""The same voxels, by every route in, land on the same millimetre."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian

from medfuse.grid import Grid
from medfuse.io.files import read, write
from medfuse.sample.series import write_series
from medfuse.volume import Modality, Unit, Volume

AXES = {
    "axial": ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    "sagittal": ((-1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "coronal": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
    "oblique": None,
}


@pytest.fixture(params=AXES)
def mr(request: pytest.FixtureRequest, oblique_volume: Volume) -> Volume:
    """An MR whose numbers are whole and not negative, so that every format can hold them exactly."""
    axes = AXES[request.param]
    direction = oblique_volume.grid.direction if axes is None else np.array(axes, float).T
    grid = Grid.from_axes((5, 7, 9), (-31.5, 44.25, 117.0), (3.0, 1.5, 1.25), direction, "1.2.826.0.1.999")
    return replace(
        oblique_volume, array=oblique_volume.array + 40, grid=grid, modality=Modality.MR, unit=Unit.ARBITRARY
    )


def dicom(volume: Volume, folder: Path) -> Path:
    write_series(volume, folder / "series", description="MR", number=1)
    return folder / "series"


def shuffled(volume: Volume, folder: Path) -> Path:
    """Files without suffix, spread over folders, in another order."""
    for n, path in enumerate(sorted(dicom(volume, folder).iterdir(), reverse=True)):
        deep = folder / "root" / f"d{n % 2}"
        deep.mkdir(parents=True, exist_ok=True)
        path.rename(deep / f"file{n}")
    return folder / "root"


def archive(volume: Volume, folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder / "scan"), "zip", dicom(volume, folder)))


def multi_frame(volume: Volume, folder: Path) -> Path:
    datasets = [pydicom.dcmread(path) for path in sorted(dicom(volume, folder).iterdir())]
    converted = hd.legacy.LegacyConvertedEnhancedMRImage(
        datasets, hd.UID(), 9, hd.UID(), 1, transfer_syntax_uid=ExplicitVRLittleEndian
    )
    converted.save_as(folder / "multi")
    return folder / "multi"


def derived_dicom(volume: Volume, folder: Path) -> Path:
    write(read(dicom(volume, folder)), folder / "derived")
    return folder / "derived"


def nifti(volume: Volume, folder: Path) -> Path:
    return write(volume, folder / "x.nii")[0]


def nifti_gz(volume: Volume, folder: Path) -> Path:
    return write(volume, folder / "x.nii.gz")[0]


def zipped_nifti(volume: Volume, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.zip", "w") as out:
        for path in write(volume, folder / "x.nii.gz"):
            out.write(path, path.name)
    return folder / "x.zip"


def nrrd(volume: Volume, folder: Path) -> Path:
    return write(volume, folder / "x.nrrd")[0]


def mha(volume: Volume, folder: Path) -> Path:
    return write(volume, folder / "x.mha")[0]


@pytest.mark.parametrize(
    "door",
    [dicom, shuffled, archive, multi_frame, derived_dicom, nifti, nifti_gz, zipped_nifti, nrrd, mha],
    ids=lambda door: door.__name__,
)
def test_every_door_leads_to_the_same_place(mr: Volume, tmp_path: Path, door) -> None:
    volume = read(door(mr, tmp_path))
    assert volume.modality is Modality.MR
    assert volume.grid.matches(mr.grid, 1e-4)
    np.testing.assert_array_equal(volume.array, mr.array)
    assert volume.array.dtype == np.float32


#: All ways in which the axes of an array can lie along those of the patient, mirrored ones included.
ALONG_THE_PATIENT = [
    np.eye(3)[:, order] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
PATIENT_POSITIONS = ("HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL")


@st.composite
def directions(draw: st.DrawFn) -> np.ndarray:
    """Along the patient's axes, a little off them, or anywhere."""
    direction = draw(st.sampled_from(ALONG_THE_PATIENT))
    degrees = draw(st.sampled_from([(0, 0, 0), (0.02, 0, 0), (8.8, 0, 0), (12, -31, 77)]))
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        one, other = [n for n in range(3) if n != axis]
        turn[[one, one, other, other], [one, other, one, other]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        direction = turn @ direction
    return np.round(direction, 10) + 0.0  # nothing so small that 16 characters do not hold it


def patient_position(folder: Path, position: str) -> None:
    """How the patient lay, which must not matter: positions and orientations are the patient's already."""
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.PatientPosition = position
        ds.save_as(path)


@settings(max_examples=60, deadline=None)
@given(
    direction=directions(),
    shape=st.tuples(st.integers(2, 5), st.integers(2, 6), st.integers(2, 7)),
    spacing=st.tuples(*[st.sampled_from([0.4296875, 1.0, 2.5, 3.27])] * 3),
    origin=st.tuples(*[st.integers(-400_000, 400_000).map(lambda n: n / 1000)] * 3),
    position=st.sampled_from(PATIENT_POSITIONS),
)
def test_every_orientation_lands_on_the_same_millimetre(direction, shape, spacing, origin, position) -> None:
    grid = Grid.from_axes(shape, origin, spacing, direction, "1.2.826.0.1.999")
    values = np.random.default_rng(1).permutation(grid.shape[0] * grid.shape[1] * grid.shape[2]).reshape(shape)
    volume = Volume(values.astype(np.float32), grid, Modality.MR, Unit.ARBITRARY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patient_position(dicom(volume, folder), position)
        places = [folder / "series"]
        for door in (nifti, nrrd, mha):
            (folder / door.__name__).mkdir()
            places.append(door(volume, folder / door.__name__))
        for found in map(read, places):
            index = np.indices(found.grid.shape).reshape(3, -1).T
            theirs = grid.index_of(found.grid.points_mm(index))
            whole = np.rint(theirs).astype(int)
            assert (np.abs(theirs - whole) * spacing).max() < 1e-4  # mm
            np.testing.assert_array_equal(found.array.reshape(-1), volume.array[tuple(whole.T)])
            assert sorted(found.grid.shape) == sorted(shape)
