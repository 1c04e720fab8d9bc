"""Between volumes and SimpleITK images: the same voxel on the same millimetre, both ways."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from medfuse.grid import Grid
from medfuse.itk import to_grid, to_image
from medfuse.volume import Modality, Unit, Volume


def test_every_voxel_keeps_its_place_and_value(oblique_volume: Volume) -> None:
    image = to_image(oblique_volume)
    for index in np.ndindex(*oblique_volume.grid.shape):
        there = tuple(int(n) for n in index[::-1])
        np.testing.assert_allclose(
            image.TransformIndexToPhysicalPoint(there), oblique_volume.grid.points_mm([index])[0], atol=1e-9
        )
        assert image[there] == oblique_volume.array[index]


def test_grid_comes_back(oblique_volume: Volume) -> None:
    grid = to_grid(to_image(oblique_volume), "1.2.3")
    assert grid.matches(oblique_volume.grid, 1e-9)
    assert grid.frame_of_reference == "1.2.3"
    assert to_grid(to_image(oblique_volume)).frame_of_reference is None


def test_grid_of_an_image_that_simpleitk_made() -> None:
    image = sitk.Image(4, 3, 2, sitk.sitkInt16)
    image.SetOrigin((10, 20, 30))
    image.SetSpacing((1, 2, 5))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))  # sagittal: columns run to posterior, rows to superior
    grid = to_grid(image)
    assert grid.shape == (2, 3, 4)
    assert grid.spacing_mm == (5, 2, 1)
    np.testing.assert_allclose(grid.points_mm([(1, 2, 3)])[0], image.TransformIndexToPhysicalPoint((3, 2, 1)))


def test_left_handed_grids_pass(oblique_volume: Volume) -> None:
    grid = oblique_volume.grid
    mirrored = Grid.from_axes(grid.shape, grid.origin_mm, grid.spacing_mm, grid.direction * (-1, 1, 1))
    assert to_grid(to_image(replace(oblique_volume, grid=mirrored))).matches(mirrored, 1e-9)


@pytest.mark.parametrize("dtype", ["bool", "int16", "uint16", "float64"])
def test_grey_is_float32(oblique_grid: Grid, dtype: str) -> None:
    volume = Volume(np.ones(oblique_grid.shape, dtype), oblique_grid, Modality.MR)
    assert to_image(volume).GetPixelID() == sitk.sitkFloat32


def test_colour_is_a_vector(oblique_grid: Grid) -> None:
    array = np.random.default_rng(0).integers(0, 256, (*oblique_grid.shape, 3), np.uint8)
    image = to_image(Volume(array, oblique_grid, Modality.PT, Unit.RGB))
    assert image.GetPixelID() == sitk.sitkVectorUInt8
    assert image[8, 6, 4] == tuple(array[4, 6, 8])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
