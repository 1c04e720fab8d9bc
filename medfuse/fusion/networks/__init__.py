"""The networks, one a file."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from medfuse.fusion.networks.autoencoder import AutoEncoder
from medfuse.fusion.networks.dilran import Dilran
from medfuse.fusion.networks.dilran_compiled import CompiledDilran
from medfuse.fusion.networks.duet import Duet
from medfuse.fusion.networks.eh_dran import EhDran
from medfuse.fusion.networks.eh_dran_compiled import CompiledEhDran
from medfuse.fusion.networks.msdra import Msdra
from medfuse.fusion.networks.msdra_compiled import CompiledMsdra
from medfuse.fusion.networks.msrpan import Msrpan
from medfuse.fusion.networks.msrpan_compiled import CompiledMsrpan
from medfuse.fusion.networks.siamese import Siamese
from medfuse.fusion.networks.vgg import Vgg19

#: The networks that fuse by features of either image, by name; each call makes an untrained one.
NETWORKS: dict[str, Callable[[], AutoEncoder]] = {
    "dilran": Dilran,
    "msrpan": Msrpan,
    "msdra": Msdra,
    "eh-dran": EhDran,
}

#: The networks that look at both images at once: `network(structural, functional)`.
FUSERS: dict[str, Callable[[], nn.Module]] = {"duet": Duet}

#: The networks whose features serve another method.
FEATURES: dict[str, Callable[[], nn.Module]] = {"vgg19": Vgg19, "siamese": Siamese}

#: The networks that `medfuse train` trains.
TRAINABLE: dict[str, Callable[[], nn.Module]] = {**FUSERS, **NETWORKS, "siamese": Siamese}

#: Of each its form for use only: a trained network in, what computes the same with less out.
COMPILED: dict[str, Callable[..., AutoEncoder]] = {
    "dilran": CompiledDilran,
    "msrpan": CompiledMsrpan,
    "msdra": CompiledMsdra,
    "eh-dran": CompiledEhDran,
}

__all__ = [
    "COMPILED",
    "FEATURES",
    "FUSERS",
    "NETWORKS",
    "TRAINABLE",
    "AutoEncoder",
    "Dilran",
    "Duet",
    "EhDran",
    "Msdra",
    "Msrpan",
    "Siamese",
    "Vgg19",
]
