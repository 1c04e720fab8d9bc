"""What is timed, behind one call: luminances (N, H, W) float32 in [0, 1] in, one of the same form out, host to host.

`reference` is the published arithmetic, `NAME` a method of medfuse as `medfuse bench` runs it (learned ones in their
compiled form), `NAME-plain` a network as it is trained.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.fusion import METHODS, READY, Engine
from medfuse.fusion.networks import FUSERS, NETWORKS
from performing.reference import Plain, PlainFuser, Published

Planes: TypeAlias = NDArray[np.float32]
Fuse: TypeAlias = Callable[[Planes, Planes], Planes]
Rule: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

REFERENCE = "reference"
OURS = "dilran"
PLAIN = "-plain"
PRECISIONS = ("float32", "tf32", "bfloat16")
#: The networks that have a plain form.
TRAINED = (*FUSERS, *NETWORKS)
#: The methods that run as they come, and the networks as they are trained.
FORMS = (REFERENCE, *READY, *(f"{name}{PLAIN}" for name in TRAINED))
USUAL = (REFERENCE, *READY)


def is_learned(form: str) -> bool:
    """Whether a network takes part."""
    method = form.removesuffix(PLAIN)
    return method == REFERENCE or METHODS[method].network is not None


def has_plain(form: str) -> bool:
    """Whether a form has a plain network to be held against."""
    return form == REFERENCE or form.removesuffix(PLAIN) in TRAINED


@cache
def engine(method: str, device: str, precision: str) -> Engine:
    """A warm engine.

    Raises:
        ValueError: The engine knows no such precision, or not on that device.
    """
    options: dict[str, Any] = {"precision": precision}
    if "precision" not in inspect.signature(Engine).parameters:
        if precision != "float32":
            raise ValueError(f"expected an engine that knows {precision}, found one of float32 alone")
        options = {}
    return Engine(method, device=device, **options)


@cache
def rule(form: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Rule:
    """The plain arithmetic of a learned form, tensors in and out; of `OURS` the published one.

    Raises:
        ValueError: It has no network that fuses by itself.
    """
    method = form.removesuffix(PLAIN)
    if form in (REFERENCE, OURS):
        return Published(device, dtype)
    if not has_plain(form):
        raise ValueError(f"expected a form of {', '.join((REFERENCE, *TRAINED))}, got {form}")
    if method in FUSERS:
        return PlainFuser(method, device, dtype)
    return Plain(method, METHODS[method].strategies[0], device, dtype)


@cache
def fuse_of(form: str, device: str = "cpu", precision: str = "float32", batch: int = 0) -> Fuse:
    """A form ready to run.

    Args:
        form: Of `FORMS`.
        device: As for `Engine`.
        precision: Of `PRECISIONS`; the reference and the plain networks know float32 alone.
        batch: Slices at a time; 0 leaves it to the engine.
    """
    if form != REFERENCE and not form.endswith(PLAIN):
        fuse_planes = engine(form, device, precision).fuse_planes
        return partial(fuse_planes, batch=batch) if batch else fuse_planes
    if precision != "float32":
        raise ValueError(f"expected float32 of {form}, got {precision}")
    plain = rule(form, device)

    def fuse(structural: Planes, functional: Planes) -> Planes:
        tensors = (torch.from_numpy(planes)[:, None].to(device) for planes in (structural, functional))
        return plain(*tensors)[:, 0].cpu().numpy()

    return fuse


def exact(form: str, structural: Planes, functional: Planes) -> NDArray[np.float64]:
    """What the plain form of a learned method gives in float64."""
    tensors = (torch.from_numpy(planes)[:, None].double() for planes in (structural, functional))
    return rule(form, dtype=torch.float64)(*tensors)[:, 0].numpy()
