"""What is concluded from the evidence of a registration."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfuse.align.verdict import DOUBTFUL, TRUSTED, Evidence, Trust, judge

GOOD = Evidence(
    agreement_mm={"start": 0.2, "inverse": 0.3, "engine": 0.9, "halves": 1.2},
    start_mm=20.0,
    rival=0.6,
    nmi_before=1.05,
    nmi_after=1.2,
    overlap_before=0.7,
    overlap_after=0.98,
    shift_mm=12.0,
    moved_mm=30.0,
    rotated_degrees=7.0,
)


def test_good_evidence_is_trusted() -> None:
    verdict = judge(GOOD)
    assert verdict.trust is Trust.TRUSTED
    assert verdict.reasons == ()
    assert GOOD.uncertainty_mm == 1.2


@pytest.mark.parametrize(
    ("change", "trust", "reason"),
    [
        ({"agreement_mm": {"start": 3.01}}, "doubtful", "a run from another start ended 3.0 mm away (limit 3 mm)"),
        ({"agreement_mm": {"start": 1, "halves": 8.2}}, "doubtful", "halves of the smaller scan, registered alone"),
        ({"agreement_mm": {"inverse": 15.1}}, "doubtful", "the inverse direction ended 15.1 mm away (limit 3 mm)"),
        ({"agreement_mm": {"engine": float("inf")}}, "doubtful", "another engine ended nowhere (limit 3 mm)"),
        ({"agreement_mm": {"engine": float("nan")}}, "doubtful", "another engine ended nowhere (limit 3 mm)"),
        (
            {"start_mm": 3.3},
            "doubtful",
            "halves of the smaller scan, registered alone, ended 1.2 mm away (limit 1.1 mm)",
        ),
        ({"rival": 0.86}, "doubtful", "an alignment elsewhere scores 86.0% as high (limit 85%)"),
        ({"rival": 0.96}, "failed", "an alignment elsewhere scores 96.0% as high (limit 95%)"),
        ({"nmi_after": 1.004}, "failed", "tell next to nothing of each other (1.004, limit 1.01)"),
        ({"overlap_after": 0.2}, "doubtful", "only 20% of the smaller scan's body overlap"),
        ({"overlap_after": 0.05}, "failed", "only 5% of the smaller scan's body overlap"),
        ({"stretched": 0.2}, "doubtful", "it stretches the scan by 20%"),
        ({"folded": 0.001}, "doubtful", "it folds 0.10% of the space"),
        ({"folded": 0.0, "stretched": 0.1}, "trusted", None),
    ],
)
def test_each_number_counts(change: dict[str, object], trust: str, reason: str | None) -> None:
    verdict = judge(replace(GOOD, **change))
    assert verdict.trust == trust
    assert (len(verdict.reasons), reason is None) in ((0, True), (1, False))
    assert all(reason in found for found in verdict.reasons if reason)


def test_runs_that_began_near_one_another_must_agree_better() -> None:
    near = replace(GOOD, start_mm=2.0)
    assert judge(replace(near, agreement_mm={"engine": 0.6, "halves": 0.6})).trust is Trust.TRUSTED
    assert judge(replace(near, agreement_mm={"engine": 0.6, "halves": 0.7})).trust is Trust.DOUBTFUL
    assert judge(replace(near, agreement_mm={"engine": 3.1, "halves": 3.1})).trust is Trust.FAILED


def test_every_reason_is_given_with_the_limit_that_decided() -> None:
    verdict = judge(replace(GOOD, rival=0.9, agreement_mm={"start": 4, "engine": 20}))
    assert verdict.trust is Trust.DOUBTFUL
    assert [reason[reason.index("(") :] for reason in verdict.reasons] == ["(limit 3 mm)"] * 2 + ["(limit 85%)"]
    verdict = judge(replace(GOOD, rival=0.97, agreement_mm={"start": 16, "engine": 20, "halves": 4}))
    assert verdict.trust is Trust.FAILED
    assert [reason[reason.index("(") :] for reason in verdict.reasons] == ["(limit 15 mm)"] * 2 + ["(limit 95%)"]


def test_one_run_alone_may_lose_its_way() -> None:
    assert judge(replace(GOOD, agreement_mm={"start": 0.1, "engine": 40.0})).trust is Trust.DOUBTFUL
    assert judge(replace(GOOD, agreement_mm={"start": 15.1, "engine": 40.0})).trust is Trust.FAILED


@given(worse=st.sampled_from(["rival", "uncertainty"]), share=st.floats(0, 1), more=st.floats(0, 30))
def test_worse_evidence_is_never_trusted_more(worse: str, share: float, more: float) -> None:
    order = [Trust.TRUSTED, Trust.DOUBTFUL, Trust.FAILED]
    first = replace(GOOD, rival=share)
    second = replace(first, rival=min(1.0, share + more / 30)) if worse == "rival" else first
    if worse == "uncertainty":
        second = replace(first, agreement_mm={run: mm + more for run, mm in GOOD.agreement_mm.items()})
    assert order.index(judge(second).trust) >= order.index(judge(first).trust)


def test_what_has_failed_is_beyond_what_is_doubtful() -> None:
    assert DOUBTFUL.agreement_mm > TRUSTED.agreement_mm
    assert DOUBTFUL.rival > TRUSTED.rival


def test_json_is_plain() -> None:
    values = judge(replace(GOOD, agreement_mm={"start": float("inf"), "halves": 1.23456, "engine": 99})).to_json()
    assert values["agreement_mm"] == {"start": None, "halves": 1.2346, "engine": 99}
    assert values["uncertainty_mm"] is None
    assert values["trust"] == "failed"
    assert values["folded"] is None
    assert json.loads(json.dumps(values)) == values
