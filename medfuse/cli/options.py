"""Options that several commands share, each written once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]
FillNan = Annotated[
    float | None, typer.Option("--fill-nan", metavar="VALUE", help="Put this in place of NaN; otherwise refused.")
]
Series = Annotated[
    str | None,
    typer.Option("--series", help="UID, number or modality of the series, where several; with :N for part N of it."),
]
SeriesOf = Annotated[str | None, typer.Option(help="UID, number or modality of the series; with :N for part N of it.")]
Frame = Annotated[
    int | None, typer.Option(metavar="N", help="Time point, from 1, of a scan with several; otherwise refused.")
]
AllowGaps = Annotated[
    bool, typer.Option("--allow-gaps", help="Resample slices at uneven distances; otherwise refused.")
]
Allow2d = Annotated[bool, typer.Option("--allow-2d", help="Take a single image as one slice; otherwise refused.")]
Modality = Annotated[
    str | None, typer.Option("--modality", help="ct, mr, pet or spect, where the file does not say or is wrong.")
]
Units = Annotated[
    str | None, typer.Option("--units", help="suv or native; default PET in SUV where the headers allow it.")
]
#: Paths are looked at by what reads or writes them, which says what is wrong with them and by which exit code.
path_argument = partial(typer.Argument, readable=False)
path_option = partial(typer.Option, readable=False)

Out = Annotated[Path, path_option("-o", "--out", help="Where to write.")]
AnyPatient = Annotated[bool, typer.Option("--any-patient", help="Do not ask whether both scans are of one patient.")]
AcceptUntrusted = Annotated[
    bool, typer.Option("--accept-untrusted", help="Use a registration that is doubtful or failed, too.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Threads to work with; default all cores.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
OurTitle = Annotated[str, typer.Option("--aet", metavar="AE_TITLE", help="Our AE title.")]
UseTls = Annotated[bool, typer.Option("--tls", help="TLS to a DICOM node; the system's authorities, unless --ca.")]
Ca = Annotated[Path | None, path_option("--ca", metavar="FILE", help="Authorities to trust, PEM.")]
Certificate = Annotated[Path | None, path_option("--certificate", metavar="FILE", help="Our certificate, PEM.")]
Key = Annotated[Path | None, path_option("--key", metavar="FILE", help="Its private key, PEM.")]
AuthorizationFrom = Annotated[
    str,
    typer.Option(metavar="VARIABLE", help="Environment variable that holds the HTTP header Authorization."),
]
