"""Running methods on pairs, in processes of their own, and keeping what they answered, one JSON row a run."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rows import THREAD_VARIABLES, Row, forget_peak, kept, peak_mb, read_rows

from medfuse.errors import MedfuseWarning
from registering.cases import anchors_mm, load_case
from registering.displacement import displacement, stripped
from registering.methods import METHODS, Found, load
from registering.nonsense import NONSENSE, load_nonsense


@dataclass(frozen=True)
class Task:
    """One registration to run.

    Args:
        case: Of `cases`, or of `nonsense` (its index is 0).
        index: Number of the displacement.
        method: Of `METHODS`.
        kind: What medfuse is asked for: "rigid", "affine", "deformable". Others are rigid.
        seed: Of the displacements.
    """

    case: str
    index: int
    method: str
    kind: str
    seed: int


def run(tasks: Sequence[Task], data: Path | None, out: Path, jobs: int, threads: int) -> Iterator[Row]:
    """Run what `out` does not hold yet, each row written as it is done.

    Each row of neighbours of one method gets processes of its own, so that its memory is not mixed with the others'.

    Args:
        tasks: What to run; neighbours of one case share its volumes.
        data: Folder of real scans.
        out: JSON Lines file that is added to.
        jobs: Processes.
        threads: Threads of each.
    """
    done = {Task(*(row[name] for name in Task.__dataclass_fields__)) for row in read_rows(out)}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    groups = groupby((task for task in tasks if task not in done), lambda task: task.method)
    rows = (row for method, group in groups for row in _in_processes(method, list(group), data, jobs, threads))
    yield from kept(rows, out)


def _in_processes(method: str, tasks: Sequence[Task], data: Path | None, jobs: int, threads: int) -> Iterator[Row]:
    with ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=get_context("spawn"), initializer=_start, initargs=(method,)
    ) as pool:
        try:
            for future in as_completed([pool.submit(measured, task, data, threads) for task in tasks]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(method: str) -> None:
    """In each process, before the clock runs: load what the method needs; what readers warn of is known here."""
    load(method)
    warnings.simplefilter("ignore", MedfuseWarning)


def measured(task: Task, data: Path | None, threads: int) -> Row:
    """Run one task in this process."""
    if task.case in NONSENSE:
        fixed, moving = load_nonsense(task.case, data)
        about: Row = {}
    else:
        case = load_case(task.case, data)
        move = displacement(case.name, task.index, task.seed, case.moving.grid.center_mm)
        fixed, moving = stripped(case.fixed), move.moved(case.moving)
        truth = move.truth(case.truth)
        about = {
            "tolerance_mm": case.tolerance_mm,
            "degrees": round(move.degrees, 2),
            "shift_mm": round(move.shift_mm, 2),
            "half_turn": move.half_turn,
            "truth": truth.moving_from_fixed.tolist(),
            "anchors_mm": anchors_mm(_targets(task.case, data)).round(2).tolist(),
        }
    forget_peak()
    begin = time.perf_counter()
    found = _answer(task, fixed, moving, threads)
    seconds = time.perf_counter() - begin
    if about and found.transform is not None:
        targets = _targets(task.case, data)
        errors = np.linalg.norm(found.transform.apply(targets) - truth.apply(targets), axis=1)
        about["error_mm"] = round(float(errors.mean()), 4)
    matrix = None if found.transform is None else found.transform.moving_from_fixed.tolist()
    return {
        **asdict(task),
        **about,
        "trust": found.trust,
        "seconds": round(seconds, 2),
        "memory_mb": round(peak_mb()),
        "threads": threads,
        "failure": found.failure,
        "found": matrix,
        "numbers": found.numbers,
    }


def _answer(task: Task, fixed: Any, moving: Any, threads: int) -> Found:
    try:
        return METHODS[task.method](fixed, moving, task.kind, threads)
    except Exception as error:  # whatever a method dies of is its answer, and the others go on
        return Found(failure=" ".join(f"{type(error).__name__}: {error}".split())[-300:])


@lru_cache(maxsize=4)
def _targets(name: str, data: Path | None) -> NDArray[np.float64]:
    return load_case(name, data).targets_mm()
