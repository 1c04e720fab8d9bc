"""Other studies of the patient of a study, from an archive: for rules that pair series some days apart."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path

from pydicom import dcmread

from medfuse.defaults import AE_TITLE
from medfuse.io.dicom_header import damage_in, leniently, moment_of, word
from medfuse.pacs.client import Found, find, pull
from medfuse.pacs.pairs import Found as Pairs
from medfuse.pacs.pairs import find_pairs, refusal
from medfuse.pacs.rules import Rule, Rules
from medfuse.pacs.settings import Destination

#: At most so many studies are fetched, the nearest in time before the others.
MOST = 5
#: What an archive would take for a pattern or a list in a Patient ID (PS3.4 section C.2.2.2).
_PATTERN = set("*?\\")


def days_of(rules: Rules) -> int | None:
    """The most days that any rule looks away from a study; None where none does."""
    return max((rule.within_days for rule in rules.rules if rule.within_days is not None), default=None)


def fetch_priors(source: Path, rules: Rules, at: Destination, out: Path, ae_title: str = AE_TITLE) -> int:
    """Fetch the studies of the same patient that the rules may pair a study with, before it and after it.

    Only a rule that finds one of a pair in the study, and not the other, asks for what it lacks.

    Args:
        source: The files of the study.
        rules: The rules; they say how many days apart, and which modalities.
        at: Who has them.
        out: An empty folder to put them into.
        ae_title: Ours.

    Returns:
        Number of studies fetched: at most `MOST`; 0 where no rule lacks anything, or the study states no Patient ID or
        no Study Date.

    Raises:
        NetworkError: The archive does not answer, or refuses.
        UnreadableFile: A file of the study is damaged.
        OutputError: A file cannot be written.
    """
    if days_of(rules) is None:
        return 0
    pairs = find_pairs(source, rules)
    lacking = {rule: _lacking(rule, pairs) for rule in rules.rules if rule.within_days is not None}
    days = max((rule.within_days or 0 for rule, kinds in lacking.items() if kinds), default=None)
    if days is None:
        return 0
    path = pairs.scan.series[0].files[0][0]
    with damage_in(path.name):
        header = dcmread(path, specific_tags=["PatientID", "StudyInstanceUID", "StudyDate"])
    patient, made = word(header, "PatientID"), _day(word(header, "StudyDate"))
    if not patient or _PATTERN.intersection(patient) or made is None:
        return 0
    # A study is dated by its beginning, its series by theirs, which may be after midnight.
    span = timedelta(days=days + 1)
    found = find(at, {"patient": patient, "date": f"{made - span:%Y%m%d}-{made + span:%Y%m%d}"}, ae_title)
    wanted = set().union(*lacking.values())
    others = [one for one in found if one.uid != word(header, "StudyInstanceUID") and _has_any(one, wanted)]
    nearest = sorted(others, key=lambda one: abs(((_day(one.date) or date.max) - made).days))[:MOST]
    for study in nearest:
        pull(study.uid, None, at, out, ae_title)
    return len(nearest)


def _lacking(rule: Rule, pairs: Pairs) -> set[str]:
    """The modalities of what a rule lacks beside one of a pair in a study; none where it has both, or neither."""
    if any(match.rule is rule for match in pairs.matches):
        return set()
    paired = [one for match in pairs.matches for one in (match.structural, match.functional)]
    able = [*paired, *(one for one, _ in pairs.passed_over if not one.reason)]
    taken = {match.functional.name for match in pairs.matches if match.rule.name in rule.unless}
    has_structural = any(not refusal(one, rule.structural) for one in able)
    has_functional = any(not refusal(one, rule.functional) for one in able if one.name not in taken)
    others = (*([rule.functional] if has_structural else []), *([rule.structural] if has_functional else []))
    return {kind.value for other in others for kind in other.modality}


def _has_any(study: Found, modalities: Iterable[str]) -> bool:
    """Whether a study has one of the modalities, or does not say which it has."""
    return not study.modalities or not set(study.modalities).isdisjoint(modalities)


@leniently()
def _day(text: str) -> date | None:
    moment = moment_of(text, "00")
    return None if moment is None else moment.date()
