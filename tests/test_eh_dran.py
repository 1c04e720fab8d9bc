"""EH-DRAN is DILRAN's encoder with an edge branch, and a decoder that is not linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from medfuse.fusion.networks.eh_dran import EdgeEnhancer, EhDran


def image(seed: int, size: tuple[int, int] = (20, 17)) -> torch.Tensor:
    return torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(seed))


def seeded() -> EhDran:
    torch.manual_seed(0)
    return EhDran().eval()


def test_the_edge_branch_is_a_dense_block_and_the_sobel_gradient() -> None:
    """Against scipy's Sobel filter and the convolutions called one by one."""
    torch.manual_seed(1)
    branch = EdgeEnhancer().eval()
    x = torch.randn(1, 64, 9, 11)
    maps = [sum(abs(ndimage.sobel(channel, axis, mode="constant")) for axis in (0, 1)) for channel in x[0].numpy()]
    sobel = torch.from_numpy(np.stack(maps))[None]
    first, second = branch.dense
    with torch.inference_mode():
        both = torch.cat([x, F.leaky_relu(first(x), 0.2)], dim=1)
        expected = branch.reduce_dense(F.leaky_relu(second(both), 0.2)) + branch.reduce_edges(sobel)
        torch.testing.assert_close(branch(x), expected, rtol=1e-4, atol=1e-4)


def test_the_features_are_those_of_dilran_and_of_the_edges() -> None:
    network = seeded()
    with torch.inference_mode():
        edges = network.edges(network.encoder.shallow(image(1)))
        torch.testing.assert_close(network.encode(image(1)) - edges, network.encoder(image(1)), rtol=0, atol=1e-5)
        assert edges.abs().max() > 0.01


def test_the_decoder_is_not_linear() -> None:
    network = seeded()
    with torch.inference_mode():
        one, other = network.encode(image(1)), network.encode(image(2))
        mean = (network.decode(one) + network.decode(other)) / 2
        assert (network.decode((one + other) / 2) - mean).abs().max() > 1e-4


def test_features_are_left_out_in_training_only() -> None:
    network = seeded()
    with torch.no_grad():
        assert torch.equal(network(image(1)), network(image(1)))
        network.edges.train()
        assert not torch.equal(network(image(1)), network(image(1)))


def test_the_sobel_operator_is_not_trained_and_not_in_the_file() -> None:
    network = seeded()
    assert sum(parameter.numel() for parameter in network.parameters()) == 412_929
    assert not any("sobel" in name for name in network.state_dict())


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (17, 13)])
def test_any_size_goes_through(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        assert seeded()(image(3, size)).shape == (2, 1, *size)
