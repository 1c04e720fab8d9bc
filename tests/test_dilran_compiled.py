"""The compiled network gives what the plain one gives, on every size, with any weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medfuse.fusion.methods import Method
from medfuse.fusion.networks import Dilran
from medfuse.fusion.networks.dilran_compiled import CompiledDilran
from medfuse.fusion.strategies import nuclear
from medfuse.fusion.weights import convert, read_weights


def shipped() -> Dilran:
    network = Dilran()
    read_weights(network, "dilran")
    return network.eval()


def random(seed: int) -> Dilran:
    """Weights and statistics such as no training would leave."""
    torch.manual_seed(seed)
    network = Dilran()
    norm = network.encoder.norm
    with torch.no_grad():
        norm.weight.uniform_(-2, 2)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.01, 4)
    return network.eval()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (7, 5), (16, 16), (33, 50), (64, 47)])
@pytest.mark.parametrize("make", [shipped, lambda: random(1), lambda: random(2)], ids=["shipped", "random", "other"])
def test_features_are_those_of_the_plain_network_in_float64(make: object, size: tuple[int, int]) -> None:
    network = make()  # type: ignore[operator]
    image = torch.rand(2, 1, *size)
    with torch.inference_mode():
        found = CompiledDilran(network).encode(image).double()
        expected = network.double().encode(image.double())
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_the_network_itself_stays_as_it_was() -> None:
    network = shipped()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        CompiledDilran(network).encode(torch.rand(1, 1, 8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_method_runs_it_and_gives_the_plain_result() -> None:
    network = shipped()
    structural, functional = torch.rand(2, 1, 40, 37), torch.rand(2, 1, 40, 37)
    with torch.inference_mode():
        expected = network.decode(nuclear(network.encode(structural), network.encode(functional))).clamp(0, 1)
    torch.testing.assert_close(Method("dilran")(structural, functional), expected, rtol=0, atol=1e-5)


def test_the_published_outputs_are_reproduced(shared: Path) -> None:
    from PIL import Image

    folder = shared / "reference-networks"
    network = Dilran()
    network.load_state_dict(convert("dilran", folder / "dilran_published.safetensors"), strict=False)
    compiled = CompiledDilran(network.eval())
    published = np.load(folder / "dilran_running_statistics.npz")
    for pair in ("ct-mri_34012", "spect-mri_22012"):
        place, name = pair.split("_")
        planes = []
        for kind in reversed(place.split("-")):
            with Image.open(shared / "wba" / place / kind / f"{name}.png") as image:
                planes.append(torch.from_numpy(np.asarray(image.convert("L"), np.float32) / 255)[None, None])
        with torch.inference_mode():
            fused = compiled.decode(nuclear(*(compiled.encode(plane) for plane in planes))).clamp(0, 1)
        assert np.abs(fused[0, 0].numpy() - published[pair]).max() < 1e-4
