"""The numbers of a comparison, and their forms: for people, Markdown; for programs, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from medfuse.markdown import markdown
from medfuse.metrics import MEASURES, SAFETY, Convention, Measure

#: What a measure of two sources gives: over both, for each alone, and for the one that fared worse.
SIDES = ("value", "structural", "functional", "worse")

_ARROWS = {"higher": "↑", "lower": "↓"}


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation (divisor n - 1) of n values.

    Args:
        mean: Infinite where a value is.
        sd: None of a single value, and where the mean is infinite.
        n: How many values.
    """

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Statistic:
        """The statistic of (n,) values, n at least 1."""
        mean = float(np.mean(values))
        has_sd = len(values) > 1 and math.isfinite(mean)
        return cls(mean, float(np.std(values, ddof=1)) if has_sd else None, len(values))

    def __str__(self) -> str:
        return number(self.mean) + ("" if self.sd is None else f" ± {self.sd:.{_decimals(self.mean)}f}")

    def to_json(self) -> dict[str, float | int | None]:
        """Plain values; an infinite mean is null, as JSON has no infinity."""
        return {**asdict(self), "mean": self.mean if math.isfinite(self.mean) else None}


@dataclass(frozen=True)
class Safety:
    """Of what a fusion must not do, the mean hides what the worst of n values shows.

    Args:
        statistic: Over all values.
        worst: The worst one.
    """

    statistic: Statistic
    worst: float

    @classmethod
    def of(cls, measure: Measure, values: NDArray[np.floating]) -> Safety:
        """The statistic, and the worst by the measure's direction, of (n,) values, n at least 1."""
        return cls(Statistic.of(values), float(values.min() if measure.better == "higher" else values.max()))

    def __str__(self) -> str:
        return number(self.statistic.mean) + (f", worst {number(self.worst)}" if self.statistic.n > 1 else "")

    def to_json(self) -> dict[str, float | int | None]:
        """Plain values; infinities are null, as JSON has none."""
        return {**self.statistic.to_json(), "worst": self.worst if math.isfinite(self.worst) else None}


