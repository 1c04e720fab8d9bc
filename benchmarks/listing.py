"""How long it takes to list a folder of single slices, beside pydicom reading their headers and nothing more.

    python benchmarks/listing.py --files 1000

Slices of 64 × 64 voxels, written for it; both have read them once before, so that no drive is measured.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pydicom
import typer

from medfuse.grid import Grid
from medfuse.io.files import inspect
from medfuse.sample.series import write_series
from medfuse.volume import Modality, Unit, Volume


def main(
    files: Annotated[int, typer.Option(min=1, help="Slices in the folder")] = 1000,
    count: Annotated[int, typer.Option(min=1, help="Runs of each, in turn")] = 5,
) -> None:
    """Print the median times, and their ratio."""
    grid = Grid.from_axes((files, 64, 64), (0, 0, 0), (1, 1, 1), np.eye(3), "1.2.3")
    volume = Volume(np.zeros(grid.shape, np.float32), grid, Modality.CT, Unit.HU)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_series(volume, folder, description="CT", number=1)
        ways: list[Callable[[Path], object]] = [_by_pydicom, inspect]
        runs = [[_seconds(way, folder) for way in ways] for _ in range(count + 1)][1:]
    reference, ours = (statistics.median(run[n] for run in runs) for n in range(len(ways)))
    print(f"pydicom {reference:.2f} s, medfuse {ours:.2f} s for {files} files: {ours / reference:.1f} times")


def _by_pydicom(folder: Path) -> None:
    for path in folder.iterdir():
        pydicom.dcmread(path, stop_before_pixels=True)


def _seconds(way: Callable[[Path], object], folder: Path) -> float:
    began = time.perf_counter()
    way(folder)
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
