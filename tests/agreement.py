"""Whether a volume says the same as an image that another program made, voxel by voxel, wherever its axes point."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from medfuse.volume import Volume

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def assert_agrees_with_nifti(volume: Volume, path: Path, tolerance_mm: float = 1e-3, relative: float = 2e-6) -> None:
    """Every voxel of the volume must lie on a voxel of the NIfTI file, with its value; both have the same voxels."""
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    if data.dtype.names:
        data = np.stack([data[channel] for channel in "RGB"], axis=-1)
    ijk_from_kji = np.linalg.inv(image.affine) @ RAS_FROM_LPS @ volume.grid.lps_from_index
    index = np.indices(volume.grid.shape).reshape(3, -1)
    found = ijk_from_kji[:3, :3] @ index + ijk_from_kji[:3, 3:]
    whole = np.rint(found).astype(int)
    off_mm = np.linalg.norm(image.affine[:3, :3] @ (found - whole), axis=0)
    assert off_mm.max() < tolerance_mm
    assert sorted(image.shape[:3]) == sorted(volume.grid.shape)
    assert whole.min() >= 0
    assert (whole.max(axis=1) < image.shape[:3]).all()
    expected = data.reshape(image.shape[:3] + data.shape[4 if data.shape[3:4] == (1,) else 3 :])[tuple(whole)]
    values = volume.array.reshape(-1, *volume.array.shape[3:])
    assert np.abs(values - expected.astype(float)).max() <= relative * max(1, np.abs(expected).max())


def assert_grid_is_of_image(volume: Volume, image: sitk.Image, tolerance_mm: float) -> None:
    """Every corner voxel must lie where SimpleITK puts it."""
    assert image.GetSize()[:3] == volume.grid.shape[::-1]
    k, j, i = volume.grid.shape
    for index in [(0, 0, 0), (k - 1, 0, 0), (0, j - 1, 0), (0, 0, i - 1), (k - 1, j - 1, i - 1)]:
        theirs = image.TransformIndexToPhysicalPoint(tuple(int(n) for n in index[::-1]))
        np.testing.assert_allclose(volume.grid.points_mm([index])[0], theirs, atol=tolerance_mm)
