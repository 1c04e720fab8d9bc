"""The contract of processing containers: a folder in, a folder out, settings and a report as JSON (docs/containers.md).

Mercure, MONAI application packages, Kaapana, the XNAT container service and scripts of Orthanc all start a container on
a folder of DICOM files and take what it leaves in another one. They differ in how the folders are named.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydicom import dcmread

from medfuse._version import __version__
from medfuse.defaults import NOTICE
from medfuse.errors import InputError, MedfuseError, OutputError, SeriesError
from medfuse.io.dicom_header import word
from medfuse.output import UNFINISHED, whole
from medfuse.pacs.rules import Rules, read_rules
from medfuse.pacs.study import Engines, Failure, PairResult, StudyResult, fuse_study, prepare
from medfuse.stages import Progress

#: The environment's names for the folder in and the folder out, by who sets them; the first whole pair counts.
PLACES = {
    "mercure": ("MERCURE_IN_DIR", "MERCURE_OUT_DIR"),
    "MONAI Deploy": ("MONAI_INPUTPATH", "MONAI_OUTPUTPATH"),
    "Holoscan": ("HOLOSCAN_INPUT_PATH", "HOLOSCAN_OUTPUT_PATH"),
}
#: A folder for every pair; or all files in the output folder itself, named SERIES#INSTANCE.dcm as mercure does.
LAYOUTS = ("folders", "flat")
TASK, RESULT = "task.json", "result.json"
#: Largest size of a task file, in bytes, that is read.
MAX_TASK_BYTES = 2**24
#: Of the meaning of the keys in the result.
SCHEMA = 1


@dataclass(frozen=True)
class Settings:
    """How a folder is worked off.

    Args:
        rules: What is a pair, and how it is fused.
        layout: A word of `LAYOUTS`.
        require: Refuse a folder that holds no pair.
        allow_failures: Let it pass that some pairs failed, as long as one was fused.
    """

    rules: Rules
    layout: str = "folders"
    require: bool = False
    allow_failures: bool = False


@dataclass(frozen=True)
class Report:
    """What became of a folder.

    Args:
        study: The pairs.
        exit_code: 0; or the code of the first failure, where that counts.
    """

    study: StudyResult
    exit_code: int

    @property
    def told(self) -> str:
        """The outcome as a line of words."""
        study = self.study
        if not study.pairs:
            return "nothing to fuse"
        look = [pair.rule for pair in study.fused if pair.needs_a_look]
        return (
            f"{len(study.fused)} of {len(study.pairs)} pairs fused"
            + (f"; look at the alignment of {', '.join(look)}" if look else "")
            + (f"; failed: {', '.join(pair.rule for pair in study.failed)}" if study.failed else "")
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, with what mercure looks for to send a notification."""
        return {
            "schema": SCHEMA,
            **self.study.to_json(),
            "exit_code": self.exit_code,
            "notice": NOTICE,
            "__mercure_notification": _notification(self.told, any(pair.needs_a_look for pair in self.study.pairs)),
        }


def folders(
    in_dir: Path | None, out_dir: Path | None, environment: Mapping[str, str] = os.environ
) -> tuple[Path, Path, str]:
    """The folders to read and to write, and who named them: "" for the caller, else a key of `PLACES`.

    Args:
        in_dir: The folder in, where the caller names it.
        out_dir: The folder out; both or none.
        environment: What else may name them.

    Raises:
        ValueError: Only one was given, or none and the environment has none.
    """
    if in_dir is not None and out_dir is not None:
        return in_dir, out_dir, ""
    if in_dir is not None or out_dir is not None:
        raise ValueError("expected IN_DIR and OUT_DIR, got one of them")
    for host, names in PLACES.items():
        found = [environment.get(name) for name in names]
        if all(found):
            return Path(str(found[0])), Path(str(found[1])), host
    listed = "; ".join(" and ".join(names) for names in PLACES.values())
    raise ValueError(f"expected IN_DIR and OUT_DIR, or in the environment one of: {listed}")


def read_settings(
    in_dir: Path,
    rules: Path | None = None,
    *,
    layout: str | None = None,
    require: bool = False,
    allow_failures: bool = False,
) -> Settings:
    """The settings of a run: what the task file says, over what the caller says.

    Args:
        in_dir: The folder in. A `task.json` in it is mercure's: its `process.settings` may hold `rules` and `fusion` as
            a file of rules does, `layout`, `require` and `allow_failures`.
        rules: A file of rules.
        layout: A word of `LAYOUTS`; None for "flat" where there is such a task, else "folders".
        require: As for `Settings`.
        allow_failures: As for `Settings`.

    Raises:
        InputError: The task or the rules cannot be read or hold what is not known.
    """
    task = _task(in_dir / TASK)
    asked = {"layout": layout or ("folders" if task is None else "flat")}
    switches = {"require": require, "allow_failures": allow_failures}
    settings = dict(task or {})
    asked = {name: settings.pop(name, value) for name, value in asked.items()}
    switches = {name: settings.pop(name, value) for name, value in switches.items()}
    if wrong := [name for name, value in switches.items() if not isinstance(value, bool)]:
        raise InputError(f"expected true or false as {wrong[0]} in {TASK}, found another value", "See docs/rules.md")
    if asked["layout"] not in LAYOUTS:
        raise InputError(f"expected a layout of {', '.join(LAYOUTS)}, found another", "See docs/containers.md")
    return Settings(read_rules(rules, settings), asked["layout"], **switches)


