"""`medfuse convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfuse.cli.console import print_json, say_warnings, usage_errors
from medfuse.cli.options import (
    Allow2d,
    AllowGaps,
    AsJson,
    FillNan,
    Frame,
    Modality,
    Overwrite,
    Series,
    Units,
    path_argument,
)


def convert(
    source: Annotated[Path, path_argument(metavar="IN", help="A DICOM folder, zip or file, NIfTI, NRRD or MHA.")],
    out: Annotated[Path, path_argument(metavar="OUT", help="A file .nii, .nii.gz, .nrrd or .mha; or a DICOM folder.")],
    series: Series = None,
    modality: Modality = None,
    units: Units = None,
    frame: Frame = None,
    allow_gaps: AllowGaps = False,
    allow_2d: Allow2d = False,
    fill_nan: FillNan = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Convert one scan to another format. Voxels and their places stay as they are."""
    from medfuse.io.files import check_output, read, write

    check_output(out, overwrite=overwrite, inputs=(source,))
    with usage_errors():
        volume = read(
            source,
            series=series,
            modality=modality,
            fill_nan=fill_nan,
            frame=frame,
            allow_gaps=allow_gaps,
            allow_2d=allow_2d,
            units=units,
        )
    say_warnings(volume)
    written = write(volume, out, overwrite=overwrite, inputs=(source,))
    if as_json:
        print_json({"outputs": [str(path) for path in written], "shape": list(volume.grid.shape)})
        return
    typer.echo(f"written: {', '.join(path.name for path in written[:3])}{' …' if len(written) > 3 else ''}")
