"""`medfuse info` and `medfuse methods`: what there is to fuse, and how."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from medfuse.cli.console import print_json
from medfuse.cli.options import AsJson, path_argument
from medfuse.errors import one_line


def info(
    path: Annotated[Path, path_argument(help="A folder, zip or file.")],
    as_json: AsJson = False,
) -> None:
    """Say what a path holds. Series, modality, geometry, units; what can be used, and why the rest cannot."""
    from medfuse.io.files import inspect

    inspection = inspect(path)
    if as_json:
        print_json(inspection.to_json())
        return
    for series in inspection.series:
        _tell(series)
    for reason in inspection.left_out:
        typer.echo(f"left out: {reason}")
    if not inspection.series:
        typer.echo("no series that could be fused")


def _tell(series: Any) -> None:
    part = f":{series.part} ({series.label})" if series.part else ""
    name = f"series {series.number}{part}" if series.format == "dicom" else one_line(series.name)
    described = f" {series.description!r}" if series.description else ""
    typer.echo(f"{name}: {series.modality}{described}, {series.files} file{'s' if series.files > 1 else ''}")
    if series.uid:
        typer.echo(f"  uid       {one_line(series.uid)}")
    if series.by_medfuse:
        typer.echo("  made by   medfuse")
    if series.shape:
        typer.echo(f"  voxels    {' × '.join(str(n) for n in series.shape)} (slices × rows × columns)")
    if series.frames:
        labels = f": 1 ({series.frames[0]}) to the last ({series.frames[-1]})" if series.frames[0] else ""
        typer.echo(f"  frames    {len(series.frames)}{labels}")
    if series.spacing_mm:
        typer.echo(f"  spacing   {' × '.join(f'{size:.4g}' for size in series.spacing_mm)} mm, {series.orientation}")
    if series.origin_mm:
        typer.echo(f"  origin    {', '.join(f'{value:.2f}' for value in series.origin_mm)} mm (LPS)")
    if series.unit:
        factor = f" (rescaled values × {series.suv_factor:.7g})" if series.suv_factor else ""
        typer.echo(f"  unit      {series.unit}{factor}")
    for warning in series.warnings:
        typer.echo(f"  warning   {one_line(warning)}")
    typer.echo("  usable    yes" if series.usable else f"  usable    no: {series.reason}")


def methods(as_json: AsJson = False) -> None:
    """List the fusion methods and their strategies."""
    from medfuse.fusion import METHODS

    if as_json:
        print_json({name: asdict(entry) for name, entry in METHODS.items()})
        return
    for name, entry in METHODS.items():
        typer.echo(f"{name:10} {entry.summary} ({entry.reference})")
        if entry.strategies:
            typer.echo(f"{'':10} --strategy {', '.join(entry.strategies)}")
