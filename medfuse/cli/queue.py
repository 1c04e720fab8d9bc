"""`medfuse queue`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medfuse.cli.console import print_json
from medfuse.cli.options import AsJson, path_argument
from medfuse.cli.tables import print_table
from medfuse.errors import InputError, OutputError, one_line
from medfuse.markdown import markdown

if TYPE_CHECKING:
    from medfuse.pacs.queue import Queue
    from medfuse.pacs.records import Entry
    from medfuse.pacs.settings import Settings
    from medfuse.pacs.spool import Spool

app = typer.Typer(help="See and steer what `medfuse serve` has to do.", rich_markup_mode=None)

Config = Annotated[Path, path_argument(help="The node's YAML file.")]
Study = Annotated[str, typer.Argument(help="Number of the study, or the beginning of its hash.")]
Studies = Annotated[list[str] | None, typer.Argument(help="Numbers of studies, or beginnings of their hashes.")]
Uids = Annotated[bool, typer.Option("--uids", help="Show Study Instance UIDs, which may tell who the patient is.")]


@app.callback()
def queue() -> None:
    """See and steer what `medfuse serve` has to do, whether it runs or not."""


@app.command("list")
def list_(
    config: Config,
    state: Annotated[
        list[str] | None, typer.Option(help="Only these: receiving, quiet, fusing, sending, done, dead.")
    ] = None,
    uids: Uids = False,
    as_json: AsJson = False,
) -> None:
    """The studies, oldest first."""
    from medfuse.pacs.records import STATES

    if unknown := sorted(set(state or ()) - set(STATES)):
        raise typer.BadParameter(f"expected a state of {', '.join(STATES)}, got {unknown[0]!r}")
    with _opened(config) as (queue, *_):
        entries, paused = queue.entries(state or STATES), queue.is_paused
    if as_json:
        print_json({"paused": paused, "studies": [_json(entry, uids) for entry in entries]})
        return
    header = ["id", "study", "state", "since", "tries", "sent", "to send", "note", *(["UID"] if uids else [])]
    rows = [header, *(_row(entry, uids) for entry in entries)]
    title = f"{len(entries)} studies{', paused' if paused else ''}"
    print_table(title, rows, f"{title}\n\n{markdown(rows)}")


@app.command()
def show(config: Config, study: Study, uids: Uids = False, as_json: AsJson = False) -> None:
    """One study: what was received, where its results go, and what went wrong."""
    with _opened(config) as (queue, spool, _):
        entry = queue.entry(study)
        deliveries = queue.deliveries(entry.id)
        inputs = spool.inputs(entry.key)
        received = sum(1 for _ in inputs.glob("*.dcm")) if inputs.is_dir() else 0
    if as_json:
        told = [asdict(delivery) for delivery in deliveries]
        print_json({**_json(entry, uids), "received": received, "deliveries": told})
        return
    typer.echo(f"study {entry.id}, {entry.key}{f', {entry.uid}' if uids else ''}")
    typer.echo(f"{entry.state} since {_when(entry.since)}; {received} instances, fused {entry.attempts} times")
    for one in deliveries:
        later = f", again at {_when(one.due)}" if one.unsent and one.due > time.time() else ""
        typer.echo(f"to {one.destination}: {one.sent} sent, {one.unsent} to send{later}")
        if one.note not in entry.note:
            typer.echo(one_line(one.note))
    if entry.note:
        typer.echo(one_line(entry.note))


@app.command()
def retry(
    config: Config,
    studies: Studies = None,
    dead: Annotated[bool, typer.Option("--dead", help="All that are dead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try again at once what is dead or waits. What a destination has accepted is not sent again."""
    if dead and studies:
        raise typer.BadParameter("expected studies or --dead, got both")
    with _opened(config) as (queue, _, settings):
        names = [one.name for one in settings.destinations]
        chosen = queue.entries(["dead"]) if dead else [queue.entry(one) for one in _some(studies)]
        states = {entry.id: queue.retry(entry.id, names) for entry in chosen}
    if as_json:
        print_json({"retried": [{"id": one, "state": state} for one, state in states.items()]})
        return
    for one, state in states.items():
        typer.echo(f"study {one}: {state}")


@app.command()
def drop(
    config: Config,
    studies: Studies = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Drop studies, too, that are neither done nor dead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Forget studies, and remove their files; a node that runs does so within a minute."""
    with _opened(config) as (queue, spool, _):
        chosen = [queue.entry(one) for one in _some(studies)]
        working = [entry for entry in chosen if entry.state not in ("done", "dead")]
        if working and not unfinished:
            raise InputError(
                f"expected studies that are done or dead, found that {working[0].id} is {working[0].state}",
                "Drop it all the same with --unfinished",
            )
        for entry in chosen:
            queue.drop(entry.id)
        with suppress(OutputError), spool.lock(patience_seconds=0):  # a node alone knows what arrives just now
            for entry in chosen:
                spool.forget(entry.key)
    if as_json:
        print_json({"dropped": [entry.id for entry in chosen]})
        return
    typer.echo(f"dropped: {', '.join(str(entry.id) for entry in chosen)}")


@app.command()
def pause(config: Config) -> None:
    """Stop fusing and sending after what is under way. Instances are still received."""
    with _opened(config) as (queue, *_):
        queue.pause(True)
    typer.echo("paused")


@app.command()
def resume(config: Config) -> None:
    """Go on fusing and sending."""
    with _opened(config) as (queue, *_):
        queue.pause(False)
    typer.echo("resumed")


@contextmanager
def _opened(config: Path) -> Iterator[tuple[Queue, Spool, Settings]]:
    """The queue and the folders of a node, and how it is set up."""
    from medfuse.pacs.queue import Queue
    from medfuse.pacs.records import QUEUE
    from medfuse.pacs.settings import read_settings
    from medfuse.pacs.spool import Spool

    settings = read_settings(config)
    if not (settings.spool / QUEUE).is_file():
        raise InputError(
            f"expected a queue in {settings.spool.name}, found none", "Start the node first: medfuse serve"
        )
    queue = Queue(settings.spool / QUEUE)
    try:
        yield queue, Spool(settings.spool), settings
    finally:
        queue.close()


def _some(studies: list[str] | None) -> list[str]:
    if not studies:
        raise typer.BadParameter("expected studies, got none")
    return studies


def _json(entry: Entry, uids: bool) -> dict[str, Any]:
    told = asdict(entry)
    if not uids:
        del told["uid"]
    return told


def _row(entry: Entry, uids: bool) -> list[str]:
    numbers = (entry.attempts, entry.sent, entry.unsent)
    row = [str(entry.id), entry.key, entry.state, _when(entry.since), *map(str, numbers), one_line(entry.note)]
    return [*row, entry.uid] if uids else row


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
