"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

As_json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]
FillNan = Annotated[
    float | None, typer.Option("--fill-nan", metavar="VALUE", help="Put this in place of NaN; otherwise refused.")
]
Series = Annotated[
    str | None, typer.Option("--series", help="UID, number or modality of the series, where a folder holds several.")
]
Modality = Annotated[
    str | None, typer.Option("--modality", help="ct, mr, pet or spect, where the file does not say or is wrong.")
]
Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write.")]
