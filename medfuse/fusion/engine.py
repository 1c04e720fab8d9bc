"""The slice-wise engine: two volumes on one grid in, one fused volume out, in batches of slices."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from queue import LifoQueue
from threading import Barrier
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.color import rgb_with_luminance
from medfuse.defaults import METHOD
from medfuse.devices import choose_device
from medfuse.errors import WeightsError
from medfuse.fusion.display import Display, leaving_color
from medfuse.fusion.flight import Lane, in_flight, in_turn, stream_on
from medfuse.fusion.methods import Method
from medfuse.fusion.settings import arithmetic_of, one_thread, set_threads
from medfuse.fusion.weights import modality_beside
from medfuse.stages import stage
from medfuse.volume import Modality, Pair, Unit, Volume

#: Called with (slices done, slices).
Progress = Callable[[int, int], None]
#: Gives the structural and the functional planes of some slices, (N, H, W), and what is kept for `Store`.
Load = Callable[[slice], tuple[NDArray[Any], NDArray[Any], Any]]
#: Takes some slices, their fused planes and what was kept.
Store = Callable[[slice, NDArray[np.float32], Any], None]

#: Bytes that a method holds, at most, for each pixel of a slice in flight: ten features of 64 channels. Live tensors
#: were counted on 128×128 and 256×256 pixels: DILRAN 1707, EH-DRAN 2239, MSRPAN 1344, MSDRA 1802; the rest is margin.
BYTES_PER_PIXEL = 10 * 64 * 4
LARGEST_BATCH = 32
#: Batches that are on a GPU at once: one is computed while others are copied.
LANES = 2


class Engine:
    """Fuses pairs of volumes; kept warm, it fuses the next one without loading anything again.

    On the CPU every thread takes one slice at a time, all the way from its windows to its colour; the result does not
    depend on their number. A single slice, which cannot be shared out so, is left to torch's own threads. On a GPU
    slices go in equal batches, one of them computed while the next and the last are copied; the threads do what comes
    before and after. Either way the memory needed does not grow with the number of slices.

    Args:
        method: A key of `medfuse.fusion.METHODS`.
        strategy: How the features of a learned method are merged; None for its default.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        weights: A safetensors file in place of the shipped weights.
        threads: Slices at a time on the CPU; None for as many as torch has threads.
        precision: As for `medfuse.fusion.Method`.
        memory_mib: What slices in flight may take of the device's memory, in MiB; None for half of what is free on a
            GPU, and for as much as `threads` slices take on the CPU.

    Raises:
        ValueError: An unknown method, strategy or precision, a device that is not there, or a number below 1.
        WeightsError: The weights cannot be used.
    """

    def __init__(
        self,
        method: str = METHOD,
        strategy: str | None = None,
        device: str = "auto",
        weights: str | Path | None = None,
        *,
        threads: int | None = None,
        precision: str = "float32",
        memory_mib: int | None = None,
    ) -> None:
        for name, number in (("thread", threads), ("MiB of memory", memory_mib)):
            if number is not None and number < 1:
                raise ValueError(f"expected at least one {name}, got {number}")
        self.device = choose_device(device)
        self.method = Method(method, strategy, weights, self.device, precision)
        self.threads = threads or torch.get_num_threads()
        self.memory_mib = memory_mib
        self._process = os.getpid()
        self._is_forked = False

    def check_memory(self, shape: tuple[int, ...]) -> None:
        """Refuse a volume of a shape (K, J, I) that `fuse` would refuse, before it is there.

        Raises:
            ValueError: A slice needs more than `memory_mib`.
        """
        self._most_slices(shape[1:])

    def fuse(self, pair: Pair, structural: Display, functional: Display, progress: Progress | None = None) -> Volume:
        """Fuse a pair slice by slice along the grid's first axis.

        Args:
            pair: Two volumes on one grid.
            structural: How the structural volume is shown; grey.
            functional: How the functional one is shown; its colour is carried past the network.
            progress: Called after each batch.

        Returns:
            RGB uint8 where the functional volume is shown in colour (beside a CT as `leaving_color` has it), otherwise
            float32 in [0, 1].

        Raises:
            ValueError: A slice needs more than `memory_mib`.
            WeightsError: The weights make NaN of the images.
        """
        grid = pair.structural.grid
        fused: NDArray[Any] = (
            np.empty((*grid.shape, 3), np.uint8) if functional.is_color else np.empty(grid.shape, np.float32)
        )

        def load(slices: slice) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
            with stage("colour"):
                grey, _ = structural.show(pair.structural.array[slices])
                return grey, *functional.show(pair.functional.array[slices])

        def store(slices: slice, result: NDArray[np.float32], chroma: NDArray[np.float32] | None) -> None:
            with stage("colour"):
                shown = leaving_color(result, chroma, pair.structural.modality)
                fused[slices] = shown if chroma is None else rgb_with_luminance(shown, chroma)

        modality = modality_beside(pair.structural.modality, pair.functional.modality)
        self._fly(grid.shape, load, store, modality, progress=progress)
        return Volume(
            fused,
            grid,
            Modality.FUSED,
            Unit.RGB if functional.is_color else Unit.ARBITRARY,
            replace(pair.structural.source, also=(pair.functional.source,)),
        )

    def fuse_planes(
        self,
        structural: NDArray[np.floating[Any]],
        functional: NDArray[np.floating[Any]],
        batch: int | None = None,
        modality: Modality = Modality.OTHER,
    ) -> NDArray[np.float32]:
        """Fuse luminances, (N, H, W) in [0, 1] both, into one of the same form, float32.

        Nothing looks for NaN in them, which `medfuse.read` refuses: what comes of it is left to the method.

        Args:
            structural: The structural planes, in floating point.
            functional: The functional planes, of the same shape.
            batch: Planes at a time; None leaves it to the engine. A last batch that is short is filled up.
            modality: Of the functional planes, for methods that have weights of their own for some beside MR; leave it
                out beside CT.

        Raises:
            ValueError: Planes of other forms, or a batch below 1; or a plane needs more than `memory_mib`.
            WeightsError: The weights make NaN of planes that have none.
        """
        _check_planes(structural, functional)
        if batch is not None and batch < 1:
            raise ValueError(f"expected a batch of at least one plane, got {batch}")
        fused = np.empty(structural.shape, np.float32)

        def load(slices: slice) -> tuple[NDArray[Any], NDArray[Any], None]:
            return structural[slices], functional[slices], None

        def store(slices: slice, result: NDArray[np.float32], _: None) -> None:
            fused[slices] = result

        self._fly(structural.shape, load, store, modality, batch)
        return fused

    def _fly(
        self,
        shape: tuple[int, ...],
        load: Load,
        store: Store,
        modality: Modality,
        batch: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Take all slices of a shape (K, J, I) from `load` through the method to `store`, batch by batch."""
        count = shape[0]
        most = self._most_slices(shape[1:])
        batch = batch or self._batch(count, most)
        batches = [slice(start, min(start + batch, count)) for start in range(0, count, batch)]
        if self._process != os.getpid():
            self._start_anew()
        lanes = self._lanes

        def whole(slices: slice) -> int:
            structural, functional, kept = load(slices)
            with stage("network"):
                lane = lanes.get()
                try:
                    result = self._checked(lane, structural, functional, batch, modality)
                finally:
                    lanes.put(lane)
            store(slices, result, kept)
            return int(slices.stop)

        with ExitStack() as held, stage("network"):
            held.enter_context(arithmetic_of(self.method.precision))
            begun = min(self._workers, len(batches), most if self.device.type == "cpu" else self._workers)
            done: Iterable[int] = map(whole, batches)
            if begun > 1:
                done = held.enter_context(closing(in_flight(self._crew, whole, batches, begun)))
            elif len(batches) > 1 or self._is_forked:  # torch waits forever for threads of its own that stayed behind
                held.enter_context(one_thread())
            for stop in done:
                if progress:
                    progress(stop, count)

    def _checked(
        self, lane: Lane, structural: NDArray[Any], functional: NDArray[Any], batch: int, modality: Modality
    ) -> NDArray[np.float32]:
        """What a lane makes of planes.

        Raises:
            WeightsError: NaN, where the planes have none and the method has weights.
        """
        try:
            result = lane(structural, functional, batch, modality)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # of features that are NaN
            self._blame_weights(structural, functional, modality, error)
            raise
        if np.isnan(result.sum()):
            self._blame_weights(structural, functional, modality)
        return result

    def _blame_weights(
        self, structural: NDArray[Any], functional: NDArray[Any], modality: Modality, cause: Exception | None = None
    ) -> None:
        """Raise `WeightsError` for a result that is NaN, unless the planes are to blame."""
        is_whole = np.isfinite(structural).all() and np.isfinite(functional).all()
        if is_whole and self.method.weights_sha256(modality):
            raise WeightsError(
                f"expected weights of {self.method.name} that give an image, found that these give NaN",
                "Train the network again, or leave out --weights",
            ) from cause

    def _start_anew(self) -> None:
        """Let go, in a forked process, of the crew, whose threads did not come along, and of lanes that were in use."""
        self._process, self._is_forked = os.getpid(), True
        self.__dict__.pop("_crew", None)
        self.__dict__.pop("_lanes", None)

    @property
    def _workers(self) -> int:
        return self.threads if self.device.type == "cpu" else max(self.threads, LANES)

    @cached_property
    def _crew(self) -> ThreadPoolExecutor:
        """Workers; each takes slices, and torch has no other thread for them.

        All begin now: while one sets its count of threads, a thread that asks torch for the first time would get that.
        """
        crew, everybody = ThreadPoolExecutor(self._workers, "medfuse", set_threads, (1,)), Barrier(self._workers)
        list(crew.map(lambda _: everybody.wait(), range(self._workers)))
        return crew

    @cached_property
    def _lanes(self) -> LifoQueue[Lane]:
        """What a worker takes to have its batch computed, and gives back; where there is none left it waits."""
        lanes = LifoQueue[Lane]()
        if self.device.type == "cpu":
            for _ in range(self._workers):
                lanes.put(Lane(self.method, self.device))
            return lanes
        computing = stream_on(self.device) if self.device.type == "cuda" else None
        one_by_one = in_turn(self.method)
        for _ in range(LANES):
            lanes.put(Lane(one_by_one, self.device, computing))
        return lanes

    def _batch(self, count: int, most: int) -> int:
        """Slices of a batch: one on the CPU; on a GPU as many as there may be, the batches equal."""
        if self.device.type != "cuda":
            return 1
        most = min(most, LARGEST_BATCH)
        return math.ceil(max(count, 1) / math.ceil(max(count, 1) / most))

    def _most_slices(self, plane: tuple[int, ...]) -> int:
        """How many slices may be in flight by the memory they take.

        Raises:
            ValueError: Not even one.
        """
        needed = max(math.prod(plane), 1) * BYTES_PER_PIXEL
        if self.memory_mib is not None:
            most = self.memory_mib * 2**20 // needed
            if most < 1:
                size = " × ".join(map(str, plane))
                raise ValueError(
                    f"expected at least {math.ceil(needed / 2**20)} MiB of memory for slices of {size}, "
                    f"got {self.memory_mib}"
                )
            return most
        if self.device.type != "cuda":
            return self.threads
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return max(free // 2 // needed, 1)


def _check_planes(structural: NDArray[Any], functional: NDArray[Any]) -> None:
    if structural.ndim != 3 or structural.shape != functional.shape:
        raise ValueError(f"expected planes (N, H, W) of one shape, got {structural.shape} and {functional.shape}")
    for planes in (structural, functional):
        if not np.issubdtype(planes.dtype, np.floating):
            raise ValueError(f"expected luminances in [0, 1] in floating point, got {planes.dtype}")
