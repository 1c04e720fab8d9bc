"""What comes in: C-STORE and C-ECHO, written to disk as it is, and which studies are quiet.

An instance is never decoded; of its data set only the elements up to the Study Instance UID are read. The sender is
told of success (PS3.4 section B.2.3) when the instance is on the disk and the queue knows its study, not before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset
from pydicom.uid import UID, AllTransferSyntaxes, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import AE, VerificationPresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from medfuse.errors import OutputError, one_line
from medfuse.io.sidecar import MAKER
from medfuse.pacs.monitor import Counts
from medfuse.pacs.network import take_every_kind, whole_file
from medfuse.pacs.queue import Queue
from medfuse.pacs.settings import Settings
from medfuse.pacs.spool import MIB, Spool, key_of
from medfuse.pacs.transport import Server

log = logging.getLogger(__name__)

#: Status of C-STORE (PS3.4 table B.2-1).
SUCCESS, OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
_STUDY = 0x0020000D
_SOP_CLASS, _SOP_INSTANCE, _MANUFACTURER, _MODEL = 0x00080016, 0x00080018, 0x00080070, 0x00081090
_READ = (_SOP_CLASS, _SOP_INSTANCE, _MANUFACTURER, _MODEL, _STUDY)
#: What is taken, what is liked best first: an explicit VR tells more. A deflated data set would have to be inflated to
#: be read; whoever offers one must offer the default syntax, too (PS3.5 section 10.1).
SYNTAXES = [
    ExplicitVRLittleEndian,
    *(one for one in AllTransferSyntaxes if one not in (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)),
]
#: A service that the node does not offer.
_NOT_OURS = StudyRootQueryRetrieveInformationModelFind


class Arrivals:
    """When each study last received an instance, and from which associations that are still open.

    Args:
        clock: Seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._last: dict[str, float] = {}
        self._senders: dict[str, set[Any]] = {}

    def touch(self, key: str, sender: Any) -> None:
        """An instance of a study is arriving from an association."""
        with self._lock:
            self._last[key] = self._clock()
            self._senders.setdefault(key, set()).add(sender)

    def ended(self, sender: Any) -> None:
        """An association has ended."""
        with self._lock:
            for senders in self._senders.values():
                senders.discard(sender)

    def quiet(self, keys: Iterable[str], seconds: float) -> list[str]:
        """Which of these studies have received nothing for so long, and are not being sent any more.

        A study that is not known here, as after a restart, begins to wait now.
        """
        with self._lock:
            now = self._clock()
            return [
                key for key in keys if now - self._last.setdefault(key, now) >= seconds and not self._senders.get(key)
            ]

    def forget(self, key: str) -> None:
        """A study is not being received any more."""
        with self._lock:
            if not self._senders.get(key):
                self._senders.pop(key, None)
                self._last.pop(key, None)


