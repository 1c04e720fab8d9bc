"""What a fusion must not do to colour. Hues are held against Python's colorsys and against CIELAB written out by hand;
ranks against scipy's own correlation.
"""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from skimage.color import lab2rgb, rgb2lab

from medfuse.color import apply_palette, rgb_with_luminance, ycbcr_from_rgb
from medfuse.color.ycbcr import RGB_FROM_YCBCR
from medfuse.metrics import color_loss, hottest_is_lightest, hue_error, tracer_order
from medfuse.metrics.color import LEAST_CHROMA, luminance


def picture(rgb: np.ndarray) -> torch.Tensor:
    """(H, W, 3) as (1, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(rgb, -1, 0)))[None]


def patch(*colors: tuple[int, int, int]) -> torch.Tensor:
    """A row of pixels."""
    return picture(np.array([colors], np.uint8))


def noise(seed: int, rows: int = 24, columns: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)


def turn(first: float, second: float) -> float:
    return abs((first - second + 180) % 360 - 180)


def cielab(color: np.ndarray) -> tuple[float, float]:
    """Hue in degrees and C*ab by the formulas of CIE 15:2004 and IEC 61966-2-1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color / 255]
    matrix = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
    ratios = [
        sum(weight * one for weight, one in zip(row, linear, strict=True)) / white
        for row, white in zip(matrix, (0.95047, 1, 1.08883), strict=True)
    ]
    x, y, z = (one ** (1 / 3) if one > 0.008856 else 7.787 * one + 16 / 116 for one in ratios)
    a, b = 500 * (x - y), 200 * (y - z)
    return math.degrees(math.atan2(b, a)), math.hypot(a, b)


# Hue


@pytest.mark.parametrize("lowest", [0, 33, 37, 41, 45])
def test_pixels_of_just_enough_chroma_count(lowest: int) -> None:
    """Whatever levels over 255 are in binary."""
    high = lowest + 32
    assert hue_error(patch((high, lowest, lowest)), patch((lowest, high, lowest))).item() == pytest.approx(120)


@pytest.mark.parametrize("hue", ["hsv", "cielab"])
def test_hues_are_those_of_an_independent_formula(hue) -> None:
    fused, functional = noise(1), noise(2)
    errors = []
    for one, two in zip(fused.reshape(-1, 3), functional.reshape(-1, 3), strict=True):
        if hue == "hsv":
            if min(np.ptp(one), np.ptp(two)) >= 32:
                errors.append(turn(*(360 * colorsys.rgb_to_hsv(*(color / 255))[0] for color in (one, two))))
        else:
            (first, chroma), (second, other) = cielab(one), cielab(two)
            if min(chroma, other) >= 25:
                errors.append(turn(first, second))
    assert len(errors) > 300
    images = picture(fused), picture(functional)
    assert hue_error(*images, hue=hue).item() == pytest.approx(np.mean(errors), abs=0.01)
    for quantile in (0.5, 0.999, 1):
        found = hue_error(*images, hue=hue, quantile=quantile).item()
        assert found == pytest.approx(np.quantile(errors, quantile), abs=0.01)


def test_hue_by_hand_and_round_the_circle() -> None:
    red, yellow, blue, pink = (255, 0, 0), (255, 255, 0), (0, 0, 255), (255, 0, 43)
    assert hue_error(patch(red), patch(yellow)).item() == pytest.approx(60)
    assert hue_error(patch(blue), patch(yellow)).item() == pytest.approx(180)
    assert hue_error(patch(pink), patch((255, 43, 0))).item() == pytest.approx(2 * 60 * 43 / 255)  # over 0°
    assert hue_error(patch(red, yellow, blue), patch(red, red, blue)).item() == pytest.approx(20)
    assert hue_error(patch(red, yellow, blue), patch(red, red, blue), quantile=1).item() == pytest.approx(60)


def test_only_what_has_colour_in_both_has_a_hue() -> None:
    grey, pale, red = (90, 90, 90), (120, 100, 100), (255, 0, 0)
    assert hue_error(patch(grey, pale, red), patch((0, 255, 0), (0, 255, 0), red), quantile=1).item() == 0
    assert hue_error(patch(grey), patch(grey)).item() == 0
    assert hue_error(patch((131, 100, 100)), patch((0, 255, 0))).item() == 0
    assert hue_error(patch((132, 100, 100)), patch((0, 255, 0))).item() == pytest.approx(120)


