"""`medfuse score`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from medfuse.cli.console import print_json, progress_bars, usage_errors
from medfuse.cli.options import AsJson, Device, SeriesOf, path_argument
from medfuse.cli.tables import print_table

if TYPE_CHECKING:
    from medfuse.metrics import Convention


def score(
    fused: Annotated[Path, path_argument(help="The result: an image, or a volume as `medfuse fuse` writes it.")],
    structural: Annotated[Path, path_argument(metavar="A", help="The structural source, likewise.")],
    functional: Annotated[Path, path_argument(metavar="B", help="The functional source, likewise.")],
    convention: Annotated[str, typer.Option(help="How to measure: standard or paper.")] = "standard",
    window: Annotated[
        str | None, typer.Option(help="Of volumes: the window that B was fused with; default as FUSED's history says.")
    ] = None,
    structural_window: Annotated[str | None, typer.Option(help="Of volumes: the window of A, likewise.")] = None,
    palette: Annotated[str | None, typer.Option(help="Of volumes: the palette of B, likewise, or HOT_IRON.")] = None,
    fused_series: SeriesOf = None,
    structural_series: SeriesOf = None,
    functional_series: SeriesOf = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure one result against its two sources. Three images, or three volumes on one grid, slice by slice."""
    from medfuse.benchmark import score_result

    with usage_errors(), progress_bars() as progress:
        result = score_result(
            fused,
            structural,
            functional,
            convention=cast("Convention", convention),
            window=window,
            structural_window=structural_window,
            palette=palette,
            series=(fused_series, structural_series, functional_series),
            device=device,
            progress=partial(progress, "measuring"),
        )
    if as_json:
        print_json(result.to_json())
        return
    print_table(result.title, result.cells(), result.to_markdown())
