"""How long commands take that fuse nothing, beside Python itself: `python benchmarks/starting.py`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Annotated

import typer

#: By their names, code and arguments.
WAYS = {
    "python -c pass": ("pass",),
    "medfuse --version": ("from medfuse.cli import main; main()", "--version"),
    "medfuse --help": ("from medfuse.cli import main; main()", "--help"),
    "medfuse fuse --help": ("from medfuse.cli import main; main()", "fuse", "--help"),
}


def main(count: Annotated[int, typer.Option(min=1, help="Runs of each, in turn")] = 11) -> None:
    """Print the median times, and their ratio to the first."""
    runs = [[_seconds(*way) for way in WAYS.values()] for _ in range(count + 1)][1:]
    medians = [statistics.median(run[n] for run in runs) for n in range(len(WAYS))]
    for name, seconds in zip(WAYS, medians, strict=True):
        print(f"{name:20} {1000 * seconds:5.0f} ms, {seconds / medians[0]:5.1f} times")


def _seconds(code: str, *arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
