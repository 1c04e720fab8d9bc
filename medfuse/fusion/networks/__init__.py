"""Learned fusion networks, one a file. Each has `encode` and `decode`, and a table of its published tensor names."""

from __future__ import annotations

from collections.abc import Callable

from medfuse.fusion.networks.autoencoder import AutoEncoder
from medfuse.fusion.networks.dilran import Dilran
from medfuse.fusion.networks.dilran_compiled import CompiledDilran
from medfuse.fusion.networks.msdra import Msdra
from medfuse.fusion.networks.msrpan import Msrpan

#: By name; each call makes an untrained network.
NETWORKS: dict[str, Callable[[], AutoEncoder]] = {"dilran": Dilran, "msrpan": Msrpan, "msdra": Msdra}

#: The networks that have a form for use only: a trained network in, what computes the same with less out.
COMPILED: dict[str, Callable[..., AutoEncoder]] = {"dilran": CompiledDilran}

__all__ = ["COMPILED", "NETWORKS", "AutoEncoder", "Dilran", "Msdra", "Msrpan"]
