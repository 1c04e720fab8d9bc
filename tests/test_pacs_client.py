"""DICOMweb services that answer in part: pages of a list, and answers that are cut short."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import requests
from nodes import instance, uid
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from medfuse.cli import app
from medfuse.errors import NetworkError, OutputError, UnreadableFile
from medfuse.pacs import client
from medfuse.pacs.client import find
from medfuse.pacs.network import Away, _refuse_stranger, web_client, whole_file
from medfuse.pacs.send import _stored, offer
from medfuse.pacs.settings import Destination, Tls

#: Content-Type and content of an answer to the path and the query of a request.
Answer = Callable[[str, dict[str, list[str]]], tuple[str, bytes]]
PARTS = 3


def nothing(_path: str, _query: dict[str, list[str]]) -> tuple[str, bytes]:
    return "application/dicom+json", b"[]"


@contextmanager
def service(answer: Answer = nothing, refusals: Sequence[tuple[int, int]] = ()) -> Iterator[Destination]:
    """A web service whose answers end when the connection does, without saying how long they are.

    Args:
        answer: To a GET.
        refusals: To each POST: the HTTP status, and the reason (0008,1197) or 0.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            kind, content = answer(asked.path, parse_qs(asked.query))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            status, reason = refusals[len(asked) - 1]
            content = json.dumps({"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}})
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.end_headers()
            self.wfile.write(content.encode() if reason else b"")

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as web:
        yield web


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[Destination]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield Destination("web", url=f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


def listed(*studies: str) -> tuple[str, bytes]:
    found = [{"0020000D": {"vr": "UI", "Value": [study]}} for study in studies]
    return "application/dicom+json", json.dumps(found).encode()


@pytest.mark.parametrize("knows_pages", [True, False])
def test_a_list_is_asked_for_page_by_page(knows_pages: bool) -> None:
    studies, asked = [f"1.2.{number}" for number in range(5)], []

    def answer(_path: str, query: dict[str, list[str]]) -> tuple[str, bytes]:
        asked.append(int(query.get("offset", ["0"])[0]))
        return listed(*(studies[asked[-1] :][:2] if knows_pages else studies))

    with service(answer) as web:
        assert [one.uid for one in find(web, {"patient": "4711"})] == studies
    assert asked == ([0, 2, 4, 5] if knows_pages else [0, 5])


def test_one_that_a_service_refuses_does_not_keep_the_others_back(tmp_path: Path) -> None:
    files = [instance(tmp_path, "a", number) for number in range(5)]
    with service(refusals=[(409, 0xA900), (409, 0x0111), (400, 0), (202, 0x0122), (200, 0)]) as web:
        answers = list(offer(files, web))
    told = ["reason A900", "", "HTTP status 400", "reason 0122", ""]
    assert answers == list(zip(files, told, strict=True))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_file_that_was_cut_short_is_not_sent(tmp_path: Path, syntax: str) -> None:
    """pydicom would make a whole object of what is left of the pixels."""
    pixels = np.random.default_rng(0).bytes(5000)
    path = instance(tmp_path, "a", 0, Rows=50, Columns=50, BitsAllocated=16, PixelRepresentation=0, PixelData=pixels)
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)
    whole = path.read_bytes()
    with service(refusals=[(200, 0)]) as web:
        assert list(offer([path], web)) == [(path, "")]
    path.write_bytes(whole[:-1000])
    node = Destination("nobody", "NOBODY", "127.0.0.1", 1)
    with service() as web, pytest.raises(UnreadableFile, match=r"found a-0\.dcm truncated or damaged"):
        list(offer([path], web))
    association = SimpleNamespace(send_c_store=lambda _: pytest.fail("it was sent"))
    with pytest.raises(UnreadableFile, match=r"found a-0\.dcm truncated or damaged"):
        _stored(path, node, association)  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "kind"), [(403, NetworkError), (503, Away)])
