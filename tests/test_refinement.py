"""The steps that bring a fused image nearer to its sources: that they lead uphill, how far, and where they end."""

from __future__ import annotations

import pytest
import torch
from pictures import planes
from torch import Tensor
from torch.nn import functional as F

from medfuse.fusion.networks import refinement
from medfuse.fusion.networks.refinement import (
    FLAT,
    LIGHT,
    NEARLY,
    NOISE,
    RISER,
    STABLE,
    STEPS,
    TREAD,
    WINDOW,
    Edges,
    Refinement,
    Windows,
    nearer,
)
from medfuse.fusion.networks.windows import window_mean, window_sum
from medfuse.metrics.gradient import edge_preservation, fusion_artifacts
from medfuse.metrics.similarity import ssim
from medfuse.metrics.structure import vif

#: The logistic steps of Q_AB/F as published: how steep, and where.
STRENGTH, ANGLE = (15.0, 0.5), (22.0, 0.8)
#: What counts, of either source, in a step.
EITHER = torch.tensor([2.0, 0.7])[:, None, None].double()

refined = Refinement().eval()


def edges_of(sources: Tensor, level: float = 1) -> Edges:
    steps = (torch.tensor(step, dtype=sources.dtype) for step in (STRENGTH, ANGLE))
    return Edges(sources, *steps, torch.tensor(level, dtype=sources.dtype))


