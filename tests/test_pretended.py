"""What the pretended GPU catches, as a real one would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import pytest
import torch
from pretended import pretended_gpu
from torch import Tensor

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real CUDA device is here")

HERE = torch.arange(6.0)
LINEAR = torch.nn.Linear(6, 2).requires_grad_(False)


@pytest.fixture
def there() -> Iterator[Tensor]:
    with pretended_gpu() as name:
        yield HERE.to(name)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda tensor: tensor + HERE,
        lambda tensor: torch.cat([tensor, HERE]),
        lambda tensor: tensor[HERE.long()],
        lambda tensor: tensor.__setitem__(slice(2), HERE[:2]),
        lambda tensor: torch.nn.functional.linear(tensor, HERE[None]),
        lambda tensor: tensor.add_(HERE),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_two_devices_in_one_operation(mixed: Callable[[Tensor], object], inference: bool, there: Tensor) -> None:
    with torch.inference_mode(inference), pytest.raises(RuntimeError, match=r"on cuda:0 and on the CPU"):
        mixed(there)


def test_numpy_without_a_copy(there: Tensor) -> None:
    with pytest.raises((TypeError, RuntimeError), match="numpy"):
        there.numpy()


@pytest.mark.parametrize(
    "computed",
    [
        lambda tensor: tensor * 2 + 1,
        lambda tensor: tensor.clone()[2:].mul_(3),
        lambda tensor: torch.fft.fft(tensor).conj().imag * tensor.new_tensor([2]),
        lambda tensor: torch.where(tensor > 2, tensor, torch.zeros(6, device=tensor.device)),
        lambda tensor: deepcopy(LINEAR).to(tensor.device)(tensor),
    ],
)
def test_what_stays_on_it_is_computed_as_on_the_cpu(computed: Callable[[Tensor], Tensor], there: Tensor) -> None:
    result = computed(there)
    assert str(result.device) == "cuda:0"
    assert torch.equal(result.cpu(), computed(HERE))


def test_it_is_gone_afterwards() -> None:
    with pretended_gpu() as name:
        torch.zeros(2, device=name)
    assert not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|cuda"):
        torch.zeros(2, device="cuda:0")
