"""The slice-wise engine: two volumes on one grid in, one fused volume out, in batches of slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.color import rgb_from_ycbcr
from medfuse.fusion.display import Display
from medfuse.fusion.methods import Method
from medfuse.volume import Modality, Pair, Unit, Volume

#: Called with (slices done, slices).
Progress = Callable[[int, int], None]

#: Bytes of features that a learned method holds for each pixel of a slice in flight: 64 channels of float32, ten times.
BYTES_PER_PIXEL = 64 * 4 * 10
LARGEST_BATCH = 32


class Engine:
    """Fuses pairs of volumes; kept warm, it fuses the next one without loading anything again.

    Only a batch of slices is in flight at any time, so the memory needed does not grow with their number. On the CPU
    slices go through the network one by one; on a GPU in equal batches, as many as half of its free memory holds.

    Args:
        method: A key of `medfuse.fusion.METHODS`.
        strategy: How the features of a learned method are merged; None for its default.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        weights: A safetensors file in place of the shipped weights.

    Raises:
        ValueError: An unknown method or strategy, or a device that is not there.
        WeightsError: The weights cannot be used.
    """

    def __init__(
        self,
        method: str = "dilran",
        strategy: str | None = None,
        device: str = "auto",
        weights: Path | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.method = Method(method, strategy, weights, self.device)

    def fuse(self, pair: Pair, structural: Display, functional: Display, progress: Progress | None = None) -> Volume:
        """Fuse a pair slice by slice along the grid's first axis.

        Args:
            pair: Two volumes on one grid.
            structural: How the structural volume is shown; grey.
            functional: How the functional one is shown; its colour is carried past the network.
            progress: Called after each batch.

        Returns:
            RGB uint8 where the functional volume is shown in colour, otherwise float32 in [0, 1].
        """
        grid = pair.structural.grid
        fused: NDArray[Any] = (
            np.empty((*grid.shape, 3), np.uint8) if functional.is_color else np.empty(grid.shape, np.float32)
        )
        batch = self._batch(grid.shape[1:])
        for start in range(0, grid.shape[0], batch):
            slices = slice(start, min(start + batch, grid.shape[0]))
            grey, _ = structural.show(pair.structural.array[slices])
            luminance, chroma = functional.show(pair.functional.array[slices])
            result = self.fuse_planes(grey, luminance, batch)
            if chroma is None:
                fused[slices] = result
            else:
                fused[slices] = rgb_from_ycbcr(np.concatenate([result[..., None], chroma], axis=-1))
            if progress:
                progress(slices.stop, grid.shape[0])
        return Volume(
            fused,
            grid,
            Modality.FUSED,
            Unit.RGB if functional.is_color else Unit.ARBITRARY,
            replace(pair.structural.source, also=(pair.functional.source,)),
        )

    def fuse_planes(
        self, structural: NDArray[np.float32], functional: NDArray[np.float32], batch: int | None = None
    ) -> NDArray[np.float32]:
        """Fuse luminances, (N, H, W) float32 in [0, 1] both, into one of the same form.

        Args:
            structural: The structural planes.
            functional: The functional planes.
            batch: Planes at a time; a last batch that is short is filled up, so that every plane is computed alike.
        """
        count = len(structural)
        batch = batch or self._batch(structural.shape[1:])
        fused = np.empty(structural.shape, np.float32)
        for start in range(0, count, batch):
            stop = min(start + batch, count)
            planes = [self._tensor(source[start:stop], batch) for source in (structural, functional)]
            fused[start:stop] = self.method(*planes)[: stop - start, 0].cpu().numpy()
        return fused

    def _tensor(self, planes: NDArray[np.float32], batch: int) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(planes, np.float32, order="C"))[:, None].to(self.device)
        missing = batch - len(planes)
        return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))]) if missing else tensor

    def _batch(self, plane: tuple[int, ...]) -> int:
        if self.device.type != "cuda":
            return 1
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(np.clip(free / 2 // (int(np.prod(plane)) * BYTES_PER_PIXEL), 1, LARGEST_BATCH))


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a CUDA or Apple GPU where there is one, otherwise the CPU.

    Raises:
        ValueError: No such device here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"expected a device of auto, cpu, cuda, cuda:N or mps, got {name!r}") from error
    there = {"cpu": True, "mps": mps, "cuda": cuda and (device.index or 0) < torch.cuda.device_count()}
    if not there.get(device.type, False):
        raise ValueError(f"this machine has no device {name!r}; use --device auto or cpu")
    return device
