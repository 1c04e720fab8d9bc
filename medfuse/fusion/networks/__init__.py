"""Learned fusion networks, one a file. Each has `encode` and `decode`, and a table of its published tensor names."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from medfuse.fusion.networks.dilran import Dilran
from medfuse.fusion.networks.dilran_compiled import CompiledDilran
from medfuse.fusion.networks.msdra import Msdra
from medfuse.fusion.networks.msrpan import Msrpan

#: By name; each call makes an untrained network.
NETWORKS: dict[str, Callable[[], nn.Module]] = {"dilran": Dilran, "msrpan": Msrpan, "msdra": Msdra}

#: The networks that have a form for use only: a trained network in, what computes the same with less out.
COMPILED: dict[str, Callable[..., nn.Module]] = {"dilran": CompiledDilran}

__all__ = ["COMPILED", "NETWORKS", "Dilran", "Msdra", "Msrpan"]
