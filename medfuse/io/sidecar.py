"""The JSON file beside a NIfTI, NRRD or MetaImage file: what made the image and what its numbers mean.

None of these formats says so. The keys are those of BIDS and dcm2niix where they have one. What nobody said is left
unsaid: no modality is guessed from the voxels. A sidecar holds no patient data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfuse._version import __version__
from medfuse.errors import UnreadableFile
from medfuse.volume import Modality, Step, Unit, Volume, parameters_of

#: What tells that medfuse made an image: the software of a sidecar, the manufacturer in DICOM, where it may also be
#: among those who contributed.
MAKER = "medfuse"
NOT_FOR_DIAGNOSIS = "Derived by software from two scans. Not for diagnostic use."
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")

_MODALITIES = {
    "ct": Modality.CT,
    **dict.fromkeys(("mr", "mri", "t1", "t1w", "t2", "t2w", "flair"), Modality.MR),
    **dict.fromkeys(("pt", "pet"), Modality.PT),
    **dict.fromkeys(("nm", "spect"), Modality.NM),
    **dict.fromkeys(("ot", "other"), Modality.OTHER),
    "fused": Modality.FUSED,
}
_UNITS = {
    "hu": Unit.HU,
    **dict.fromkeys(("suv", "suvbw", "g/ml", "gml"), Unit.SUV),
    **dict.fromkeys(("bq/ml", "bqml"), Unit.BQML),
    **dict.fromkeys(("counts", "cnts"), Unit.COUNTS),
}


@dataclass(frozen=True)
class Meaning:
    """What the numbers of a file mean.

    Args:
        modality: What made the image.
        unit: What a number means, colour apart.
        modality_from: What said so: "argument", "sidecar", "file name" or "nothing".
        history: The steps that an earlier run of medfuse wrote down.
    """

    modality: Modality
    unit: Unit
    modality_from: str
    history: tuple[Step, ...] = ()


def to_modality(name: Modality | str) -> Modality:
    """The modality of a name, in any case: CT, MR or MRI, PT or PET, NM or SPECT, OT, FUSED.

    Raises:
        ValueError: The name is none of these.

    >>> to_modality("spect").value
    'NM'
    """
    if isinstance(name, Modality):
        return name
    if name.strip().lower() not in _MODALITIES:
        raise ValueError(f"expected a modality of {', '.join(sorted(_MODALITIES))}, got {name!r}")
    return _MODALITIES[name.strip().lower()]


def modality_named(name: str) -> Modality:
    """The modality that the words of a name agree on; OTHER where they name none, or several (t1_in_pet).

    >>> modality_named("SPECT-Tc").value
    'NM'
    """
    named = {_MODALITIES[word] for word in re.split(r"[^a-z0-9]+", name.lower()) if word in _MODALITIES}
    return named.pop() if len(named) == 1 else Modality.OTHER


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of an image file lies.

    >>> sidecar_path(Path("fused.nii.gz")).name
    'fused.json'
    """
    return path.with_name(_stem(path) + ".json")


def sidecar_places(path: Path) -> tuple[Path, Path]:
    """Where the sidecar of an image file may lie that was read: beside it, or where it lies that a link names."""
    return sidecar_path(path), sidecar_path(Path(os.path.realpath(path)))


def _stem(path: Path) -> str:
    """The file's name without the suffix of an image format."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def meaning_of(path: Path, modality: Modality | None = None) -> Meaning:
    """What the numbers of a file mean: as the argument, else its sidecar, else the words of its name say.

    Args:
        path: The image file, whose name is read as by `modality_named`.
        modality: Overrides the rest.

    Raises:
        UnreadableFile: The sidecar is damaged.
    """
    notes = next(filter(None, map(_read_notes, sidecar_places(path))), {})
    stated = _MODALITIES.get(str(notes.get("Modality", "")).lower())
    named = modality_named(_stem(path))
    if modality:
        found, told_by = modality, "argument"
    elif stated:
        found, told_by = stated, "sidecar"
    elif named is not Modality.OTHER:
        found, told_by = named, "file name"
    else:
        found, told_by = Modality.OTHER, "nothing"
    unit = Unit.HU if found is Modality.CT else Unit.ARBITRARY
    if stated in (None, found):
        unit = _UNITS.get(str(notes.get("Units", "")).lower(), unit)
    return Meaning(found, unit, told_by, _history(notes))


def _read_notes(path: Path) -> Mapping[str, Any]:
    """The content of a sidecar; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        notes = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors put a mark before it
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableFile(
            f"expected JSON beside the image, found {path.name} damaged", "Correct or remove it"
        ) from error
    return notes if isinstance(notes, dict) else {}


def _history(notes: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps in a sidecar that medfuse wrote."""
    if notes.get("Software") != MAKER:
        return ()
    steps = notes.get("History")
    return tuple(
        Step(str(step["name"]), _parameters(step), str(step.get("version", "")))
        for step in (steps if isinstance(steps, list) else [])
        if isinstance(step, dict) and "name" in step
    )


def _parameters(step: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a step, without warnings that are no texts: an editor may have been at them."""
    found = step.get("parameters")
    parameters = dict(found) if isinstance(found, dict) else {}
    warnings = parameters.pop("warnings", None)
    texts = [one for one in warnings if isinstance(one, str)] if isinstance(warnings, list) else []
    return {**parameters, **({"warnings": texts} if texts else {})}


def to_json(volume: Volume) -> str:
    """The text of a volume's sidecar. It says nothing of the patient, the source's header included."""
    notes: dict[str, Any] = {
        "Modality": volume.modality.value,
        "Units": volume.unit.value,
        "Software": MAKER,
        "SoftwareVersion": __version__,
    }
    if volume.modality is Modality.FUSED:
        notes["Label"] = NOT_FOR_DIAGNOSIS
        notes["Alignment"] = parameters_of(volume.history, "align").get("reason")
    notes["History"] = [
        {"name": step.name, "parameters": dict(step.parameters), "version": step.version} for step in volume.history
    ]
    return json.dumps(notes, indent=2) + "\n"