def test_a_service_that_takes_nothing_is_asked_once(tmp_path: Path, status: int, kind: type[NetworkError]) -> None:
    with service(refusals=[(status, 0)]) as web, pytest.raises(NetworkError, match=f"HTTP status {status}") as refused:
        list(offer([instance(tmp_path, "a", number) for number in range(2)], web))
    assert type(refused.value) is kind


#: An answer to STOW-RS that says of an instance that it was not stored.
FAILED = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}}'


@pytest.mark.parametrize(
    ("status", "headers", "content"),
    [
        (302, {"Location": "/login"}, b""),
        (301, {"Location": "/moved"}, b""),
        (302, {}, b""),
        (200, {"Content-Type": "text/html"}, b"<html>Please log in</html>"),
        (200, {}, b"ok"),
        (200, {"Content-Type": "application/dicom+xml"}, b"<x"),
        (200, {"Content-Type": "application/dicom+json"}, b"[1]"),
        (200, {"Content-Type": "application/json"}, b"{"),
    ],
)
def test_what_answers_in_place_of_a_service_has_stored_nothing(
    tmp_path: Path, status: int, headers: dict[str, str], content: bytes
) -> None:
    with strange(status, headers, content) as web, pytest.raises(NetworkError, match=r"expected .* found"):
        list(offer([instance(tmp_path, "a", 0)], web))


def test_the_media_type_of_an_answer_may_name_its_character_set(tmp_path: Path) -> None:
    file = instance(tmp_path, "a", 0)
    with strange(202, {"Content-Type": "application/dicom+json; charset=utf-8"}, FAILED) as web:
        assert list(offer([file], web)) == [(file, "reason 0110")]


@pytest.mark.parametrize("status", [307, 308])
def test_a_service_may_be_at_another_place(tmp_path: Path, status: int) -> None:
    file = instance(tmp_path, "a", 0)
    with (
        service(refusals=[(200, 0)]) as there,
        strange(status, {"Location": f"{there.url}/studies"}, b"") as here,
    ):
        assert list(offer([file], here)) == [(file, "")]


