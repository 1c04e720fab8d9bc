"""The node as a whole: from reception to delivery, killed at any moment, and what it tells of what it does."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nodes import (
    LASTING,
    PASSING,
    PATIENT,
    PATIENT_ID,
    RESULTS,
    Archive,
    free_port,
    in_thread,
    instance,
    running,
    settings,
    stand_in,
    uid,
    wait_for,
)
from pydicom import dcmread
from pydicom.uid import AdvancedBlendingPresentationStateStorage as BLENDING
from pydicom.uid import SecondaryCaptureImageStorage
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from medfuse.cli import app
from medfuse.errors import NetworkError, OutputError
from medfuse.output import UNFINISHED
from medfuse.pacs.node import Node
from medfuse.pacs.queue import Queue
from medfuse.pacs.records import QUEUE, Job
from medfuse.pacs.send import send
from medfuse.pacs.settings import Bounds, Destination, Retry
from medfuse.pacs.spool import Spool
from medfuse.pacs.work import Outcome, WorkFailed

KILLS, STUDIES, INSTANCES = 50, 20, 4
#: pynetdicom leaves the socket of a refused connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning")

Started = Callable[..., Node]


@pytest.fixture(autouse=True)
def sockets_closed() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def archive() -> Iterator[Archive]:
    with closing(Archive()) as found:
        yield found


@pytest.fixture
def start(tmp_path: Path, archive: Archive) -> Iterator[Started]:
    """Starts nodes that fuse with the stand-in and send to the archive, and stops them at the end."""
    with ExitStack() as nodes:
        yield lambda **words: nodes.enter_context(running(tmp_path / "spool", archive.port, **words))


def us(node: Node, title: str = "MEDFUSE") -> Destination:
    return Destination("us", title, "127.0.0.1", node.port)


def state(node: Node) -> str:
    (entry,) = node.queue.entries()
    return entry.state


def is_in(node: Node, wanted: str) -> Callable[[], bool]:
    return lambda: state(node) == wanted


def test_a_study_is_fused_when_it_is_quiet_and_sent(start: Started, archive: Archive, tmp_path: Path) -> None:
    node = start()
    files = [instance(tmp_path, "a", number) for number in range(INSTANCES)]
    assert list(send(files, us(node))) == files
    (received,) = {path.parent for path in node.spool.studies.rglob("*.dcm")}
    contents = {path.read_bytes()[-200:] for path in received.iterdir()}
    assert contents == {path.read_bytes()[-200:] for path in files}  # as they were sent
    wait_for(is_in(node, "done"))
    assert sorted(archive.told.items()) == sorted((uid(uid("a"), "result", n), "of 4") for n in range(RESULTS))
    assert len(archive.received) == RESULTS


def test_a_late_instance_makes_it_fuse_anew_and_a_known_one_does_not(
    start: Started, archive: Archive, tmp_path: Path
) -> None:
    node = start()
    files = [instance(tmp_path, "a", number) for number in range(3)]
    list(send(files[:2], us(node)))
    wait_for(is_in(node, "done"))
    list(send(files[:2], us(node)))
    assert state(node) == "done"
    list(send(files[2:], us(node)))
    assert state(node) == "receiving"
    wait_for(is_in(node, "done"))
    assert set(archive.told.values()) == {"of 3"}
    assert len(archive.told) == RESULTS
    assert len(archive.received) == 2 * RESULTS


def test_the_last_instance_is_not_left_out_of_a_study_that_is_found_quiet(
    start: Started, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the watch has looked at the study, and before the queue is told; its place is slow to reach."""
    node = start()
    looked, told = threading.Event(), threading.Event()
    complete, place = node.queue.complete, node.spool.place

    def slow_complete(job: Job) -> bool:
        looked.set()
        time.sleep(0.2)
        found = complete(job)
        told.set()
        return found

    def slow_place(*words: Any) -> None:
        told.wait(2)
        time.sleep(0.2)
        place(*words)

    monkeypatch.setattr(node.queue, "complete", slow_complete)
    files = [instance(tmp_path, "a", number) for number in range(3)]
    list(send(files[:2], us(node)))
    assert looked.wait(10)
    monkeypatch.setattr(node.spool, "place", slow_place)
    list(send(files[2:], us(node)))
    wait_for(lambda: set(archive.told.values()) == {"of 3"})
    wait_for(is_in(node, "done"))


