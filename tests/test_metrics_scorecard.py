from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import flat, scene

from medfuse.errors import UnsupportedImage
from medfuse.metrics import MEASURES, SMALLEST, entropy, psnr, score, ssim

STANDARD = [measure.name for measure in MEASURES["standard"]]
PAPER = [measure.name for measure in MEASURES["paper"]]
ALONE = {"EN", "SD", "SF", "AG"}
FUSED, WAVES, BLOCKS = scene(48, 44)


def values(card) -> dict[str, list[float]]:
    rows = card.rows()
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_the_columns() -> None:
    assert ", ".join(STANDARD) == (
        "EN, SD, SF, AG, MI, Q_MI, FMI pixel, FMI gradient, Q_AB/F, N_AB/F, VIF, SCD, CC, SSIM, MS-SSIM, PSNR, FSIM"
    )
    assert ", ".join(PAPER) == "PSNR, SSIM, MI, FMI, FSIM, EN"
    assert {m.name for m in MEASURES["standard"] if m.better == "lower"} == {"N_AB/F"}


def test_a_row_an_image_with_both_sides_and_the_worse() -> None:
    card = score(FUSED, WAVES, BLOCKS)
    (row,) = card.rows()
    for name in STANDARD:
        sides = {f"{name} {side}" for side in ("structural", "functional", "worse")}
        assert sides.isdisjoint(row) if name in ALONE else sides <= set(row)
    assert row["SSIM structural"] == ssim(FUSED, WAVES).item()
    assert row["SSIM functional"] == ssim(FUSED, BLOCKS).item()
    assert row["SSIM"] == pytest.approx((row["SSIM structural"] + row["SSIM functional"]) / 2)
    assert row["SSIM worse"] == min(row["SSIM structural"], row["SSIM functional"])
    assert row["N_AB/F worse"] == max(row["N_AB/F structural"], row["N_AB/F functional"])
    for name in ("MI", "Q_MI", "VIF", "SCD"):
        assert row[name] == pytest.approx(row[f"{name} structural"] + row[f"{name} functional"])


def test_psnr_of_two_sources_by_convention() -> None:
    decibels = psnr(FUSED, WAVES).item(), psnr(FUSED, BLOCKS).item()
    errors = [((FUSED.double() - source.double()) ** 2).mean().item() for source in (WAVES, BLOCKS)]
    standard, paper = (score(FUSED, WAVES, BLOCKS, convention=c, names=["PSNR"]) for c in ("standard", "paper"))
    assert standard["PSNR"].value.item() == pytest.approx(10 * math.log10(255**2 / (sum(errors) / 2)))
    assert paper["PSNR"].value.item() == pytest.approx(sum(decibels) / 2)


def test_a_copy_of_one_source_is_seen_in_the_worse() -> None:
    card, fair = score(WAVES, WAVES, BLOCKS), score(FUSED, WAVES, BLOCKS)
    for name in ("Q_MI", "FMI pixel", "VIF", "SCD", "CC", "MS-SSIM", "PSNR"):
        assert card[name].worse is not None
        assert card[name].worse.item() < fair[name].worse.item()
    assert card["PSNR"].structural.item() == math.inf
    assert card["PSNR"].value.item() == pytest.approx(card["PSNR"].functional.item() + 10 * math.log10(2))


def test_the_papers_mi_is_the_entropy_of_the_result() -> None:
    card = score(FUSED, WAVES, BLOCKS, convention="paper")
    assert card["MI"].value.item() == entropy(FUSED).item()
    assert card["MI"].worse is None


@pytest.mark.parametrize("convention", ["standard", "paper"])
def test_a_batch_gives_what_its_images_give_alone(convention) -> None:
    batch = [torch.cat([image, image.flip(3), image.flip(2)] * 2) for image in (FUSED, WAVES, BLOCKS)]
    together = values(score(*batch, convention=convention))
    for index in range(3):
        alone = values(score(*(image[index : index + 1] for image in batch), convention=convention))
        for name, (value,) in alone.items():
            assert together[name][index] == pytest.approx(value, abs=1e-6), name
            assert together[name][index + 3] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("convention", ["standard", "paper"])
