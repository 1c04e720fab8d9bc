"""Find in a folder the series that the rules make pairs of. Reads headers only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom import Dataset

from medfuse.errors import UnreadableFile
from medfuse.io.dicom_header import leniently, moment_of, word, words
from medfuse.io.dicom_read import parts
from medfuse.io.dicom_series import Scan, Series, files_below, scan
from medfuse.io.inspection import SeriesInfo, inspect_series
from medfuse.pacs.rules import Criteria, Fusion, Rule, Rules
from medfuse.volume import Modality, Unit


@dataclass(frozen=True)
class Candidate:
    """A volume of a folder, which may become one of a pair.

    Args:
        series: The images.
        info: What they are, from headers.
        header: Of its first image; a series may hold several volumes.
        reason: Why it is never one of a pair; "" where it may be.

    Its repr shows no header.
    """

    series: Series
    info: SeriesInfo
    header: Dataset
    reason: str = ""

    def __repr__(self) -> str:
        return f"Candidate({self.series})"

    @property
    def name(self) -> str:
        """What `choose` and `read` know it by: the series' UID, and the number of the part where it holds several."""
        return f"{self.series.uid}:{self.info.part}" if self.info.part else self.series.uid

    @property
    def slices(self) -> int:
        """Number of slices; 0 where the headers do not say."""
        return self.info.shape[0] if self.info.shape else 0

    @property
    def study(self) -> str:
        """Study Instance UID."""
        return word(self.series.header, "StudyInstanceUID")

    @property
    @leniently()
    def made(self) -> datetime | None:
        """When it was acquired, or the series begun; None where no header says."""
        for what in ("Acquisition", "Series"):
            made = moment_of(word(self.header, f"{what}Date"), word(self.header, f"{what}Time") or "00")
            if made:
                return made
        return None

    @property
    def is_attenuation_corrected(self) -> bool:
        """Whether PET says that it is (PS3.3 section C.8.9.1.1.6)."""
        return "ATTN" in words(self.header, "CorrectedImage")

    @property
    def is_original(self) -> bool:
        """Whether the images are not computed from others (PS3.3 section C.7.6.1.1.2)."""
        return "DERIVED" not in words(self.header, "ImageType")


@dataclass(frozen=True, eq=False)
class Match:
    """Two candidates that a rule makes a pair of."""

    rule: Rule
    structural: Candidate
    functional: Candidate


@dataclass(frozen=True)
class Found:
    """What a folder holds, and what is to be fused.

    Args:
        scan: All series of the folder, and the files that belong to none.
        matches: The pairs, in the order of the rules.
        passed_over: The candidates in no pair, and why.
    """

    scan: Scan
    matches: tuple[Match, ...]
    passed_over: tuple[tuple[Candidate, str], ...]


def find_pairs(folder: Path, rules: Rules, beside: Path | None = None) -> Found:
    """Look through a folder and match its series by the rules.

    Args:
        folder: DICOM files, flat or nested, among any others.
        rules: The rules.
        beside: Another folder, whose series may be one of a pair, but not both.

    Raises:
        UnreadableFile: There is no such folder, or one in it cannot be looked into.
    """
    if not folder.is_dir():
        raise UnreadableFile(f"expected a folder, found none named {folder.name}", "Check the path")
    found = scan([path for one in (folder, beside) if one is not None for path in files_below(one)])
    candidates = [one for series in found.series for one in _candidates(series)]
    able = [one for one in candidates if not one.reason]
    matches: list[Match] = []
    for rule in rules.rules:
        taken = {match.functional.name for match in matches if match.rule.name in rule.unless}
        done = {_job(match) for match in matches}
        matches += [
            match for match in _matches(rule, able, taken) if _job(match) not in done and _touches(match, folder)
        ]
    paired = {name for match in matches for name in (match.structural.name, match.functional.name)}
    passed_over = ((one, one.reason or _why_not(one, rules)) for one in candidates if one.name not in paired)
    return Found(found, tuple(matches), tuple(passed_over))


def _touches(match: Match, folder: Path) -> bool:
    """Whether one of a pair at least lies in a folder."""
    return any(one.series.files[0][0].is_relative_to(folder) for one in (match.structural, match.functional))


def _job(match: Match) -> tuple[str, str, Fusion]:
    """What two rules must not do twice: it would get the same UIDs."""
    return match.structural.name, match.functional.name, match.rule.fusion


def _candidates(series: Series) -> list[Candidate]:
    """The volumes of a series, each with the reason for which it is never paired."""
    infos, found = inspect_series(series), []
    several = parts(series) if len(infos) > 1 else ()
    headers = [part.frames[0][0].header for part in several] or [series.header]
    for info, header in zip(infos, headers, strict=True):
        reason = "a result of medfuse" if info.by_medfuse else "" if info.usable else str(info.reason)
        if not reason and info.frames:
            reason = f"{len(info.frames)} time points, of which rules choose none"
        if not reason and info.unit == Unit.RGB.value:
            reason = "a colour series"
        found.append(Candidate(series, info, header, reason))
    return found


