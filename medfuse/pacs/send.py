"""Files to where they belong: C-STORE to a DICOM node, STOW-RS to a DICOMweb service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medfuse.errors import NetworkError, one_line
from medfuse.io.dicom_header import damage_in
from medfuse.pacs.network import associated, web_client, web_errors
from medfuse.pacs.settings import Destination

if TYPE_CHECKING:
    from pynetdicom.presentation import PresentationContext

#: Contexts that one association may ask for (PS3.8 section 9.3.2.2: odd numbers of one byte).
MOST_CONTEXTS = 128
_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_FAILED_SOP_SEQUENCE, _FAILURE_REASON = "FailedSOPSequence", "FailureReason"


def send(files: Sequence[Path], to: Destination, ae_title: str = "MEDFUSE") -> Iterator[Path]:
    """Send files one after another.

    Args:
        files: DICOM files.
        to: Where.
        ae_title: Ours.

    Yields:
        Each file when it was accepted.

    Raises:
        NetworkError: The destination does not answer, or refuses one; those before it were accepted.
        UnreadableFile: A file is not DICOM.
        InputError: The authorization or the TLS of the destination cannot be used.
    """
    yield from (_stow if to.url else _store)(files, to, ae_title)


def _store(files: Sequence[Path], to: Destination, ae_title: str) -> Iterator[Path]:
    """C-STORE (PS3.4 annex B); uncompressed files in the encoding that the destination prefers."""
    for batch, contexts in _batches(files):
        with associated(to, contexts, ae_title) as association:
            for path in batch:
                with damage_in(path.name):
                    dataset = dcmread(path)
                try:
                    status = association.send_c_store(dataset)
                except (ValueError, RuntimeError, AttributeError) as error:
                    raise _refused(to, "it does not take this kind of object, or hung up") from error
                code = status.get("Status")
                if code is None:
                    raise _refused(to, "it did not answer")
                if code != 0 and code >> 12 != 0xB:  # B000 to BFFF: stored, with a warning (PS3.4 table B.2-1)
                    raise _refused(to, f"status {code:04X}")
                yield path


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
        if key not in contexts and len(contexts) == MOST_CONTEXTS:
            yield batch, list(contexts.values())
            batch, contexts = [], {}
        contexts.setdefault(key, build_context(sop_class, list(key[1])))
        batch.append(path)
    if batch:
        yield batch, list(contexts.values())


def _stow(files: Sequence[Path], to: Destination, _ae_title: str) -> Iterator[Path]:
    """STOW-RS (PS3.18 section 10.5), a request an instance, so that each is known to be accepted."""
    client = web_client(to)
    for path in files:
        with damage_in(path.name):
            dataset = dcmread(path)
        with web_errors(to):
            answer = client.store_instances([dataset])
        failed = answer.get(_FAILED_SOP_SEQUENCE)
        if failed:
            raise _refused(to, f"reason {failed[0].get(_FAILURE_REASON, 0):04X}")
        yield path


def _refused(to: Destination, why: str) -> NetworkError:
    return NetworkError(f"expected {one_line(to.name)} to store an instance, found: {why}", "Ask who runs it")