def test_eight_bits_and_floats_give_the_same(convention) -> None:
    images = FUSED, WAVES, BLOCKS
    of_floats = score(*(image.float() / 255 for image in images), convention=convention)
    assert score(*images, convention=convention).rows() == of_floats.rows()


@pytest.mark.parametrize("convention", ["standard", "paper"])
@pytest.mark.parametrize("which", [(0, 1, 2), (0,), (1,), (1, 2)])
def test_constant_images_give_no_nan(convention, which: tuple[int, ...]) -> None:
    images = [flat(0, 48, 44) if i in which else image for i, image in enumerate((FUSED, WAVES, BLOCKS))]
    found = values(score(*images, convention=convention))
    assert not [name for name, value in found.items() if math.isnan(value[0])]
    assert all(math.isfinite(value[0]) for name, value in found.items() if "PSNR" not in name)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_the_sources_may_change_places(seed: int) -> None:
    fused, first, second = torch.rand(3, 1, 1, 41, 43, generator=torch.Generator().manual_seed(seed))
    found, other = score(fused, first, second), score(fused, second, first)
    for one, two in zip(found.scores, other.scores, strict=True):
        assert one.value.item() == pytest.approx(two.value.item(), abs=1e-9)
        if one.structural is not None:
            assert one.structural.item() == pytest.approx(two.functional.item(), abs=1e-9)


def test_names_choose_the_columns_and_their_order() -> None:
    card = score(FUSED, WAVES, BLOCKS, names=["SSIM", "EN"])
    assert [one.measure.name for one in card.scores] == ["SSIM", "EN"]
    with pytest.raises(KeyError, match="VIF"):
        card["VIF"]


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="expected measures of PSNR, SSIM, MI, FMI, FSIM, EN, got VIF"):
        score(FUSED, WAVES, BLOCKS, convention="paper", names=["VIF"])
    with pytest.raises(ValueError, match="expected a convention of standard, paper, got 'mine'"):
        score(FUSED, WAVES, BLOCKS, convention="mine")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedImage, match="at least 41 × 41 pixels, found 40 × 44"):
        score(*(image[..., :40, :] for image in (FUSED, WAVES, BLOCKS)))


@pytest.mark.parametrize("convention", ["standard", "paper"])
def test_the_smallest_images_of_which_all_can_be_measured(convention) -> None:
    """Told at once, rather than by one measure after the other."""
    side = SMALLEST[convention]
    score(*scene(side, side), convention=convention)
    for small in (side - 1, 2, 1):
        with pytest.raises(UnsupportedImage, match=f"at least {side} × {side} pixels, found {small} × 50"):
            score(*scene(small, 50), convention=convention)


def test_the_published_result_reproduces_the_papers_conventions(shared) -> None:
    from PIL import Image

    ct, mr = (
        torch.from_numpy(np.array(Image.open(shared / "wba/ct-mri" / kind / "34012.png")))[None, None]
        for kind in ("ct", "mri")
    )
    fused = np.load(shared / "reference-networks/dilran_batch_statistics.npz")["ct-mri_34012"]
    (row,) = score(torch.from_numpy(fused)[None, None], mr, ct, convention="paper").rows()
    # the code published with the paper, run on this slice
    assert row["FSIM functional"] == pytest.approx(0.9342723649, abs=1e-6)
    assert row["FSIM structural"] == pytest.approx(0.6637351307, abs=1e-6)
    assert row["EN"] == pytest.approx(11.0113534082, abs=1e-9)


@pytest.mark.parametrize("convention", ["standard", "paper"])
def test_every_device_gives_what_the_cpu_gives(convention: str, device: str) -> None:
    images = FUSED, WAVES, BLOCKS
    there = score(*(image.to(device) for image in images), convention=convention)
    assert str(there.scores[0].value.device).startswith(device)
    (row,) = score(*images, convention=convention).rows()
    assert there.rows()[0] == pytest.approx(row, abs=1e-5)
