"""VGG19: both published sets of weights give the features that they were published to give, whatever the size."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor, nn

from medfuse.errors import WeightsError
from medfuse.fusion import Method
from medfuse.fusion.networks.vgg import Vgg19
from medfuse.fusion.weights import convert, download_vgg19, to_bytes

#: Channels of torchvision's vgg19 up to conv3_4; None where it pools.
PLAN = (64, 64, None, 128, 128, None, 256, 256, 256, 256)
KERAS = ("block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2", *(f"block3_conv{n}" for n in range(1, 5)))


def plain_stack() -> nn.Sequential:
    """torchvision's `features` up to relu3_4, with random weights."""
    torch.manual_seed(5)
    layers: list[nn.Module] = []
    given = 3
    for channels in PLAN:
        if channels is None:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(given, channels, 3, padding=1), nn.ReLU()]
            given = channels
    return nn.Sequential(*layers)


def torchvision_tensors(stack: nn.Sequential) -> dict[str, Tensor]:
    rest = {"features.34.weight": torch.zeros(2), "classifier.0.weight": torch.zeros(2, 2)}
    return {f"features.{key}": tensor for key, tensor in stack.state_dict().items()} | rest


def keras_arrays(stack: nn.Sequential) -> dict[str, np.ndarray]:
    """The same weights as Keras writes the Caffe values: (height, width, in, out), input in the order BGR."""
    arrays = {}
    convolutions = [layer for layer in stack if isinstance(layer, nn.Conv2d)]
    for name, layer in zip(KERAS, convolutions, strict=True):
        kernel = layer.weight.detach().numpy().transpose(2, 3, 1, 0)
        arrays[f"{name}_kernel"] = kernel[:, :, ::-1] if name == "block1_conv1" else kernel
        arrays[f"{name}_bias"] = layer.bias.detach().numpy()
    return arrays


def loaded(path: Path) -> Vgg19:
    network = Vgg19()
    network.load_state_dict(convert("vgg19", path))
    return network.eval()


def image(size: tuple[int, int] = (24, 20)) -> Tensor:
    return torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(2))


def features_of(stack: nn.Sequential, rgb: Tensor) -> list[Tensor]:
    found = []
    with torch.inference_mode():
        for place, layer in enumerate(stack):
            rgb = layer(rgb)
            if place in (1, 6, 11):
                found.append(rgb.clone())
    return found


def assert_alike(features: tuple[Tensor, ...], expected: list[Tensor]) -> None:
    for one, other in zip(features, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.max()))


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_torchvision_weights_see_what_torchvision_shows_them(tmp_path: Path, form: str) -> None:
    stack = plain_stack()
    path = tmp_path / f"vgg19.{form}"
    (torch.save if form == "pth" else save_file)(torchvision_tensors(stack), path)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = features_of(stack, (image().expand(-1, 3, -1, -1) - mean) / std)
    network = loaded(path)
    assert_alike(network(image()), expected)
    assert float(network.unit) == pytest.approx(57.63, abs=1e-3)


def test_caffe_weights_see_what_caffe_shows_them(tmp_path: Path) -> None:
    stack = plain_stack()
    path = tmp_path / "vgg19.npz"
    np.savez(path, **keras_arrays(stack))
    expected = features_of(stack, 255 * image() - torch.tensor([123.68, 116.779, 103.939])[:, None, None])
    network = loaded(path)
    assert_alike(network(image()), expected)
    assert float(network.unit) == 1


def test_the_published_caffe_values_give_these_first_features(shared: Path) -> None:
    path = shared / "vgg19" / "vgg19_conv1_1-conv3_4_keras.npz"
    plane = image((9, 8))[:1]
    relu1_1, relu2_1, relu3_1 = loaded(path)(plane)
    with np.load(path, allow_pickle=False) as arrays:
        kernel, bias = arrays["block1_conv1_kernel"], arrays["block1_conv1_bias"]
    blue_green_red = 255 * plane[0].numpy() - np.array([103.939, 116.779, 123.68], np.float32)[:, None, None]
    for channel in (0, 17, 63):
        planes = [
            ndimage.correlate(blue_green_red[color], kernel[:, :, color, channel], mode="constant")
            for color in range(3)
        ]
        expected = np.maximum(np.sum(planes, axis=0) + bias[channel], 0)
        np.testing.assert_allclose(relu1_1[0, channel], expected, rtol=1e-4, atol=1e-2)
    assert all(0 < (maps > 0).float().mean() < 1 for maps in (relu2_1, relu3_1))


