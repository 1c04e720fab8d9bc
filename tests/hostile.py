"""Reads files in a process of its own, with little memory and little time: what a test of hostile files runs.

Run as a program: paths on standard input, one a line; for each, one line of JSON on standard output. What takes too
long, crashes or runs out of memory ends the program, so that a line is missing. With the argument "placed", DICOM
headers that do not say where an image lies are taken to say so, and the pixels are reached.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import Dataset

from medfuse.errors import MedfuseError, MedfuseWarning
from medfuse.io.files import inspect, read

SECONDS, BYTES = 10, 2**30
PLACE = {
    "ImagePositionPatient": [0, 0, 0],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [1, 1],
    "SliceThickness": 1,
    "RescaleSlope": 1,
    "RescaleIntercept": 0,
}


def outcome(path: Path) -> str:
    """What becomes of a file: "volume", or the name of the error that refused it, one line of it checked."""
    try:
        inspect(path)
        volume = read(path, allow_2d=True)
    except MedfuseError as error:
        if "\n" in str(error) or str(path.parent) in str(error):
            raise AssertionError("an error of several lines, or with a path") from error
        return type(error).__name__
    if volume.array.dtype not in (np.float32, np.uint8) or volume.array.shape[:3] != volume.grid.shape:
        raise AssertionError(f"{volume.array.dtype} {volume.array.shape}")
    return "volume"


def place_images() -> None:
    """Let every header that is read say where its image lies."""
    from medfuse.io import dicom_header

    reader = dicom_header.read_open

    def read_placed(file: BinaryIO, name: str, **options: object) -> Dataset:
        dataset = reader(file, name, **options)
        for keyword, value in PLACE.items():
            if keyword not in dataset:
                setattr(dataset, keyword, value)
        return dataset

    dicom_header.read_open = read_placed


def limit_memory() -> None:
    """Let this process have so many bytes more than it has by now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def peak_bytes() -> int:
    """The most memory that this process has held; `getrusage` would count what started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", MedfuseWarning)
    if "placed" in sys.argv:
        place_images()
    limit_memory()
    for line in sys.stdin:
        path, started = Path(line.rstrip("\n")), time.monotonic()
        signal.alarm(SECONDS)
        try:
            found = outcome(path)
        except Exception as error:
            found = f"unforeseen {type(error).__name__}: {error}"
        signal.alarm(0)
        answer = {"path": str(path), "outcome": found, "seconds": time.monotonic() - started}
        answer["bytes"] = peak_bytes()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
