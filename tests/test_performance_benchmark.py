"""The performance benchmark: its reference, its counts, its pictures, its commands, its tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache
from math import log2
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parts import BENCHMARKS, cells, part
from typer.testing import CliRunner

from medfuse.fusion import READY
from medfuse.fusion.methods import Method
from medfuse.fusion.settings import ARITHMETIC, EXACT, TF32
from medfuse.grid import Grid
from medfuse.volume import Modality, Unit, Volume

rows, task, batches, reference, forms, pictures, counting, measuring, volumes, machine, tables, performance = (
    part(name)
    for name in (
        "rows",
        "performing.task",
        "performing.batches",
        "performing.reference",
        "performing.forms",
        "performing.pictures",
        "performing.counting",
        "performing.measuring",
        "performing.volumes",
        "performing.machine",
        "performing.table",
        "performance",
    )
)
Task = task.Task


@pytest.fixture(autouse=True)
def quick_phantom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phantom that is drawn at once, and processes with one thread as here."""
    monkeypatch.setattr(pictures, "has_readers", lambda: False)
    for name in rows.THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")


def test_activity_is_the_largest_nuclear_norm_squared() -> None:
    features = torch.rand(1, 5, 6, 9, dtype=torch.float64)
    shares = np.exp(features[0].numpy()) / np.exp(features[0].numpy()).sum(axis=0)
    expected = max(np.linalg.norm(channel, "nuc") for channel in shares) ** 2
    assert float(reference.activity(features)) == pytest.approx(expected, rel=1e-12)


def test_reference_is_what_the_method_computes() -> None:
    structural, functional = torch.rand(2, 2, 1, 21, 18)
    published = reference.Published(dtype=torch.float64)
    exact = published(structural.double(), functional.double())
    assert published(structural[1:].double(), functional[1:].double()).equal(exact[1:])
    assert (Method("dilran")(structural, functional) - exact).abs().max() < 1e-5


def test_plain_forms_are_what_the_methods_compute() -> None:
    planes = np.random.default_rng(0).random((2, 1, 20, 22), np.float32)
    for name in ("duet", "eh-dran", "msrpan"):
        np.testing.assert_allclose(forms.fuse_of(f"{name}-plain")(*planes), forms.exact(name, *planes), atol=1e-4)
    assert [name for name in READY if name not in forms.FORMS] == []
    assert not forms.has_plain("shearlet-cnn")
    with pytest.raises(ValueError, match="expected float32 of reference, got bfloat16"):
        forms.fuse_of("reference", precision="bfloat16")


@pytest.mark.parametrize(
    ("call", "flops", "transforms", "decompositions"),
    [
        (lambda x: x @ x.mT, 2 * 12 * 12 * 16, 0, 0),
        (torch.fft.rfft, 2.5 * 12 * 16 * log2(16), 1, 0),
        (lambda x: torch.fft.fft(x.to(torch.complex64)), 5 * 12 * 16 * log2(16), 1, 0),
        (torch.linalg.svdvals, 4 * 16 * 12**2 - 4 * 12**3 / 3, 0, 1),
        (torch.relu, 0, 0, 0),
    ],
)
def test_operations_are_counted(
    call: Callable[[torch.Tensor], torch.Tensor], flops: float, transforms: int, decompositions: int
) -> None:
    x = torch.rand(12, 16)
    with torch.inference_mode():
        count = counting.counted(lambda: call(x))
    expected = (int(flops), int(flops) * transforms, int(flops) * decompositions)
    assert (count.flops, count.transforms, count.decompositions) == expected
    assert count.uncounted == ()


def test_bytes_are_counted_and_what_is_unknown_is_told() -> None:
    x = torch.rand(8, 8)
    with torch.inference_mode():
        assert counting.counted(lambda: x + x.mT).bytes == 3 * 8 * 8 * 4  # the view of the transpose costs nothing
        assert counting.counted(lambda: x.clone().add_(1)).bytes == 4 * 8 * 8 * 4
        assert counting.counted(lambda: torch.linalg.inv(x)).uncounted == ("aten.linalg_inv_ex",)


def test_pictures_differ_in_their_background() -> None:
    phantom, noise, *atlas = pictures.picture_names(None)
    assert atlas == []
    structural, functional = pictures.pictures(phantom, 3, (40, 56))
    for plane in (structural, functional):
        assert plane.shape == (1, 40, 56)
        assert plane.dtype == np.float32
        assert 0.3 < plane.max() <= 1
        assert not plane[0, 0].any()
    for plane in pictures.pictures(noise, 3, (40, 56)):
        assert 0 <= plane.min() < plane.max() <= 1
        assert plane[0].std(axis=1).min() > 0.01
        assert plane[0].std(axis=0).min() > 0.01
    assert not np.array_equal(structural, pictures.pictures(phantom, 4, (40, 56))[0])
    squared = pictures._squared(np.ones((8, 16), np.float32))
    assert squared.shape == (18, 18)
    assert squared.sum() == 8 * 16
    assert not squared[0].any()


