"""Files to where they belong: C-STORE to a DICOM node, STOW-RS to a DICOMweb service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    AdvancedBlendingPresentationStateStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SpatialRegistrationStorage,
)

from medfuse.defaults import AE_TITLE
from medfuse.errors import NetworkError, one_line
from medfuse.io.dicom_header import damage_in
from medfuse.pacs.network import MOST_CONTEXTS, NoneTaken, associated, web_client, web_errors
from medfuse.pacs.settings import Destination

if TYPE_CHECKING:
    import requests
    from dicomweb_client import DICOMwebClient
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
#: Of an element that ends with a delimiter (PS3.5 section 7.1.1).
_UNDEFINED_LENGTH = 0xFFFFFFFF
_FAILED_SOP_SEQUENCE, _FAILURE_REASON = "FailedSOPSequence", "FailureReason"
#: Kinds of what lies beside a fused series.
_COMPANIONS = (SpatialRegistrationStorage, AdvancedBlendingPresentationStateStorage)
#: Duplicate SOP instance (PS3.7 section C.5.8): it is there. Our UIDs are those of one job, whose content is the same.
_THERE_ALREADY = 0x0111
#: HTTP statuses of STOW-RS that refuse what was sent (PS3.18 section 10.5.3.1), and say nothing of the next instance.
_OF_THE_OBJECT = (400, 409, 413, 415, 422)
_NOT_TAKEN = "this kind of object is not taken"

#: A file, and why it was refused, or nothing.
Answer = tuple[Path, str]


def is_companion(path: Path) -> bool:
    """Whether a file is no image but what lies beside a fused series; an archive may not take its kind."""
    return read_file_meta_info(path).get("MediaStorageSOPClassUID") in _COMPANIONS


def send(files: Sequence[Path], to: Destination, ae_title: str = AE_TITLE) -> Iterator[Path]:
    """Send files one after another.

    Args:
        files: DICOM files.
        to: Where.
        ae_title: Ours.

    Yields:
        Each file when it was accepted.

    Raises:
        NetworkError: The destination does not answer, or, when all were sent, it has refused some.
        UnreadableFile: A file is not DICOM, or cut short.
        InputError: The authorization or the TLS of the destination cannot be used.
    """
    refusals = []
    for path, why in offer(files, to, ae_title):
        if why:
            refusals.append((path, why))
        else:
            yield path
    if refusals:
        raise refused(to, refusals)


def offer(files: Sequence[Path], to: Destination, ae_title: str = AE_TITLE) -> Iterator[Answer]:
    """Send files one after another; one that is refused does not keep the others back.

    Args:
        files: DICOM files.
        to: Where.
        ae_title: Ours.

    Yields:
        What the destination says of each file.

    Raises:
        NetworkError: The destination does not answer; what was accepted before was accepted.
        UnreadableFile: A file is not DICOM, or cut short.
        InputError: The authorization or the TLS of the destination cannot be used.
    """
    yield from (_stow if to.url else _store)(files, to, ae_title)


def refused(to: Destination, refusals: Sequence[Answer]) -> NetworkError:
    """The error that refusals of some files are; it names their kinds.

    Args:
        to: Who refused them.
        refusals: At least one.
    """
    kinds = Counter(f"{why}, for {_kind(path)}" for path, why in refusals)
    told = "; ".join(f"{why}{f' ({count} times)' if count > 1 else ''}" for why, count in kinds.items())
    hint = "Ask who runs it"
    if any(is_companion(path) for path, _ in refusals):
        hint += ", or make none with `companions: false` under `fusion` in the rules"
    return NetworkError(f"expected {one_line(to.name)} to store an instance, found: {told}", hint)


def _kind(path: Path) -> str:
    return str(UID(read_file_meta_info(path).MediaStorageSOPClassUID).name)


def _store(files: Sequence[Path], to: Destination, ae_title: str) -> Iterator[Answer]:
    """C-STORE (PS3.4 annex B); uncompressed files in the encoding that the destination prefers."""
    for batch, contexts in _batches(files):
        try:
            with associated(to, contexts, ae_title) as association:
                for path in batch:
                    yield path, _stored(path, to, association)
        except NoneTaken:
            yield from ((path, _NOT_TAKEN) for path in batch)


def _read(path: Path) -> Dataset:
    """The data set of a file, all of it: pydicom takes a last element for whole that was cut short."""
    with damage_in(path.name):
        dataset = dcmread(path)
        last = dataset.get_item(max(dataset.keys()))
        if isinstance(last, RawDataElement) and last.value and len(last.value) < last.length != _UNDEFINED_LENGTH:
            raise EOFError
    return dataset


def _stored(path: Path, to: Destination, association: Association) -> str:
    """Why one file was not stored; "" where it was."""
    dataset = _read(path)
    try:
        code = association.send_c_store(dataset).get("Status")
    except RuntimeError as error:
        raise _silent(to) from error
    except (ValueError, AttributeError):  # no context for it, or it cannot be encoded as it was agreed
        return _NOT_TAKEN
    if code is None:
        raise _silent(to)
    # B000 to BFFF: stored, with a warning (PS3.4 table B.2-1)
    return "" if code in (0, _THERE_ALREADY) or code >> 12 == 0xB else f"status {code:04X}"


def _batches(files: Sequence[Path]) -> Iterator[tuple[list[Path], list[PresentationContext]]]:
    """Files that one association can take, and the contexts for them."""
    from pynetdicom import build_context

    batch: list[Path] = []
    contexts: dict[tuple[UID, tuple[UID, ...]], PresentationContext] = {}
    for path in files:
        with damage_in(path.name):
            meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
            sop_class, syntax = meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID
            key = sop_class, _PLAIN if syntax in _PLAIN else (syntax,)
            context = build_context(sop_class, list(key[1]))
        if key not in contexts and len(contexts) == MOST_CONTEXTS:
            yield batch, list(contexts.values())
            batch, contexts = [], {}
        contexts.setdefault(key, context)
        batch.append(path)
    if batch:
        yield batch, list(contexts.values())


def _stow(files: Sequence[Path], to: Destination, _ae_title: str) -> Iterator[Answer]:
    """STOW-RS (PS3.18 section 10.5), a request an instance, so that each is known to be accepted."""
    client = web_client(to)
    for path in files:
        yield path, _stowed(_read(path), client, to)


def _stowed(dataset: Dataset, client: DICOMwebClient, to: Destination) -> str:
    """Why one data set was not stored; "" where it was."""
    import requests

    with web_errors(to):
        try:
            failed, otherwise = client.store_instances([dataset]).get(_FAILED_SOP_SEQUENCE), ""
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code not in _OF_THE_OBJECT:
                raise
            failed, otherwise = _failed(error.response), f"HTTP status {error.response.status_code}"
    if not failed:
        return otherwise
    reason = failed[0].get(_FAILURE_REASON, 0)
    return "" if reason == _THERE_ALREADY else f"reason {reason:04X}"


def _failed(answer: requests.Response) -> Any:
    """What an answer with an error's status says of the instances that failed; None where it does not."""
    try:
        return Dataset.from_json(answer.json()).get(_FAILED_SOP_SEQUENCE)
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def _silent(to: Destination) -> NetworkError:
    return NetworkError(
        f"expected {one_line(to.name)} to store an instance, found: it did not answer", "Ask who runs it"
    )