def test_what_comes_back_is_not_fused(start: Started, tmp_path: Path) -> None:
    node = start()
    list(send([instance(tmp_path, "a", 0)], us(node)))
    wait_for(is_in(node, "done"))
    before = node.queue.entries()
    results = sorted(node.spool.results(before[0].key, 1).iterdir())
    assert len(list(send(results, us(node)))) == RESULTS
    ours = instance(tmp_path, "b", 1, Manufacturer="medfuse", ManufacturerModelName="medfuse")
    assert list(send([ours], us(node))) == [ours]
    assert node.queue.entries() == before
    assert 'result="our own"} 4' in node.metrics()


def test_a_study_waits_for_an_association_that_is_still_open(start: Started, tmp_path: Path) -> None:
    node = start(quiet_seconds=0.2)
    sending = send([instance(tmp_path, "a", number) for number in range(2)], us(node))
    next(sending)
    time.sleep(0.8)
    assert state(node) == "receiving"
    list(sending)
    wait_for(is_in(node, "done"))


def test_what_fails_is_tried_again_and_then_dead(start: Started, archive: Archive, tmp_path: Path) -> None:
    node = start()
    list(send([instance(tmp_path, "a", 0, PASSING)], us(node)))
    wait_for(is_in(node, "dead"))
    (entry,) = node.queue.entries()
    assert (entry.attempts, entry.note) == (3, "an unforeseen MemoryError")
    list(send([instance(tmp_path, "b", 0, LASTING)], us(node)))
    entry = wait_for(lambda: next((one for one in node.queue.entries(["dead"]) if one.id == 2), None))
    assert (entry.attempts, entry.note, entry.sent) == (1, "a pair does not overlap", RESULTS)
    assert len(archive.received) == RESULTS


@pytest.mark.parametrize("crashes", [False, True])
def test_what_was_fused_is_sent_when_the_last_attempt_fails_in_part(
    start: Started, archive: Archive, tmp_path: Path, crashes: bool
) -> None:
    note = "the process that fused ended with -9" if crashes else "a pair found no space"

    def fuse(source: Path, out: Path) -> Outcome:
        stand_in(source, out)
        if not crashes:
            return Outcome(note, is_flawed=True, may_pass=True)
        unfinished = out / "fused" / f"{UNFINISHED}x" / "new"
        unfinished.mkdir(parents=True)
        (unfinished / "0.dcm").write_bytes(b"half of")
        raise WorkFailed(note)

    node = start(fuse=fuse)
    list(send([instance(tmp_path, "a", 0)], us(node)))
    wait_for(is_in(node, "dead"))
    (entry,) = node.queue.entries()
    assert (entry.attempts, entry.note, entry.sent) == (3, note, RESULTS)
    assert len(archive.received) == RESULTS


def test_a_crash_that_finished_nothing_leaves_what_was_delivered_known(
    start: Started, archive: Archive, tmp_path: Path
) -> None:
    crashes = False

    def fuse(source: Path, out: Path) -> Outcome:
        if crashes:
            raise WorkFailed("the process that fused ended with -9")
        return stand_in(source, out)

    node = start(fuse=fuse)
    list(send([instance(tmp_path, "a", 0)], us(node)))
    wait_for(is_in(node, "done"))
    crashes = True
    list(send([instance(tmp_path, "a", 1)], us(node)))
    wait_for(is_in(node, "dead"))
    (entry,) = node.queue.entries()
    assert (entry.sent, entry.note) == (RESULTS, "the process that fused ended with -9")
    assert node.queue.is_ours(archive.received[0][0])


def test_a_study_for_a_destination_of_another_name_is_dead_and_can_be_sent_to_the_new_one(
    archive: Archive, tmp_path: Path
) -> None:
    with running(tmp_path / "spool", free_port()) as node:
        list(send([instance(tmp_path, "a", 0)], us(node)))
        wait_for(is_in(node, "sending"))
    renamed = Destination("renamed", "ARCHIVE", "127.0.0.1", archive.port)
    with running(tmp_path / "spool", destinations=(renamed,)) as node:
        wait_for(is_in(node, "dead"))
        (entry,) = node.queue.entries()
        assert entry.note == "archive-0: there is no destination of this name any more"
        assert node.queue.retry(entry.id, ["renamed"]) == "quiet"
        wait_for(is_in(node, "done"))
    assert len(archive.received) == RESULTS


@pytest.mark.parametrize("folder", ["incoming", "studies"])
def test_what_no_node_has_put_there_is_not_cleared_away(start: Started, tmp_path: Path, folder: str) -> None:
    theirs = tmp_path / "spool" / folder / "theirs" / "ct.dcm"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"a scan")
    with pytest.raises(OutputError, match=rf"an empty folder or a node's, found files in {folder} of spool"):
        start()
    assert theirs.read_bytes() == b"a scan"


