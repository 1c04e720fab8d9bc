"""`medfuse train`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from medfuse.cli.console import print_json
from medfuse.cli.options import AsJson, Device, Out, Overwrite, path_argument, path_option


def train(
    config: Annotated[Path, path_argument(help="The training's YAML file.")],
    data: Annotated[Path, path_option(help="Folder that holds the images and volumes named in it.")],
    out: Out,
    device: Device = "auto",
    vgg: Annotated[Path | None, path_option(help="Weights of VGG19, for the perceptual loss.")] = None,
    start: Annotated[Path | None, path_option(help="Weights to begin with, rather than random ones.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted training stopped.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write the log for TensorBoard too.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train a network, and write its weights and logs. Under torchrun, on several GPUs."""
    from medfuse.cli.console import usage_errors
    from medfuse.devices import choose_device
    from medfuse.train import read_config
    from medfuse.train import train as run

    if not as_json:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    read = read_config(config)
    with usage_errors():
        figures = run(
            read,
            data,
            out,
            choose_device(device),
            vgg=vgg,
            start=start,
            resume=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
        )
    if as_json:
        print_json(figures)
    elif figures:
        typer.echo(f"written: {out}")
