"""Duet: what it promises whatever its weights are, and that it can be trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import planes

from medfuse.fusion.methods import Method
from medfuse.fusion.networks.duet import FULL, LEAST, Duet, disagreement
from medfuse.volume import Modality


@pytest.fixture
def network() -> Duet:
    """One that corrects a great deal."""
    torch.manual_seed(1)
    network = Duet().eval()
    torch.nn.init.normal_(network.last.weight, std=0.1)
    torch.nn.init.normal_(network.last.bias, std=0.1)
    return network


def test_it_is_small() -> None:
    assert sum(parameter.numel() for parameter in Duet().parameters()) == 41_687


def test_a_training_starts_at_the_maximum_and_leaves_it() -> None:
    first, second = planes(1), planes(2)
    network = Duet()
    fused = network(first, second)
    assert torch.equal(fused, torch.maximum(first, second))
    fused.sum().backward()
    slope = network.last.weight.grad
    assert slope is not None
    assert slope.abs().max() > 0


def test_small_corrections_are_left_out(network: Duet) -> None:
    first, second = planes(1), planes(2)
    largest = torch.maximum(first, second)
    assert network.correction(first, second, largest).abs().max() > 0.05
    torch.nn.init.zeros_(network.last.weight)
    torch.nn.init.constant_(network.last.bias, 0.99 * LEAST)
    assert torch.equal(network(first, second), largest)
    torch.nn.init.constant_(network.last.bias, -2 * LEAST)
    expected = -1.5 * LEAST * disagreement(first, second) * (largest >= 0.5 / 255)
    torch.testing.assert_close(network.correction(first, second, largest), expected)


def test_what_shows_black_in_both_stays_exactly_as_it_is(network: Duet) -> None:
    first, second = planes(1), planes(2)
    black = torch.zeros_like(first, dtype=torch.bool)
    black[..., 7:20, 9:30] = True
    first[black], second[black] = 0, 0.4 / 255
    fused = network(first, second)
    assert torch.equal(fused[black], second[black])
    assert (fused - torch.maximum(first, second)).abs().max() > 0.05


def test_what_is_alike_all_around_stays_as_it_is(network: Duet) -> None:
    first = planes(1)
    assert torch.equal(network(first, first), first)
    second = first.clone()
    second[..., 30:, :] = 0.5
    fused = network(first, second)
    assert torch.equal(fused[..., :27, :], first[..., :27, :])
    assert not torch.equal(fused[..., 30:, :], torch.maximum(first, second)[..., 30:, :])


def test_disagreement_by_hand() -> None:
    first, second = torch.zeros(1, 1, 21, 21), torch.zeros(1, 1, 21, 21)
    second[..., 10, 10] = 0.98
    grade = disagreement(first, second)[0, 0]
    assert grade[10, 10] == pytest.approx(0.5)  # 0.98 / 49 is the difference that counts half
    assert grade[7, 13] == pytest.approx(0.5)
    assert grade[6, 10] == 0


def test_only_what_is_corrected_is_refined(network: Duet) -> None:
    first, second = planes(1), planes(2)
    first[..., :12, :], second[..., :12, :] = 0.3, 0.3  # alike, and not corrected
    largest = torch.maximum(first, second)
    correction = network.correction(first, second, largest)
    expected = network.refinement(largest + correction, first, second, (correction.abs() / FULL).clamp(max=1))
    fused = network(first, second)
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-6)
    assert torch.equal(fused[correction == 0], largest[correction == 0])
    assert (fused - largest - correction).abs().max() > 1 / 255


@pytest.mark.parametrize("place", [(0, 0), (17, 40), (52, 71)])
def test_what_is_refined_is_all_that_is_looked_at_exactly(network: Duet, place: tuple[int, int]) -> None:
    first, second = planes(1, (64, 83)), planes(2, (64, 83))
    largest = torch.maximum(first, second)
    correction = torch.zeros_like(largest)
    correction[..., place[0] : place[0] + 12, place[1] : place[1] + 12] = (
        0.2 * (planes(3, (64, 83)) - 0.5)[..., :12, :12]
    )
    network.correction = lambda *_: correction
    expected = network.refinement(largest + correction, first, second, (correction.abs() / FULL).clamp(max=1))
    assert (expected - largest - correction).abs().max() > 1 / 255
    assert torch.equal(network.corrected(first, second, largest), expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 5), (7, 8), (41, 43)])
def test_every_size(network: Duet, size: tuple[int, int]) -> None:
    fused = network(planes(1, size), planes(2, size))
    assert fused.shape == (2, 1, *size)
    assert fused.isfinite().all()


def test_an_odd_side_changes_nothing_far_from_it(network: Duet) -> None:
    first, second = planes(1, (90, 90)), planes(2, (90, 90))
    whole, part = network(first, second), network(first[..., :89], second[..., :89])
    torch.testing.assert_close(part[..., :50], whole[..., :50], rtol=0, atol=1e-5)


@pytest.mark.parametrize("box", [(0, 30, 50, 90), (61, 64, 33, 34), (41, 131, 7, 140), (0, 131, 0, 140)])
def test_what_is_black_all_around_is_left_out_exactly(network: Duet, box: tuple[int, int, int, int]) -> None:
    top, bottom, left, right = box
    first, second = torch.zeros(2, 2, 1, 131, 140).unbind()
    for image, seed in ((first, 1), (second, 2)):
        image[..., top:bottom, left:right] = planes(seed, (bottom - top, right - left))
    network = network.double()
    first, second = first.double(), second.double()
    whole = network.corrected(first, second, torch.maximum(first, second))
    torch.testing.assert_close(network(first, second), whole, rtol=0, atol=1e-12)


def test_all_black() -> None:
    black = torch.zeros(1, 1, 20, 30)
    assert torch.equal(Duet().eval()(black, black), black)


def test_the_shipped_weights_correct_the_maximum() -> None:
    first, second = planes(1), planes(2)
    fused = Method("duet")(first, second)
    assert 0.01 < (fused - torch.maximum(first, second)).abs().mean() < 0.3


def test_real_pairs(shared: Path) -> None:
    """On pairs of validation cases it keeps more than the maximum does, of edges and of either source."""
    from medfuse.io.pictures import read_picture
    from medfuse.metrics import score

    for folder, functional, name, modality in (
        ("ct-mri", "ct", "28016", Modality.CT),
        ("pet-mri", "pet", "30078", Modality.PT),
        ("spect-mri", "spect", "15013", Modality.NM),
    ):
        path = shared / "wba" / folder
        sources = [
            torch.from_numpy(read_picture(path / one / f"{name}.png").luminance)[None, None]
            for one in ("mri", functional)
        ]
        largest, for_all, ours = (
            score((255 * Method(method)(*sources, said)).round() / 255, *sources, names=("Q_AB/F", "VIF", "N_AB/F"))
            for method, said in (("maximum", modality), ("duet", Modality.OTHER), ("duet", modality))
        )
        for card in (for_all, ours):
            for measure in ("Q_AB/F", "VIF"):
                assert card[measure].value.item() > largest[measure].value.item()
            assert card["N_AB/F"].value.item() < 0.05
