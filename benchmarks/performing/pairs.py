"""One pair of slices at a time: seconds, memory, distance from the reference, arithmetic."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rows import Row, forget_peak, peak_mb

from performing.ceilings import wait
from performing.counting import counted
from performing.forms import OURS, PLAIN, REFERENCE, Fuse, exact, fuse_of, has_plain, is_learned, rule
from performing.pictures import pictures
from performing.task import Task

Planes = NDArray[np.float32]


def pair_seconds(task: Task, data: Path | None) -> Row:
    """Seconds of one pair, host memory to host memory; once before that, what is only slow at first."""
    fuse = _warm(task.method, task.shape, task.pictures, task.device, task.precision, task.batch, data)
    planes = _planes(task, data)
    wait(task.device)
    begin = time.perf_counter()
    fuse(*planes)
    return {"seconds": time.perf_counter() - begin}


def memory(task: Task, data: Path | None) -> Row:
    """Most memory of a process that does nothing but fuse two pairs, MB; and before it had a method."""
    first, second = (pictures(task.pictures, index, task.sizes, data) for index in range(2))
    forget_peak()
    before = peak_mb()
    fuse = fuse_of(task.method, task.device, task.precision)
    fuse(*first)
    fuse(*second)
    return {"memory_mb": round(peak_mb()), "before_mb": round(before)}


def accuracy(task: Task, data: Path | None) -> Row:
    """Largest absolute difference, on [0, 1], from the plain network in float64 and from the reference in float32."""
    planes = _planes(task, data)
    found = fuse_of(task.method, task.device, task.precision)(*planes)
    form = task.method.removesuffix(PLAIN)
    truth = _exact(REFERENCE if form == OURS else form, task.shape, task.pictures, task.index, data)
    row: Row = {"from_float64": float(np.abs(found - truth).max())}
    if task.method in (OURS, f"{OURS}{PLAIN}"):
        reference = _reference(task.shape, task.pictures, task.index, data)
        row["from_reference"] = float(np.abs(found - reference).max())
    return row


def arithmetic(task: Task, data: Path | None) -> Row:
    """Operations and bytes of one pair; and the operations of the same method written plainly, in float32.

    Raises:
        ValueError: The operations cannot be seen, as those of what runs outside torch.
    """
    planes = _planes(task, data)
    batch = 0 if task.device == "cpu" else 1  # a GPU's batches are filled up
    fuse = _warm(task.method, task.shape, task.pictures, task.device, task.precision, batch, data)
    count = counted(partial(fuse, *planes))
    if is_learned(task.method) and not count.flops:
        raise ValueError("expected operations to count, saw none")
    row: Row = asdict(count)
    if has_plain(task.method):
        tensors = [torch.from_numpy(plane)[:, None] for plane in planes]
        row["plain_flops"] = counted(partial(rule(task.method), *tensors)).flops
    return row


def _planes(task: Task, data: Path | None) -> tuple[Planes, Planes]:
    return pictures(task.pictures, task.index, task.sizes, data)


@cache
def _warm(form: str, shape: str, name: str, device: str, precision: str, batch: int, data: Path | None) -> Fuse:
    """A form that has run once at this size."""
    fuse = fuse_of(form, device, precision, batch)
    sizes = tuple(int(size) for size in shape.split("x"))
    fuse(*pictures(name, 0, sizes, data))
    return fuse


@lru_cache(maxsize=8)
def _exact(form: str, shape: str, name: str, index: int, data: Path | None) -> NDArray[np.float64]:
    return exact(form, *_planes(Task("accuracy", shape=shape, pictures=name, index=index), data))


@lru_cache(maxsize=8)
def _reference(shape: str, name: str, index: int, data: Path | None) -> Planes:
    return fuse_of(REFERENCE)(*_planes(Task("accuracy", shape=shape, pictures=name, index=index), data))
