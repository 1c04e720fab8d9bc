"""Connections that cannot harm one another: pynetdicom's server with bounds on who connects, how long and how much.

pynetdicom reads a message part (PDU, PS3.8 section 9.3) whole, however long it says it is and however long it takes,
and shakes hands for TLS where it accepts connections. Here every connection has a thread of its own from its first
byte, a part has a length and a time it must keep to, and what all connections hold in memory has a bound.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from medfuse.pacs.monitor import Counts
from medfuse.pacs.settings import Allow, Bounds
from medfuse.pacs.spool import MIB

log = logging.getLogger(__name__)

#: Longest PDU that is no P-DATA: an association request with all 128 contexts stays below.
LONGEST_REQUEST = 2**18
#: Messages that may have been sent before the first of them is answered; by rights it is one (PS3.7 section D.3.3.3).
MOST_WAITING = 8
#: Looks for a new connection between two collections of garbage, which pynetdicom makes for what it leaves.
GC_EVERY = 599
_PIECE = 2**16


class Budget:
    """Bytes that all connections together may hold.

    Args:
        most: So many.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Take some, or, with a negative size, give back; whether there was enough left."""
        with self._lock:
            if size > 0 and self.held + size > self.most:
                return False
            self.held += size
            return True


class BoundedSocket(AssociationSocket):
    """A connection that gives up on whoever is too slow or sends too much.

    Args:
        association: Whose connection it is.
        connection: The socket.
        bounds: What it may take.
        budget: What all connections may take together.
    """

    def __init__(self, association: Association, connection: socket.socket, bounds: Bounds, budget: Budget) -> None:
        super().__init__(association, client_socket=connection)
        connection.settimeout(bounds.timeout_seconds)
        self._bounds, self._budget = bounds, budget
        self._longest = max(bounds.pdu_bytes, LONGEST_REQUEST)
        self._arriving = 0
        self._waiting: deque[int] = deque()

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, all within the time of one message part.

        Raises:
            OSError: They are more than allowed, or did not come in time; the connection is to be closed.
        """
        if self.socket is None:
            raise ConnectionAbortedError("the connection is closed")
        self._hold(nr_bytes)
        received, start = bytearray(), time.monotonic()
        while len(received) < nr_bytes:
            left = start + self._bounds.timeout_seconds - time.monotonic()
            if left <= 0:
                raise TimeoutError("a message part took too long")
            self.socket.settimeout(left)
            piece = self.socket.recv(min(_PIECE, nr_bytes - len(received)))
            if not piece:
                break
            received += piece
        self.socket.settimeout(self._bounds.timeout_seconds)
        return received

    def _hold(self, size: int) -> None:
        """Count bytes that are to be read, unless they, or what waits for an answer already, are too much."""
        held = self._arriving + sum(self._waiting)
        is_much = (
            size > self._longest or held + size > self._bounds.object_mib * MIB or len(self._waiting) > MOST_WAITING
        )
        if is_much or not self._budget.take(size):
            raise ConnectionAbortedError("more was sent than is allowed")
        self._arriving += size

    def message_received(self) -> None:
        """A message is whole; it is held until it is answered."""
        self._waiting.append(self._arriving)
        self._arriving = 0

    def message_answered(self) -> None:
        """The first message that waited has been answered: what was held for it is free."""
        if self._waiting:
            self._budget.take(-self._waiting.popleft())

    def give_back(self) -> None:
        """The connection has ended: all that was held for it is free."""
        self._budget.take(-self._arriving - sum(self._waiting))
        self._arriving = 0
        self._waiting.clear()


class Reader(DULServiceProvider):
    """What reads a connection, in a thread of its own; content that it fails on ends the connection quietly."""

    def run_reactor(self) -> None:
        """Read until the end. pynetdicom's would print the error, with whatever was being read."""
        try:
            super().run_reactor()
        except Exception as error:
            log.warning("connection failed: %s", type(error).__name__)


class Connection(RequestHandler):
    """One connection, from its first byte to its last, in a thread of its own."""

    server: Server

    def handle(self) -> None:
        """Shake hands, negotiate, and wait until the association has ended."""
        self.request.settimeout(self.server.bounds.timeout_seconds)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.server.tls is not None:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        association = self._create_association()
        bounded = self._bounded(association)
        try:
            association.start()
            association.join()
        finally:
            association.dul.kill_dul()
            bounded.give_back()
            self.server.ended(association)
            _close(self.request)

    def _bounded(self, association: Association) -> BoundedSocket:
        """Put our reader and our socket in the place of pynetdicom's."""
        association.dul = Reader(association)
        association.acse_timeout, association.network_timeout = association.acse_timeout, association.network_timeout
        bounded = BoundedSocket(association, self.request, self.server.bounds, self.server.budget)
        association.set_socket(bounded)
        return bounded


class Server(ThreadedAssociationServer):
    """A server of associations that looks at who connects before it listens to them.

    Args:
        *arguments: As pynetdicom gives them.
        allow: Who may connect.
        bounds: What they may take.
        counts: Where refused connections are counted.
        ended: Called with every association that has ended.
        **words: As pynetdicom gives them.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        *arguments: Any,
        allow: Allow,
        bounds: Bounds,
        counts: Counts,
        ended: Callable[[Association], None],
        **words: Any,
    ) -> None:
        self.allow, self.bounds, self.counts, self.ended = allow, bounds, counts, ended
        self.budget = Budget(bounds.buffer_mib * MIB)
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()
        super().__init__(*arguments, **{"request_handler": Connection, **words})
        # pynetdicom would shake hands where it accepts connections, and one silent caller would keep all others out.
        self.tls, self.ssl_context = self.ssl_context, None
        self._gc = [0, GC_EVERY]

    def connections(self) -> int:
        """How many connections are open."""
        with self._lock:
            return self._open.total()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Whether a caller may connect: his address is allowed, and there is room."""
        host = client_address[0]
        if not self.allow.address(host):
            return self._refuse("address")
        with self._lock:
            if self._open.total() >= self.bounds.associations or self._open[host] >= self.bounds.per_host:
                return self._refuse("busy")
            self._open[host] += 1
        return True

    def _refuse(self, reason: str) -> bool:
        self.counts.add("connections_refused", reason=reason)
        log.warning("connection refused: %s", reason)
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        """Deal with one connection in a thread; where none can be had, it is not counted any longer."""
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._forget(client_address)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Deal with one connection; what goes wrong in it ends it alone."""
        try:
            self.finish_request(request, client_address)
        except Exception as error:
            self.counts.add("connections_failed")
            log.warning("connection failed: %s", type(error).__name__)
        finally:
            _close(request)
            self._forget(client_address)

    def _forget(self, client_address: Any) -> None:
        with self._lock:
            self._open[client_address[0]] -= 1
            self._open += Counter()  # forget the hosts with none

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Say that a connection could not be dealt with; the base class would print what it holds."""
        self.counts.add("connections_failed")
        log.warning("connection failed")


def _close(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
