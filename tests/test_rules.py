"""Fusion without training: what every rule owes, and each against a computation of its own equations in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import Tensor

from medfuse.fusion.networks.vgg import Vgg19
from medfuse.fusion.rules import ZeroLearning, guided_filter_fusion, laplacian_pyramid
from medfuse.fusion.rules.guided_filter import guided_filter
from medfuse.fusion.rules.laplacian import analyze, synthesize
from medfuse.fusion.rules.preference import preference
from medfuse.fusion.rules.smoothing import binomial, box, gaussian, resample, smooth
from medfuse.fusion.rules.zero_learning import rarity_of_level
from medfuse.fusion.weights import convert
from medfuse.metrics import correlation, edge_preservation

Rule = Callable[[Tensor, Tensor], Tensor]


def untrained_vgg() -> Vgg19:
    """Random weights that keep features about as large as their input."""
    generator = torch.Generator().manual_seed(4)
    network = Vgg19()
    for parameter in network.parameters():
        scale = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim == 4 else 0.1
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


RULES: dict[str, Rule] = {
    "laplacian": laplacian_pyramid,
    "guided filter": guided_filter_fusion,
    "zero-learning": ZeroLearning(untrained_vgg()),
}


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Rule:
    return RULES[request.param]


def planes(seed: int, count: int = 1, size: tuple[int, int] = (37, 42)) -> Tensor:
    """Smooth blobs with texture on a black ground, as scans are."""
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.normal(size=(count, *size)), (0, 4, 4)) * 6
    texture = ndimage.gaussian_filter(rng.normal(size=(count, *size)), (0, 0.7, 0.7)) * 0.2
    return torch.from_numpy(np.clip(blobs + texture * (blobs > 0), 0, 1).astype(np.float32))[:, None]


def pair(size: tuple[int, int] = (37, 42)) -> tuple[Tensor, Tensor]:
    return planes(1, size=size), planes(2, size=size)


def over_window(image: np.ndarray, weights: np.ndarray, origin: int = 0) -> np.ndarray:
    """Weighted means over what there is of a window, by scipy."""
    total, there = (
        ndimage.correlate(array, weights, mode="constant", origin=origin)
        for array in (np.asarray(image, np.float64), np.ones(image.shape))
    )
    return total / there


def assert_near(result: Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(result[0, 0].numpy(), expected, rtol=0, atol=tolerance)


def numpy_pair(size: tuple[int, int] = (37, 42)) -> tuple[np.ndarray, np.ndarray]:
    first, second = pair(size)
    return first[0, 0].double().numpy(), second[0, 0].double().numpy()


# What every rule owes


def test_the_contract(rule: Rule, device: str) -> None:
    """Shape, finite values, no favour to a place, no dependence on the rest of the batch."""
    if isinstance(rule, ZeroLearning):
        rule = ZeroLearning(untrained_vgg().to(device))
    structural, functional = planes(1, 3).to(device), planes(2, 3).to(device)
    fused = rule(structural, functional)
    assert fused.shape == structural.shape
    assert fused.dtype == torch.float32
    assert fused.device == structural.device
    assert fused.isfinite().all()
    assert not fused.requires_grad
    torch.testing.assert_close(rule(functional, structural), fused, rtol=0, atol=1e-5)
    for index in range(3):
        alone = rule(structural[index : index + 1], functional[index : index + 1])
        torch.testing.assert_close(alone[0], fused[index], rtol=0, atol=1e-5)


def test_neither_is_favoured_where_they_tie(rule: Rule) -> None:
    """An image and its negative: every activity ties, up to rounding."""
    structural = planes(3, 3)
    functional = 1 - structural
    fused = rule(structural, functional)
    torch.testing.assert_close(rule(functional, structural), fused, rtol=0, atol=1e-5)
    torch.testing.assert_close(rule(structural[1:2], functional[1:2])[0], fused[1], rtol=0, atol=1e-5)


def test_two_alike_give_the_same_back(rule: Rule) -> None:
    plane = planes(3)
    torch.testing.assert_close(rule(plane, plane), plane, rtol=0, atol=1e-5)


def test_two_flat_images_give_their_mean(rule: Rule) -> None:
    fused = rule(torch.full((1, 1, 20, 33), 0.2), torch.full((1, 1, 20, 33), 0.6))
    torch.testing.assert_close(fused, torch.full((1, 1, 20, 33), 0.4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_every_size_goes_through(name: str, height: int, width: int) -> None:
    structural, functional = planes(1, 2, (height, width)), planes(2, 2, (height, width))
    fused = RULES[name](structural, functional)
    assert fused.shape == (2, 1, height, width)
    assert fused.isfinite().all()
    torch.testing.assert_close(RULES[name](structural, structural), structural, rtol=0, atol=1e-5)


# Windows


@pytest.mark.parametrize("size", [1, 2, 5, 30, 31, 91])
def test_a_box_is_that_of_scipy(size: int) -> None:
    image = planes(5)
    array = image[0, 0].double().numpy()
    expected = ndimage.uniform_filter(array, size, mode="constant") / ndimage.uniform_filter(
        np.ones_like(array), size, mode="constant"
    )
    assert_near(smooth(image, box(size)), expected)


def test_a_gaussian_is_cut_to_its_size() -> None:
    offset = np.arange(-5, 6)
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / 50)
    image = planes(5)
    assert_near(smooth(image, gaussian(11, 5)), over_window(image[0, 0].numpy(), window))


def test_resampling_there_and_back_is_that_of_burt_and_adelson() -> None:
    window = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])
    image = planes(5, size=(13, 8))
    array = image[0, 0].double().numpy()
    halved = over_window(array, window)[::2, ::2]
    result = resample(image, binomial, (13, 8), wanted=2)
    assert_near(result, halved)
    spread, there = np.zeros((13, 8)), np.zeros((13, 8))
    spread[::2, ::2], there[::2, ::2] = halved, 1
    doubled = ndimage.correlate(spread, window, mode="constant") / ndimage.correlate(there, window, mode="constant")
    assert_near(resample(result, binomial, (13, 8), given=2), doubled)


def test_what_is_preferred() -> None:
    weight = preference(torch.tensor([0.3, 0.1, 0.2, 0.2, 0.2]), torch.tensor([0.1, 0.3, 0.2, 0.2 + 1e-7, 0.2 + 1e-5]))
    assert weight.tolist() == [1, 0, 0.5, 0.5, 0]


# Laplacian pyramid


@pytest.mark.parametrize(("size", "levels"), [((15, 80), 1), ((16, 16), 2), ((37, 42), 3), ((256, 256), 6)])
def test_a_pyramid_gives_its_image_back(size: tuple[int, int], levels: int) -> None:
    image = planes(6, 2, size)
    pyramid = analyze(image)
    assert len(pyramid) == levels
    assert 8 <= min(pyramid[-1].shape[-2:]) < 16
    torch.testing.assert_close(synthesize(pyramid), image, rtol=0, atol=1e-6)


def test_an_image_and_its_negative_have_no_detail_in_common() -> None:
    structural = planes(3)
    torch.testing.assert_close(
        laplacian_pyramid(structural, 1 - structural), torch.full_like(structural, 0.5), rtol=0, atol=1e-5
    )


def test_detail_of_one_image_alone_is_kept_whole() -> None:
    structural = planes(3)
    *details, coarsest = analyze(structural)
    expected = synthesize([*details, (coarsest + 0.5) / 2])
    fused = laplacian_pyramid(structural, torch.full_like(structural, 0.5))
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-5)


# Guided filter


@pytest.mark.parametrize(("radius", "epsilon"), [(1, 1e-6), (2, 0.01), (20, 0.3)])
def test_a_guided_filter_fits_a_line_in_every_window(radius: int, epsilon: float) -> None:
    guide, image = numpy_pair((9, 11))
    slopes, offsets = np.zeros((2, *guide.shape))
    windows = {
        (y, x): (slice(max(y - radius, 0), y + radius + 1), slice(max(x - radius, 0), x + radius + 1))
        for y in range(9)
        for x in range(11)
    }
    for middle, window in windows.items():
        covariance = np.mean((guide[window] - guide[window].mean()) * (image[window] - image[window].mean()))
        slopes[middle] = covariance / (guide[window].var() + epsilon)
        offsets[middle] = image[window].mean() - slopes[middle] * guide[window].mean()
    expected = np.zeros_like(guide)
    for middle, window in windows.items():  # a pixel lies in the windows whose middles lie in its window
        expected[middle] = slopes[window].mean() * guide[middle] + offsets[window].mean()
    assert_near(guided_filter(*pair((9, 11)), radius, epsilon), expected, 2e-5)


def refined_by_numpy(
    weights: list[np.ndarray], guides: list[np.ndarray], radius: int, epsilon: float
) -> list[np.ndarray]:
    window = np.ones((2 * radius + 1, 2 * radius + 1))
    found = []
    for weight, guide in zip(weights, guides, strict=True):
        mean_guide, mean_weight = over_window(guide, window), over_window(weight, window)
        variance = over_window(guide**2, window) - mean_guide**2
        slope = (over_window(guide * weight, window) - mean_guide * mean_weight) / (variance + epsilon)
        offset = over_window(mean_weight - slope * mean_guide, window)
        found.append(np.clip(over_window(slope, window) * guide + offset, 0, 1) + 1e-6)
    return [one / sum(found) for one in found]


def test_guided_filter_fusion_is_what_its_paper_says() -> None:
    images = list(numpy_pair())
    offset = np.arange(-5, 6)
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / 50)
    laplacian = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
    first, second = (over_window(abs(ndimage.correlate(one, laplacian, mode="nearest")), window) for one in images)
    preferred = np.where(abs(first - second) < 1e-6, 0.5, first > second)
    weights = [preferred, 1 - preferred]
    expected = np.zeros_like(first)
    base_weights, detail_weights = (refined_by_numpy(weights, images, *how) for how in ((45, 0.3), (7, 1e-6)))
    for image, base_weight, detail_weight in zip(images, base_weights, detail_weights, strict=True):
        base = over_window(image, np.ones((31, 31)))
        expected += base_weight * base + detail_weight * (image - base)
    assert_near(guided_filter_fusion(*pair()), expected, 1e-4)


# Zero-learning


def rarity_by_numpy(image: np.ndarray) -> np.ndarray:
    levels = np.rint(image * 255) / 255
    return abs(levels[:, :, None] - levels.ravel()).mean(axis=-1)


def test_rarity_is_the_mean_distance_of_grey_levels() -> None:
    images = planes(8, 2, (14, 17))
    found = rarity_of_level(images)
    for index in range(2):
        assert_near(found[index : index + 1], rarity_by_numpy(images[index, 0].double().numpy()))


def test_zero_learning_is_what_its_paper_says() -> None:
    network = untrained_vgg()
    images = list(numpy_pair())
    bases = [ndimage.uniform_filter(one, 30, mode="constant") for one in images]
    bases = [base / ndimage.uniform_filter(np.ones_like(base), 30, mode="constant") for base in bases]
    details = [image - base for image, base in zip(images, bases, strict=True)]
    rarity = [rarity_by_numpy(image) for image in images]
    weights = refined_by_numpy([one / sum(rarity) for one in rarity], images, 45, 0.01)
    expected = sum(weight * base for weight, base in zip(weights, bases, strict=True))
    gain = 255 * (0.229 + 0.224 + 0.225) / 3
    responses = [network.respond(torch.from_numpy(gain * detail).float().expand(1, 3, -1, -1)) for detail in details]
    layers = []
    for scale, maps in zip((1, 2, 4), zip(*responses, strict=True), strict=True):
        sums = [abs(one[0].double().numpy()).sum(axis=0) / gain for one in maps]
        powers = [np.exp(np.kron(one, np.ones((scale, scale)))[:37, :42]) for one in sums]
        layers.append(sum(power * detail for power, detail in zip(powers, details, strict=True)) / sum(powers))
    assert np.ptp(layers, axis=0).max() > 0.01  # the layers differ, so the largest is a choice
    fused = ZeroLearning(network)(*pair())
    assert_near(fused, expected + np.max(layers, axis=0), 1e-4)


def test_zero_learning_does_not_depend_on_the_units_of_the_weights() -> None:
    """A network that takes its input divided by 40, and gives features divided by 40, is the same network."""
    network, other = untrained_vgg(), untrained_vgg()
    other.std *= 40
    for name, parameter in other.named_parameters():
        if name.endswith("bias"):
            parameter.div_(40)
    torch.testing.assert_close(ZeroLearning(other)(*pair()), ZeroLearning(network)(*pair()), rtol=0, atol=1e-4)


# Real pairs


@pytest.mark.parametrize("name", ["2011", "34012"])
def test_real_pairs_keep_the_edges_of_both(shared: Path, name: str, rule: Rule) -> None:
    """More of the edges than their mean keeps, nearer to each than they are to one another, air dark."""
    if isinstance(rule, ZeroLearning):
        network = Vgg19()
        network.load_state_dict(convert("vgg19", shared / "vgg19" / "vgg19_conv1_1-conv3_4_keras.npz"))
        rule = ZeroLearning(network)
    images = []
    for kind in ("mri", "ct"):
        with Image.open(shared / "wba" / "ct-mri" / kind / f"{name}.png") as image:
            images.append(torch.from_numpy(np.asarray(image.convert("L"), np.float32) / 255)[None, None])
    mr, ct = images
    fused = rule(mr, ct).clamp(0, 1)
    assert edge_preservation(fused, mr, ct)[0] > edge_preservation((mr + ct) / 2, mr, ct)[0] + 0.1
    for source in (mr, ct):
        assert correlation(fused, source)[0] > correlation(mr, ct)[0] + 0.1
    assert fused[(ct < 0.02) & (mr < 0.02)].mean() < 0.05
