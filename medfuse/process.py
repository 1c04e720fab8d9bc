"""Settings of the whole process, which threads that do not know of each other may want at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, _GeneratorContextManager, contextmanager
from functools import wraps
from typing import Any, Generic, TypeVar

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


def shared(context: Callable[[], AbstractContextManager[Any]]) -> Callable[[], _GeneratorContextManager[None]]:
    """A context of the process that several threads may be in at once: the first enters it, the last leaves it.

    Each with a context of its own, one that leaves before the other would put back what the other still relies on, and
    the other then what the first had set.
    """
    entered = ExitStack()
    setting = Setting(lambda: False, lambda enter: entered.enter_context(context()) if enter else entered.close())

    @wraps(context)
    @contextmanager
    def together() -> Iterator[None]:
        with setting.at(True):
            yield

    return together
