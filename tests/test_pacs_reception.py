"""Senders who stall, flood, send garbage or lie: each is cut off, and none keeps another from sending."""

from __future__ import annotations

import gc
import logging
import random
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests
from nodes import PATIENT, instance, running, uid, wait_for
from programs import external
from pydicom import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from medfuse.errors import NetworkError
from medfuse.pacs.node import Node
from medfuse.pacs.reception import Arrivals
from medfuse.pacs.send import offer, send
from medfuse.pacs.settings import Allow, Bounds, Destination, Network, Tls
from medfuse.pacs.transport import Budget

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning")
#: What the node allows here; seconds that a connection may be silent.
SILENCE = 1.0
BOUNDS = Bounds(associations=6, per_host=3, object_mib=1, buffer_mib=2, free_mib=0, timeout_seconds=SILENCE)
ELSEWHERE = "127.0.0.2"
PDATA, RELEASE = 4, 5

Started = Callable[..., Node]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    """Starts nodes, each with a spool of its own, where studies stay as they came, and stops them at the end."""
    numbers = count()
    usual = {"bounds": BOUNDS, "quiet_seconds": 600}
    with ExitStack() as nodes:
        yield lambda **words: nodes.enter_context(running(tmp_path / f"spool{next(numbers)}", **{**usual, **words}))
    gc.collect()


def us(node: Node, title: str = "MEDFUSE", tls: Tls | None = None) -> Destination:
    return Destination("us", title, "127.0.0.1", node.port, tls=tls)


def connect(node: Node) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.port), timeout=5, source_address=(ELSEWHERE, 0))


