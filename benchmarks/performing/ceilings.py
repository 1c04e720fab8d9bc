"""What the machine can do at most: large matrix products, copies and Fourier transforms, by torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from math import log2
from typing import Any

import torch
from rows import Row

from performing.task import Task

#: Operations a second of these, bytes a second of the others.
PRODUCTS = {"float32 product": torch.float32, "tf32 product": torch.float32, "bfloat16 product": torch.bfloat16}
FFT = "float32 FFT"
COPY = "copy"
UPLOAD, DOWNLOAD = "host to device", "device to host"
ON_CPU = ("float32 product", "bfloat16 product", FFT, COPY)
ON_GPU = (*PRODUCTS, FFT, COPY, UPLOAD, DOWNLOAD)
#: A run is as large as asked for, unless it would take longer than this.
LONGEST_S = 1.0


def ceiling(task: Task) -> Row:
    """One timed run of a large operation; the highest of several is the ceiling."""
    side, device = task.sizes[0], torch.device(task.device)
    with torch.inference_mode(), _float32_as(task.method):
        if task.method in PRODUCTS:
            side = _affordable(task.method, side, device)
        call, work = _operation(task.method, side, device)
        _timed(call, device)
        seconds = _timed(call, device)
    return {"side": side, "rate": work / seconds, "unit": "B/s" if _is_copy(task.method) else "FLOP/s"}


def _is_copy(name: str) -> bool:
    return name in (COPY, UPLOAD, DOWNLOAD)


@contextmanager
def _float32_as(name: str) -> Any:
    """Whether a GPU may round what it multiplies to TF32: where that is what is measured."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = name.startswith("tf32")
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _operation(name: str, side: int, device: torch.device) -> tuple[Callable[[], Any], float]:
    """What to run, and how many operations or bytes it is."""
    if name in PRODUCTS:
        one, other = (torch.rand(side, side, device=device).to(PRODUCTS[name]) for _ in range(2))
        return lambda: one @ other, 2.0 * side**3
    plane = torch.rand(side, side, device=device)
    if name == FFT:
        return lambda: torch.fft.rfft2(plane), 2.5 * side**2 * log2(side**2)
    if name == COPY:
        one, other = torch.rand(4, side, side, device=device), torch.empty(4, side, side, device=device)
        return lambda: other.copy_(one), 2.0 * one.numel() * one.element_size()
    host = torch.rand(side, side).pin_memory()
    source, target = (host, plane) if name == UPLOAD else (plane, host)
    return lambda: target.copy_(source, non_blocking=True), float(plane.numel() * plane.element_size())


def _affordable(name: str, side: int, device: torch.device) -> int:
    """The largest side, a power of two below the one asked for, whose product does not take too long."""
    tried = min(256, side)
    while tried < side:
        call, _ = _operation(name, tried, device)
        _timed(call, device)
        if 8 * _timed(call, device) > LONGEST_S:
            break
        tried = min(2 * tried, side)
    return tried


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    wait(device)
    begin = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - begin


def wait(device: torch.device | str) -> None:
    """Let a GPU finish what was asked of it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
