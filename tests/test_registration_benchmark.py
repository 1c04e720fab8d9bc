"""The registration benchmark: its displacements, its truth, its methods' conventions, its table."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from math import inf
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import BENCHMARKS, cells, part
from scipy.spatial.transform import Rotation

from medfuse.align import Transform
from medfuse.grid import Grid
from medfuse.sample import head as sample
from medfuse.volume import Modality, Volume

displacements, cases, methods, measuring, tables, judging, registration = (
    part(name)
    for name in (
        "registering.displacement",
        "registering.cases",
        "registering.methods",
        "registering.measuring",
        "registering.table",
        "registering.judging",
        "registration",
    )
)
CENTER = np.array((12.0, -40.0, 300.0))


@given(st.integers(0, 10_000), st.integers(0, 99))
def test_displacement_is_rigid_in_range_and_the_same_again(index: int, seed: int) -> None:
    found = displacements.displacement("head/ct-mr", index, seed, CENTER)
    again = displacements.displacement("head/ct-mr", index, seed, CENTER)
    matrix = found.displaced_from_moving
    np.testing.assert_array_equal(matrix, again.displaced_from_moving)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
    shift = np.linalg.norm(Transform(matrix).apply([CENTER])[0] - CENTER)
    assert shift == pytest.approx(found.shift_mm)
    assert shift <= 60
    half = Rotation.from_euler(found.half_turn, 180, degrees=True) if found.half_turn else Rotation.identity()
    turn = Rotation.from_matrix(matrix[:3, :3]) * half
    assert np.degrees(turn.magnitude()) == pytest.approx(found.degrees, abs=1e-6)
    assert found.degrees <= 40


def test_displacements_differ_and_fill_their_range() -> None:
    found = [displacements.displacement("head/ct-mr", index, 0, CENTER) for index in range(200)]
    degrees, shifts = [each.degrees for each in found], [each.shift_mm for each in found]
    assert len(set(degrees)) == 200
    assert np.mean(degrees) == pytest.approx(20, abs=2)
    assert np.mean(shifts) == pytest.approx(30, abs=3)
    turns = [each.half_turn for each in found]
    assert {axis: turns.count(axis) for axis in "xyz"} == {"x": 7, "y": 7, "z": 6}
    other = displacements.displacement("head/pet-mr", 0, 0, CENTER)
    assert other.degrees != degrees[0]


def test_truth_maps_a_voxel_to_itself(oblique_volume: Volume) -> None:
    """The point that shows a voxel before the displacement is sent to where the same voxel lies after it."""
    before = Transform(displacements.displacement("before", 3, 5, CENTER).displaced_from_moving)
    move = displacements.displacement("head/ct-mr", 9, 0, oblique_volume.grid.center_mm)
    moved = move.moved(oblique_volume)
    index = np.array([(0, 0, 0), (4, 1, 7), (2, 6, 3)])
    fixed_points = before.inverse().apply(oblique_volume.grid.points_mm(index))
    np.testing.assert_allclose(moved.grid.index_of(move.truth(before).apply(fixed_points)), index, atol=1e-9)
    assert moved.array is not oblique_volume.array or moved.array.base is oblique_volume.array.base
    np.testing.assert_array_equal(moved.array, oblique_volume.array)
    assert moved.grid.frame_of_reference != oblique_volume.grid.frame_of_reference


def test_targets_lie_in_both_bodies(oblique_volume: Volume) -> None:
    grid = oblique_volume.grid
    half = Grid((5, 7, 5), grid.lps_from_index)
    moving = Volume(oblique_volume.array[:, :, :5], half, Modality.CT)
    index = grid.index_of(cases.Case("x", oblique_volume, moving, Transform.identity(), 1.0).targets_mm())
    assert len(index) > 10
    assert index[:, 2].max() < 4.5
    values = oblique_volume.array[tuple(np.rint(index).astype(int).T)]
    assert values.min() > oblique_volume.array.mean()


def test_cases_by_pattern(tmp_path: Path) -> None:
    assert cases.case_names(None) == ["head/ct-mr", "head/pet-mr"]
    for patient in ("STS_002", "STS_003"):
        (tmp_path / "ibsi-sts" / "dicom" / patient).mkdir(parents=True)
    assert "sts_003/ct-mr" not in cases.case_names(tmp_path)
    assert cases.case_names(tmp_path, ["sts_*/ct-mr"]) == ["sts_002/ct-mr", "sts_003/ct-mr"]


@pytest.fixture(scope="module")
def heads() -> tuple[Volume, Volume]:
    """MR and CT of the digital head, coarse, in one world, each tilted another way."""
    made = []
    for seed, table, modality in ((0, sample._T1, Modality.MR), (1, sample._HU, Modality.CT)):
        direction = Rotation.from_rotvec(np.roll((5, -8, 3), seed), degrees=True).as_matrix()[:, ::-1]
        grid = Grid.from_axes((50, 70, 60), direction @ (-100, -115, -95), (4.0, 3.25, 3.0), direction)
        made.append(Volume(sample._sampled(grid, np.eye(4), table, 3.0, (1, 1, 1)), grid, modality))
    return made[0], made[1]


@pytest.mark.parametrize(
    ("method", "most_mm"),
    # SimpleITK's recipe leaves even the truth, by its long steps: near enough to tell one direction from the other.
    [("simpleitk", 20.0), ("simpleitk-moments", 20.0), ("elastix", 1.0), ("greedy", 1.0), ("greedy-search", 1.0)],
)
def test_method_finds_a_small_displacement(
    method: str, most_mm: float, heads: tuple[Volume, Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answers in another convention: brought to ours, all come out near a truth that is far from identity."""
    if package := methods.missing(method):
        pytest.skip(f"{package} is not installed")
    fixed, moving = heads
    center = moving.grid.center_mm
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec((3, -2, 4), degrees=True).as_matrix()
    matrix[:3, 3] = np.add(center, (31, -22, 26)) - matrix[:3, :3] @ center
    truth = Transform(matrix)
    moved = displacements.Displacement(matrix, 0.0, 0.0, "").moved(moving)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    # A process of its own, as in the benchmark: itk and GDCM do not bear one another in one.
    with ProcessPoolExecutor(1, get_context("spawn"), methods.load, (method,)) as pool:
        found = pool.submit(methods.METHODS[method], fixed, moved, "rigid", 1).result().transform
    targets = cases.Case("head", fixed, moving, Transform.identity(), 1.0).targets_mm()
    assert found.distance_mm(truth, targets).mean() < most_mm
    assert found.inverse().distance_mm(truth, targets).mean() > 60


