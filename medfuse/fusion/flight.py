"""How slices travel: several batches in flight, each worker with one, from memory to the device and back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.volume import Modality

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
#: (structural, functional, modality of the functional one) to fused.
Fuse = Callable[[Tensor, Tensor, Modality], Tensor]


class Lane:
    """A way to the device and back for one batch at a time; its buffers are kept for the next one.

    On CUDA they are pinned. Copies go through a stream of the lane's own, and so overlap with what other lanes compute;
    all lanes compute in one stream, one after the other, so that they may share what a method keeps on the device.

    Args:
        method: Takes two batches (N, 1, H, W) on the device, and the modality of the second, gives one.
        device: Where it runs.
        computing: The stream in which it computes; None but on CUDA.
    """

    def __init__(
        self,
        method: Fuse,
        device: torch.device,
        computing: torch.cuda.Stream | None = None,
    ) -> None:
        self.method = method
        self.device = device
        self.computing = computing
        self.copying = stream_on(device) if computing else None
        self._buffer = torch.empty(0)

    def __call__(
        self,
        structural: NDArray[np.floating[Any]],
        functional: NDArray[np.floating[Any]],
        batch: int,
        modality: Modality,
    ) -> NDArray[np.float32]:
        """Fuse planes, (N, H, W) both; where they are fewer than a batch, black ones fill it up."""
        count, *plane = structural.shape
        host = self._buffer_of((3, batch, 1, *plane))
        for buffer, planes in zip(host, (structural, functional), strict=False):
            buffer.numpy()[:count, 0] = planes
        host[:2, count:] = 0
        with _through(self.copying):
            there = host[:2].to(self.device, non_blocking=True)
        _after(self.copying, self.computing)
        with _through(self.computing):
            fused = self.method(there[0], there[1], modality)
        _after(self.computing, self.copying)
        with _through(self.copying):
            host[2].copy_(fused, non_blocking=True)
        if self.copying:
            self.copying.synchronize()
        return host[2, :count, 0].numpy().copy()

    def _buffer_of(self, shape: tuple[int, ...]) -> Tensor:
        if self._buffer.shape != shape:
            self._buffer = torch.empty(shape, pin_memory=self.copying is not None)
        return self._buffer


def in_turn(method: Fuse) -> Fuse:
    """A method that several lanes may call, one at a time: what it holds while it computes is there once."""
    turn = threading.Lock()

    def wait_and_run(structural: Tensor, functional: Tensor, modality: Modality) -> Tensor:
        with turn:
            return method(structural, functional, modality)

    return wait_and_run


def stream_on(device: torch.device) -> torch.cuda.Stream:
    """A new stream of a CUDA device; it waits for what has been begun there, such as laying out weights."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _through(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    return torch.cuda.stream(stream) if stream else nullcontext()


def _after(first: torch.cuda.Stream | None, then: torch.cuda.Stream | None) -> None:
    """Let what comes into one stream wait for what is in the other."""
    if first and then:
        then.wait_stream(first)


def in_flight(
    workers: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item], most: int
) -> Generator[_Result, None, None]:
    """The results of a piece of work on each item, in order, with no more than so many of them begun and not yet given.

    Where one fails, or no more are asked for, the ones begun are waited for.
    """
    begun: deque[Future[_Result]] = deque()
    try:
        for item in items:
            if len(begun) == most:
                yield begun.popleft().result()
            begun.append(workers.submit(work, item))
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            if not future.cancel():
                future.exception()
