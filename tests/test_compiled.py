"""The compiled networks give what the plain ones give: at every size, with any weights, in either precision."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medfuse.fusion.methods import METHODS, Method
from medfuse.fusion.networks import COMPILED, NETWORKS, AutoEncoder
from medfuse.fusion.strategies import STRATEGIES
from medfuse.fusion.weights import convert, read_weights

SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (5, 5), (7, 6), (16, 16), (33, 50), (64, 47)]


def shipped(name: str) -> AutoEncoder:
    network = NETWORKS[name]()
    read_weights(network, name)
    return network.eval()


def random(name: str) -> AutoEncoder:
    """Weights and statistics such as no training would leave."""
    torch.manual_seed(1)
    network = NETWORKS[name]()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data.uniform_(-2, 2)
            norm.bias.data.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.01, 4)
    return network.eval()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [shipped, random])
@pytest.mark.parametrize("name", COMPILED)
def test_features_and_decoded_features_are_those_of_the_plain_network(
    name: str, make: Callable[[str], AutoEncoder], size: tuple[int, int], device: str
) -> None:
    """In float64, where only the algebra counts, to 1e-12; in float32, as it is used, to 1e-5; of the largest value."""
    network = make(name)
    plain, image = deepcopy(network).double(), torch.rand(2, 1, *size, dtype=torch.float64)
    with torch.inference_mode():
        features = plain.encode(image)
        decoded = plain.decode(features)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            compiled = COMPILED[name](network.to(dtype)).to(device)
            for found, expected in (
                (compiled.encode(image.to(device, dtype)), features),
                (compiled.decode(features.to(device, dtype)), decoded),
            ):
                assert found.shape == expected.shape
                assert found.dtype == dtype
                assert (found.cpu() - expected).abs().max() < tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("corner", [(0, 0), (1, 3), (6, 0), (9, 14), (20, 31)])
@pytest.mark.parametrize("make", [shipped, random])
@pytest.mark.parametrize("name", COMPILED)
def test_a_body_in_the_dark_is_computed_alone_with_the_same_result(
    name: str, make: Callable[[str], AutoEncoder], corner: tuple[int, int], device: str
) -> None:
    """At the border, next to it and away from it; of two images with different bodies, too."""
    network = make(name)
    image = torch.zeros(2, 1, 50, 61, dtype=torch.float64)
    image[0, :, corner[0] : corner[0] + 25, corner[1] : corner[1] + 30] = torch.rand(25, 30)
    image[1, :, corner[0] : corner[0] + 11, corner[1] + 3 : corner[1] + 9] = torch.rand(11, 6)
    with torch.inference_mode():
        expected = deepcopy(network).double().encode(image)
        compiled = COMPILED[name](network).to(device)
        found = compiled.encode(image.float().to(device)).cpu()
        rows, columns = compiled.body(image)
        assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
        beyond = expected.clone()
        beyond[..., rows, columns] = 0
        assert not beyond.any()
        nothing = network.encode(torch.zeros(1, 1, 50, 61))
        off = (compiled.encode(torch.zeros(1, 1, 50, 61, device=device)).cpu() - nothing).abs().max()
        assert off < 1e-5 * max(1.0, float(nothing.abs().max()))


def test_tall_and_wide_images_are_computed_band_by_band(device: str) -> None:
    image = torch.rand(1, 1, 291, 70, dtype=torch.float64)
    network = random("dilran").double()
    with torch.inference_mode():
        for turned in (image, image.mT):
            expected = network.encode(turned)
            found = COMPILED["dilran"](network).to(device).encode(turned.to(device)).cpu()
            assert (found - expected).abs().max() < 1e-12 * float(expected.abs().max())


def test_channels_that_only_now_and_then_matter_are_not_forgotten() -> None:
    """What is left out is decided by the image, not by the greys that the channels were ordered by."""
    network = random("dilran")
    compiled = COMPILED["dilran"](network)
    compiled.encoder.order = compiled.encoder.order.flip(0)
    compiled.encoder.far.weight, compiled.encoder.far.bias = (
        tensor.flip(0) for tensor in (compiled.encoder.far.weight, compiled.encoder.far.bias)
    )
    image = torch.rand(1, 1, 40, 40)
    with torch.inference_mode():
        expected = network.double().encode(image.double())
        assert (compiled.encode(image) - expected).abs().max() < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", COMPILED)
def test_the_network_itself_stays_as_it_was_and_can_go_on_training(name: str) -> None:
    network = shipped(name).train()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    image = torch.rand(1, 1, 12, 13)
    compiled = COMPILED[name](network).eval()
    with torch.inference_mode():
        found = compiled(image)
        torch.testing.assert_close(found, shipped(name)(image), rtol=0, atol=1e-5)
        assert network.training
        assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    for parameter in network.parameters():
        parameter.data.zero_()
    with torch.inference_mode():
        assert torch.equal(compiled(image), found)


@pytest.mark.parametrize("name", COMPILED)
def test_the_method_gives_the_plain_result(name: str) -> None:
    network = shipped(name)
    structural, functional = torch.rand(2, 2, 1, 40, 37)
    with torch.inference_mode():
        expected = network.decode((network.encode(structural) + network.encode(functional)) / 2).clamp(0, 1)
    torch.testing.assert_close(Method(name, "average")(structural, functional), expected, rtol=0, atol=1e-5)


def test_every_network_that_fuses_has_a_compiled_form() -> None:
    assert COMPILED.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", ["dilran", "msrpan", "msdra"])
@pytest.mark.parametrize("pair", ["ct-mri_34012", "spect-mri_22012"])
def test_the_published_outputs_are_reproduced(shared: Path, name: str, pair: str) -> None:
    folder = shared / "reference-networks"
    network = NETWORKS[name]()
    network.load_state_dict(convert(name, folder / f"{name}_published.safetensors"), strict=False)
    compiled = COMPILED[name](network.eval())
    place, number = pair.split("_")
    planes = []
    for kind in reversed(place.split("-")):
        with Image.open(shared / "wba" / place / kind / f"{number}.png") as image:
            planes.append(torch.from_numpy(np.asarray(image.convert("L"), np.float32) / 255)[None, None])
    merge = STRATEGIES[METHODS[name].strategies[0]]
    with torch.inference_mode():
        fused = compiled.decode(merge(*(compiled.encode(plane) for plane in planes)))[0, 0].numpy()
    published = np.load(folder / f"{name}_running_statistics.npz")[pair]
    assert np.abs((fused.clip(0, 1) if name == "dilran" else fused) - published).max() < 1e-4
