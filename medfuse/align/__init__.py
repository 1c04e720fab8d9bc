"""Two volumes onto one grid: transform, registration, resampling."""

from medfuse.align.register import Registration, register
from medfuse.align.resample import overlap, resample
from medfuse.align.transform import Transform, read_transform, write_transform
from medfuse.align.verdict import Evidence, Trust, Verdict
from medfuse.align.warp import Warp

__all__ = [
    "Evidence",
    "Registration",
    "Transform",
    "Trust",
    "Verdict",
    "Warp",
    "overlap",
    "read_transform",
    "register",
    "resample",
    "write_transform",
]
