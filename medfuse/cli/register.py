"""`medfuse register`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfuse.cli.console import print_json, progress_bars, read_scan
from medfuse.cli.options import Allow2d, AllowGaps, As_json, FillNan, Frame, Overwrite, SeriesOf


def register(
    fixed: Annotated[Path, typer.Argument(help="The scan that stays: the structural one.")],
    moving: Annotated[Path, typer.Argument(help="The scan to lay on it.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Transform file to write, .tfm or .h5.")],
    kind: Annotated[str, typer.Option(help="rigid or affine.")] = "rigid",
    fixed_series: SeriesOf = None,
    moving_series: SeriesOf = None,
    fixed_frame: Frame = None,
    moving_frame: Frame = None,
    allow_gaps: AllowGaps = False,
    allow_2d: Allow2d = False,
    fill_nan: FillNan = None,
    overwrite: Overwrite = False,
    as_json: As_json = False,
) -> None:
    """Find and save the transform between two scans. `medfuse fuse --transform` takes it."""
    from medfuse.align import register as run
    from medfuse.align import write_transform
    from medfuse.align.register import KINDS
    from medfuse.align.transform import check_target

    if kind not in KINDS:
        raise typer.BadParameter(f"expected a kind of {', '.join(KINDS)}, got {kind!r}")
    check_target(out, overwrite=overwrite)
    both = {"fill_nan": fill_nan, "allow_gaps": allow_gaps, "allow_2d": allow_2d}
    pair = (
        read_scan("fixed", fixed, series=fixed_series, frame=fixed_frame, **both),
        read_scan("moving", moving, series=moving_series, frame=moving_frame, **both),
    )
    with progress_bars() as progress:
        found = run(*pair, kind, lambda done, total: progress("registering", done, total))
    write_transform(found.transform, out, overwrite=overwrite)
    if as_json:
        print_json({**found.to_json(), "outputs": [str(out)]})
        return
    typer.echo(
        f"moved:       {found.moved_mm:.2f} mm at most, {found.rotated_degrees:.2f}° (from the headers' alignment)"
    )
    typer.echo(f"information: {found.information_before:.3f} before, {found.information_after:.3f} after")
    typer.echo(f"uncertain:   {found.spread_mm:.2f} mm, by which halves of the scan, registered alone, differ")
    typer.echo(f"overlap:     {found.overlap:.0%} of the fixed scan")
    typer.echo(f"written:     {out}")
    typer.echo("Not verified: check the alignment by eye before you rely on it.")
