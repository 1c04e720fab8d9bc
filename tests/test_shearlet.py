"""The shearlet transform: it loses nothing, moves with the image, and puts a wave where its scale and angle belong."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medfuse.fusion.shearlet import DIRECTIONS, MARGIN, compose, decompose, windows

#: Quick to transform, so that nothing is added with a margin of 0: even and odd, all ways.
SIZES = [(48, 48), (45, 48), (48, 45), (45, 75)]


def noise(size: tuple[int, int], seed: int = 1) -> Tensor:
    return torch.randn((2, 1, *size), generator=torch.Generator().manual_seed(seed))


def wave(row_cycles: int, column_cycles: int, side: int = 90) -> Tensor:
    """A plane wave with so many cycles down a column and along a row, periodic."""
    steps = torch.arange(side, dtype=torch.float64) / side
    phase = row_cycles * steps[:, None] + column_cycles * steps
    return torch.cos(2 * math.pi * phase).to(torch.float32)[None, None]


def energies(image: Tensor) -> list[Tensor]:
    """The share of the energy in each sub-band, one tensor a scale, coarse to fine."""
    bands = [band.square().sum(dim=(0, 2, 3)) for band in decompose(image, margin=0)]
    return [band / image.square().sum() for band in bands]


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 40))
@settings(max_examples=25, deadline=None)
def test_what_was_taken_apart_is_put_together_again(height: int, width: int, margin: int) -> None:
    image = noise((height, width))
    back = compose(decompose(image, margin), (height, width), margin)
    torch.testing.assert_close(back, image, rtol=0, atol=1e-5)


def test_a_real_image_comes_back_on_every_device(device: str) -> None:
    image = torch.rand((2, 1, 130, 97), generator=torch.Generator().manual_seed(2)).to(device)
    bands = decompose(image)
    assert [band.shape[1] for band in bands] == [1, *DIRECTIONS]
    assert all(band.device == image.device and band.dtype == torch.float32 for band in bands)
    assert all(min(band.shape[-2:]) >= 97 + 2 * MARGIN for band in bands)
    torch.testing.assert_close(compose(bands, (130, 97)), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_energy_is_kept(size: tuple[int, int]) -> None:
    image = noise(size)
    bands = decompose(image, margin=0)
    assert bands[0].shape[-2:] == size
    assert sum(float(band.double().square().sum()) for band in bands) == pytest.approx(
        float(image.double().square().sum()), rel=1e-6
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_squares_of_the_windows_sum_to_one(size: tuple[int, int]) -> None:
    squares = torch.cat(windows(*size, torch.device("cpu"))).double().square()
    torch.testing.assert_close(squares.sum(dim=0), torch.ones_like(squares[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_the_windows_are_even(size: tuple[int, int]) -> None:
    """The impulse response then is real and even, wherever NumPy's complex transform is asked instead."""
    height, width = size
    bands = decompose(torch.zeros(1, 1, *size).index_put_(tuple(torch.zeros(4, 1, dtype=torch.long)), torch.ones(1)), 0)
    for band, window in zip(bands, windows(height, width, torch.device("cpu")), strict=True):
        full = torch.fft.fft2(band[0])
        assert full.imag.abs().max() < 1e-5
        torch.testing.assert_close(full.real[..., : width // 2 + 1], window, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("cycles", "scale"), [(3, 0), (11, 1), (22, 2), (44, 3)])
def test_a_wave_lands_in_its_scale(cycles: int, scale: int) -> None:
    shares = [float(band.sum()) for band in energies(wave(0, cycles))]
    assert shares[scale] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("direction", range(8))
def test_a_wave_lands_in_its_direction(direction: int) -> None:
    """In the middle of each of the eight windows: slopes of 0, 1/2, 1, 2, ... and the finest scale."""
    row_cycles, column_cycles = [(0, 40), (20, 40), (40, 40), (40, 20), (40, 0), (40, -20), (40, -40), (20, -40)][
        direction
    ]
    finest = energies(wave(row_cycles, column_cycles))[-1]
    assert finest.argmax() == direction
    assert finest[direction] > 0.95 * finest.sum()
    assert finest.sum() > 0.8


def test_a_wave_between_two_directions_is_shared_by_them_alone() -> None:
    finest = energies(wave(10, 40))[-1]
    torch.testing.assert_close(finest[:2] / finest.sum(), torch.tensor([0.5, 0.5]), rtol=0, atol=1e-4)


def test_a_constant_is_of_low_frequency_only() -> None:
    low, *details = decompose(torch.full((1, 1, 20, 33), 0.7))
    torch.testing.assert_close(low, torch.full_like(low, 0.7), rtol=0, atol=1e-6)
    assert max(float(detail.abs().max()) for detail in details) < 1e-6


def test_the_sub_bands_move_with_the_image() -> None:
    image = noise((48, 45))
    for band, moved in zip(decompose(image, 0), decompose(image.roll((5, -7), (-2, -1)), 0), strict=True):
        torch.testing.assert_close(band.roll((5, -7), (-2, -1)), moved, rtol=0, atol=1e-5)


def test_opposite_borders_do_not_meet() -> None:
    """A bright right border leaves no trace at the left, with the margin; without it, it does."""
    image = torch.zeros(1, 1, 64, 64)
    image[..., 60:] = 1
    left = {margin: decompose(image, margin)[-1][..., margin : margin + 4].abs().max() for margin in (0, MARGIN)}
    assert left[MARGIN] < 0.02
    assert left[0] > 5 * left[MARGIN]


def test_windows_made_for_inference_serve_training_too() -> None:
    size = (50, 36)
    with torch.inference_mode():
        decompose(noise(size), margin=0)
    image = noise(size).requires_grad_()
    decompose(image, margin=0)[1].square().sum().backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0
