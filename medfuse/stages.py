"""Where the time goes: stages of the work, named where they run and timed only when somebody asks."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Called with (what is being done, done, total).
Progress = Callable[[str, int, int], None]
#: The name of the time that no stage has claimed.
OTHER = "other"


class Profile:
    """Wall seconds of each stage, every moment counted once: for the innermost stage that runs in it.

    Only the thread that opened the profile counts. What worker threads do is part of the stage that waits for them,
    so that the seconds of all stages add up to the wall time.

    Attributes:
        seconds: Wall seconds by the name of the stage, in the order in which they first ended.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open = [OTHER]
        self._since = time.perf_counter()
        self._thread = threading.get_ident()

    @property
    def total(self) -> float:
        """Wall seconds of all stages and what lay between them."""
        return sum(self.seconds.values())

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were spent where no stage could be opened, as before the profile was."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def _charge(self) -> None:
        """Count the time since the last change of stage for the innermost one."""
        now = time.perf_counter()
        self.add(self._open[-1], now - self._since)
        self._since = now

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()


def peak_memory_bytes() -> int | None:
    """The most memory that this process has held at once; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    # Kibibytes, but bytes on macOS: getrusage(2) of each.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


_active: ContextVar[Profile | None] = ContextVar("profile", default=None)


@contextmanager
def profiled() -> Iterator[Profile]:
    """Count the time of the stages that run inside the block; what belongs to none of them is `OTHER`.

    A profile inside another one takes its time all for itself: the outer one counts it for the stage it lies in.

    >>> with profiled() as profile:
    ...     with stage("read"):
    ...         pass
    >>> list(profile.seconds)
    ['other', 'read']
    """
    profile = Profile()
    token = _active.set(profile)
    try:
        yield profile
    finally:
        profile._charge()
        _active.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the wall time of the block for a stage of the active profile; do nothing where there is none.

    The time of a stage inside another one counts for the inner one only. Also a decorator of functions.

    Args:
        name: A short name, as `profile` shall show it: "read", "network".
    """
    profile = _active.get()
    if profile is None or profile._thread != threading.get_ident():
        yield
        return
    with profile._stage(name):
        yield
