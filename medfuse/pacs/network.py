"""Talking to others: DICOM associations that we ask for, DICOMweb, and both libraries kept from telling of patients."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.message import Message
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from medfuse.errors import NetworkError, one_line
from medfuse.pacs.settings import Destination, Tls, refuse_secrets

if TYPE_CHECKING:
    import requests
    from dicomweb_client import DICOMwebClient
    from pynetdicom import evt
    from pynetdicom.association import Association
    from pynetdicom.presentation import PresentationContext

#: Contexts that one association may ask for (PS3.8 section 9.3.2.2: odd numbers of one byte).
MOST_CONTEXTS = 128
#: Seconds that another node may take to answer.
TIMEOUT_SECONDS = 60.0
#: HTTP statuses of a service that is not there for now (RFC 9110 section 15.6).
_AWAY = (502, 503, 504)
#: Media types of an answer to STOW-RS (PS3.18 section 10.5.3).
_STORED = ("application/dicom+json", "application/json", "application/dicom+xml", "application/xml")
#: Statuses of a redirection by which a request is repeated as it was, not as a GET (RFC 9110 section 15.4).
_REPEATED = (307, 308)
#: What libraries raise where an answer is JSON or XML of another shape, or none.
_MISSHAPEN = (LookupError, AttributeError, TypeError, SyntaxError)
#: Bytes that may follow the closing boundary of a multipart answer.
_EPILOGUE = 1024
_LIBRARIES = ("pynetdicom", "pydicom", "dicomweb_client", "urllib3", "retrying")


class Away(NetworkError):
    """Another node or service was not reached; it may be there later."""


class NoneTaken(NetworkError):
    """Another node takes none of the kinds of objects that it was asked to take."""


def check_installed() -> None:
    """Refuse where the libraries of the network are not there, and silence them where they are: they log headers.

    Raises:
        ValueError: One of them is not installed.
    """
    try:
        import dicomweb_client  # noqa: F401
        import pynetdicom
    except ImportError as error:
        raise ValueError(
            "dicomweb-client or pynetdicom is not installed; install them with: pip install dicomweb-client pynetdicom"
        ) from error
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False


def take_every_kind() -> None:
    """Have servers of this process take objects of any class but those of other services, private ones too."""
    import pynetdicom

    pynetdicom._config.UNRESTRICTED_STORAGE_SERVICE = True


def to_destination(text: str, tls: Tls | None = None, authorization_from: str = "") -> Destination:
    """Another node or service from the words of the command line.

    Args:
        text: `AE_TITLE@HOST:PORT`, or the base URL of a DICOMweb service.
        tls: As for `Destination`.
        authorization_from: Likewise.

    Raises:
        ValueError: The text is neither, or a URL with a password, which the message does not quote.

    >>> to_destination("ORTHANC@pacs.example:4242").port
    4242
    """
    refuse_secrets(text)
    try:
        if text.startswith(("http://", "https://")):
            return Destination(text, url=text, authorization_from=authorization_from, tls=tls)
        ae_title, _, place = text.partition("@")
        host, _, port = place.rpartition(":")
        return Destination(text, ae_title, host.strip("[]"), int(port), tls=tls)
    except ValueError as error:
        raise ValueError(f"expected AE_TITLE@HOST:PORT or a URL, got {text!r}") from error


def to_tls(use: bool, ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """The keys of TLS from the words of the command line; None where none of them is given."""
    return Tls(certificate, key, ca) if use or ca or certificate or key else None


def to_listener(text: str) -> tuple[str, int]:
    """Host and port from the words of the command line.

    Raises:
        ValueError: They are not both there.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"expected HOST:PORT, got {text!r}")
    return host.strip("[]"), int(port)


def whole_file(event: evt.Event) -> tuple[bytes, bytes, memoryview]:
    """The pieces of the file that a C-STORE brings, its data set as it was sent (PS3.10 section 7.1)."""
    from pynetdicom.dsutils import encode_file_meta

    request: Any = event.request
    return b"\0" * 128 + b"DICM", encode_file_meta(event.file_meta), request.DataSet.getbuffer()


@contextmanager
def associated(
    to: Destination,
    contexts: Sequence[PresentationContext],
    ae_title: str,
    handlers: Sequence[Any] = (),
    roles: Sequence[Any] = (),
) -> Iterator[Association]:
    """An association with a DICOM node, released at the end, or aborted where something went wrong.

    Args:
        to: The node.
        contexts: What to ask it for, at most 128.
        ae_title: Ours.
        handlers: As for pynetdicom.
        roles: Role selections, likewise.

    Raises:
        Away: It does not answer.
        NoneTaken: It takes none of the contexts.
        NetworkError: It refuses us.
        ValueError: The libraries of the network are not installed.
    """
    check_installed()
    from pynetdicom import AE, evt

    ae = AE(ae_title)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = TIMEOUT_SECONDS
    association = ae.associate(
        to.host,
        to.port,
        list(contexts),
        ae_title=to.ae_title,
        evt_handlers=[(evt.EVT_CONN_OPEN, _without_delay), *handlers],
        ext_neg=list(roles),
        tls_args=(to.tls.client(), to.host) if to.tls else None,
    )
    if not association.is_established:
        raise _not_associated(association, to)
    try:
        yield association
    except BaseException:
        association.abort()  # who did not answer is not waited for once more
        raise
    if association.is_established:
        association.release()


