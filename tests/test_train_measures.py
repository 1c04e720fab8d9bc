"""Measures as losses: they follow the measures, and have a slope everywhere."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medfuse import metrics
from medfuse.errors import InputError
from medfuse.fusion.networks import Duet
from medfuse.train import fusing, measures
from medfuse.train.fusing import CHARGES, Charges, Examples, Fusing
from medfuse.train.images import hot_spots


def smooth_noise(seed: int, side: int = 96) -> Tensor:
    """Blobs on black, whole grey levels."""
    noise = torch.rand((2, 1, side // 8, side // 8), generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(noise, (side, side), mode="bicubic").clamp(0, 1)
    image[..., :12, :] = 0
    return (255 * image).round()


@pytest.fixture
def images() -> tuple[Tensor, Tensor, Tensor]:
    first, second = smooth_noise(1), smooth_noise(2)
    return (0.7 * torch.maximum(first, second) + 0.3 * first).round(), first, second


def test_they_follow_the_measures(images: tuple[Tensor, Tensor, Tensor]) -> None:
    fused, first, second = images
    whole = [image / 255 for image in images]
    close = partial(torch.testing.assert_close, check_dtype=False, rtol=0.01)
    close(measures.edges_kept(*images), metrics.edge_preservation(*whole), atol=2e-3)
    close(measures.vif(fused, first), metrics.vif(whole[0], whole[1]), atol=2e-3)
    close(measures.ssim_and_ms_ssim(fused, second)[0], metrics.ssim(whole[0], whole[2]), atol=2e-4)
    carried = measures.correlation(fused - second, first)
    close(carried, metrics.correlation_of_difference(whole[0], whole[1], whole[2]), atol=1e-4)


def test_made_up_edges_cost(images: tuple[Tensor, Tensor, Tensor]) -> None:
    fused, first, second = images
    stripes = fused + 60 * (torch.arange(96) % 6 < 3)
    least, most = (measures.edges_made_up(one, first, second) for one in (first, stripes))
    assert (most > 10 * least).all()


def test_a_correlation_can_be_weighted() -> None:
    first = torch.tensor([1.0, 2, 3, 9]).reshape(1, 1, 2, 2) * 100
    second = torch.tensor([3.0, 2, 1, 9]).reshape(1, 1, 2, 2) * 100
    weights = torch.tensor([1.0, 1, 1, 0]).reshape(1, 1, 2, 2)
    assert measures.correlation(first, second, weights).item() == pytest.approx(-1, abs=1e-3)
    assert measures.correlation(first, second).item() > 0.85


def examples(fused: Tensor, structural: Tensor, functional: Tensor) -> Examples:
    return Examples(fused / 255, structural / 255, functional / 255, hot_spots(functional / 255))


@pytest.mark.parametrize("name", CHARGES)
def test_every_charge_is_least_for_what_it_asks_for(name: str, images: tuple[Tensor, Tensor, Tensor]) -> None:
    _, first, second = images
    if name in ("uptake", "order", "peaks", "maximum", "differences"):
        asked = {
            "uptake": second,
            "order": second,
            "peaks": second,
            "maximum": torch.maximum(first, second),
            "differences": first + second,
        }
        best, worse = CHARGES[name](examples(asked[name], first, second)), CHARGES[name](examples(first, first, second))
    else:  # nothing is lost of two that are alike
        best, worse = CHARGES[name](examples(first, first, first)), CHARGES[name](examples(255 - first, first, first))
    assert best.shape == worse.shape == first.shape[:1]
    assert (best.abs() < (0.1 if name == "peaks" else 0.05)).all()  # of peaks, the step that counts is a soft one
    assert (worse > best).all() or name == "artifacts"


@pytest.mark.parametrize("name", CHARGES)
def test_every_charge_has_a_finite_slope(name: str) -> None:
    """Also where all is black, or flat, or alike."""
    for fused, first, second in (
        (torch.zeros(1, 1, 96, 96), torch.zeros(1, 1, 96, 96), torch.zeros(1, 1, 96, 96)),
        (torch.full((1, 1, 96, 96), 90.0), smooth_noise(1)[:1], torch.zeros(1, 1, 96, 96)),
        (smooth_noise(1)[:1], smooth_noise(1)[:1], smooth_noise(1)[:1]),
    ):
        result = fused.clone().requires_grad_()
        CHARGES[name](examples(result, first, second)).sum().backward()
        assert result.grad is not None
        assert result.grad.isfinite().all()


def pair(structural: Tensor, functional: Tensor, number: int = 0) -> Tensor:
    """A pair to train on, of images (1, H, W) in [0, 1]."""
    return torch.cat([structural, functional, hot_spots(functional), torch.full_like(functional, number)])


def test_training_lowers_the_charge() -> None:
    torch.manual_seed(3)
    pairs = tuple(
        pair(first, second) for first, second in zip(smooth_noise(1) / 255, smooth_noise(2) / 255, strict=True)
    )
    task = Fusing([Charges({"differences": 1.0, "order": 0.1}, {})], crop=64, batch=2)
    network = Duet()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    before = task.validate(network, pairs)
    generator = torch.Generator().manual_seed(4)
    network.train()
    for _ in range(40):
        loss = task.loss(network, task.batch(pairs, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = task.validate(network, pairs)
    assert after["score"] > before["score"] + 0.02
    assert after.keys() == {"score", "differences", "order"}


def test_a_batch_is_of_crops_in_range() -> None:
    pairs = (pair(smooth_noise(1)[0] / 255, smooth_noise(2)[0] / 255),)
    task = Fusing([Charges({"edges": 1.0}, {})], crop=32, batch=5)
    (batch,) = task.batch(pairs, torch.Generator().manual_seed(0))
    assert batch.shape == (5, 4, 32, 32)
    assert batch.min() >= 0
    assert batch.max() <= 1
    (again,) = task.batch(pairs, torch.Generator().manual_seed(0))
    assert torch.equal(batch, again)


@pytest.mark.parametrize(("losses", "found"), [({}, "none"), ({"beauty": 1.0}, "beauty")])
def test_unknown_charges_are_refused(losses: dict[str, float], found: str) -> None:
    with pytest.raises(InputError, match=f"expected losses of edges, artifacts, .*, order, peaks, found {found}"):
        Charges(losses, {})


def test_what_is_free_costs_nothing_pair_by_pair() -> None:
    sources = [smooth_noise(seed) / 255 for seed in (1, 2)]
    pairs = tuple(map(pair, *sources))
    network = Duet()

    def lost(pairs: tuple[Tensor, ...], free: float = 0) -> float:
        return Fusing([Charges({"edges": 2.0}, {"edges": free})], 64, 2).validate(network, pairs)["edges"] / 2

    one, other = sorted(lost((pair,)) for pair in pairs)
    between = (one + other) / 2
    assert lost(pairs) == pytest.approx(between)
    assert lost(pairs, free=between) == pytest.approx((other - between) / 2)
    assert lost(pairs, free=other) == pytest.approx(0, abs=1e-6)


def test_every_set_has_charges_of_its_own() -> None:
    first, second = smooth_noise(1)[0] / 255, smooth_noise(2)[0] / 255
    network = Duet()
    alone = [
        Fusing([charges], 64, 2).validate(network, (pair(first, second),))
        for charges in (Charges({"edges": 1.0, "order": 1.0}, {"edges": 0.1}), Charges({"edges": 3.0}, {}))
    ]
    both = Fusing([Charges({"edges": 1.0, "order": 1.0}, {"edges": 0.1}), Charges({"edges": 3.0}, {})], 64, 2)
    for number, expected in enumerate(alone):
        found = both.validate(network, (pair(first, second, number),))
        assert found == pytest.approx({"order": 0, **expected})
        assert found["edges"] > 0
    mixed = both.validate(network, (pair(first, second, 0), pair(first, second, 1)))
    assert mixed["score"] == pytest.approx(sum(one["score"] for one in alone) / 2)


@pytest.mark.parametrize("most", [3, 512])
def test_peaks_by_hand(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Sixteen of 1600 pixels are the hottest, 384 more the rest of the hot quarter."""
    monkeypatch.setattr(fusing, "MOST_PEAKS", most)
    uptake = torch.linspace(0.01, 1, 1600).reshape(1, 1, 40, 40)
    uptake = uptake[..., torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    hottest, quarter = uptake >= uptake.quantile(0.99), uptake >= uptake.quantile(0.75)
    flat = torch.where(hottest, 0.8, 0.5)
    for outshining, expected in ((0, 0.0), (8, 0.5), (384, 24.0)):
        others = (quarter & ~hottest).flatten().nonzero()[:outshining, 0]
        fused = flat.flatten().index_fill(0, others, 0.9).reshape_as(flat)
        found = CHARGES["peaks"](examples(255 * fused, 255 * uptake, 255 * uptake))
        assert found.item() == pytest.approx(np.tanh(expected), abs=1e-5)


def test_what_is_free_has_a_weight() -> None:
    with pytest.raises(InputError, match="expected a weight for every loss that is free in part, found none for order"):
        Charges({"edges": 1.0}, {"order": 0.2})
