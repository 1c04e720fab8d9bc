"""`medfuse push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfuse.cli.console import print_json, progress_bars, usage_errors
from medfuse.cli.options import AsJson, AuthorizationFrom, Ca, Certificate, Key, OurTitle, UseTls, path_argument
from medfuse.defaults import AE_TITLE
from medfuse.errors import NetworkError, UnreadableFile


def push(
    folder: Annotated[Path, path_argument(help="DICOM files, recognised by content; or one.")],
    to: Annotated[str, typer.Option(metavar="PLACE", help="AE_TITLE@HOST:PORT, or the base URL of DICOMweb.")],
    ae_title: OurTitle = AE_TITLE,
    tls: UseTls = False,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    authorization_from: AuthorizationFrom = "",
    as_json: AsJson = False,
) -> None:
    """Send DICOM files to a node (C-STORE) or a service (STOW-RS)."""
    from medfuse.pacs.network import check_installed, to_destination, to_tls

    with usage_errors():
        check_installed()
        place = to_destination(to, to_tls(tls, ca, certificate, key), authorization_from)
    from medfuse.pacs.client import dicom_files
    from medfuse.pacs.send import send

    files, others = dicom_files(folder)
    sent = 0
    with progress_bars() as progress:
        try:
            for sent, _ in enumerate(send(files, place, ae_title), start=1):
                progress("sending", sent, len(files))
        except (NetworkError, UnreadableFile) as error:
            told = f"{error.args[0]}; {sent} of {len(files)} files were accepted"
            raise type(error)(told, error.hint) from error
    if as_json:
        print_json({"sent": sent, "ignored": others})
        return
    typer.echo(f"sent: {sent} files{f'; {others} are not DICOM' if others else ''}")
