"""Series from where they are kept: C-FIND, then C-GET or C-MOVE (PS3.4 annex C), or DICOMweb's QIDO-RS and WADO-RS."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    AdvancedBlendingPresentationStateStorage,
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    ParametricMapStorage,
)

from medfuse.defaults import AE_TITLE
from medfuse.errors import InputError, NetworkError, OutputError, one_line
from medfuse.io.dicom_header import damage_in, word, words
from medfuse.pacs.network import MOST_CONTEXTS, associated, take_every_kind, web_client, web_errors, whole_file
from medfuse.pacs.settings import Destination

if TYPE_CHECKING:
    from pynetdicom import evt
    from pynetdicom.association import Association

#: Patient and study attributes that a query may match, and what they are called here.
MATCHES = {"study": "StudyInstanceUID", "accession": "AccessionNumber", "patient": "PatientID", "date": "StudyDate"}
#: What is asked for of every study.
RETURNED = ("StudyInstanceUID", "StudyDate", "ModalitiesInStudy", "NumberOfStudyRelatedInstances")
#: Kinds of objects that we write and that pynetdicom's list of usual ones lacks.
ALSO_TAKEN = (AdvancedBlendingPresentationStateStorage, ParametricMapStorage)
#: What names an instance in a query, each level below the one before (PS3.4 table C.6.2-1).
_UNIQUE_KEYS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
#: Statuses (PS3.4 sections B.2.3 and C.4.2.1.5).
_PENDING, _SUCCESS, _NO_SPACE, _ANOTHER = (0xFF00, 0xFF01), 0x0000, 0xA700, 0xA900

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Found:
    """A study that a node or service has: nothing of the patient but what the UID and the date tell."""

    uid: str
    date: str
    modalities: tuple[str, ...]
    instances: int | None


def dicom_files(folder: Path) -> tuple[list[Path], int]:
    """The DICOM files in a folder, or one file, recognised by content; and how many other files there are.

    Raises:
        InputError: There is no DICOM file.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() else [folder]
    found = [path for path in paths if _is_instance(path)]
    if not found:
        raise InputError(f"expected DICOM files in {folder.name}, found none", "Check the path")
    return found, len(paths) - len(found)


def _is_instance(path: Path) -> bool:
    try:
        return bool(
            read_file_meta_info(path).get("MediaStorageSOPClassUID") not in (None, MediaStorageDirectoryStorage)
        )
    except (OSError, InvalidDicomError, ValueError, EOFError):
        return False


def find(at: Destination, matches: dict[str, str], ae_title: str = AE_TITLE) -> list[Found]:
    """The studies that match.

    Args:
        at: Whom to ask.
        matches: Values, perhaps with `*`, or for dates ranges such as `20240101-20240131`, of the keys of `MATCHES`.
        ae_title: Ours.

    Raises:
        NetworkError: It does not answer, or refuses.
    """
    wanted = {MATCHES[name]: value for name, value in matches.items()}
    return sorted(
        (_found(one) for one in (_qido if at.url else _c_find)(at, wanted, ae_title)), key=lambda one: one.uid
    )


def holds(path: Path, at: Destination, ae_title: str = AE_TITLE) -> bool:
    """Whether a node or service has an instance; False, too, where it does not say.

    Args:
        path: The file of the instance.
        at: Whom to ask.
        ae_title: Ours.

    Raises:
        UnreadableFile: The file is not DICOM.
    """
    with damage_in(path.name):
        instance = dcmread(path, specific_tags=list(_UNIQUE_KEYS))
    wanted = {keyword: str(instance[keyword].value) for keyword in _UNIQUE_KEYS}
    try:
        found = _qido_instances(at, *wanted.values()) if at.url else _asked(at, "IMAGE", wanted, ae_title)
    except NetworkError:
        return False
    return any(one.get("SOPInstanceUID") == wanted["SOPInstanceUID"] for one in found)


def _qido_instances(at: Destination, study: str, series: str, instance: str) -> list[Dataset]:
    with web_errors(at):
        found = web_client(at).search_for_instances(study, series, search_filters={"SOPInstanceUID": instance})
        return [Dataset.from_json(one) for one in found]


def _c_find(at: Destination, wanted: dict[str, str], ae_title: str) -> list[Dataset]:
    return _asked(at, "STUDY", dict.fromkeys(RETURNED) | wanted, ae_title)


def _asked(at: Destination, level: str, keys: Mapping[str, str | None], ae_title: str) -> list[Dataset]:
    """What a C-FIND at a level answers (PS3.4 section C.4.1)."""
    from pynetdicom import build_context
    from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Model  # type: ignore[attr-defined]

    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    with associated(at, [build_context(Model)], ae_title) as association, _hung_up(at):
        answers = list(association.send_c_find(query, Model))
    if not answers or answers[-1][0].get("Status") != _SUCCESS:
        raise _refused(at, answers[-1][0].get("Status") if answers else None)
    return [found for _, found in answers if found is not None]