def smooth(seed: int, size: tuple[int, int] = (64, 64)) -> Tensor:
    return F.interpolate(planes(seed, (size[0] // 4, size[1] // 4)), size, mode="bicubic").clamp(0, 1)


def test_a_step_climbs_towards_edges_of_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the slope of what is to be large, far from the border, which is repeated."""
    monkeypatch.setattr(refinement, "FAINT", 0)
    monkeypatch.setattr(refinement, "NEARLY_TURNED", 1e-12)
    sources = 255 * torch.cat([smooth(seed, (40, 44)).double() for seed in (1, 2)], dim=1)
    fused = (0.7 * sources[:, :1] + 0.3 * sources[:, 1:] + 20 * planes(3, count=1)).requires_grad_()
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).double() / 8

    def slope(image: Tensor) -> Tensor:
        return F.conv2d(image, torch.stack([kernel, kernel.mT])[:, None], padding=1)

    found = slope(fused)
    strength = found.norm(dim=1)
    kept, counted, present, strongest = (torch.zeros_like(strength) for _ in range(4))
    for counts, source in zip(EITHER.flatten(), sources.split(1, dim=1), strict=True):
        wanted = slope(source)
        wants = wanted.norm(dim=1)
        ratio = torch.minimum(strength, wants) / torch.maximum(strength, wants)
        across = found[:, 0] * wanted[:, 1] - found[:, 1] * wanted[:, 0]
        angle = torch.atan2(across.abs(), (found * wanted).sum(dim=1).abs()) / (torch.pi / 2)
        keeps = wants * torch.sigmoid(15 * (ratio - 0.5)) * torch.sigmoid(22 * (1 - angle - 0.8))
        kept, counted = kept + keeps, counted + counts * keeps
        present, strongest = present + wants, torch.maximum(strongest, wants)
    over = (strength - strongest).detach()
    made_up = (over > 0.5) * (present - kept).detach() * strength.log()
    (counted - 7 * made_up).sum().backward()
    assert fused.grad is not None
    softly = F.max_pool2d((over.abs() <= 0.5).double(), 3, 1, 1)  # where what is made up begins to count
    exact = F.pad(softly[..., 3:-3, 3:-3] == 0, (3, 3, 3, 3))[:, None]
    uphill = edges_of(sources, level=0).uphill(fused.detach(), EITHER, torch.tensor(7.0))[exact]
    assert len(uphill) > 100
    torch.testing.assert_close(uphill, fused.grad[exact])
    assert uphill.abs().max() > 1


def test_edges_do_not_exceed_those_of_the_sources() -> None:
    """A picture whose edges are all too strong loses some of them, and is charged less for edges that are made up."""
    first, second = smooth(1), smooth(2)
    fused = (0.5 + 1.3 * (torch.maximum(first, second) - 0.5)).clamp(0, 0.8)
    better = refined(fused, first, second, torch.ones_like(fused)).clamp(0, 1)
    before, after = (fusion_artifacts(image, first, second) for image in (fused, better))
    assert (after < 0.7 * before).all()


def test_what_is_level_does_not_turn_at_once() -> None:
    """Faint slopes, whose angle is a matter of rounding, say little, and what is a source's already says nothing."""
    sources = 255 * torch.cat([smooth(1), smooth(2)], dim=1)
    faint = 100 + 1e-5 * planes(3, (64, 64))
    weights = EITHER.float(), torch.tensor(7.0)
    assert edges_of(sources).uphill(faint, *weights).abs().max() < 0.01
    alike = edges_of(torch.cat([sources[:, :1], sources[:, :1]], dim=1))
    same, other = (alike.uphill(sources[:, number : number + 1], *weights).abs().max() for number in (0, 1))
    assert same < 0.01 * other


def test_a_step_climbs_towards_windows_of_the_sources() -> None:
    """It is the slope that each window has by the pixel in its middle."""
    sources = 255 * torch.cat([planes(seed, (16, 17), 1).double() for seed in (1, 2)], dim=1)
    fused = 0.7 * sources[:, :1] + 0.3 * sources[:, 1:]
    structure, information = 30 * EITHER, 4 * EITHER.flip(0)
    uphill = Windows(sources).uphill(fused, structure, information)
    for row, column in ((5, 6), (8, 9), (10, 12)):
        window = (..., slice(row - 3, row + 4), slice(column - 3, column + 4))
        part = fused[window].clone().requires_grad_()
        value = part.new_zeros(())
        for number, source in enumerate(sources[window].unbind(dim=1)):
            variance, other = part.var(correction=0), source.var(correction=0)
            covariance = ((part[0] - part.mean()) * (source - source.mean())).mean()
            value = value + structure[number, 0, 0] * (2 * covariance + STABLE) / (variance + other + STABLE)
            rest = variance - covariance.clamp(min=0) ** 2 / other
            value = value + information[number, 0, 0] * ((variance + NOISE) / (rest + NOISE)).log()
        (slope,) = torch.autograd.grad(value, part)
        torch.testing.assert_close(uphill[0, 0, row, column], slope[0, 0, 3, 3] * WINDOW**2 / 2)


def test_it_raises_what_it_is_made_to_raise() -> None:
    first, second = smooth(1), smooth(2)
    fused = (0.6 * first + 0.4 * second + 0.05 * planes(3, (64, 64))).clamp(0, 1)
    better = refined(fused, first, second, torch.ones_like(fused))
    for measure in (ssim, vif):
        before, after = (measure(image, first) + measure(image, second) for image in (fused, better.clamp(0, 1)))
        assert (after > before).all()
    assert (edge_preservation(better.clamp(0, 1), first, second) > edge_preservation(fused, first, second)).all()


def test_steps_are_short_and_shorter_where_it_is_light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "TREAD", 1e-4)  # the steps alone, without the draw to whole treads
    first, second = planes(1), planes(2)
    fused = (first + second) / 2
    everywhere = torch.ones_like(fused)
    moved = (refined(fused, first, second, everywhere) - fused).abs() * 255
    assert 2 < moved.max() <= sum(STEPS) + NEARLY
    light = torch.ones_like(fused)
    light[..., :20] = 0.9
    stays = refined(light, 0.5 * first, 0.5 * second, torch.zeros_like(fused))
    goes = refined(light, 0.5 * first, 0.5 * second, everywhere)
    torch.testing.assert_close(stays, light, rtol=0, atol=1e-6)
    assert torch.equal(goes[..., 20:], stays[..., 20:])
    assert 0.1 < (goes - stays).abs().max() * 255 <= 0.1**LIGHT * sum(STEPS) + 1e-3


def test_what_is_nearly_a_source_is_that_source_and_what_is_further_stays_nearly() -> None:
    first = torch.full((1, 1, 1, 7), 100 / 255).double()
    second = first + 100 / 255
    away = torch.tensor([0, 2.9, -2.9, 6, -12, -29, 98])
    result = nearer(first + away / 255, first, second)
    kept = (result - first).flatten() * 255
    treads = [round(d * (1 - (3 / d) ** 4) / TREAD) for d in (6, -12, -29)]
    assert treads == [1, -3, -7]
    torch.testing.assert_close(kept, torch.tensor([0, 0, 0, *(TREAD * tread for tread in treads), 100]).double())
    assert torch.equal(result[..., :1], first[..., :1])
    assert torch.equal(result[..., 6:], second[..., 6:])


def test_differences_from_a_source_are_drawn_to_whole_treads_without_a_step() -> None:
    """They rise throughout, by at most half a tread from what they were; few lie between two treads."""
    away = torch.linspace(2 * NEARLY, 60, 20_001).double()[None, None, None]
    zero = torch.zeros_like(away)
    drawn = nearer(away / 255, zero, zero + 1) * 255
    plain = away * (1 - (NEARLY / away) ** 4)
    assert (drawn - plain).abs().max() <= TREAD / 2 + 1e-9
    rises = drawn.diff()
    assert (rises > -1e-9).all()
    assert plain.diff().min() < 1.01 * RISER * rises.max() < 1.02 * plain.diff().max()
    treads = drawn / TREAD
    assert ((treads - treads.round()).abs() > 1e-6).double().mean() == pytest.approx(RISER, abs=0.01)
    torch.testing.assert_close(nearer(1 - away / 255, zero, zero + 1), 1 - drawn / 255)


@pytest.mark.parametrize("apart", [0.5, 2.0, 5.0, 7.0, 50.0, 101.0])
def test_there_is_no_step_from_one_source_to_the_other(apart: float) -> None:
    fused = torch.linspace(100, 100 + apart, 20_001).double()[None, None, None] / 255
    one = torch.full_like(fused, 100 / 255)
    drawn = nearer(fused, one, one + apart / 255)
    assert drawn[..., 0] == one[..., 0]
    torch.testing.assert_close(drawn[..., -1], one[..., -1] + apart / 255)
    assert drawn.diff().abs().max() < 20 * fused.diff().max()
    middle = fused.shape[-1] // 2
    torch.testing.assert_close(drawn[..., middle], fused[..., middle])


def test_a_source_stays_as_it_is() -> None:
    first, second = planes(1), planes(2)
    largest = torch.maximum(first, second)
    assert torch.equal(refined(largest, first, second, torch.zeros_like(first)), largest)
    assert torch.equal(refined(first, first, first, torch.ones_like(first)), first)


def test_constant_images_have_no_way_to_go() -> None:
    grey = torch.full((1, 1, 20, 20), 0.5)
    everywhere, away = torch.ones_like(grey), 20 * TREAD / 255
    torch.testing.assert_close(refined(grey, grey - away, grey + away, everywhere), grey, rtol=0, atol=1e-4)
    assert Windows(torch.cat([grey, grey], dim=1) * 255).variance.eq(FLAT).all()


def test_window_sums_and_means_by_pooling() -> None:
    image = torch.stack([planes(1, (9, 11), 1), planes(2, (9, 11), 1)], dim=1)[:, :, 0].double()
    for side in (1, 3, 5, 7, 9, 13):
        total = F.avg_pool2d(image, side, 1, side // 2) * side**2
        torch.testing.assert_close(window_sum(image, side), total)
        mean = F.avg_pool2d(image, side, 1, side // 2, count_include_pad=False)
        torch.testing.assert_close(window_mean(image, side), mean)


def test_a_training_sees_the_steps_and_their_slopes() -> None:
    """Slopes by each constant are those of differences, and finite where sources are black, alike or white."""
    first, second = planes(1, (24, 20)).double(), planes(2, (24, 20)).double()
    fused = 0.5 * first + 0.5 * second
    for image, shade in ((first, 0), (second, 0), (fused, 0)):
        image[..., :5, :] = shade
    first[..., 15:18, :], second[..., 15:18, :], fused[..., 18:, :8] = 0.4, 0.4, 1
    share = torch.ones_like(first)
    module = Refinement().double().requires_grad_(True)
    result = module(fused, first, second, share)
    assert torch.equal(result, module.stepped(fused, first, second, share))
    assert torch.equal(nearer(result, first, second), Refinement().double().eval()(fused, first, second, share))
    counts = planes(3, (24, 20)).double()
    (counts * result).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        first_one, found = parameter.data.view(-1)[:1], []
        for away in (1e-5, -2e-5):
            first_one += away
            found.append((counts * module(fused, first, second, share)).sum())
        first_one += 1e-5
        slope = (found[0] - found[1]).detach() / 2e-5
        torch.testing.assert_close(parameter.grad.view(-1)[0], slope, rtol=1e-3, atol=1e-5, msg=name)
