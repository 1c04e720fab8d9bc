"""Weights: shipped ones are what was shipped, others are refused unless they fit, and no code in a file is run."""

from __future__ import annotations

import hashlib
import io
import pickle
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medfuse.errors import WeightsError
from medfuse.fusion import weights as weights_module
from medfuse.fusion.methods import Method
from medfuse.fusion.networks import TRAINABLE
from medfuse.fusion.networks.dilran import PUBLISHED_NAMES, Dilran
from medfuse.fusion.weights import BY_MODALITY, SHIPPED, convert, read_weights, to_bytes
from medfuse.io.pictures import read_picture
from medfuse.train import read_config
from medfuse.train.tasks import psnr_of

MODELS = Path(str(resources.files("medfuse").joinpath("models")))
#: By file of weights: whose they are.
NETWORK = {name: name for name in SHIPPED} | {
    name: network for network, files in BY_MODALITY.items() for name in files.values()
}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def published_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """A network's tensors under the published names, with one that takes no part in the result."""
    torch.manual_seed(seed)
    theirs = {ours: published for published, ours in PUBLISHED_NAMES.items()}
    tensors = {}
    for key, tensor in Dilran().state_dict().items():
        prefix = max((ours for ours in theirs if key.startswith(ours + ".")), key=len)
        tensors[theirs[prefix] + key[len(prefix) :]] = tensor
    return tensors | {"fe.conv2.0.weight": torch.zeros(3)}


def assert_refused(message: str, path: Path, name: str = "dilran") -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights(Dilran(), name, path)
    assert caught.value.exit_code == 6
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)


def assert_not_converted(message: str, path: Path) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        convert("dilran", path)
    assert caught.value.exit_code == 6
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_file_has_the_hash_that_the_code_states(name: str) -> None:
    content = (MODELS / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHIPPED[name]
    assert read_weights(TRAINABLE[NETWORK[name]](), name) == SHIPPED[name]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_card_and_a_training_stand_beside_the_shipped_file(name: str) -> None:
    assert SHIPPED[name] in (MODELS / f"{NETWORK[name]}.md").read_text(encoding="utf-8")
    assert read_config(MODELS / f"{name}.yaml").network == NETWORK[name]


def test_nothing_is_shipped_that_has_no_hash() -> None:
    assert {path.stem for path in MODELS.glob("*.safetensors")} == set(SHIPPED)


def test_loading_fills_every_tensor() -> None:
    network = Dilran()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(7)
    read_weights(network, "dilran")
    assert not any((tensor == 7).all() for tensor in network.state_dict().values())
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


@pytest.mark.parametrize("position", [3, 700, 400_000, -1])
def test_one_altered_byte_of_the_shipped_file_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, position: int
) -> None:
    content = bytearray((MODELS / "dilran.safetensors").read_bytes())
    content[position] ^= 1
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "dilran.safetensors").write_bytes(content)
    monkeypatch.setattr(weights_module.resources, "files", lambda _package: tmp_path)
    with pytest.raises(WeightsError, match=f"SHA-256 {SHIPPED['dilran'][:12]}…") as caught:
        read_weights(Dilran(), "dilran")
    assert caught.value.exit_code == 6


def test_an_absent_shipped_file_is_no_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights_module.resources, "files", lambda _package: tmp_path)
    with pytest.raises(WeightsError, match=r"cannot read dilran\.safetensors.*Install medfuse again"):
        read_weights(Dilran(), "dilran")


def test_own_weights_are_taken_and_named_by_their_hash(tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = Dilran().state_dict()
    path = tmp_path / "own.safetensors"
    path.write_bytes(to_bytes(trained, {"network": "dilran"}))
    network = Dilran()
    assert read_weights(network, "dilran", path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(torch.equal(tensor, trained[key]) for key, tensor in network.state_dict().items())


def test_what_is_no_weights_of_the_network_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.safetensors"
    text.write_text("these are no weights\n")
    assert_refused("found something else in text", text)
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    assert_refused("found something else in empty", empty)
    assert_refused("cannot read absent.safetensors: No such file", tmp_path / "absent.safetensors")
    assert_refused("cannot read", tmp_path)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((MODELS / "dilran.safetensors").read_bytes()[:-4])
    assert_refused("found something else in cut", cut)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "other"])