class Reception:
    """The node's ear.

    Args:
        settings: Of the node.
        queue: Where studies are noted.
        spool: Where instances go.
        counts: Where what happens is counted.
    """

    def __init__(self, settings: Settings, queue: Queue, spool: Spool, counts: Counts) -> None:
        self.settings, self.queue, self.spool, self.counts = settings, queue, spool, counts
        self.arrivals = Arrivals()
        #: Held while an instance is put in its place, and while a study is found quiet or forgotten.
        self.placing = threading.Lock()
        self.used_bytes = spool.used_bytes()
        self._server: Server | None = None
        self._ae = _application(settings)

    def start(self) -> int:
        """Listen; the port.

        Raises:
            OutputError: The address cannot be listened on.
        """
        settings = self.settings
        take_every_kind()  # Orthanc, for one, sends a study whole or not at all
        try:
            self._server = self._ae.make_server(  # type: ignore[assignment]
                (settings.host, settings.port),
                ae_title=settings.ae_title,
                ssl_context=settings.tls.server() if settings.tls else None,
                evt_handlers=[
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_REQUESTED, _prefer),
                    (evt.EVT_DIMSE_RECV, lambda event: event.assoc.dul.socket.message_received()),
                    (evt.EVT_DIMSE_SENT, lambda event: event.assoc.dul.socket.message_answered()),
                    *self._counting(),
                ],
                server_class=Server,
                allow=settings.allow,
                bounds=settings.bounds,
                counts=self.counts,
                ended=self._ended,
            )
        except OSError as error:
            raise OutputError(
                f"expected to listen on port {settings.port} of {settings.host}, found: {error.strerror}",
                "Choose another `port` or `host`, or stop who listens there",
            ) from error
        assert self._server is not None
        self._ae._servers.append(self._server)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="reception", daemon=True).start()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening, and cut off who is still sending: he was not told of success and will send again."""
        if self._server is not None:
            self._server.shutdown()
            for association in self._server.active_associations:
                association.abort()
            self._server = None

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._server.connections() if self._server else 0

    def hindered(self) -> list[str]:
        """Why no instance can be taken for now; none where it can."""
        bounds = self.settings.bounds
        full = bounds.spool_mib is not None and self.used_bytes > bounds.spool_mib * MIB
        little = self.spool.free_bytes() < bounds.free_mib * MIB
        return [*(["the spool is full"] if full else []), *(["the disk is almost full"] if little else [])]

    def _store(self, event: evt.Event) -> int:
        try:
            status, told = self._received(event)
        except Exception as error:
            status, told = OUT_OF_RESOURCES, "error"
            log.critical("instance not stored: %s", type(error).__name__)
        self.counts.add("instances_received", result=told)
        return status

    def _received(self, event: evt.Event) -> tuple[int, str]:
        """Take one instance; the status for its sender, and a word for the counts."""
        if hindered := self.hindered():
            log.error("instance refused: %s", ", ".join(hindered))
            return OUT_OF_RESOURCES, "no space"
        request: Any = event.request
        read = _header(request.DataSet, event.context.transfer_syntax)
        study, instance = read.get(_STUDY, ""), read.get(_SOP_INSTANCE, "")
        if not (0 < len(study) <= 64 and 0 < len(instance) <= 64):
            log.warning("instance refused: its data set cannot be understood")
            return CANNOT_UNDERSTAND, "not understood"
        if (read.get(_SOP_CLASS), instance) != (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID):
            log.warning("instance refused: it is not what was announced")
            return MISMATCH, "mismatch"
        if read.get(_MANUFACTURER) == read.get(_MODEL) == MAKER or self.queue.is_ours(instance):
            return SUCCESS, "our own"
        pieces = whole_file(event)
        size, file = sum(map(len, pieces)), self.spool.write(pieces)
        key = key_of(study)
        try:
            with self.placing:
                self.arrivals.touch(key, event.assoc)
                if not self.queue.knows(key):
                    self.spool.forget(key)  # what was dropped
                elif self.spool.holds(key, instance, file):
                    file.unlink()
                    return SUCCESS, "known"
                self.queue.arriving(key, study)
                self.spool.place(key, instance, file)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        self.used_bytes += size
        self.counts.add("received_bytes", size)
        return SUCCESS, "stored"

    def _ended(self, association: Association) -> None:
        self.arrivals.ended(association)

    def _counting(self) -> list[tuple[Any, Any]]:
        """Handlers that count associations, and say who came: titles and addresses, nothing else."""

        def told(result: str) -> Callable[[evt.Event], None]:
            def tell(event: evt.Event) -> None:
                self.counts.add("associations", result=result)
                title = one_line(str(event.assoc.requestor.ae_title)).strip()
                log.info("association %s: %s at %s", result, title, event.assoc.requestor.address)

            return tell

        events = {"accepted": evt.EVT_ACCEPTED, "rejected": evt.EVT_REJECTED, "aborted": evt.EVT_ABORTED}
        return [(event, told(result)) for result, event in events.items()]


def _prefer(event: evt.Event) -> None:
    """Leave ours of the syntaxes that a sender offers, in our order: pynetdicom would accept the first of any class.

    A context without any is made one of a service that we do not have, so that it is refused.
    """
    asked = event.assoc.requestor.primitive
    for context in asked.presentation_context_definition_list if asked else ():
        if context.abstract_syntax != Verification:
            liked = [one for one in SYNTAXES if one in context.transfer_syntax]
            context.transfer_syntax = liked or context.transfer_syntax
            context.abstract_syntax = context.abstract_syntax if liked else _NOT_OURS


def _application(settings: Settings) -> AE:
    """What pynetdicom needs to know of the node."""
    ae = AE(settings.ae_title)
    for context in VerificationPresentationContexts:
        ae.add_supported_context(context.abstract_syntax or "")
    ae.maximum_associations = settings.bounds.associations
    ae.maximum_pdu_size = settings.bounds.pdu_bytes
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = settings.bounds.timeout_seconds
    ae.require_calling_aet = list(settings.allow.ae_titles)
    ae.require_called_aet = not settings.allow.any_called_title
    return ae


def _header(data: BytesIO, syntax: str) -> dict[int, str]:
    """The few elements that tell where an instance belongs; empty where they cannot be read."""
    data.seek(0)
    uid = UID(syntax)

    def is_beyond(tag: Any, _vr: str | None, _length: int) -> bool:
        return bool(tag > _STUDY)

    try:
        found: Dataset = read_dataset(
            data, uid.is_implicit_VR, uid.is_little_endian, stop_when=is_beyond, specific_tags=list(_READ)
        )
        return {tag: _plain(found.get_item(tag)) for tag in _READ if tag in found}
    except Exception:
        return {}
    finally:
        data.seek(0)


def _plain(element: Any) -> str:
    """The text of an element, without its padding."""
    value = element.value
    text = value.decode("ascii", "replace") if isinstance(element, RawDataElement) and value else str(value or "")
    return text.strip("\0 ")
