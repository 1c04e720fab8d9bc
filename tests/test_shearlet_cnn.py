"""CNN fusion in the shearlet domain: the contract of a rule, and what the network's word changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pictures
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from medfuse.fusion.networks.siamese import Siamese, correlate
from medfuse.fusion.networks.windows import window_mean
from medfuse.fusion.rules.shearlet_cnn import ShearletCnn
from medfuse.fusion.shearlet import decompose

planes = partial(pictures.planes, size=(37, 50), count=3)


class Says(nn.Module):
    """A network that always gives the same answer."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.full_like(first, self.logit)


def network(seed: int = 1) -> Siamese:
    torch.manual_seed(seed)
    return Siamese().eval()


def waves(size: int = 96) -> tuple[Tensor, Tensor]:
    """A strong wave and one half as strong that it does not agree with, of one scale and direction."""
    x = torch.arange(size, dtype=torch.float32).expand(1, 1, size, size)
    return 0.5 + 0.4 * torch.cos(2.4 * x), 0.5 - 0.2 * torch.cos(2.4 * x)


@torch.inference_mode()
def test_the_contract(device: str) -> None:
    rule = ShearletCnn(network().to(device))
    structural, functional = planes(1).to(device), planes(2).to(device)
    fused = rule(structural, functional)
    assert fused.shape == structural.shape
    assert fused.dtype == torch.float32
    assert fused.device == structural.device
    assert fused.std() > 0.05
    torch.testing.assert_close(rule(functional, structural), fused, rtol=0, atol=1e-5)
    for index in range(len(fused)):
        alone = rule(structural[index : index + 1], functional[index : index + 1])
        torch.testing.assert_close(alone[0], fused[index], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1), (3, 5), (64, 129)])
@torch.inference_mode()
def test_two_alike_of_any_size_give_the_same_back(size: tuple[int, int]) -> None:
    plane = planes(3, count=2, size=size)
    torch.testing.assert_close(ShearletCnn(network())(plane, plane), plane, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_constants_are_weighted_by_their_energy() -> None:
    """0.6 and 0.2: nine parts of the one to one part of the other."""
    fused = ShearletCnn(network())(torch.full((1, 1, 30, 20), 0.6), torch.full((1, 1, 30, 20), 0.2))
    torch.testing.assert_close(fused, torch.full_like(fused, 0.56), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_what_is_alike_is_averaged_and_what_is_not_is_chosen() -> None:
    strong, weak = waves()
    averaged, chosen = (ShearletCnn(Says(logit))(strong, weak)[..., 20:-20, 20:-20] for logit in (50.0, -50.0))
    amplitude = 0.4 * 0.8 - 0.2 * 0.2  # weighted by energies of 4 to 1
    inside = strong[..., 20:-20, 20:-20] - 0.5
    torch.testing.assert_close(averaged - 0.5, inside * amplitude / 0.4, rtol=0, atol=0.01)
    torch.testing.assert_close(chosen - 0.5, inside, rtol=0, atol=0.01)


@torch.inference_mode()
def test_no_sub_band_leaves_the_two() -> None:
    """Each lies between its two; so the result is no farther from the mean than half the energy between them."""
    structural, functional = planes(4), planes(5)
    fused = ShearletCnn(network())(structural, functional)
    away = (fused - (structural + functional) / 2).square().sum()
    pairs = zip(decompose(structural), decompose(functional), strict=True)
    between = sum(float((first - second).square().sum()) for first, second in pairs)
    assert 0 < away <= between / 4


@torch.inference_mode()
def test_the_correlation_is_that_of_the_window() -> None:
    first, second = (torch.randn((1, 4, 11, 9), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    correlation = correlate(first, second)
    a, b = first[0, :, 3:8, 2:7].flatten(), second[0, :, 3:8, 2:7].flatten()
    assert correlation[0, 0, 5, 4] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-5)
    torch.testing.assert_close(correlate(first, 3 * first), torch.ones(1, 1, 11, 9), rtol=0, atol=1e-5)
    torch.testing.assert_close(correlate(first, -first), -torch.ones(1, 1, 11, 9), rtol=0, atol=1e-5)
    assert torch.equal(correlate(first, 0 * second), torch.zeros(1, 1, 11, 9))


def test_a_mean_at_the_border_is_of_what_is_there() -> None:
    x = torch.arange(12, dtype=torch.float32).reshape(1, 1, 3, 4)
    assert window_mean(x, 3)[0, 0, 0, 0] == x[0, 0, :2, :2].mean()
    assert window_mean(x, 3)[0, 0, 1, 2] == x[0, 0, :, 1:].mean()


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (7, 5)])
@torch.inference_mode()
def test_the_network_takes_every_size_and_every_strength(size: tuple[int, int]) -> None:
    first, second = (torch.randn((2, 1, *size), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    logit = network()(first, second)
    assert logit.shape == first.shape
    torch.testing.assert_close(network()(second, first), logit)
    torch.testing.assert_close(network()(5 * first, second / 3), logit, rtol=0, atol=1e-3)


@torch.inference_mode()
def test_a_real_pair_keeps_the_bone_of_one_and_the_tissue_of_the_other(shared: Path) -> None:
    name = sorted((shared / "wba" / "ct-mri" / "ct").glob("*.png"))[7].name
    folder = shared / "wba" / "ct-mri"
    ct, mr = (torch.from_numpy(np.array(Image.open(folder / kind / name)))[None, None] / 255 for kind in ("ct", "mri"))
    fused = ShearletCnn(network())(mr, ct)
    bone = ct > 0.95
    assert fused[bone].mean() > 0.85
    tissue = ~bone & (window_mean(bone.float(), 9) == 0) & (ct > 0.1)
    both = torch.stack([fused[tissue], mr[tissue]])
    assert torch.corrcoef(both)[0, 1] > 0.9
