"""Linear layers as one convolution: what the layers give, one after the other, at every size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medfuse.fusion.networks.collapsed import Collapsed, Pointwise, Rim, affine_of, bordered

SIZES = [(1, 1), (1, 7), (4, 2), (5, 6), (9, 9), (12, 31), (14, 14), (15, 40), (33, 16)]


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    for tensor in (layer.weight.data, layer.bias.data, layer.running_mean):
        tensor.normal_()
    layer.running_var.uniform_(0.01, 4)
    return layer


def layers(out: int) -> nn.Sequential:
    """A reach of 4; layers with a bias come before a radius of 1 and one of 2."""
    torch.manual_seed(out)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), norm(6), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 3, padding=1), norm(4),
        nn.Conv2d(4, out, 5, padding=2),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("out", [1, 7])
def test_collapsed_layers_give_what_the_layers_give(out: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    plain = layers(out)
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        found = Collapsed(plain.to(dtype), channels=3, reach=4, border=3)(x.to(dtype)).double()
        expected = plain.eval().double()(x.double())
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    assert (found - expected).abs().max() < tolerance * max(1.0, float(expected.abs().max()))


def test_a_border_too_narrow_is_seen() -> None:
    """So that the test above can fail: one pixel less, and the outermost but two are wrong."""
    plain = layers(7)
    x = torch.randn(1, 3, 20, 20)
    with torch.inference_mode():
        wrong = Collapsed(plain, channels=3, reach=4, border=2)(x) - plain.eval()(x)
    assert wrong[..., 2, 5:-5].abs().max() > 1e-3
    assert wrong[..., 3:-3, 3:-3].abs().max() < 1e-4


@pytest.mark.parametrize("out", [1, 7])
@pytest.mark.parametrize("lit", [(8, 8), (0, 8), (8, 0), (3, 20), (20, 3)])
def test_black_sides_and_corners_are_not_computed_and_right(out: int, lit: tuple[int, int]) -> None:
    plain = layers(out)
    x = torch.zeros(2, 3, 26, 30, dtype=torch.float64)
    x[..., lit[0] : lit[0] + 5, lit[1] : lit[1] + 5] = torch.randn(5, 5)
    with torch.inference_mode():
        expected = plain.double().eval()(x)
        found = Collapsed(plain, channels=3, reach=4, border=3)(x)
    assert (found - expected).abs().max() < 1e-13 * float(expected.abs().max())


@pytest.mark.parametrize("corner", [(0, 0), (1, 2), (11, 5), (15, 14)])
def test_a_part_of_the_picture_gets_its_part_of_the_border(corner: tuple[int, int]) -> None:
    plain, (top, left) = layers(7).double(), corner
    x = torch.randn(1, 3, 25, 24, dtype=torch.float64)
    with torch.inference_mode():
        expected = plain.eval()(x)
        inner = expected.clone()
        inner[..., :3, :], inner[..., -3:, :], inner[..., :3], inner[..., -3:] = 0, 0, 0, 0
        strips = Rim(plain, channels=3, reach=4, border=3)(x)
        found = strips.put(inner[..., top : top + 10, left : left + 10].clone(), top, left)
    torch.testing.assert_close(found, expected[..., top : top + 10, left : left + 10])


def test_layers_are_copied() -> None:
    plain = layers(7)
    collapsed, x = Collapsed(plain, channels=3, reach=4, border=3), torch.randn(1, 3, 20, 20)
    with torch.no_grad():
        before = collapsed(x)
        plain[0].weight.zero_()
        assert torch.equal(collapsed(x), before)


def test_only_the_border_is_replaced() -> None:
    found = bordered(torch.zeros(1, 1, 7, 8), torch.ones_like, torch.zeros(1, 1, 7, 8), border=2, reach=3)
    expected = torch.ones(1, 1, 7, 8)
    expected[..., 2:-2, 2:-2] = 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_product_is_a_1x1_convolution(bias: bool) -> None:
    conv, x = nn.Conv2d(5, 7, 1, bias=bias), torch.randn(2, 5, 6, 4)
    with torch.inference_mode():
        torch.testing.assert_close(Pointwise(conv.weight, conv.bias)(x), conv(x))


def test_a_norm_is_a_scale_and_a_shift() -> None:
    layer, x = norm(6), torch.randn(2, 6, 3, 4)
    scale, shift = affine_of(layer)
    with torch.inference_mode():
        torch.testing.assert_close(scale * x + shift, layer.eval()(x), rtol=1e-5, atol=1e-5)
