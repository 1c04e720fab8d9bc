"""What all commands share: scans read by their place, progress for people, JSON for scripts, usage errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from medfuse.errors import MedfuseError, one_line
from medfuse.stages import Progress

if TYPE_CHECKING:
    from medfuse.align.verdict import Verdict
    from medfuse.volume import Volume


def read_scan(place: str, path: Path, **options: Any) -> Volume:
    """Read one of two scans; an error says which, and names the options of that one.

    Args:
        place: What the command line calls it: "structural", for example.
        path: As for `medfuse.read`.
        **options: As for `medfuse.read`.
    """
    from medfuse.io.files import read

    try:
        with usage_errors():
            volume = read(path, **options)
    except MedfuseError as error:
        hint = error.hint.replace("--series", f"--{place}-series").replace("--frame", f"--{place}-frame")
        raise type(error)(f"{place} scan: {error.args[0]}", hint) from error
    say_warnings(volume, place=f"{place} scan: ")
    return volume


def say_warnings(*volumes: Volume, place: str = "") -> None:
    """Print on standard error what reading a scan, or fusing two, left to be known."""
    for volume in volumes:
        for message in volume.warnings:
            typer.echo(f"warning: {place}{one_line(message)}", err=True)


def say_evidence(verdict: Verdict) -> None:
    """Print the numbers that the verdict on a registration rests on, below the line that tells the verdict."""
    from medfuse.alignment import told_evidence

    for line in told_evidence(verdict):
        typer.echo(f"         {line}")


def say_doubt(verdict: Verdict, told: str) -> None:
    """Print on standard error that a registration is not trusted."""
    if verdict.trust.value != "trusted":
        typer.echo(f"warning: {one_line(told)}. Look at the result before you rely on it", err=True)


def print_json(content: dict[str, Any]) -> None:
    """One object on standard output, for scripts."""
    typer.echo(json.dumps(content, indent=2, default=str))


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A callback (what, done, total) that draws a bar for each thing done; silent where nobody is watching."""
    if not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield update


def _silent(_what: str, _done: int, _total: int) -> None:
    """Nobody is watching."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a `ValueError` about a word of the command line into the command line's own error, exit code 2."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
