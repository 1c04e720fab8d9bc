"""The node's YAML file: what is read, what is refused and how it is told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from medfuse.cli import app
from medfuse.errors import InputError, OutputError
from medfuse.pacs.network import to_destination, to_listener, to_tls
from medfuse.pacs.settings import Allow, Bounds, Destination, Retry, Settings, Tls, read_settings

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
LEAST: dict[str, Any] = {"spool": "spool", "destinations": [{"name": "one", "ae_title": "ONE", "host": "h"}]}


def written(folder: Path, content: Any) -> Path:
    path = folder / "node.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_least_that_is_needed(tmp_path: Path) -> None:
    assert read_settings(written(tmp_path, LEAST)) == Settings(tmp_path / "spool", (Destination("one", "ONE", "h"),))


def test_the_example_has_every_key_with_its_default() -> None:
    path = EXAMPLES / "node.yaml"
    found = read_settings(path)
    assert found == Settings(found.spool, found.destinations)
    content = yaml.safe_load(path.read_text())
    assert content.keys() == {one.name for one in fields(Settings)}
    for name, kind in (("allow", Allow), ("bounds", Bounds), ("retry", Retry)):
        assert content[name].keys() == {one.name for one in fields(kind)}


def test_the_example_of_orthanc_is_in_order() -> None:
    found = read_settings(EXAMPLES / "orthanc" / "node.yaml")
    assert found.allow == Allow(("ORTHANC",), (ip_network("127.0.0.1/32"),))


def test_everything(tmp_path: Path) -> None:
    content = {
        **LEAST,
        "rules": "rules.yaml",
        "tls": {"certificate": "a.pem", "ca": "/b.pem"},
        "allow": {"addresses": ["10.0.0.0/8", "::1"]},
        "bounds": {"spool_mib": 5, "timeout_seconds": 2},
        "retry": {"attempts": 3},
        "monitor_port": 9112,
    }
    content["destinations"].append({"name": "web", "url": "https://h/dicom-web", "authorization_from": "TOKEN"})
    found = read_settings(written(tmp_path, content))
    assert found.rules == tmp_path / "rules.yaml"
    assert found.tls == Tls(tmp_path / "a.pem", None, Path("/b.pem"))
    assert (found.bounds, found.retry) == (Bounds(spool_mib=5, timeout_seconds=2), Retry(attempts=3))
    assert found.destinations[1] == Destination("web", url="https://h/dicom-web", authorization_from="TOKEN")
    allow = found.allow
    assert [allow.address(host) for host in ("10.1.2.3", "::ffff:10.1.2.3", "::1", "11.0.0.1", "fe80::1%eth0")] == [
        *(True, True, True, False, False)
    ]
    content["destinations"].pop()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"spool": None}, "spool: expected a text"),
        ({"destinations": []}, "out of range: destinations"),
        ({"destinations": LEAST["destinations"] * 2}, "out of range: destinations"),
        ({"destinations": [{"name": "one"}]}, "destinations: out of range: ae_title, host"),
        ({"destinations": [{"name": "one", "url": "ftp://h"}]}, "destinations: out of range: url"),
        ({"destinations": [{"name": "one", "url": "http://h", "host": "h"}]}, "destinations: out of range: host"),
        ({"destinations": [{"ae_title": "ONE"}]}, "a destination: missing name"),
        ({"destinations": "one"}, "destinations: expected a list"),
        ({"ae_title": "SEVENTEEN LETTERS"}, "out of range: ae_title"),
        ({"ae_title": "A\\B"}, "out of range: ae_title"),
        ({"priors_from": "other"}, "out of range: priors_from"),
        ({"port": 70000}, "out of range: port"),
        ({"port": "104"}, "port: expected a whole number, found a value of type str"),
        ({"port": True}, "port: expected a whole number, found a value of type bool"),
        ({"quiet_seconds": 0}, "out of range: quiet_seconds"),
        ({"quiet_seconds": 10**400}, "out of range: quiet_seconds"),
        ({"fuse_seconds": 1e7}, "out of range: fuse_seconds"),
        ({"bounds": {"timeout_seconds": 1e15}}, "bounds: out of range: timeout_seconds"),
        ({"quiet_seconds": "soon"}, "quiet_seconds: expected a number"),
        ({"ports": 1, "hots": 2}, "the node: unknown hots, ports"),
        ({"bounds": {"associations": 0}}, "bounds: out of range: associations"),
        ({"bounds": 5}, "bounds: bounds: expected keys with values, found a value of type int"),
        ({"allow": {"addresses": ["10.0.0.1/8"]}}, "addresses: 10.0.0.1/8 has host bits set"),
        ({"allow": {"any_called_title": "no"}}, "any_called_title: expected true or false"),
        ({"retry": {"first_seconds": 10, "longest_seconds": 5}}, "retry: out of range: longest_seconds"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=r"expected other values in node\.yaml") as refused:
        read_settings(written(tmp_path, {**LEAST, **change}))
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "content",
    ["- a\n- list", "not: [closed", "port: 2024-13-45", "port: 1" + "0" * 5000, "rules: " + "[" * 3000 + "]" * 3000],
    ids=["list", "open", "no date", "digits", "deep"],
)
def test_what_is_no_settings_at_all_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "node.yaml").write_text(content)
    with pytest.raises(InputError, match=r"expected .*node.*found a value of type list|cannot read node\.yaml"):
        read_settings(tmp_path / "node.yaml")
    with pytest.raises(InputError, match=r"cannot read none\.yaml"):
        read_settings(tmp_path / "none.yaml")


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Destination("web", url="http://h", authorization_from="MEDFUSE_TEST_TOKEN")
    with pytest.raises(InputError, match="environment variable MEDFUSE_TEST_TOKEN"):
        place.authorization()
    monkeypatch.setenv("MEDFUSE_TEST_TOKEN", "Bearer abc")
    assert place.authorization() == "Bearer abc"
    assert Destination("web", url="http://h").authorization() == ""


@pytest.mark.parametrize(
    "url", ["http://user:secret@h/web", " HTTPS://secret@h", "http:/user:secret@h", "ftp://u:secret@h"]
)
def test_a_password_in_a_url_is_refused_and_not_told(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match=r"expected a URL without user and password.*authorization_from") as refused:
        to_destination(url)
    assert "secret" not in str(refused.value)
    for key in ("url", "name", "host"):
        destination = {"name": "one", "ae_title": "ONE", key: url}
        with pytest.raises(InputError, match="expected a URL without user and password") as told:
            read_settings(written(tmp_path, {**LEAST, "destinations": [destination]}))
        assert "secret" not in str(told.value)


def test_keys_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("no certificate")
    with pytest.raises(InputError, match="expected a certificate for TLS, found none"):
        Tls().server()
    with pytest.raises(InputError, match="expected certificate, key and authority as PEM files"):
        Tls(tmp_path / "a.pem").server()
    with pytest.raises(InputError, match="expected certificate, key and authority as PEM files"):
        Tls(ca=tmp_path / "none.pem").client()


def test_places_on_the_command_line() -> None:
    assert to_destination("A B@h:104") == Destination("A B@h:104", "A B", "h", 104)
    assert to_destination("A@[::1]:104").host == "::1"
    assert to_destination("https://h/web", authorization_from="X").authorization_from == "X"
    for wrong in ("", "h:104", "A@h", "A@h:port", "A@:104", "@h:104", "A@h:99999"):
        with pytest.raises(ValueError, match="expected AE_TITLE@HOST:PORT or a URL"):
            to_destination(wrong)
    assert to_listener("127.0.0.1:11113") == ("127.0.0.1", 11113)
    for wrong in ("11113", "h:", ":1"):
        with pytest.raises(ValueError, match="expected HOST:PORT"):
            to_listener(wrong)
    assert to_tls(False, None, None, None) is None
    assert to_tls(True, None, None, None) == Tls()


def test_serve_checks_everything_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def serve(content: Any) -> None:
        app(["serve", str(written(tmp_path, content)), "--check"], standalone_mode=False)

    serve(LEAST)
    assert capsys.readouterr().out == "node.yaml: in order\n"
    with pytest.raises(InputError, match="out of range: port"):
        serve({**LEAST, "port": -1})
    (tmp_path / "rules.yaml").write_text("rules: 5")
    with pytest.raises(InputError, match=r"rules\.yaml"):
        serve({**LEAST, "rules": "rules.yaml"})
    (one,) = LEAST["destinations"]
    tls = {"ca": "none.pem"}
    for wrong in ({"tls": {"certificate": "none.pem"}}, {"destinations": [{**one, "tls": tls}]}):
        with pytest.raises(InputError, match="expected certificate, key and authority as PEM files"):
            serve({**LEAST, **wrong})
    web = {"name": "web", "url": "http://h", "authorization_from": "MEDFUSE_TEST_ABSENT"}
    with pytest.raises(InputError, match="environment variable MEDFUSE_TEST_ABSENT"):
        serve({**LEAST, "destinations": [web]})
    with pytest.raises(OutputError, match="expected a folder to keep studies in, cannot make or write spool"):
        serve({**LEAST, "spool": "rules.yaml/spool"})
    pair = {"name": "near", "structural": {"modality": "MR"}, "functional": {"modality": "PT"}, "within_days": 3}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"rules": [pair]}))
    serve({**LEAST, "rules": "rules.yaml"})
    assert "warning: node.yaml has no priors_from" in capsys.readouterr().err
    (tmp_path / "nifti.yaml").write_text(yaml.safe_dump({"rules": [pair], "fusion": {"format": "nifti"}}))
    with pytest.raises(InputError, match="expected rules of a node to make DICOM, found format nifti in near"):
        serve({**LEAST, "rules": "nifti.yaml"})
    serve({**LEAST, "rules": "rules.yaml", "priors_from": "one"})
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "spool").exists()


def test_without_the_libraries_it_says_what_to_install(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["pynetdicom"] = None
from medfuse.cli import app
app(sys.argv[1:], standalone_mode=False)
"""
    for words in (("serve", "node.yaml"), ("push", "x", "--to", "A@h:1"), ("pull", "--from", "A@h:1", "--study", "1")):
        ran = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, timeout=60
        )
        assert "pip install dicomweb-client pynetdicom" in ran.stderr
