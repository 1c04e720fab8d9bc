"""Fuse whatever the rules make pairs of in a folder: one bad pair does not stop the others."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from medfuse._version import __version__
from medfuse.alignment import Alignment, align
from medfuse.errors import InputError, MedfuseError, MedfuseWarning, OutputError
from medfuse.fusion import Engine
from medfuse.io.dicom_options import IS_MAX
from medfuse.io.dicom_read import Reading, read_series
from medfuse.io.dicom_series import Scan, choose
from medfuse.output import check_target
from medfuse.pacs.pairs import Candidate, Match, find_pairs
from medfuse.pacs.rules import Fusion, Rules, read_rules
from medfuse.pipeline import check_pair, fuse, to_window, write_fused
from medfuse.stages import Progress
from medfuse.volume import Volume

#: The exit code of what medfuse did not foresee.
FAULT = 1


class Engines:
    """Engines by what the rules ask for, each made when it is first needed and then kept warm.

    Args:
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        threads: As for `medfuse.Engine`; of the registration, too.
    """

    def __init__(self, device: str = "auto", threads: int | None = None) -> None:
        self.device, self.threads = device, threads
        self._made: dict[tuple[Any, ...], Engine] = {}

    def __call__(self, fusion: Fusion) -> Engine:
        """The engine for a rule's words.

        Raises:
            InputError: The device is not there, or cannot do what the rules ask for.
            WeightsError: The weights cannot be used.
        """
        key = fusion.method, fusion.strategy, fusion.weights, fusion.precision
        if key not in self._made:
            try:
                self._made[key] = self._make(*key)
            except ValueError as error:
                raise InputError(str(error), "Change the rules, or run on another device") from error
        return self._made[key]

    def _make(self, method: str, strategy: str | None, weights: Path | None, precision: str) -> Engine:
        return Engine(method, strategy, self.device, weights, threads=self.threads, precision=precision)


@dataclass(frozen=True)
class SeriesTold:
    """What is told of a series: no description, which may hold anything."""

    uid: str
    part: int | None
    number: int | None
    modality: str
    slices: int


@dataclass(frozen=True)
class Failure:
    """Why a pair was not fused.

    Args:
        kind: The name of the error's class in `medfuse.errors`; another class's where medfuse did not foresee it.
        message: One line, without patient data.
        hint: What to do, likewise; may be empty.
        exit_code: That of the command line.
    """

    kind: str
    message: str
    hint: str
    exit_code: int

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure that an exception is. Only medfuse's own are quoted: others may hold what a header says."""
        if isinstance(error, MedfuseError):
            return cls(type(error).__name__, error.args[0], error.hint, error.exit_code)
        if isinstance(error, MemoryError):
            return cls("MemoryError", "not enough memory", "Fuse on a coarser grid, or give it more memory", FAULT)
        return cls(type(error).__name__, f"an unforeseen {type(error).__name__}", "Please report it", FAULT)


@dataclass(frozen=True)
class PairResult:
    """What became of a pair.

    Args:
        rule: The name of the rule that found it.
        structural: The MR or CT.
        functional: What was laid on it.
        folder: Where its files lie or would lie, below the output folder.
        files: Paths of what was written, relative to the output folder; "/" between their parts.
        alignment: What the alignment rests on, in words; None where it was not reached.
        trust: The verdict on the registration that was run: "trusted", "doubtful" or "failed"; None where none was.
        registered: Whether the registration was used, and not the header's alignment.
        warnings: What a person should know of the scans, of the alignment and of the result.
        seconds: Wall time of all of it.
        failure: Why it was not fused; None where it was.
    """

    rule: str
    structural: SeriesTold
    functional: SeriesTold
    folder: str
    files: tuple[str, ...] = ()
    alignment: str | None = None
    trust: str | None = None
    registered: bool = False
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    failure: Failure | None = None

    @property
    def needs_a_look(self) -> bool:
        """Whether a person should look: it failed, or a registration was run and is not trusted."""
        return self.failure is not None or self.trust not in (None, "trusted")