@pytest.mark.parametrize("hue", ["hsv", "cielab"])
def test_rounding_alone_stays_below_two_degrees(hue) -> None:
    rng = np.random.default_rng(5)
    colors = np.concatenate([rng.integers(0, 255, (40000, 3)), rng.integers(0, 80, (40000, 3))]).astype(np.uint8)
    for channel in range(3):
        moved = colors.copy()
        moved[:, channel] += 1
        assert 0.9 < hue_error(picture(moved[None]), picture(colors[None]), hue=hue, quantile=1).item() < 2


def test_another_luminance_under_the_same_chroma_keeps_the_hue_of_hsv_only() -> None:
    rng = np.random.default_rng(3)
    functional = rng.integers(60, 140, (40, 40, 3), np.uint8)
    ycbcr = ycbcr_from_rgb(functional)
    lighter = picture(rgb_with_luminance(ycbcr[..., 0] + np.float32(100 / 255), ycbcr[..., 1:]))
    assert hue_error(lighter, picture(functional), quantile=1).item() < 2
    assert hue_error(lighter, picture(functional), quantile=1, hue="cielab").item() > 4
    ycbcr[..., 0] += np.float32(140 / 255)  # more than there is room for
    paled = picture(rgb_with_luminance(ycbcr[..., 0], ycbcr[..., 1:]))
    assert hue_error(paled, picture(functional), quantile=1).item() < 4  # pale colours, of few levels, are rounded
    clipped = picture(np.rint(255 * (ycbcr @ RGB_FROM_YCBCR.T).clip(0, 1)).astype(np.uint8))
    assert hue_error(clipped, picture(functional), quantile=1).item() > 10


def test_a_turn_in_cielab_is_told_in_its_degrees() -> None:
    angles = np.radians(np.arange(0, 360, 5.0))
    lab = [
        np.stack([np.full_like(angles, 60), 30 * np.cos(angles + by), 30 * np.sin(angles + by)], -1)[None]
        for by in (0, np.radians(7))
    ]
    first, second = (picture(lab2rgb(one)) for one in lab)
    assert hue_error(first, second, hue="cielab").item() == pytest.approx(7, abs=0.05)
    assert hue_error(first, second, hue="cielab", quantile=1).item() == pytest.approx(7, abs=0.2)


def test_batches_floats_and_symmetry() -> None:
    one, two, three = (picture(noise(seed)) for seed in (1, 2, 3))
    for hue in LEAST_CHROMA:
        both = hue_error(torch.cat([one, two]), torch.cat([three, three]), hue=hue)
        assert both.tolist() == [hue_error(image, three, hue=hue).item() for image in (one, two)]
        assert hue_error(three, one, hue=hue).item() == pytest.approx(both[0].item())
        assert hue_error(one.float() / 255, three, hue=hue).item() == both[0].item()
        assert hue_error(one, one, hue=hue, quantile=1).item() == 0
    assert color_loss(one, one).item() == 0
    with pytest.raises(ValueError, match="images of one size"):
        hue_error(one, two[..., 1:])
    with pytest.raises(ValueError, match=r"images \(N, 3, H, W\)"):
        hue_error(one[:, :2], two[:, :2])


def test_colour_that_is_lost() -> None:
    red, grey, pale = (200, 30, 30), (128, 128, 128), (150, 128, 128)
    chroma = [np.hypot(*rgb2lab(np.array(color, np.uint8))[1:]) for color in (red, grey, pale)]
    assert chroma[0] > 25
    assert chroma[1] < 1
    assert chroma[2] < 10
    functional = patch(red, red, red, red, grey)
    assert color_loss(patch(grey, pale, red, red, grey), functional).item() == 0.5
    assert color_loss(functional, patch(grey, grey, grey, grey, grey)).item() == 0
    assert color_loss(torch.full((1, 1, 1, 5), 128, dtype=torch.uint8), functional).item() == 1


# Order


