"""`medfuse pull`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medfuse.cli.console import print_json, progress_bars, usage_errors
from medfuse.cli.options import (
    AsJson,
    AuthorizationFrom,
    Ca,
    Certificate,
    Key,
    OurTitle,
    Overwrite,
    UseTls,
    path_option,
)
from medfuse.defaults import AE_TITLE
from medfuse.errors import one_line


def pull(
    at: Annotated[
        str, typer.Option("--from", metavar="PLACE", help="AE_TITLE@HOST:PORT, or the base URL of DICOMweb.")
    ],
    out: Annotated[Path | None, path_option("-o", "--out", help="A folder to write; without it, only list.")] = None,
    study: Annotated[str | None, typer.Option(metavar="UID", help="Study Instance UID.")] = None,
    series: Annotated[str | None, typer.Option(metavar="UID", help="Series Instance UID, with --study.")] = None,
    accession: Annotated[str | None, typer.Option(help="Accession Number of the study.")] = None,
    patient: Annotated[str | None, typer.Option(help="Patient ID.")] = None,
    date: Annotated[str | None, typer.Option(help="Study Date as YYYYMMDD, or a range YYYYMMDD-YYYYMMDD.")] = None,
    several: Annotated[bool, typer.Option("--all", help="Take all studies that match; otherwise more are refused.")] = (
        False
    ),
    move: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="C-MOVE instead of C-GET: where we listen for our AE title."),
    ] = None,
    ae_title: OurTitle = AE_TITLE,
    tls: UseTls = False,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    authorization_from: AuthorizationFrom = "",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Fetch studies from a DICOM node or a web service.

    By C-FIND, then C-GET or C-MOVE, or by QIDO-RS and WADO-RS.
    """
    from medfuse.pacs.network import check_installed, to_destination, to_listener, to_tls

    matches = {"study": study, "accession": accession, "patient": patient, "date": date}
    wanted = {name: value for name, value in matches.items() if value}
    with usage_errors():
        check_installed()
        place = to_destination(at, to_tls(tls, ca, certificate, key), authorization_from)
        listen = to_listener(move) if move else None
        if not wanted:
            raise ValueError("expected --study, --accession, --patient or --date, got none of them")
        if series and not study:
            raise ValueError("expected --study with --series, got --series alone")
    from medfuse.output import whole
    from medfuse.pacs.client import find, studies
    from medfuse.pacs.client import pull as fetch

    found = find(place, wanted, ae_title)
    if out is None:
        if as_json:
            print_json({"studies": [asdict(one) for one in found]})
            return
        for one in found:
            told = f"{one.uid}  {one.date}  {'/'.join(one.modalities)}  {one.instances or '?'} instances"
            typer.echo(one_line(told))
        return
    uids = studies(found, several=several)
    with progress_bars() as progress, whole(out, overwrite=overwrite) as beside:
        beside.mkdir()
        total = sum(one.instances or 0 for one in found)
        for uid in uids:
            fetch(uid, series, place, beside, ae_title, listen, lambda done: progress("fetching", done, total))
        files = sum(1 for _ in beside.iterdir())
    if as_json:
        print_json({"studies": len(uids), "files": files, "out": str(out)})
        return
    typer.echo(f"written: {files} files of {len(uids)} studies to {out}")
