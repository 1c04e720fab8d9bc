"""The examples run as they stand, on DICOM series of a small phantom."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medfuse.grid import Grid
from medfuse.io.files import inspect
from medfuse.sample.series import Study, write_series
from medfuse.train import read_config
from medfuse.volume import Modality, Unit, Volume

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def blob(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], frame: str, scale: float) -> Volume:
    """A lopsided body, brighter towards one end, on an axial grid about the origin."""
    extent = np.array(shape) * np.array(spacing_mm)
    grid = Grid.from_axes(shape, -extent[::-1] / 2, spacing_mm, np.eye(3)[:, ::-1], frame)
    x, y, z = grid.points_mm(np.argwhere(np.ones(shape))).T
    inside = ((x - 4) / 34) ** 2 + ((y + 3) / 27) ** 2 + (z / 30) ** 2 < 1
    values = np.where(inside, 0.4 + 0.3 * np.sin(x / 9) * np.cos(y / 7) + 0.01 * z, 0)
    modality, unit = (Modality.PT, Unit.SUV) if scale < 100 else (Modality.MR, Unit.ARBITRARY)
    return Volume((values.clip(0) * scale).reshape(shape).astype(np.float32), grid, modality, unit)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    patient = Study()
    mr = blob((20, 44, 40), (3.5, 2.0, 2.0), "1.2.826.0.1.1", 1000)
    pt = blob((18, 26, 24), (4.0, 4.0, 4.0), "1.2.826.0.1.1", 8)
    write_series(mr, folder / "mr", description="T1", number=1, study=patient)
    write_series(pt, folder / "pt", description="FDG", number=2, study=patient)
    return folder


def run(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, words)], capture_output=True, text=True, check=False, timeout=300
    )


def test_pacs_preprocess_writes_a_series(study: Path, tmp_path: Path) -> None:
    done = run("pacs_preprocess.py", study, tmp_path / "out", "--method", "average")
    assert done.returncode == 0, done.stderr
    told = {"status": "fused", "images": 20, "alignment": "one frame of reference", "trust": None}
    assert json.loads(done.stdout) == told
    first = {path.name: pydicom.dcmread(path) for path in (tmp_path / "out").iterdir()}
    study_uid = pydicom.dcmread(next((study / "mr").iterdir())).StudyInstanceUID
    assert {image.StudyInstanceUID for image in first.values()} == {study_uid}
    assert run("pacs_preprocess.py", study, tmp_path / "out", "--method", "average").returncode == 0
    for path in (tmp_path / "out").iterdir():
        assert pydicom.dcmread(path).SOPInstanceUID == first[path.name].SOPInstanceUID


def test_pacs_preprocess_does_not_fuse_its_own_results(study: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(study, both)
    assert run("pacs_preprocess.py", study, both / "before", "--method", "average").returncode == 0
    done = run("pacs_preprocess.py", both, tmp_path / "out", "--method", "average")
    assert done.returncode == 0, done.stderr
    sources = {pydicom.dcmread(path).SOPInstanceUID for path in (both / "mr").iterdir()}
    made = pydicom.dcmread(next((tmp_path / "out").iterdir()))
    named = {item.ReferencedSOPInstanceUID for item in made.SourceImageSequence}
    assert named & sources
    told = {series.uid: series.by_medfuse for series in inspect(both).series}
    assert sorted(told.values()) == [False, False, True]
    assert told[pydicom.dcmread(next((both / "before").iterdir())).SeriesInstanceUID]
    shutil.rmtree(both / "mr")
    assert run("pacs_preprocess.py", both, tmp_path / "none").returncode == 10
    assert run("pacs_preprocess.py", both, tmp_path / "none", "--method", "foo").returncode == 2


def test_pacs_preprocess_says_when_there_is_no_pair(study: Path, tmp_path: Path) -> None:
    done = run("pacs_preprocess.py", study / "mr", tmp_path / "out")
    assert done.returncode == 10
    assert json.loads(done.stdout) == {"status": "no pair"}
    assert not (tmp_path / "out").exists()


def test_research_export_writes_everything(study: Path, tmp_path: Path) -> None:
    done = run("research_export.py", study / "mr", study / "pt", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {
        "functional_on_structural.nii.gz",
        "fused_average.nii.gz",
        "fused_maximum.nii.gz",
        "fused_duet_4mm.nii.gz",
    }
    assert (tmp_path / "out" / "functional_from_structural.tfm").exists()
    assert nib.load(tmp_path / "out" / "fused_maximum.nii.gz").shape == (40, 44, 20)


def test_the_rows_of_the_ablation_differ_in_their_losses_only() -> None:
    rows = [read_config(path) for path in sorted((EXAMPLES / "ablation").glob("*.yaml"))]
    assert len(rows) == 4
    assert len({tuple(sorted(row.losses.items())) for row in rows}) == 4
    assert all(replace(row, losses=rows[0].losses) == rows[0] for row in rows)
