"""What the tests share: the folder of real data, lopsided phantoms, the devices there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfuse.grid import Grid
from medfuse.volume import Modality, Unit, Volume

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and published reference values, which a user's clone does not have."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real data, ../shared/data, is not here")
    return SHARED


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
