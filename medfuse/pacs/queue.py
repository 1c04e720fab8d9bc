"""What the node has to do, on disk: every study from reception to delivery, whatever moment the node is killed at.

    receiving → quiet → fusing → sending → done | dead

It is one SQLite database in WAL mode with synchronous=FULL: when a call returns, its change is on the disk; a change
cut short by a kill or by power has not happened. Folders of renamed files would do as well for one state a study, but
here one step changes a study and its deliveries together, and `medfuse queue` looks and steers while the node works.

A study has a *generation*, which grows with every instance that changes it. Who works on a study holds the generation
he began with, and what he reports is taken only while it is still that one: a late instance thus undoes a fusion under
way, or a delivery, and the study is fused anew. Results of the same images have the same UIDs and take the place of the
old ones; those that have others now stay where they were sent, and the study's note says how many.

Every instance to be sent has two marks for each destination, with the SHA-256 of its file: one is made before it is
sent, one when the destination has accepted it. What has both is not sent again. A refusal takes the first mark back.
What has only the first was cut short, and the destination is asked whether it has it, unless an older content of the
same UID went there before.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from medfuse.errors import InputError, OutputError
from medfuse.pacs.records import SET_UP, STATES, Delivery, Entry, Job, Result, opened

_ENTRIES = """
SELECT id, key, uid, state, generation, attempts, due, since, note,
    (SELECT count(*) FROM deliveries WHERE study = studies.id AND sent IS NOT NULL),
    (SELECT count(*) FROM deliveries WHERE study = studies.id AND sent IS NULL)
FROM studies
"""


@contextmanager
def _told() -> Iterator[None]:
    """Turn what SQLite says of the disk into `OutputError`; it quotes no content."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OutputError(
            f"expected to read and write the queue, cannot: {error}", "Check the rights and the space there"
        ) from error


