"""How a node is set up: one YAML file, checked before anything starts. `examples/node.yaml` shows every key."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from medfuse.defaults import AE_TITLE
from medfuse.errors import InputError
from medfuse.values import Readers, check_range, content_of, items, number, or_none, section, text, truth, whole

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
#: The longest time that may be set: eleven days. No system waits for more than 2³¹ ms.
MOST_SECONDS = 1e6


@dataclass(frozen=True)
class Tls:
    """Keys of a TLS connection, PEM files.

    Args:
        certificate: Our certificate, and those between it and the authority; a server needs one.
        key: Its private key; None where the certificate's file holds it.
        ca: Whom to trust. A node that has it lets in only callers with a certificate of this authority; where a
            destination has none, the system's authorities are trusted.
    """

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def server(self) -> ssl.SSLContext:
        """The context of who is called.

        Raises:
            InputError: A file cannot be used, or there is no certificate.
        """
        if self.certificate is None:
            raise InputError("expected a certificate for TLS, found none", "Name it as `certificate` under `tls`")
        context = self._context(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED if self.ca else ssl.CERT_NONE
        return context

    def client(self) -> ssl.SSLContext:
        """The context of who calls.

        Raises:
            InputError: A file cannot be used.
        """
        return self._context(ssl.Purpose.SERVER_AUTH)

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(purpose, cafile=self.ca)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                "expected certificate, key and authority as PEM files that belong together, cannot use them",
                "Check the files named under `tls`",
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


@dataclass(frozen=True)
class Destination:
    """Where results go: a DICOM node (C-STORE), or a DICOMweb service (STOW-RS) if it has a URL.

    Args:
        name: What the queue and the logs call it.
        ae_title: The AE title called.
        host: Its host.
        port: Its port.
        url: Base URL of DICOMweb.
        authorization_from: Name of the environment variable that holds the HTTP header Authorization, so that no secret
            stands in the file.
        tls: For TLS; None for none over DICOM, and for the system's authorities over HTTPS.
    """

    name: str
    ae_title: str = ""
    host: str = ""
    port: int = 104
    url: str = ""
    authorization_from: str = ""
    tls: Tls | None = None

    def __post_init__(self) -> None:
        for place in (self.name, self.host, self.url):
            refuse_secrets(place)
        fine = {
            "name": bool(self.name) and self.name.isprintable(),
            "ae_title": bool(self.url) or _is_ae_title(self.ae_title),
            "host": bool(self.url) != bool(self.host),
            "port": 0 < self.port < 2**16,
            "url": not self.url or self.url.startswith(("http://", "https://")),
        }
        check_range(fine)

    def authorization(self) -> str:
        """The HTTP header Authorization, or nothing.

        Raises:
            InputError: The environment does not hold it.
        """
        if self.authorization_from and not os.environ.get(self.authorization_from):
            raise InputError(
                f"expected the environment variable {self.authorization_from}, found none",
                "Set it to the content of the HTTP header Authorization, such as: Bearer TOKEN",
            )
        return os.environ.get(self.authorization_from, "") if self.authorization_from else ""


@dataclass(frozen=True)
class Allow:
    """Who may send.

    Args:
        ae_titles: Calling AE titles; none for any.
        addresses: Addresses or networks; none for any that reach the node, which by default listens on loopback only.
        any_called_title: Take what is sent to another AE title, too.
    """

    ae_titles: tuple[str, ...] = ()
    addresses: tuple[Network, ...] = ()
    any_called_title: bool = False

    def __post_init__(self) -> None:
        check_range({"ae_titles": all(_is_ae_title(title) for title in self.ae_titles)})

    def address(self, host: str) -> bool:
        """Whether a host may connect."""
        found = ipaddress.ip_address(host.partition("%")[0])
        plain = getattr(found, "ipv4_mapped", None) or found
        return not self.addresses or any(plain in network for network in self.addresses)


@dataclass(frozen=True)
class Bounds:
    """What senders may take.

    Args:
        associations: Connections at a time.
        per_host: Of these, from one address.
        pdu_bytes: Longest message part (P-DATA) that we offer to take.
        object_mib: Largest instance.
        buffer_mib: What all instances under way may take of memory together.
        free_mib: Space on the disk below which instances are refused.
        spool_mib: Space that the node may fill; None for what `free_mib` leaves.
        timeout_seconds: How long a connection may be silent, or take for one message part.
    """

    associations: int = 20
    per_host: int = 10
    pdu_bytes: int = 65536
    object_mib: int = 512
    buffer_mib: int = 1024
    free_mib: int = 1024
    spool_mib: int | None = None
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        fine = {
            "associations": self.associations >= 1,
            "per_host": self.per_host >= 1,
            "pdu_bytes": 4096 <= self.pdu_bytes <= 2**24,
            "object_mib": self.object_mib >= 1,
            "buffer_mib": self.buffer_mib >= 1,
            "free_mib": self.free_mib >= 0,
            "spool_mib": self.spool_mib is None or self.spool_mib >= 1,
            "timeout_seconds": 0 < self.timeout_seconds <= MOST_SECONDS,
        }
        check_range(fine)


@dataclass(frozen=True)
class Retry:
    """How often and when what failed is tried again: after `first_seconds`, then twice as long each time.

    Args:
        attempts: After so many a study or a delivery is dead. To have reached no destination at all is none.
        first_seconds: Wait after the first.
        longest_seconds: Longest wait.
    """

    attempts: int = 10
    first_seconds: float = 10.0
    longest_seconds: float = 3600.0

    def __post_init__(self) -> None:
        fine = {
            "attempts": self.attempts >= 1,
            "first_seconds": 0 < self.first_seconds <= MOST_SECONDS,
            "longest_seconds": self.first_seconds <= self.longest_seconds <= MOST_SECONDS,
        }
        check_range(fine)

    def after(self, attempts: int) -> float | None:
        """Seconds to wait after so many failed attempts, at least 1; None to give up.

        >>> [Retry(attempts=4, first_seconds=10, longest_seconds=15).after(n) for n in (1, 2, 3, 4)]
        [10.0, 15, 15, None]
        """
        if attempts >= self.attempts:
            return None
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(attempts - 1, 60))

    def while_away(self, seconds: float) -> float:
        """Seconds to wait for a destination that has not been reached for so long: as long again.

        >>> [Retry(first_seconds=10, longest_seconds=15).while_away(seconds) for seconds in (0, 12, 1000)]
        [10, 12, 15]
        """
        return min(self.longest_seconds, max(self.first_seconds, seconds))


@dataclass(frozen=True)
class Settings:
    """A node, whole; the YAML file has these keys, of which those with a default may be left out.

    Args:
        spool: Folder for studies and the queue.
        destinations: Where results go; at least one.
        ae_title: Ours.
        host: Address to listen on; loopback unless told otherwise.
        port: Port to listen on; 0 for any.
        rules: File of the rules that find pairs; None for the built-in ones.
        priors_from: Name of the destination that is asked for other studies of the patient where a rule has
            `within_days`; None for none.
        quiet_seconds: How long no instance of a study must have come before it is fused.
        keep_hours: How long a study's files are kept after it is done.
        fuse_seconds: How long a study's fusion may take.
        monitor_port: Port on loopback of health and metrics, 0 for any; None for none.
        tls: For TLS; None for none.
        allow: Who may send.
        bounds: What senders may take.
        retry: What is done with what failed.
    """

    spool: Path
    destinations: tuple[Destination, ...]
    ae_title: str = AE_TITLE
    host: str = "127.0.0.1"
    port: int = 11112
    rules: Path | None = None
    priors_from: str | None = None
    quiet_seconds: float = 30.0
    keep_hours: float = 24.0
    fuse_seconds: float = 3600.0
    monitor_port: int | None = None
    tls: Tls | None = None
    allow: Allow = field(default_factory=Allow)
    bounds: Bounds = field(default_factory=Bounds)
    retry: Retry = field(default_factory=Retry)

    def __post_init__(self) -> None:
        names = [destination.name for destination in self.destinations]
        fine = {
            "destinations": bool(names) and len(set(names)) == len(names),
            "ae_title": _is_ae_title(self.ae_title),
            "host": bool(self.host),
            "port": 0 <= self.port < 2**16,
            "priors_from": self.priors_from is None or self.priors_from in names,
            "quiet_seconds": 0 < self.quiet_seconds <= MOST_SECONDS,
            "keep_hours": isfinite(self.keep_hours) and self.keep_hours >= 0,
            "fuse_seconds": 0 < self.fuse_seconds <= MOST_SECONDS,
            "monitor_port": self.monitor_port is None or 0 <= self.monitor_port < 2**16,
        }
        check_range(fine)

    def check(self) -> None:
        """Refuse keys of TLS and authorizations that cannot be used.

        Raises:
            InputError: One cannot be.
        """
        if self.tls:
            self.tls.server()
        for destination in self.destinations:
            destination.authorization()
            if destination.tls:
                destination.tls.client()

    @property
    def archive_of_priors(self) -> Destination | None:
        """The destination that is asked for other studies of the patient."""
        return next((one for one in self.destinations if one.name == self.priors_from), None)


def read_settings(path: Path) -> Settings:
    """Read a node's YAML file; paths in it are relative to its folder.

    Raises:
        InputError: It cannot be read, or a key is missing, unknown, of another kind than expected or out of range.
    """
    content = content_of(path, "a node's YAML file")
    try:
        return section(Settings, _readers(path.parent), "the node")(content)
    except (TypeError, ValueError) as error:
        raise InputError(f"expected other values in {path.name}: {error}", "See examples/node.yaml") from error


def _readers(folder: Path) -> Readers:
    """How the value of each key of a node is read; paths are relative to a folder."""

    def path(value: Any) -> Path:
        return folder / Path(text(value)).expanduser()

    tls = section(Tls, {"certificate": path, "key": path, "ca": path}, "tls")
    destination: Readers = {
        **dict.fromkeys(("name", "ae_title", "host", "url", "authorization_from"), text),
        "port": whole,
        "tls": tls,
    }
    allow: Readers = {"ae_titles": items(text), "addresses": items(_network), "any_called_title": truth}
    bounds: Readers = {
        **dict.fromkeys(("associations", "per_host", "pdu_bytes", "object_mib", "buffer_mib", "free_mib"), whole),
        "spool_mib": or_none(whole),
        "timeout_seconds": number,
    }
    retry: Readers = {"attempts": whole, "first_seconds": number, "longest_seconds": number}
    return {
        "spool": path,
        "destinations": items(section(Destination, destination, "a destination")),
        "ae_title": text,
        "host": text,
        "port": whole,
        "rules": or_none(path),
        "priors_from": or_none(text),
        "quiet_seconds": number,
        "keep_hours": number,
        "fuse_seconds": number,
        "monitor_port": or_none(whole),
        "tls": or_none(tls),
        "allow": section(Allow, allow, "allow"),
        "bounds": section(Bounds, bounds, "bounds"),
        "retry": section(Retry, retry, "retry"),
    }


def refuse_secrets(text: str) -> None:
    """Refuse a URL with a user or a password: it would be told in every message and log.

    Raises:
        ValueError: It is one; the message does not quote it.
    """
    if re.match(r"\s*(https?:/*|[a-z][a-z0-9+.-]*://)[^/?#]*@", text, re.IGNORECASE):
        raise ValueError(
            "expected a URL without user and password, found one with them; put the HTTP header Authorization into an "
            "environment variable, and name that with authorization_from (--authorization-from)"
        )


def _is_ae_title(text: str) -> bool:
    r"""Whether a text is an AE title: 1 to 16 ASCII characters, no backslash, not only spaces (PS3.5 section 6.2)."""
    return 0 < len(text.strip()) <= len(text) <= 16 and text.isascii() and text.isprintable() and "\\" not in text


def _network(value: Any) -> Network:
    return ipaddress.ip_network(text(value))