def test_real_pictures(shared: Path) -> None:
    assert pictures.picture_names(shared)[2:] == ["ct-mri", "pet-mri", "spect-mri"]
    structural, functional = pictures.pictures("pet-mri", 1, (256, 256), shared)
    assert structural.shape == functional.shape == (1, 256, 256)
    assert not np.array_equal(structural, functional)
    with pytest.raises(ValueError, match="pet-mri needs the folder"):
        pictures.pictures("pet-mri", 1, (16, 16))


def here(_threads: int) -> Executor:
    """In place of a process, a thread of this one, which has everything loaded."""
    return ThreadPoolExecutor(1)


def run(*words: object) -> str:
    result = CliRunner().invoke(performance.app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_commands_write_rows_that_make_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "process", here)
    out = tmp_path / "rows.jsonl"
    pairs = ("pairs", "--out", out, "--sizes", "12,16", "--threads", 1, "--count", 2, "--pictures", "noise")
    pairs = (*pairs, "--methods", "reference,dilran,msrpan,average")
    run("ceilings", "--out", out, "--side", 32, "--count", 1, "--threads", 1)
    run(*pairs)
    many = ("--shape", "16x12", "--volume", "2x12x16", "--batches", "0,2", "--slices", 3, "--precisions", "float32")
    run("gpu", "--out", out, "--device", "cpu", "--count", 1, "--threads", 1, *many)
    found = rows.read_rows(out)
    assert [row for row in found if "failure" in row] == []
    kinds = [row["what"] for row in found]
    assert kinds.count("machine") == 1
    assert kinds.count("pair") == 2 * 2 * 4
    assert {"ceiling", "memory", "accuracy", "arithmetic", "batch", "resident", "volume", "resampling"} <= set(kinds)
    assert max(row["from_float64"] for row in found if row["what"] == "accuracy") < 1e-4
    for kind in ("batch", "resident", "volume", "accuracy"):
        assert {row["method"] for row in found if row["what"] == kind} >= {"duet", "dilran"}
    run(*pairs)
    assert rows.read_rows(out) == found
    text = run("table", out)
    heads = (
        "most a second",
        "× reference",
        "from float64",
        "effective FLOP/s",
        "pairs/s",
        "before it, MB",
        "ns a pixel",
    )
    assert [head for head in heads if head not in text] == []
    assert "failed" not in text


def test_resident_batches_are_of_the_precision_that_their_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    watched = SimpleNamespace(method=lambda *_: seen.append(ARITHMETIC._get()))
    monkeypatch.setattr(batches, "engine", lambda *_: watched)
    for precision, expected in (("float32", EXACT), ("tf32", TF32), ("bfloat16", EXACT)):
        seen.clear()
        batches.resident_seconds(Task("resident", "average", "8x8", "noise", precision=precision, batch=2), None)
        assert seen == [expected] * 3


def test_whole_path_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid.from_axes((6, 20, 18), (0, 0, 0), (3, 2, 2), np.eye(3)[:, ::-1], "1.2.3")
    array = np.random.default_rng(0).integers(0, 900, grid.shape).astype(np.int16)
    scans = {
        "mr": Volume(array, grid, Modality.MR),
        "pet": Volume(array[::-1].astype(np.float32) / 100, grid, Modality.PT, Unit.SUV),
    }
    monkeypatch.setattr(volumes, "_scans", cache(lambda _data: scans))
    monkeypatch.setattr(volumes, "_warm", cache(lambda _method: None))
    out = tmp_path / "rows.jsonl"
    run("volumes", "--out", out, "--shapes", "3x16x14", "--count", 1, "--threads", 1, "--methods", "average")
    _, row = rows.read_rows(out)
    assert "failure" not in row
    assert row["slices"] == 3
    assert sum(row["profile"]["seconds"].values()) == pytest.approx(row["wall_s"], rel=0.5)
    assert row["memory_mb"] is None or 50 < row["memory_mb"] < 5000
    assert "3 × 16 × 14" in run("table", out)
    assert volumes.FOLDERS == {}


