"""The node: studies come in by C-STORE, are fused when they are quiet, and the results go out.

Reception, fusion, each destination and the watch have a thread each, and all they know of one another is the queue.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from shutil import rmtree
from time import monotonic

from pydicom.filereader import read_file_meta_info

from medfuse.errors import MedfuseError, one_line
from medfuse.output import UNFINISHED
from medfuse.pacs.client import holds
from medfuse.pacs.monitor import Counts, Measure, Monitor, exposition
from medfuse.pacs.network import Away, check_installed
from medfuse.pacs.queue import Queue
from medfuse.pacs.reception import Reception
from medfuse.pacs.records import QUEUE, Job, Result
from medfuse.pacs.send import is_companion, offer, refused
from medfuse.pacs.settings import Destination, Settings
from medfuse.pacs.spool import Spool, check_place, digest_of
from medfuse.pacs.work import Apart, Fuse, Outcome, WorkFailed

log = logging.getLogger(__name__)


#: Seconds between two looks at the queue, and between two at the disk.
POLL_SECONDS, DISK_SECONDS = 0.5, 60.0


class Node:
    """A DICOM node that fuses.

    Args:
        settings: How it is set up.
        fuse: What fuses a study.
        apart: Whether it does so in a process of its own.
        poll_seconds: Time between two looks at the queue.

    Raises:
        ValueError: The libraries of the network are not installed.
        OutputError: The spool cannot be used, or is another node's.
    """

    def __init__(
        self, settings: Settings, fuse: Fuse, *, apart: bool = True, poll_seconds: float = POLL_SECONDS
    ) -> None:
        check_installed()
        self.settings, self._poll_seconds = settings, poll_seconds
        self._fuse = Apart(fuse, settings.fuse_seconds) if apart else fuse
        self._stack, self._stopping = ExitStack(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._disk_seen = monotonic()
        #: The fusion that failed last, as long as the queue has not been told.
        self._failure: tuple[Job, str] | None = None
        #: Since when destinations have not been reached, by name.
        self._away: dict[str, float] = {}
        self.counts = Counts()
        check_place(settings.spool)
        self.spool = Spool(settings.spool)
        self._stack.enter_context(self.spool.lock())
        self.queue = Queue(settings.spool / QUEUE, longest_seconds=settings.retry.longest_seconds)
        self._stack.callback(self.queue.close)
        self.spool.clear()
        self.spool.forget_all_but(self.queue.recover(settings.retry.first_seconds))
        if given_up := self.queue.give_up_all_but(one.name for one in settings.destinations):
            log.warning("%d deliveries were to destinations that there are no more: medfuse queue retry", given_up)
        self.reception = Reception(settings, self.queue, self.spool, self.counts)
        self.port = 0
        self.monitor: Monitor | None = None

    def start(self) -> None:
        """Begin to work, and to listen.

        Raises:
            OutputError: A port cannot be listened on.
            InputError: A key of TLS, or an authorization, is not there.
        """
        self.settings.check()
        self.port = self.reception.start()
        self._stack.callback(self.reception.stop)
        if self.settings.monitor_port is not None:
            self.monitor = Monitor(self.settings.monitor_port, self.ailing, self.reception.hindered, self.metrics)
            self._stack.callback(self.monitor.stop)
        if isinstance(self._fuse, Apart):
            self._fuse.start()
        self._begin("watch", self._watch)
        self._begin("fusion", self._fuse_next)
        for destination in self.settings.destinations:
            self._begin(f"to {destination.name}", partial(self._send_next, destination))
        log.info("listening as %s on port %d of %s", self.settings.ae_title, self.port, self.settings.host)

    def stop(self) -> None:
        """Stop; what was under way is taken up again at the next start."""
        self._stopping.set()
        if isinstance(self._fuse, Apart):
            self._fuse.stop()
        for thread in self._threads:
            thread.join(timeout=30)
        self._stack.close()
        log.info("stopped")

    def _begin(self, name: str, step: Callable[[], bool]) -> None:
        """Start a thread that takes a step, and another at once if there may be more to do, or else after a while."""

        def run() -> None:
            said = ""
            while not self._stopping.is_set():
                try:
                    is_more, said = step(), ""
                except Exception as error:
                    if _told(error) != said:  # once, not at every look
                        said = _told(error)
                        log.critical("%s: %s", name, one_line(said))
                    is_more = False
                if not is_more:
                    self._stopping.wait(self._poll_seconds)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _watch(self) -> bool:
        """Find quiet studies; now and then, forget those that were done long ago, and what was dropped."""
        with self.reception.placing:  # what arrives meanwhile makes the study another one
            receiving = {job.key: job for job in self.queue.receiving()}
            for key in self.reception.arrivals.quiet(receiving, self.settings.quiet_seconds):
                if self.queue.complete(receiving[key]):
                    self.reception.arrivals.forget(key)
                    log.info("study %s is quiet", key)
        if monotonic() - self._disk_seen > DISK_SECONDS:
            self._disk_seen = monotonic()
            self._tidy()
        return False

    def _tidy(self) -> None:
        with self.reception.placing:
            self.spool.forget_all_but(self.queue.forget_done(self.settings.keep_hours * 3600))
        self.reception.used_bytes = self.spool.used_bytes()

    def _fuse_next(self) -> bool:
        """Fuse the study that has waited longest; whether there was one."""
        self._tell_failure()
        job = self.queue.take()
        if job is None:
            return False
        log.info("study %s: fusing, attempt %d", job.key, job.attempts)
        began = monotonic()
        try:
            told = self._fused(job)
        except Exception as error:
            if self._stopping.is_set():
                return False
            self._failure = job, _told(error)
            told = self._tell_failure()
        self.counts.add("fusions", result=told)
        self.counts.add("fusion_seconds", monotonic() - began)
        return True

    def _tell_failure(self) -> str:
        """Tell the queue if a fusion has failed; it is kept in mind until that succeeds, for the disk may be full.

        Returns:
            What became of the study, in a word.
        """
        if self._failure is None:
            return ""
        job, note = self._failure
        told = "failed" if self.queue.failed(job, note, self.settings.retry.after(job.attempts)) else "outdated"
        self._failure = None
        log.warning("study %s: %s: %s", job.key, told, one_line(note))
        return told

    def _fused(self, job: Job) -> str:
        """Fuse a study and note its results; what became of it, in a word."""
        if job.attempts > self.settings.retry.attempts:
            raise WorkFailed("every attempt to fuse it has ended with the node itself")
        inputs, folder = self.spool.inputs(job.key), self.spool.results(job.key, job.generation)
        rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        is_last = self.settings.retry.after(job.attempts) is None
        try:
            outcome = self._fuse(inputs, folder) if any(inputs.glob("*")) else Outcome("nothing was received")
        except WorkFailed as error:  # a crash, or too long: what it had finished is whole
            for unfinished in list(folder.rglob(f"{UNFINISHED}*")):
                rmtree(unfinished, ignore_errors=True)
            if not is_last or self._stopping.is_set() or not any(folder.rglob("*.dcm")):
                raise
            outcome = Outcome(str(error), is_flawed=True)
        if outcome.may_pass and not is_last:
            raise WorkFailed(outcome.note)
        self.spool.keep(folder)
        results = [_result(path) for path in sorted(folder.rglob("*.dcm"))]
        names = [destination.name for destination in self.settings.destinations]
        if not self.queue.fused(job, results, names, outcome.note, outcome.is_flawed):
            rmtree(folder, ignore_errors=True)
            return "outdated"
        self.spool.forget(job.key, results_but=job.generation)
        told = "flawed" if outcome.is_flawed else "fused" if results else "nothing"
        log.info("study %s: %s, %d instances%s", job.key, told, len(results), outcome.note and f": {outcome.note}")
        return told

    def _send_next(self, destination: Destination) -> bool:
        """Send what a destination has waited for longest; whether there was something."""
        name = destination.name
        job = self.queue.errand(name)
        if job is None:
            return False
        try:
            # Companions last: what an archive may refuse does not keep it waiting for the images.
            waiting = sorted(self.queue.unsent(job, name), key=lambda one: is_companion(one.file))
            for result in [one for one in waiting if one.is_there_perhaps]:
                if holds(result.file, destination, self.settings.ae_title):
                    self.queue.sending(job, name, result, None)
                    waiting.remove(result)
            is_whole = self._sent_all(job, destination, waiting)
            self._away.pop(name, None)
            if not is_whole:
                return not self._stopping.is_set()
            self.queue.delivered(job, name)
            log.info("study %s: %d instances sent to %s", job.key, len(waiting), name)
        except Exception as error:
            self._put_off(job, name, error)
        return True

    def _put_off(self, job: Job, name: str, error: Exception) -> None:
        """Note that a delivery has failed. To have reached nobody does not count: an archive may be away for days."""
        note, is_away = _told(error), isinstance(error, Away)
        if is_away:
            since = self._away.setdefault(name, monotonic())
            after: float | None = self.settings.retry.while_away(monotonic() - since)
        else:
            self._away.pop(name, None)
            after = self.settings.retry.after(job.attempts + 1)
        self.queue.undelivered(job, name, note, after, counts=not is_away)
        self.counts.add("deliveries_failed", destination=name)
        log.warning("study %s: not sent to %s: %s", job.key, name, one_line(note))

    def _sent_all(self, job: Job, destination: Destination, waiting: list[Result]) -> bool:
        """Send instances, each marked before and after; whether they were all sent, or else the study has changed.

        Raises:
            NetworkError: The destination does not answer, or has refused some.
        """
        refusals = []
        first, *others = [*waiting, None]
        if not self.queue.sending(job, destination.name, None, first):
            return False
        answers = offer([result.file for result in waiting], destination, self.settings.ae_title)
        for (path, why), result, following in zip(answers, waiting, others, strict=True):
            is_current = self.queue.sending(job, destination.name, result, following, accepted=not why)
            if why:
                refusals.append((path, why))
            else:
                self.counts.add("instances_sent", destination=destination.name)
            if not is_current or self._stopping.is_set():
                return False
        if refusals:
            raise refused(destination, refusals)
        return True

    def ailing(self) -> list[str]:
        """Which parts do not work any more."""
        return [f"{thread.name} has ended" for thread in self._threads if not thread.is_alive()]

    def metrics(self) -> str:
        """What Prometheus is told."""
        measures: list[Measure] = [
            *(("studies", (("state", state),), count) for state, count in self.queue.counts().items()),
            ("connections", (), self.reception.connections),
            ("spool_bytes", (), self.reception.used_bytes),
            ("free_bytes", (), self.spool.free_bytes()),
            ("paused", (), self.queue.is_paused),
        ]
        return exposition(self.counts.read(), measures)


def _told(error: Exception) -> str:
    """What may be said of an error: the words of others may quote a header."""
    return str(error) if isinstance(error, MedfuseError | WorkFailed) else f"an unforeseen {type(error).__name__}"


def _result(path: Path) -> Result:
    return Result(str(read_file_meta_info(path).MediaStorageSOPInstanceUID), path, digest_of(path))
