"""Rows of measurements as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from statistics import median

import numpy as np
from rows import NOTHING, Row, by, markdown

#: A run within this many times the tolerance is good.
GOOD = 3


def displacement_table(rows: Iterable[Row]) -> str:
    """One line a case and method: errors, verdicts, seconds, memory."""
    head = (
        "case",
        "method",
        "runs",
        "asked mm",
        "median mm",
        "bias mm",
        "scatter mm",
        "within 3×",
        "bad: not trusted",
        "bad: refused",
        "good: refused",
        "good: doubtful",
        "s median",
        "s most",
        "MB",
    )
    return markdown(head, (_displacement_line(*group) for group in _groups(rows)))


def nonsense_table(rows: Iterable[Row]) -> str:
    """How many of the nonsense pairs got which verdict, by method, and which were trusted."""
    head = ("method", "pairs", "trusted", "doubtful", "failed", "no verdict", "s median", "those trusted")
    lines = []
    for method, group in by(rows, "method"):
        counts = [str(sum(row["trust"] == trust for row in group)) for trust in ("trusted", "doubtful", "failed", None)]
        names = ", ".join(row["case"].partition("/")[2] for row in group if row["trust"] == "trusted")
        seconds = f"{median(row['seconds'] for row in group):.1f}"
        lines.append((method, str(len(group)), *counts, seconds, names or NOTHING))
    return markdown(head, lines)


def timing_table(rows: Iterable[Row], reference: str = "simpleitk") -> str:
    """Median seconds a pair by method, and the ratio to the reference's."""
    groups = dict(by(rows, "method"))
    seconds = {method: median(row["seconds"] for row in group) for method, group in groups.items()}
    head = ("method", "runs", "median mm", "s median", "s most", "MB", f"ratio to {reference}")
    lines = [
        (
            method,
            str(len(group)),
            f"{median(row.get('error_mm', inf) for row in group):.2f}",
            f"{seconds[method]:.1f}",
            f"{max(row['seconds'] for row in group):.1f}",
            str(max(row["memory_mb"] for row in group)),
            f"{seconds[method] / seconds[reference]:.2f}" if reference in seconds else NOTHING,
        )
        for method, group in groups.items()
    ]
    return markdown(head, lines)


def _displacement_line(case: str, method: str, rows: Sequence[Row]) -> tuple[str, ...]:
    errors = [row.get("error_mm", inf) for row in rows]
    good = [row for row, error in zip(rows, errors, strict=True) if error <= GOOD * row["tolerance_mm"]]
    bad = [row for row, error in zip(rows, errors, strict=True) if error > GOOD * row["tolerance_mm"]]
    tolerances = {row["tolerance_mm"] for row in rows}
    seconds = [row["seconds"] for row in rows]
    verdicts = [NOTHING] * 4
    if any(row["trust"] for row in rows):
        verdicts = [
            _share(bad, "doubtful", "failed"),
            _share(bad, "failed"),
            _share(good, "failed"),
            _share(good, "doubtful"),
        ]
    return (
        case,
        method,
        str(len(rows)),
        f"{tolerances.pop():g}" if len(tolerances) == 1 else NOTHING,
        f"{median(errors):.2f}" if len({row["case"] for row in rows}) == 1 else NOTHING,
        *_bias_and_scatter(rows),
        f"{len(good) / len(rows):.1%}",
        *verdicts,
        f"{median(seconds):.1f}",
        f"{max(seconds):.1f}",
        str(max(row["memory_mb"] for row in rows)),
    )


def _bias_and_scatter(rows: Sequence[Row]) -> tuple[str, str]:
    """How far from the truth a method's runs agree to lie, and how far from that agreement they lie, mm.

    Found and true transform are compared in the fixed world, at the anchors; what runs agree on is the median. A bias
    that all methods share is a fault of the truth: of a header that two scans of one session take over unmeasured.
    """
    rows = [row for row in rows if row.get("found") and "anchors_mm" in row]
    if not rows or len({row["case"] for row in rows}) > 1:
        return NOTHING, NOTHING
    anchors = np.array(rows[0]["anchors_mm"])
    points = np.c_[anchors, np.ones(len(anchors))].T
    ends = np.array([(np.linalg.solve(row["truth"], np.array(row["found"]) @ points))[:3].T for row in rows])
    agreed = np.median(ends, axis=0)
    bias, scatter = (np.linalg.norm(each, axis=-1).mean(axis=-1) for each in (agreed - anchors, ends - agreed))
    return f"{bias:.2f}", f"{np.median(scatter):.2f}"


def _share(rows: Sequence[Row], *trusts: str) -> str:
    """Of so many rows, how many got one of these verdicts."""
    return f"{sum(row['trust'] in trusts for row in rows)} of {len(rows)}" if rows else NOTHING


def _groups(rows: Iterable[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Rows by case and method, in the order in which both first come; then all cases of a method together."""
    rows = list(rows)
    cases = list(by(rows, "case"))
    for case, of_case in cases:
        for method, group in by(of_case, "method"):
            yield case, method, group
    if len(cases) > 1:
        for method, group in by(rows, "method"):
            yield "all", method, group
