"""Reference values on `scene`: FSIM and VIF from piq 0.8.0 (`fsim` without colour, `vif_p`), VIF also from sewar
0.4.10; the paper's FSIM from the code published with it, on phasepack 1.5 and OpenCV 5.0.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import flat, scene
from torch.nn.functional import avg_pool2d

from medfuse.errors import UnsupportedImage
from medfuse.metrics import fsim, vif
from medfuse.metrics.phase import FSIM_MODEL, PHASEPACK_MODEL, phase_congruency

EVEN, ODD, LARGE = (192, 176), (97, 121), (512, 520)


@pytest.mark.parametrize(
    ("size", "waves", "blocks"),
    [
        (EVEN, 0.8710645533, 0.5383190423),
        (ODD, 0.8661584766, 0.5690634507),
        (LARGE, 0.8426257391, 0.5892518137),
    ],
)
def test_fsim_is_piqs(size: tuple[int, int], waves: float, blocks: float) -> None:
    # piq takes the lower of the two middle values for the median of the noise: up to 5e-6
    fused, *sources = scene(*size)
    assert [fsim(fused, source).item() for source in sources] == pytest.approx([waves, blocks], abs=1e-5)


@pytest.mark.parametrize(
    ("size", "waves", "blocks"), [(EVEN, 0.9363210168, 0.8447377512), (ODD, 0.9249466018, 0.8357459532)]
)
def test_fsim_of_the_paper_is_its_codes(size: tuple[int, int], waves: float, blocks: float) -> None:
    fused, *sources = scene(*size)
    found = [fsim(fused, source, convention="paper").item() for source in sources]
    assert found == pytest.approx([waves, blocks], abs=1e-6)


@pytest.mark.parametrize(
    ("size", "waves", "blocks"), [(EVEN, 0.3521170489, 0.0517744526), (ODD, 0.3113392726, 0.0737361150)]
)
def test_vif_is_that_of_piq_and_sewar(size: tuple[int, int], waves: float, blocks: float) -> None:
    fused, *sources = scene(*size)
    assert [vif(fused, source).item() for source in sources] == pytest.approx([waves, blocks], abs=1e-8)


def test_identical_images_give_one() -> None:
    image = scene(60, 50)[1]
    assert vif(image, image).item() == pytest.approx(1, abs=1e-9)
    assert fsim(image, image).item() == pytest.approx(1, abs=1e-6)
    assert fsim(image, image, convention="paper").item() == pytest.approx(1, abs=1e-6)


def test_vif_is_above_one_where_contrast_is_raised() -> None:
    image = scene(60, 50)[1]
    assert vif(image, image // 2).item() > 1 > vif(image // 2, image).item()


def test_constant_images() -> None:
    image, grey, dark = scene(48, 48)[0], flat(120), flat(3)
    assert [vif(grey, grey).item(), vif(image, grey).item(), vif(grey, image).item()] == [0, 0, 0]
    for convention in ("standard", "paper"):
        assert fsim(dark, dark, convention=convention).item() == pytest.approx(1, abs=1e-6)
        assert 0 < fsim(grey, image, convention=convention).item() < 1


def test_fsim_of_640_pixels_a_side_is_that_of_blocks_of_three() -> None:
    """2.5 rounds to 3 in MATLAB, in which the measure was published, and to 2 in Python."""
    images = [image.double() for image in scene(640, 640)[:2]]
    shrunk = [avg_pool2d(image, 3) / 255 for image in images]
    assert fsim(images[0] / 255, images[1] / 255).item() == pytest.approx(fsim(*shrunk).item(), abs=1e-9)


def test_images_that_are_too_small_are_refused() -> None:
    assert vif(scene(41, 41)[0], scene(41, 41)[1]).item() > 0
    with pytest.raises(UnsupportedImage, match="at least 41 × 41 pixels, found 40 × 48"):
        vif(flat(0, 40, 48), flat(0, 40, 48))
    assert 0 < fsim(scene(12, 13)[0], scene(12, 13)[1]).item() < 1
    with pytest.raises(UnsupportedImage, match="at least 12 × 12 pixels, found 11 × 48"):
        fsim(flat(0, 11, 48), flat(0, 11, 48))


@pytest.mark.parametrize("size", [(41, 41), (64, 64), (160, 161), (257, 41)])
def test_constant_images_have_no_phase_at_all(size: tuple[int, int]) -> None:
    """What float32 makes of their mean is no structure: all pixels count alike."""
    dark, light = (torch.full((1, 1, *size), value) for value in (0.1, 0.7))
    assert phase_congruency(light, FSIM_MODEL).max() == 0
    assert phase_congruency(light, PHASEPACK_MODEL).max() == 0
    edge = light.clone()
    edge[..., : size[1] // 2] = 0.1
    assert phase_congruency(edge, FSIM_MODEL).max() > 0.5
    assert fsim(dark, light).item() > 0.9


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["standard", "paper"]))
def test_fsim_is_symmetric_and_bounded(seed: int, convention) -> None:
    first, second = torch.rand(2, 2, 1, 14, 17, generator=torch.Generator().manual_seed(seed))
    values = fsim(first, second, convention=convention)
    assert torch.allclose(values, fsim(second, first, convention=convention), atol=1e-6)
    assert values.min() > 0
    assert values.max() <= 1


def test_phase_congruency_stands_on_the_edge_whatever_its_contrast() -> None:
    for low, high in ((100, 110), (0, 250)):
        step = torch.full((1, 1, 64, 64), low, dtype=torch.float64)
        step[..., 32:] = high
        profile = phase_congruency(step, FSIM_MODEL)[0, 32, 16:48]  # the far borders are an edge too: the image repeats
        assert profile.argmax().item() in (15, 16)
        assert profile.max() > 0.75 > 0.25 > profile.min()
        assert phase_congruency(step / 255, PHASEPACK_MODEL)[0, 32, 16:48].argmax().item() in (15, 16)
