"""Many slices in one call, and a volume fused and resampled, host memory to host memory; and batches that stay."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rows import Row, forget_peak, peak_mb

from medfuse.color import Window
from medfuse.defaults import PALETTE
from medfuse.fusion import Display
from medfuse.fusion.settings import arithmetic_of
from medfuse.grid import Grid
from medfuse.interpolation import interpolate
from medfuse.volume import Modality, Pair, Unit, Volume
from performing.ceilings import wait
from performing.forms import Fuse, engine, fuse_of
from performing.pictures import VARIETY, pictures
from performing.task import Task

#: Of white, in the volumes: integers, as scanners store them.
WHITE = 1000
#: How far a volume is turned to be resampled, in radians.
TURN = 0.2


def batch_seconds(task: Task, data: Path | None) -> Row:
    """Seconds of `count` slices in one call, host memory to host memory."""
    fuse = _warm(task.method, task.shape, task.device, task.precision, task.batch)
    planes = _stack(task.pictures, task.shape, task.count, data)
    return _measured(task, lambda: fuse(*planes), task.count)


def resident_seconds(task: Task, data: Path | None) -> Row:
    """Seconds of one batch that lies on the device before and after."""
    method = engine(task.method, task.device, task.precision).method
    planes = _stack(task.pictures, task.shape, task.batch, data)
    tensors = [torch.from_numpy(stack)[:, None].to(task.device) for stack in planes]
    with arithmetic_of(task.precision):  # as the engine has it, which takes no tensors
        for _ in range(2):
            method(*tensors)
        return _measured(task, lambda: method(*tensors), task.batch)


def volume_seconds(task: Task, data: Path | None) -> Row:
    """Seconds of a volume in host memory, windows and palette included; grey without pydicom, which has palettes."""
    fuse = engine(task.method, task.device, task.precision).fuse
    _warm(task.method, "x".join(str(size) for size in task.sizes[1:]), task.device, task.precision, 0)
    pair = _volumes(task.shape, task.pictures, data)
    palette = PALETTE if find_spec("pydicom") else None
    shown = Display(Window(0, WHITE), None), Display(Window(0, WHITE), palette)
    return {"palette": palette, **_measured(task, lambda: fuse(pair, *shown), task.sizes[0])}


def resampling_seconds(task: Task, data: Path | None) -> Row:
    """Seconds of a volume in host memory laid on a grid of its own shape that is turned within its slices."""
    volume = _volumes(task.shape, task.pictures, data).functional.array
    middle, turn = np.array(task.sizes)[1:] / 2, np.eye(4)
    turn[1:3, 1:3] = ((np.cos(TURN), -np.sin(TURN)), (np.sin(TURN), np.cos(TURN)))
    turn[1:3, 3] = middle - turn[1:3, 1:3] @ middle
    interpolate(volume[:1], turn, (1, *volume.shape[1:]), 0, device=task.device)
    return _measured(task, lambda: interpolate(volume, turn, volume.shape, 0, device=task.device), task.sizes[0])


def _measured(task: Task, call: Callable[[], object], slices: int) -> Row:
    is_gpu = torch.device(task.device).type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(task.device)
    forget_peak()
    wait(task.device)
    begin = time.perf_counter()
    call()
    wait(task.device)
    seconds = time.perf_counter() - begin
    row: Row = {"seconds": seconds, "slices": slices, "memory_mb": round(peak_mb())}
    return row | ({"device_mb": round(torch.cuda.max_memory_allocated(task.device) / 1e6)} if is_gpu else {})


@cache
def _warm(method: str, shape: str, device: str, precision: str, batch: int) -> Fuse:
    """A method that has run twice on slices of this size, in batches of that many."""
    fuse = fuse_of(method, device, precision, batch)
    planes = _stack("noise", shape, max(batch, 2), None)
    for _ in range(2):
        fuse(*planes)
    return fuse


@lru_cache(maxsize=2)
def _stack(name: str, shape: str, count: int, data: Path | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pairs one after the other, again from the first when they are at an end; each (count, H, W)."""
    sizes = tuple(int(size) for size in shape.split("x"))
    pairs = [pictures(name, index % VARIETY, sizes, data) for index in range(count)]
    structural, functional = (np.concatenate(planes) for planes in zip(*pairs, strict=True))
    return structural, functional


@lru_cache(maxsize=1)
def _volumes(shape: str, name: str, data: Path | None) -> Pair:
    """MR and PET on one grid, as integers."""
    count, rows, columns = (int(size) for size in shape.split("x"))
    grid = Grid.from_axes((count, rows, columns), (0, 0, 0), (1, 1, 1), np.eye(3)[:, ::-1])
    arrays = [np.rint(stack * WHITE).astype(np.int16) for stack in _stack(name, f"{rows}x{columns}", count, data)]
    return Pair(
        Volume(arrays[0], grid, Modality.MR, Unit.ARBITRARY), Volume(arrays[1], grid, Modality.PT, Unit.ARBITRARY)
    )
