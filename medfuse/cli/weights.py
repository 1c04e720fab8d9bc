"""`medfuse weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfuse.cli.console import print_json
from medfuse.cli.options import AsJson, Overwrite, path_argument

app = typer.Typer(help="Weights of the learned methods.", rich_markup_mode=None)


@app.callback()
def weights() -> None:
    """Weights of the learned methods."""


@app.command()
def convert(
    checkpoint: Annotated[Path, path_argument(help="A published checkpoint: .pt, .safetensors, .npz.")],
    out: Annotated[Path, path_argument(help="The file to write, .safetensors.")],
    network: Annotated[str, typer.Option(help="Which network it is of.")] = "dilran",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Turn a published checkpoint into weights. No code in it is run; `medfuse fuse --weights` takes the result."""
    from medfuse.fusion.weights import CONVERTIBLE, to_bytes
    from medfuse.fusion.weights import convert as run
    from medfuse.output import whole

    if network not in CONVERTIBLE:
        raise typer.BadParameter(f"expected a network of {', '.join(CONVERTIBLE)}, got {network!r}")
    with whole(out, overwrite=overwrite, inputs=(checkpoint,)) as beside:
        beside.write_bytes(to_bytes(run(network, checkpoint), {"network": network}))
    if as_json:
        print_json({"outputs": [str(out)], "network": network})
        return
    typer.echo(f"written: {out}")


@app.command()
def download(
    out: Annotated[Path, path_argument(help="The file to write, .safetensors.")],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Fetch VGG19 from where torchvision publishes it (548 MB), and keep the 2 MB that medfuse uses of it.

    For `medfuse fuse --method zero-learning --weights` and `medfuse train --vgg`.
    """
    from medfuse.fusion.weights import download_vgg19, to_bytes
    from medfuse.output import whole

    with whole(out, overwrite=overwrite) as beside:
        beside.write_bytes(to_bytes(download_vgg19(), {"network": "vgg19"}))
    if as_json:
        print_json({"outputs": [str(out)], "network": "vgg19"})
        return
    typer.echo(f"written: {out}")
