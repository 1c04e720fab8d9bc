"""What tests of the node share: instances, a stand-in for fusing, and an archive that notes what it gets."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
)
from pynetdicom.transport import ThreadedAssociationServer

from medfuse.pacs.node import Node
from medfuse.pacs.settings import Bounds, Destination, Retry, Settings
from medfuse.pacs.work import Fuse, Outcome

PATIENT = "Zweistein^Oda"
PATIENT_ID = "SECRET-4711"
#: Results that the stand-in makes of a study.
RESULTS = 3
#: In the description of an instance: fusing its study fails, for this time or for good.
PASSING, LASTING = "fails for now", "fails for good"


def uid(*words: object) -> str:
    return str(generate_uid(entropy_srcs=["test of the node", *map(str, words)]))


def instance(folder: Path, study: str, number: int, description: str = "", **attributes: Any) -> Path:
    """A file of one small CT image."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid(study, number)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid(study), uid(study, "series")
    dataset.PatientName, dataset.PatientID, dataset.Modality = PATIENT, PATIENT_ID, "CT"
    dataset.SeriesDescription = description
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    path = folder / f"{study}-{number}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def stand_in(source: Path, out: Path) -> Outcome:
    """Make small results, with the same UIDs for the same study, which say how many instances they are made of."""
    inputs = [dcmread(path) for path in sorted(source.iterdir())]
    if any(one.SeriesDescription == PASSING for one in inputs):
        raise MemoryError(PATIENT)
    time.sleep(0.02)
    for number in range(RESULTS):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        made = uid(inputs[0].StudyInstanceUID, "result", number)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = made
        dataset.StudyInstanceUID = inputs[0].StudyInstanceUID
        dataset.SeriesInstanceUID = uid(inputs[0].StudyInstanceUID, "results")
        dataset.SeriesDescription = f"of {len(inputs)}"
        dataset.Manufacturer = dataset.ManufacturerModelName = "medfuse"
        dataset.save_as(out / f"{number}.dcm", enforce_file_format=True)
    if any(one.SeriesDescription == LASTING for one in inputs):
        return Outcome("a pair does not overlap", is_flawed=True)
    return Outcome()


class Archive:
    """A Storage SCP that remembers every instance it was sent, in order.

    Args:
        seconds: How long it takes for one.
        tells: Whether it answers a C-FIND for an instance.
        takes: The SOP classes that it takes; None for all.
    """

    def __init__(self, seconds: float = 0.0, *, tells: bool = True, takes: Sequence[str] | None = None) -> None:
        self.received: list[tuple[str, str]] = []  # SOP Instance UID, SHA-256 of the data set
        self.told: dict[str, str] = {}  # SOP Instance UID → Series Description, of the last that came
        self.asked: list[str] = []  # SOP Instance UIDs, by C-FIND
        self.status = 0x0000
        self.status_of: dict[str, int] = {}  # of a SOP class, in place of that
        self.hangs_up = False  # instead of an answer to a C-STORE
        self._seconds, self._takes = seconds, takes
        ae = AE("ARCHIVE")
        ae.supported_contexts = AllStoragePresentationContexts
        if tells:
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        ae.maximum_associations = 50
        self._server = ae.make_server(
            ("127.0.0.1", 0),
            evt_handlers=[
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_C_FIND, self._find),
                (evt.EVT_REQUESTED, self._choose),
            ],
            server_class=ThreadedAssociationServer,
        )
        ae._servers.append(self._server)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.port = int(self._server.server_address[1])

    def _choose(self, event: evt.Event) -> None:
        """Make contexts that are not taken those of a service that is not there: the node, which may run in this
        process, has pynetdicom accept every kind of object."""
        for context in event.assoc.requestor.primitive.presentation_context_definition_list:
            if self._takes is not None and context.abstract_syntax not in self._takes:
                context.abstract_syntax = PatientRootQueryRetrieveInformationModelFind

    def _store(self, event: evt.Event) -> int:
        time.sleep(self._seconds)
        request: Any = event.request
        status = self.status_of.get(request.AffectedSOPClassUID, self.status)
        if status == 0:
            made = str(request.AffectedSOPInstanceUID)
            self.told[made] = str(event.dataset.get("SeriesDescription", ""))
            self.received.append((made, hashlib.sha256(request.DataSet.getvalue()).hexdigest()))
        if self.hangs_up:
            event.assoc.abort()
        return status

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier
        assert (wanted.QueryRetrieveLevel, bool(wanted.SeriesInstanceUID)) == ("IMAGE", True)
        self.asked.append(str(wanted.SOPInstanceUID))
        if wanted.SOPInstanceUID in self.told:
            yield 0xFF00, wanted

    def close(self) -> None:
        self._server.shutdown()


def settings(spool: Path, *ports: int, **words: Any) -> Settings:
    """A node on any port that sends to archives on these."""
    destinations = tuple(Destination(f"archive-{n}", "ARCHIVE", "127.0.0.1", port) for n, port in enumerate(ports))
    usual: dict[str, Any] = {
        "destinations": destinations or (Destination("nobody", "NOBODY", "127.0.0.1", 1),),
        "port": 0,
        "quiet_seconds": 0.3,
        "bounds": Bounds(free_mib=0),
        "retry": Retry(attempts=3, first_seconds=0.1, longest_seconds=0.2),
    }
    return Settings(spool, **{**usual, **words})


@contextmanager
def running(spool: Path, *ports: int, fuse: Fuse = stand_in, **words: Any) -> Iterator[Node]:
    """A node that fuses with the stand-in, in this process, and looks at its queue all the time."""
    node = Node(settings(spool, *ports, **words), fuse, apart=False, poll_seconds=0.02)
    try:
        node.start()
        yield node
    finally:
        node.stop()


def wait_for(what: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait until something is true, and return it; who cannot be reached yet is asked again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(requests.ConnectionError):
            if found := what():
                return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain")


@contextmanager
def in_thread(run: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run something beside the block and wait for it at the end; when its event is set, it is to stop at once."""
    over = threading.Event()
    thread = threading.Thread(target=run, args=(over,), daemon=True)
    thread.start()
    try:
        yield
        thread.join(timeout=300)
        assert not thread.is_alive()
    finally:
        over.set()
        thread.join(timeout=60)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
