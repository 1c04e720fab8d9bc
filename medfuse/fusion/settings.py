"""Settings of torch that reach beyond one call: set while something is fused, and put back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from medfuse.process import Setting


def _switches() -> list[tuple[Any, Any]]:
    """The switches of float32 that medfuse sets, each with the one above it, which it follows where it says "none"."""
    backends: Any = torch.backends
    on_cuda, on_cpu = backends.cudnn, backends.mkldnn
    return [(backends.cuda.matmul, on_cuda), (on_cuda.conv, on_cuda), (on_cpu.matmul, on_cpu), (on_cpu.conv, on_cpu)]


def _precisions() -> tuple[object, ...]:
    """What each switch says; "none" where it says what the one above it does, so that it goes on following that."""
    found = [(switch.fp32_precision, above.fp32_precision) for switch, above in _switches()]
    return tuple("none" if own == above else own for own, above in found)


def _set_precisions(precisions: tuple[object, ...]) -> None:
    for (switch, _), precision in zip(_switches(), precisions, strict=True):
        switch.fp32_precision = precision


def _legacy_precisions() -> tuple[object, ...]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def _set_legacy_precisions(precisions: tuple[Any, ...]) -> None:
    torch.set_float32_matmul_precision(precisions[0])
    torch.backends.cudnn.allow_tf32 = precisions[1]


#: How float32 is multiplied: in products of matrices, in convolutions. From 2.9 on torch has a switch for each, and
#: refuses its older calls to whoever has used these; those who use the older calls need not care.
ARITHMETIC: Setting[tuple[object, ...]]
EXACT: tuple[object, ...]
TF32: tuple[object, ...]
if hasattr(torch.backends, "fp32_precision"):
    ARITHMETIC = Setting(_precisions, _set_precisions)
    EXACT, TF32 = ("ieee", "ieee", "ieee", "ieee"), ("tf32", "tf32", "ieee", "ieee")
else:
    ARITHMETIC = Setting(_legacy_precisions, _set_legacy_precisions)
    EXACT, TF32 = ("highest", False), ("high", True)


def arithmetic_of(precision: str) -> AbstractContextManager[None]:
    """Hold float32 within the block as a precision of `medfuse.fusion.Method` has it."""
    return ARITHMETIC.at(TF32 if precision == "tf32" else EXACT)


_COUNTING = threading.Lock()


def set_threads(count: int) -> None:
    """Set how many threads torch shares the operations of this thread out to, and of no other.

    When a thread first asks torch for its count, it takes the one that any thread set last: this thread asks before it
    sets its own, and one that ends at once then sets what it took.
    """
    with _COUNTING, ThreadPoolExecutor(1) as other:
        usual = other.submit(torch.get_num_threads).result()
        torch.get_num_threads()
        torch.set_num_threads(count)
        other.submit(torch.set_num_threads, usual).result()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch share nothing out from this thread within the block."""
    found = torch.get_num_threads()
    if found > 1:
        set_threads(1)
    try:
        yield
    finally:
        if found > 1:
            set_threads(found)
