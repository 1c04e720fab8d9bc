"""Judging measured rows anew from the evidence in them, so that thresholds can be set without measuring again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import inf
from typing import Any

from medfuse.align import verdict
from registering.measuring import Row


def judged(row: Row) -> Row:
    """The row with the verdict that its numbers get now; as it is where it holds no evidence."""
    names = {field.name for field in fields(verdict.Evidence)}
    if not names <= row["numbers"].keys() | {"folded"}:
        return row
    evidence = {name: _number(value) for name, value in row["numbers"].items() if name in names and name != "folded"}
    anew = verdict.judge(verdict.Evidence(**evidence, folded=row["numbers"].get("folded")))
    return {**row, "trust": anew.trust.value, "numbers": {**row["numbers"], "reasons": list(anew.reasons)}}


def _number(value: Any) -> Any:
    """What JSON could not hold, infinity, came as None."""
    if isinstance(value, Mapping):
        return {name: _number(each) for name, each in value.items()}
    return inf if value is None else value
