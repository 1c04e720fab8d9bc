"""Reference values come from the MATLAB code in circulation (analysis_Qabf.m, analysis_nabf.m), run in GNU Octave on
`scene(48, 40)` set in 4 pixels of black, where all ways to treat the border agree; in Q_AB/F with G = 1 where both
strengths are equal, as in the paper.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import flat, grid, scene

from medfuse.errors import UnsupportedImage
from medfuse.metrics import (
    average_gradient,
    edge_preservation,
    fusion_artifacts,
    spatial_frequency,
    standard_deviation,
)

FUSED, WAVES, BLOCKS = (torch.nn.functional.pad(image, (4, 4, 4, 4)) for image in scene(48, 40))
IDENTICAL = 0.9994 / (1 + math.exp(-7.5)) * 0.9879 / (1 + math.exp(-4.4))


def test_standard_deviation_is_numpys() -> None:
    assert standard_deviation(FUSED).item() == pytest.approx(FUSED.numpy().std(), abs=1e-9)


def test_spatial_frequency_and_average_gradient_by_hand() -> None:
    image = grid([0, 3, 3], [4, 4, 4])
    # across: 3, 0, 0, 0; down: 4, 1, 1; 6 pixels
    assert spatial_frequency(image).item() == pytest.approx(math.sqrt((9 + 18) / 6))
    # at the two pixels that have both neighbours: (3, 4) and (0, 1)
    assert average_gradient(image).item() == pytest.approx((math.sqrt(25 / 2) + math.sqrt(1 / 2)) / 2)


def test_spatial_frequency_and_average_gradient_are_numpys() -> None:
    levels = FUSED[0, 0].numpy().astype(float)
    across, down = np.diff(levels, axis=1), np.diff(levels, axis=0)
    assert spatial_frequency(FUSED).item() == pytest.approx(
        math.sqrt(((across**2).sum() + (down**2).sum()) / levels.size), abs=1e-9
    )
    slope = np.sqrt((across[:-1] ** 2 + down[:, :-1] ** 2) / 2)
    assert average_gradient(FUSED).item() == pytest.approx(slope.mean(), abs=1e-9)


@pytest.mark.parametrize("measure", [standard_deviation, spatial_frequency, average_gradient])
def test_a_constant_image_has_no_contrast(measure) -> None:
    assert measure(flat(77)).item() == 0


def test_average_gradient_needs_two_rows() -> None:
    with pytest.raises(UnsupportedImage, match="at least 2 × 2 pixels, found 1 × 9"):
        average_gradient(flat(0, 1, 9))


def test_edge_preservation_is_that_of_the_code_in_circulation() -> None:
    assert edge_preservation(FUSED, WAVES, BLOCKS).item() == pytest.approx(0.5405407847, abs=1e-9)
    assert edge_preservation(FUSED, WAVES, WAVES).item() == pytest.approx(0.6681967684, abs=1e-6)


def test_fusion_artifacts_are_those_of_the_code_in_circulation() -> None:
    assert fusion_artifacts(FUSED, WAVES, BLOCKS).item() == pytest.approx(0.0003569607, abs=1e-9)
    assert fusion_artifacts(FUSED, WAVES, WAVES).item() == pytest.approx(0.0211531508, abs=1e-9)


def test_identical_images() -> None:
    assert edge_preservation(WAVES, WAVES, WAVES).item() == pytest.approx(IDENTICAL, abs=1e-9)
    assert pytest.approx(0.9748, abs=5e-5) == IDENTICAL
    assert fusion_artifacts(WAVES, WAVES, WAVES).item() == 0


def test_constant_images() -> None:
    black, grey = flat(0, 56, 48), flat(90, 56, 48)
    assert edge_preservation(grey, grey, black).item() == 0
    assert edge_preservation(WAVES, grey, black).item() == 0
    assert edge_preservation(grey, WAVES, BLOCKS).item() < 1e-3
    assert fusion_artifacts(grey, WAVES, BLOCKS).item() == 0
    assert fusion_artifacts(WAVES[..., 4:-4, 4:-4], flat(90, 48, 40), flat(0, 48, 40)).item() > 0.95


def test_a_copy_of_one_source_keeps_its_edges_only() -> None:
    assert edge_preservation(WAVES, WAVES, WAVES).item() > 0.97
    assert edge_preservation(WAVES, BLOCKS, BLOCKS).item() < 0.3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_the_order_of_the_sources_does_not_matter(seed: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    fused, first, second = torch.randint(0, 256, (3, 2, 1, rows, 7), generator=generator).to(torch.uint8)
    for measure, most in ((edge_preservation, IDENTICAL + 1e-9), (fusion_artifacts, 1)):
        values = measure(fused, first, second)
        assert torch.allclose(values, measure(fused, second, first), atol=1e-12)
        assert values.min() >= 0
        assert values.max() <= most
