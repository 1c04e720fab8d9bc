"""The queue: its states, what counts as outdated, marks of what was sent, and that it holds for any order of events."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from medfuse.errors import InputError, OutputError
from medfuse.pacs.queue import Queue
from medfuse.pacs.records import QUEUE, STATES, Job, Result
from medfuse.pacs.spool import Spool, key_of

KEY, UID = key_of("1.2.3"), "1.2.3"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Iterator[Queue]:
    found = Queue(tmp_path / QUEUE, clock)
    yield found
    found.close()


def results(*contents: str) -> list[Result]:
    """Results whose UIDs are their positions and whose digests are their contents."""
    return [Result(str(n), Path(f"{n}.dcm"), content) for n, content in enumerate(contents)]


def taken(queue: Queue, key: str = KEY) -> Job:
    """A study received, quiet, and taken to be fused."""
    queue.arriving(key, UID)
    (job,) = queue.receiving()
    assert queue.complete(job)
    found = queue.take()
    assert found is not None
    return found


def errand_to(queue: Queue, destination: str) -> Job:
    found = queue.errand(destination)
    assert found is not None
    return found


def state(queue: Queue) -> str:
    (entry,) = queue.entries()
    return entry.state


def test_the_way_of_a_study(queue: Queue) -> None:
    job = taken(queue)
    assert (state(queue), job.attempts, queue.take()) == ("fusing", 1, None)
    assert queue.fused(job, results("a", "b"), ["one", "two"], "", flawed=False)
    for name in ("one", "two"):
        assert state(queue) == "sending"
        errand = queue.errand(name)
        assert errand is not None
        assert queue.unsent(errand, name) == results("a", "b")
        for result in results("a", "b"):
            assert queue.sending(errand, name, result, None)
        queue.delivered(errand, name)
        assert queue.errand(name) is None
    (entry,) = queue.entries()
    assert (entry.state, entry.sent, entry.unsent, entry.uid) == ("done", 4, 0, UID)
    assert queue.counts() == {**dict.fromkeys(STATES, 0), "done": 1}


def test_without_results_it_is_done(queue: Queue) -> None:
    assert queue.fused(taken(queue), [], ["one"], "no pair to fuse", flawed=False)
    (entry,) = queue.entries()
    assert (entry.state, entry.note) == ("done", "no pair to fuse")


def test_a_late_instance_makes_what_is_under_way_outdated(queue: Queue) -> None:
    job = taken(queue)
    queue.arriving(KEY, UID)
    assert not queue.fused(job, results("a"), ["one"], "", flawed=False)
    assert not queue.failed(job, "broken", None)
    assert state(queue) == "receiving"
    assert not queue.complete(job)  # of the generation before


def test_what_was_sent_is_not_sent_again_unless_it_has_changed(queue: Queue) -> None:
    job = taken(queue)
    queue.fused(job, results("a", "b", "c"), ["one"], "", flawed=False)
    errand = errand_to(queue, "one")
    for result in results("a", "b"):
        queue.sending(errand, "one", result, None)
    queue.arriving(KEY, UID)  # while it is being sent
    assert not queue.sending(errand, "one", results("a", "b", "c")[2], None)  # accepted, but the rest is outdated
    assert queue.unsent(errand, "one") == []
    queue.delivered(errand, "one")
    assert state(queue) == "receiving"
    (job,) = queue.receiving()
    queue.complete(job)
    again = queue.take()
    assert again is not None
    queue.fused(again, results("a", "changed", "c", "new"), ["one"], "", flawed=False)
    errand = errand_to(queue, "one")
    assert [one.digest for one in queue.unsent(errand, "one")] == ["changed", "new"]


def test_what_was_begun_is_there_perhaps_unless_an_older_content_went_there(queue: Queue) -> None:
    queue.fused(taken(queue), results("a", "b"), ["one"], "", flawed=False)
    errand = errand_to(queue, "one")
    first, second = results("a", "b")
    queue.sending(errand, "one", None, first)
    queue.sending(errand, "one", first, second)
    queue.undelivered(errand, "one", "away", 0)
    assert queue.unsent(errand, "one") == [replace(second, is_there_perhaps=True)]
    queue.arriving(KEY, UID)
    (job,) = queue.receiving()
    queue.complete(job)
    again = queue.take()
    assert again is not None
    queue.fused(again, results("changed", "b"), ["one"], "", flawed=False)
    errand = errand_to(queue, "one")
    assert queue.unsent(errand, "one") == [results("changed")[0], replace(second, is_there_perhaps=True)]
    queue.sending(errand, "one", None, results("changed")[0])
    assert [one.is_there_perhaps for one in queue.unsent(errand, "one")] == [False, True]


def test_a_mark_of_an_older_content_is_no_mark(queue: Queue) -> None:
    job = taken(queue)
    queue.fused(job, results("new"), ["one"], "", flawed=False)
    errand = errand_to(queue, "one")
    queue.sending(errand, "one", results("old")[0], None)
    assert queue.unsent(errand, "one") == results("new")


def test_a_clock_that_is_put_back_makes_nothing_wait_longer(tmp_path: Path, clock: Clock) -> None:
    with closing(Queue(tmp_path / QUEUE, clock, longest_seconds=60)) as queue:
        assert queue.failed(taken(queue), "no memory", 60)
        assert queue.take() is None
        clock.now -= 1
        again = queue.take()
        assert again is not None
        queue.fused(again, results("a"), ["one"], "", flawed=False)
        queue.undelivered(errand_to(queue, "one"), "one", "away", 60, counts=False)
        assert queue.errand("one") is None
        clock.now -= 1
        assert errand_to(queue, "one").id == again.id


def test_a_full_disk_is_told(queue: Queue) -> None:
    job = taken(queue)
    ((pages,),) = queue._all("PRAGMA page_count")
    queue._connection.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(2):
        with pytest.raises(OutputError, match=r"expected to read and write the queue, cannot: .*full.*space there"):
            queue.failed(job, 100_000 * "long", None)
    assert queue.failed(job, "short", None)


def test_failures_wait_and_then_die(queue: Queue, clock: Clock) -> None:
    job = taken(queue)
    assert queue.failed(job, "no memory", 60)
    assert (state(queue), queue.take()) == ("quiet", None)
    clock.now += 60
    again = queue.take()
    assert again is not None
    assert again.attempts == 2
    assert queue.failed(again, "no memory", None)
    (entry,) = queue.entries()
    assert (entry.state, entry.note, entry.attempts) == ("dead", "no memory", 2)
    assert queue.retry(entry.id) == "quiet"
    third = queue.take()
    assert third is not None
    assert third.attempts == 1


def test_deliveries_that_fail_wait_and_then_die(queue: Queue, clock: Clock) -> None:
    queue.fused(taken(queue), results("a"), ["one", "two"], "", flawed=False)
    errand = errand_to(queue, "one")
    queue.undelivered(errand, "one", "away", 60)
    assert queue.errand("one") is None
    other = queue.errand("two")
    assert other is not None
    queue.sending(other, "two", results("a")[0], None)
    queue.delivered(other, "two")
    assert state(queue) == "sending"
    clock.now += 60
    errand = errand_to(queue, "one")
    assert errand.attempts == 1
    queue.undelivered(errand, "one", "away", None)
    (entry,) = queue.entries()
    assert (entry.state, entry.note, entry.sent, entry.unsent) == ("dead", "one: away", 1, 1)
    assert queue.retry(entry.id) == "sending"
    assert queue.errand("two") is None
    errand = errand_to(queue, "one")
    queue.sending(errand, "one", results("a")[0], None)
    queue.delivered(errand, "one")
    (entry,) = queue.entries()
    assert (entry.state, entry.note) == ("done", "")


def test_a_flawed_study_is_sent_and_then_dead_and_fused_when_retried(queue: Queue) -> None:
    queue.fused(taken(queue), results("a"), ["one"], "a pair does not overlap", flawed=True)
    errand = errand_to(queue, "one")
    queue.sending(errand, "one", results("a")[0], None)
    queue.delivered(errand, "one")
    (entry,) = queue.entries()
    assert (entry.state, entry.note) == ("dead", "a pair does not overlap")
    assert queue.retry(entry.id) == "quiet"


def test_a_kill_while_fusing_is_taken_up(tmp_path: Path, clock: Clock) -> None:
    first = Queue(tmp_path / QUEUE, clock)
    taken(first)
    first.close()
    second = Queue(tmp_path / QUEUE, clock)
    assert second.recover() == {KEY}
    job = second.take()
    assert job is not None
    assert job.attempts == 2
    second.close()


def test_what_a_kill_has_cut_short_waits_until_it_may_have_been_stored(tmp_path: Path, clock: Clock) -> None:
    first = Queue(tmp_path / QUEUE, clock)
    for uid in ("1", "2"):
        first.fused(taken(first, key_of(uid)), results("a"), ["one"], "", flawed=False)
    cut = first.errand("one")
    assert cut is not None
    first.sending(cut, "one", None, results("a")[0])
    first.close()
    second = Queue(tmp_path / QUEUE, clock)
    second.recover(after_seconds=5)
    other = second.errand("one")
    assert other is not None
    assert other.key != cut.key
    second.delivered(other, "one")
    assert second.errand("one") is None
    clock.now += 5
    assert second.errand("one") == cut
    second.close()


def test_deliveries_to_a_destination_that_is_no_more_end(queue: Queue) -> None:
    queue.fused(taken(queue), results("a"), ["one", "gone"], "", flawed=False)
    assert queue.give_up_all_but(["one", "gone"]) == 0
    assert queue.give_up_all_but(["one"]) == 1
    assert state(queue) == "sending"
    errand = errand_to(queue, "one")
    queue.undelivered(errand, "one", "away", 3600)
    assert queue.retry(errand.id, ["one"]) == "sending"  # the one there is, at once
    errand = errand_to(queue, "one")
    queue.sending(errand, "one", results("a")[0], None)
    queue.delivered(errand, "one")
    (entry,) = queue.entries()
    assert (entry.state, entry.note) == ("dead", "gone: there is no destination of this name any more")
    assert queue.give_up_all_but(["one"]) == 0
    assert queue.retry(entry.id, ["one"]) == "quiet"  # to be fused for those that there are


def test_what_stays_of_an_earlier_fusion_is_told(queue: Queue) -> None:
    queue.fused(taken(queue), results("a", "b", "c"), ["one", "two"], "", flawed=False)
    errand = errand_to(queue, "one")
    for result in results("a", "b"):
        queue.sending(errand, "one", result, None)
    kept, *_ = results("changed")
    queue.fused(taken(queue), [kept, replace(kept, instance="new")], ["one", "two"], "a note", flawed=False)
    (entry,) = queue.entries()
    assert entry.note == "a note; one keeps 1 instances of an earlier fusion"  # b; c was not sent, a is replaced


def test_the_longest_wait_goes_first(queue: Queue, clock: Clock) -> None:
    for uid in ("1", "2"):
        queue.arriving(key_of(uid), uid)
    first, second = queue.receiving()
    queue.complete(second)
    clock.now += 1
    queue.complete(first)
    job = queue.take()
    assert job is not None
    assert job.key == key_of("2")


def test_studies_that_were_done_long_ago_are_forgotten(queue: Queue, clock: Clock) -> None:
    queue.fused(taken(queue), results("a"), [], "", flawed=False)
    queue.arriving(key_of("other"), "other")
    clock.now += 100
    assert queue.forget_done(101) == {KEY, key_of("other")}
    assert queue.forget_done(99) == {key_of("other")}


def test_a_pause(queue: Queue) -> None:
    queue.pause(True)
    queue.pause(True)
    queue.arriving(KEY, UID)
    (job,) = queue.receiving()
    assert queue.complete(job)
    assert queue.take() is None
    queue.pause(False)
    assert queue.take() is not None


def test_a_study_is_found_by_number_and_by_hash(queue: Queue) -> None:
    queue.arriving(KEY, UID)
    assert queue.entry("1") == queue.entry(KEY) == queue.entry(KEY[:6])
    for wrong in ("2", "zz", ""):
        with pytest.raises(InputError, match=f"expected one study '{wrong}' in the queue, found 0"):
            queue.entry(wrong)


def test_a_queue_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / QUEUE).write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(OutputError, match=r"expected a queue in queue\.sqlite3, cannot open it"):
        Queue(tmp_path / QUEUE)


def test_it_is_durable(queue: Queue) -> None:
    assert queue._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert queue._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_result_is_known_without_looking_through_all(queue: Queue) -> None:
    plan = queue._all("EXPLAIN QUERY PLAN SELECT 1 FROM deliveries WHERE instance = '1' LIMIT 1")
    assert "USING COVERING INDEX by_instance" in str(plan)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: what was received last is delivered, and nothing marked goes again."""

    @initialize()
    def begin(self) -> None:
        self.queue, self.clock = Queue(Path(":memory:")), Clock()
        self.queue._clock = self.clock
        self.version = 0
        self.fusing: list[tuple[Job, int]] = []
        self.sending: list[Job] = []
        self.delivered: list[str] = []

    @rule()
    def arrive(self) -> None:
        self.queue.arriving(KEY, UID)
        self.version += 1

    @rule()
    def be_quiet(self) -> None:
        for job in self.queue.receiving():
            self.queue.complete(job)

    @rule()
    def take(self) -> None:
        job = self.queue.take()
        if job:
            self.fusing.append((job, self.version))

    @rule(flawed=st.booleans())
    def fuse(self, flawed: bool) -> None:
        if self.fusing:
            job, version = self.fusing.pop(0)
            if self.queue.fused(job, results("always", f"v{version}"), ["one"], "", flawed):
                assert version == self.version

    @rule(gives_up=st.booleans())
    def fail(self, gives_up: bool) -> None:
        if self.fusing:
            self.queue.failed(self.fusing.pop(0)[0], "failed", None if gives_up else 1)

    @rule()
    def send_one(self) -> None:
        job = self.queue.errand("one")
        for result in self.queue.unsent(job, "one")[:1] if job else ():
            assert result.digest not in self.delivered
            self.delivered.append(result.digest)
            self.queue.sending(job, "one", result, None)  # type: ignore[arg-type]
        if job and not self.queue.unsent(job, "one"):
            self.queue.delivered(job, "one")

    @rule(gives_up=st.booleans())
    def send_in_vain(self, gives_up: bool) -> None:
        job = self.queue.errand("one")
        if job:
            self.queue.undelivered(job, "one", "away", None if gives_up else 1)

    @rule()
    def wait(self) -> None:
        self.clock.now += 2

    @rule()
    def retry(self) -> None:
        for entry in self.queue.entries():
            self.queue.retry(entry.id)

    @rule()
    def restart(self) -> None:
        self.fusing = []
        self.queue.recover()

    @invariant()
    def is_in_order(self) -> None:
        for entry in self.queue.entries():
            assert entry.state in STATES
            if entry.state == "done":
                assert entry.unsent == 0
                assert self.delivered[-1] == f"v{self.version}"

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=40, stateful_step_count=40, deadline=None)

