"""Weights of the networks: the ones medfuse ships (by name, hash-checked) and a user's own (by path).

Only safetensors files are read, which hold numbers and no code. `convert` makes them of published checkpoints.
"""

from __future__ import annotations

import hashlib
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from medfuse.errors import WeightsError
from medfuse.fusion.networks import FEATURES, NETWORKS, dilran, msdra, msrpan, vgg
from medfuse.volume import Modality

#: SHA-256 of each file of weights in medfuse/models.
SHIPPED = {
    "duet": "9ce218a8c637134855b9ca7a7418f0bbfdc6d71a753e4a25216a77029b431f6c",
    "duet-ct": "d5ad1f66f6ffae769634dbd5fd29128e32e8214c5f89a51a26e31eadc238b409",
    "duet-pet": "016481818bc265b2b7c9dc07d7d91aeb7c7919a7e016d1382927e13c05f01d46",
    "duet-spect": "e273be1f7cd1a43ba330382a538f5c31d1b10752a594bafa400fafe7c97a7572",
    "dilran": "0df707fb6c03a8076542c93010b841f7bf3e35e29ed38e2a2dfc64fb16961b64",
    "eh-dran": "c5c2c53ed9159e3a3dc0ea8f43139048a334dffbbe62615ac2300339ee09cf52",
    "msrpan": "c22f1b351368b0b4e3ba46036c915184afb44a703a5e2a32a97b102b4cf04b60",
    "msdra": "fdb5dc9f9504d910fe6db942ed6a85b3f3e8ed288db67564d100d04dc01ea979",
    "siamese": "ccf8606190e565493d23c1db9ce32326ce6ce7dafcda63689cade9a3951ad363",
}

#: The shipped weights for functional images of one modality beside MR, of networks that have such beside those for all.
BY_MODALITY = {"duet": {Modality.CT: "duet-ct", Modality.PT: "duet-pet", Modality.NM: "duet-spect"}}

#: Weights smaller than this are read as 0. They leave no trace in float32, but products of two of them are subnormal
#: numbers, with which a CPU computes some thirty times more slowly; the published weights of MSRPAN are full of them.
NEGLIGIBLE = 1e-18

#: Per network: the prefixes of its published tensors → ours.
PUBLISHED = {
    "dilran": dilran.PUBLISHED_NAMES,
    "msrpan": msrpan.PUBLISHED_NAMES,
    "msdra": msdra.PUBLISHED_NAMES,
}
#: The networks whose published weights can be converted.
CONVERTIBLE = (*PUBLISHED, "vgg19")

#: Where torchvision publishes VGG19; the end of its name is the beginning of its SHA-256.
VGG19_ADDRESS = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"


def modality_beside(structural: Modality, functional: Modality) -> Modality:
    """The functional modality as a method is told it: OTHER beside a CT, for which the weights for all do better.

    Those for one modality have learned from pairs with MR (docs/method.md has figures). A structural image of which
    nothing says what it is counts as one.
    """
    return Modality.OTHER if structural is Modality.CT else functional


def read_weights(network: nn.Module, name: str, path: str | Path | None = None) -> str:
    """Load weights into a network and return their SHA-256, in hexadecimal.

    Args:
        network: The module to fill; every tensor must be there, with its shape, and no other.
        name: The name of the shipped file: the network's, or one of `BY_MODALITY`.
        path: A safetensors file to use instead.

    Raises:
        WeightsError: The file is absent, damaged, not what medfuse shipped, or of another network; or none was given of
            a network whose weights medfuse does not ship.
    """
    if path is None and name not in SHIPPED:
        raise WeightsError(
            f"expected weights of {name}, found none: medfuse ships those of {', '.join(SHIPPED)} only",
            "Make them with `medfuse weights download` (VGG19), `medfuse weights convert` or `medfuse train`, and give "
            "them with --weights",
        )
    shipped = resources.files("medfuse").joinpath("models", f"{name}.safetensors")
    file = shipped if path is None else Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"expected a file of weights, cannot read {file.name}: {error.strerror}",
            "Install medfuse again" if path is None else "Check the path",
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if path is None and digest != SHIPPED[name]:
        raise WeightsError(
            f"expected the shipped weights of {name} (SHA-256 {SHIPPED[name][:12]}…), found {digest[:12]}…",
            "Install medfuse again",
        )
    convert_it = "Convert a published checkpoint with: medfuse weights convert" if name in CONVERTIBLE else ""
    try:
        found = load(content)
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"expected weights of {name} in safetensors form, found something else in {file.name}",
            convert_it or "Give a file as medfuse train writes it",
        ) from error
    try:
        tensors = {key: _without_negligible(tensor) for key, tensor in found.items()}
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(
            f"expected the tensors of {name}, found those of another network in {file.name}",
            convert_it or "Give weights of this network, or choose the one that they are of",
        ) from error
    loaded = network.state_dict()  # in the network's precision, in which large values may be infinite
    if not all(bool(tensor.isfinite().all()) for tensor in loaded.values()):
        raise WeightsError(f"expected finite weights, found NaN or infinity in {file.name}", "Train the network again")
    if any(bool((tensor < 0).any()) for key, tensor in loaded.items() if key.endswith("running_var")):
        raise WeightsError(f"expected variances, found negative ones in {file.name}", "Train the network again")
    return digest


