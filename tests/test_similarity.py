"""Training of the Siamese network: its examples are what they are said to be, and it learns to tell them apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from medfuse.fusion.networks.siamese import Siamese
from medfuse.train.similarity import Similarity, altered, balanced


def pictures() -> tuple[Tensor, ...]:
    """Six images of waves and blocks, of different sizes, (1, H, W) in [0, 1]."""
    images = []
    for index in range(6):
        y, x = torch.meshgrid(torch.arange(60.0 + index), torch.arange(70.0 - index), indexing="ij")
        waves = torch.sin(x / (2 + index)) * torch.cos(y / (7 - index)) + torch.sin(x * y / (60 + 20 * index))
        blocks = ((x // (5 + index) + y // (9 - index)) % 3) / 2
        images.append((0.5 + 0.15 * waves + 0.3 * (blocks - 0.5))[None].clamp(0, 1))
    return tuple(images)


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_batch_is_made_by_the_generator_alone() -> None:
    task = Similarity(crop=24, batch=6)
    first = task.batch(pictures(), generator())
    torch.manual_seed(99)
    again = task.batch(pictures(), generator())
    other = task.batch(pictures(), generator(2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_a_batch_holds_both_kinds() -> None:
    """Alike is positively correlated, reversed negatively, elsewhere neither, over many pairs."""
    first, second, alike = Similarity(crop=32, batch=240).batch(pictures(), generator())
    assert first.shape == second.shape == (240, 1, 32, 32)
    assert alike.dtype == torch.bool
    assert alike.flatten().tolist() == [True, False] * 120
    correlation = torch.cosine_similarity(first.flatten(1), second.flatten(1))
    assert correlation[0::2].mean() > 0.5
    assert correlation[1::4].mean().abs() < 0.15
    assert correlation[3::4].mean() < -0.5


def test_what_is_altered_stays_the_same_place() -> None:
    images = torch.stack([image[:, :50, :50] for image in pictures()])
    changed = altered(images, generator())
    assert changed.min() >= 0
    assert changed.max() <= 1
    difference = (changed - images).abs().mean(dim=(1, 2, 3))
    assert difference.min() > 0.003
    assert difference.unique().numel() == len(images)
    for before, after in zip(images, changed, strict=True):
        assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.7


def test_only_what_shows_something_in_both_counts_and_both_kinds_count_alike() -> None:
    first = torch.ones(4, 1, 20, 40)
    first[..., 20:] = 0
    alike = torch.tensor([True, False, False, False])[:, None, None, None]
    values = torch.where(alike, 1.0, 0.5).expand(4, 1, 20, 40).clone()
    values[..., 30:] = 1e6
    assert balanced(values, first, first, alike) == pytest.approx(0.75)
    assert balanced(values, first * 0, first, alike) == 0


def test_the_loss_of_one_that_does_not_know() -> None:
    task, network = Similarity(crop=24, batch=8), Siamese()
    with torch.no_grad():
        network.gain.zero_()
        network.offset.zero_()
    assert task.loss(network, task.batch(pictures(), generator())).item() == pytest.approx(math.log(2), rel=1e-5)
    assert task.validate(network, pictures()) == {"score": pytest.approx(0.5)}


def test_it_learns_and_is_judged_the_same_every_time(training_device: str) -> None:
    torch.manual_seed(3)
    task, network, chance = Similarity(crop=24, batch=8, rounds=4), Siamese().to(training_device), generator()
    with torch.no_grad():
        network.gain.zero_()
    before = task.validate(network, pictures())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(60):
        network.train()
        loss = task.loss(network, tuple(tensor.to(training_device) for tensor in task.batch(pictures(), chance)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = task.validate(network, pictures())
    assert not network.training
    assert loss.item() < 0.5
    assert after["score"] > max(0.8, before["score"] + 0.2)
    assert task.validate(network, pictures()) == after


def test_every_weight_is_learnt_from_real_images(shared: Path) -> None:
    paths = sorted((shared / "wba" / "ct-mri" / "mri").glob("*.png"))[:4]
    images = tuple(torch.from_numpy(np.array(Image.open(path)))[None] / 255 for path in paths)
    torch.manual_seed(4)
    network, task = Siamese(), Similarity(crop=48, batch=8)
    task.loss(network, task.batch(images, generator())).backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
