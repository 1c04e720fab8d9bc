"""DILRAN, against what the published code computes with the published weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from medfuse.fusion.networks.dilran import Dilran, coarse
from medfuse.fusion.strategies import nuclear
from medfuse.fusion.weights import convert, read_weights

PAIRS = ("ct-mri_2011", "ct-mri_34012", "pet-mri_25050", "spect-mri_22012")
CHECKPOINTS = ("dilran_published.safetensors", "dilran_published.pt")


def luminances(shared: Path, pair: str) -> tuple[Tensor, Tensor]:
    """Structural and functional, (1, 1, 256, 256) in [0, 1], by Pillow's own luma."""
    collection, name = pair.split("_")
    images = [
        np.asarray(Image.open(shared / "wba" / collection / kind / f"{name}.png").convert("L"), np.float32) / 255
        for kind in reversed(collection.split("-"))
    ]
    structural, functional = (torch.from_numpy(image)[None, None] for image in images)
    return structural, functional


def published(shared: Path, checkpoint: str = CHECKPOINTS[0]) -> Dilran:
    network = Dilran()
    network.load_state_dict(convert("dilran", shared / "reference-networks" / checkpoint))
    return network


def assert_gives_the_published(network: Dilran, shared: Path, pair: str, statistics: str, device: str) -> None:
    expected = np.load(shared / "reference-networks" / f"dilran_{statistics}_statistics.npz")
    network.train(statistics == "batch").to(device)
    structural, functional = (image.to(device) for image in luminances(shared, pair))
    with torch.inference_mode():
        features = {"structural": network.encode(structural), "functional": network.encode(functional)}
        fused = network.decode(nuclear(features["structural"], features["functional"]))
    np.testing.assert_allclose(fused.clamp(0, 1)[0, 0].cpu().numpy(), expected[pair], rtol=0, atol=1e-4)
    for source, maps in features.items():
        norms = torch.linalg.svdvals(maps[0].softmax(0).cpu()).sum(-1)
        np.testing.assert_allclose(norms.numpy(), expected[f"{pair}_nuclear_{source}"], rtol=2e-5, atol=1e-4)
    means = features["functional"][0].mean((1, 2)).cpu().numpy()
    np.testing.assert_allclose(means, expected[f"{pair}_features_functional_mean"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("statistics", ["running", "batch"])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_published_weights_give_the_published_output(shared: Path, pair: str, statistics: str, device: str) -> None:
    assert_gives_the_published(published(shared), shared, pair, statistics, device)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_the_checkpoint_as_published_saved_on_a_gpu_gives_it_too(shared: Path, statistics: str) -> None:
    assert_gives_the_published(published(shared, CHECKPOINTS[1]), shared, PAIRS[0], statistics, "cpu")


def test_both_forms_of_the_checkpoint_convert_to_the_same_tensors(shared: Path) -> None:
    one, other = (convert("dilran", shared / "reference-networks" / name) for name in CHECKPOINTS)
    assert one.keys() == other.keys() == Dilran().state_dict().keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_model_card_counts_the_parameters_right() -> None:
    assert sum(parameter.numel() for parameter in Dilran().parameters()) == 216_001


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_coarse_is_the_mean_of_what_there_is_of_each_block(height: int, width: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(height, width))
    expected = np.empty_like(x)
    for row in range(height):
        for column in range(width):
            top, left = row // 2 * 2, column // 2 * 2
            expected[row, column] = max(0, x[top : top + 2, left : left + 2].mean())
    np.testing.assert_allclose(coarse(torch.from_numpy(x)[None, None])[0, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 1), (2, 2), (3, 5), (17, 6), (35, 33), (1, 300)])
def test_any_size_goes_in_and_comes_out(size: tuple[int, int], device: str) -> None:
    network = Dilran().eval().to(device)
    read_weights(network, "dilran")
    image = torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(1)).to(device)
    with torch.inference_mode():
        features = network.encode(image)
        back = network.decode(features)
    assert features.shape == (2, 64, *size)
    assert back.shape == image.shape
    assert back.isfinite().all()
    interior = (..., slice(8, -8), slice(8, -8))  # even noise, which it was never trained on, comes back inside
    assert ((back - image)[interior].abs() < 0.05).all()


def test_in_use_a_slice_does_not_depend_on_its_batch(device: str) -> None:
    network = Dilran().eval().to(device)
    read_weights(network, "dilran")
    images = torch.rand((5, 1, 24, 19), generator=torch.Generator().manual_seed(2)).to(device)
    with torch.inference_mode():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_in_training_it_does(device: str) -> None:
    """The reason why medfuse runs on running statistics."""
    network = Dilran().train().to(device)
    read_weights(network, "dilran")
    images = torch.rand((5, 1, 24, 19), generator=torch.Generator().manual_seed(2)).to(device)
    with torch.no_grad():
        assert (network(images)[:1] - network(images[:1])).abs().max() > 1e-3
