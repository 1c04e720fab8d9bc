"""The unique identifiers of what is written: new ones each time, or the same ones whenever the same job is done again.

All UIDs of one result come from one seed, so that objects that are written apart agree on them: the fused series, the
registration beside it and the state that presents both need only ask the same `Uids` for the same role.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4, uuid5

import numpy as np
from pydicom import Dataset
from pydicom.uid import UID

from medfuse._version import __version__
from medfuse.io.dicom_header import word
from medfuse.volume import Source, Step, Volume

#: The name space of the jobs of medfuse (RFC 9562 section 5.5): a random one, fixed for good.
NAMESPACE = UUID("7084e4ad-e7f5-4048-99fc-587c60ab7710")
#: What a step "align" says of a registration that a rerun on another machine may find otherwise in the last digits.
FOUND = ("reason", "trust", "registration", "moving_from_fixed")


@dataclass(frozen=True)
class Uids:
    """Where the UIDs of one result come from.

    Args:
        seed: Tells this result from all others.
        shared: The seed of the result that it lies beside, in one study and one frame of reference; None for its own.

    >>> uids = Uids(UUID(int=7))
    >>> uids.of("series", 1) == uids.of("series", 1) != uids.of("series", 2)
    True
    """

    seed: UUID
    shared: UUID | None = None

    def of(self, *role: str | int) -> UID:
        """The UID of what has a role in the result, as ("series", "color", 1); the same for the same role.

        It is a name-based UUID under the root 2.25 (PS3.5 section B.2).
        """
        return UID(f"2.25.{uuid5(self.seed, json.dumps(role)).int}")

    def study(self, volume: Volume) -> str:
        """The Study Instance UID of the structural source, or a new one where it has none."""
        header = volume.source.header
        return (word(header, "StudyInstanceUID") if header is not None else "") or self._of_both("study")

    def frame_of_reference(self, volume: Volume) -> str:
        """The Frame of Reference UID of a volume's grid, or a new one where it has none."""
        return volume.grid.frame_of_reference or self._of_both("frame of reference")

    def _of_both(self, role: str) -> UID:
        return Uids(self.shared or self.seed).of(role)


def uids_of(volume: Volume, *, stable: bool, beside: Uids | None = None) -> Uids:
    """The UIDs of a result: new ones, or, where they shall be stable, those of the same job done earlier.

    Args:
        volume: What is to be written.
        stable: Whether they shall be.
        beside: Those of the result whose study and frame of reference it shares, where its sources state none.
    """
    uids = stable_uids(volume) if stable else Uids(uuid4())
    return replace(uids, shared=beside.seed) if beside else uids


def stable_uids(volume: Volume) -> Uids:
    """UIDs that are the same whenever the same job is done again, so that its result replaces the earlier one.

    A job is the images that went in (study and SOP Instance UIDs, in order), every step of the history with its
    parameters (method, strategy, the weights' hash, precision, windows, palette, time point), the grid, and the version
    of medfuse, for another version may compute other pixels, and DICOM allows one content to a UID. Of a registration
    it is the kind, not the numbers found: these may differ in the last digits from machine to machine. Where an image
    has no UID (NIfTI), the voxels of the result count as well.

    Args:
        volume: What is to be written.
    """
    return Uids(uuid5(NAMESPACE, fingerprint(volume)))


def fingerprint(volume: Volume) -> str:
    """A hash of what tells a volume from others: its images, what was done to them, and its grid."""
    return sha256(json.dumps(_job(volume), sort_keys=True).encode()).hexdigest()


def _job(volume: Volume) -> dict[str, Any]:
    """What tells one job from another, as plain values."""
    sources = list(all_sources(volume.source))
    grid = volume.grid
    return {
        "version": __version__,
        "sources": [[word(source.header or Dataset(), "StudyInstanceUID"), source.instances] for source in sources],
        "steps": [[step.name, step.version, _asked(step)] for step in volume.history],
        "grid": [grid.shape, grid.lps_from_index.tolist(), grid.frame_of_reference],
        "voxels": None if all(source.instances for source in sources) else _digest(volume),
    }


def _asked(step: Step) -> Mapping[str, Any]:
    """The parameters of a step; of a registration what was asked for, without what was found."""
    parameters = step.parameters
    if step.name != "align":
        return parameters
    if not parameters.get("registered"):
        return {key: value for key, value in parameters.items() if key not in FOUND[:3]}
    registration = parameters.get("registration") or {}
    return {
        "kind": registration.get("kind"),
        **{key: value for key, value in parameters.items() if key not in FOUND},
    }


def _digest(volume: Volume) -> str:
    """The SHA-256 of the voxels, with their type."""
    array = np.ascontiguousarray(volume.array)
    return sha256(array.dtype.str.encode() + array.tobytes()).hexdigest()


def all_sources(source: Source) -> Iterator[Source]:
    """A source and all that went in beside it, the structural one first."""
    yield source
    for other in source.also:
        yield from all_sources(other)
