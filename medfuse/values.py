"""Values of YAML and JSON files, taken as they are or refused: nothing is rounded, or read as something else.

What is refused is told by its kind, not quoted: it may be anybody's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from medfuse.errors import InputError

_Read = TypeVar("_Read")
#: How the value of each key is read.
Readers = Mapping[str, Callable[[Any], Any]]


def content_of(path: Path, what: str, hint: str = "") -> Any:
    """What a YAML or JSON file holds.

    Args:
        path: The file.
        what: What it should be, for the message.
        hint: What to do where it is not.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # of a date or a number, too
        raise InputError(f"expected {what}, cannot read {path.name}", hint) from error


def kind_of(value: Any) -> str:
    """What a value is, without what it says.

    >>> kind_of("Zweistein"), kind_of(None)
    ('a value of type str', 'nothing')
    """
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def text(value: Any) -> str:
    """A text.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, str):
        raise TypeError(f"expected a text (in quotes, where it looks like something else), found {kind_of(value)}")
    return value


def truth(value: Any) -> bool:
    """True or false.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, found {kind_of(value)}")
    return value


def whole(value: Any) -> int:
    """A whole number; 2.5, "2" and true are none.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, found {kind_of(value)}")
    return value


def number(value: Any) -> float:
    """A number; infinity, where it has more digits than a float can have.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, found {kind_of(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def or_none(read: Callable[[Any], _Read]) -> Callable[[Any], _Read | None]:
    """How a value is read that may be nothing."""
    return lambda value: None if value is None else read(value)


def items(read: Callable[[Any], _Read]) -> Callable[[Any], tuple[_Read, ...]]:
    """How a list is read, each item by `read`; a lone text is none, since its letters are not what was meant."""

    def read_items(value: Any) -> tuple[_Read, ...]:
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected a list, found {kind_of(value)}")
        return tuple(read(item) for item in value)

    return read_items


def required(kind: type[Any]) -> set[str]:
    """The fields of a dataclass that have no default."""
    return {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}


def section(kind: type[_Read], readers: Readers, name: str) -> Callable[[Any], _Read]:
    """How a mapping becomes a dataclass: every key known, none missing, each value read by its reader."""

    def read(content: Any) -> _Read:
        if not isinstance(content, dict):
            raise TypeError(f"{name}: expected keys with values, found {kind_of(content)}")
        strange, missing = {str(key) for key in content.keys() - readers.keys()}, required(kind) - content.keys()
        if strange or missing:
            told = (f"{word} {', '.join(sorted(keys))}" for word, keys in (("unknown", strange), ("missing", missing)))
            raise ValueError(f"{name}: {' and '.join(part for part in told if not part.endswith(' '))}")
        values = {}
        for key, value in content.items():
            try:
                values[key] = readers[key](value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key}: {error}") from error
        return kind(**values)

    return read


def check_range(fine: Mapping[str, bool]) -> None:
    """Refuse values of which one is out of its range.

    Args:
        fine: By name whether it is within.

    Raises:
        ValueError: One is not.
    """
    wrong = [name for name, within in fine.items() if not within]
    if wrong:
        raise ValueError(f"out of range: {', '.join(wrong)}")
