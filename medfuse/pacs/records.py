"""What the node's queue holds: its tables, and the rows as they are handed out."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

#: Its file in the node's folder.
QUEUE = "queue.sqlite3"
STATES = ("receiving", "quiet", "fusing", "sending", "done", "dead")
SET_UP = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
CREATE TABLE IF NOT EXISTS studies (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    uid TEXT NOT NULL,
    state TEXT NOT NULL,
    generation INTEGER NOT NULL DEFAULT 1,
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    since REAL NOT NULL,
    note TEXT NOT NULL DEFAULT '',
    is_flawed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS deliveries (
    study INTEGER NOT NULL REFERENCES studies ON DELETE CASCADE,
    destination TEXT NOT NULL,
    instance TEXT NOT NULL,
    file TEXT NOT NULL,
    digest TEXT NOT NULL,
    begun INTEGER NOT NULL DEFAULT 0,
    is_replacement INTEGER NOT NULL DEFAULT 0,
    sent REAL,
    PRIMARY KEY (study, destination, instance)
);
CREATE TABLE IF NOT EXISTS errands (
    study INTEGER NOT NULL REFERENCES studies ON DELETE CASCADE,
    destination TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'sending',
    note TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (study, destination)
);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_state ON studies (state, due);
CREATE INDEX IF NOT EXISTS by_instance ON deliveries (instance);
"""


def opened(path: Path, script: str, patience_seconds: float) -> sqlite3.Connection:
    """A database, made if absent, on which a script has been run; every statement after it is a transaction.

    Args:
        path: Its file.
        script: SQL.
        patience_seconds: How long to wait for others who hold it.

    Raises:
        sqlite3.Error: It cannot be opened, or the script fails; then it is closed.
    """
    connection = sqlite3.connect(path, timeout=patience_seconds, isolation_level=None, check_same_thread=False)
    try:
        connection.executescript(script)
    except BaseException:
        connection.close()
        raise
    return connection


@dataclass(frozen=True)
class Entry:
    """One study as `medfuse queue` shows it.

    Args:
        id: Serial number.
        key: Short hash of its UID.
        uid: Study Instance UID, which identifies the patient to whoever has the archive.
        state: One of `STATES`.
        generation: Grows with every change to what was received.
        attempts: How often its fusion was begun.
        due: When it is next worked on, seconds since 1970.
        since: When it came into its state, likewise.
        note: What went wrong, or why nothing is to be done; without patient data.
        sent: Deliveries made, an instance to a destination each.
        unsent: Deliveries to make.
    """

    id: int
    key: str
    uid: str
    state: str
    generation: int
    attempts: int
    due: float
    since: float
    note: str
    sent: int
    unsent: int


@dataclass(frozen=True)
class Job:
    """A study that somebody works on, in the generation in which he took it."""

    id: int
    key: str
    generation: int
    attempts: int


@dataclass(frozen=True)
class Result:
    """An instance to be sent.

    Args:
        instance: Its SOP Instance UID.
        file: Its file.
        digest: The SHA-256 of that.
        is_there_perhaps: Whether a sending of it was cut short, so that only the destination can tell.
    """

    instance: str
    file: Path
    digest: str
    is_there_perhaps: bool = False


@dataclass(frozen=True)
class Delivery:
    """What of a study a destination has.

    Args:
        destination: Its name.
        note: What went wrong last, or nothing.
        attempts: How often it was tried.
        sent: Instances that it has accepted.
        unsent: Instances that it has not.
        due: When it is tried next, seconds since 1970.
    """

    destination: str
    note: str
    attempts: int
    sent: int
    unsent: int
    due: float
