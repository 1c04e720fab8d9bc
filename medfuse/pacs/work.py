"""Fusing apart from the node: in a process that may crash, run out of memory or time, and takes nobody with it.

A process a study: what a fusion has taken is given back, and reception does not share an interpreter with it. The next
one is started ahead, for what it loads takes seconds. A node that is killed takes its workers along, so that no study
is ever fused by two at a time.
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
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from medfuse.errors import MedfuseError, NetworkError, OutputError

if TYPE_CHECKING:
    from medfuse.pacs.rules import Rules
    from medfuse.pacs.settings import Destination, Settings
    from medfuse.pacs.study import StudyResult

#: The folder, beside that of a study's results, for other studies of the patient.
PRIORS = "priors"


@dataclass(frozen=True)
class Outcome:
    """What became of a study's fusion.

    Args:
        note: What went wrong, or why there was nothing to do; without patient data.
        is_flawed: Whether a person should look at it.
        may_pass: Whether trying again may help; after the last attempt, what was fused counts.
    """

    note: str = ""
    is_flawed: bool = False
    may_pass: bool = False


#: What fuses: a folder of DICOM files, and an empty one for results. It raises where trying again may help.
Fuse = Callable[[Path, Path], Outcome]


class WorkFailed(Exception):
    """A fusion did not come to its end; it may the next time. Its text holds no patient data."""


def fuse_by(settings: Settings) -> Fuse:
    """What fuses a study as a node's settings say, in a process of its own; the rules are read anew for every study."""
    return partial(_fuse_study, settings)


def _fuse_study(settings: Settings, source: Path, out: Path) -> Outcome:
    """Fuse a study; an error that does not pass, as of damaged files, is what became of it."""
    from medfuse.pacs.rules import check_sendable, read_rules
    from medfuse.pacs.study import fuse_study

    try:
        rules, archive = read_rules(settings.rules), settings.archive_of_priors
        check_sendable(rules)
        if archive is None:
            return to_outcome(fuse_study(source, out, rules))
        with emptied(out.parent / PRIORS) as priors:
            return _fused_beside(priors, archive, rules, settings, source, out)
    except MedfuseError as error:
        if error.exit_code in _PASSING:
            raise
        return Outcome(str(error), is_flawed=True)


def _fused_beside(
    priors: Path, archive: Destination, rules: Rules, settings: Settings, source: Path, out: Path
) -> Outcome:
    """Fuse a study beside others of the patient; without them where they cannot be had and there is a pair in it.

    Raises:
        NetworkError: They cannot be had, and there is no pair.
    """
    from medfuse.pacs.priors import fetch_priors
    from medfuse.pacs.study import fuse_study

    try:
        fetch_priors(source, rules, archive, priors, settings.ae_title)
    except NetworkError as error:
        result = fuse_study(source, out, rules)  # not beside what may have been cut short
        if not result.pairs:
            raise
        outcome = to_outcome(result)
        told = f"without other studies of the patient: {error}"
        return replace(outcome, note="; ".join(filter(None, (outcome.note, told))), is_flawed=True)
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
    """What the node makes of a study's result."""
    failures = [pair.failure for pair in result.pairs if pair.failure]
    told = "; ".join(f"{pair.rule}: {pair.failure.message}" for pair in result.pairs if pair.failure)
    if not result.pairs:
        return Outcome("no pair to fuse")
    return Outcome(told, bool(failures), any(failure.exit_code in _PASSING for failure in failures))


#: Exit codes of what may go well another time: a fault or no memory, an output that could not be written, and an
#: archive that did not answer.
_PASSING = (MedfuseError.exit_code, OutputError.exit_code, NetworkError.exit_code)


class Apart:
    """A fusion that is run in a process of its own.

    Args:
        fuse: What fuses; it and what it is given must survive pickling.
        seconds: How long it may take.
    """

    def __init__(self, fuse: Fuse, seconds: float) -> None:
        self._fuse, self._seconds = fuse, seconds
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._spare: _Worker | None = None
        self._is_ahead = False

    def start(self) -> None:
        """Begin to keep a spare process, which has loaded what takes seconds to load before a study comes."""
        self._is_ahead = True
        self._prepare()

    def _prepare(self) -> None:
        with self._lock:
            if self._is_ahead:
                self._spare = _Worker(self._fuse, is_spare=True)

    def __call__(self, source: Path, out: Path) -> Outcome:
        """Fuse a study.

        Raises:
            WorkFailed: It crashed, took too long, or raised.
        """
        with self._lock:
            spare, self._spare = self._spare, None
            worker = self._worker = spare if spare and spare.process.is_alive() else _Worker(self._fuse)
        try:
            answer = worker.answer(source, out, self._seconds)
        finally:
            worker.end()
            self._worker = None
            self._prepare()
        if isinstance(answer, Outcome):
            return answer
        raise WorkFailed(str(answer))

    def stop(self) -> None:
        """End what is being fused; it is fused anew another time."""
        with self._lock:
            self._is_ahead = False
            if self._worker is not None:
                self._worker.process.kill()
            if self._spare is not None:
                self._spare.end()


class _Worker:
    """A process that fuses one study.

    Args:
        fuse: What fuses.
        is_spare: Whether there is time to load what fusing needs before the study comes.
    """

    def __init__(self, fuse: Fuse, *, is_spare: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, fuse, is_spare), name="fusing", daemon=True)
        self.process.start()
        theirs.close()

    def answer(self, source: Path, out: Path, seconds: float) -> object:
        """What it answers when it is given a study.

        Raises:
            WorkFailed: It ends, or takes longer than so many seconds.
        """
        try:
            self._ours.send((source, out))
            if not self._ours.poll(seconds):
                raise WorkFailed(f"expected a fusion to take at most {seconds:g} s, found that it takes longer")
            return self._ours.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            raise WorkFailed(f"the process that fused ended with {self.process.exitcode}") from error

    def end(self) -> None:
        """End it, and give back what it has taken."""
        self.process.kill()
        self.process.join()
        self._ours.close()


def _work(node: Connection, fuse: Fuse, is_spare: bool) -> None:
    """What the process does: fuse, and say what came of it. It ends with the one that began it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    if is_spare:
        import medfuse.pacs.study  # noqa: F401
    try:
        source, out = node.recv()
    except (EOFError, OSError):  # the node has ended
        return
    try:
        node.send(fuse(source, out))
    except (MedfuseError, WorkFailed) as error:
        node.send(str(error))
    except Exception as error:
        node.send("not enough memory" if isinstance(error, MemoryError) else f"an unforeseen {type(error).__name__}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