@dataclass(frozen=True)
class StudyResult:
    """What became of a folder. It holds no patient data but UIDs.

    Args:
        pairs: The pairs, in the order in which they were tried.
        passed_over: The series in no pair, and why.
        images: Number of files that are images of a series.
        ignored: Number of files that are not DICOM.
        left_out: Other DICOM files, as "1 file: RT Structure Set holds no image".
    """

    pairs: tuple[PairResult, ...]
    passed_over: tuple[tuple[SeriesTold, str], ...] = ()
    images: int = 0
    ignored: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def fused(self) -> tuple[PairResult, ...]:
        """The pairs that were fused."""
        return tuple(pair for pair in self.pairs if pair.failure is None)

    @property
    def failed(self) -> tuple[PairResult, ...]:
        """The pairs that were not."""
        return tuple(pair for pair in self.pairs if pair.failure is not None)

    @property
    def status(self) -> str:
        """One of: "fused", "partly", "failed", and "nothing" where there was no pair."""
        if not self.pairs:
            return "nothing"
        return "fused" if not self.failed else "partly" if self.fused else "failed"

    @property
    def exit_code(self) -> int:
        """0 where nothing failed, else that of the first failure."""
        return next((pair.failure.exit_code for pair in self.pairs if pair.failure), 0)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "medfuse": __version__,
            "status": self.status,
            "pairs": [asdict(pair) for pair in self.pairs],
            "passed_over": [{**asdict(one), "reason": reason} for one, reason in self.passed_over],
            "files": {"images": self.images, "ignored": self.ignored, "left_out": list(self.left_out)},
        }


def fuse_study(
    folder: Path,
    out: Path,
    rules: Rules | None = None,
    engines: Engines | None = None,
    *,
    beside: Path | None = None,
    progress: Progress | None = None,
) -> StudyResult:
    """Find the pairs in a folder of DICOM files and fuse each.

    Every result goes whole or not at all into its own folder in `out`, whose name depends on the rule and the two
    series alone, so that a rerun replaces it; so do all its UIDs. An error of one pair is part of the result.

    Args:
        folder: DICOM files of any number of studies, flat or nested, among any others.
        out: Where to write; made where missing. It may be a mount point and hold other things.
        rules: What is a pair; None for those that hold without a file.
        engines: Warm engines.
        beside: Another folder, whose series may be one of a pair, but not both.
        progress: Called as the work goes on.

    Raises:
        UnreadableFile: There is no such folder, one in it cannot be looked into, or there is no pair and a damaged file
            that may be why.
        OutputError: `out` cannot be written to.
    """
    rules, engines = rules or read_rules(), engines or Engines()
    found = find_pairs(folder, rules, beside)
    if found.scan.suspects and not found.matches:
        choose(found.scan)  # which refuses the damaged files; of a pair, it does so when that is read
    prepare(out)
    work = _Work(out, _reader(found.scan), engines, _numbers(found.matches), progress)
    return StudyResult(
        pairs=tuple(_attempt(match, work) for match in found.matches),
        passed_over=tuple((_told(one), reason) for one, reason in found.passed_over),
        images=sum(len(series.files) for series in found.scan.series),
        ignored=len(found.scan.others),
        left_out=tuple(found.scan.list_left_out()),
    )


#: Reads a candidate: its name, units and whether gaps may be filled.
_Reader = Callable[[str, str | None, bool], Volume]


@dataclass(frozen=True)
class _Work:
    """What all pairs of a folder share."""

    out: Path
    read: _Reader
    engines: Engines
    numbers: dict[Match, int | None]
    progress: Progress | None


