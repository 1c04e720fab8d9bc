"""The demonstration: the digital head scanned, registered, fused and written, and how far the registration was off."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.align import Transform, resample
from medfuse.alignment import Alignment, align
from medfuse.color import Window
from medfuse.fusion import Display, Engine, display_of
from medfuse.io.files import read
from medfuse.output import whole
from medfuse.pipeline import fuse, write_fused
from medfuse.report.figure import figure
from medfuse.sample.head import HeadScans, head_scans, write_sample
from medfuse.stages import Progress
from medfuse.volume import Volume

FIGURE = "fused.png"


@dataclass(frozen=True)
class Demo:
    """What the demonstration made, and what it found.

    Args:
        scans: Folder of the three DICOM series.
        fused: Folders of the fused series, by the functional modality: "pet" in colour and "ct" in grey.
        figure: The picture to look at.
        misalignment_mm: Mean distance, over points of the head, between where the headers put them and the truth.
        error_mm: The same after registration, by the functional modality.
        aligned: What each alignment rests on, with the verdict on its registration, by the functional modality.
    """

    scans: Path
    fused: dict[str, Path]
    figure: Path
    misalignment_mm: float
    error_mm: dict[str, float]
    aligned: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = asdict(self)
        return {**values, "scans": str(self.scans), "figure": str(self.figure)} | {
            "fused": {name: str(path) for name, path in self.fused.items()}
        }


def run_demo(out: Path, device: str = "auto", overwrite: bool = False, progress: Progress | None = None) -> Demo:
    """Make the sample, fuse it, and compare the registration with the known truth.

    Args:
        out: Folder to write to; it appears whole or not at all.
        device: Where the network runs.
        overwrite: Replace what an earlier demonstration wrote there.
        progress: Called as the work goes on.

    Raises:
        OutputError: The folder exists or cannot be written.
    """
    scans = head_scans()
    truth = Transform(scans.mr_from_pet).inverse()
    points = _head_points(scans)
    engine = Engine(device=device)
    errors, reasons = {}, {}
    columns = {}
    with whole(out, overwrite=overwrite) as beside:
        folders = write_sample(beside / "scans", scans)
        mr = read(folders.mr)
        columns["MR"] = (mr, display_of(mr, functional=False))
        for name, folder in (("pet", folders.pet), ("ct", folders.ct)):
            functional = read(folder)
            alignment = align(mr, functional, progress=progress)
            fused = fuse(mr, functional, transform=alignment, engine=engine, progress=progress)
            write_fused(fused, beside / f"fused-{name}", "both")
            errors[name] = float(alignment.transform.distance_mm(truth, points).mean())
            reasons[name] = alignment.reason
            columns |= _columns(name.upper(), functional, fused, alignment)
        depth = mr.grid.shape[0]
        figure(columns, [round(depth * share) for share in (0.35, 0.55, 0.72)]).save(beside / FIGURE)
    return Demo(
        scans=out / "scans",
        fused={name: out / f"fused-{name}" for name in errors},
        figure=out / FIGURE,
        misalignment_mm=float(Transform.identity().distance_mm(truth, points).mean()),
        error_mm=errors,
        aligned=reasons,
    )


def _columns(name: str, functional: Volume, fused: Volume, alignment: Alignment) -> dict[str, tuple[Volume, Display]]:
    """A column for the functional volume as it was laid on the MR, and one for the result."""
    laid = resample(functional, fused.grid, alignment.transform)
    shown = Display(None, None) if fused.is_color else Display(Window(0, 1), None)
    return {name: (laid, display_of(functional, functional=True)), f"MR + {name} fused": (fused, shown)}


def _head_points(scans: HeadScans) -> NDArray[np.float64]:
    """Points of the head, in the MR's world: every tenth of its voxels that are not air."""
    inside = np.argwhere(scans.mr.array > np.percentile(scans.mr.array, 50))
    return scans.mr.grid.points_mm(inside[::10])
