"""The whole path, DICOM to DICOM: `medfuse fuse` as a user runs it, in a process and on cores of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, lru_cache
from math import prod
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from rows import THREAD_VARIABLES, Row

from performing.task import Task

#: Where the volumes of a run are written, by shape.
FOLDERS: dict[str, Path] = {}
#: Seconds between two looks at the memory of the processes.
LOOK_S = 0.05
#: What --json calls the time in the network.
NETWORK = "network"


@contextmanager
def series_of(shapes: Iterable[str], data: Path | None) -> Any:
    """MR and PET of every shape as DICOM series in a folder that is gone in the end."""
    with tempfile.TemporaryDirectory(prefix="medfuse-") as folder:
        for shape in dict.fromkeys(shapes):
            FOLDERS[shape] = Path(folder, shape)
            _make(shape, FOLDERS[shape], data)
        try:
            yield
        finally:
            FOLDERS.clear()
            _warm.cache_clear()
            _scans.cache_clear()


def end_to_end(task: Task, _data: Path | None) -> Row:
    """Wall seconds of one command, start of Python included, where they went, and most memory of all its processes."""
    _warm(task.method)
    wall, told, memory = _timed(task)
    profile = told.get("profile")
    return {
        "wall_s": wall,
        "network_s": _seconds_of(NETWORK, profile),
        "slices": task.sizes[0],
        "memory_mb": round(max(memory)) if memory else None,
        "seconds": told.get("seconds"),
        "profile": profile,
    }


@cache
def _warm(method: str) -> None:
    """Run the command once with the smallest volumes, so that Python's and the system's caches are full."""
    smallest = min(FOLDERS, key=lambda shape: prod(Task("", shape=shape).sizes))
    _timed(Task("end to end", method, smallest))


def _timed(task: Task) -> tuple[float, dict[str, Any], list[float]]:
    """Seconds, what the command told, and the memory that it held again and again.

    Raises:
        RuntimeError: The command failed.
    """
    folder = FOLDERS[task.shape]
    with tempfile.TemporaryDirectory(prefix="medfuse-") as out:
        command = [*_command(folder / "mr", folder / "pet", Path(out, "fused")), "--method", task.method]
        begin = time.perf_counter()
        with _confined(task.threads):
            process = subprocess.Popen(
                [*command, "--threads", str(task.threads)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(task.threads))},
            )
        with _watched(process.pid) as memory:
            answer, complaint = process.communicate()
        wall = time.perf_counter() - begin
    if process.returncode:
        raise RuntimeError(complaint.decode(errors="replace").strip()[-300:])
    return wall, json.loads(answer), memory


def _command(structural: Path, functional: Path, out: Path) -> list[str]:
    paths = [str(path) for path in (structural, functional)]
    return [
        sys.executable,
        "-m",
        "medfuse",
        "fuse",
        *paths,
        "-o",
        str(out),
        "--register",
        "none",
        "--profile",
        "--json",
    ]


@contextmanager
def _confined(threads: int) -> Any:
    """What is started in the block gets so many cores and no more, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _seconds_of(name: str, profile: Any) -> float | None:
    """The seconds of a stage, wherever the profile keeps them."""
    if isinstance(profile, Mapping):
        if isinstance(profile.get(name), int | float):
            return float(profile[name])
        return next((found for value in profile.values() if (found := _seconds_of(name, value)) is not None), None)
    return None


@contextmanager
def _watched(pid: int) -> Any:
    """A list that gets the memory, MB, that a process and its descendants hold, again and again while the block runs.

    What they share is counted for each. Of the process itself the kernel knows the peak. Linux only: empty elsewhere.
    """
    found: list[float] = []
    over = Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            with suppress(OSError, ValueError, StopIteration):
                held, peak = _resident_mb(pid)
                found.append(max(peak, held + sum(_resident_mb(child)[0] for child in _descendants(pid))))

    watcher = Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def _resident_mb(pid: int) -> tuple[float, float]:
    """What a process holds now, and the most it held."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    if "VmRSS" not in status:  # it has ended, and nobody has asked how
        return 0.0, 0.0
    now, most = (int(status[name].split()[0]) / 1000 for name in ("VmRSS", "VmHWM"))
    return now, most


def _descendants(pid: int) -> Iterable[int]:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            for child in (thread / "children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))


def _make(shape: str, folder: Path, data: Path | None) -> None:
    """The series of one shape."""
    from medfuse.align import resample
    from medfuse.grid import Grid
    from medfuse.sample import write_series

    sizes = tuple(int(size) for size in shape.split("x"))
    for number, (name, volume) in enumerate(_scans(data).items(), 1):
        grid = volume.grid
        spacing = np.array(grid.extent_mm) / sizes
        origin = grid.points_mm([(-0.5, -0.5, -0.5)])[0] + grid.direction @ (spacing / 2)
        target = Grid.from_axes(sizes, origin, spacing, grid.direction, grid.frame_of_reference)
        write_series(resample(volume, target), folder / name, description=name.upper(), number=number)


@lru_cache(maxsize=1)
def _scans(data: Path | None) -> dict[str, Any]:
    """MR and PET that lie where they belong: a patient's where there are real scans, else the digital head's."""
    if data is not None and (limb := data / "ibsi-sts" / "dicom" / "STS_002").is_dir():
        from medfuse.io.files import read

        return {name: read(limb / part / "image") for name, part in (("mr", "MR_T1"), ("pet", "PET"))}
    from medfuse.grid import Grid
    from medfuse.sample.head import head_scans

    scans = head_scans()
    laid = Grid(
        scans.pet.grid.shape, scans.mr_from_pet @ scans.pet.grid.lps_from_index, scans.mr.grid.frame_of_reference
    )
    return {"mr": scans.mr, "pet": replace(scans.pet, grid=laid)}