def _not_associated(association: Association, to: Destination) -> NetworkError:
    """Why there is no association; pynetdicom ends one itself in which no context was accepted."""
    kind, found = (
        (NetworkError, "refused")
        if association.is_rejected
        else (NoneTaken, "takes none of what it was asked for")
        if association.rejected_contexts
        else (Away, "did not answer")
    )
    return kind(
        f"expected an association with {one_line(to.name)}, found that it {found}",
        "Check host, port, AE titles and TLS on both sides",
    )


def _without_delay(event: Any) -> None:
    """Send what is short at once: a C-STORE is a short part and a long one, and the long would wait for an answer."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def web_client(to: Destination) -> DICOMwebClient:
    """A client of a DICOMweb service.

    Raises:
        InputError: Its authorization is not there, or a file of its TLS cannot be used.
    """
    check_installed()
    import requests
    from dicomweb_client import DICOMwebClient

    ca = to.tls.ca if to.tls else None

    class Session(requests.Session):
        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            """What requests would do, but REQUESTS_CA_BUNDLE does not stand for the authority that was chosen."""
            return super().merge_environment_settings(url, proxies, stream, str(ca) if ca else verify, cert)

    session = Session()
    session.hooks["response"] += [partial(_refuse_part, to), partial(_refuse_stranger, to)]
    if to.tls:
        to.tls.client()  # refuses files that cannot be used
        if to.tls.certificate:
            session.cert = (str(to.tls.certificate), str(to.tls.key or to.tls.certificate))
    authorization = to.authorization()
    headers = {"Authorization": authorization} if authorization else None
    client = DICOMwebClient(to.url, session=session, headers=headers, timeout=TIMEOUT_SECONDS)
    client.set_http_retry_params(retry=False)
    return client


def _refuse_part(to: Destination, answer: requests.Response, **_: Any) -> None:
    """Have the content of a multipart answer that ends before its closing boundary (RFC 2046 section 5.1.1) be refused.

    A connection that is cut looks like an end where the length was not announced.

    Args:
        to: Who answers.
        answer: Of which nothing is read yet.
    """
    header = Message()
    header["Content-Type"] = answer.headers.get("Content-Type", "")
    boundary = header.get_boundary()
    if header.get_content_maintype() != "multipart" or boundary is None:
        return
    closing, pieces = f"--{boundary}--".encode(), answer.iter_content

    def whole(*words: Any, **named: Any) -> Iterator[bytes]:
        end = b""
        for piece in pieces(*words, **named):
            end = (end + piece)[-len(closing) - _EPILOGUE :]
            yield piece
        if closing not in end:
            raise NetworkError(
                f"expected the whole answer of {one_line(to.name)}, found that it ends early",
                "Try again, or ask who runs it",
            )

    answer.iter_content = whole  # type: ignore[method-assign]


def _refuse_stranger(to: Destination, answer: requests.Response, **_: Any) -> None:
    """Refuse to ask in clear what was encrypted, and what answers a POST in place of the service.

    Such as a page to log in: it stores nothing. dicomweb_client would take it for an answer that names no failure, and
    so it would one whose media type has a parameter, such as its character set, which is therefore left out.

    Args:
        to: Who should answer.
        answer: One of success or redirection. A POST that is redirected is repeated as a GET, which stores nothing,
            but by two of its statuses.
    """
    schemes = [urlsplit(url).scheme for url in (answer.url, urljoin(answer.url, answer.headers.get("Location", "")))]
    if answer.is_redirect and schemes == ["https", "http"]:
        answer.close()
        raise NetworkError(
            f"expected {one_line(to.name)} to answer, found that it redirects from https to http",
            "Ask who runs it; what a request names, and its answer, would pass in clear",
        )
    if answer.request.method != "POST" or not answer.ok:
        return
    if answer.is_redirect and answer.status_code in _REPEATED:
        return
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    is_elsewhere = answer.status_code >= 300
    if is_elsewhere or (answer.content and kind not in _STORED):
        found = f"HTTP status {answer.status_code}" if is_elsewhere else "something else than DICOMweb's answer"
        answer.close()
        raise NetworkError(
            f"expected {one_line(to.name)} to store an instance, found {found}", "Check the URL and the authorization"
        )
    answer.headers["Content-Type"] = kind


@contextmanager
def web_errors(to: Destination) -> Iterator[None]:
    """Turn what a web request raises into a `NetworkError`, `Away` where the service was not reached.

    Args:
        to: The service that is asked.
    """
    import requests

    try:
        yield
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        raise (Away if code in _AWAY else NetworkError)(
            f"expected {one_line(to.name)} to do what it was asked, found HTTP status {code}",
            "Check the URL and the authorization",
        ) from error
    except (requests.RequestException, ValueError, OSError, *_MISSHAPEN) as error:
        is_away = isinstance(error, requests.ConnectionError | requests.Timeout)
        is_away = is_away and not isinstance(error, requests.exceptions.SSLError)
        raise (Away if is_away else NetworkError)(
            f"expected an answer of {one_line(to.name)}, found none that can be understood ({type(error).__name__})",
            "Check the URL and TLS",
        ) from error
