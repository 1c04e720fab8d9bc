"""What is fused with what, and how: rules from a YAML file, checked before anything starts (docs/rules.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from medfuse.defaults import METHOD, PALETTE
from medfuse.errors import InputError
from medfuse.fusion import METHODS
from medfuse.fusion.methods import PRECISIONS
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.files import UNITS
from medfuse.io.sidecar import to_modality
from medfuse.pipeline import FORMATS, check_words
from medfuse.values import Readers, content_of, kind_of, or_none, required, text, truth, whole
from medfuse.volume import Modality

ORIENTATIONS = ("axial", "coronal", "sagittal")
#: How one of several series that fit is chosen; `medfuse.pacs.pairs` says what each looks at.
CHOICES = ("best", "most-slices", "latest", "all")
#: Values of Image Type of what is computed from images, and shows something else or lies nowhere.
NO_ANATOMY = ("MIP", "MINIP", "PROJECTION IMAGE", "ADC", "FA", "SUBTRACTION")
#: Names that are a folder's on every system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True)
class Criteria:
    """Which series may take a place in a pair. All of them must hold.

    Args:
        modality: Any of these.
        description: Regular expression to be found somewhere in the Series Description, in any case; None for any.
        not_description: One that must not be found there.
        orientation: "axial", "coronal" or "sagittal": what the slices are nearest to; None for any.
        min_slices: At least so many slices.
        max_slices: At most so many; None for any number.
        exclude_image_types: Values of Image Type that a series must not have. DERIVED is not among them unless named:
            many an export marks whatever it touched so.
        choose: Which of several that fit: a word of `CHOICES`.

    Raises:
        ValueError: A value is out of its range, or a word unknown.
    """

    modality: tuple[Modality, ...]
    description: str | None = None
    not_description: str | None = None
    orientation: str | None = None
    min_slices: int = 5
    max_slices: int | None = None
    exclude_image_types: tuple[str, ...] = NO_ANATOMY
    choose: str = "best"

    def __post_init__(self) -> None:
        if not self.modality:
            raise ValueError("expected a modality, got an empty list")
        for expression in (self.description, self.not_description):
            _check_expression(expression)
        if self.orientation is not None:
            _check_word("orientation", self.orientation, ORIENTATIONS)
        _check_word("choose", self.choose, CHOICES)
        if self.min_slices < 2:
            raise ValueError(f"expected min_slices of at least 2, got {self.min_slices}")
        if self.max_slices is not None and self.max_slices < self.min_slices:
            raise ValueError(f"expected max_slices of at least {self.min_slices}, got {self.max_slices}")


@dataclass(frozen=True)
class Fusion:
    """How a pair is fused and written. The words are those of `medfuse.fuse` and `medfuse fuse`.

    Raises:
        ValueError: One of them is unknown.
    """

    method: str = METHOD
    strategy: str | None = None
    weights: Path | None = None
    precision: str = "float32"
    register: str = "auto"
    accept_untrusted: bool = False
    grid: str = "structural"
    palette: str = PALETTE
    window: str | None = None
    structural_window: str | None = None
    units: str | None = None
    allow_gaps: bool = False
    format: str = "dicom"
    multiframe: bool = False
    grey_as: str = "mr"
    series_description: str | None = None
    series_number: int | None = None
    companions: bool = True

    @property
    def dicom(self) -> DicomOptions:
        """How a DICOM series is written: always with the same UIDs for the same job."""
        return DicomOptions(
            self.multiframe, self.grey_as, self.series_description, self.series_number, stable_uids=True
        )

    def __post_init__(self) -> None:
        if self.dicom != DicomOptions(stable_uids=True) and self.format == "nifti":
            raise ValueError("expected a DICOM series with the options of one, got the format nifti")
        _check_word("method", self.method, METHODS)
        entry = METHODS[self.method]
        if self.strategy is not None:
            _check_word(f"strategy for {self.method}", self.strategy, entry.strategies)
        if self.weights is not None and entry.network is None:
            raise ValueError(f"{self.method} has no weights to replace")
        _check_word("precision", self.precision, PRECISIONS)
        _check_word("format", self.format, FORMATS)
        if self.units is not None:
            _check_word("units", self.units, UNITS)
        windows = (self.window, self.structural_window)
        check_words(register=self.register, grid=self.grid, palette=self.palette, windows=windows)


@dataclass(frozen=True)
class Rule:
    """Which series are a pair, and how they are fused.

    Args:
        name: Letters, digits, "-" and "_"; a part of the names of the folders that are written.
        structural: What the MR or CT must be.
        functional: What the PET or SPECT, or the CT beside an MR, must be.
        within_days: Pair series of one patient so many days apart, too; None pairs those of one study only.
        unless: Rules before this one; a functional series that one of them has paired is left alone.
        fusion: How.

    Raises:
        ValueError: A value is out of its range.
    """

    name: str
    structural: Criteria
    functional: Criteria
    within_days: int | None = None
    unless: tuple[str, ...] = ()
    fusion: Fusion = field(default_factory=Fusion)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError("expected a name of at most 40 letters, digits, - and _")
        if wrong := [one.value for one in self.structural.modality if one not in (Modality.MR, Modality.CT)]:
            raise ValueError(f"expected MR or CT as the structural modality, got {', '.join(wrong)}")
        if self.within_days is not None and self.within_days < 0:
            raise ValueError(f"expected within_days of at least 0, got {self.within_days}")


@dataclass(frozen=True)
class Rules:
    """All rules, in the order in which they are tried.

    Raises:
        ValueError: There is none, two have one name, or one names a rule that is not before it.
    """

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("expected at least one rule, got an empty list")
        before: set[str] = set()
        for rule in self.rules:
            if rule.name in before:
                raise ValueError(f"expected each name once, got two rules {rule.name}")
            if unknown := sorted(set(rule.unless) - before):
                raise ValueError(f"expected rules before {rule.name} in its unless, got {', '.join(unknown)}")
            before.add(rule.name)


#: What is done without a file: uptake on the MR, or else on the CT, and CT beside MR; of one study.
DEFAULT: tuple[Mapping[str, Any], ...] = (
    {"name": "uptake-on-mr", "structural": {"modality": "MR"}, "functional": {"modality": ["PT", "NM"]}},
    {
        "name": "uptake-on-ct",
        "structural": {"modality": "CT"},
        "functional": {"modality": ["PT", "NM"]},
        "unless": ["uptake-on-mr"],
    },
    {"name": "ct-on-mr", "structural": {"modality": "MR"}, "functional": {"modality": "CT"}},
)


def read_rules(path: Path | None = None, settings: Mapping[str, Any] | None = None) -> Rules:
    """Read rules from a YAML (or JSON) file, or take those that hold without one.

    Args:
        path: The file: `rules`, a list of rules, and perhaps `fusion`, words of `Fusion` for every rule that does not
            give them itself. Either may be left out.
        settings: Settings of one run, which go before the file: likewise `rules`, in place of the file's, and `fusion`,
            in place of those words in every rule.

    Raises:
        InputError: It cannot be read, or a key is missing, unknown, of another kind than expected or out of range.
    """
    content: Any = None if path is None else content_of(path, "a YAML file of rules", "See docs/rules.md")
    content = {} if content is None else content
    named, given = "the rules" if path is None else path.name, {} if settings is None else settings
    for part, name in ((content, named), (given, "the settings")):
        _check_keys(part, {"rules", "fusion"}, set(), name)
        _check_keys(part.get("fusion", {}), set(_FUSION), set(), f"fusion in {name}")
    name = "the settings" if "rules" in given else named
    rules = given.get("rules", content.get("rules", DEFAULT))
    if not isinstance(rules, list | tuple):
        raise _refused(name, TypeError(f"expected a list as rules, found {kind_of(rules)}"))
    fusions = content.get("fusion", {}), given.get("fusion", {})
    built = tuple(_rule(rule, f"rule {n} in {name}", *fusions) for n, rule in enumerate(rules, start=1))
    try:
        return Rules(built)
    except ValueError as error:
        raise _refused(name, error) from error


def check_sendable(rules: Rules) -> None:
    """Refuse rules whose results a node could not send.

    Raises:
        InputError: One makes NIfTI alone.
    """
    for rule in rules.rules:
        if rule.fusion.format == "nifti":
            raise InputError(
                f"expected rules of a node to make DICOM, found format nifti in {rule.name}", "Say dicom, or both"
            )


def _rule(content: Any, where: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Rule:
    """One rule; the words of its fusion over those before it and under those after it."""
    _check_keys(content, set(_RULE), _REQUIRED[Rule], where)
    own = content.get("fusion", {})
    _check_keys(own, set(_FUSION), set(), f"fusion of {where}")
    parts: dict[str, Any] = {
        key: _built(Criteria, _CRITERIA, content[key], f"{key} of {where}") for key in ("structural", "functional")
    }
    parts["fusion"] = _built(Fusion, _FUSION, {**before, **own, **after}, f"fusion of {where}")
    return _built(Rule, _RULE, {**content, **parts}, where)


_Built = TypeVar("_Built")


def _built(kind: type[_Built], readers: Readers, content: Any, where: str) -> _Built:
    """A dataclass from a mapping, each value read by the reader of its key."""
    _check_keys(content, set(readers), _REQUIRED[kind], where)
    read = {}
    for key, value in content.items():
        try:
            read[key] = readers[key](value)
        except (TypeError, ValueError) as error:
            raise _refused(f"{key} of {where}", error) from error
    try:
        return kind(**read)
    except ValueError as error:
        raise _refused(where, error) from error


def _check_keys(content: Any, known: set[str], required: set[str], where: str) -> None:
    """Refuse what is no mapping, or lacks a key, or has an unknown one."""
    if not isinstance(content, Mapping):
        raise _refused(where, TypeError(f"expected keys with values, found {kind_of(content)}"))
    if missing := sorted(required - set(content)):
        raise _refused(where, ValueError(f"expected the key {', '.join(missing)}, found none"))
    if unknown := sorted(str(key) for key in content if key not in known):
        raise _refused(where, ValueError(f"expected keys of {', '.join(sorted(known))}, found {', '.join(unknown)}"))


def _refused(where: str, error: Exception) -> InputError:
    return InputError(f"{where}: {error}", "See docs/rules.md")


def _check_word(name: str, word: str, known: Iterable[str]) -> None:
    if word not in known:
        raise ValueError(f"expected {name} of {', '.join(known) or 'none'}, got {word!r}")


def _check_expression(expression: str | None) -> None:
    try:
        re.compile(expression or "")
    except re.error as error:
        raise ValueError(f"expected a regular expression, got {expression!r} ({error})") from error


def _texts(value: Any) -> tuple[str, ...]:
    """The items of a list, or a lone text."""
    return tuple(text(item) for item in (value if isinstance(value, list | tuple) else [value]))


def _modalities(value: Any) -> tuple[Modality, ...]:
    return tuple(to_modality(name) for name in _texts(value))


def _image_types(value: Any) -> tuple[str, ...]:
    return tuple(word.strip().upper() for word in _texts(value))


def _number_or_text(value: Any) -> str:
    """A word, or a number as text: `grid: 2` is a voxel size."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else text(value)


