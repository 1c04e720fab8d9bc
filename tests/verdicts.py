"""Registrations made up for tests: a transform, and whatever verdict on it."""

from __future__ import annotations

import numpy as np

from medfuse.align import Registration, Transform
from medfuse.align.verdict import Evidence, Trust, Verdict

SHIFT = Transform(np.array([[1, 0, 0, 4.5], [0, 1, 0, -3], [0, 0, 1, 2], [0, 0, 0, 1.0]]))
REASON = "independent runs differ by too much"


def registration(trust: str, kind: str = "rigid", uncertainty_mm: float = 0.4) -> Registration:
    """One that found `SHIFT`, which moves everything by 5.8 mm."""
    evidence = Evidence(
        agreement_mm={"start": uncertainty_mm / 2, "inverse": uncertainty_mm},
        start_mm=20.0,
        rival=0.6,
        nmi_before=1.02,
        nmi_after=1.19,
        overlap_before=0.81,
        overlap_after=0.99,
        shift_mm=5.8,
        moved_mm=5.8,
        rotated_degrees=0.0,
        folded=0.001 if kind == "deformable" else None,
    )
    reasons = () if trust == "trusted" else (REASON,)
    return Registration(transform=SHIFT, kind=kind, verdict=Verdict(Trust(trust), reasons, evidence))
