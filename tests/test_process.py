"""Settings of the whole process among threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import pytest

from medfuse.process import shared


def test_the_first_enters_and_the_last_leaves() -> None:
    told: list[str] = []

    @shared
    @contextmanager
    def context() -> Iterator[None]:
        told.append("entered")
        try:
            yield
        finally:
            told.append("left")

    inside, leave = Event(), Event()

    @context()
    def stay() -> None:
        inside.set()
        leave.wait(60)

    other = Thread(target=stay)
    with context():
        other.start()
        assert inside.wait(60)
    assert told == ["entered"], "the other one is still within"
    leave.set()
    other.join(60)
    assert told == ["entered", "left"]
    with pytest.raises(KeyError), context():
        raise KeyError
    assert told == ["entered", "left"] * 2