def _qido(at: Destination, wanted: dict[str, str], _ae_title: str) -> list[Dataset]:
    """What QIDO-RS finds, page by page: a service may answer with a part (PS3.18 section 8.3.4.4).

    It ends at a page that brings nothing new, which is the first again where a service does not know of pages.
    """
    client, found, offset = web_client(at), dict[str, Dataset](), None
    while True:
        with web_errors(at):
            page = client.search_for_studies(offset=offset, fields=list(RETURNED[2:]), search_filters=wanted)
            studies = {str(one.get("StudyInstanceUID", "")): one for one in map(Dataset.from_json, page)}
        if studies.keys() <= found.keys():
            return list(found.values())
        found |= studies
        offset = (offset or 0) + len(page)


def _found(study: Dataset) -> Found:
    modalities = study.get("ModalitiesInStudy") or ()
    count = study.get("NumberOfStudyRelatedInstances")
    return Found(
        str(study.get("StudyInstanceUID", "")),
        str(study.get("StudyDate") or ""),
        (modalities,) if isinstance(modalities, str) else tuple(modalities),
        None if count is None else int(count),
    )


def pull(
    study: str,
    series: str | None,
    at: Destination,
    out: Path,
    ae_title: str = AE_TITLE,
    listen: tuple[str, int] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Fetch a study, or one of its series.

    Args:
        study: Study Instance UID.
        series: Series Instance UID; None for all.
        at: Who has it.
        out: An existing folder; files `00001.dcm` and so on are added to those that it holds.
        ae_title: Ours.
        listen: Host and port where we take what a C-MOVE sends to our AE title; None for C-GET.
        progress: Called with the number of files so far.

    Returns:
        The files.

    Raises:
        NetworkError: It does not answer, or could not send everything, or has nothing.
        OutputError: A file cannot be written.
    """
    taking = _Taking(out, study, series, progress)
    try:
        if at.url:
            _wado(study, series, at, taking)
        elif listen is None:
            _c_get(study, series, at, ae_title, taking)
        else:
            _c_move(study, series, at, ae_title, listen, taking)
    except NetworkError:
        if taking.error is None:  # what we refuse for lack of space the other tells as a failure of its own
            raise
    if taking.error is not None:
        raise OutputError("expected to write what was received, cannot", "Check rights and space") from taking.error
    if not taking.paths:
        raise NetworkError(f"expected a study of {one_line(at.name)}, found that it sends nothing", "Check the UIDs")
    return taking.paths


class _Taking:
    """Writes what comes of a study, or of one of its series, one file an instance."""

    def __init__(self, out: Path, study: str, series: str | None, progress: Progress | None = None) -> None:
        self.paths: list[Path] = []
        self.error: OSError | None = None
        self._lock = threading.Lock()
        self._out, self._progress = out, progress
        self._wanted = {"StudyInstanceUID": study} | ({"SeriesInstanceUID": series} if series else {})
        self._before = sum(1 for _ in out.iterdir())

    def is_wanted(self, instance: Dataset) -> bool:
        """Whether an instance is of what was asked for. Anybody may send to who listens for a C-MOVE."""
        return all(word(instance, key) == uid for key, uid in self._wanted.items())

    def take(self, write: Callable[[Path], Any]) -> bool:
        """Have one instance written; whether it was."""
        path = self._out / f"{self._before + len(self.paths) + 1:05d}.dcm"
        try:
            write(path)
        except OSError as error:
            self.error = error
            return False
        self.paths.append(path)
        if self._progress:
            self._progress(len(self.paths))
        return True

    def store(self, event: evt.Event) -> int:
        """Take what a C-STORE brings; of several associations at once, as a C-MOVE may use them, one after another."""
        content = b"".join(whole_file(event))
        if not self.is_wanted(dcmread(BytesIO(content), specific_tags=list(self._wanted), stop_before_pixels=True)):
            return _ANOTHER
        with self._lock:
            return _SUCCESS if self.take(lambda path: path.write_bytes(content)) else _NO_SPACE


def _wado(study: str, series: str | None, at: Destination, taking: _Taking) -> None:
    client = web_client(at)
    with web_errors(at):
        instances = client.iter_series(study, series) if series else client.iter_study(study)
        for dataset in instances:
            if not taking.is_wanted(dataset):
                raise NetworkError(
                    f"expected of {one_line(at.name)} what was asked for, found an instance of something else",
                    "Ask who runs it",
                )
            if not taking.take(partial(dataset.save_as, enforce_file_format=True)):
                return


def _c_get(study: str, series: str | None, at: Destination, ae_title: str, taking: _Taking) -> None:
    from pynetdicom import build_context, build_role, evt
    from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet as Model  # type: ignore[attr-defined]

    syntaxes = [syntax for syntax in AllTransferSyntaxes if syntax != DeflatedExplicitVRLittleEndian]
    classes = _kinds(study, at, ae_title)[: MOST_CONTEXTS - 1]
    contexts = [build_context(Model), *(build_context(one, syntaxes) for one in classes)]
    roles = [build_role(one, scp_role=True) for one in classes]
    handlers = [(evt.EVT_C_STORE, taking.store)]
    with associated(at, contexts, ae_title, handlers, roles) as association, _hung_up(at):
        for context in association.accepted_contexts:
            context._as_scp = True  # Orthanc agrees to a role for no private kind, and sends it all the same
        _follow(at, association.send_c_get(_identifier(study, series), Model))


def _kinds(study: str, at: Destination, ae_title: str) -> list[str]:
    """Kinds of objects to be ready for: those that the other node says a study holds, private ones too, and the usual.

    What is sent of a kind that nobody is ready for fails, and with it all the rest.
    """
    from pynetdicom import StoragePresentationContexts

    try:
        found = _asked(at, "STUDY", {"StudyInstanceUID": study, "SOPClassesInStudy": None}, ae_title)
    except NetworkError:  # nobody has to answer this
        found = []
    stated = (kind for one in found for kind in words(one, "SOPClassesInStudy") if kind)
    usual = (context.abstract_syntax or "" for context in StoragePresentationContexts)
    return list(dict.fromkeys([*stated, *ALSO_TAKEN, *usual]))


def _c_move(
    study: str, series: str | None, at: Destination, ae_title: str, listen: tuple[str, int], taking: _Taking
) -> None:
    from pynetdicom import build_context
    from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove as Model  # type: ignore[attr-defined]

    asked = associated(at, [build_context(Model)], ae_title)
    with _listening(ae_title, listen, taking), asked as association, _hung_up(at):
        _wait_while_it_sends(association, taking)
        _follow(at, association.send_c_move(_identifier(study, series), ae_title, Model))


def _wait_while_it_sends(association: Association, taking: _Taking) -> None:
    """Have the wait for an answer begin anew as long as instances come: none has to come before the last of them.

    Pending responses to a C-MOVE are optional (PS3.4 section C.4.2.2.1).
    """
    ask = association.dimse.get_msg

    def ask_on(block: bool = False) -> Any:
        while True:
            before = len(taking.paths)
            found = ask(block)
            if found != (None, None) or len(taking.paths) == before:
                return found

    association.dimse.get_msg = ask_on  # type: ignore[method-assign]


@contextmanager
def _listening(ae_title: str, listen: tuple[str, int], taking: _Taking) -> Iterator[None]:
    """Take what is sent to our AE title as long as the block lasts, of any kind."""
    from pynetdicom import AE, evt

    take_every_kind()
    ae = AE(ae_title)
    ae.require_called_aet = True
    try:
        server = ae.start_server(listen, block=False, evt_handlers=[(evt.EVT_C_STORE, taking.store)])
    except OSError as error:
        raise OutputError(
            f"expected to listen on port {listen[1]}, cannot: {error.strerror}", "Choose another"
        ) from error
    try:
        yield
    finally:
        if server is not None:
            server.shutdown()


def _identifier(study: str, series: str | None) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES" if series else "STUDY"
    identifier.StudyInstanceUID = study
    if series:
        identifier.SeriesInstanceUID = series
    return identifier


def _follow(at: Destination, answers: Iterator[tuple[Dataset, Dataset | None]]) -> None:
    """Wait until all is sent (PS3.4 section C.4.2.1.4 and C.4.3.1.4).

    Raises:
        NetworkError: Not all was.
    """
    status = Dataset()
    for status, _ in answers:
        if status.get("Status") not in _PENDING:
            break
    if status.get("Status") != _SUCCESS or status.get("NumberOfFailedSuboperations"):
        raise _refused(at, status.get("Status"))


@contextmanager
def _hung_up(at: Destination) -> Iterator[None]:
    """Turn what pynetdicom raises of a context that was refused, or of a connection that has ended."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise _refused(at, None) from error


def _refused(at: Destination, status: int | None) -> NetworkError:
    found = "no answer" if status is None else f"status {status:04X}"
    return NetworkError(f"expected {one_line(at.name)} to do what it was asked, found {found}", "Ask who runs it")


def studies(found: Sequence[Found], *, several: bool) -> list[str]:
    """The UIDs of the studies found.

    Args:
        found: What `find` returned.
        several: Whether there may be more than one.

    Raises:
        InputError: There is none, or more than may be.
    """
    if not found or (len(found) > 1 and not several):
        raise InputError(
            f"expected one study that matches, found {len(found)}", "Narrow it with --study or --date, or take --all"
        )
    return [one.uid for one in found]
