"""Slices of two volumes as pairs of pictures, for `medfuse bench`: `python benchmarks/slices.py CT PET FOLDER`.

They are shown as `medfuse fuse` shows them, on the grid of the first; those with next to nothing of the second are left
out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfuse import read
from medfuse.benchmark.volumes import shown_together
from medfuse.io.pictures import write_picture

#: A slice is taken where more of it than this share is lighter than this in the second volume.
SHARE, LIGHT = 0.002, 0.05


def main(
    first: Annotated[Path, typer.Argument(help="MR or CT")],
    second: Annotated[Path, typer.Argument(help="PET, SPECT, CT or MR, in the same world")],
    folder: Annotated[Path, typer.Argument(help="Gets a folder for each of the two modalities; is added to.")],
    first_modality: Annotated[str | None, typer.Option(help="Where the file does not say")] = None,
    second_modality: Annotated[str | None, typer.Option(help="Likewise")] = None,
    name: Annotated[str, typer.Option(help="What the pictures' names begin with")] = "",
    every: Annotated[int, typer.Option(min=1, help="Take one slice of so many")] = 1,
) -> None:
    """Write the pictures, and print how many."""
    structural, functional = read(first, modality=first_modality), read(second, modality=second_modality)
    sources = shown_together(structural, functional)
    count = 0
    for index in range(0, len(structural.array), every):
        if (sources[1][0][index] > LIGHT).mean() <= SHARE:
            continue
        for volume, (luminance, chroma) in zip((structural, functional), sources, strict=True):
            place = folder / volume.modality.value.lower()
            place.mkdir(parents=True, exist_ok=True)
            write_picture(place / f"{name}{index:04d}.png", luminance[index], None if chroma is None else chroma[index])
        count += 1
    print(f"{count} pairs")


if __name__ == "__main__":
    typer.run(main)
