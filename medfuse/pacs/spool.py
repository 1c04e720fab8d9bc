"""The folders of the node: files as they were received, and the results that wait to be sent.

    ROOT/incoming/           files that are still being written
    ROOT/studies/KEY/in/     what was received of one study, an instance a file
    ROOT/studies/KEY/out-N/  what its Nth fusion wrote
    ROOT/studies/KEY/priors/ other studies of the patient, while it is fused
    ROOT/queue.sqlite3       what is to be done (`medfuse.pacs.queue`)

A file is written whole, brought to the disk (fsync) and only then renamed to its place, so that a kill leaves all of it
or none. Names are hashes of UIDs, and nobody but the node's own user may look.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medfuse.errors import OutputError
from medfuse.pacs.records import QUEUE, opened

INCOMING, STUDIES = "incoming", "studies"
MIB = 2**20


def key_of(uid: str) -> str:
    """A short name for a UID, which tells nobody whose it is.

    >>> key_of("1.2.840.99999.1")
    'c514df491d13d6f3'
    """
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


class Spool:
    """The folders of one node.

    Args:
        root: The folder that holds all; made if absent, for its owner only.

    Raises:
        OutputError: It cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming, self.studies = root / INCOMING, root / STUDIES
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.incoming, self.studies):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"expected a folder to keep studies in, cannot make {root.name}: {error.strerror}",
                "Check the rights there, or name another folder as `spool`",
            ) from error

    @contextmanager
    def lock(self, patience_seconds: float = 5.0) -> Iterator[None]:
        """Keep the folders for one node; a node that was killed keeps them no longer than it takes to die.

        Args:
            patience_seconds: How long to wait for another node.

        Raises:
            OutputError: Another node has them, or they cannot be written to.
        """
        try:
            connection = opened(self.root / "lock.sqlite3", "BEGIN EXCLUSIVE", patience_seconds)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise OutputError(
                    f"expected to write to {self.root.name}, cannot: {error}", "Check the rights and the space there"
                ) from error
            raise OutputError(
                f"expected a folder of no other node, found that {self.root.name} is in use",
                "Stop the other node, or name another folder as `spool`",
            ) from error
        try:
            yield
        finally:
            connection.close()

    def inputs(self, key: str) -> Path:
        """The folder of what was received of a study."""
        return self.studies / key / "in"

    def results(self, key: str, generation: int) -> Path:
        """The folder of what a fusion of a study has written."""
        return self.studies / key / f"out-{generation}"

    def write(self, pieces: Iterable[bytes | memoryview]) -> Path:
        """Write a file to `incoming` and bring it to the disk.

        Raises:
            OSError: It could not be written; nothing is left of it.
        """
        handle, name = tempfile.mkstemp(suffix=".part", dir=self.incoming)
        try:
            with open(handle, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return Path(name)

    def holds(self, key: str, instance: str, file: Path) -> bool:
        """Whether a study already holds an instance, byte for byte."""
        there = self._place(key, instance)
        return there.exists() and filecmp.cmp(there, file, shallow=False)

    def place(self, key: str, instance: str, file: Path) -> None:
        """Move a written file to its study, for good; an earlier one of the same instance is replaced."""
        there = self._place(key, instance)
        if not there.parent.is_dir():
            there.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync(there.parent.parent)
            _sync(self.studies)
        file.replace(there)
        _sync(there.parent)

    def _place(self, key: str, instance: str) -> Path:
        return self.inputs(key) / f"{hashlib.sha256(instance.encode()).hexdigest()[:32]}.dcm"

    def keep(self, folder: Path) -> None:
        """Bring every file of a folder to the disk."""
        for path in (*folder.rglob("*"), folder, folder.parent):
            _sync(path)

    def forget(self, key: str, results_but: int | None = None) -> None:
        """Remove the files of a study; or, of its results, those of all generations but one."""
        if results_but is None:
            shutil.rmtree(self.studies / key, ignore_errors=True)
            return
        for folder in (self.studies / key).glob("out-*"):
            if folder != self.results(key, results_but):
                shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove what a kill has left of files half received."""
        for path in self.incoming.iterdir():
            path.unlink(missing_ok=True)

    def forget_all_but(self, known: set[str]) -> None:
        """Remove the files of all studies but these."""
        for folder in self.studies.iterdir():
            if folder.name not in known:
                self.forget(folder.name)

    def free_bytes(self) -> int:
        """The space left on the disk."""
        return shutil.disk_usage(self.root).free

    def used_bytes(self) -> int:
        """The space that all files here take."""
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:
                    continue
        return total


def check_place(root: Path) -> None:
    """Refuse a folder that cannot be made or written to, or that holds what no node has put there; none is made.

    Raises:
        OutputError: It cannot be, or it does: without a queue, a node would clear it away.
    """
    there = next(place for place in (root, *root.absolute().parents) if os.path.exists(place))
    within = [folder for folder in (root / INCOMING, root / STUDIES) if os.path.isdir(folder)]
    can_be_used = os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)
    if not can_be_used or not all(os.access(folder, os.R_OK | os.W_OK | os.X_OK) for folder in within):
        raise OutputError(
            f"expected a folder to keep studies in, cannot make or write {root.name}",
            "Check the rights there, or name another folder as `spool`",
        )
    if not os.path.exists(root / QUEUE):
        for folder in within:
            if any(folder.iterdir()):
                raise OutputError(
                    f"expected an empty folder or a node's, found files in {folder.name} of {root.name} and no {QUEUE}",
                    "Name another folder as `spool`, or move the files away",
                )


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        found = hashlib.sha256()
        while piece := file.read(MIB):
            found.update(piece)
    return found.hexdigest()


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Windows has no such thing for folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
