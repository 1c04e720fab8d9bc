"""Settings of torch that are those of the whole process: set while something is fused, and put back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

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
        self._held = self._found = get()

    def usual(self) -> _Value:
        """The value when nobody wants one."""
        with self._released:
            return self._found if self._holders else self._get()

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


def _arithmetic() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def _set_arithmetic(precisions: tuple[str, bool]) -> None:
    torch.set_float32_matmul_precision(precisions[0])
    torch.backends.cudnn.allow_tf32 = precisions[1]


#: Threads that torch shares an operation out to.
THREADS = Setting(torch.get_num_threads, torch.set_num_threads)
#: How float32 is multiplied: in products of matrices, in convolutions on CUDA.
ARITHMETIC = Setting(_arithmetic, _set_arithmetic)
EXACT, TF32 = ("highest", False), ("high", True)
