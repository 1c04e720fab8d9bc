from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medfuse.errors import UnsupportedImage
from medfuse.metrics.images import divide, to_eight_bits, to_levels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eight_bits_and_their_float_are_the_same_levels(dtype: torch.dtype) -> None:
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    levels, of_float = to_levels(image, image.to(dtype) / 255)
    assert levels.dtype == torch.float64
    assert torch.equal(levels, of_float)
    assert torch.equal(levels, image.double())


def test_floats_between_levels_are_kept_and_rounded_only_for_eight_bits() -> None:
    image = torch.full((1, 1, 2, 2), 100.4 / 255, dtype=torch.float64)
    assert to_levels(image)[0].unique().item() == pytest.approx(100.4)
    assert to_eight_bits(image)[0].unique().item() == 100


def test_overshoot_is_clipped_unless_asked_not_to() -> None:
    image = torch.tensor([[[[-0.5, 0.0], [1.0, 1.6]]]], dtype=torch.float64)
    assert to_levels(image)[0].flatten().tolist() == [0, 0, 255, 255]
    assert to_levels(image, clip=False)[0].flatten().tolist() == pytest.approx([-127.5, 0, 255, 408])


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (1, 3, 4, 4), (0, 1, 4, 4), (1, 1, 0, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images of one shape \(N, 1, H, W\)"):
        to_levels(torch.zeros(shape))


def test_differing_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        to_levels(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.bool])
def test_other_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="uint8 or float"):
        to_levels(torch.zeros(1, 1, 4, 4, dtype=dtype))


@pytest.mark.parametrize("value", [255.0, -2.0, float("nan"), float("inf")])
def test_floats_on_another_scale_are_refused(value: float) -> None:
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 2] = value
    with pytest.raises(ValueError, match=r"expected float values in \[0, 1\]"):
        to_levels(image)


def test_small_images_are_refused_with_both_sizes() -> None:
    with pytest.raises(UnsupportedImage, match="at least 11 × 11 pixels, found 10 × 30") as refused:
        to_levels(torch.zeros(1, 1, 10, 30), smallest=11)
    assert refused.value.hint.startswith("Measure larger images")  # a command cannot leave a measure out


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_divide_is_never_nan(numerator: float, denominator: float) -> None:
    quotient = divide(*(torch.tensor([value], dtype=torch.float64) for value in (numerator, denominator)))
    assert quotient.item() == (numerator / denominator if denominator > 0 else 0)
