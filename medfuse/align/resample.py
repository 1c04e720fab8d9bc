"""Voxels onto another grid, interpolated once."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medfuse.align.linear import Transform
from medfuse.align.warp import Warp
from medfuse.errors import NoOverlap
from medfuse.grid import Grid
from medfuse.itk import to_image
from medfuse.volume import Volume, value_outside

#: Voxels of the widest kernel that smooths.
WIDEST = 64


def resample(
    volume: Volume,
    grid: Grid,
    transform: Transform | Warp | None = None,
    *,
    device: str | None = None,
    outside_at_most: float | None = None,
) -> Volume:
    """A volume's values at the voxels of another grid, by one linear interpolation of the volume's own voxels.

    Where the grid is coarser than the volume, the volume is first smoothed to the grid's resolution, so that detail the
    grid cannot hold does not come back as noise. Outside the volume's field of view the value is air for CT, otherwise
    0 (or the volume's minimum where that is negative).

    Args:
        volume: The moving volume, grey or RGB.
        grid: The grid to fill, in the fixed world.
        transform: From the fixed world to the volume's; None where both are one.
        device: "auto", "cpu", "cuda" or "cuda:N": torch computes it there. None leaves it to SimpleITK, and so do
            deformable transforms, "mps", which has no float64, and a device with too little memory.
        outside_at_most: What the value outside the field of view may be at most, such as the lower end of a window, so
            that nothing shows there; None leaves it at what is said above.

    Returns:
        A volume on `grid`, float32 or RGB uint8.

    Raises:
        ValueError: No such device here.
        NoOverlap: No voxel of the grid lies inside the volume.
    """
    transform = transform or Transform.identity()
    there = None if device is None else _device(device)
    inside = overlap(grid, volume.grid, transform)
    if inside == 0:
        raise NoOverlap(
            "expected two volumes that overlap, found no voxel of one inside the other",
            "Check that both show the same body part of one patient; register them with --register rigid",
        )
    lies_so = _is_identity(transform, grid) and grid.matches(volume.grid, 1e-6)
    if lies_so and grid.frame_of_reference in (None, volume.grid.frame_of_reference):
        return volume
    array = volume.array if lies_so else None
    outside = value_outside(volume.array, volume.unit)
    if outside_at_most is not None:
        outside = min(outside, outside_at_most)
    if array is None and there is not None and isinstance(transform, Transform):
        array = _on_device(volume, grid, transform, outside, there)
    if array is None:
        array = _by_itk(volume, grid, transform, outside)
    return volume.derive(
        "resample",
        {
            "interpolation": "linear",
            "moving_from_fixed": transform.moving_from_fixed.tolist(),
            "deformable": isinstance(transform, Warp),
            "overlap": round(inside, 4),
        },
        array=np.rint(array).astype(np.uint8) if volume.is_color else array,
        grid=grid,
    )


def _by_itk(volume: Volume, grid: Grid, transform: Transform | Warp, outside: float) -> NDArray[np.float32]:
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.shape[::-1])
    resampler.SetOutputOrigin(grid.origin_mm.tolist())
    resampler.SetOutputSpacing(grid.spacing_mm[::-1])
    resampler.SetOutputDirection(grid.direction[:, ::-1].ravel().tolist())
    resampler.SetTransform(transform.to_itk())
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetDefaultPixelValue(outside)
    array: NDArray[np.float32] = sitk.GetArrayFromImage(resampler.Execute(_smoothed(volume, grid, transform)))
    return array


def _device(name: str) -> str | None:
    """The device of that name; None for one that cannot compute places."""
    from medfuse.devices import choose_device

    device = choose_device(name)
    return None if device.type == "mps" else str(device)


def _on_device(
    volume: Volume, grid: Grid, transform: Transform, outside: float, device: str
) -> NDArray[np.float32] | None:
    """The same by torch; None where the device has too little memory."""
    from medfuse.interpolation import interpolate

    index_from_index = volume.grid.index_from_lps @ transform.moving_from_fixed @ grid.lps_from_index
    spacing = zip(_blur_mm(volume, grid, transform), volume.grid.spacing_mm, strict=True)
    kernels = [_kernel(sigma_mm / size_mm) if sigma_mm else None for sigma_mm, size_mm in spacing]
    try:
        return interpolate(volume.array, index_from_index, grid.shape, outside, kernels, device)
    except MemoryError:
        return None


def overlap(grid: Grid, other: Grid, transform: Transform | Warp | None = None) -> float:
    """Share of `grid`'s voxels whose centres lie inside the voxels of `other`, 0 to 1; on at most 64 points an axis.

    Args:
        grid: In the fixed world.
        other: In the moving world.
        transform: From the fixed world to the moving one.
    """
    transform = transform or Transform.identity()
    share = _share_inside(grid, other, transform)
    if share == 0:  # a slab can slip between the points: ask it instead
        size = float(np.prod(other.extent_mm) / np.prod(grid.extent_mm))
        linear = Transform(transform.moving_from_fixed)
        share = min(1.0, _share_inside(other, grid, linear.inverse()) * size)
    return share


def _is_identity(transform: Transform | Warp, grid: Grid) -> bool:
    if isinstance(transform, Warp):  # which may leave the corners where they are and bend the rest
        return False
    return bool(transform.distance_mm(Transform.identity(), grid.corners_mm).max() < 1e-6)


def _share_inside(grid: Grid, other: Grid, transform: Transform | Warp) -> float:
    return float(other.contains(transform.apply(grid.spread_mm(64))).mean())


def _blur_mm(volume: Volume, grid: Grid, transform: Transform | Warp) -> NDArray[np.float64]:
    """Standard deviations of the Gaussian, along the volume's axes, that leaves out what `grid` is too coarse for."""
    # The size of a voxel of the grid as the volume's axes see it, in mm.
    turn = volume.grid.direction.T @ transform.moving_from_fixed[:3, :3] @ grid.direction
    target_mm = np.linalg.norm(turn * np.array(grid.spacing_mm), axis=1)
    own_mm = np.array(volume.grid.spacing_mm)
    sigma_mm: NDArray[np.float64] = 0.4 * np.sqrt(np.maximum(target_mm**2 - own_mm**2, 0))
    sigma_mm[target_mm < 1.5 * own_mm] = 0
    return sigma_mm


def _gaussian(image: sitk.Image, variance: list[float]) -> sitk.Image:
    return sitk.DiscreteGaussian(image, variance, maximumKernelWidth=WIDEST)


def _kernel(sigma: float) -> NDArray[np.float64]:
    """What `_gaussian` convolves voxels with, by a standard deviation in voxels: its answer to a single one."""
    line = np.zeros((1, 1, 2 * WIDEST + 1))
    line[..., WIDEST] = 1
    kernel: NDArray[np.float64] = sitk.GetArrayFromImage(_gaussian(sitk.GetImageFromArray(line), [sigma**2, 0, 0]))
    return np.trim_zeros(kernel[0, 0])


def _smoothed(volume: Volume, grid: Grid, transform: Transform | Warp) -> sitk.Image:
    """The volume as float32, without the detail that `grid` is too coarse for."""
    image = to_image(volume)
    if volume.is_color:
        image = sitk.Cast(image, sitk.sitkVectorFloat32)
    sigma_mm = _blur_mm(volume, grid, transform)
    if not sigma_mm.any():
        return image
    variance = (sigma_mm**2)[::-1].tolist()
    if not volume.is_color:
        return _gaussian(image, variance)
    channels = (sitk.VectorIndexSelectionCast(image, channel) for channel in range(3))
    return sitk.Compose([_gaussian(channel, variance) for channel in channels])
