"""Weights of the networks: the ones medfuse ships (by name, hash-checked) and a user's own (by path).

Only safetensors files are read, which hold numbers and no code. `convert` makes them of published checkpoints.
"""

from __future__ import annotations

import hashlib
import pickle
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from medfuse.errors import WeightsError
from medfuse.fusion.networks import dilran

#: SHA-256 of each file of weights in medfuse/models.
SHIPPED = {"dilran": "0df707fb6c03a8076542c93010b841f7bf3e35e29ed38e2a2dfc64fb16961b64"}

#: Per network: the prefixes of its published tensors → ours.
PUBLISHED = {"dilran": dilran.PUBLISHED_NAMES}


def read_weights(network: nn.Module, name: str, path: Path | None = None) -> str:
    """Load weights into a network and return their SHA-256, in hexadecimal.

    Args:
        network: The module to fill; every tensor must be there, with its shape, and no other.
        name: The network's name, which chooses the shipped file.
        path: A safetensors file to use instead.

    Raises:
        WeightsError: The file is absent, damaged, not what medfuse shipped, or of another network.
    """
    if path is None:
        content = resources.files("medfuse").joinpath("models", f"{name}.safetensors").read_bytes()
    else:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"expected a file of weights, cannot read {path.name}: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if path is None and digest != SHIPPED[name]:
        raise WeightsError(
            f"expected the shipped weights of {name} (SHA-256 {SHIPPED[name][:12]}…), found {digest[:12]}…",
            "Install medfuse again",
        )
    try:
        network.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"expected weights of {name} in safetensors form, found something else in {path.name if path else name}",
            "Convert a published checkpoint with: medfuse weights convert",
        ) from error
    return digest


def convert(name: str, checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a published checkpoint under medfuse's names; those that take no part in the result are dropped.

    Args:
        name: The network: "dilran".
        checkpoint: The `.pt` as published (read without running any code in it, wherever it was saved) or the same as
            safetensors.

    Raises:
        WeightsError: The file cannot be read, or does not hold that network.
    """
    try:
        if checkpoint.suffix == ".safetensors":
            published = load_file(checkpoint)
        else:
            published = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsError(
            f"expected a published checkpoint of {name}, cannot read {checkpoint.name}",
            "Give a .pt that holds a state_dict, or a .safetensors",
        ) from error
    names = PUBLISHED[name]
    tensors = {
        names[prefix] + key[len(prefix) :]: tensor.contiguous()
        for key, tensor in published.items()
        for prefix in names
        if key.startswith(prefix + ".")
    }
    missing = [prefix for prefix, ours in names.items() if f"{ours}.weight" not in tensors]
    if missing:
        raise WeightsError(
            f"expected the published tensors of {name}, found none named {missing[0]}.* in {checkpoint.name}",
            "Check that the checkpoint is of this network",
        )
    return tensors


def to_bytes(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors in safetensors form."""
    return save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, metadata)
