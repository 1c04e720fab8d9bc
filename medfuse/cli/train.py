"""`medfuse train`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from medfuse.cli.console import print_json
from medfuse.cli.options import As_json, Out


def train(
    config: Annotated[Path, typer.Argument(help="The training's YAML file.")],
    data: Annotated[Path, typer.Option(help="Folder that holds the sets of images named in it.")],
    out: Out,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    as_json: As_json = False,
) -> None:
    """Train a network, and write its weights and log."""
    from medfuse.cli.console import usage_errors
    from medfuse.fusion import choose_device
    from medfuse.train import read_config
    from medfuse.train import train as run

    if not as_json:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    with usage_errors():
        chosen = choose_device(device)
    report = run(read_config(config), data, out, str(chosen))
    if as_json:
        print_json(report)
        return
    typer.echo(f"written: {out}")
