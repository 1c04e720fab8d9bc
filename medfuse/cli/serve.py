"""`medfuse serve`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfuse.cli.console import usage_errors
from medfuse.cli.options import path_argument

if TYPE_CHECKING:
    from medfuse.pacs.settings import Settings


def serve(
    config: Annotated[Path, path_argument(help="YAML file of the node; examples/node.yaml shows every key.")],
    check: Annotated[bool, typer.Option("--check", help="Check the file and what it names, and end.")] = False,
) -> None:
    """Run a DICOM node that fuses what it is sent.

    A study is fused when it is complete, and the result sent on.

    It tells what it does on standard error, without patient data. Ctrl-C or SIGTERM ends it; whatever was under way, or
    was being fused when it was killed, is taken up at the next start.
    """
    from medfuse.pacs.network import check_installed
    from medfuse.pacs.settings import read_settings

    with usage_errors():
        check_installed()
    settings = read_settings(config)
    _check(settings, config.name)
    if check:
        typer.echo(f"{config.name}: in order")
        return
    from medfuse.pacs.node import Node
    from medfuse.pacs.work import fuse_by

    _log()
    os.umask(0o077)  # what the node keeps is for its own user, the databases in a folder that others may enter, too
    stopped = threading.Event()
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda *_: stopped.set())
    node = Node(settings, fuse_by(settings))
    try:
        node.start()
        while not stopped.wait(1.0):
            pass
    finally:
        node.stop()


def _check(settings: Settings, name: str) -> None:
    """Refuse what cannot work, before anything starts: rules, keys, authorizations and the folder."""
    from medfuse.pacs.priors import days_of
    from medfuse.pacs.rules import check_sendable, read_rules
    from medfuse.pacs.spool import check_place

    rules = read_rules(settings.rules)
    check_sendable(rules)
    settings.check()
    check_place(settings.spool)
    if settings.priors_from is None and days_of(rules) is not None:
        typer.echo(f"warning: {name} has no priors_from, so that within_days in the rules finds nothing", err=True)


def _log() -> None:
    """Our own words on standard error; those of libraries, which may name a patient, nowhere."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("medfuse")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    threading.excepthook = _untold


def _untold(arguments: threading.ExceptHookArgs) -> None:
    """A thread has ended in an error: of what class is all that may be told."""
    logging.getLogger("medfuse").critical("a thread ended: an unforeseen %s", arguments.exc_type.__name__)
