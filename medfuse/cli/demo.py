"""`medfuse demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfuse.cli.console import print_json, progress_bars, usage_errors
from medfuse.cli.options import AsJson, Device, Overwrite, path_option
from medfuse.defaults import NOTICE


def demo(
    out: Annotated[Path, path_option("-o", "--out", help="Folder to write to.")] = Path("demo"),
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make, register and fuse scans of a digital head. They are DICOM (MR, PET, CT), and the truth is known."""
    from medfuse.devices import choose_device
    from medfuse.output import check_target
    from medfuse.sample.demo import run_demo

    check_target(out, overwrite, ())
    with usage_errors():
        choose_device(device)
    with progress_bars() as progress:
        done = run_demo(out, device, overwrite, progress)
    if as_json:
        print_json(done.to_json())
        return
    typer.echo(f"The scans of the phantom lie {done.misalignment_mm:.1f} mm apart by their headers.")
    for name, error in done.error_mm.items():
        typer.echo(f"Registered {name.upper()} to MR: {error:.2f} mm from the truth, on average over the head.")
        typer.echo(f"  By {done.aligned[name]}.")
    typer.echo(f"scans:   {done.scans}")
    for path in done.fused.values():
        typer.echo(f"fused:   {path / 'dicom'} and {path / 'fused.nii.gz'}")
    typer.echo(f"picture: {done.figure}")
    typer.echo(NOTICE)
