"""`medfuse register`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfuse.cli.console import print_json, progress_bars, usage_errors
from medfuse.cli.options import As_json, FillNan, Overwrite


def register(
    fixed: Annotated[Path, typer.Argument(help="The scan that stays: the structural one.")],
    moving: Annotated[Path, typer.Argument(help="The scan to lay on it.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Transform file to write, .tfm or .h5.")],
    kind: Annotated[str, typer.Option(help="rigid or affine.")] = "rigid",
    fixed_series: Annotated[str | None, typer.Option(help="UID, number or modality of the series.")] = None,
    moving_series: Annotated[str | None, typer.Option(help="UID, number or modality of the series.")] = None,
    fill_nan: FillNan = None,
    overwrite: Overwrite = False,
    as_json: As_json = False,
) -> None:
    """Find the transform that lays one scan on another, and save it for `medfuse fuse --transform`."""
    from medfuse.align import register as run
    from medfuse.align import write_transform
    from medfuse.align.transform import check_target
    from medfuse.io.files import read

    check_target(out, overwrite=overwrite)
    with usage_errors():
        pair = (
            read(fixed, series=fixed_series, fill_nan=fill_nan),
            read(moving, series=moving_series, fill_nan=fill_nan),
        )
    with progress_bars() as progress, usage_errors():
        found = run(*pair, kind, lambda done, total: progress("registering", done, total))
    write_transform(found.transform, out, overwrite=overwrite)
    if as_json:
        print_json({**found.to_json(), "outputs": [str(out)]})
        return
    typer.echo(
        f"moved:       {found.moved_mm:.2f} mm at most, {found.rotated_degrees:.2f}° (from the headers' alignment)"
    )
    typer.echo(f"information: {found.information_before:.3f} before, {found.information_after:.3f} after")
    typer.echo(f"overlap:     {found.overlap:.0%} of the fixed scan")
    typer.echo(f"written:     {out}")
    typer.echo("Not verified: check the alignment by eye before you rely on it.")
