"""`medfuse run` as a host of containers meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import Command, medfuse  # noqa: F401
from test_pacs_contract import AVERAGE, task
from test_pacs_study import IDENTITY, incoming, out  # noqa: F401

from medfuse.defaults import NOTICE


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps(AVERAGE))
    return path


def test_it_says_what_it_did(medfuse: Command, incoming: Path, out: Path, rules: Path) -> None:  # noqa: F811
    ran = medfuse("run", incoming, out, "--rules", rules, "--device", "cpu")
    assert (ran.code, ran.err) == (0, "")
    first, second, *others = ran.out.splitlines()
    assert first.startswith("uptake-on-mr: MR 1 and PT 2, aligned by: one frame of reference; ")
    assert second.startswith("ct-on-mr: MR 1 and CT 3, aligned by: ")
    assert others == ["2 of 2 pairs fused", NOTICE]
    assert IDENTITY not in ran.out


def test_json_is_that_of_the_result(medfuse: Command, incoming: Path, out: Path, rules: Path) -> None:  # noqa: F811
    ran = medfuse("run", incoming, out, "--rules", rules, "--device", "cpu", "--json")
    assert ran.json == json.loads((out / "result.json").read_text())


def test_the_environment_and_the_task(
    medfuse: Command,  # noqa: F811
    incoming: Path,  # noqa: F811
    out: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task(incoming, AVERAGE)
    monkeypatch.setenv("MERCURE_IN_DIR", str(incoming))
    monkeypatch.setenv("MERCURE_OUT_DIR", str(out))
    ran = medfuse("run", "--device", "cpu")
    assert (ran.code, ran.err) == (0, "")
    assert all("#" in path.name for path in out.iterdir() if path.suffix == ".dcm")
    assert not any(path.is_dir() for path in out.iterdir())


def test_failures_and_what_was_passed_over(
    medfuse: Command,  # noqa: F811
    incoming: Path,  # noqa: F811
    out: Path,  # noqa: F811
    rules: Path,
) -> None:
    for path in (incoming / "ct").iterdir():
        path.unlink()
    task(incoming, {"fusion": {"method": "average", "window": "soft-tissue"}})
    ran = medfuse("run", incoming, out, "--device", "cpu")
    assert ran.code == 3
    assert ran.err.startswith("uptake-on-mr: failed: expected a CT in HU for the window soft-tissue")
    assert ran.out.splitlines() == ["0 of 1 pairs fused; failed: uptake-on-mr", NOTICE]
    for path in (incoming / "mr").iterdir():
        path.unlink()
    ran = medfuse("run", incoming, out, "--rules", rules)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("passed over: PT, number 2, 6 slices: fits uptake-on-mr, uptake-on-ct, where")
    assert medfuse("run", incoming, out, "--require").code == 3


@pytest.mark.parametrize(
    ("code", "match", "words"),
    [
        (2, "expected IN_DIR and OUT_DIR, got one", "in"),
        (2, "expected IN_DIR and OUT_DIR, or in the environment", ""),
        (2, "expected a layout of folders, flat, got 'round'", "in out --layout round"),
        (2, "expected a device", "in out --device abacus"),
        (3, "cannot read none.yaml", "in out --rules none.yaml"),
        (3, "found none named none", "none out"),
    ],
)
def test_what_is_refused(
    medfuse: Command,  # noqa: F811
    incoming: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    match: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = medfuse("run", *words.split())
    assert (ran.code, ran.out) == (code, "")
    assert match in ran.err
    assert ran.err.startswith("medfuse: ")
    assert len(ran.err.splitlines()) == 1