def request(most: int = 16384) -> bytes:
    """An association request, as bytes."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "HOSTILE", "MEDFUSE"
    context = build_context(CTImageStorage, ExplicitVRLittleEndian)
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    primitive.maximum_length_received = most
    primitive.implementation_class_uid = "1.2.3"
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def data(fragment: bytes, control: int) -> bytes:
    """A P-DATA-TF PDU of one fragment in context 1 (PS3.8 section 9.3.5)."""
    item = struct.pack(">LBB", len(fragment) + 2, 1, control) + fragment
    return struct.pack(">BBL", PDATA, 0, len(item)) + item


def command(number: int = 1) -> bytes:
    """A C-STORE request without its data set."""
    ds = Dataset()
    ds.AffectedSOPClassUID, ds.CommandField, ds.MessageID = CTImageStorage, 1, number
    ds.Priority, ds.CommandDataSetType, ds.AffectedSOPInstanceUID = 0, 1, uid("hostile", number)
    body = encode(ds, True, True)
    assert body is not None
    group = struct.pack("<HHLL", 0, 0, 4, len(body))
    return data(group + body, 3)


def silence(node: Node) -> list[socket.socket]:
    return [connect(node) for _ in range(BOUNDS.per_host)]


def half_a_part(node: Node) -> list[socket.socket]:
    one = connect(node)
    one.sendall(request()[:40])
    return [one]


def a_trickle(node: Node) -> list[socket.socket]:
    """A byte now and then, so that the connection is never silent for long."""
    one = connect(node)
    for byte in request()[: int(3 * SILENCE / 0.2)]:
        try:
            one.sendall(bytes([byte]))
        except OSError:
            break
        time.sleep(0.2)
    return [one]


def a_lie_about_length(node: Node) -> list[socket.socket]:
    one = connect(node)
    one.sendall(struct.pack(">BBL", 1, 0, 2**32 - 1) + bytes(1000))
    return [one]


def a_lie_in_the_middle(node: Node) -> list[socket.socket]:
    one = associated(node)
    one.sendall(command() + struct.pack(">BBL", PDATA, 0, 2**31) + bytes(1000))
    return [one]


def a_lie_inside(node: Node) -> list[socket.socket]:
    """A fragment that says it is longer than the part that it is in."""
    one = associated(node)
    one.sendall(struct.pack(">BBLLBB", PDATA, 0, 16, 2**31, 1, 3) + bytes(10))
    return [one]


def garbage(node: Node) -> list[socket.socket]:
    connections = []
    for seed in range(BOUNDS.per_host):
        one = connect(node)
        one.sendall(random.Random(seed).randbytes(3000))
        connections.append(one)
    return connections


def garbage_in_parts(node: Node) -> list[socket.socket]:
    one = associated(node)
    one.sendall(data(random.Random(5).randbytes(200), 3))
    return [one]


def no_end(node: Node) -> list[socket.socket]:
    """A data set that never ends."""
    one = associated(node)
    with suppress(OSError):
        one.sendall(command())
        for _ in range(100):
            one.sendall(data(bytes(60000), 0))
    return [one]


def many_at_once(node: Node) -> list[socket.socket]:
    """Messages without waiting for an answer."""
    one = associated(node)
    with suppress(OSError):
        one.sendall(b"".join(command(number) + data(bytes(50000), 2) for number in range(200)))
    return [one]


def a_flood(node: Node) -> list[socket.socket]:
    return [connect(node) for _ in range(60)]


def associated(node: Node) -> socket.socket:
    one = connect(node)
    one.sendall(request())
    assert one.recv(10000)[0] == 2  # A-ASSOCIATE-AC
    return one


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed a connection; what it sent before is thrown away."""
    connection.settimeout(0.01)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize(
    "hostile",
    [
        silence,
        half_a_part,
        a_trickle,
        a_lie_about_length,
        a_lie_in_the_middle,
        a_lie_inside,
        garbage,
        garbage_in_parts,
        no_end,
        many_at_once,
        a_flood,
    ],
    ids=lambda hostile: hostile.__name__,
)
def test_one_who_misbehaves_is_cut_off_and_stops_nobody(
    hostile: Callable[[Node], list[socket.socket]],
    start: Started,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    node = start()
    connections = hostile(node)
    try:
        began = time.monotonic()
        files = [instance(tmp_path, "good", number) for number in range(3)]
        assert list(send(files, us(node))) == files
        assert time.monotonic() - began < 2
        wait_for(lambda: all(map(is_closed, connections)), 4 * SILENCE + 2)
    finally:
        for one in connections:
            one.close()
    wait_for(lambda: node.reception.connections == 0, 5)
    server = node.reception._server
    assert server is not None
    assert server.budget.held == 0
    assert list(node.spool.incoming.iterdir()) == []
    assert list(send([instance(tmp_path, "good", 4)], us(node)))
    assert sum(1 for _ in node.spool.studies.rglob("*.dcm")) == 4
    captured = capfd.readouterr()
    assert PATIENT not in caplog.text + captured.out + captured.err
    assert "Traceback" not in caplog.text + captured.out + captured.err


def stored(node: Node, dataset: Dataset, **command: Any) -> int:
    """The status of a C-STORE whose command and data set need not agree."""
    ae = AE("LIAR")
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", node.port, ae_title="MEDFUSE")
    assert association.is_established

    def bend(event: evt.Event) -> None:
        for keyword, value in command.items():
            setattr(event.message.command_set, keyword, value)

    association.bind(evt.EVT_DIMSE_SENT, bend)
    status = association.send_c_store(dataset)
    association.release()
    return int(status.Status)


def image(**attributes: Any) -> Dataset:
    ds = Dataset()
    ds.file_meta = Dataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID = CTImageStorage, uid("image"), uid("study")
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def test_an_instance_must_be_what_it_is_said_to_be(start: Started) -> None:
    node = start()
    assert stored(node, image(), AffectedSOPInstanceUID=uid("another")) == 0xA900
    assert stored(node, image(StudyInstanceUID="")) == 0xC000
    without = image()
    del without.StudyInstanceUID
    assert stored(node, without) == 0xC000
    assert node.queue.entries() == []
    assert stored(node, image()) == 0x0000


def test_a_damaged_data_set_is_refused(start: Started) -> None:
    """Its bytes end in the middle of an element before the Study Instance UID."""
    node = start()
    one = associated(node)
    whole = encode(image(SOPInstanceUID=uid("hostile", 1)), False, True)
    assert whole is not None
    one.sendall(command() + data(whole[:100], 2))
    answer = one.recv(10000)
    one.close()
    assert struct.pack("<HHLH", 0x0000, 0x0900, 2, 0xC000) in answer
    assert list(node.spool.studies.iterdir()) == []


def test_no_space_is_told(start: Started, tmp_path: Path) -> None:
    node = start(bounds=Bounds(free_mib=2**40), monitor_port=0)
    with pytest.raises(NetworkError, match="status A700"):
        list(send([instance(tmp_path, "a", 0)], us(node)))
    assert node.monitor is not None
    answer = requests.get(f"http://127.0.0.1:{node.monitor.port}/readyz", timeout=5)
    assert (answer.status_code, answer.text) == (503, "the disk is almost full\n")
    assert requests.get(f"http://127.0.0.1:{node.monitor.port}/healthz", timeout=5).status_code == 200
    assert list(node.spool.studies.iterdir()) == []


def test_nothing_is_left_of_an_instance_that_could_not_be_placed(
    start: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    monkeypatch.setattr(node.reception.queue, "arriving", lambda *_: pytest.fail("the queue is locked"))
    assert [why for _, why in offer([instance(tmp_path, "a", 0)], us(node))] != [""]
    assert list(node.spool.incoming.iterdir()) == []


def test_where_there_is_no_thread_to_be_had_a_connection_leaves_its_place(
    start: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start(bounds=Bounds(free_mib=0, associations=2))
    begin = Thread.start

    def refuse(thread: Thread) -> None:
        if "process_request_thread" in thread.name:
            raise RuntimeError("can't start new thread")
        begin(thread)

    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", refuse)
        for _ in range(4):
            with socket.create_connection((us(node).host, us(node).port), timeout=10) as one, suppress(OSError):
                assert one.recv(1) == b""
    list(send([instance(tmp_path, "a", 0)], us(node)))


def test_a_full_spool_is_told(start: Started, tmp_path: Path) -> None:
    node = start(bounds=Bounds(free_mib=0, spool_mib=1))
    list(send([instance(tmp_path, "a", 0)], us(node)))
    node.reception.used_bytes = 2**20 + 1
    with pytest.raises(NetworkError, match="status A700"):
        list(send([instance(tmp_path, "a", 1)], us(node)))


@pytest.mark.parametrize(
    ("allow", "title", "ours"),
    [
        ({"ae_titles": ("SCANNER",)}, "MEDFUSE", "SOMEBODY"),
        ({}, "OTHER", "SCANNER"),
    ],
    ids=["calling title", "called title"],
)
def test_who_is_not_allowed_is_rejected(
    allow: dict[str, Any], title: str, ours: str, start: Started, tmp_path: Path
) -> None:
    node = start(allow=Allow(**allow))
    with pytest.raises(NetworkError, match="refused"):
        list(send([instance(tmp_path, "a", 0)], us(node, title), ours))
    assert list(send([instance(tmp_path, "a", 0)], us(node), "SCANNER"))


def test_any_called_title_may_be_allowed(start: Started, tmp_path: Path) -> None:
    assert list(send([instance(tmp_path, "a", 0)], us(start(allow=Allow(any_called_title=True)), "OTHER")))


def test_an_address_that_is_not_allowed_is_not_listened_to(start: Started, tmp_path: Path) -> None:
    node = start(allow=Allow(addresses=(_network("127.0.0.1/32"),)))
    stranger = connect(node)
    wait_for(lambda: is_closed(stranger))
    stranger.close()
    assert list(send([instance(tmp_path, "a", 0)], us(node)))
    assert 'connections_refused_total{reason="address"} 1' in node.metrics()


def _network(text: str) -> Network:
    import ipaddress

    return ipaddress.ip_network(text)


def test_the_node_listens_on_loopback_only(start: Started) -> None:
    node = start()
    assert node.reception._server is not None
    assert node.reception._server.server_address[0] == "127.0.0.1"


def test_compressed_instances_are_kept_as_they_are(start: Started, tmp_path: Path) -> None:
    from pydicom import dcmread
    from pydicom.encaps import encapsulate

    path = instance(tmp_path, "a", 0)
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([b"\xff\xd8 no image at all \xff\xd9"])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.save_as(path, enforce_file_format=True)
    node = start()
    list(send([path], us(node)))
    (kept,) = node.spool.studies.rglob("*.dcm")
    assert dcmread(kept).file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    assert b"no image at all" in kept.read_bytes()


@pytest.mark.parametrize("sop_class", ["1.3.12.2.1107.5.9.1", "1.2.840.10008.5.1.4.1.1.9999"], ids=["private", "new"])
def test_any_kind_of_object_is_taken(start: Started, sop_class: str) -> None:
    node = start()
    ae = AE("SCANNER")
    contexts = [
        build_context(sop_class, [DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRLittleEndian]),
        build_context(sop_class, DeflatedExplicitVRLittleEndian),
        build_context(StudyRootQueryRetrieveInformationModelFind),
    ]
    association = ae.associate("127.0.0.1", node.port, contexts, ae_title="MEDFUSE")
    assert [one.transfer_syntax for one in association.accepted_contexts] == [[ExplicitVRLittleEndian]]
    refused = [one.abstract_syntax for one in association.rejected_contexts]
    assert refused == [sop_class, StudyRootQueryRetrieveInformationModelFind]
    assert association.send_c_store(image(SOPClassUID=sop_class)).Status == 0x0000
    association.release()
    assert len(list(node.spool.studies.rglob("*.dcm"))) == 1


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tls]:
    """Certificates of an authority of our own, for a node and for a sender; and one of a stranger."""
    openssl = external("openssl")
    folder = tmp_path_factory.mktemp("keys")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True)

    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    authority = ("-x509", "-days", "1", "-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign")
    run("req", *made, *authority, "-keyout", "ca.key", "-out", "ca.pem")
    run("req", *made, "-x509", "-days", "1", "-subj", "/CN=stranger", "-keyout", "stranger.key", "-out", "stranger.pem")
    for name in ("node", "sender"):
        run("req", *made, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "alternative").write_text("subjectAltName=IP:127.0.0.1")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-days", "1", "-extfile", "alternative", "-CAcreateserial")
        run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return {
        name: Tls(folder / f"{name}.pem", folder / f"{name}.key", folder / "ca.pem")
        for name in ("node", "sender", "stranger")
    }


def test_tls_lets_in_whom_the_authority_knows(start: Started, tmp_path: Path, keys: dict[str, Tls]) -> None:
    node = start(tls=keys["node"])
    file = instance(tmp_path, "a", 0)
    silent = [connect(node) for _ in range(BOUNDS.per_host)]  # who does not even shake hands
    assert list(send([file], us(node, tls=keys["sender"])))
    for who in (None, keys["stranger"], Tls(ca=keys["node"].ca)):
        with pytest.raises(NetworkError, match="expected an association with us"):
            list(send([file], us(node, tls=who)))
    for one in silent:
        one.close()
    assert list(send([file], us(node, tls=keys["sender"])))


def test_tls_is_refused_to_be_anything_old(start: Started, keys: dict[str, Tls]) -> None:
    assert keys["node"].server().minimum_version == ssl.TLSVersion.TLSv1_2
    assert keys["node"].server().verify_mode == ssl.CERT_REQUIRED
    assert keys["node"].client().check_hostname


def test_results_go_out_by_tls(tmp_path: Path, start: Started, keys: dict[str, Tls]) -> None:
    """From one node to another: the second takes them for its own kind of results, and does not fuse them."""
    second = start(tls=keys["node"])
    out = Destination("second", "MEDFUSE", "127.0.0.1", second.port, tls=keys["sender"])
    first = start(destinations=(out,), quiet_seconds=0.1)
    list(send([instance(tmp_path, "a", 0)], us(first)))
    wait_for(lambda: first.queue.counts()["done"] == 1)
    assert 'result="our own"} 3' in second.metrics()


def test_arrivals() -> None:
    now = [0.0]
    arrivals = Arrivals(lambda: now[0])
    arrivals.touch("a", 1)
    now[0] = 100
    assert arrivals.quiet(["a", "b"], 30) == []  # a is still being sent, and b begins to wait
    arrivals.ended(1)
    assert arrivals.quiet(["a", "b"], 30) == ["a"]
    now[0] = 129.9
    assert arrivals.quiet(["b"], 30) == []
    now[0] = 130
    assert arrivals.quiet(["b"], 30) == ["b"]
    arrivals.touch("b", 2)
    arrivals.touch("b", 3)
    now[0] = 200
    arrivals.ended(2)
    assert arrivals.quiet(["b"], 30) == []


def test_a_budget_is_kept() -> None:
    budget = Budget(10)
    assert budget.take(10)
    assert not budget.take(1)
    assert budget.take(-4)
    assert budget.take(4)
    assert budget.held == 10