def row(case: str = "head/ct-mr", method: str = "medfuse", trust: str | None = None, **values: object) -> dict:
    return {"case": case, "method": method, "trust": trust, "seconds": 2.0, "memory_mb": 300, **values}


def displaced(error_mm: float | None, trust: str | None = None, **values: object) -> dict:
    return row(trust=trust, tolerance_mm=0.5, **({} if error_mm is None else {"error_mm": error_mm}), **values)


def test_table_counts_verdicts() -> None:
    rows = [
        displaced(0.2, "trusted", seconds=4.0),
        displaced(0.4, "doubtful"),
        displaced(1.5, "failed"),
        displaced(1.6, "trusted"),
        displaced(40.0, "doubtful"),
        displaced(None, "failed", seconds=9.0, memory_mb=800),
    ]
    table = tables.displacement_table(rows)
    found = dict(zip(cells(table, 0), cells(table, 2), strict=True))
    assert found == {
        "case": "head/ct-mr",
        "method": "medfuse",
        "runs": "6",
        "asked mm": "0.5",
        "median mm": "1.55",
        "bias mm": "–",
        "scatter mm": "–",
        "within 3×": "50.0%",
        "bad: not trusted": "2 of 3",
        "bad: refused": "1 of 3",
        "good: refused": "1 of 3",
        "good: doubtful": "1 of 3",
        "s median": "2.0",
        "s most": "9.0",
        "MB": "800",
    }


