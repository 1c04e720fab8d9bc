"""The same voxels, by every route in, land on the same millimetre."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
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
