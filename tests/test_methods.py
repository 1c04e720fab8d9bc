"""Every method behind one call, and the words that are refused."""

from __future__ import annotations

from functools import partial
from importlib import resources
from itertools import combinations
from pathlib import Path

import pictures
import pytest
import torch

from medfuse.fusion.methods import METHODS, READY, Method
from medfuse.fusion.networks import FEATURES, FUSERS, NETWORKS, TRAINABLE
from medfuse.fusion.weights import BY_MODALITY, SHIPPED
from medfuse.volume import Modality

CHOICES = [(name, strategy) for name in READY for strategy in METHODS[name].strategies or (None,)]
planes = partial(pictures.planes, size=(21, 18), count=4)


@pytest.mark.parametrize(("name", "strategy"), CHOICES)
def test_every_choice_keeps_the_contract(name: str, strategy: str | None, device: str) -> None:
    """Shape, range, no dependence on the rest of the batch, no favour to a place."""
    method = Method(name, strategy, device=device)
    structural, functional = planes(1).to(device), planes(2).to(device)
    fused = method(structural, functional)
    assert fused.shape == structural.shape
    assert fused.dtype == torch.float32
    assert fused.device == structural.device
    assert fused.min() >= 0
    assert fused.max() <= 1
    assert fused.std() > 0.05
    assert not fused.requires_grad
    if name != "duet":  # which knows the one from the other
        torch.testing.assert_close(method(functional, structural), fused, rtol=0, atol=1e-5)
    for index in range(len(fused)):
        alone = method(structural[index : index + 1], functional[index : index + 1])
        torch.testing.assert_close(alone[0], fused[index], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", READY)
def test_two_alike_give_the_same_back(name: str) -> None:
    plane = planes(3, count=1, size=(40, 40))
    fused = Method(name)(plane, plane)
    assert (fused - plane)[..., 8:-8, 8:-8].abs().mean() < 0.02  # noise is the hardest to give back


@pytest.mark.parametrize(("name", "strategy"), CHOICES)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1), (3, 5)])
def test_every_choice_takes_every_size(name: str, strategy: str | None, size: tuple[int, int]) -> None:
    fused = Method(name, strategy)(planes(1, count=2, size=size), planes(2, count=2, size=size))
    assert fused.shape == (2, 1, *size)
    assert fused.isfinite().all()


def test_the_rules_are_exact() -> None:
    structural, functional = planes(1), planes(2)
    assert torch.equal(Method("average")(structural, functional), (structural + functional) / 2)
    assert torch.equal(
        Method("maximum")(structural, functional), torch.where(structural > functional, structural, functional)
    )


def test_the_strategies_of_a_network_differ() -> None:
    strategies = [name for name in METHODS["dilran"].strategies if name != "nuclear-sum"]
    fused = [Method("dilran", strategy)(planes(1), planes(2)) for strategy in strategies]
    assert len(fused) == 4
    for index, one in enumerate(fused):
        for other in fused[index + 1 :]:
            assert (one - other).abs().max() > 0.01


def test_it_says_what_it_runs() -> None:
    assert Method("dilran").strategy == "nuclear"
    assert Method("dilran", "maximum").strategy == "maximum"
    assert Method("dilran").weights_sha256() == SHIPPED["dilran"]
    assert Method("average").strategy is None
    assert Method("average").weights_sha256() is None


def test_weights_are_those_of_the_modality_where_there_are_such() -> None:
    method = Method("duet")
    structural, functional = planes(1), planes(2)
    fused = [method(structural, functional, modality) for modality in BY_MODALITY["duet"]]
    assert all((one - other).abs().mean() > 0.001 for one, other in combinations(fused, 2))
    for modality, name in BY_MODALITY["duet"].items():
        assert method.weights_sha256(modality) == SHIPPED[name]
    for modality in (Modality.MR, Modality.OTHER):
        assert method.weights_sha256(modality) == SHIPPED["duet"]
        assert torch.equal(method(structural, functional, modality), method(structural, functional))
    other = Method("dilran")
    assert torch.equal(other(structural, functional, Modality.CT), other(structural, functional))


def test_weights_of_the_user_serve_every_modality() -> None:
    method = Method("duet", weights=Path(str(resources.files("medfuse").joinpath("models", "duet-ct.safetensors"))))
    assert {method.weights_sha256(modality) for modality in Modality} == {SHIPPED["duet-ct"]}


def test_the_list_of_methods_is_whole() -> None:
    assert set(NETWORKS) < set(METHODS)
    assert {entry.network for entry in METHODS.values() if entry.network} == {*FUSERS, *NETWORKS, *FEATURES}
    own = {name for files in BY_MODALITY.values() for name in files.values()}
    assert set(SHIPPED) == set(TRAINABLE) | own
    assert [name for name in METHODS if name not in READY] == ["zero-learning"]
    for entry in METHODS.values():
        assert entry.summary
        assert entry.reference


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sharpest",), "expected a method of duet, dilran, .*average, maximum, got 'sharpest'"),
        (
            ("dilran", "median"),
            "expected a strategy of nuclear, nuclear-mean, nuclear-sum, average, maximum for dilran, got 'median'",
        ),
        (("average", "nuclear"), "expected no strategy for average, got 'nuclear'"),
        (
            ("dilran", ""),
            "expected a strategy of nuclear, nuclear-mean, nuclear-sum, average, maximum for dilran, got ''",
        ),
        (("maximum", None, Path("x.safetensors")), "maximum has no weights to replace"),
    ],
)
def test_unknown_words_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Method(*arguments)