def test_weights_of_another_network_are_refused(tmp_path: Path, change: str) -> None:
    tensors = dict(Dilran().state_dict())
    if change == "missing":
        del tensors["encoder.norm.running_mean"]
    elif change == "extra":
        tensors["encoder.more"] = torch.zeros(1)
    elif change == "shape":
        tensors["encoder.shallow.bias"] = torch.zeros(63)
    else:
        tensors = {"weight": torch.zeros(2, 2)}
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    assert_refused("expected the tensors of dilran, found those of another network in other.*weights convert", path)


def test_no_conversion_is_advised_of_a_network_that_has_none(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2, 2)}, path)
    text = tmp_path / "text.safetensors"
    text.write_text("these are no weights\n")
    for file, message in ((path, "expected the tensors of duet, found those of another"), (text, "something else in")):
        with pytest.raises(WeightsError, match=message) as caught:
            read_weights(TRAINABLE["duet"](), "duet", file)
        assert caught.value.hint
        assert "convert" not in caught.value.hint


def test_a_path_may_be_text(tmp_path: Path) -> None:
    path = MODELS / "duet-pet.safetensors"
    assert Method("duet", weights=str(path)).weights_sha256() == SHIPPED["duet-pet"]
    with pytest.raises(WeightsError, match=r"cannot read absent\.safetensors"):
        Method("duet", weights=str(tmp_path / "absent.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    tensors = Dilran().state_dict()
    tensors["decoder.1.bias"][5] = value
    path = tmp_path / "diverged.safetensors"
    path.write_bytes(to_bytes(tensors))
    assert_refused("expected finite weights, found NaN or infinity in diverged", path)


def test_values_that_float32_has_not_are_not_finite(tmp_path: Path) -> None:
    tensors = {key: tensor.double() for key, tensor in Dilran().state_dict().items()}
    tensors["decoder.1.bias"][5] = 1e300
    path = tmp_path / "large.safetensors"
    path.write_bytes(to_bytes(tensors))
    assert_refused("expected finite weights, found NaN or infinity in large", path)


def test_negative_variances_are_refused(tmp_path: Path) -> None:
    tensors = Dilran().state_dict()
    tensors["encoder.norm.running_var"][3] = -0.5
    path = tmp_path / "negative.safetensors"
    path.write_bytes(to_bytes(tensors))
    assert_refused("expected variances, found negative ones in negative", path)


def test_negligible_weights_are_read_as_nothing(tmp_path: Path) -> None:
    """Published weights of MSRPAN hold thousands of them, and cost it a factor of thirty in time."""
    tensors = Dilran().state_dict()
    tensors["decoder.0.bias"][:3] = torch.tensor([1e-20, -1e-39, 1e-12])
    path = tmp_path / "small.safetensors"
    path.write_bytes(to_bytes(tensors))
    network = Dilran()
    read_weights(network, "dilran", path)
    assert network.decoder[0].bias[:3].tolist() == pytest.approx([0, 0, 1e-12], rel=1e-6, abs=0)
    assert network.encoder.norm.num_batches_tracked.dtype == torch.int64


def test_published_weights_of_another_network_are_refused(shared: Path) -> None:
    path = shared / "reference-networks" / "msrpan_published.safetensors"
    assert_refused("found those of another network in msrpan_published", path)
    assert_not_converted("found 23 of 23 absent or of another shape in msrpan_published", path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_published_checkpoint_is_renamed_tensor_by_tensor(tmp_path: Path, suffix: str) -> None:
    published = published_tensors()
    path = tmp_path / f"published{suffix}"
    torch.save(published, path) if suffix == ".pt" else save_file(published, path)
    converted = convert("dilran", path)
    again = tmp_path / "again.safetensors"
    again.write_bytes(to_bytes(converted, {"network": "dilran"}))
    network = Dilran()
    read_weights(network, "dilran", again)
    torch.manual_seed(0)
    for key, tensor in Dilran().state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor), key
    assert load_file(again).keys() == Dilran().state_dict().keys()


@pytest.mark.parametrize("change", ["absent bias", "absent statistics", "shape"])
def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path, change: str) -> None:
    published = published_tensors()
    key = {"absent bias": "fe.fe.convd2.bias", "absent statistics": "fe.fe.bnorm1.running_var"}.get(change)
    if key:
        del published[key]
    else:
        published["recon.recon_conv.2.weight"] = torch.zeros(2, 32, 3, 3)
    path = tmp_path / "partial.pt"
    torch.save(published, path)
    assert_not_converted("found 1 of 23 absent or of another shape in partial.pt", path)


@pytest.mark.parametrize("content", ["text", "empty", "list", "nested", "numbers", "noise"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "odd.pt"
    if content == "text":
        path.write_text("hello world\n")
    elif content == "empty":
        path.touch()
    elif content == "noise":
        path.write_bytes(np.random.default_rng(1).bytes(5000))
    else:
        torch.save({"list": [1, 2], "nested": {"state_dict": {}}, "numbers": {"fe.conv1.weight": 3}}[content], path)
    assert_not_converted("expected (a published checkpoint|the published tensors) of dilran", path)
    assert_refused("found something else in odd.pt", path)


def test_an_absent_checkpoint_is_refused(tmp_path: Path) -> None:
    assert_not_converted(r"cannot read no\.pt", tmp_path / "no.pt")
    assert_not_converted(r"cannot read no\.safetensors", tmp_path / "no.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_checkpoint_is_converted_or_refused_but_never_crashes(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "damaged.pt"
    torch.save(published_tensors(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    rng, causes = np.random.default_rng(2), set()
    for _ in range(60):
        damaged = bytearray(content)
        damaged[int(rng.integers(4000))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            convert("dilran", path)
        except WeightsError as error:
            causes.add(type(error.__cause__))
    assert len(causes) > 3  # many ways to be damaged were met, and none came through


@pytest.mark.parametrize("form", ["pickle", "torch", "torch, old form"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_code_in_a_file_is_not_run(tmp_path: Path, form: str, suffix: str) -> None:
    marker, path = tmp_path / "code-was-run", tmp_path / f"trap{suffix}"
    content = {"fe.conv1.weight": Trap(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    assert_not_converted("expected a published checkpoint of dilran, cannot read trap", path)
    assert_refused("found something else in trap", path)
    assert not marker.exists()
    # And the trap works: whoever does unpickle it runs the code.
    pickle.loads(path.read_bytes()) if form == "pickle" else torch.load(
        io.BytesIO(path.read_bytes()), weights_only=False
    )
    assert marker.exists()


def test_held_out_images_are_reconstructed(shared: Path) -> None:
    """One of each set, of cases that the training did not see."""
    config = read_config(MODELS / "dilran.yaml")
    network = Dilran()
    read_weights(network, "dilran")
    paths = []
    for name in config.sets:
        held_out = [p for p in sorted((shared / "wba" / name).glob("*.png")) if p.stem[:-3] in config.validation_cases]
        paths.append(held_out[len(held_out) // 2])
    quality = psnr_of(network, tuple(torch.from_numpy(read_picture(path).luminance)[None] for path in paths))
    assert len(quality) == 6
    assert quality.min() > 35
    assert quality.max() < 90  # of images with content, none is perfect


def test_what_it_never_saw_is_reconstructed_without_the_real_data() -> None:
    network = Dilran()
    read_weights(network, "dilran")
    row, column = torch.meshgrid(torch.linspace(-1, 1, 61), torch.linspace(-1, 1, 70), indexing="ij")
    image = (row**2 + column**2 < 0.6) * (0.5 + 0.3 * torch.sin(9 * row) * torch.cos(7 * column))
    assert psnr_of(network, (image[None],)).item() > 45