def _task(path: Path) -> dict[str, Any] | None:
    """The settings in mercure's task file; None where there is no such file. Whatever else it holds is not looked at.

    Raises:
        InputError: It cannot be read, or its settings are no mapping.
    """
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_TASK_BYTES:
            raise InputError(f"expected at most {MAX_TASK_BYTES} bytes in {path.name}, found more", "Check the file")
        content = json.loads(path.read_text(encoding="utf-8"))
        process = content.get("process") or {}
        settings = (process.get("settings") or {}) if isinstance(process, dict) else None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"expected a task as JSON, cannot read {path.name}", "Check the file") from error
    if not isinstance(settings, dict):
        raise InputError(
            f"expected one process with its settings in {path.name}, found something else", "See docs/containers.md"
        )
    return settings


def run(
    in_dir: Path,
    out_dir: Path,
    settings: Callable[[], Settings],
    engines: Engines | None = None,
    progress: Progress | None = None,
) -> Report:
    """Fuse what is to be fused in a folder, and write `result.json` beside the results.

    A `result.json` of an earlier run is removed first: where there is one, this run has come to its end, if only to
    refuse the settings or the folder.

    Args:
        in_dir: DICOM files, flat or nested, among any others.
        out_dir: Where to write; made where missing. It may be a mount point and hold other things.
        settings: Gives the settings; what it refuses is told in the result, too.
        engines: Warm engines.
        progress: Called as the work goes on.

    Raises:
        MedfuseError: The settings, the folder in or the folder out cannot be used, or nothing is to be fused and
            something is required. What goes wrong with a pair is part of the report.
    """
    prepare(out_dir)
    try:
        (out_dir / RESULT).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"could not replace {RESULT}", "Check the rights in the output folder") from error
    try:
        report = _run(in_dir, out_dir, settings(), engines, progress)
    except MedfuseError as error:
        _write(out_dir, _refusal(error))
        raise
    _write(out_dir, report.to_json())
    return report


def _run(in_dir: Path, out_dir: Path, settings: Settings, engines: Engines | None, progress: Progress | None) -> Report:
    work = _flat if settings.layout == "flat" else fuse_study
    study = work(in_dir, out_dir, settings.rules, engines, progress=progress)
    if settings.require and not study.pairs:
        why = "; ".join(dict.fromkeys(f"{one.modality}: {reason}" for one, reason in study.passed_over))
        raise SeriesError(
            f"expected a pair to fuse, found none ({why or 'no series'})", "Give both scans, or change the rules"
        )
    passes = settings.allow_failures and study.fused
    return Report(study, 0 if passes else study.exit_code)


def _flat(
    in_dir: Path, out_dir: Path, rules: Rules, engines: Engines | None, *, progress: Progress | None
) -> StudyResult:
    """As `fuse_study`, with all files in the output folder itself."""
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=out_dir) as temporary:
        study = fuse_study(in_dir, Path(temporary), rules, engines, progress=progress)
        return replace(study, pairs=tuple(_flattened(pair, Path(temporary), out_dir) for pair in study.pairs))


def _flattened(pair: PairResult, place: Path, out_dir: Path) -> PairResult:
    """Move the files of a pair to the output folder: all of them or none."""
    moved: list[Path] = []
    try:
        for name in pair.files:
            target = out_dir / _flat_name(place / name, pair.folder)
            (place / name).replace(target)
            moved.append(target)
    except OSError:
        for path in moved:
            path.unlink(missing_ok=True)
        failure = Failure.of(OutputError(f"could not write to {out_dir.name}", "Check the rights and the space there"))
        return replace(pair, folder="", files=(), failure=failure)
    return replace(pair, folder="", files=tuple(sorted(path.name for path in moved)))


def _flat_name(path: Path, pair: str) -> str:
    """How mercure names an image: by its series and itself; other files by the pair."""
    if path.suffix != ".dcm":
        return f"{pair}-{path.name}"
    header = dcmread(path, specific_tags=["SeriesInstanceUID", "SOPInstanceUID"], stop_before_pixels=True)
    return f"{word(header, 'SeriesInstanceUID')}#{word(header, 'SOPInstanceUID')}.dcm"


def _refusal(error: MedfuseError) -> dict[str, Any]:
    """The result of a run that was refused as a whole."""
    return {
        "schema": SCHEMA,
        "medfuse": __version__,
        "status": "refused",
        "pairs": [],
        "failure": asdict(Failure.of(error)),
        "exit_code": error.exit_code,
        "notice": NOTICE,
        "__mercure_notification": _notification(str(error), True),
    }


def _notification(text: str, requested: bool) -> dict[str, Any]:
    """What mercure puts into its notification, and whether to send one where a rule does so on request only."""
    return {"text": f"medfuse: {text}", "requested": requested}


def _write(out_dir: Path, content: dict[str, Any]) -> None:
    with whole(out_dir / RESULT, overwrite=True) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
