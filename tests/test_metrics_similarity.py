"""MS-SSIM's reference values come from piq 0.8.0 (`multi_scale_ssim`) on `scene(192, 176)`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import flat, scene
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medfuse.errors import UnsupportedImage
from medfuse.metrics import correlation, correlation_of_difference, ms_ssim, psnr, ssim

FUSED, WAVES, BLOCKS = scene(48, 41)
LARGE = scene(192, 176)


@pytest.mark.parametrize("source", [WAVES, BLOCKS])
def test_psnr_and_ssim_are_scikit_images(source: torch.Tensor) -> None:
    pair = source[0, 0].numpy(), FUSED[0, 0].numpy()
    assert psnr(FUSED, source).item() == pytest.approx(peak_signal_noise_ratio(*pair), abs=1e-9)
    expected = structural_similarity(*pair, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert ssim(FUSED, source).item() == pytest.approx(expected, abs=1e-9)


def test_psnr_and_ssim_of_real_slices_are_scikit_images(shared) -> None:
    from PIL import Image

    ct, mr = (np.asarray(Image.open(shared / "wba/ct-mri" / kind / "34012.png")) for kind in ("ct", "mri"))
    fused = np.load(shared / "reference-networks/dilran_batch_statistics.npz")["ct-mri_34012"]
    tensor = torch.from_numpy(fused)[None, None]
    for source in (ct, mr):
        levels = torch.from_numpy(source.copy())[None, None]
        pair, whole = (source / 255, fused.astype(float)), {"data_range": 1.0}
        assert psnr(tensor, levels).item() == pytest.approx(peak_signal_noise_ratio(*pair, **whole), abs=1e-6)
        expected = structural_similarity(*pair, gaussian_weights=True, use_sample_covariance=False, **whole)
        assert ssim(tensor, levels).item() == pytest.approx(expected, abs=1e-6)


def test_psnr_by_hand() -> None:
    assert psnr(flat(100), flat(151)).item() == pytest.approx(20 * math.log10(255 / 51))
    assert psnr(FUSED, FUSED).item() == math.inf


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_the_paper_does_not_clip(measure) -> None:
    image = WAVES.double() / 255
    overshot = torch.where(image == image.max(), 1.5, image)
    assert measure(overshot, image, convention="paper").item() < measure(overshot, image).item()
    assert measure(FUSED, WAVES, convention="paper").item() == measure(FUSED, WAVES).item()


@pytest.mark.parametrize(("source", "expected"), [(LARGE[1], 0.8007194082), (LARGE[2], 0.4048240004)])
def test_ms_ssim_is_piqs(source: torch.Tensor, expected: float) -> None:
    assert ms_ssim(LARGE[0], source).item() == pytest.approx(expected, abs=1e-9)


def test_ms_ssim_of_a_small_image_is_that_of_the_scales_that_fit() -> None:
    fused, source, _ = scene(20, 33)
    # 20 pixels leave room for one scale: SSIM itself, to the weight of all five
    assert ms_ssim(fused, source).item() == pytest.approx(ssim(fused, source).item() ** 1.0001, abs=1e-9)


def test_ms_ssim_of_opposites_is_zero() -> None:
    assert ms_ssim(LARGE[1], 255 - LARGE[1]).item() == 0


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_structural_similarity_of_constant_images(measure) -> None:
    c1 = (0.01 * 255) ** 2
    assert measure(flat(9), flat(9)).item() == pytest.approx(1, abs=1e-12)
    assert measure(FUSED, FUSED).item() == pytest.approx(1, abs=1e-12)
    if measure is ssim:
        expected = (2 * 20 * 90 + c1) / (20**2 + 90**2 + c1)
        assert measure(flat(20), flat(90)).item() == pytest.approx(expected, abs=1e-9)
    assert 0 <= measure(flat(9, 48, 41), FUSED).item() < 0.2


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_structural_similarity_needs_its_window(measure) -> None:
    assert measure(flat(3, 11, 11), flat(3, 11, 11)).item() == pytest.approx(1)
    with pytest.raises(UnsupportedImage, match="at least 11 × 11 pixels, found 48 × 10"):
        measure(flat(3, 48, 10), flat(3, 48, 10))


@pytest.mark.parametrize("source", [WAVES, BLOCKS])
def test_correlation_is_numpys(source: torch.Tensor) -> None:
    expected = np.corrcoef(FUSED.numpy().ravel(), source.numpy().ravel())[0, 1]
    assert correlation(FUSED, source).item() == pytest.approx(expected, abs=1e-12)
    assert correlation(source, source).item() == pytest.approx(1, abs=1e-12)
    assert correlation(source, 255 - source).item() == pytest.approx(-1, abs=1e-12)


def test_correlation_with_a_constant_image_is_zero() -> None:
    third = torch.full((1, 1, 48, 41), 1 / 3)
    assert [correlation(*pair).item() for pair in ((third, third), (third, WAVES), (WAVES, third))] == [0, 0, 0]


def test_correlation_of_difference_is_numpys() -> None:
    levels = [image.numpy().astype(float).ravel() for image in (FUSED, WAVES, BLOCKS)]
    expected = np.corrcoef(levels[0] - levels[2], levels[1])[0, 1]
    assert correlation_of_difference(FUSED, WAVES, BLOCKS).item() == pytest.approx(expected, abs=1e-12)


def test_correlation_of_difference_at_its_ends() -> None:
    half = (WAVES // 2, BLOCKS // 2)
    assert correlation_of_difference(half[0] + half[1], *half).item() == pytest.approx(1, abs=1e-12)
    assert correlation_of_difference(half[0] + half[1], *half[::-1]).item() == pytest.approx(1, abs=1e-12)
    assert correlation_of_difference(BLOCKS, WAVES, BLOCKS).item() == 0
    assert correlation_of_difference(WAVES, WAVES, WAVES).item() == 0
    assert correlation_of_difference(WAVES, flat(3, 48, 41), BLOCKS).item() == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_likeness_is_symmetric_and_bounded(seed: int) -> None:
    first, second = torch.randint(0, 256, (2, 2, 1, 13, 12), generator=torch.Generator().manual_seed(seed))
    first, second = first.to(torch.uint8), second.to(torch.uint8)
    for measure, least in ((psnr, 0), (ssim, -1), (ms_ssim, 0), (correlation, -1)):
        values = measure(first, second)
        assert torch.allclose(values, measure(second, first), atol=1e-12)
        assert values.min() >= least
        assert measure is psnr or values.max() <= 1
