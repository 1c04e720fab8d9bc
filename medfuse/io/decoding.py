"""Stored pixel values of DICOM images: native ones here, compressed ones decoded in a process of their own.

Decoders of compressed pixels are native code that is fed with whatever a file holds. A decoder that crashes, hangs or
wants all memory takes a worker with it, and the file is refused; the program goes on. One or a few workers serve a
whole series. They are started as programs of their own, not through `multiprocessing`, which would run the user's
script again; and what comes back is numbers and text, never pickles.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.pixels import get_decoder, iter_pixels

from medfuse.errors import UnreadableFile
from medfuse.io.dicom_header import leniently, read_dataset

GDCM, OPENJPEG, PYDICOM = "gdcm", "pylibjpeg", "pydicom"
#: Which of pydicom's plugins decodes a transfer syntax (PS3.5 annex A.4), so that a result does not depend on what else
#: is installed. Syntaxes that are not here are native, or not read.
PLUGINS: dict[str, str] = {
    uid.RLELossless: PYDICOM,
    **dict.fromkeys((uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), GDCM),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), GDCM),
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), OPENJPEG),
    **dict.fromkeys((uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), OPENJPEG),
}
NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)

#: A frame may take this long to decode, and this much longer for each million pixels.
SECONDS, SECONDS_A_MILLION = 8.0, 2.0
#: A worker may take this much memory, and this much more for each pixel of all frames of its file (POSIX only).
MEMORY_BYTES, MEMORY_TIMES = 512 * 2**20, 32
#: Exit status of a worker whose time was up.
OVERDUE = 1
#: Most workers of a series, and how many files each must have to be worth its start (0.3 s).
WORKERS, FILES_A_WORKER = 4, 32

#: What a worker runs. It searches for modules where this process does, and nowhere else.
PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from medfuse.io.decoding import work; work()"


@dataclass(frozen=True)
class Request:
    """The frames of one file that are wanted.

    Args:
        path: The file.
        frames: Their indices, from 0, in the order wanted.
        syntax: The file's Transfer Syntax UID.
        shape: Number of (rows, columns) that the header states.
        all_frames: How many frames the file holds.
    """

    path: Path
    frames: tuple[int, ...]
    syntax: str
    shape: tuple[int, int]
    all_frames: int = 1

    @property
    def seconds(self) -> float:
        """How long one of its frames may take to decode."""
        return SECONDS + SECONDS_A_MILLION * math.prod(self.shape) / 1e6

    @property
    def memory_bytes(self) -> int:
        """How much memory decoding it may take."""
        return MEMORY_BYTES + MEMORY_TIMES * math.prod(self.shape) * self.all_frames

    def check(self, about: dict[str, Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of a decoded frame as a worker states them.

        Raises:
            UnreadableFile: They are not those of an image of this size.
        """
        shape, dtype = tuple(about["shape"]), np.dtype(about["dtype"])
        if shape[:2] != self.shape or shape[2:] not in ((), (3,)) or dtype.kind not in "iuf":
            raise UnreadableFile(
                f"expected an image of shape {self.shape} in {self.path.name}, found {shape}", "Export the series again"
            )
        return shape, dtype


def is_decodable(syntax: str) -> bool:
    """Whether pixels of a transfer syntax can be decoded here."""
    return syntax in NATIVE or (syntax in PLUGINS and PLUGINS[syntax] in get_decoder(uid.UID(syntax)).available_plugins)


