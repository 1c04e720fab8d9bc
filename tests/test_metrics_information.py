"""FMI's reference values come from its authors' MATLAB code (fmi.m), run in GNU Octave on `scene(48, 40)`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import flat, grid, scene
from skimage.measure import shannon_entropy
from skimage.metrics import normalized_mutual_information as skimage_nmi

from medfuse.errors import UnsupportedImage
from medfuse.metrics import entropy, feature_mutual_information, mutual_information, normalized_mutual_information
from medfuse.metrics.information import sobel_edges

FUSED, WAVES, BLOCKS = scene(48, 40)


@pytest.mark.parametrize("image", [FUSED, WAVES, BLOCKS])
def test_entropy_is_scikit_images(image: torch.Tensor) -> None:
    assert entropy(image).item() == pytest.approx(shannon_entropy(image.numpy(), base=2), abs=1e-12)


def test_entropy_of_the_paper_counts_distinct_floats() -> None:
    image = torch.rand(3, 1, 40, 30, generator=torch.Generator().manual_seed(1)).square()
    image[1, 0, :20] = 0.25
    expected = [shannon_entropy(one.numpy(), base=2) for one in image]
    assert entropy(image, convention="paper").tolist() == pytest.approx(expected, abs=1e-12)
    assert entropy(image).max() < 8 < max(expected)


def test_entropy_of_eight_bits_does_not_depend_on_the_convention() -> None:
    assert entropy(BLOCKS, convention="paper").item() == pytest.approx(entropy(BLOCKS).item(), abs=1e-12)


def test_entropy_of_as_many_levels_is_their_logarithm() -> None:
    assert entropy(torch.arange(256, dtype=torch.uint8).reshape(1, 1, 8, 32)).item() == 8
    assert entropy(flat(7)).item() == 0


@pytest.mark.parametrize("source", [WAVES, BLOCKS])
def test_mutual_information_is_that_of_numpy_histograms(source: torch.Tensor) -> None:
    joint = np.histogram2d(FUSED.numpy().ravel(), source.numpy().ravel(), bins=256, range=[[0, 256]] * 2)[0]
    expected = sum(shannon_entropy_of(counts) for counts in (joint.sum(0), joint.sum(1))) - shannon_entropy_of(joint)
    assert mutual_information(FUSED, source).item() == pytest.approx(expected, abs=1e-9)


def shannon_entropy_of(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


@pytest.mark.parametrize("source", [WAVES, BLOCKS])
def test_q_mi_is_scikit_images_in_hossnys_form(source: torch.Tensor) -> None:
    # scikit-image gives (H(F) + H(S)) / H(F, S); 2 MI / (H(F) + H(S)) is 2 - 2 over that
    studholme = skimage_nmi(FUSED[0, 0].numpy(), source[0, 0].numpy(), bins=[np.arange(257)] * 2)
    assert normalized_mutual_information(FUSED, source).item() == pytest.approx(2 - 2 / studholme, abs=1e-9)


def test_what_an_image_tells_of_itself() -> None:
    assert mutual_information(WAVES, WAVES).item() == pytest.approx(entropy(WAVES).item())
    assert normalized_mutual_information(WAVES, 255 - WAVES).item() == pytest.approx(1)


@pytest.mark.parametrize("measure", [mutual_information, normalized_mutual_information])
def test_a_constant_image_tells_nothing(measure) -> None:
    pairs = [(flat(9), flat(9)), (flat(9), flat(80)), (flat(9, 48, 40), WAVES), (WAVES, flat(9, 48, 40))]
    assert [measure(*pair).item() for pair in pairs] == pytest.approx([0] * 4, abs=1e-12)


@pytest.mark.parametrize(
    ("feature", "waves", "blocks"),
    [("pixel", 0.4021265104, 0.2665184494), ("gradient", 0.1748915758, 0.2335899553)],
)
def test_fmi_is_its_authors(feature, waves: float, blocks: float) -> None:
    assert feature_mutual_information(FUSED, WAVES, feature=feature).item() == pytest.approx(waves, abs=5e-7)
    assert feature_mutual_information(FUSED, BLOCKS, feature=feature).item() == pytest.approx(blocks, abs=5e-7)


def test_fmi_of_edges_is_near_its_authors_with_octaves_edges() -> None:
    # Octave thins less than MATLAB: 79 instead of 74 edge pixels in the fused image
    found = [feature_mutual_information(FUSED, source, feature="edge").item() for source in (WAVES, BLOCKS)]
    assert found == pytest.approx([0.8197940503, 0.9014436126], abs=0.011)


@pytest.mark.parametrize("feature", ["pixel", "gradient", "edge"])
def test_fmi_of_identical_and_of_constant_images(feature) -> None:
    assert feature_mutual_information(WAVES, WAVES, feature=feature).item() == 1
    assert feature_mutual_information(flat(5), flat(5), feature=feature).item() == 1
    assert 0 <= feature_mutual_information(flat(5, 48, 40), WAVES, feature=feature).item() < 1


def test_fmi_of_pixels_beside_a_constant_image_is_zero() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    assert feature_mutual_information(flat(5, 8, 8), ramp).item() == 0
    assert feature_mutual_information(ramp, flat(5, 8, 8)).item() == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 12), st.sampled_from(["pixel", "gradient", "edge"]))
def test_fmi_is_symmetric_and_finite(seed: int, side: int, feature) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randint(0, 4, (2, 2, 1, side, 9), generator=generator).mul(80).to(torch.uint8)
    one, other = (feature_mutual_information(*pair, feature=feature) for pair in ((first, second), (second, first)))
    assert torch.allclose(one, other, atol=1e-12)
    assert one.min() >= 0
    assert one.max() <= 1


def test_fmi_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="expected a feature of pixel, gradient, edge, got 'dct'"):
        feature_mutual_information(FUSED, WAVES, feature="dct")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="odd window"):
        feature_mutual_information(FUSED, WAVES, window=4)
    with pytest.raises(UnsupportedImage, match="at least 5 × 5 pixels, found 4 × 9"):
        feature_mutual_information(flat(0, 4, 9), flat(0, 4, 9), window=5)


def test_edges_are_thin_crests_across_the_step() -> None:
    step = grid(*[[0] * 6 + [200] * 6] * 8)
    assert sobel_edges(step)[0, 0].sum(dim=0).tolist() == [0] * 6 + [8] + [0] * 5  # of two equal crests, the farther
    assert torch.equal(sobel_edges(step.mT.contiguous()), sobel_edges(step).mT)
    assert sobel_edges(flat(50).double()).sum() == 0