def _matches(rule: Rule, candidates: list[Candidate], taken: set[str]) -> list[Match]:
    """The pairs of one rule: in every study, each functional series that is chosen, with the structural one chosen."""
    functional = [one for one in candidates if not refusal(one, rule.functional)]
    structural = [one for one in candidates if not refusal(one, rule.structural)]
    found = []
    for study in dict.fromkeys(one.study for one in functional):
        with_partner = [
            one
            for one in functional
            if one.study == study and one.name not in taken and any(_in_scope(rule, one, other) for other in structural)
        ]
        near = [one for one in structural if any(_in_scope(rule, other, one) for other in with_partner)]
        for moving in _chosen(with_partner, rule.functional.choose, near):
            partners = [one for one in structural if _in_scope(rule, moving, one)]
            found += [Match(rule, fixed, moving) for fixed in _chosen(partners, rule.structural.choose, [moving])]
    return found


def refusal(candidate: Candidate, criteria: Criteria) -> str:
    """Why a candidate does not meet criteria; "" where it does."""
    info, text = candidate.info, word(candidate.header, "SeriesDescription")  # whole, as nothing of it is told
    kinds = {kind.upper() for kind in words(candidate.header, "ImageType")}
    excluded = sorted(kinds.intersection(criteria.exclude_image_types))
    fewest, most = criteria.min_slices, criteria.max_slices
    checks = {
        f"modality {info.modality}": Modality(info.modality) in criteria.modality,
        "its description": _has(text, criteria.description, True) and not _has(text, criteria.not_description, False),
        f"orientation {info.orientation}": (info.orientation or "").startswith(criteria.orientation or ""),
        f"{candidate.slices} slices": fewest <= candidate.slices and (most is None or candidate.slices <= most),
        f"image type {', '.join(excluded)}": not excluded,
    }
    return next((reason for reason, holds in checks.items() if not holds), "")


def _has(text: str, expression: str | None, otherwise: bool) -> bool:
    return otherwise if expression is None else bool(re.search(expression, text, re.IGNORECASE))


def _in_scope(rule: Rule, one: Candidate, other: Candidate) -> bool:
    """Whether two candidates are of one study, or of one patient and not too many days apart."""
    if one.name == other.name:
        return False
    if one.study and one.study == other.study:
        return True
    patients = {word(candidate.series.header, "PatientID") for candidate in (one, other)}
    if rule.within_days is None or len(patients) > 1 or not all(patients):
        return False
    days = _days(one, other)
    return days is not None and days <= rule.within_days


def _days(one: Candidate, other: Candidate) -> int | None:
    """Days between two candidates, by the calendar; None where one has no date."""
    if one.made is None or other.made is None:
        return None
    return abs((one.made.date() - other.made.date()).days)


def _chosen(candidates: list[Candidate], choose: str, beside: Sequence[Candidate]) -> list[Candidate]:
    """Those to take of the candidates that fit.

    Args:
        candidates: What fits.
        choose: "all"; "latest"; "most-slices"; or "best": of the same study as its partner, in its frame of reference,
            nearest in days; attenuation corrected; original; then with most slices. Where they are alike, the later and
            then the one with the lower series number goes before.
        beside: The partner, or those that it may get, of which the nearest counts.
    """
    if choose == "all" or len(candidates) < 2:
        return candidates
    ranks = {"latest": (_latest,), "most-slices": (_slices, _latest), "best": (_slices, _latest)}[choose]

    def rank(one: Candidate) -> tuple[float, ...]:
        near = max(_nearness(one, other) for other in beside) if choose == "best" else ()
        return (*near, *(by(one) for by in ranks), -(one.series.number or 0))

    return [max(candidates, key=rank)]


def _nearness(one: Candidate, beside: Candidate) -> tuple[float, ...]:
    """How near a candidate is to its partner, most important first; larger is nearer."""
    made = float(one.is_attenuation_corrected), float(one.is_original)
    frames = one.info.frame_of_reference, beside.info.frame_of_reference
    days = _days(one, beside)
    apart = float("inf") if days is None else days
    return (float(one.study == beside.study), float(None not in frames and frames[0] == frames[1]), -apart, *made)


def _latest(one: Candidate) -> float:
    return float(f"{one.made:%Y%m%d%H%M%S}") if one.made else 0.0


def _slices(one: Candidate) -> float:
    return one.slices


def _why_not(candidate: Candidate, rules: Rules) -> str:
    """Why a candidate that could be one of a pair is in none."""
    places = [(rule, criteria) for rule in rules.rules for criteria in (rule.structural, rule.functional)]
    asked = [(rule, one) for rule, one in places if Modality(candidate.info.modality) in one.modality]
    if not asked:
        return f"no rule asks for the modality {candidate.info.modality}"
    refusals = [refusal(candidate, criteria) for _, criteria in asked]
    fitting = list(dict.fromkeys(rule.name for (rule, _), why in zip(asked, refusals, strict=True) if not why))
    if fitting:
        return f"fits {', '.join(fitting)}, where it has no partner or another was chosen"
    return f"does not fit a rule: {', '.join(dict.fromkeys(refusals))}"
