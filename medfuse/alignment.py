"""Which alignment is believed, and why: the header's, a given one, or that of a registration (docs/alignment.md)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from medfuse.align import Registration, Transform, overlap
from medfuse.align import register as run_registration
from medfuse.align.register import KINDS
from medfuse.align.verdict import Trust, Verdict
from medfuse.align.warp import Warp
from medfuse.errors import GeometryError, MedfuseWarning, NoOverlap, RegistrationError
from medfuse.grid import Grid
from medfuse.io.dicom_uids import fingerprint
from medfuse.stages import Progress, stage
from medfuse.volume import Volume

REGISTER = ("auto", *KINDS, "none")

#: How many times its own uncertainty a registration must move a volume before it is believed against the header,
#: where the files do not say whether their coordinates are one (docs/alignment.md has the measurements).
CLEAR_SHIFT = 2.0


@dataclass(frozen=True)
class Alignment:
    """How two volumes were brought together.

    Args:
        transform: From the structural world to the functional one.
        reason: Why this transform: what it rests on, in words.
        registration: The registration that was run, if one was, with its verdict; whether it was used or not.
        of: Of a volume that rides along, the fingerprint of the one that was aligned (`medfuse.io.dicom_uids`).
    """

    transform: Transform | Warp
    reason: str
    registration: Registration | None = None
    of: str | None = None

    @property
    def trust(self) -> Trust | None:
        """The verdict on the registration that was run; None where none was."""
        return self.registration.verdict.trust if self.registration else None

    @property
    def is_registered(self) -> bool:
        """Whether the transform is the registration's, and not the header's or a given one."""
        return self.registration is not None and self.transform is self.registration.transform

    def to_json(self) -> dict[str, Any]:
        """Plain values; of a deformable transform the matrix is its linear part, and a hash tells a given one."""
        given = self.transform if isinstance(self.transform, Warp) and not self.is_registered else None
        return {
            "reason": self.reason,
            "registered": self.is_registered,
            "trust": self.trust.value if self.trust else None,
            "moving_from_fixed": self.transform.moving_from_fixed.tolist(),
            "deformable": isinstance(self.transform, Warp),
            **({"deformation_sha256": given.sha256} if given else {}),
            **({"of_sha256": self.of} if self.of else {}),
            "registration": self.registration.to_json() if self.registration else None,
        }


def align(
    structural: Volume,
    functional: Volume,
    register: str = "auto",
    transform: Registration | Transform | Warp | None = None,
    progress: Progress | None = None,
    *,
    accept_untrusted: bool = False,
    threads: int | None = None,
) -> Alignment:
    """Decide how the functional volume lies on the structural one.

    A registration that is trusted is used. Where it is doubtful, the header's alignment is taken if both share a frame
    of reference or a grid; if not, the registration, labelled. One that failed is refused.

    Args:
        structural: The volume that stays.
        functional: The volume that moves.
        register: "auto" trusts the header where both share a frame of reference or a grid; where their frames differ it
            registers; where a file states no frame, it registers and believes the result only if it is trusted and
            clearly leads away from the header's alignment. "rigid", "affine" and "deformable" register in any case;
            "none" takes the header's alignment.
        transform: A known transform from the structural to the functional world, instead of all that; or what
            `register` found, which is then used or refused by its verdict like any registration.
        progress: Called as the registration goes on.
        accept_untrusted: Use a registration that is doubtful or failed, too.
        threads: Threads of the registration; None for as many as there are cores.

    Raises:
        ValueError: An unknown `register`.
        TypeError: `transform` is none.
        NoOverlap: The header's alignment is to be taken, and leaves the two apart.
        RegistrationError: No alignment was found, or the registration failed and `accept_untrusted` is not set.
    """
    if register not in REGISTER:
        raise ValueError(f"expected a register of {', '.join(REGISTER)}, got {register!r}")
    if isinstance(transform, Registration):
        return _judged(structural.grid, functional.grid, transform, transform.kind, accept_untrusted)
    if transform is not None:
        if not isinstance(transform, Transform | Warp):
            raise TypeError(f"expected a transform, got {type(transform).__name__}")
        return Alignment(transform, "a given transform")
    shared = _shared_coordinates(structural.grid, functional.grid)
    if register == "none" or (register == "auto" and shared):
        if overlap(structural.grid, functional.grid) == 0:
            raise NoOverlap(
                "expected two volumes that overlap, found that by their headers nothing of one lies inside the other",
                "If both show the same body part, let them be registered with --register rigid",
            )
        return Alignment(Transform.identity(), shared or _as_asked(structural.grid, functional.grid))
    kind = "rigid" if register == "auto" else register
    tick = partial(progress, "registering") if progress else None
    with stage("register"):
        found = run_registration(structural, functional, kind, progress=tick, threads=threads)
    return _judged(structural.grid, functional.grid, found, register, accept_untrusted)


def _judged(structural: Grid, functional: Grid, found: Registration, register: str, accept: bool) -> Alignment:
    """The registration or the header's alignment, with a warning where the verdict calls for one."""
    if not accept:
        refuse_failed(found)
    alignment = _decided(structural, functional, found, register, accept)
    if found.verdict.trust is not Trust.TRUSTED:
        warnings.warn(f"{alignment.reason}. Look at the result before you rely on it", MedfuseWarning, stacklevel=3)
    return alignment


