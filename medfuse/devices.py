"""Where torch computes."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a CUDA or Apple GPU where there is one, otherwise the CPU.

    Raises:
        ValueError: No such device here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"expected a device of auto, cpu, cuda, cuda:N or mps, got {name!r}") from error
    there = {"cpu": True, "mps": mps, "cuda": cuda and (device.index or 0) < torch.cuda.device_count()}
    if not there.get(device.type, False):
        raise ValueError(f"this machine has no device {name!r}; use --device auto or cpu")
    return device