Run = Callable[..., Any]


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The configuration of a node that has three studies: one done, one dead, one being received."""
    config = tmp_path / "node.yaml"
    destination = {"name": "one", "ae_title": "ONE", "host": "127.0.0.1", "port": 104}
    config.write_text(yaml.safe_dump({"spool": "spool", "destinations": [destination]}))
    spool = Spool(tmp_path / "spool")
    queue = Queue(tmp_path / "spool" / QUEUE)
    queue.fused(taken(queue), [], ["one"], "", flawed=False)
    queue.failed(taken(queue, key_of("2")), "no memory", None)
    queue.arriving(key_of("3"), "3")
    queue.close()
    for uid in ("1.2.3", "2", "3"):
        spool.place(key_of(uid), "instance", spool.write([b"content"]))
    return config


def medfuse(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medfuse", *words], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_command_line(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medfuse.cli import app

    def run(*words: str) -> Any:
        app(["queue", *words], standalone_mode=False)
        out = capsys.readouterr().out
        return json.loads(out) if "--json" in words else out

    listed = run("list", str(node), "--json")
    assert [one["state"] for one in listed["studies"]] == ["done", "dead", "receiving"]
    assert "uid" not in listed["studies"][0]
    assert UID not in run("list", str(node))
    assert "no memory" in run("list", str(node), "--state", "dead")
    assert run("list", str(node), "--uids", "--json")["studies"][0]["uid"] == UID
    assert UID in run("list", str(node), "--uids")
    shown = run("show", str(node), key_of("2")[:8], "--json")
    assert (shown["id"], shown["received"], shown["deliveries"]) == (2, 1, [])
    assert "no memory" in run("show", str(node), "2")
    assert run("retry", str(node), "--dead", "--json") == {"retried": [{"id": 2, "state": "quiet"}]}
    assert "paused" in run("pause", str(node))
    assert run("list", str(node), "--json")["paused"] is True
    assert "resumed" in run("resume", str(node))
    with pytest.raises(InputError, match="expected studies that are done or dead, found that 3 is receiving"):
        run("drop", str(node), "1", "3")
    assert run("drop", str(node), "1", "--json") == {"dropped": [1]}
    assert run("drop", str(node), "3", "--unfinished", "--json") == {"dropped": [3]}
    assert [one["id"] for one in run("list", str(node), "--json")["studies"]] == [2]
    assert [path.name for path in (node.parent / "spool" / "studies").iterdir()] == [key_of("2")]


def test_a_node_removes_what_is_dropped_while_it_runs(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It alone knows what arrives at that moment, of which the sender is told that it is stored."""
    from medfuse.cli import app

    spool = Spool(node.parent / "spool")
    with spool.lock():
        app(["queue", "drop", str(node), "2", "--json"], standalone_mode=False)
        assert json.loads(capsys.readouterr().out) == {"dropped": [2]}
        assert (spool.studies / key_of("2")).is_dir()
    app(["queue", "drop", str(node), "1"], standalone_mode=False)
    assert not (spool.studies / KEY).exists()


