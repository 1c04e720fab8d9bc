"""Linear interpolation of a volume on a device of torch, as SimpleITK computes it on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Voxels that are interpolated at once, which bounds the memory that it takes beside the volume: about 0.5 GB of grey.
AT_ONCE = 2**22
#: A place so near to a face of the array, in voxels, lies on it: rounding may have put it on either side.
FACE = 1e-9


def interpolate(
    array: NDArray[Any],
    index_from_index: NDArray[np.float64],
    shape: tuple[int, int, int],
    outside: float,
    kernels: Sequence[NDArray[np.float64] | None] = (None, None, None),
    device: str = "cpu",
) -> NDArray[np.float32]:
    """The values of a volume at the voxels of another grid.

    Places are computed in float64, values in float32. Between a border voxel's centre and its outer face the value is
    the voxel's; of two opposite faces, the first is inside and the last is not. SimpleITK, which rounds otherwise,
    gives the same on most grids; on some, points on a face go either way there.

    Args:
        array: (K, J, I), or (K, J, I, C).
        index_from_index: (4, 4), from the indices (k, j, i) of the voxels to fill to indices of the array.
        shape: Of what is to be filled.
        outside: The value beyond the array's voxels.
        kernels: For each axis of the array what it is first convolved with, odd in length, or None; the border is
            repeated.
        device: A device that has float64: "cpu", "cuda" or "cuda:N".

    Returns:
        `shape`, and C where there is one.

    Raises:
        MemoryError: The device has too little memory.
    """
    try:
        values = torch.from_numpy(np.array(array, np.float32, order="C")).to(device)
        for axis, kernel in enumerate(kernels):
            if kernel is not None:
                values = _convolved(values, axis, kernel.tolist())
        filled = np.empty((*shape, *array.shape[3:]), np.float32)
        slices = max(1, AT_ONCE // math.prod(shape[1:]))
        matrix = torch.tensor(index_from_index, device=device)
        for start in range(0, shape[0], slices):
            part = slice(start, min(start + slices, shape[0]))
            filled[part] = _at(values, _places(matrix, part, shape[1:]), outside).cpu().numpy()
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"too little memory on {device} to resample on it") from error
    return filled


def _places(matrix: Tensor, slices: slice, plane: Sequence[int]) -> list[Tensor]:
    """Where voxels of some slices lie, by index along each axis of the array; float64, (slices, J, I) each."""
    k, j, i = (
        torch.arange(first, stop, dtype=torch.float64, device=matrix.device)
        for first, stop in ((slices.start, slices.stop), (0, plane[0]), (0, plane[1]))
    )
    return [(row[0] * k + row[3])[:, None, None] + (row[1] * j)[:, None] + row[2] * i for row in matrix[:3]]


def _at(values: Tensor, places: list[Tensor], outside: float) -> Tensor:
    """(K, J, I) or (K, J, I, C) at places of one shape; the shape, and C where there is one."""
    inside = torch.ones_like(places[0], dtype=torch.bool)
    lower, upper, shares = [], [], []
    for place, count in zip(places, values.shape, strict=False):
        inside &= (place >= -0.5 - FACE) & (place < count - 0.5 - FACE)  # as ITK has it, but for rounding
        floor = place.floor()
        shares.append((place - floor).to(torch.float32))
        lower.append(floor.long().clamp_(0, count - 1))
        upper.append((floor.long() + 1).clamp_(0, count - 1))
    channels = [None] * (values.dim() - 3)
    along_k, along_j, along_i = (share[(..., *channels)] for share in shares)

    def along(k: Tensor, j: Tensor) -> Tensor:
        return torch.lerp(values[k, j, lower[2]], values[k, j, upper[2]], along_i)

    front, back = (torch.lerp(along(k, lower[1]), along(k, upper[1]), along_j) for k in (lower[0], upper[0]))
    return torch.where(inside[(..., *channels)], torch.lerp(front, back, along_k), outside)


def _convolved(values: Tensor, axis: int, kernel: list[float]) -> Tensor:
    """With a symmetric kernel along one axis; by shifts, since convolutions of a GPU may round to fewer digits."""
    reach, count = len(kernel) // 2, values.shape[axis]
    summed = torch.zeros_like(values)
    at = torch.arange(count, device=values.device)
    for shift, weight in enumerate(kernel, start=-reach):
        summed.add_(values.index_select(axis, (at + shift).clamp(0, count - 1)), alpha=weight)
    return summed
