"""`medfuse bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from medfuse.cli.console import progress_bars, usage_errors
from medfuse.cli.options import Device, Overwrite, path_argument, path_option
from medfuse.cli.tables import print_table

if TYPE_CHECKING:
    from medfuse.metrics import Convention


def bench(
    folder: Annotated[Path, path_argument(metavar="DIR", help="Folder of two folders of same-named 2-D images.")],
    structural: Annotated[str, typer.Option(help="The folder of structural images, for example mri.")],
    functional: Annotated[str, typer.Option(help="The folder of functional images, for example pet, spect or ct.")],
    functional_modality: Annotated[
        str | None, typer.Option(help="pet, spect, ct or mr, where the folder's name does not say.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="all, or a list with commas: NAME, NAME:STRATEGY, NAME@WEIGHTS.safetensors.")
    ] = "all",
    save: Annotated[Path | None, path_option(help="Folder for the fused images, METHOD/NAME.png.")] = None,
    json_file: Annotated[Path | None, path_option("--json", metavar="FILE", help="Write the table as JSON.")] = None,
    csv_file: Annotated[Path | None, path_option("--csv", metavar="FILE", help="Write the table as CSV.")] = None,
    markdown_file: Annotated[
        Path | None, path_option("--markdown", metavar="FILE", help="Write the table as Markdown.")
    ] = None,
    convention: Annotated[str, typer.Option(help="How to measure: standard or paper.")] = "standard",
    device: Device = "auto",
    names: Annotated[
        str | None, typer.Option(metavar="PATTERNS", help="Only pairs so named, for example '28???,33???'.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many pairs, spread evenly over all of them.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare fusion methods on a folder of image pairs. Copies and fixed blends always stand beside them."""
    from medfuse.benchmark import Outputs, run

    with usage_errors(), progress_bars() as progress:
        table = run(
            folder,
            structural=structural,
            functional=functional,
            functional_modality=functional_modality,
            methods=methods,
            convention=cast("Convention", convention),
            device=device,
            names=names,
            limit=limit,
            outputs=Outputs(save, json_file, csv_file, markdown_file),
            overwrite=overwrite,
            progress=progress,
        )
    if table.left_out:
        typer.echo(f"left out, without a partner of the same name: {table.left_out}", err=True)
    print_table(table.title, table.cells(), table.to_markdown())
