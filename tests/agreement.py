"""Whether a volume says the same as an image that another program made, voxel by voxel, wherever its axes point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medfuse.volume import Volume

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def nifti_values(image: nib.Nifti1Image) -> NDArray[Any]:
    """The values of a NIfTI image; of colour, the channels are the last axis."""
    data = np.asarray(image.dataobj)
    return np.stack([data[channel] for channel in "RGB"], axis=-1) if data.dtype.names else data


def nearest_in(image: nib.Nifti1Image, volume: Volume) -> tuple[NDArray[np.int_], float]:
    """The voxels of a NIfTI image, (3, N), nearest to those of a volume; the largest distance between the two, mm."""
    ijk_from_kji = np.linalg.inv(image.affine) @ RAS_FROM_LPS @ volume.grid.lps_from_index
    index = np.indices(volume.grid.shape).reshape(3, -1)
    found = ijk_from_kji[:3, :3] @ index + ijk_from_kji[:3, 3:]
    whole = np.rint(found).astype(int)
    return whole, float(np.linalg.norm(image.affine[:3, :3] @ (found - whole), axis=0).max())


def assert_agrees_with_nifti(
    volume: Volume, path: Path, tolerance_mm: float = 1e-3, tolerance: float | None = None
) -> None:
    """Every voxel of the volume must lie on a voxel of the NIfTI file, with its value; both have the same voxels.

    Values may be off by 2e-6 of the largest, unless a tolerance says by how much.
    """
    image = nib.load(path)
    data = nifti_values(image)
    whole, off_mm = nearest_in(image, volume)
    assert off_mm < tolerance_mm
    assert sorted(image.shape[:3]) == sorted(volume.grid.shape)
    assert whole.min() >= 0
    assert (whole.max(axis=1) < image.shape[:3]).all()
    expected = data.reshape(image.shape[:3] + data.shape[4 if data.shape[3:4] == (1,) else 3 :])[tuple(whole)]
    values = volume.array.reshape(-1, *volume.array.shape[3:])
    if tolerance is None:
        tolerance = 2e-6 * max(1, np.abs(expected).max())
    assert np.abs(values - expected.astype(float)).max() <= tolerance


def assert_grid_is_of_image(volume: Volume, image: sitk.Image, tolerance_mm: float) -> None:
    """Every corner voxel must lie where SimpleITK puts it."""
    assert image.GetSize()[:3] == volume.grid.shape[::-1]
    k, j, i = volume.grid.shape
    for index in [(0, 0, 0), (k - 1, 0, 0), (0, j - 1, 0), (0, 0, i - 1), (k - 1, j - 1, i - 1)]:
        theirs = image.TransformIndexToPhysicalPoint(tuple(int(n) for n in index[::-1]))
        np.testing.assert_allclose(volume.grid.points_mm([index])[0], theirs, atol=tolerance_mm)


def sitk_series(folder: Path) -> sitk.Image:
    """A DICOM series as SimpleITK reads it."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()
