"""Fused slices of the digital head, method beside method, and what they make of two details.

`python benchmarks/pictures.py OUT_FOLDER`
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.color import rgb2lab

from medfuse import Engine, Transform, Volume, fuse
from medfuse.align import resample
from medfuse.color import Window
from medfuse.fusion import Display, display_of
from medfuse.report.figure import figure
from medfuse.sample.anatomy import tissue_at
from medfuse.sample.head import HeadScans, head_scans
from medfuse.sample.organs import Tissue

METHODS = ("maximum", "dilran", "duet")
#: The slices shown, as shares of the head's height: the skull's base, deep grey matter, and the top of the cortex.
SHARES = (0.35, 0.55, 0.72)
#: A voxel is of a tissue from this share of it on.
MOSTLY = 0.5
#: From this share of the highest uptake of grey matter on, it is hot.
HOT = 0.8
#: How far what surrounds a detail lies from it, mm.
AROUND = (3.0, 12.0)

Mask = NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="an existing folder, for mr-pet.png and mr-ct.png")
    given = parser.parse_args()
    scans = head_scans()
    truth = Transform(scans.mr_from_pet).inverse()
    rows = [round(scans.mr.grid.shape[0] * share) for share in SHARES]
    tissues = tissues_of(scans)
    for name, functional in (("pet", scans.pet), ("ct", scans.ct)):
        shown = display_of(functional, functional=True)
        moved = resample(functional, scans.mr.grid, truth)
        columns = {"MR": (scans.mr, display_of(scans.mr, functional=False))}
        for method in METHODS:
            fused = fuse(scans.mr, functional, transform=truth, engine=Engine(method))
            columns[method] = (fused, Display(None if fused.is_color else Window(0, 1), None))
            if name == "pet":
                print(f"{method}: {hottest_grey_matter(tissues, shown.show(moved.array)[0], fused)}")
            else:
                print(f"{method}: {calcification(tissues, fused)}")
        columns[name.upper()] = (moved, shown)
        figure(columns, rows, 160).save(given.out / f"mr-{name}.png")


def tissues_of(scans: HeadScans) -> dict[Tissue, Mask]:
    """The voxels of the MR that are of each tissue."""
    grid = scans.mr.grid
    points = grid.points_mm(np.indices(grid.shape).reshape(3, -1).T)
    shares = tissue_at(Transform(scans.head_from_mr).apply(points).T)
    return {one: shares[one].reshape(grid.shape) >= MOSTLY for one in Tissue}


def hottest_grey_matter(tissues: dict[Tissue, Mask], uptake: NDArray[np.float32], fused: Volume) -> str:
    """How light grey matter is where uptake is highest, and the white matter around it."""
    hottest = tissues[Tissue.GREY] & (uptake >= HOT * uptake[tissues[Tissue.GREY]].max())
    beside = tissues[Tissue.WHITE] & around(hottest, fused)
    hot, white = (rgb2lab(fused.array[mask])[:, 0].mean() for mask in (hottest, beside))
    return f"CIELAB lightness {hot:.0f} of the hottest grey matter, {white:.0f} of the white matter around it"


def calcification(tissues: dict[Tissue, Mask], fused: Volume) -> str:
    """By how much of the picture's range a calcification stands out from what is around it."""
    spot = tissues[Tissue.CALCIUM]
    contrast = np.median(fused.array[spot]) - np.median(fused.array[around(spot, fused)])
    return f"calcification {contrast:.2f} above its surroundings"


def around(spot: Mask, fused: Volume) -> Mask:
    """The voxels around others."""
    distance: NDArray[np.float64] = distance_transform_edt(~spot, sampling=fused.grid.spacing_mm)
    return (distance >= AROUND[0]) & (distance <= AROUND[1])


if __name__ == "__main__":
    main()
