"""Several processes, one a GPU, that train one network together; `torchrun` starts them and says who is who."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Process:
    """This process among those that train.

    Args:
        device: Where it trains.
        rank: Its number, from 0; the first writes and reports.
        count: How many there are.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and reports."""
        return self.rank == 0

    def share(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Its share of a batch that all processes drew alike, on its device."""
        return tuple(part[self.rank :: self.count].to(self.device) for part in batch)

    def joined(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over all processes."""
        if self.count == 1:
            return network
        return DistributedDataParallel(network, [self.device] if self.device.type == "cuda" else None)

    def agreed(self, decision: bool) -> bool:
        """What the first process decided."""
        if self.count == 1:
            return decision
        told = torch.tensor(int(decision), device=self.device)
        distributed.broadcast(told, src=0)
        return bool(told.item())


@contextmanager
def this_process(device: torch.device) -> Iterator[Process]:
    """This process, alone, or one of those that `torchrun` started (its WORLD_SIZE, RANK and LOCAL_RANK)."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Process(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Process(device, distributed.get_rank(), count)
        distributed.barrier()  # the first is still writing when the others are done
    finally:
        distributed.destroy_process_group()
