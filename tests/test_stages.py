"""Where the time goes: every moment counted once."""

from __future__ import annotations

import contextvars
import threading
import time

import pytest

from medfuse import stages
from medfuse.stages import OTHER, profiled, stage


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(stages.time, "perf_counter", lambda: self.now)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_time_inside_a_stage_inside_a_stage_counts_once(clock: Clock) -> None:
    with profiled() as profile:
        clock.pass_by(1)
        with stage("fuse"):
            clock.pass_by(2)
            for _ in range(3):
                with stage("network"):
                    clock.pass_by(4)
            clock.pass_by(8)
        with stage("network"):
            clock.pass_by(16)
        clock.pass_by(32)
    clock.pass_by(64)
    assert profile.seconds == {OTHER: 33, "fuse": 10, "network": 28}
    assert profile.total == 71


def test_a_stage_that_fails_is_counted_and_closed(clock: Clock) -> None:
    @stage("read")
    def fail() -> None:
        clock.pass_by(5)
        raise ValueError("inside")

    with profiled() as profile:
        with pytest.raises(ValueError, match="inside"):
            fail()
        clock.pass_by(1)
    assert profile.seconds == {OTHER: 1, "read": 5}


def test_a_function_may_be_a_stage(clock: Clock) -> None:
    @stage("write")
    def write() -> str:
        clock.pass_by(2)
        return "written"

    assert write() == "written"
    with profiled() as profile:
        assert write() == "written"
        assert write() == "written"
    assert profile.seconds["write"] == 4


def test_without_a_profile_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> float:
        raise AssertionError("the clock was read")

    monkeypatch.setattr(stages.time, "perf_counter", never)
    with stage("read"), stage("decode"):
        pass


def test_an_inner_profile_leaves_the_outer_one_its_stage(clock: Clock) -> None:
    with profiled() as outer, stage("all"):
        with profiled() as inner, stage("read"):
            clock.pass_by(3)
        clock.pass_by(1)
    assert inner.seconds["read"] == 3
    assert outer.seconds["all"] == 4


@pytest.mark.parametrize("shared_context", [False, True])
def test_threads_count_for_the_stage_that_waits_for_them(clock: Clock, shared_context: bool) -> None:
    def work() -> None:
        with stage("decode"):
            clock.pass_by(1)

    with profiled() as profile, stage("read"):
        context = contextvars.copy_context() if shared_context else contextvars.Context()
        threads = [threading.Thread(target=context.copy().run, args=(work,)) for _ in range(3)]
        for thread in threads:
            thread.start()
            thread.join()
    assert profile.seconds == {OTHER: 0, "read": 3}


def test_real_time_adds_up() -> None:
    start = time.perf_counter()
    with profiled() as profile, stage("sleep"):
        time.sleep(0.02)
    wall = time.perf_counter() - start
    assert 0.02 <= profile.seconds["sleep"] <= profile.total <= wall
