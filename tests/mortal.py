"""A node that lives again and again: a line on standard input starts one in a process of its own, whose id is printed.

Not a test: `test_pacs_node.py` runs it. What is slow to load is loaded once, before the first life.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from nodes import settings, stand_in

from medfuse.pacs.node import Node
from medfuse.pacs.settings import Retry


def live(spool: Path, port: int, archive: int) -> None:
    """One life: it ends when it is killed."""
    often = Retry(attempts=1000, first_seconds=0.1, longest_seconds=0.1)
    node = Node(
        settings(spool, archive, port=port, retry=often, quiet_seconds=0.15), stand_in, apart=False, poll_seconds=0.02
    )
    node.start()
    while True:
        time.sleep(1)


def main() -> None:
    spool, port, archive = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who dies is forgotten
    for _ in sys.stdin:
        process = os.fork()
        if process == 0:
            live(spool, port, archive)
        print(process, flush=True)


if __name__ == "__main__":
    main()