def prepare(out: Path) -> None:
    """Make an output folder where it is missing, and see that something can be put into it.

    Raises:
        OutputError: It cannot be made or written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"could not make the folder {out.name}: {error.strerror or type(error).__name__}",
            "Check the rights there, or choose another place",
        ) from error
    check_target(out / "result", overwrite=True, inputs=())


def _reader(found: Scan) -> _Reader:
    """A reader of candidates that keeps the last two volumes: of several pairs, many share one."""

    @lru_cache(maxsize=2)
    def read(name: str, units: str | None, allow_gaps: bool) -> Volume:
        return read_series(choose(found, name), Reading(units=units, allow_gaps=allow_gaps))

    return read


def _numbers(matches: tuple[Match, ...]) -> dict[Match, int | None]:
    """Series Numbers that tell the pairs of one source apart; None leaves the first one its own (`DicomOptions`)."""
    numbers: dict[Match, int | None] = {}
    before: Counter[tuple[str, int | None]] = Counter()
    for match in matches:
        given = match.rule.fusion.series_number
        base = match.functional if match.rule.fusion.grid == "functional" else match.structural
        key = (base.study if given is not None else base.series.uid), given
        nth, before[key] = before[key], before[key] + 1
        if given is not None:
            numbers[match] = min(given + nth, IS_MAX)
        else:
            numbers[match] = min(max(base.series.number or 0, 0) + 1000 * (nth + 1), IS_MAX) if nth else None
    return numbers


def _attempt(match: Match, work: _Work) -> PairResult:
    """Fuse a pair; whatever goes wrong with it is part of the result."""
    told = PairResult(match.rule.name, _told(match.structural), _told(match.functional), folder_of(match))
    begun = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MedfuseWarning)  # they are in the histories, and told from there
            told = _fused(match, told, work)
    except Exception as error:
        told = replace(told, failure=Failure.of(error))
    return replace(told, seconds=round(time.perf_counter() - begun, 3))


def _fused(match: Match, told: PairResult, work: _Work) -> PairResult:
    """Read, align, fuse and write a pair."""
    words = match.rule.fusion
    structural = work.read(match.structural.name, None, words.allow_gaps)
    functional = work.read(match.functional.name, words.units, words.allow_gaps)
    check_pair(structural, functional)
    for choice, volume in ((words.structural_window, structural), (words.window, functional)):
        to_window(choice, volume)
    alignment = align(
        structural,
        functional,
        words.register,
        None,
        work.progress,
        accept_untrusted=words.accept_untrusted,
        threads=work.engines.threads,
    )
    fused = fuse(
        structural,
        functional,
        transform=alignment,
        grid=words.grid,
        palette=words.palette,
        window=words.window,
        structural_window=words.structural_window,
        engine=work.engines(words),
        progress=work.progress,
    )
    dicom = None if words.format == "nifti" else replace(words.dicom, series_number=work.numbers[match])
    written = write_fused(
        fused, work.out / told.folder, words.format, companions=words.companions, dicom=dicom, overwrite=True
    )
    return replace(
        told,
        files=tuple(sorted(path.relative_to(work.out).as_posix() for path in written)),
        alignment=alignment.reason,
        trust=alignment.trust.value if alignment.trust else None,
        registered=alignment.is_registered,
        warnings=_warnings(structural, functional, alignment, fused),
    )


def folder_of(match: Match) -> str:
    """The name of a pair's folder: always the same for the rule and the two volumes, and without patient data."""
    named = "/".join((match.rule.name, match.structural.name, match.functional.name))
    return f"{match.rule.name}-{hashlib.sha256(named.encode()).hexdigest()[:12]}"


def _warnings(structural: Volume, functional: Volume, alignment: Alignment, fused: Volume) -> tuple[str, ...]:
    """What reading and fusing left to be known, and a registration that is not trusted."""
    found = [
        f"{place}: {message}"
        for place, volume in (("structural scan", structural), ("functional scan", functional), ("result", fused))
        for message in volume.warnings
    ]
    if alignment.trust and alignment.trust.value != "trusted":
        found.append(f"{alignment.reason}. Look at the result before you rely on it")
    return tuple(found)


def _told(candidate: Candidate) -> SeriesTold:
    info = candidate.info
    return SeriesTold(candidate.series.uid, info.part, info.number, info.modality, candidate.slices)