@pytest.mark.parametrize(
    ("place", "is_followed"), [("https://h/2", True), ("/2", True), ("http://h/2", False), ("//other/2", True)]
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_what_was_encrypted_is_not_sent_again_in_clear(place: str, is_followed: bool, method: str) -> None:
    answer = requests.Response()
    answer.status_code, answer.url, answer.raw = 308, "https://h/1", BytesIO()
    answer.headers["Location"] = place
    answer.request = requests.Request(method, answer.url).prepare()
    with nullcontext() if is_followed else pytest.raises(NetworkError, match="redirects from https to http"):
        _refuse_stranger(Destination("web", url="https://h"), answer)


@contextmanager
def strange(status: int, headers: dict[str, str], content: bytes) -> Iterator[Destination]:
    """A service that gives every POST this answer, and nothing to a GET."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as web:
        yield web


def test_the_authority_of_a_destination_goes_before_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_bytes(Path(requests.certs.where()).read_bytes())
    for chosen, verified in ((Tls(ca=authority), str(authority)), (None, "of the environment")):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "of the environment")
        session = web_client(Destination("web", url="https://pacs.example/web", tls=chosen))._session
        of_request = session.merge_environment_settings("https://pacs.example/web", {}, False, None, None)
        assert of_request["verify"] == verified


def message(files: list[Path]) -> bytes:
    parts = (b"\r\n--XX\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() for path in files)
    return b"".join(parts) + b"\r\n--XX--\r\n"


@pytest.mark.parametrize(
    "cut", [None, len(b"\r\n--XX--\r\n"), len(b"--\r\n"), 100], ids=["whole", "after a part", "in its end", "in a part"]
)
def test_an_answer_that_is_cut_short_is_refused_and_nothing_is_written(tmp_path: Path, cut: int | None) -> None:
    whole = message([instance(tmp_path, "a", number) for number in range(PARTS)])
    content = whole if cut is None else whole[:-cut]

    def answer(path: str, _query: dict[str, list[str]]) -> tuple[str, bytes]:
        if path == "/studies":
            return listed(uid("a"))
        return 'multipart/related; type="application/dicom"; boundary=XX', content

    out = tmp_path / "out"
    with service(answer) as web:
        words = ["pull", "--from", web.url, "--study", uid("a"), "-o", str(out)]
        if cut is None:
            app(words, standalone_mode=False)
            assert len(list(out.iterdir())) == PARTS
        else:
            with pytest.raises(NetworkError, match=r"expected the whole answer of .*, found that it ends early"):
                app(words, standalone_mode=False)
            assert not out.exists()


def test_a_service_that_sends_something_else_is_not_believed(tmp_path: Path) -> None:
    content = message([instance(tmp_path, "a", 0), instance(tmp_path, "b", 1)])
    with service(lambda *_: ('multipart/related; type="application/dicom"; boundary=XX', content)) as web:
        (tmp_path / "out").mkdir()
        with pytest.raises(NetworkError, match=r"expected of .* what was asked for, found an instance of something"):
            client.pull(uid("a"), None, web, tmp_path / "out")


def stored(path: Path) -> Any:
    """What pynetdicom tells of the file that a C-STORE brings."""
    dataset = dcmread(path)
    data = DicomBytesIO()
    data.is_implicit_VR, data.is_little_endian = False, True
    write_dataset(data, dataset)
    return SimpleNamespace(file_meta=dataset.file_meta, request=SimpleNamespace(DataSet=BytesIO(data.getvalue())))


def test_what_comes_by_several_associations_at_once_is_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(event: Any) -> Any:
        time.sleep(0.001)
        return whole_file(event)

    events = [stored(instance(tmp_path, "a", number)) for number in range(60)]
    monkeypatch.setattr(client, "whole_file", slowly)
    out = tmp_path / "out"
    out.mkdir()
    taking = client._Taking(out, uid("a"), uid("a", "series"))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(taking.store, events)) == {0}
    assert {dcmread(path).SOPInstanceUID for path in out.iterdir()} == {uid("a", n) for n in range(60)}
    assert len(set(taking.paths)) == 60


@pytest.mark.parametrize(("study", "series"), [("b", None), ("a", uid("a", "another"))])
def test_what_was_not_asked_for_is_refused(tmp_path: Path, study: str, series: str | None) -> None:
    """Whoever knows our address may send while we wait for a move."""
    event = stored(instance(tmp_path, "a", 1))
    (tmp_path / "out").mkdir()
    assert client._Taking(tmp_path / "out", uid(study), series).store(event) == 0xA900
    assert list((tmp_path / "out").iterdir()) == []


def test_a_move_is_waited_for_as_long_as_instances_come(tmp_path: Path) -> None:
    taking = client._Taking(tmp_path, "1.2", None)
    nothing = (None, None)

    def answers(*found: tuple[Any, Any]) -> Any:
        """A connection on which an instance comes before each answer but the last."""
        left = list(found)

        def get_msg(block: bool = False) -> tuple[Any, Any]:
            assert block
            if len(left) > 1:
                taking.take(lambda path: path.write_bytes(b""))
            return left.pop(0)

        association = SimpleNamespace(dimse=SimpleNamespace(get_msg=get_msg))
        client._wait_while_it_sends(association, taking)  # type: ignore[arg-type]
        return association.dimse.get_msg(block=True)

    assert answers(nothing, nothing, (1, "done")) == (1, "done")
    assert answers(nothing, nothing) == nothing  # and no longer


def test_a_full_disk_is_not_the_archives_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: Any) -> None:
        *_, taking = words
        taking.take(lambda path: path.joinpath("no", "folder").write_bytes(b""))
        raise NetworkError("found status A702")

    monkeypatch.setattr(client, "_c_get", refused)
    with pytest.raises(OutputError, match=r"expected to write what was received, cannot\. Check rights and space"):
        client.pull("1.2", None, Destination("a", "A", "h", 1), tmp_path)
