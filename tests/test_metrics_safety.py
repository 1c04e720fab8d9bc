"""What a fusion must not do to brightness: values by hand, and bounds that every fixed rule must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pictures import flat, grid, scene
from scipy.ndimage import binary_dilation

from medfuse.metrics import background_error, flicker, gain_flicker, score_safety, score_stack

FUSED, WAVES, BLOCKS = scene(48, 44)


def stack(seed: int = 0, slices: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Two stacks whose slices drift, (K, 20, 22) uint8."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 40, slices)[:, None, None]
    first, second = (np.clip(rng.integers(0, 200, (20, 22)) + ramp * sign, 0, 255) for sign in (1, -0.5))
    return torch.from_numpy(first.astype(np.uint8)), torch.from_numpy(second.astype(np.uint8))


# Background


def test_background_by_hand() -> None:
    first, second = grid([0, 0, 9, 0], [0, 0, 0, 0]), grid([0, 0, 0, 7], [0, 0, 0, 0])
    fused = grid([3, 0, 9, 250], [0, 6, 0, 3])
    assert background_error(fused, first, second).item() == 6
    assert background_error(fused, first, second, largest=False).item() == pytest.approx((3 + 6 + 3) / 6)
    assert background_error(fused, first, second, margin=1).item() == 3  # the first column is left
    assert background_error(fused, first, second, margin=1, largest=False).item() == pytest.approx(3 / 2)
    assert background_error(fused, first, second, margin=2).item() == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 4))
def test_the_margin_is_scipy_s_dilation(seed: int, margin: int) -> None:
    rng = np.random.default_rng(seed)
    fused = rng.integers(0, 256, (17, 23), np.uint8)
    sources = [rng.integers(1, 256, (17, 23), np.uint8) * (rng.random((17, 23)) < 0.01) for _ in range(2)]
    black = np.maximum(*sources) == 0
    if margin:
        black = ~binary_dilation(~black, np.ones((2 * margin + 1, 2 * margin + 1)))
    images = [torch.from_numpy(image.astype(np.uint8))[None, None] for image in (fused, *sources)]
    expected = fused[black]
    assert background_error(*images, margin=margin).item() == (expected.max() if black.any() else 0)
    assert background_error(*images, margin=margin, largest=False).item() == pytest.approx(
        expected.mean() if black.any() else 0
    )


def test_a_colour_is_as_bright_as_its_brightest_channel() -> None:
    black = flat(0, 8, 8)
    color = torch.cat([flat(0, 8, 8), flat(0, 8, 8), flat(9, 8, 8)], dim=1)
    assert background_error(color, black, black).item() == 9
    assert background_error(flat(50, 8, 8), black, color).item() == 0  # blue is not black
    assert background_error(flat(50, 8, 8), color, black).item() == 0


def test_background_of_identical_images_and_of_a_batch() -> None:
    dark = WAVES * (WAVES > 100)
    assert background_error(dark, dark, dark).item() == 0
    assert background_error(FUSED, flat(1, 48, 44), BLOCKS).item() == 0  # no black pixel
    batch = background_error(torch.cat([dark, WAVES]), torch.cat([dark, dark]), torch.cat([dark, dark]))
    assert batch.tolist() == [0, 100]
    assert background_error(dark.float() / 255, dark, dark).item() == 0
    with pytest.raises(ValueError, match="margin of at least 0 pixels, got -1"):
        background_error(dark, dark, dark, margin=-1)
    with pytest.raises(ValueError, match="one shape"):
        background_error(dark, dark, dark[..., 1:])


# Flicker


def test_flicker_by_hand() -> None:
    first = torch.tensor([[[0, 10]], [[4, 10]], [[4, 30]]], dtype=torch.uint8)
    second = torch.tensor([[[0, 50]], [[0, 47]], [[9, 47]]], dtype=torch.uint8)
    fused = torch.tensor([[[0, 60]], [[8, 50]], [[8, 50]]], dtype=torch.uint8)
    assert flicker(fused, first, second).item() == pytest.approx((8 + 10 + 0 + 0) / (4 + 3 + 9 + 20))


def test_identical_stacks_have_their_own_flicker() -> None:
    first, _ = stack()
    assert flicker(first, first, first).item() == 1
    assert flicker(first.double() / 255, first, first).item() == pytest.approx(1, abs=1e-9)
    assert gain_flicker(first, first, first).item() == 0  # every pixel drifts by more than 2 levels, or is white


_LEVELS = arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 255))


@settings(max_examples=60, deadline=None)
@given(_LEVELS, _LEVELS, st.floats(0, 1))
def test_fixed_rules_flicker_no_more_than_the_sources(one: np.ndarray, two: np.ndarray, weight: float) -> None:
    first, second = torch.from_numpy(one), torch.from_numpy(two)
    rules = (
        torch.maximum(first, second),
        torch.minimum(first, second),
        (weight * first.double() + (1 - weight) * second.double()) / 255,
        first,
        torch.zeros_like(first),
    )
    for fused in rules:
        found = flicker(fused, first, second).item()
        assert 0 <= found <= 1 + 1e-9
        assert flicker(fused, second, first).item() == pytest.approx(found)
        assert 0 <= gain_flicker(fused, first, second).item() <= 200 + 1e-9


def test_flicker_where_the_sources_stand_still() -> None:
    still = torch.full((4, 5, 6), 80, dtype=torch.uint8)
    pumping = still.clone()
    pumping[::2] = 90
    assert flicker(still, still, still).item() == 0
    assert flicker(pumping, still, still).item() == math.inf
    assert gain_flicker(still, still, still).item() == 0


@pytest.mark.parametrize("gain", [0.02, 0.1, 0.25])
def test_a_gain_of_its_own_for_every_slice_is_seen_in_per_cent(gain: float) -> None:
    rng = np.random.default_rng(2)
    plane = torch.from_numpy(rng.uniform(0.2, 0.7, (2, 20, 22)))
    first, second = (one.expand(6, -1, -1) for one in plane)
    gains = 1 + gain * torch.tensor([1.0, -1] * 3)[:, None, None]
    fused = torch.maximum(first, second) * gains
    assert gain_flicker(fused, first, second).item() == pytest.approx(200 * gain, rel=1e-6)


def test_weights_of_their_own_for_every_slice_are_seen_too() -> None:
    rng = np.random.default_rng(2)
    first, second = (torch.from_numpy(one).expand(6, -1, -1) for one in rng.uniform(0.2, 0.7, (2, 40, 40)))
    weights = torch.tensor([0.3, 0.7] * 3, dtype=torch.float64)[:, None, None]
    fused = weights * first + (1 - weights) * second
    expected = 0.4 * (first - second).abs().mean() / (first + second).mean() * 2
    assert gain_flicker(fused, first, second).item() == pytest.approx(100 * expected.item(), rel=1e-6)
    assert gain_flicker((first + second) / 2, first, second).item() == pytest.approx(0, abs=1e-9)
    noisy = (first + second) / 2 + torch.from_numpy(rng.normal(0, 0.02, first.shape))
    assert 0 < gain_flicker(noisy, first, second).item() < 1  # noise is none of the gain's


def test_only_pixels_that_stand_still_count_in_the_gain() -> None:
    first = torch.tensor([[[100, 100, 0]], [[102, 103, 0]]], dtype=torch.uint8)
    second = torch.zeros_like(first)
    fused = torch.tensor([[[100, 0, 0]], [[120, 200, 90]]], dtype=torch.uint8)
    assert gain_flicker(fused, first, second).item() == pytest.approx(100 * 20 / 110)
    moving = torch.tensor([[[0, 0, 0]], [[90, 90, 90]]], dtype=torch.uint8)
    assert gain_flicker(fused, moving, second).item() == 0


def test_stacks_that_are_none_are_refused() -> None:
    first, second = stack()
    for measure in (flicker, gain_flicker):
        with pytest.raises(ValueError, match="at least 2 slices"):
            measure(first[:1], first[:1], second[:1])
        with pytest.raises(ValueError, match=r"stacks \(K, H, W\)"):
            measure(first[:, None], first[:, None], second[:, None])
        with pytest.raises(ValueError, match="stacks of one shape"):
            measure(first[1:], first, second)
        with pytest.raises(ValueError, match=r"float values in \[0, 1\]"):
            measure(first.float(), first, second)


# Together


def test_the_card_takes_colour_where_the_functional_picture_has_some() -> None:
    color = torch.cat([BLOCKS, BLOCKS // 2, WAVES // 3], dim=1)
    (grey,) = score_safety(FUSED, WAVES, BLOCKS).rows()
    assert list(grey) == ["background", "background mean"]
    (row,) = score_safety(color, WAVES, color).rows()
    assert {name: value for name, value in row.items() if name not in ("tracer order", "hottest")} == {
        **dict.fromkeys(("background", "background mean", "hue", "hue 99.9 %", "hue CIELAB", "hue CIELAB 99.9 %"), 0.0),
        "colour lost": 0.0,
    }
    assert row["tracer order"] > 0.9
    (lost,) = score_safety(FUSED, WAVES, color).rows()
    assert lost["colour lost"] == 1


def test_the_card_of_a_stack() -> None:
    first, second = stack()
    fused = torch.maximum(first, second)
    (row,) = score_stack(fused, first, second).rows()
    assert row == {
        "flicker": flicker(fused, first, second).item(),
        "gain flicker": gain_flicker(fused, first, second).item(),
    }
