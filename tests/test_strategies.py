"""How features are merged; the oracle of the nuclear norm is a full decomposition of every channel."""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medfuse.fusion import strategies
from medfuse.fusion.networks.dilran import Dilran
from medfuse.fusion.strategies import STRATEGIES, _norms_by_products, largest_nuclear_norm
from medfuse.fusion.weights import read_weights

SHAPE = (3, 8, 11, 14)


def features(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact(maps: Tensor) -> float:
    """The largest nuclear norm, by numpy in double precision."""
    return float(np.linalg.svd(maps.double().cpu().numpy(), compute_uv=False).sum(-1).max())


def matrices(kind: str, channels: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    scale = normal(channels, 1, 1).exp()
    noise = normal(channels, height, width)
    low_rank = normal(channels, height, 2) @ normal(channels, 2, width)
    columns_sum_to_nothing = noise - noise.mean(dim=1, keepdim=True)
    return {
        "random": scale * noise,
        "low rank": scale * low_rank,
        "constant": scale.expand(channels, height, width).contiguous(),
        "nearly constant": (1 + 1e-4 * scale) + 1e-4 * noise,
        "nearly low rank": low_rank + 1e-5 * noise,
        "columns that sum to nothing": scale * columns_sum_to_nothing,
        "zero": torch.zeros(channels, height, width),
        "distribution over channels": (3 * noise).softmax(dim=0),
    }[kind]


KINDS = (
    "random",
    "low rank",
    "constant",
    "nearly constant",
    "nearly low rank",
    "columns that sum to nothing",
    "zero",
    "distribution over channels",
)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(KINDS), st.integers(1, 6), st.integers(1, 33), st.integers(1, 33), st.integers(0, 10_000))
def test_the_largest_nuclear_norm_is_exact(kind: str, channels: int, height: int, width: int, seed: int) -> None:
    maps = matrices(kind, channels, height, width, seed)
    assert largest_nuclear_norm(maps[None]).item() == pytest.approx(exact(maps), rel=1e-6, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), st.integers(1, 33), st.integers(1, 33), st.booleans())
def test_of_each_slice_alone(kinds: list[str], height: int, width: int, by_products: bool) -> None:
    """By eigenvalues, as on the CPU, and by products of matrices, as on a GPU."""
    slices = torch.stack([matrices(kind, 6, height, width, seed) for seed, kind in enumerate(kinds)])
    with patch("medfuse.fusion.strategies._norms_by_eigenvalues", _norms_by_products) if by_products else nullcontext():
        found = largest_nuclear_norm(slices)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([exact(maps) for maps in slices], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (96, 96), (1, 50)])
@pytest.mark.parametrize("spread", [1, 4, 7])
def test_products_of_matrices_give_nuclear_norms(size: tuple[int, int], spread: int, device: str) -> None:
    """Also of matrices whose singular values lie powers of ten apart."""
    left, values, right = torch.linalg.svd(features(7, (3, *size)).double(), full_matrices=False)
    values = torch.logspace(0, -spread, values.shape[-1], dtype=torch.float64).expand_as(values)
    found = _norms_by_products(((left * values[..., None, :]) @ right).to(device))
    torch.testing.assert_close(found.cpu(), values.sum(-1), rtol=1e-6, atol=0)


def test_faint_texture_on_a_constant_is_not_lost_to_rounding(device: str) -> None:
    """Its Frobenius norm is that of the constant to float32, but its nuclear norm is larger."""
    texture = torch.ones(256, 256) + 1e-4 * features(0, (256, 256))
    maps = torch.stack([torch.full((256, 256), 1.0005), texture]).to(device)
    assert exact(maps) > 256.3
    assert largest_nuclear_norm(maps[None]).item() == pytest.approx(exact(maps), rel=1e-6)


def test_few_channels_are_decomposed(device: str) -> None:
    """Of the 64 of a real network, on an image with structure and noise."""
    network = Dilran().eval().to(device)
    read_weights(network, "dilran")
    row, column = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 80), indexing="ij")
    image = (row**2 + column**2 < 0.7) * (0.5 + 0.3 * torch.sin(9 * row) * torch.cos(7 * column))
    image = (image + 0.01 * features(5, (96, 80))).clamp(0, 1)
    with torch.inference_mode():
        maps = network.encode(image[None, None].to(device)).softmax(dim=1)
    name = f"_norms_by_{'products' if maps.is_cuda else 'eigenvalues'}"
    with patch.object(strategies, name, side_effect=getattr(strategies, name)) as norms_of:
        found = largest_nuclear_norm(maps)
    assert 1 <= norms_of.call_count <= 4
    assert found.item() == pytest.approx(exact(maps[0]), rel=1e-5)
    assert found.device == maps.device


def test_nuclear_weights_each_source_by_its_share_of_squared_activity(device: str) -> None:
    """The paper's formula written out in numpy, slice by slice."""
    structural, functional = features(1), 3 * features(2)
    merged = STRATEGIES["nuclear"](structural.to(device), functional.to(device)).cpu()
    for one, other, found in zip(structural, functional, merged, strict=True):
        activity = []
        for maps in (one.double().numpy(), other.double().numpy()):
            exponential = np.exp(maps)
            share = exponential / exponential.sum(axis=0)
            activity.append(np.linalg.svd(share, compute_uv=False).sum(axis=-1).max() ** 2)
        weight = activity[0] / sum(activity)
        assert 0.05 < weight < 0.95
        np.testing.assert_allclose(found, weight * one + (1 - weight) * other, atol=1e-5)


def test_average_and_maximum_go_value_by_value(device: str) -> None:
    structural, functional = features(1).to(device), features(2).to(device)
    average = STRATEGIES["average"](structural, functional)
    maximum = STRATEGIES["maximum"](structural, functional)
    np.testing.assert_allclose(average.cpu(), (features(1).numpy() + features(2).numpy()) / 2, atol=1e-6)
    np.testing.assert_array_equal(maximum.cpu(), np.maximum(features(1).numpy(), features(2).numpy()))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_merges_each_slice_alone_and_favours_neither_source(name: str, device: str) -> None:
    merge = STRATEGIES[name]
    structural, functional = features(3).to(device), features(4).to(device)
    merged = merge(structural, functional)
    assert merged.shape == SHAPE
    assert merged.dtype == torch.float32
    for index in range(SHAPE[0]):
        alone = merge(structural[index : index + 1], functional[index : index + 1])
        torch.testing.assert_close(alone[0], merged[index], rtol=0, atol=1e-6)
    torch.testing.assert_close(merge(functional, structural), merged, rtol=0, atol=1e-6)
    torch.testing.assert_close(merge(structural, structural), structural, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (5, 3)])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_takes_every_size(name: str, size: tuple[int, int]) -> None:
    structural, functional = features(5, (2, 4, *size)), features(6, (2, 4, *size))
    merged = STRATEGIES[name](structural, functional)
    assert merged.shape == (2, 4, *size)
    if name == "ratio":  # may leave the range of the two, as published
        return
    low, high = torch.minimum(structural, functional), torch.maximum(structural, functional)
    assert ((merged >= low - 1e-5) & (merged <= high + 1e-5)).all()


def test_the_paper_s_strategy_is_the_default() -> None:
    assert next(iter(STRATEGIES)) == "nuclear"