def refuse_failed(found: Registration) -> None:
    """Refuse a registration whose verdict is that it failed.

    Raises:
        RegistrationError: It did.
    """
    if found.verdict.trust is Trust.FAILED:
        raise RegistrationError(
            f"expected a registration that may be used, found that the {found.kind} one {_told(found.verdict)}: "
            + "; ".join(told_evidence(found.verdict)),
            "Check that both show one body part of one patient; fuse with the header's alignment (--register none) or "
            "a known one (--transform), or use this one with --accept-untrusted and look at the result",
        )


def ride_along(alignment: Alignment, functional: Volume, also: Volume) -> Alignment:
    """The alignment of a volume that moves with the functional one, as PET does with its CT.

    Args:
        alignment: Of the structural and the functional volume.
        functional: The volume that was aligned.
        also: The volume that moves with it.

    Returns:
        The same transform, which the volume's own voxels are resampled through once.

    Raises:
        GeometryError: Nothing says that the two share coordinates.
    """
    reason = f"with the {functional.modality.value}, {check_ride(functional, also)}: {alignment.reason}"
    return replace(alignment, reason=reason, of=fingerprint(functional))


def check_ride(functional: Volume, also: Volume) -> str:
    """Why a volume moves with the functional one, in words.

    Raises:
        GeometryError: Nothing says that the two share coordinates.
    """
    shared = _shared_coordinates(functional.grid, also.grid)
    if not shared:
        raise GeometryError(
            "expected a series to ride along (--also) that shares the functional scan's frame of reference or grid, "
            "found that its header states another frame or none",
            "If they lie together, fuse it by itself with the transform of the functional scan (--save-transform, then "
            "--transform); otherwise register it by itself",
        )
    return shared


def told(found: Registration) -> str:
    """A registration and its verdict in words, as "rigid registration, trusted (agreement 0.4 mm)"."""
    return f"{found.kind} registration, {_told(found.verdict)}"


def told_evidence(verdict: Verdict) -> tuple[str, ...]:
    """The numbers that a verdict rests on, in words, each for a line or a part of a sentence."""
    evidence = verdict.evidence
    runs = ", ".join(f"{name} {_millimetres(value)}" for name, value in evidence.agreement_mm.items())
    told = [
        f"independent runs: {_agreement(verdict)} ({runs or 'none'})",
        f"body moved by {evidence.shift_mm:.1f} mm (at most {evidence.moved_mm:.1f} mm), turned by "
        f"{evidence.rotated_degrees:.1f}°, from the header's alignment",
        f"normalized mutual information {evidence.nmi_before:.3f} before, {evidence.nmi_after:.3f} after",
        f"overlap {evidence.overlap_before:.0%} before, {evidence.overlap_after:.0%} after",
        f"the best alignment elsewhere scores {evidence.rival:.0%} as high",
    ]
    if evidence.stretched is not None:
        told.append(f"stretched by up to {evidence.stretched:.1%}")
    if evidence.folded is not None:
        told.append(f"folded in {evidence.folded:.2%} of the space; nothing else is judged of the bending")
    return tuple(told)


def _millimetres(value: float) -> str:
    return f"{value:.1f} mm" if math.isfinite(value) else "lost"


def _agreement(verdict: Verdict) -> str:
    uncertainty_mm = verdict.evidence.uncertainty_mm
    return f"agreement {uncertainty_mm:.1f} mm" if math.isfinite(uncertainty_mm) else "no agreement"


def _told(verdict: Verdict) -> str:
    """The verdict in words, as "trusted (agreement 0.4 mm)"."""
    return f"{verdict.trust.value} ({'; '.join(verdict.reasons) or _agreement(verdict)})"


def _decided(structural: Grid, functional: Grid, found: Registration, register: str, accept: bool) -> Alignment:
    """The registration or the header's alignment, by the verdict and by what the headers state."""
    verdict = found.verdict
    frames = structural.frame_of_reference, functional.frame_of_reference
    unstated = register == "auto" and None in frames
    if overlap(structural, functional) > 0:
        by_header = partial(Alignment, Transform.identity(), registration=found)
        if verdict.trust is Trust.TRUSTED:
            clear = verdict.evidence.shift_mm > CLEAR_SHIFT * verdict.evidence.uncertainty_mm
            if unstated and not clear:
                return by_header("header, from which a trusted registration did not clearly lead away")
        elif not accept and (unstated or _shared_coordinates(structural, functional)):
            return by_header(f"header, for the {found.kind} registration is {_told(verdict)}")
    return Alignment(found.transform, told(found), found)


def _as_asked(structural: Grid, functional: Grid) -> str:
    """What the header's alignment is worth where the two share no coordinates, in words."""
    frames = structural.frame_of_reference, functional.frame_of_reference
    return "header, as asked, " + ("though no frame is stated" if None in frames else "though the frames differ")


def _shared_coordinates(structural: Grid, functional: Grid) -> str:
    """Why the two worlds can be taken as one, in words; empty where nothing says so."""
    frames = structural.frame_of_reference, functional.frame_of_reference
    if all(frames):  # a nominal grid proves nothing against two frames
        return "one frame of reference" if frames[0] == frames[1] else ""
    return "one grid" if structural.matches(functional) else ""
