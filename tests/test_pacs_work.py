"""Fusing in a process of its own: what comes back, and what a crash, a hang or the end of the node leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from nodes import PATIENT, wait_for

from medfuse.errors import NetworkError, OutputError
from medfuse.pacs.settings import Destination, Settings
from medfuse.pacs.work import Apart, Outcome, WorkFailed, fuse_by, to_outcome


def test_what_the_node_makes_of_a_result() -> None:
    from medfuse.pacs.study import Failure, PairResult, SeriesTold, StudyResult  # slow to load, in workers too

    def pair(rule: str, failure: Failure | None = None) -> PairResult:
        series = SeriesTold("1.2", None, 1, "MR", 5)
        return PairResult(rule, series, series, rule, failure=failure)

    apart, full = Failure("NoOverlap", "nothing overlaps", "", 4), Failure("OutputError", "no space", "", 7)
    assert to_outcome(StudyResult(())) == Outcome("no pair to fuse")
    assert to_outcome(StudyResult((pair("a"),))) == Outcome()
    assert to_outcome(StudyResult((pair("a"), pair("b", apart)))) == Outcome("b: nothing overlaps", is_flawed=True)
    assert to_outcome(StudyResult((pair("a", full), pair("b", apart), pair("c")))) == Outcome(
        "a: no space; b: nothing overlaps", is_flawed=True, may_pass=True
    )


def _settings(folder: Path, **words: Any) -> Settings:
    archive = Destination("archive", "ARCHIVE", "pacs.example")
    return Settings(folder, (archive,), priors_from="archive", **words)


def test_what_does_not_pass_is_not_tried_again(tmp_path: Path) -> None:
    outcome = fuse_by(_settings(tmp_path, rules=tmp_path / "none.yaml"))(tmp_path / "in", tmp_path / "out")
    assert outcome == Outcome("expected a YAML file of rules, cannot read none.yaml. See docs/rules.md", is_flawed=True)


@pytest.mark.parametrize("pairs", [1, 0])
def test_without_other_studies_a_pair_of_the_study_is_fused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    from medfuse.pacs import priors, study

    def fetch(*_: Any) -> int:
        raise NetworkError("nobody answers")

    series = study.SeriesTold("1.2", None, 1, "MR", 5)
    found = study.StudyResult((study.PairResult("a", series, series, "a"),) * pairs)
    monkeypatch.setattr(priors, "fetch_priors", fetch)
    monkeypatch.setattr(study, "fuse_study", lambda *_: found)
    fuse = fuse_by(_settings(tmp_path))
    if pairs:
        told = "without other studies of the patient: nobody answers"
        assert fuse(tmp_path / "in", tmp_path / "out") == Outcome(told, is_flawed=True)
    else:
        with pytest.raises(NetworkError, match="nobody answers"):
            fuse(tmp_path / "in", tmp_path / "out")


def _crash(source: Path, out: Path) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return Outcome()


def _dawdle(source: Path, out: Path) -> Outcome:
    (out / "pid").write_text(str(os.getpid()))
    time.sleep(60)
    return Outcome()


def _fail(source: Path, out: Path) -> Outcome:
    if source.name == "memory":
        raise MemoryError(PATIENT)
    if source.name == "value":
        raise ValueError(PATIENT)
    raise OutputError("expected space", "Make some")


def _work(source: Path, out: Path) -> Outcome:
    return Outcome(f"{source.name} {out.name}")


def test_fusing_apart_gives_back_what_came_of_it(tmp_path: Path) -> None:
    assert Apart(_work, 60)(tmp_path / "a", tmp_path / "b") == Outcome("a b")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("memory", "^not enough memory$"),
        ("value", "^an unforeseen ValueError$"),
        ("output", r"^expected space\. Make some$"),
    ],
)
def test_fusing_apart_tells_errors_without_patients(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(WorkFailed, match=told):
        Apart(_fail, 60)(tmp_path / name, tmp_path)


def test_fusing_apart_outlives_a_crash(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match="ended with -9"):
        Apart(_crash, 60)(tmp_path, tmp_path)


def test_fusing_apart_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match="at most 3 s"):
        Apart(_dawdle, 3)(tmp_path, tmp_path)
    assert not _lives(int((tmp_path / "pid").read_text()))


def _who(source: Path, out: Path) -> Outcome:
    return Outcome(str((os.getpid(), "medfuse.pacs.study" in sys.modules)))


def test_a_spare_process_is_loaded_ahead_and_used_once() -> None:
    apart = Apart(_who, 60)
    apart.start()
    try:
        first = apart._spare
        assert first is not None
        assert apart(Path(), Path()) == Outcome(str((first.process.pid, True)))
        assert not _lives(first.process.pid or 0)
        second = apart._spare
        assert second not in (None, first)
        second.process.kill()
        second.process.join()
        assert apart(Path(), Path()).note.endswith("False)")  # another, which has loaded nothing ahead
        third = apart._spare.process
    finally:
        apart.stop()
    assert not third.is_alive()


def test_fusing_ends_with_the_node(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from medfuse.pacs.work import Apart; import test_pacs_work\n"
        "Apart(test_pacs_work._dawdle, 60)(Path(sys.argv[1]), Path(sys.argv[1]))"
    )
    node = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parent)
    wait_for((tmp_path / "pid").exists, 60)
    worker = int(wait_for((tmp_path / "pid").read_text))
    assert _lives(worker)
    node.kill()
    node.wait()
    wait_for(lambda: not _lives(worker))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