class Decoder:
    """Decodes the files of one series, in the order given. A context manager: leaving it ends its workers.

    Args:
        requests: What will be asked for, in order. Workers decode ahead of the asking, one file each.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self._compressed = [request for request in requests if request.syntax in PLUGINS]
        most = min(WORKERS, os.cpu_count() or 1)
        self._count = min(most, -(-len(self._compressed) // FILES_A_WORKER))
        self._workers: list[_Worker] = []
        self._finished = 0

    def __enter__(self) -> Decoder:
        try:
            for request in self._compressed[: self._count]:
                worker = _Worker()
                self._workers.append(worker)
                worker.ask(request)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()

    def frames(self, request: Request, dataset: Dataset) -> Iterator[NDArray[np.generic]]:
        """The stored values of each frame, (rows, columns) or (rows, columns, 3); YBR is converted to RGB.

        Args:
            request: The next of the requests.
            dataset: Its whole file, from which native pixels are taken.

        Yields:
            As many arrays as were asked for; fewer where the file holds fewer.

        Raises:
            UnreadableFile: The pixels are damaged, or the decoder crashed or took too long.
        """
        if request.syntax not in PLUGINS:
            yield from iter_pixels(dataset, indices=list(request.frames))
            return
        worker = self._workers[self._finished % self._count]
        for left in reversed(range(len(request.frames))):
            frame = worker.receive(request)
            if frame is None or left == 0:
                self._finished += 1
                upcoming = self._finished - 1 + self._count
                if upcoming < len(self._compressed):
                    worker.ask(self._compressed[upcoming])
            if frame is None:
                return
            yield frame


class _Worker:
    """A process that decodes: a line of JSON in; out, for each frame, a line of JSON and the bytes of the values."""

    def __init__(self) -> None:
        searched = json.dumps([os.path.abspath(place) for place in sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", PROGRAM, searched],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._since = 0.0

    def ask(self, request: Request) -> None:
        """Send a request; only when all frames of the one before were received."""
        question = {
            "path": os.path.abspath(request.path),
            "frames": request.frames,
            "plugin": PLUGINS[request.syntax],
            "seconds": request.seconds,
            "bytes": request.memory_bytes,
        }
        self._since = time.monotonic()
        assert self._process.stdin is not None
        with suppress(OSError):  # it is gone; `receive` will tell of which file
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, request: Request) -> NDArray[np.generic] | None:
        """The next frame of the request that was sent; None where there are no more.

        Raises:
            UnreadableFile: The worker could not decode it, or is gone.
        """
        assert self._process.stdout is not None
        try:
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
            if not answer:
                return None
            if "error" in answer:
                raise UnreadableFile(
                    f"expected a whole DICOM file, found {request.path.name} truncated or damaged ({answer['error']})",
                    "Export or copy the file again",
                )
            shape, dtype = request.check(answer)
            size = dtype.itemsize * math.prod(shape)
            frame = np.frombuffer(self._process.stdout.read(size), dtype).reshape(shape)
        except (ValueError, TypeError, KeyError) as error:
            raise UnreadableFile(
                f"expected compressed pixels that can be decoded, found that the decoder {self._end_of(request)} on "
                f"{request.path.name}",
                "Export the file again, uncompressed",
            ) from error
        self._since = time.monotonic()
        return frame

    def _end_of(self, request: Request) -> str:
        """How a worker ended that no longer answers."""
        waited_s = time.monotonic() - self._since
        self._process.kill()
        is_overdue = self._process.wait() == OVERDUE and waited_s >= request.seconds
        return f"took more than {request.seconds:.0f} s" if is_overdue else "crashed"

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was not sent yet has no reader any more
                if pipe is not None:
                    pipe.close()
        self._process.wait()


@leniently()
def work() -> None:
    """Be a worker: answer requests from standard input until it ends."""
    with os.fdopen(os.dup(1), "wb") as answers, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # libraries print there
        for line in sys.stdin:
            question = json.loads(line)
            _limit_memory(question["bytes"])
            sent = 0
            try:
                frames = _decode(question)
                while True:
                    # A thread of its own watches, which ends this process also while native code runs; but not while
                    # it waits until what it sends is asked for.
                    faulthandler.dump_traceback_later(question["seconds"], exit=True, file=nowhere)
                    frame = next(frames, None)
                    faulthandler.cancel_dump_traceback_later()
                    if frame is None:
                        break
                    _send(answers, {"shape": frame.shape, "dtype": frame.dtype.str}, frame)
                    sent += 1
                if sent < len(question["frames"]):
                    _send(answers, {})
            except Exception as error:
                faulthandler.cancel_dump_traceback_later()
                _send(answers, {"error": type(error).__name__})


def _decode(question: dict[str, Any]) -> Iterator[NDArray[np.generic]]:
    """The frames that a request asks for."""
    dataset = read_dataset(Path(question["path"]))
    for frame in iter_pixels(dataset, indices=question["frames"], decoding_plugin=question["plugin"]):
        # Bits above those stored may hold an overlay; pydicom leaves them in JPEG-LS and JPEG 2000.
        unused = frame.itemsize * 8 - dataset.BitsStored
        yield frame if unused <= 0 or frame.ndim > 2 else np.right_shift(np.left_shift(frame, unused), unused)


def _send(answers: IO[bytes], about: dict[str, Any], frame: NDArray[np.generic] | None = None) -> None:
    answers.write(json.dumps(about).encode() + b"\n")
    if frame is not None:
        answers.write(frame.tobytes())
    answers.flush()


def _limit_memory(most_bytes: int) -> None:
    """Let what this process allocates fail beyond a limit, where the system knows such limits."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
