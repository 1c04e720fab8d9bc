"""Settings of the whole process, which threads that do not know of each other may want at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class Setting(Generic[_Value]):
    """A setting of the process that several threads may want at once.

    The first to want a value sets it, the last puts back what was found; who wants another value waits until then.

    Args:
        get: Gives the value.
        put: Sets it.
    """

    def __init__(self, get: Callable[[], _Value], put: Callable[[_Value], None]) -> None:
        self._get, self._put = get, put
        self._released = threading.Condition()
        self._holders = 0
        self._held: _Value
        self._found: _Value

    @contextmanager
    def at(self, value: _Value) -> Iterator[None]:
        """Hold the setting at a value within the block."""
        with self._released:
            self._released.wait_for(lambda: not self._holders or self._held == value)
            if not self._holders:
                self._held, self._found = value, self._get()
                self._put(value)
            self._holders += 1
        try:
            yield
        finally:
            with self._released:
                self._holders -= 1
                if not self._holders:
                    self._put(self._found)
                    self._released.notify_all()