def test_a_delivery_that_waits_says_why(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from medfuse.cli import app

    queue = Queue(node.parent / "spool" / QUEUE)
    queue.drop(3)
    queue.fused(taken(queue, key_of("4")), results("a"), ["one"], "", flawed=False)
    errand = errand_to(queue, "one")
    queue.undelivered(errand, "one", "away", 60, counts=False)
    queue.close()
    app(["queue", "show", str(node), key_of("4")], standalone_mode=False)
    assert "0 sent, 1 to send, again at" in (told := capsys.readouterr().out)
    assert "one: away" in told


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("list", "NODE", "--state", "lost"), 2, "expected a state of receiving, quiet"),
        (("retry", "NODE"), 2, "expected studies, got none"),
        (("retry", "NODE", "2", "--dead"), 2, "expected studies or --dead, got both"),
        (("show", "NODE", "9"), 3, "expected one study '9' in the queue, found 0"),
        (("list", "OTHER"), 3, "expected a queue in other, found none"),
    ],
)
def test_wrong_words_are_told(node: Path, words: tuple[str, ...], code: int, told: str) -> None:
    other = node.with_name("other.yaml")
    other.write_text(node.read_text().replace("spool: spool", "spool: other"))
    ran = medfuse("queue", *(word.replace("NODE", str(node)).replace("OTHER", str(other)) for word in words))
    assert ran.returncode == code
    assert told in ran.stderr
    assert not node.with_name("other").exists()
