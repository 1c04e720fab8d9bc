"""Running tasks, in processes of their own, and keeping what they answered, one JSON row a task."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, fields
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

from rows import THREAD_VARIABLES, Row, kept, read_rows

from performing import machine
from performing.task import Task


def measured(task: Task, data: Path | None) -> Row:
    """Run one task in this process; what it dies of is its answer, and the others go on."""
    load = machine.load()
    try:
        found = _measure(task.what)(task, data)
    except Exception as error:
        found = {"failure": " ".join(f"{type(error).__name__}: {error}".split())[-300:]}
    return {**asdict(task), "load": load, **found}


def _measure(what: str) -> Callable[[Task, Path | None], Row]:
    from performing import batches, ceilings, pairs, volumes

    return {
        "pair": pairs.pair_seconds,
        "memory": pairs.memory,
        "accuracy": pairs.accuracy,
        "arithmetic": pairs.arithmetic,
        "ceiling": lambda task, _data: ceilings.ceiling(task),
        "end to end": volumes.end_to_end,
        "batch": batches.batch_seconds,
        "resident": batches.resident_seconds,
        "volume": batches.volume_seconds,
        "resampling": batches.resampling_seconds,
    }[what]


def run(tasks: Iterable[Task], data: Path | None, out: Path) -> Iterator[Row]:
    """Run what `out` does not hold yet, each row written as it is done; the machine's description before all.

    Raises:
        ValueError: `out` holds rows of another machine.
    """
    rows = read_rows(out)
    here = machine.described()
    there = [row for row in rows if row["what"] == machine.WHAT]
    if there and there[-1] != here:
        raise ValueError(f"expected rows of this machine in {out.name}, found those of another, or of other versions")
    done = {_task_of(row) for row in rows if row["what"] != machine.WHAT}
    yield from kept(
        _rows([task for task in dict.fromkeys(tasks) if task not in done], data, [] if there else [here]), out
    )


def _rows(tasks: Sequence[Task], data: Path | None, first: list[Row]) -> Iterator[Row]:
    yield from first
    for _, group in groupby(tasks, _home):
        together = list(group)
        if together[0].what == "end to end":  # a process of its own as it is
            yield from (measured(task, data) for task in together)
            continue
        with process(together[0].threads) as pool:
            for task in together:  # one after the other: nothing runs beside what is timed
                yield pool.submit(measured, task, data).result()


def _task_of(row: Row) -> Task:
    return Task(**{field.name: row[field.name] for field in fields(Task)})


def _home(task: Task) -> object:
    """Tasks of one home share a process: those that are timed in turns; memory is not mixed with others'."""
    return task if task.what == "memory" else (task.what, task.threads, task.device)


def process(threads: int) -> Executor:
    """A process with so many threads, and cores."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start, initargs=(threads,))


def _start(threads: int) -> None:
    """In each process, before a clock runs."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