def hot(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Uptake with a black background, and ties; and a fused picture that follows it loosely."""
    rng = np.random.default_rng(seed)
    uptake = np.where(rng.random((40, 50)) < 0.6, rng.integers(0, 200, (40, 50)), 0).astype(np.uint8)
    fused = np.clip(uptake[..., None] + rng.integers(0, 90, (40, 50, 3)), 0, 255).astype(np.uint8)
    return fused, uptake


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_the_order_is_scipy_s_rank_correlation(seed: int) -> None:
    fused, uptake = hot(seed)
    region = uptake >= np.percentile(uptake[uptake > 0], 75)
    expected = spearmanr(rgb2lab(fused)[..., 0][region], uptake[region])[0]
    tensor = torch.from_numpy(uptake)[None, None]
    assert tracer_order(picture(fused), tensor).item() == pytest.approx(expected, abs=1e-9)
    assert tracer_order(picture(fused), tensor.double() * 17.3).item() == pytest.approx(expected, abs=1e-9)
    assert 0 <= hottest_is_lightest(picture(fused), tensor).item() <= 1


def test_a_palette_that_gets_lighter_keeps_the_order() -> None:
    uptake = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    tensor = torch.from_numpy(uptake)[None, None]
    iron, rainbow = (picture(apply_palette(uptake, name)) for name in ("HOT_IRON", "PET"))
    assert tracer_order(iron, tensor).item() == pytest.approx(1, abs=1e-3)
    assert hottest_is_lightest(iron, tensor).item() == 1
    assert tracer_order(255 - iron, tensor).item() == pytest.approx(-1, abs=1e-2)
    assert hottest_is_lightest(255 - iron, tensor).item() == 0
    assert tracer_order(iron, luminance(iron)).item() == pytest.approx(1, abs=1e-3)
    assert tracer_order(rainbow, tensor).item() < 1


def test_a_grey_dot_where_it_is_hottest_is_seen() -> None:
    y, x = np.mgrid[:60, :60]
    uptake = np.exp(-((y - 30) ** 2 + (x - 30) ** 2) / 300).astype(np.float32)
    uptake[uptake < 0.01] = 0
    fused = apply_palette(uptake, "HOT_IRON")
    fused[uptake > 0.96] = 90
    tensor = torch.from_numpy(uptake)[None, None]
    assert tracer_order(picture(fused), tensor).item() < 0.95
    assert hottest_is_lightest(picture(fused), tensor).item() == 0


def test_the_share_of_the_hottest_by_hand() -> None:
    uptake = torch.arange(101, dtype=torch.float64).view(1, 1, 1, 101)  # 1 to 100, and one 0
    # the region is 75.25 and above, 25 pixels; the hottest hundredth is 99.01 and above, one pixel
    grey = torch.zeros(1, 1, 1, 101, dtype=torch.uint8)
    fused = grey.clone()
    fused[..., 100] = 200
    assert hottest_is_lightest(fused, uptake).item() == 1
    fused[..., 99] = 200  # two are lightest, one of them by chance
    assert hottest_is_lightest(fused, uptake).item() == 0.5
    fused[..., 99] = 201
    assert hottest_is_lightest(fused, uptake).item() == 0
    fused[..., 99], fused[..., 40] = 0, 255  # outside the hot region
    assert hottest_is_lightest(fused, uptake).item() == 1
    assert hottest_is_lightest(grey, uptake).item() == pytest.approx(1 / 25)
    assert tracer_order(grey, uptake).item() == 0


def test_without_uptake_there_is_no_order_to_lose() -> None:
    fused, _ = hot(1)
    for level in (0, 90):
        flat = torch.full((1, 1, 40, 50), level, dtype=torch.uint8)
        assert tracer_order(picture(fused), flat).item() == 1
    assert hottest_is_lightest(picture(fused), torch.zeros(1, 1, 40, 50)).item() == 1
    with pytest.raises(ValueError, match="uptake"):
        tracer_order(picture(fused), torch.zeros(1, 1, 40, 49))


def test_luminance_is_that_of_medfuse_s_own_colours() -> None:
    rgb = noise(4)
    np.testing.assert_allclose(luminance(picture(rgb))[0, 0].numpy(), ycbcr_from_rgb(rgb)[..., 0], atol=1e-6)
