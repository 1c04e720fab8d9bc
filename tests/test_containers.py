"""The container's recipe names only what is there, and the examples for its hosts agree with it."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

import medfuse
from medfuse.cli import app
from medfuse.pacs.contract import PLACES
from medfuse.pacs.rules import read_rules

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "containers"
TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")
#: Instruction and the rest of it, continued lines joined.
LINES = [
    tuple(line.split(None, 1))
    for line in re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", TEXT)).splitlines()
    if line.strip()
]
DEFAULTS = dict(rest.split("=", 1) for word, rest in LINES if word == "ARG")
COPIED = [shlex.split(rest) for word, rest in LINES if word == "COPY" and "--from" not in rest]


def of(word: str) -> list[str]:
    return [rest for instruction, rest in LINES if instruction == word]


def read_json(name: str) -> Any:
    return json.loads((EXAMPLES / name).read_text(encoding="utf-8"))


def test_only_known_instructions_stand_there() -> None:
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "LABEL", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in LINES} == known


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [path for words in COPIED for path in [word for word in words if not word.startswith("--")][:-1]]
    assert {"medfuse", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in allowed)


def test_the_package_finds_what_it_needs_to_be_built() -> None:
    needed = re.findall(r'(?:readme = "|license-files = \[")([^"]+)', (ROOT / "pyproject.toml").read_text())
    assert needed
    assert set(needed) <= {word for words in COPIED for word in words}


def test_every_argument_has_a_default_and_is_used() -> None:
    assert set(DEFAULTS) == {"PYTHON", "TORCH_INDEX", "EXTRAS", "VERSION"}
    assert all(f"${{{name}}}" in TEXT for name in DEFAULTS)
    assert DEFAULTS["TORCH_INDEX"].endswith("/cpu")
    assert DEFAULTS["VERSION"] == medfuse.__version__


def test_the_shell_takes_what_is_run() -> None:
    for command in of("RUN"):
        checked = subprocess.run(["sh", "-n", "-c", command], check=False, capture_output=True, text=True, timeout=30)
        assert (checked.returncode, checked.stderr) == (0, "")
    for script in EXAMPLES.glob("*.sh"):
        checked = subprocess.run(["sh", "-n", script], check=False, capture_output=True, text=True, timeout=30)
        assert (checked.returncode, checked.stderr) == (0, "")
        assert os.access(script, os.X_OK)


def test_it_runs_as_nobody_in_particular() -> None:
    assert of("USER") == ["10001:10001"]
    assert [json.loads(rest) for rest in (*of("ENTRYPOINT"), *of("CMD"))] == [["medfuse"], ["run"]]
    assert LINES.index(("USER", "10001:10001")) > max(n for n, (word, _) in enumerate(LINES) if word in ("RUN", "COPY"))


def test_its_commands_are_commands() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    named = [*re.findall(r"medfuse/bin/medfuse (\w+)", TEXT), json.loads(of("CMD")[0])[0]]
    assert named == ["methods", "run"]
    assert set(named) <= set(group.commands)


def test_the_manifests_of_a_monai_package() -> None:
    application, package = read_json("app.json"), read_json("pkg.json")
    assert application["version"] == package["version"] == medfuse.__version__
    assert application["type"] == "application"
    assert application["command"] == "medfuse run"
    environment = application["environment"]
    assert tuple(environment) == PLACES["Holoscan"]
    for name, place in environment.items():
        assert f"{name}={place}" in TEXT
    assert application["input"]["formats"]
    assert application["output"]["format"]
    assert f"COPY --from=build {package['applicationRoot']} {package['applicationRoot']}" in TEXT


def test_the_settings_of_mercure_are_rules() -> None:
    module = read_json("mercure.json")["modules"]["medfuse"]
    settings = module["settings"]
    assert settings.pop("allow_failures") is True
    assert [rule.name for rule in read_rules(None, settings).rules] == ["pet-on-mr"]
    for name in ("docker_arguments", "environment"):  # JSON in JSON
        assert isinstance(json.loads(module[name]), dict)


def test_the_command_of_xnat_is_complete() -> None:
    command = read_json("xnat.json")
    mounts = {mount["name"]: mount for mount in command["mounts"]}
    (wrapper,) = command["xnat"]
    line = command["command-line"]
    assert line.startswith(f"medfuse run {mounts['in']['path']} {mounts['out']['path']} ")
    assert (mounts["in"]["writable"], mounts["out"]["writable"]) == (False, True)
    assert [one["replacement-key"] in line for one in command["inputs"]] == [True]
    assert [one["provides-files-for-command-mount"] for one in wrapper["external-inputs"]] == ["in"]
    assert [one["mount"] for one in command["outputs"]] == ["out"]
    (handler,) = wrapper["output-handlers"]
    assert handler["accepts-command-output"] == command["outputs"][0]["name"]
    assert handler["as-a-child-of"] == wrapper["external-inputs"][0]["name"]


@pytest.fixture
def path_with_recorder(tmp_path: Path) -> str:
    """A search path on which `medfuse` notes its words, and fails for a folder "bad"."""
    program = tmp_path / "bin" / "medfuse"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase "$2" in *bad*) exit 5;; esac\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def test_a_batch_of_kaapana_is_worked_off(tmp_path: Path, path_with_recorder: str) -> None:
    batch = tmp_path / "flow" / "batch"
    for name in ("1.2.3", "bad one", "other"):
        (batch / name / "get-input").mkdir(parents=True)
    (batch / "without").mkdir()
    environment = {
        **{"PATH": path_with_recorder, "WORKFLOW_DIR": str(tmp_path / "flow"), "BATCH_NAME": "batch"},
        **{"OPERATOR_IN_DIR": "get-input", "OPERATOR_OUT_DIR": "fused"},
    }
    command = [str(EXAMPLES / "kaapana.sh"), "--require"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=30)
    assert (ran.returncode, ran.stderr) == (5, "")
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"run {batch}/{name}/get-input {batch}/{name}/fused --require" for name in ("1.2.3", "bad one", "other")
    ]
    del environment["BATCH_NAME"]
    assert subprocess.run(command, check=False, capture_output=True, env=environment, timeout=30).returncode != 0
