"""Can a registration be trusted? The evidence, in numbers, and what is concluded from it.

docs/alignment.md says what each number means and how the limits were found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from math import isfinite
from typing import Any


class Trust(str, Enum):
    """What a registration may be used for."""

    TRUSTED = "trusted"  #: use it
    DOUBTFUL = "doubtful"  #: look at it before it is used; the header's alignment is taken where there is one
    FAILED = "failed"  #: do not use it


@dataclass(frozen=True)
class Evidence:
    """What is known about a registration once it has ended. Distances are means over the smaller volume's body.

    Args:
        agreement_mm: By independent run, how far it ended from the transform found, mm: "start" (the same from
            elsewhere), "inverse" (the larger volume laid on the smaller), "engine" (another measure, optimizer and
            library) and "halves" (each half of the smaller volume alone, along each axis: RMS of the six).
        start_mm: How far from the transform found the other start lay.
        rival: Score of the best pose elsewhere as a share of this one's, at a coarse resolution; the score is what
            normalized mutual information has above 1, times the share of the smaller volume inside the larger. It can
            exceed 1: a pose turned by more than 90° against the headers is taken only if it scores 1.05 times as high.
        nmi_before: Normalized mutual information (Studholme et al. 1999, 1 to 2) at the header's alignment; 1 where
            too little overlaps.
        nmi_after: The same at the transform found; higher is better.
        overlap_before: Share, 0 to 1, of the smaller volume's body inside the larger volume, by the headers.
        overlap_after: The same at the transform found.
        shift_mm: Distance between the header's alignment and the one found.
        moved_mm: The largest such distance, at the fixed grid's corners.
        rotated_degrees: Angle of the rotation in the transform.
        stretched: Largest share by which a transform lengthens or shortens; None for a rigid one.
        folded: Share of the fixed volume's space that a deformable transform folds (Jacobian at most 0); None for a
            linear one.
    """

    agreement_mm: Mapping[str, float]
    start_mm: float
    rival: float
    nmi_before: float
    nmi_after: float
    overlap_before: float
    overlap_after: float
    shift_mm: float
    moved_mm: float
    rotated_degrees: float
    stretched: float | None = None
    folded: float | None = None

    @property
    def uncertainty_mm(self) -> float:
        """The largest disagreement of the independent runs."""
        return max(self.agreement_mm.values(), default=float("inf"))


@dataclass(frozen=True)
class Verdict:
    """What was concluded, and why.

    Args:
        trust: The conclusion.
        reasons: Why it is not trusted, in words; empty where it is.
        evidence: The numbers it rests on.
    """

    trust: Trust
    reasons: tuple[str, ...]
    evidence: Evidence

    def to_json(self) -> dict[str, Any]:
        """Plain values, flat; a number that is not finite becomes None."""
        numbers = {**vars(self.evidence), "uncertainty_mm": self.evidence.uncertainty_mm}
        return {"trust": self.trust.value, "reasons": list(self.reasons), **_plain(numbers)}


@dataclass(frozen=True)
class Limits:
    """How bad the evidence may be; each number as in `Evidence`.

    Args:
        agreement_mm: How far an independent run may end.
        of_start: The same as a share of `start_mm`; the shorter of the two holds, for runs that begin near one another
            agree on anything.
        runs: How many may end beyond.
    """

    agreement_mm: float
    of_start: float
    runs: int
    rival: float
    nmi_after: float
    overlap_after: float
    stretched: float
    folded: float


#: Beyond these a registration is doubtful,
TRUSTED = Limits(
    agreement_mm=3.0, of_start=1 / 3, runs=0, rival=0.85, nmi_after=1.01, overlap_after=0.25, stretched=0.15, folded=0.0
)
#: and beyond these it has failed: one run alone may have lost its way.
DOUBTFUL = Limits(
    agreement_mm=15.0, of_start=1.5, runs=1, rival=0.95, nmi_after=1.01, overlap_after=0.1, stretched=0.5, folded=0.02
)

RUNS = {
    "start": "a run from another start ended",
    "inverse": "the inverse direction ended",
    "engine": "another engine ended",
    "halves": "halves of the smaller scan, registered alone, ended",
}


def judge(evidence: Evidence) -> Verdict:
    """What the evidence allows, by the limits above."""
    for trust, limits in ((Trust.FAILED, DOUBTFUL), (Trust.DOUBTFUL, TRUSTED)):
        reasons = tuple(_excesses(evidence, limits))
        if reasons:
            return Verdict(trust, reasons, evidence)
    return Verdict(Trust.TRUSTED, (), evidence)


def _excesses(evidence: Evidence, limits: Limits) -> Iterator[str]:
    """What lies beyond limits, in words."""
    limit_mm = min(limits.agreement_mm, limits.of_start * evidence.start_mm)
    far = {run: distance for run, distance in evidence.agreement_mm.items() if not distance <= limit_mm}
    if len(far) > limits.runs:
        for run, distance in far.items():
            where = f"{distance:.1f} mm away" if isfinite(distance) else "nowhere"
            yield f"{RUNS.get(run, run)} {where} (limit {limit_mm:.2g} mm)"
    if evidence.rival > limits.rival:
        yield f"an alignment elsewhere scores {evidence.rival:.1%} as high (limit {limits.rival:.0%})"
    if evidence.nmi_after < limits.nmi_after:
        yield f"the scans tell next to nothing of each other ({evidence.nmi_after:.3f}, limit {limits.nmi_after:g})"
    if evidence.overlap_after < limits.overlap_after:
        yield f"only {evidence.overlap_after:.0%} of the smaller scan's body overlap (limit {limits.overlap_after:.0%})"
    if evidence.stretched is not None and evidence.stretched > limits.stretched:
        yield f"it stretches the scan by {evidence.stretched:.0%} (limit {limits.stretched:.0%})"
    if evidence.folded is not None and evidence.folded > limits.folded:
        yield f"it folds {evidence.folded:.2%} of the space (limit {limits.folded:.0%})"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) if isinstance(value, Mapping) else _rounded(value) for name, value in values.items()}


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if value is not None and isfinite(value) else None
