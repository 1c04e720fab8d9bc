"""`medfuse run`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfuse.cli.console import print_json, progress_bars, usage_errors
from medfuse.cli.options import AsJson, Device, Threads, path_argument, path_option
from medfuse.defaults import NOTICE
from medfuse.errors import one_line

if TYPE_CHECKING:
    from medfuse.pacs.contract import Report
    from medfuse.pacs.study import PairResult


def run(
    in_dir: Annotated[
        Path | None, path_argument(metavar="[IN_DIR]", help="Folder of DICOM files; default as the environment says.")
    ] = None,
    out_dir: Annotated[Path | None, path_argument(metavar="[OUT_DIR]", help="Where to write, likewise.")] = None,
    rules: Annotated[
        Path | None, path_option(metavar="FILE", help="YAML file of rules; default PET, SPECT and CT with MR, or CT.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="folders, one for each pair, or flat; default flat where mercure's task.json is.")
    ] = None,
    require: Annotated[
        bool, typer.Option("--require", help="Refuse a folder in which nothing is to be fused.")
    ] = False,
    allow_failures: Annotated[
        bool, typer.Option("--allow-failures", help="Exit with 0 though pairs failed, if one was fused.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Fuse all pairs in a folder of DICOM files, by rules.

    The contract of containers for a PACS.
    """
    from medfuse.devices import choose_device
    from medfuse.pacs.contract import LAYOUTS, folders, read_settings
    from medfuse.pacs.contract import run as work_off
    from medfuse.pacs.study import Engines

    with usage_errors():
        in_dir, out_dir, host = folders(in_dir, out_dir)
        if layout is not None and layout not in LAYOUTS:
            raise ValueError(f"expected a layout of {', '.join(LAYOUTS)}, got {layout!r}")
        choose_device(device)
    settings = partial(
        read_settings,
        in_dir,
        rules,
        layout=layout or ("flat" if host == "mercure" else None),
        require=require,
        allow_failures=allow_failures,
    )
    with progress_bars() as progress:
        report = work_off(in_dir, out_dir, settings, Engines(device, threads), progress)
    if as_json:
        print_json(report.to_json())
    else:
        _tell(report)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _tell(report: Report) -> None:
    for pair in report.study.pairs:
        typer.echo(f"{pair.rule}: {_told(pair)}", err=pair.failure is not None)
        for message in pair.warnings:
            typer.echo(f"warning: {pair.rule}: {one_line(message)}", err=True)
    for series, reason in report.study.passed_over:
        number = "no number" if series.number is None else f"number {series.number}"
        typer.echo(f"passed over: {series.modality}, {number}, {series.slices} slices: {one_line(reason)}")
    for line in report.study.left_out:
        typer.echo(f"left out: {line}")
    typer.echo(report.told)
    typer.echo(NOTICE)


def _told(pair: PairResult) -> str:
    failure = pair.failure
    if failure:
        hint = f". {failure.hint}" if failure.hint else ""
        return f"failed: {failure.message}{hint}"
    of = f"{pair.structural.modality} {pair.structural.number} and {pair.functional.modality} {pair.functional.number}"
    return f"{of}, aligned by: {pair.alignment}; {len(pair.files)} files ({pair.seconds:.1f} s)"
