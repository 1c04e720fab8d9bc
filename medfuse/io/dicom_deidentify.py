"""Take a patient's identity out of a volume's sources, so that nothing made of it can carry it on.

What identifies is what the Basic Application Level Confidentiality Profile lists (PS3.15 table E.1-1), as
dicom-anonymizer has that table. Its unique identifiers are replaced by others, everything else in it is removed; so the
results are new objects made from de-identified images. Voxels are not looked at: a scan of a head shows a face.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache
from hashlib import sha256
from typing import Any
from uuid import UUID

from pydicom import DataElement, Dataset
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag

from medfuse._version import __version__
from medfuse.errors import OutputError
from medfuse.io.dicom_header import leniently, word
from medfuse.io.dicom_provenance import code_item
from medfuse.volume import Source, Volume

#: Edition of the standard whose table is taken.
EDITION = "dicomfields_2024b"
#: A shorter key could be found by trying.
KEY_BYTES = 16
#: Root of what the standard itself names: SOP classes, palettes. Such a UID identifies nobody.
STANDARD = "1.2.840.10008."
#: Where a step keeps the fingerprint of a scan (`medfuse.io.dicom_uids`).
FINGERPRINT = "of_sha256"
#: Groups that repeat: curves and overlays, which the profile removes.
CURVES, OVERLAYS = 0x5000, 0x6000


def deidentified(volume: Volume, key: bytes) -> Volume:
    """The same volume of nobody in particular: de-identified sources and history, another frame of reference.

    Args:
        volume: Any volume; of a fused one all sources are treated.
        key: With the same key the same patient gets the same pseudonym and the same image the same UID, whatever the
            run; without it nobody can tell which patient that is.

    Raises:
        OutputError: The key is too short, dicom-anonymizer is not installed, or an image has text burned into it.
    """
    check_key(key)
    frame = volume.grid.frame_of_reference
    grid = volume.grid if frame is None else replace(volume.grid, frame_of_reference=pseudonym_uid(frame, key))
    history = tuple(replace(step, parameters=_keyed(step.parameters, key)) for step in volume.history)
    with leniently():
        return replace(volume, grid=grid, source=_source(volume.source, key), history=history)


def check_key(key: bytes) -> None:
    """Refuse what `deidentified` would refuse, before long work.

    Raises:
        OutputError: The key is too short, or dicom-anonymizer is not installed.
    """
    if len(key) < KEY_BYTES:
        raise OutputError(
            f"expected a key of at least {KEY_BYTES} bytes, found {len(key)}",
            "Make one of random bytes, and keep it secret",
        )
    _actions()


def pseudonym_uid(uid: str, key: bytes) -> str:
    """Another UID in place of one: always the same under one key, a UUID under the root 2.25 (PS3.5 section B.2)."""
    if not uid or uid.startswith(STANDARD):
        return uid
    return f"2.25.{UUID(bytes=_digest('uid', uid, key)[:16], version=4).int}"


def _digest(kind: str, text: str, key: bytes) -> bytes:
    return hmac.new(key, f"{kind}:{text}".encode(), sha256).digest()


def _keyed(value: Any, key: bytes) -> Any:
    """Parameters of a step, at any depth, with another fingerprint of a scan: that one is a hash of original UIDs."""
    if isinstance(value, Mapping):
        return {
            name: _digest("fingerprint", str(one), key).hex() if name == FINGERPRINT else _keyed(one, key)
            for name, one in value.items()
        }
    return [_keyed(one, key) for one in value] if isinstance(value, list | tuple) else value


def _source(source: Source, key: bytes) -> Source:
    return replace(
        source,
        header=None if source.header is None else _header(source.header, key),
        instances=tuple((kind, pseudonym_uid(uid, key)) for kind, uid in source.instances),
        also=tuple(_source(other, key) for other in source.also),
    )


def _header(header: Dataset, key: bytes) -> Dataset:
    """A header without what identifies the patient, and with what says so (PS3.3 section C.7.1.1)."""
    if word(header, "BurnedInAnnotation") == "YES":
        raise OutputError(
            "expected images without text in their pixels, found that a source says it has some burned in",
            "Give the original images; what is written into the pixels is not removed here",
        )
    patient = word(header, "PatientID") or word(header, "StudyInstanceUID")
    clean = deepcopy(header)
    _clean(clean, _actions(), key)
    clean.PatientID = clean.PatientName = f"MF{_digest('patient', patient, key).hex()[:12].upper()}"
    clean.PatientIdentityRemoved = "YES"
    clean.LongitudinalTemporalInformationModified = "REMOVED"
    clean.DeidentificationMethod = [f"medfuse {__version__}", "PS3.15 Basic Application Level Confidentiality Profile"]
    clean.DeidentificationMethodCodeSequence = [code_item(codes.DCM.BasicApplicationConfidentialityProfile)]
    return clean


@cache
def _actions() -> dict[tuple[int, ...], str]:
    """What the profile does to each element, by tag: the name of dicom-anonymizer's function for it."""
    try:
        from dicomanonymizer.simpledicomanonymizer import initialize_actions
    except ImportError as error:
        raise OutputError(
            "expected dicom-anonymizer for de-identification, found that it is not installed",
            "Install it with: pip install dicom-anonymizer",
        ) from error
    return {tag: action.__name__ for tag, action in initialize_actions(EDITION).items()}


def _clean(dataset: Dataset, actions: dict[tuple[int, ...], str], key: bytes) -> None:
    """Remove what the profile lists and all private elements, at any depth; replace unique identifiers.

    The profile would let some elements be emptied or replaced where a type demands a value. They are removed all the
    same: a header is only carried on from, and the writers know what their objects need.
    """
    for tag in list(dataset.keys()):
        action = actions.get((tag.group, tag.element))
        goes = tag.is_private or tag.group & 0xFF00 in (CURVES, OVERLAYS)
        element = None if goes else _readable(dataset, tag)
        if element is None or (action and (element.VR != "UI" or not action.endswith("_UID"))):
            del dataset[tag]
        elif action:
            values = [element.value] if isinstance(element.value, str) else list(element.value or ())
            element.value = [pseudonym_uid(str(value), key) for value in values]
        elif element.VR == "SQ":
            for item in element.value:
                _clean(item, actions, key)


def _readable(dataset: Dataset, tag: BaseTag) -> DataElement | None:
    """An element, unless it is damaged: what cannot be read cannot be judged."""
    try:
        return dataset[tag]
    except Exception:  # pydicom raises many kinds on damaged values
        return None
