"""What the tests share: the folder of real data, lopsided phantoms, the devices there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medfuse.grid import Grid
from medfuse.sample.series import write_series
from medfuse.volume import Modality, Unit, Volume

# Before torch is loaded, and for the commands that tests run: on arrays this small, threads that share the cores of a
# busy machine wait for one another ten times longer than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and published reference values, which a user's clone does not have."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real data, ../shared/data, is not here")
    return SHARED


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource", reason="no limits of files on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def oblique_direction(seed: int = 1) -> np.ndarray:
    """A rotation far from every axis; column n is the direction of index axis n (k, j, i)."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q if np.linalg.det(q) < 0 else -q  # (k, j, i) reversed is right-handed, as DICOM stacks are


@pytest.fixture
def oblique_grid() -> Grid:
    """Lopsided in every way: no two sizes, spacings or angles alike, far from the origin."""
    return Grid.from_axes((5, 7, 9), (-31.5, 44.25, 117.0), (3.0, 1.5, 1.25), oblique_direction(), "1.2.826.0.1.999")


@pytest.fixture
def oblique_volume(oblique_grid: Grid) -> Volume:
    """A volume on the oblique grid in which no two voxels are alike."""
    rng = np.random.default_rng(7)
    array = rng.permutation(np.arange(5 * 7 * 9)).reshape(5, 7, 9).astype(np.float32) - 40
    return Volume(array, oblique_grid, Modality.CT, Unit.HU)


@pytest.fixture
def rgb(oblique_grid: Grid) -> Volume:
    """A volume on the oblique grid in colour."""
    array = np.random.default_rng(0).integers(0, 256, (*oblique_grid.shape, 3), np.uint8)
    return Volume(array, oblique_grid, Modality.PT, Unit.RGB)


@pytest.fixture
def ct_series(oblique_volume: Volume, tmp_path: Path) -> Path:
    """The oblique volume as a CT series: five files in a folder, named and numbered in another order than they lie."""
    folder = tmp_path / "ct_series"
    write_series(oblique_volume, folder, description="CT", number=3)
    return folder


@pytest.fixture
def pt_series(oblique_volume: Volume, tmp_path: Path) -> Path:
    """A PET series on the same grid, in SUV, with another rescale slope in every slice."""
    volume = replace(oblique_volume, array=(oblique_volume.array + 40) / 31, modality=Modality.PT, unit=Unit.SUV)
    folder = tmp_path / "pt_series"
    write_series(volume, folder, description="PET", number=4)
    return folder


@pytest.fixture(params=["cpu", "cuda", "pretended"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every device there is: the CPU; a CUDA GPU, with full float32 arithmetic, or a pretended one."""
    import torch
    from pretended import pretended_gpu

    if request.param == "cpu":
        yield "cpu"
    elif request.param == "cuda":
        yield _gpu(request)
    elif torch.cuda.is_available():
        pytest.skip("a real CUDA device is here")
    else:
        with pretended_gpu() as name:
            yield name


@pytest.fixture(params=["cpu", "cuda"])
def training_device(request: pytest.FixtureRequest) -> str:
    """Those that can train: a pretended one cannot."""
    return "cpu" if request.param == "cpu" else _gpu(request)


def _gpu(request: pytest.FixtureRequest) -> str:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    request.getfixturevalue("monkeypatch").setattr(torch.backends.cudnn, "allow_tf32", False)
    return "cuda"