def test_its_own_form_is_taken_as_it_is(tmp_path: Path) -> None:
    tensors = {key: tensor.clone() for key, tensor in Vgg19().state_dict().items()} | {"std": torch.full((3,), 3.0)}
    path = tmp_path / "own.safetensors"
    save_file(tensors, path)
    converted = convert("vgg19", path)
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1), (3, 5), (17, 13)])
def test_any_size_goes_through(size: tuple[int, int], device: str) -> None:
    height, width = size
    relu1_1, relu2_1, relu3_1 = Vgg19().to(device)(image(size).to(device))
    assert relu1_1.shape == (2, 64, height, width)
    assert relu2_1.shape == (2, 128, -(-height // 2), -(-width // 2))
    assert relu3_1.shape == (2, 256, -(-height // 4), -(-width // 4))
    assert all(maps.isfinite().all() for maps in (relu1_1, relu2_1, relu3_1))


def test_gradients_reach_the_image_and_not_the_weights() -> None:
    network = Vgg19()
    plane = image().requires_grad_()
    sum(maps.mean() for maps in network(plane)).backward()
    assert plane.grad is not None
    assert plane.grad.abs().max() > 0
    assert all(not parameter.requires_grad for parameter in network.parameters())


def assert_refused(message: str, path: Path) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        convert("vgg19", path)
    assert caught.value.exit_code == 6
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)


@pytest.mark.parametrize("form", ["pth", "npz", "safetensors"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"weights.{form}"
    assert_refused(f"cannot read weights.{form}", path)
    path.write_text("these are no weights\n")
    assert_refused(f"cannot read weights.{form}", path)


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    pickled = np.array([Path("x")], dtype=object)
    np.savez(tmp_path / "objects.npz", block3_conv4_kernel=pickled)
    assert_refused("cannot read objects.npz", tmp_path / "objects.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"features.16.weight": Path("x")}, tmp_path / "objects.pth")
    assert_refused("cannot read objects.pth", tmp_path / "objects.pth")


@pytest.mark.parametrize("change", ["vgg16", "absent", "shape", "infinite", "other"])
def test_other_weights_are_refused(tmp_path: Path, change: str) -> None:
    tensors = torchvision_tensors(plain_stack())
    message = "expected the published tensors of vgg19, found 1 of 12 absent or .* conv2_2.weight first"
    if change == "vgg16":
        del tensors["features.16.weight"], tensors["features.16.bias"]
        message = "found 12 of 12 absent"
    elif change == "absent":
        del tensors["features.7.weight"]
    elif change == "shape":
        tensors["features.7.weight"] = torch.zeros(128, 128, 1, 1)
    elif change == "infinite":
        tensors["features.7.weight"][3, 4, 1, 1] = torch.inf
        message = "expected finite weights, found NaN or infinity in weights.pth"
    else:
        tensors = {"encoder.weight": torch.zeros(2)}
        message = "found 12 of 12 absent"
    path = tmp_path / "weights.pth"
    torch.save(tensors, path)
    assert_refused(message, path)


def test_zero_learning_says_what_it_lacks_and_takes_given_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="expected weights of vgg19, found none") as caught:
        Method("zero-learning")
    assert "medfuse weights download" in caught.value.hint
    weights = tmp_path / "vgg19.safetensors"
    torch.manual_seed(1)
    weights.write_bytes(to_bytes(Vgg19().state_dict()))
    fused = Method("zero-learning", weights=weights)(torch.rand(1, 1, 40, 50), torch.rand(1, 1, 40, 50))
    assert fused.shape == (1, 1, 40, 50)
    assert fused.isfinite().all()


def test_a_download_is_checked_against_the_hash_in_its_name(tmp_path: Path) -> None:
    torch.save(torchvision_tensors(plain_stack()), tmp_path / "vgg19.pth")
    digest = hashlib.sha256((tmp_path / "vgg19.pth").read_bytes()).hexdigest()
    for start, is_right in ((digest[:8], True), ("00000000", False)):
        address = (tmp_path / f"vgg19-{start}.pth").as_uri()
        (tmp_path / f"vgg19-{start}.pth").write_bytes((tmp_path / "vgg19.pth").read_bytes())
        if is_right:
            assert download_vgg19(address).keys() == Vgg19().state_dict().keys()
        else:
            with pytest.raises(WeightsError, match="could not fetch them from where torchvision keeps them"):
                download_vgg19(address)
    with pytest.raises(WeightsError, match="could not fetch them"):
        download_vgg19((tmp_path / "absent-12345678.pth").as_uri())
