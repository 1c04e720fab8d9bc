"""What watches the node: counts for Prometheus, and whether it lives and is ready, over HTTP on loopback.

The text format has three lines a measure (https://prometheus.io/docs/instrumenting/exposition_formats/), which is less
than a library would take to set up.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_Labels = tuple[tuple[str, str], ...]

#: What is counted, and what it means.
COUNTED = {
    "instances_received": "Instances that were sent to the node, by what became of them.",
    "received_bytes": "Bytes of the instances that were stored.",
    "associations": "Associations, by what became of them.",
    "connections_refused": "Connections refused before anything was read, by reason.",
    "connections_failed": "Connections that ended in an error.",
    "fusions": "Fusions of a study, by what came of them.",
    "fusion_seconds": "Time that fusions took.",
    "instances_sent": "Instances that a destination accepted.",
    "deliveries_failed": "Attempts to deliver that failed.",
}
#: What is measured when it is asked for.
MEASURED = {
    "studies": "Studies in the queue, by state.",
    "connections": "Connections that are open.",
    "spool_bytes": "Space that the node's files take.",
    "free_bytes": "Space left on the disk.",
    "paused": "1 while nothing is fused or sent.",
}
Measure = tuple[str, _Labels, float]


class Counts:
    """Counts that many threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, _Labels]] = Counter()

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a count.

        Raises:
            KeyError: It is not one of `COUNTED`.
        """
        COUNTED[name]
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount  # type: ignore[assignment]

    def read(self) -> list[Measure]:
        """All counts."""
        with self._lock:
            return [(name, labels, value) for (name, labels), value in sorted(self._counts.items())]


def exposition(counts: Iterable[Measure], measures: Iterable[Measure]) -> str:
    r"""Counts and measures in the text format of Prometheus.

    >>> print(exposition([("fusions", (("result", "done"),), 2)], [("paused", (), 0)]), end="")
    # HELP medfuse_fusions_total Fusions of a study, by what came of them.
    # TYPE medfuse_fusions_total counter
    medfuse_fusions_total{result="done"} 2
    # HELP medfuse_paused 1 while nothing is fused or sent.
    # TYPE medfuse_paused gauge
    medfuse_paused 0
    """
    lines: list[str] = []
    for measured, kind, ending, told in ((counts, "counter", "_total", COUNTED), (measures, "gauge", "", MEASURED)):
        before = ""
        for name, labels, value in measured:
            whole = f"medfuse_{name}{ending}"
            if name != before:
                lines += [f"# HELP {whole} {told[name]}", f"# TYPE {whole} {kind}"]
            lines.append(f"{whole}{_labels(labels)} {value:.17g}")
            before = name
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: _Labels) -> str:
    if not labels:
        return ""
    escaped = ((name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


class Monitor:
    """An HTTP server on loopback: `/healthz`, `/readyz`, `/metrics`.

    Args:
        port: Where to listen; 0 for any.
        ailing: Which parts of the node do not work any more; none where all is well.
        hindered: Why the node can take no instances for now; none where it can.
        metrics: The text of `/metrics`.
    """

    def __init__(
        self,
        port: int,
        ailing: Callable[[], list[str]],
        hindered: Callable[[], list[str]],
        metrics: Callable[[], str],
    ) -> None:
        answers: dict[str, Callable[[], tuple[int, str]]] = {
            "/healthz": lambda: _verdict(ailing()),
            "/readyz": lambda: _verdict([*ailing(), *hindered()]),
            "/metrics": lambda: (200, metrics()),
        }

        class Answer(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                code, text = answers.get(self.path, _unknown)()
                body = text.encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: who watches asks often."""

        self._server = _Quiet(("127.0.0.1", port), Answer)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="monitor", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a caller that hangs up is no error of ours."""


def _unknown() -> tuple[int, str]:
    return 404, "not found\n"


def _verdict(wrong: list[str]) -> tuple[int, str]:
    return (503, "".join(f"{one}\n" for one in wrong)) if wrong else (200, "ok\n")