class Queue:
    """The studies of one node; safe to use from many threads and processes.

    Args:
        path: The database; made if absent.
        clock: Seconds since 1970.
        longest_seconds: The longest wait that there is: what would have to wait longer is due, for the clock was put
            back.

    Raises:
        OutputError: It cannot be opened; of every method, it cannot be read or written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, longest_seconds: float = math.inf) -> None:
        self._clock, self._longest_seconds = clock, longest_seconds
        self._lock = threading.Lock()
        try:
            self._connection = opened(path, SET_UP, 30)
        except sqlite3.Error as error:
            raise OutputError(
                f"expected a queue in {path.name}, cannot open it: {error}", "Check the rights and the space there"
            ) from error

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A transaction: on the disk when the block ends, undone where it raises."""
        with self._lock, _told():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite has ended it where the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    def _all(self, query: str, values: Iterable[object] = ()) -> list[tuple[object, ...]]:
        with self._lock, _told():
            return self._connection.execute(query, tuple(values)).fetchall()

    # Reception

    def knows(self, key: str) -> bool:
        """Whether there is such a study."""
        return bool(self._all("SELECT 1 FROM studies WHERE key = ?", (key,)))

    def arriving(self, key: str, uid: str) -> None:
        """Say that an instance of a study is about to be put in its place; what was made of the study is outdated."""
        found = self._all("SELECT state FROM studies WHERE key = ?", (key,))
        if found and found[0][0] == "receiving":
            return
        with self._change() as change:
            change.execute(
                """INSERT INTO studies (key, uid, state, since) VALUES (?, ?, 'receiving', ?)
                ON CONFLICT (key) DO UPDATE SET state = 'receiving', generation = generation + 1, attempts = 0,
                due = 0, note = '', since = excluded.since""",
                (key, uid, self._clock()),
            )

    def receiving(self) -> list[Job]:
        """The studies that are being received."""
        return self._jobs("state = 'receiving'")

    def complete(self, job: Job) -> bool:
        """Say that a study has become quiet; whether it was still being received."""
        return self._move(job, "receiving", "quiet")

    # Fusion

    def take(self) -> Job | None:
        """Take the study to fuse that has waited longest, or None."""
        if self.is_paused:
            return None
        waiting = self._jobs("state = 'quiet' AND due NOT BETWEEN ? AND ? ORDER BY due, since LIMIT 1", self._later())
        for job in waiting:
            attempt = replace(job, attempts=job.attempts + 1)
            if self._move(job, "quiet", "fusing", attempts=attempt.attempts):
                return attempt
        return None

    def fused(self, job: Job, results: Iterable[Result], destinations: Iterable[str], note: str, flawed: bool) -> bool:
        """Say what a fusion has made; whether it still counts.

        Args:
            job: What was fused.
            results: Its results; those that a destination already has, by the same content, are not sent again.
            destinations: Where they go.
            note: What went wrong or why there are none, or nothing.
            flawed: Whether somebody should look: when all is sent, the study is dead, not done.
        """
        results, destinations = list(results), list(destinations)
        with self._change() as change:
            if not self._is_current(change, job, "fusing"):
                return False
            change.execute("UPDATE deliveries SET file = '' WHERE study = ?", (job.id,))
            change.executemany(
                """INSERT INTO deliveries (study, destination, instance, file, digest) VALUES (?, ?, ?, ?, ?)
                ON CONFLICT DO UPDATE SET file = excluded.file, digest = excluded.digest,
                is_replacement = is_replacement OR (begun AND digest != excluded.digest),
                begun = begun AND digest = excluded.digest,
                sent = CASE WHEN digest = excluded.digest THEN sent END""",
                [(job.id, to, one.instance, str(one.file), one.digest) for to in destinations for one in results],
            )
            stays = change.execute(
                "SELECT destination, count(*) FROM deliveries WHERE study = ? AND file = '' AND sent IS NOT NULL "
                "GROUP BY destination ORDER BY destination",
                (job.id,),
            ).fetchall()
            told = [note, *(f"{to} keeps {n} instances of an earlier fusion" for to, n in stays if to in destinations)]
            change.execute("DELETE FROM deliveries WHERE study = ? AND file = ''", (job.id,))
            change.execute("DELETE FROM errands WHERE study = ?", (job.id,))
            change.execute(
                "INSERT INTO errands (study, destination) SELECT DISTINCT study, destination FROM deliveries "
                "WHERE study = ? AND sent IS NULL",
                (job.id,),
            )
            change.execute("UPDATE studies SET is_flawed = ? WHERE id = ?", (flawed, job.id))
            self._set(change, job.id, "sending", "; ".join(filter(None, told)))
            self._settle(change, job.id)
        return True

    def failed(self, job: Job, note: str, after_seconds: float | None) -> bool:
        """Say that a fusion has failed; whether it still counts.

        Args:
            job: What was being fused.
            note: Why, without patient data.
            after_seconds: When to try again; None to give up.
        """
        state, due = ("dead", 0.0) if after_seconds is None else ("quiet", self._clock() + after_seconds)
        return self._move(job, "fusing", state, note=note, due=due)

    # Delivery

    def errand(self, destination: str) -> Job | None:
        """The study that has results for a destination and has waited longest, or None; `attempts` are of sending."""
        if self.is_paused:
            return None
        rows = self._all(
            """SELECT studies.id, key, generation, errands.attempts FROM studies JOIN errands ON study = studies.id
            WHERE studies.state = 'sending' AND errands.state = 'sending' AND destination = ?
            AND errands.due NOT BETWEEN ? AND ? ORDER BY errands.due, since LIMIT 1""",
            (destination, *self._later()),
        )
        return Job(*rows[0]) if rows else None  # type: ignore[arg-type]

    def unsent(self, job: Job, destination: str) -> list[Result]:
        """What of a study a destination has not accepted yet; nothing where the study has changed."""
        rows = self._all(
            """SELECT instance, file, digest, begun AND NOT is_replacement
            FROM deliveries JOIN studies ON study = studies.id
            WHERE study = ? AND destination = ? AND sent IS NULL AND generation = ? AND state = 'sending'
            ORDER BY file""",
            (job.id, destination, job.generation),
        )
        return [
            Result(str(instance), Path(str(file)), str(digest), bool(perhaps))
            for instance, file, digest, perhaps in rows
        ]

    def sending(
        self, job: Job, destination: str, done: Result | None, following: Result | None, *, accepted: bool = True
    ) -> bool:
        """Mark an instance as accepted, and the next one as about to be sent, or one of them.

        Args:
            job: What is being sent.
            destination: Where.
            done: What the destination has answered for.
            following: What is sent next.
            accepted: Its answer. What it has refused is not there, unless an earlier sending was cut short.

        Returns:
            Whether the study is still the same, so that the rest is to be sent.
        """
        answer = ("sent", self._clock()) if accepted else ("begun", done is not None and done.is_there_perhaps)
        with self._change() as change:
            for result, (mark, value) in ((done, answer), (following, ("begun", True))):
                if result is not None:
                    change.execute(
                        f"UPDATE deliveries SET {mark} = ? "
                        "WHERE study = ? AND destination = ? AND instance = ? AND digest = ?",
                        (value, job.id, destination, result.instance, result.digest),
                    )
            return self._is_current(change, job, "sending")

    def delivered(self, job: Job, destination: str) -> None:
        """Say that a destination has accepted all."""
        self._end_errand(job, destination, "done", "", 0.0)

    def undelivered(
        self, job: Job, destination: str, note: str, after_seconds: float | None, *, counts: bool = True
    ) -> None:
        """Say that a delivery has failed.

        Args:
            job: What was being sent.
            destination: Where.
            note: Why, without patient data.
            after_seconds: When to try again; None to give up.
            counts: Whether it was an attempt, and not only a destination that was away.
        """
        state, due = ("dead", 0.0) if after_seconds is None else ("sending", self._clock() + after_seconds)
        self._end_errand(job, destination, state, f"{destination}: {note}", due, counts)

    def _end_errand(self, job: Job, destination: str, state: str, note: str, due: float, counts: bool = True) -> None:
        with self._change() as change:
            if not self._is_current(change, job, "sending"):
                return
            change.execute(
                "UPDATE errands SET state = ?, note = ?, due = ?, attempts = attempts + ? "
                "WHERE study = ? AND destination = ?",
                (state, note, due, counts, job.id, destination),
            )
            self._settle(change, job.id)

    def _settle(self, change: sqlite3.Connection, study: int) -> None:
        """Move a study on from sending when no destination is waited for."""
        rows = change.execute("SELECT state, note FROM errands WHERE study = ?", (study,)).fetchall()
        if any(state == "sending" for state, _ in rows):
            return
        ((note, is_flawed),) = change.execute("SELECT note, is_flawed FROM studies WHERE id = ?", (study,)).fetchall()
        is_dead = bool(is_flawed) or any(state == "dead" for state, _ in rows)
        self._set(change, study, "dead" if is_dead else "done", "; ".join(filter(None, (note, *(n for _, n in rows)))))

    # Looking and steering

    def entries(self, states: Iterable[str] = STATES) -> list[Entry]:
        """The studies in these states, oldest first."""
        wanted = tuple(states)
        marks = ", ".join("?" for _ in wanted)
        return [Entry(*row) for row in self._all(f"{_ENTRIES} WHERE state IN ({marks}) ORDER BY id", wanted)]  # type: ignore[arg-type]

    def entry(self, name: str) -> Entry:
        """The study with this serial number, or with a key that begins so.

        Raises:
            InputError: There is none, or several.
        """
        rows = self._all(f"{_ENTRIES} WHERE id = ?", (name,)) if len(name) < 8 and name.isdecimal() else []
        if not rows and name:
            rows = self._all(f"{_ENTRIES} WHERE substr(key, 1, ?) = ?", (len(name), name))
        if len(rows) != 1:
            raise InputError(
                f"expected one study {name!r} in the queue, found {len(rows)}", "See them with: medfuse queue list"
            )
        return Entry(*rows[0])  # type: ignore[arg-type]

    def deliveries(self, study: int) -> list[Delivery]:
        """How far the results of a study have come, by destination."""
        rows = self._all(
            """SELECT destination, coalesce(errands.note, ''), coalesce(attempts, 0), sum(sent IS NOT NULL),
            sum(sent IS NULL), coalesce(due, 0) FROM deliveries LEFT JOIN errands USING (study, destination)
            WHERE study = ? GROUP BY destination""",
            (study,),
        )
        return [Delivery(*row) for row in rows]  # type: ignore[arg-type]

    def counts(self) -> dict[str, int]:
        """How many studies are in each state."""
        rows: dict[str, int] = dict(self._all("SELECT state, count(*) FROM studies GROUP BY state"))  # type: ignore[arg-type]
        return {state: rows.get(state, 0) for state in STATES}

    def is_ours(self, instance: str) -> bool:
        """Whether an instance is one of the results."""
        return bool(self._all("SELECT 1 FROM deliveries WHERE instance = ? LIMIT 1", (instance,)))

    def retry(self, study: int, destinations: Iterable[str] | None = None) -> str:
        """Try a dead study again, or one that waits, at once; what was accepted is not sent again. Its new state.

        A study whose fusion failed is fused again, one that was fused is sent on.

        Args:
            study: Its serial number.
            destinations: Those that there are; a study that was to go to another is fused again, for these. None for
                any.
        """
        with self._change() as change:
            ((state, is_flawed),) = change.execute(
                "SELECT state, is_flawed FROM studies WHERE id = ?", (study,)
            ).fetchall()
            stuck = {
                to
                for (to,) in change.execute(
                    "SELECT destination FROM errands WHERE study = ? AND state != 'done'", (study,)
                )
            }
            there = stuck if destinations is None else stuck.intersection(destinations)
            if state == "dead":
                state = "sending" if stuck and stuck == there and not is_flawed else "quiet"
                change.execute("UPDATE studies SET attempts = 0, is_flawed = 0 WHERE id = ?", (study,))
                self._set(change, study, state, "")
            change.execute("UPDATE studies SET due = 0 WHERE id = ?", (study,))
            change.executemany(
                "UPDATE errands SET state = 'sending', attempts = 0, due = 0 WHERE study = ? AND destination = ?",
                [(study, to) for to in there],
            )
        return str(state)

    def drop(self, study: int) -> None:
        """Forget a study; who works on it is told that it no longer counts."""
        with self._change() as change:
            change.execute("DELETE FROM studies WHERE id = ?", (study,))

    @property
    def is_paused(self) -> bool:
        """Whether nothing is fused or sent for now."""
        return bool(self._all("SELECT 1 FROM settings WHERE name = 'paused'"))

    def pause(self, paused: bool) -> None:
        """Stop fusing and sending after what is under way, or go on; reception does not stop."""
        with self._change() as change:
            change.execute("DELETE FROM settings WHERE name = 'paused'")
            if paused:
                change.execute("INSERT INTO settings VALUES ('paused', '')")

    # After a kill, and in time

    def recover(self, after_seconds: float = 0.0) -> set[str]:
        """Take up after a kill: what was being fused is to be fused. The keys of all studies.

        Args:
            after_seconds: How long a destination is not asked for what a kill has cut short: it may still be storing
                it, and would say that it has it not.
        """
        with self._change() as change:
            change.execute("UPDATE studies SET state = 'quiet' WHERE state = 'fusing'")
            change.execute(
                """UPDATE errands SET due = max(due, ?) WHERE state = 'sending' AND EXISTS (
                SELECT 1 FROM deliveries WHERE study = errands.study AND destination = errands.destination
                AND begun AND sent IS NULL)""",
                (self._clock() + after_seconds,),
            )
            return {key for (key,) in change.execute("SELECT key FROM studies")}

    def give_up_all_but(self, destinations: Iterable[str]) -> int:
        """End the deliveries to destinations that there are no more, which nobody would make; how many there were."""
        known = set(destinations)
        with self._change() as change:
            waiting = change.execute(
                "SELECT study, destination FROM errands JOIN studies ON study = studies.id "
                "WHERE errands.state = 'sending' AND studies.state = 'sending'"
            ).fetchall()
            lost = [(study, to) for study, to in waiting if to not in known]
            for study, to in lost:
                change.execute(
                    "UPDATE errands SET state = 'dead', note = ? WHERE study = ? AND destination = ?",
                    (f"{to}: there is no destination of this name any more", study, to),
                )
                self._settle(change, study)
        return len(lost)

    def forget_done(self, older_seconds: float) -> set[str]:
        """Forget the studies that are done for so long. The keys of those that are left."""
        with self._change() as change:
            change.execute("DELETE FROM studies WHERE state = 'done' AND since < ?", (self._clock() - older_seconds,))
            return {key for (key,) in change.execute("SELECT key FROM studies")}

    def _later(self) -> tuple[float, float]:
        """The times between which what is due then has to wait."""
        now = self._clock()
        return math.nextafter(now, math.inf), now + self._longest_seconds

    def _jobs(self, where: str, values: Iterable[object] = ()) -> list[Job]:
        rows = self._all(f"SELECT id, key, generation, attempts FROM studies WHERE {where}", values)
        return [Job(*row) for row in rows]  # type: ignore[arg-type]

    def _move(self, job: Job, before: str, after: str, **columns: object) -> bool:
        """Change the state of a study that has not changed meanwhile; whether it had not."""
        with self._change() as change:
            if not self._is_current(change, job, before):
                return False
            for name, value in columns.items():
                change.execute(f"UPDATE studies SET {name} = ? WHERE id = ?", (value, job.id))
            change.execute("UPDATE studies SET state = ?, since = ? WHERE id = ?", (after, self._clock(), job.id))
        return True

    def _set(self, change: sqlite3.Connection, study: int, state: str, note: str) -> None:
        change.execute(
            "UPDATE studies SET state = ?, note = ?, since = ? WHERE id = ?", (state, note, self._clock(), study)
        )

    @staticmethod
    def _is_current(change: sqlite3.Connection, job: Job, state: str) -> bool:
        query = "SELECT 1 FROM studies WHERE id = ? AND generation = ? AND state = ?"
        return change.execute(query, (job.id, job.generation, state)).fetchone() is not None
