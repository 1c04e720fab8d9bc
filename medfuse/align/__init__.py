"""Two volumes onto one grid: transform, registration, resampling."""

from medfuse.align.register import Registration, register
from medfuse.align.resample import overlap, resample
from medfuse.align.transform import Transform, read_transform, write_transform

__all__ = ["Registration", "Transform", "overlap", "read_transform", "register", "resample", "write_transform"]