def _without_negligible(tensor: Tensor) -> Tensor:
    return torch.where(tensor.abs() < NEGLIGIBLE, 0, tensor)


def convert(name: str, checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a published checkpoint under medfuse's names; those that take no part in the result are dropped.

    Args:
        name: One of `CONVERTIBLE`.
        checkpoint: The `.pt` as published (read without running any code in it, wherever it was saved) or the same as
            safetensors; of VGG19 torchvision's state_dict, or the Caffe values as Keras names them (`.npz`).

    Raises:
        WeightsError: The file cannot be read, or does not hold that network.
    """
    published = _read_checkpoint(name, checkpoint)
    tensors = vgg.renamed(published) if name == "vgg19" else _renamed(published, PUBLISHED[name])
    with torch.device("meta"):
        expected = {**NETWORKS, **FEATURES}[name]().state_dict()
    wrong = [key for key in expected if key not in tensors or tensors[key].shape != expected[key].shape]
    if wrong:
        raise WeightsError(
            f"expected the published tensors of {name}, found {len(wrong)} of {len(expected)} absent or of another "
            f"shape in {checkpoint.name}, {wrong[0]} first",
            "Check that the checkpoint is of this network",
        )
    if not all(bool(tensors[key].isfinite().all()) for key in expected):
        raise WeightsError(f"expected finite weights, found NaN or infinity in {checkpoint.name}", "Get the file again")
    return {key: tensors[key].contiguous() for key in expected}


def _renamed(published: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    return {
        names[prefix] + key[len(prefix) :]: tensor
        for key, tensor in published.items()
        for prefix in names
        if key.startswith(prefix + ".")
    }


def download_vgg19(address: str = VGG19_ADDRESS) -> dict[str, Tensor]:
    """VGG19 as torchvision publishes it (548 MB), checked against the hash in its name, as `convert` returns it.

    Args:
        address: Of a `.pth` whose name ends in a dash and the first digits of its SHA-256.

    Raises:
        WeightsError: It cannot be fetched, or is not what was published.
    """
    with tempfile.TemporaryDirectory(prefix="medfuse-") as folder:
        file = Path(folder, "vgg19.pth")
        try:
            torch.hub.download_url_to_file(address, str(file), hash_prefix=Path(address).stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                "expected the published weights of vgg19, could not fetch them from where torchvision keeps them",
                "Fetch the file elsewhere, and give it to: medfuse weights convert --network vgg19",
            ) from error
        return convert("vgg19", file)


def _read_checkpoint(name: str, checkpoint: Path) -> dict[str, Tensor]:
    try:
        if checkpoint.suffix == ".npz":
            with np.load(checkpoint, allow_pickle=False) as arrays:
                published = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        elif checkpoint.suffix == ".safetensors":
            published = load_file(checkpoint)
        else:
            published = torch.load(checkpoint, map_location="cpu", weights_only=True)
        return {str(key): tensor for key, tensor in published.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(
            f"expected a published checkpoint of {name}, cannot read {checkpoint.name}",
            "Give a .pt that holds a state_dict, a .safetensors or an .npz",
        ) from error


def to_bytes(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors in safetensors form."""
    return save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, metadata)