def _file(value: Any) -> Path:
    path = Path(text(value))
    if not path.is_file():
        raise ValueError(f"expected a file, found none named {path.name}")
    return path


_CRITERIA: Readers = {
    "modality": _modalities,
    "description": or_none(text),
    "not_description": or_none(text),
    "orientation": or_none(text),
    "min_slices": whole,
    "max_slices": or_none(whole),
    "exclude_image_types": _image_types,
    "choose": text,
}
_FUSION: Readers = {
    "method": text,
    "strategy": or_none(text),
    "weights": or_none(_file),
    "precision": text,
    "register": text,
    "accept_untrusted": truth,
    "grid": _number_or_text,
    "palette": text,
    "window": or_none(text),
    "structural_window": or_none(text),
    "units": or_none(text),
    "allow_gaps": truth,
    "format": text,
    "multiframe": truth,
    "grey_as": text,
    "series_description": or_none(text),
    "series_number": or_none(whole),
    "companions": truth,
}
_RULE: Readers = {
    "name": text,
    "structural": lambda criteria: criteria,
    "functional": lambda criteria: criteria,
    "within_days": or_none(whole),
    "unless": _texts,
    "fusion": lambda fusion: fusion,
}
_REQUIRED: dict[type, set[str]] = {kind: required(kind) for kind in (Criteria, Fusion, Rule)}