def test_table_tells_bias_from_scatter() -> None:
    """Runs that all end 3 mm beside the truth but 0, 0 and 1 mm apart: whatever the displacement was."""
    anchors = cases.anchors_mm(np.random.default_rng(0).normal(size=(50, 3), scale=(40, 30, 60)))
    rows = []
    for index, apart in enumerate((0.0, 0.0, 1.0, 0.5, 0.5)):
        truth = displacements.displacement("head/ct-mr", index, 0, CENTER).displaced_from_moving
        beside = np.eye(4)
        beside[:3, 3] = (0, 3, apart * (-1) ** index)
        rows.append(displaced(3.0, truth=truth.tolist(), found=(truth @ beside).tolist(), anchors_mm=anchors.tolist()))
    assert cells(tables.displacement_table(rows), 2)[5:7] == ["3.00", "0.50"]


def test_anchors_have_the_spread_of_the_points() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3), scale=(40, 30, 60))
    anchors = cases.anchors_mm(points)
    np.testing.assert_allclose(anchors.mean(axis=0), points.mean(axis=0))
    np.testing.assert_allclose(np.cov(anchors.T, bias=True), np.cov(points.T, bias=True), atol=1e-9)


def test_table_of_methods_without_verdict_and_all_cases() -> None:
    rows = [displaced(0.1, case="a"), displaced(8.0, case="b"), displaced(None, case="b")]
    table = tables.displacement_table([{**one, "method": "elastix"} for one in rows])
    assert [cells(table, line)[0] for line in (2, 3, 4)] == ["a", "b", "all"]
    assert cells(table, 3)[4] == "inf"
    assert cells(table, 4)[4:12] == ["–", "–", "–", "33.3%", "–", "–", "–", "–"]


def test_nonsense_and_timing_tables() -> None:
    text = "\n".join(registration._tables([displaced(0.1), row("timing/ct-mr"), row("nonsense/head.mr head.ct|white")]))
    assert [text.count(head) for head in ("within 3×", "ratio to", "those trusted")] == [1, 1, 1]
    table = tables.nonsense_table([row("nonsense/a b", trust="trusted"), row("nonsense/c d", trust="failed"), row()])
    assert cells(table, 2) == ["medfuse", "3", "1", "0", "1", "1", "2.0", "a b"]
    table = tables.timing_table([row(seconds=18.0), row(method="simpleitk", seconds=6.0)])
    assert [cells(table, line)[-1] for line in (2, 3)] == ["3.00", "1.00"]
    assert cells(tables.timing_table([row(seconds=18.0)]), 2)[-1] == "–"


def test_run_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is there is not measured again; one that was cut off is, and spoils nothing."""
    out = tmp_path / "rows.jsonl"
    tasks = [measuring.Task("head/ct-mr", index, "medfuse", "rigid", 0) for index in range(3)]
    out.write_text(json.dumps({**vars(tasks[0]), "seconds": 1.0}) + '\n{"case": "head/ct')
    asked = []

    def answer(_method: str, group: list, *_: object) -> list[dict]:
        asked.extend(task.index for task in group)
        return [vars(task) for task in group]

    monkeypatch.setattr(measuring, "_in_processes", answer)
    for name in measuring.THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    assert len(list(measuring.run(tasks, None, out, jobs=1, threads=1))) == 2
    assert asked == [1, 2]
    assert [found["index"] for found in measuring.read_rows(out)] == [0, 1, 2]


def test_rows_without_evidence_keep_their_verdict() -> None:
    assert judging.judged(row(trust="doubtful", numbers={"spread_mm": 1.0}))["trust"] == "doubtful"
    assert judging._number({"start": None, "inverse": 0.5}) == {"start": inf, "inverse": 0.5}


def test_nonsense_pairs_are_fifty_and_some_need_no_data() -> None:
    nonsense = part("registering.nonsense")
    assert len(nonsense.NONSENSE) == 50
    names = nonsense.nonsense_names(None)
    assert "nonsense/head.mr head.ct|shuffled" in names
    assert not any("sts" in name for name in names)