def test_a_failure_that_could_not_be_noted_is_noted_later(
    start: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a full disk: neither the fusion nor the queue can write."""
    node = start()
    whole, full = node.queue.failed, iter(range(3))

    def failed(*words: Any) -> bool:
        if next(full, None) is not None:
            raise sqlite3.OperationalError("database or disk is full")
        return whole(*words)

    monkeypatch.setattr(node.queue, "failed", failed)
    list(send([instance(tmp_path, "a", 0, PASSING)], us(node)))
    wait_for(is_in(node, "dead"))
    (entry,) = node.queue.entries()
    assert (entry.attempts, entry.note) == (3, "an unforeseen MemoryError")


def test_a_destination_that_refuses_is_tried_again_and_retried_on_request(
    start: Started, archive: Archive, tmp_path: Path
) -> None:
    node = start()
    archive.status = 0xA700
    list(send([instance(tmp_path, "a", 0)], us(node)))
    wait_for(is_in(node, "dead"))
    (entry,) = node.queue.entries()
    assert "archive-0: expected archive-0 to store an instance, found: status A700" in entry.note
    assert (entry.sent, entry.unsent) == (0, RESULTS)
    archive.status = 0x0000
    assert node.queue.retry(entry.id) == "sending"
    wait_for(is_in(node, "done"))
    assert len(archive.received) == RESULTS


def _with_blending(source: Path, out: Path) -> Outcome:
    """Results with a blending state among them, which comes first by name."""
    outcome = stand_in(source, out)
    blending = dcmread(out / "0.dcm")
    blending.SOPClassUID = blending.file_meta.MediaStorageSOPClassUID = BLENDING
    blending.SOPInstanceUID = blending.file_meta.MediaStorageSOPInstanceUID = uid("blending")
    blending.save_as(out / "+blending.dcm", enforce_file_format=True)
    return outcome


@pytest.mark.parametrize(
    ("status", "told"),
    [(None, "this kind of object is not taken"), (0xA900, "status A900")],
)
def test_a_companion_that_is_refused_does_not_keep_the_images_back(
    tmp_path: Path, status: int | None, told: str
) -> None:
    takes = [SecondaryCaptureImageStorage, *([BLENDING] if status else [])]
    with (
        closing(Archive(tells=False, takes=takes)) as archive,
        running(tmp_path / "spool", archive.port, fuse=_with_blending) as node,
    ):
        archive.status_of = {BLENDING: status or 0}
        list(send([instance(tmp_path, "a", 0)], us(node)))
        wait_for(is_in(node, "dead"))
        (entry,) = node.queue.entries()
    assert [one for one, _ in archive.received] == [uid(uid("a"), "result", number) for number in range(RESULTS)]
    assert f"found: {told}, for Advanced Blending Presentation State Storage. Ask" in entry.note
    assert "`companions: false`" in entry.note
    assert (entry.sent, entry.unsent) == (RESULTS, 1)


def test_what_is_there_already_counts_as_accepted(start: Started, archive: Archive, tmp_path: Path) -> None:
    archive.status = 0x0111
    node = start()
    list(send([instance(tmp_path, "a", 0)], us(node)))
    wait_for(is_in(node, "done"))


def test_what_was_refused_is_not_asked_for(start: Started, archive: Archive, tmp_path: Path) -> None:
    node = start()
    archive.status = 0xA700
    list(send([instance(tmp_path, "a", 0)], us(node)))
    wait_for(is_in(node, "dead"))
    assert archive.asked == []


@pytest.mark.parametrize(("tells", "sent"), [(True, 1), (False, 2)])
def test_what_was_cut_short_is_asked_for_before_it_is_sent_again(tmp_path: Path, tells: bool, sent: int) -> None:
    made = [uid(uid("a"), "result", number) for number in range(RESULTS)]
    with closing(Archive(tells=tells)) as archive, running(tmp_path / "spool", archive.port) as node:
        archive.hangs_up = True
        list(send([instance(tmp_path, "a", 0)], us(node)))
        wait_for(lambda: archive.received)
        archive.hangs_up = False
        wait_for(is_in(node, "done"))
    times = Counter(one for one, _ in archive.received)
    assert times == {made[0]: sent, **dict.fromkeys(made[1:], 1)}
    assert archive.asked == made[: 1 if tells else 0]


def test_a_destination_that_is_away_does_not_hold_the_other(archive: Archive, tmp_path: Path) -> None:
    with running(tmp_path / "spool", free_port(), archive.port) as node:
        list(send([instance(tmp_path, "a", 0)], us(node)))
        wait_for(lambda: len(archive.received) == RESULTS)
        wait_for(lambda: node.queue.deliveries(1)[0].note)
        first, second = node.queue.deliveries(1)
        assert (first.sent, second.sent) == (0, RESULTS)


def test_a_destination_that_is_away_is_waited_for_as_long_as_it_takes(tmp_path: Path) -> None:
    retry = Retry(attempts=1, first_seconds=0.01, longest_seconds=0.02)
    away = Destination("away", "ARCHIVE", "127.0.0.1", free_port())
    with running(tmp_path / "spool", destinations=(away,), retry=retry) as node:
        list(send([instance(tmp_path, "a", 0)], us(node)))
        failed = 'deliveries_failed_total{destination="away"}'
        wait_for(lambda: any(f"{failed} {count}" in node.metrics() for count in range(3, 100)))
        (delivery,) = node.queue.deliveries(1)
        assert (state(node), delivery.attempts, delivery.unsent) == ("sending", 0, RESULTS)
        assert "found that it did not answer" in delivery.note


def test_a_pause_stops_fusing_but_not_reception(start: Started, archive: Archive, tmp_path: Path) -> None:
    node = start()
    node.queue.pause(True)
    list(send([instance(tmp_path, "a", 0)], us(node)))
    wait_for(is_in(node, "quiet"))
    time.sleep(0.3)
    assert (state(node), archive.received) == ("quiet", [])
    node.queue.pause(False)
    wait_for(is_in(node, "done"))


def test_done_studies_are_forgotten_in_time(start: Started, tmp_path: Path) -> None:
    node = start(keep_hours=0)
    list(send([instance(tmp_path, "a", 0)], us(node)))
    wait_for(is_in(node, "done"))
    assert list(node.spool.studies.iterdir())
    node._tidy()
    assert node.queue.entries() == []
    assert list(node.spool.studies.iterdir()) == []


def test_what_comes_after_a_drop_is_kept_alone(start: Started, archive: Archive, tmp_path: Path) -> None:
    config = tmp_path / "node.yaml"
    config.write_text("{spool: spool, destinations: [{name: one, ae_title: ONE, host: 127.0.0.1, port: 104}]}")
    node, files = start(), [instance(tmp_path, "a", number) for number in range(2)]
    list(send(files, us(node)))
    wait_for(is_in(node, "done"))
    (folder,) = node.spool.studies.iterdir()
    app(["queue", "drop", str(config), "1"], standalone_mode=False)
    assert folder.exists()  # nobody but the node, which may be placing an instance there, removes it
    list(send(files[:1], us(node)))
    node._tidy()
    wait_for(is_in(node, "done"))
    assert len(list(node.spool.inputs(folder.name).iterdir())) == 1
    assert set(archive.told.values()) == {"of 1"}
    app(["queue", "drop", str(config), "2"], standalone_mode=False)
    node._tidy()
    assert not folder.exists()


def test_a_full_disk_is_told_once(
    start: Started, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = start()

    def full() -> None:
        raise OutputError("expected to read and write the queue, cannot: disk full")

    with monkeypatch.context() as patch:
        patch.setattr(node.queue, "take", full)
        list(send([instance(tmp_path, "a", 0)], us(node)))
        wait_for(is_in(node, "quiet"))
        time.sleep(0.2)
    wait_for(is_in(node, "done"))
    assert [one.getMessage() for one in caplog.records if one.levelname == "CRITICAL"] == [
        "fusion: expected to read and write the queue, cannot: disk full"
    ]


def test_a_folder_that_cannot_be_locked_says_why(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    (spool.root / "lock.sqlite3").mkdir()
    with pytest.raises(OutputError, match="expected to write to spool, cannot: unable to open"), spool.lock():
        pass


def test_two_nodes_do_not_share_a_folder(start: Started) -> None:
    with pytest.raises(OutputError, match="in use"), start().spool.lock(patience_seconds=0.1):
        pass


def test_a_port_in_use_is_told(start: Started, tmp_path: Path) -> None:
    node = Node(settings(tmp_path / "other", 1, port=start().port), stand_in, apart=False)
    with pytest.raises(OutputError, match="expected to listen on port"):
        node.start()
    node.stop()


def test_health_and_metrics(start: Started, archive: Archive, tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    node = start(monitor_port=0)
    assert node.monitor is not None
    address = f"http://127.0.0.1:{node.monitor.port}"

    def asked(path: str) -> str:
        with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    ae = AE("CALLER")
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", node.port, ae_title="MEDFUSE")
    assert association.send_c_echo().Status == 0
    association.release()
    list(send([instance(tmp_path, "a", 0)], us(node)))
    wait_for(is_in(node, "done"))
    assert asked("/healthz") == asked("/readyz") == "ok\n"
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(asked("/metrics"))
        for sample in family.samples
    }
    assert found["medfuse_instances_received_total", "stored"] == 1
    assert found["medfuse_instances_sent_total", "archive-0"] == RESULTS
    assert found["medfuse_studies", "done"] == 1
    assert found["medfuse_fusions_total", "fused"] == 1
    assert found["medfuse_associations_total", "accepted"] == 2
    assert all(name.startswith("medfuse_") for name, *_ in found)
    with pytest.raises(urllib.error.HTTPError, match="404") as unknown:
        asked("/other")
    unknown.value.close()
    ended = threading.Thread(name="watch")
    ended.start()
    ended.join()
    node._threads.append(ended)
    with pytest.raises(urllib.error.HTTPError, match="503") as refused:
        asked("/healthz")
    assert refused.value.read() == b"watch has ended\n"
    refused.value.close()


def test_no_patient_in_any_log(
    start: Started, archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    node = start(bounds=Bounds(free_mib=0, timeout_seconds=1))
    for number, description in enumerate(("", PASSING, LASTING)):
        list(send([instance(tmp_path, f"study{number}", 0, description)], us(node)))
    wait_for(lambda: all(one.state in ("done", "dead") for one in node.queue.entries()))
    with pytest.raises(NetworkError, match="refused"):
        list(send([instance(tmp_path, "a", 0)], us(node, "OTHER")))
    assert "is quiet" in caplog.text
    assert "failed: an unforeseen MemoryError" in caplog.text
    secrets = (PATIENT, PATIENT_ID, "Zweistein", *(uid(f"study{number}") for number in range(3)))
    noted = "".join(one.note for one in node.queue.entries())
    assert [secret for secret in secrets if secret in caplog.text or secret in noted] == []


def test_killed_at_any_moment_nothing_is_lost_or_sent_twice(tmp_path: Path) -> None:
    seed = int(os.environ.get("KILL_SEED", "8"))
    chance = random.Random(seed)
    archive = Archive(seconds=0.01)
    port, spool = free_port(), tmp_path / "spool"
    mortal = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("mortal.py")), str(spool), str(port), str(archive.port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert mortal.stdin is not None
    assert mortal.stdout is not None
    killed = 0

    def born() -> int:
        mortal.stdin.write("live\n")
        mortal.stdin.flush()
        return int(mortal.stdout.readline())

    def may_go_on(count: int, over: threading.Event) -> bool:
        return killed >= count or over.is_set()

    def send_all(over: threading.Event) -> None:
        """Every study, until each of its instances has been accepted; spread over the kills."""
        for study in range(STUDIES):
            wait_for(partial(may_go_on, min(study * 2, KILLS - 5), over), 120)
            left = [instance(tmp_path, f"study{study}", number) for number in range(INSTANCES)]
            while left and not over.is_set():
                try:
                    for path in send(list(left), Destination("us", "MEDFUSE", "127.0.0.1", port)):
                        left.remove(path)
                except NetworkError:
                    time.sleep(0.02)

    life = born()
    try:
        with in_thread(send_all):
            while killed < KILLS:
                time.sleep(chance.uniform(0.05, 0.6))
                os.kill(life, signal.SIGKILL)
                killed += 1
                life = born()
        queue = Queue(spool / QUEUE)
        wait_for(lambda: queue.counts()["done"] == STUDIES, 60)
        entries = queue.entries()
        queue.close()
    finally:
        os.kill(life, signal.SIGKILL)
        mortal.stdin.close()
        mortal.wait(timeout=10)
        mortal.stdout.close()
        archive.close()
    wanted = {uid(uid(f"study{study}"), "result", number) for study in range(STUDIES) for number in range(RESULTS)}
    assert archive.told == dict.fromkeys(wanted, f"of {INSTANCES}")
    assert {(entry.sent, entry.unsent, entry.note) for entry in entries} == {(RESULTS, 0, "")}
    twice = {made: count for (made, _), count in Counter(archive.received).items() if count > 1}
    assert twice == {}
    print(f"{KILLS} kills, {len(archive.received)} instances sent, {len(archive.asked)} asked for")
