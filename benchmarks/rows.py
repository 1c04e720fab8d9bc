"""What the benchmarks share: rows of JSON that are kept as they come, the peak of memory, Markdown."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
#: What libraries read the number of threads from, when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
NOTHING = "–"


def read_rows(*paths: Path) -> list[Row]:
    """The rows of JSON Lines files; a last line that was cut off is left out."""
    rows = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def kept(rows: Iterable[Row], out: Path) -> Iterator[Row]:
    """Add rows to a JSON Lines file, each as it comes, and pass them on."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        if out.stat().st_size and not out.read_bytes().endswith(b"\n"):
            file.write("\n")  # a line was cut off
        for row in rows:
            file.write(json.dumps(row) + "\n")
            file.flush()
            yield row


def forget_peak() -> None:
    """Let the kernel count the peak of memory from now on (Linux, proc(5): clear_refs); elsewhere it only grows."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Most memory this process held, MB: libraries included."""
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(kilobytes) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def by(rows: Iterable[Row], name: str) -> Iterator[tuple[Any, list[Row]]]:
    """Rows by a value of theirs, in the order in which the values first come."""
    rows = list(rows)
    order = list(dict.fromkeys(row[name] for row in rows))
    for value, group in groupby(sorted(rows, key=lambda row: order.index(row[name])), lambda row: row[name]):
        yield value, list(group)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))