def test_memory_is_that_of_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    job = Task("memory", "average", "16x16", "random")
    _, row = measuring.run([job], None, tmp_path / "rows.jsonl")
    assert "failure" not in row
    assert 50 < row["before_mb"] <= row["memory_mb"] < row["before_mb"] + 200


def test_failure_is_a_row_and_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "process", here)
    out = tmp_path / "rows.jsonl"
    bad = Task("pair", "reference", "16x16", "noise", precision="bfloat16")
    assert [row.get("failure") for row in measuring.run([bad], None, out)] == [
        None,
        "ValueError: expected float32 of reference, got bfloat16",
    ]
    assert "expected float32 of reference" in run("table", out)
    monkeypatch.setattr(machine, "described", lambda: {"what": "machine", "cpu": "another"})
    with pytest.raises(ValueError, match="expected rows of this machine"):
        list(measuring.run([bad], None, out))


def test_machine_tells_neither_its_name_nor_a_path() -> None:
    import platform

    found = machine.described()
    assert found["cores"] >= 1
    assert platform.node() not in json.dumps(found)
    assert "/" not in json.dumps({name: value for name, value in found.items() if name != "cpu"})
    assert machine.sentence(found).startswith(found["cpu"])


def made(what: str, method: str, **values: object) -> dict:
    job = Task(what, method, "256x256", "head")
    return {**{name: getattr(job, name) for name in Task.__dataclass_fields__}, "load": 0.5, **values}


def test_pair_table_has_medians_and_ratios() -> None:
    seconds = {
        "reference": (0.9, 0.8, 5.0),
        "dilran": (0.1, 0.1, 0.1),
        "msrpan": (0.3, 0.2, 0.2),
        "average": (0.001,) * 3,
    }
    measured = [
        made("pair", method, index=index, seconds=value)
        for method, values in seconds.items()
        for index, value in enumerate(values)
    ]
    head, table, beside, linear = tables.pair_tables(measured, measured)
    assert head == "1 thread, pictures `head`, load 0.5–0.5, medians of 3 runs:"
    assert cells(table, 2) == ["`reference`", "yes", "900", "1.00"]
    assert cells(table, 3) == ["`dilran`", "yes", "100", "9.00"]
    assert cells(table, 5) == ["`average`", "no", "1", "900.00"]
    assert beside == "`dilran`, times faster than the fastest other learned method: 2.00 at 256 × 256 (`msrpan`)."
    assert cells(linear, 2) == ["`dilran`", "head", "1526"]


def test_arithmetic_stands_beside_the_best_ceiling() -> None:
    count = {
        "flops": 10**9,
        "plain_flops": 4 * 10**9,
        "transforms": 0,
        "decompositions": 0,
        "bytes": 10**8,
        "uncounted": [],
    }
    everything = [
        made("ceiling", "float32 product", rate=4e10, unit="FLOP/s", side=64),
        made("ceiling", "float32 product", rate=5e10, unit="FLOP/s", side=64),
        made("ceiling", "copy", rate=1e10, unit="B/s", side=64),
        made("pair", "dilran", seconds=0.1),
        made("arithmetic", "dilran", **count),
        made("batch", "dilran", seconds=2.0, slices=100, memory_mb=100, batch=8),
    ]
    (table,) = tables.arithmetic_tables(everything[-2:-1], everything)
    found = dict(zip(cells(table, 0), cells(table, 2), strict=True))
    assert found["effective FLOP/s"] == "40 GFLOP/s"
    assert (found["FLOP/s"], found["of ceiling"]) == ("10 GFLOP/s", "20%")
    assert (found["B/s"], found["of copy ceiling"]) == ("1 GB/s", "10%")
    _, table = tables.batch_tables(everything[-1:], everything)
    found = dict(zip(cells(table, 0), cells(table, 2), strict=True))
    assert (found["pairs/s"], found["at a time"], found["of ceiling"]) == ("50", "8", "100%")


def test_whole_path_table_has_the_share_of_the_network() -> None:
    told = {"seconds": {"read": 1.0, "network": 6.0, "other": 0.5}, "total_seconds": 7.5}
    assert volumes._seconds_of("network", told) == 6.0
    assert volumes._seconds_of("network", {"seconds": {"read": 1.0}}) is None
    measured = [made("end to end", "dilran", wall_s=8.0, network_s=6.0, slices=4, memory_mb=300, profile=told)]
    _, table = tables.end_to_end_tables(measured, measured)
    found = dict(zip(cells(table, 0), cells(table, 2), strict=True))
    assert (found["share"], found["slices/s"], found["ms a slice"], found["read"]) == ("75%", "0.50", "2000.0", "1.00")
