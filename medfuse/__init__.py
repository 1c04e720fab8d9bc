"""medfuse: two scans of one patient in, one fused series out.

    import medfuse

    fused = medfuse.fuse("MR", "PET")         # folders, or NIfTI files, or volumes
    medfuse.write(fused, "FUSED")             # a DICOM series; "fused.nii.gz" for NIfTI

Names are loaded when they are first used, so that reading an image does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medfuse._version import __version__

if TYPE_CHECKING:
    from medfuse.align import Registration, Transform, read_transform, register, resample, write_transform
    from medfuse.alignment import Alignment
    from medfuse.color import PALETTES, Percentiles, Window, parse_window
    from medfuse.errors import MedfuseError
    from medfuse.fusion import METHODS, Engine
    from medfuse.grid import Grid
    from medfuse.io.dicom_options import DicomOptions
    from medfuse.io.files import inspect, read, write
    from medfuse.pipeline import fuse
    from medfuse.volume import Modality, Pair, Source, Step, Unit, Volume

_HOMES = {
    "medfuse.align": ("Registration", "Transform", "read_transform", "register", "resample", "write_transform"),
    "medfuse.alignment": ("Alignment",),
    "medfuse.color": ("PALETTES", "Percentiles", "Window", "parse_window"),
    "medfuse.errors": ("MedfuseError",),
    "medfuse.fusion": ("METHODS", "Engine"),
    "medfuse.grid": ("Grid",),
    "medfuse.io.dicom_options": ("DicomOptions",),
    "medfuse.io.files": ("inspect", "read", "write"),
    "medfuse.pipeline": ("fuse",),
    "medfuse.volume": ("Modality", "Pair", "Source", "Step", "Unit", "Volume"),
}

__all__ = [
    "METHODS",
    "PALETTES",
    "Alignment",
    "DicomOptions",
    "Engine",
    "Grid",
    "MedfuseError",
    "Modality",
    "Pair",
    "Percentiles",
    "Registration",
    "Source",
    "Step",
    "Transform",
    "Unit",
    "Volume",
    "Window",
    "__version__",
    "fuse",
    "inspect",
    "parse_window",
    "read",
    "read_transform",
    "register",
    "resample",
    "write",
    "write_transform",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'medfuse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
