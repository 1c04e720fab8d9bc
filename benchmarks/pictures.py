"""Fused slices of the digital head, method beside method: `python benchmarks/pictures.py OUT_FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path

from medfuse import Engine, Transform, fuse
from medfuse.align import resample
from medfuse.color import Window
from medfuse.fusion import Display, display_of
from medfuse.report.figure import figure
from medfuse.sample.head import head_scans

METHODS = ("maximum", "dilran", "duet")
#: The slices shown, as shares of the head's height: the skull's base, deep grey matter, and the top of the cortex.
SHARES = (0.35, 0.55, 0.72)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="an existing folder, for mr-pet.png and mr-ct.png")
    given = parser.parse_args()
    scans = head_scans()
    truth = Transform(scans.mr_from_pet).inverse()
    rows = [round(scans.mr.grid.shape[0] * share) for share in SHARES]
    for name, functional in (("pet", scans.pet), ("ct", scans.ct)):
        columns = {"MR": (scans.mr, display_of(scans.mr, functional=False))}
        for method in METHODS:
            fused = fuse(scans.mr, functional, transform=truth, engine=Engine(method))
            columns[method] = (fused, Display(None if fused.is_color else Window(0, 1), None))
        columns[name.upper()] = (resample(functional, scans.mr.grid, truth), display_of(functional, functional=True))
        figure(columns, rows, 160).save(given.out / f"mr-{name}.png")


if __name__ == "__main__":
    main()
