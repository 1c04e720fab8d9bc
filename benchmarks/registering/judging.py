"""Judging measured rows anew from the evidence in them, so that thresholds can be set without measuring again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from math import inf
from typing import Any

from rows import Row

from medfuse.align import verdict


def judged(row: Row) -> Row:
    """The row with the verdict that its numbers get now; as it is where it holds no evidence."""
    known = {field.name: field.default for field in fields(verdict.Evidence)}
    needed = {name for name, default in known.items() if default is MISSING}
    if not needed <= row["numbers"].keys():
        return row
    evidence = {name: _number(row["numbers"][name]) for name in needed}
    optional = {name: row["numbers"].get(name) for name in known.keys() - needed}
    anew = verdict.judge(verdict.Evidence(**evidence, **optional))
    return {**row, "trust": anew.trust.value, "numbers": {**row["numbers"], "reasons": list(anew.reasons)}}


def _number(value: Any) -> Any:
    """What JSON could not hold, infinity, came as None."""
    if isinstance(value, Mapping):
        return {name: _number(each) for name, each in value.items()}
    return inf if value is None else value
