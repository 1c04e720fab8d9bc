"""`medfuse register`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfuse.cli.console import print_json, progress_bars, read_scan, say_doubt, say_evidence
from medfuse.cli.options import (
    AcceptUntrusted,
    Allow2d,
    AllowGaps,
    AnyPatient,
    AsJson,
    FillNan,
    Frame,
    Overwrite,
    SeriesOf,
    Threads,
    path_argument,
    path_option,
)


def register(
    fixed: Annotated[Path, path_argument(help="The scan that stays: the structural one.")],
    moving: Annotated[Path, path_argument(help="The scan to lay on it.")],
    out: Annotated[Path, path_option("-o", "--out", help="Transform file to write: .tfm, .h5, or .txt if linear.")],
    kind: Annotated[str, typer.Option(help="rigid, affine or deformable.")] = "rigid",
    accept_untrusted: AcceptUntrusted = False,
    fixed_series: SeriesOf = None,
    moving_series: SeriesOf = None,
    fixed_frame: Frame = None,
    moving_frame: Frame = None,
    allow_gaps: AllowGaps = False,
    allow_2d: Allow2d = False,
    fill_nan: FillNan = None,
    any_patient: AnyPatient = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Find the transform between two scans, judge it and save it. `medfuse fuse --transform` takes it."""
    from medfuse.align import register as run
    from medfuse.align import write_transform
    from medfuse.align.register import KINDS
    from medfuse.align.transform import check_transform_target
    from medfuse.alignment import refuse_failed, told
    from medfuse.pipeline import check_patients

    if kind not in KINDS:
        raise typer.BadParameter(f"expected a kind of {', '.join(KINDS)}, got {kind!r}")
    inputs = (fixed, moving)
    check_transform_target(out, overwrite=overwrite, deformable=kind == "deformable", inputs=inputs)
    both = {"fill_nan": fill_nan, "allow_gaps": allow_gaps, "allow_2d": allow_2d}
    pair = (
        read_scan("fixed", fixed, series=fixed_series, frame=fixed_frame, **both),
        read_scan("moving", moving, series=moving_series, frame=moving_frame, **both),
    )
    check_patients(*pair, any_patient=any_patient)
    with progress_bars() as progress:
        found = run(*pair, kind, progress=lambda done, total: progress("registering", done, total), threads=threads)
    if not accept_untrusted:
        refuse_failed(found)
    write_transform(found.transform, out, overwrite=overwrite, inputs=inputs)
    say_doubt(found.verdict, told(found))
    if as_json:
        print_json({**found.to_json(), "outputs": [str(out)]})
        return
    typer.echo(f"found:   {told(found)}")
    say_evidence(found.verdict)
    typer.echo(f"written: {out}")