@dataclass(frozen=True, eq=False)
class Table:
    """What every measure gave every method on every pair.

    Args:
        convention: That of the measures.
        structural: Name of the structural images' folder.
        functional: Name of the functional images' folder.
        device: Where it was computed.
        pairs: Names of the pairs.
        methods: Names of the methods, the order of the columns.
        controls: Which of these are controls.
        values: By (measure, side), (pairs, methods) float64; the sides of `SIDES` that the measure has.
        seconds: Of fusing, (pairs, methods) float64.
        left_out: How many images have no partner of the same name.
        safety: By measure of `SAFETY`, (pairs, methods) float64; of colour only where a functional image has some, and
            empty in the paper's convention.
    """

    convention: Convention
    structural: str
    functional: str
    device: str
    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    controls: tuple[str, ...]
    values: Mapping[tuple[str, str], NDArray[np.float64]]
    seconds: NDArray[np.float64]
    left_out: int = 0
    safety: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The rows of the table."""
        return MEASURES[self.convention]

    @property
    def safety_measures(self) -> tuple[Measure, ...]:
        """The rows below them: what a fusion must not do. They enter no rank."""
        return measures_of(self.safety)

    def statistic(self, measure: str, method: str, side: str = "value") -> Statistic:
        """Over all pairs; a KeyError says that the measure has no such side."""
        return Statistic.of(self.values[measure, side][:, self.methods.index(method)])

    def seconds_of(self, method: str) -> Statistic:
        """Seconds a pair, of fusing alone."""
        return Statistic.of(self.seconds[:, self.methods.index(method)])

    def safety_of(self, measure: str, method: str) -> Safety:
        """Over all pairs; a KeyError says that the measure was not taken."""
        return Safety.of(measures_of([measure])[0], self.safety[measure][:, self.methods.index(method)])

    def mean_ranks(self, side: str = "value") -> dict[str, float]:
        """By method: the mean, over the measures that have the side, of its rank; 1 is the best, ties share."""
        ranks = []
        for measure in self.measures:
            if (measure.name, side) in self.values:
                means = self.values[measure.name, side].mean(axis=0).round(9)  # rounding decides no tie
                ranks.append(rankdata(-means if measure.better == "higher" else means))
        return dict(zip(self.methods, np.mean(ranks, axis=0).tolist(), strict=True))

    @property
    def title(self) -> str:
        """What the table is of, in one line."""
        count = f"{len(self.pairs)} pair{'s' if len(self.pairs) > 1 else ''}"
        return (
            f"{count}, structural {self.structural}, functional {self.functional}; {self.convention} "
            "convention; mean ± standard deviation"
        )

    def cells(self) -> list[list[str]]:
        """Rows of text, the header first: a row a measure, with its worse source below it; a column a method."""
        rows = [["measure", *self.methods]]
        for measure in self.measures:
            for side, name in (("value", heading(measure)), ("worse", f"{measure.name}, worse source")):
                if (measure.name, side) in self.values:
                    rows.append([name, *(str(self.statistic(measure.name, method, side)) for method in self.methods)])
        for name, side in (("mean rank", "value"), ("mean rank, worse source", "worse")):
            rows.append([name, *(f"{rank:.2f}" for rank in self.mean_ranks(side).values())])
        for measure in self.safety_measures:
            rows.append([heading(measure), *(str(self.safety_of(measure.name, method)) for method in self.methods)])
        rows.append(["seconds a pair", *(f"{self.seconds_of(method).mean:.3g}" for method in self.methods)])
        return rows

    def to_markdown(self) -> str:
        """Title and table."""
        return f"{self.title}\n\n{markdown(self.cells())}"

    def to_json(self) -> str:
        """One object: what was compared, and by method every statistic. Without infinities."""
        content = {
            "convention": self.convention,
            "structural": self.structural,
            "functional": self.functional,
            "device": self.device,
            "pairs": len(self.pairs),
            "left_out": self.left_out,
            "measures": [described(measure) for measure in self.measures],
            "safety": [described(measure) for measure in self.safety_measures],
            "methods": [self._described(method) for method in self.methods],
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """One line a method, measure and side; `inf` where a mean is infinite, an empty field where there is no sd."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(("method", "control", "measure", "side", "mean", "sd", "n"))
        ranks = {side: self.mean_ranks(side) for side in ("value", "worse")}
        for method in self.methods:
            start = (method, int(method in self.controls))
            for measure, side in self.values:
                found = self.statistic(measure, method, side)
                lines.writerow((*start, measure, side, found.mean, found.sd, found.n))
            for measure in self.safety:
                safe = self.safety_of(measure, method)
                lines.writerow((*start, measure, "value", safe.statistic.mean, safe.statistic.sd, safe.statistic.n))
                lines.writerow((*start, measure, "worst", safe.worst, None, safe.statistic.n))
            for side, rank in ranks.items():
                lines.writerow((*start, "mean rank", side, rank[method], None, len(self.pairs)))
            found = self.seconds_of(method)
            lines.writerow((*start, "seconds", "value", found.mean, found.sd, found.n))
        return text.getvalue()

    def _described(self, method: str) -> dict[str, Any]:
        measures: dict[str, dict[str, Any]] = {}
        for measure, side in self.values:
            measures.setdefault(measure, {})[side] = self.statistic(measure, method, side).to_json()
        return {
            "method": method,
            "control": method in self.controls,
            "measures": measures,
            "safety": {measure: self.safety_of(measure, method).to_json() for measure in self.safety},
            "mean_rank": self.mean_ranks()[method],
            "mean_rank_worse": self.mean_ranks("worse")[method],
            "seconds": self.seconds_of(method).to_json(),
        }


def number(value: float) -> str:
    """Three decimals, five of what is below 0.01; ∞ for infinity."""
    return f"{value:.{_decimals(value)}f}" if math.isfinite(value) else "∞"


def _decimals(value: float) -> int:
    return 5 if 0 < round(abs(value), 5) < 0.01 else 3


def measures_of(names: Iterable[str]) -> tuple[Measure, ...]:
    """The measures of safety with these names, in the order of `SAFETY`."""
    wanted = set(names)
    return tuple(measure for kind in SAFETY.values() for measure in kind if measure.name in wanted)


def heading(measure: Measure) -> str:
    """A measure's name, unit and better direction."""
    unit = f" ({measure.unit})" if measure.unit else ""
    return f"{measure.name}{unit} {_ARROWS[measure.better]}"


def described(measure: Measure) -> dict[str, str]:
    """A measure in plain values."""
    return {"name": measure.name, "title": measure.title, "unit": measure.unit, "better": measure.better}
