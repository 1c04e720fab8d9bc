"""Fusing apart from the node: in a process that may crash, run out of memory or time, and takes nobody with it.

A process a study: what a fusion has taken is given back, and reception does not share an interpreter with it. A node
that is killed takes its worker along, so that no study is ever fused by two at a time.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from medfuse.errors import MedfuseError

if TYPE_CHECKING:
    from medfuse.pacs.settings import Settings
    from medfuse.pacs.study import StudyResult

#: The folder, beside that of a study's results, for other studies of the patient.
PRIORS = "priors"


@dataclass(frozen=True)
class Outcome:
    """What became of a study's fusion.

    Args:
        note: What went wrong, or why there was nothing to do; without patient data.
        is_flawed: Whether a person should look at it.
    """

    note: str = ""
    is_flawed: bool = False


#: What fuses: a folder of DICOM files, and an empty one for results. It raises where trying again may help.
Fuse = Callable[[Path, Path], Outcome]


class WorkFailed(Exception):
    """A fusion did not come to its end; it may the next time. Its text holds no patient data."""


def fuse_by(settings: Settings) -> Fuse:
    """What fuses a study as a node's settings say, in a process of its own; the rules are read anew for every study."""
    return partial(_fuse_study, settings)


def _fuse_study(settings: Settings, source: Path, out: Path) -> Outcome:
    from medfuse.pacs.priors import fetch_priors
    from medfuse.pacs.rules import read_rules
    from medfuse.pacs.study import fuse_study

    rules, archive = read_rules(settings.rules), settings.archive_of_priors
    if archive is None:
        return to_outcome(fuse_study(source, out, rules))
    with emptied(out.parent / PRIORS) as priors:
        fetch_priors(source, rules, archive, priors, settings.ae_title)
        return to_outcome(fuse_study(source, out, rules, beside=priors))


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """An empty folder as long as the block lasts, whatever a kill has left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def to_outcome(result: StudyResult) -> Outcome:
    """What the node makes of a study's result.

    Raises:
        WorkFailed: A pair failed for a reason that may pass: no memory or space, or a fault.
    """
    failures = [pair.failure for pair in result.pairs if pair.failure]
    told = "; ".join(f"{pair.rule}: {pair.failure.message}" for pair in result.pairs if pair.failure)
    if any(failure.exit_code in _PASSING for failure in failures):
        raise WorkFailed(told)
    if not result.pairs:
        return Outcome("no pair to fuse")
    return Outcome(told, is_flawed=bool(failures))


#: Exit codes of what may go well another time: a fault or no memory, and an output that could not be written.
_PASSING = (1, 7)


class Apart:
    """A fusion that is run in a process of its own.

    Args:
        fuse: What fuses; it and what it is given must survive pickling.
        seconds: How long it may take.
    """

    def __init__(self, fuse: Fuse, seconds: float) -> None:
        self._fuse, self._seconds = fuse, seconds
        self._process: multiprocessing.process.BaseProcess | None = None

    def __call__(self, source: Path, out: Path) -> Outcome:
        """Fuse a study.

        Raises:
            WorkFailed: It crashed, took too long, or raised.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, self._fuse, source, out), name="fusing", daemon=True)
        process.start()
        self._process = process
        theirs.close()
        try:
            if not ours.poll(self._seconds):
                raise WorkFailed(f"expected a fusion to take at most {self._seconds:g} s, found that it takes longer")
            answer = ours.recv()
        except EOFError as error:
            process.join()
            raise WorkFailed(f"the process that fused ended with {process.exitcode}") from error
        finally:
            process.kill()
            process.join()
            ours.close()
            self._process = None
        if isinstance(answer, Outcome):
            return answer
        raise WorkFailed(str(answer))

    def stop(self) -> None:
        """End what is being fused; it is fused anew another time."""
        process = self._process
        if process is not None:
            process.kill()


def _work(answer: Connection, fuse: Fuse, source: Path, out: Path) -> None:
    """What the process does: fuse, and say what came of it. It ends with the one that began it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    try:
        answer.send(fuse(source, out))
    except (MedfuseError, WorkFailed) as error:
        answer.send(str(error))
    except Exception as error:
        answer.send("not enough memory" if isinstance(error, MemoryError) else f"an unforeseen {type(error).__name__}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
