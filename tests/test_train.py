"""Training: it learns, can be repeated, keeps its validation cases out, and says what is wrong with its input."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from medfuse.errors import InputError, OutputError, WeightsError
from medfuse.fusion.methods import Method
from medfuse.fusion.networks.dilran import Dilran
from medfuse.fusion.weights import read_weights
from medfuse.io.pictures import read_picture
from medfuse.train import Config, read_config, train
from medfuse.train.config import PairSet
from medfuse.train.fusing import CHARGES, SMALLEST, Examples, Fusing
from medfuse.train.images import Images, case_of, crops, read_images, read_pairs
from medfuse.train.losses import gradient, l2
from medfuse.train.tasks import psnr_of, task_of

SHIPPED_CONFIG = Path(str(resources.files("medfuse").joinpath("models", "dilran.yaml")))
CONFIG = Config(
    network="dilran",
    sets=("grey", "color"),
    validation_cases=("7", "12"),
    losses={"l2": 1.0, "gradient": 0.2},
    report_every=5,
    crop=32,
    batch=2,
    steps=12,
    learning_rate=2e-3,
    freeze_statistics_after=0.5,
    seed=5,
)


def blob(seed: int, height: int = 40, width: int = 37) -> np.ndarray:
    """A smooth image, uint8, black at the border."""
    rng = np.random.default_rng(seed)
    row, column = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    waves = 0.6 + 0.4 * np.sin(rng.uniform(3, 9) * row + rng.uniform(3, 9) * column)
    return (255 * waves * (row**2 + column**2 < rng.uniform(0.5, 0.9))).astype(np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two sets of cases 3, 7 and 12; case 3 is case 3 in both."""
    for name in ("grey", "color"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index, stem in enumerate(("3001", "3002", "7001", "12010")):
            image = blob(index)
            if name == "color":
                image = np.stack([image, image // 2, 255 - image], axis=-1)
            Image.fromarray(image).save(tmp_path / "data" / name / f"{stem}.png")
    return tmp_path / "data"


def images_of(data: Path, cases: tuple[str, ...] = CONFIG.validation_cases) -> Images:
    return read_images(data, CONFIG.sets, cases, CONFIG.case)


def read_log(out: Path) -> list[dict[str, float]]:
    with (out / "log.csv").open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def loaded(path: Path) -> Dilran:
    network = Dilran()
    read_weights(network, "dilran", path)
    return network


def written(config: dict[str, object], path: Path) -> Path:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def shipped() -> dict[str, object]:
    content: dict[str, object] = yaml.safe_load(SHIPPED_CONFIG.read_text(encoding="utf-8"))
    return content


def test_it_learns_and_its_weights_load_back(data: Path, tmp_path: Path, training_device: str) -> None:
    out = tmp_path / "runs" / "first"
    figures = train(replace(CONFIG, steps=30), data, out, training_device)
    log = read_log(out)
    assert [entry["step"] for entry in log] == [5, 10, 15, 20, 25, 30]
    assert log[-1]["loss"] < log[0]["loss"] / 3
    assert log[-1]["score"] > log[0]["score"] + 3
    assert figures["lowest"] <= figures["score"] == pytest.approx(max(entry["score"] for entry in log), abs=0.05)
    images = images_of(data)
    assert psnr_of(loaded(out / "dilran.safetensors"), images.validation).mean().item() == pytest.approx(
        figures["score"], abs=0.05
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint.pt",
        "dilran.safetensors",
        "log.csv",
        "training.json",
    ]
    made = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert made["figures"] == figures
    assert made["images"] == {"training": 4, "validation": 4}
    assert made["weights_sha256"] == hashlib.sha256((out / "dilran.safetensors").read_bytes()).hexdigest()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data: Path, tmp_path: Path) -> None:
    contents = []
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        torch.manual_seed(len(contents))  # whatever was drawn before
        train(replace(CONFIG, steps=4, seed=seed), data, tmp_path / name)
        contents.append((tmp_path / name / "dilran.safetensors").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_it_goes_on_from_other_weights(data: Path, tmp_path: Path) -> None:
    train(CONFIG, data, tmp_path / "first")
    start = tmp_path / "first" / "dilran.safetensors"
    before = psnr_of(loaded(start), images_of(data).validation).mean().item()
    for name, config in (("one", replace(CONFIG, steps=1, learning_rate=1e-9)), ("two", CONFIG)):
        figures = train(config, data, tmp_path / name, start=start)
        made = json.loads((tmp_path / name / "training.json").read_text(encoding="utf-8"))
        assert made["start_sha256"] == hashlib.sha256(start.read_bytes()).hexdigest()
        assert figures["score"] == pytest.approx(before, abs=0.1) if name == "one" else figures["score"] > before
    absent = tmp_path / "absent.safetensors"
    resumed = train(CONFIG, data, tmp_path / "two", resume=True, start=absent)
    assert resumed["score"] == figures["score"]
    assert json.loads((tmp_path / "two" / "training.json").read_text(encoding="utf-8")) == made
    with pytest.raises(WeightsError, match=r"cannot read absent\.safetensors"):
        train(CONFIG, data, tmp_path / "three", start=absent)
    assert not (tmp_path / "three").exists()


def test_pairs_are_trained_on_and_every_set_has_its_own_charges(data: Path, tmp_path: Path) -> None:
    keys = {name: value for name, value in shipped().items() if name != "sets"}
    content = keys | {
        "network": "duet",
        "pairs": [
            {"structural": "grey", "functional": "color", "tracer": True, "losses": {"order": 2.0, "peaks": 1.0}},
            {"structural": "color", "functional": "grey", "times": 3, "losses": {"edges": 3.0}, "free": {"edges": 0.1}},
        ],
        "losses": {"edges": 1.0, "order": 0.5},
        "free": {"edges": 0.2},
        "validation_cases": ["7", "12"],
        **{"crop": 32, "batch": 2, "steps": 3, "report_every": 3},
    }
    config = read_config(written(content, tmp_path / "duet.yaml"))
    task = task_of(config, None, "cpu")
    assert isinstance(task, Fusing)
    assert [one.weights for one in task.charges] == [
        {"edges": 1.0, "order": 2.0, "peaks": 1.0},
        {"edges": 3.0, "order": 0.5},
    ]
    assert [one.free for one in task.charges] == [{"edges": 0.2}, {"edges": 0.1}]
    images = read_pairs(data, config.pairs, config.validation_cases, config.case)
    assert [image[3].unique().tolist() for image in images.training] == [[0], [0], *[[1]] * 6]
    assert [bool(image[2].any()) for image in images.training] == [True, True, *[False] * 6]
    first, last = read_picture(data / "grey" / "3001.png"), read_picture(data / "color" / "3002.png")
    assert torch.equal(images.training[0][0], torch.from_numpy(first.luminance))
    assert torch.equal(images.training[-1][0], torch.from_numpy(last.luminance))
    figures = train(config, data, tmp_path / "out")
    assert figures.keys() >= {"score", "edges", "order", "peaks"}
    method = Method("duet", weights=tmp_path / "out" / "duet.safetensors")
    assert method(torch.rand(1, 1, 20, 20), torch.rand(1, 1, 20, 20)).isfinite().all()


def test_a_part_learns_while_the_rest_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    pairs = (PairSet("grey", "color"), PairSet("color", "grey"))
    config = replace(CONFIG, network="duet", sets=(), pairs=pairs, losses={"edges": 1.0}, crop=32, batch=2, steps=60)
    start = Path(str(resources.files("medfuse") / "models" / "duet.safetensors"))
    refining = replace(config, only="refinement", learning_rate=0.03)
    before = train(replace(refining, learning_rate=1e-9), data, tmp_path / "before", start=start)
    after = train(refining, data, tmp_path / "after", start=start)
    assert after["score"] > before["score"] + 0.002
    shipped, learned = load_file(start), load_file(tmp_path / "after" / "duet.safetensors")
    changed = {name for name, tensor in learned.items() if not torch.equal(tensor, shipped[name])}
    assert changed == {name for name in shipped if name.startswith("refinement.")}
    train(replace(config, steps=3, learning_rate=1e-3), data, tmp_path / "whole", start=start)
    whole = load_file(tmp_path / "whole" / "duet.safetensors")
    changed = {name for name, tensor in whole.items() if not torch.equal(tensor, shipped[name])}
    assert changed == {name for name in shipped if not name.startswith("refinement.")}
    for other, expected in (
        (replace(config, only="first"), "refinement"),
        (replace(CONFIG, only="encoder"), "nothing"),
    ):
        with pytest.raises(InputError, match=f"expected {expected} as what learns only, found {other.only}"):
            train(other, data, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("losses", "crop", "message"),
    [
        ({"information": 1.0}, 32, "expected a crop of at least 41 pixels for these losses, found 32"),
        ({"edges": 1.0, "similarity": 1.0}, 8, "expected a crop of at least 11 pixels for these losses, found 8"),
        ({"similarity": 1.0}, 11, "expected validation images of at least 11 pixels a side, found one of 9"),
        ({"edges": 1.0}, 48, "expected training images of at least 48 pixels a side, found one of 37"),
    ],
)
def test_crops_and_images_too_small_for_a_loss_are_refused_before_the_training(
    data: Path, tmp_path: Path, losses: dict[str, float], crop: int, message: str
) -> None:
    for name in ("grey", "color"):
        Image.fromarray(blob(1, 9, 20)).save(data / name / "7001.png")
    pairs = (PairSet("grey", "color"),)
    config = replace(CONFIG, network="duet", sets=(), pairs=pairs, losses=losses, crop=crop)
    with pytest.raises(InputError, match=message):
        train(config, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", CHARGES)
def test_every_charge_is_finite_at_its_smallest_side(name: str) -> None:
    side = SMALLEST.get(name, 2)
    planes = torch.rand((4, 2, 1, side, side), generator=torch.Generator().manual_seed(0))
    assert CHARGES[name](Examples(*planes)).isfinite().all()


def test_statistics_are_frozen_when_the_config_says(data: Path, tmp_path: Path) -> None:
    """Batch norm counts the batches it has seen: twice a step, since it serves in two places."""
    for share, steps in ((0.5, 3), (0.0, 0), (1.0, 6)):
        train(replace(CONFIG, steps=6, freeze_statistics_after=share), data, tmp_path / str(share))
        network = loaded(tmp_path / str(share) / "dilran.safetensors")
        assert network.encoder.norm.num_batches_tracked == 2 * steps


def test_the_log_has_the_learning_rate_that_a_step_was_taken_with(data: Path, tmp_path: Path) -> None:
    """One cycle begins with a 25th of its peak."""
    train(replace(CONFIG, steps=10, report_every=1), data, tmp_path / "out")
    with (tmp_path / "out" / "log.csv").open(encoding="utf-8") as log:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(log)]
    assert rates[0] == pytest.approx(CONFIG.learning_rate / 25)
    assert rates.index(max(rates)) == 2
    assert max(rates) == pytest.approx(CONFIG.learning_rate)


def test_validation_cases_are_never_in_training(data: Path) -> None:
    images = images_of(data)
    assert (len(images.training), len(images.validation)) == (4, 4)
    expected = [read_picture(data / name / f"300{index}.png") for name in CONFIG.sets for index in (1, 2)]
    for image, picture in zip(images.training, expected, strict=True):
        np.testing.assert_array_equal(image[0], picture.luminance)
    for image in images.validation:
        assert not any(torch.equal(image, trained) for trained in images.training)


def test_a_case_is_held_out_whole_however_its_name_begins(data: Path) -> None:
    """Case 1 is not a part of case 12, nor case 2."""
    for case in ("1", "2"):
        with pytest.raises(InputError, match=f"expected images of every validation case, found none of {case}"):
            images_of(data, (case,))


def test_the_shipped_config_holds_out_cases_that_there_are(shared: Path) -> None:
    config = read_config(SHIPPED_CONFIG)
    cases = {
        name: [case_of(path, config.case) for path in (shared / "wba" / name).glob("*.png")] for name in config.sets
    }
    assert all(cases.values())
    held_out = [case for found in cases.values() for case in found if case in config.validation_cases]
    assert set(held_out) == set(config.validation_cases)
    assert len(held_out) == 324  # what the model card says
    assert sum(map(len, cases.values())) - len(held_out) == 1152


def test_crops_are_parts_of_the_images_some_mirrored() -> None:
    image = torch.arange(9 * 8, dtype=torch.float32).reshape(1, 9, 8)
    found = crops((image,), 40, 5, torch.Generator().manual_seed(0))
    assert found.shape == (40, 1, 5, 5)
    steps = {int(crop[0, 0, 1] - crop[0, 0, 0]) for crop in found}
    assert steps == {1, -1}
    assert all(int(crop[0, 1, 0] - crop[0, 0, 0]) == 8 for crop in found)
    corners = {int(min(crop[0, 0, 0], crop[0, 0, -1])) for crop in found}
    assert 0 in {corner // 8 for corner in corners}
    assert 4 in {corner // 8 for corner in corners}
    assert {corner % 8 for corner in corners} == {0, 1, 2, 3}
    assert torch.equal(crops((image,), 40, 5, torch.Generator().manual_seed(0)), found)


def test_losses_are_zero_for_what_is_alike_and_see_what_they_should() -> None:
    image = torch.rand((2, 1, 8, 9), generator=torch.Generator().manual_seed(1))
    for loss in (l2, gradient):
        assert loss(image, image) == 0
        assert loss(image + 0.1 * torch.rand_like(image), image) > 0
    assert l2(image + 0.5, image).item() == pytest.approx(0.25)
    assert gradient(image + 0.5, image).item() == pytest.approx(0, abs=1e-9)
    ramp = torch.arange(9.0).expand(1, 1, 8, 9)
    assert gradient(ramp, torch.zeros_like(ramp)).item() == pytest.approx(0.5)  # mean of 1 along, 0 across


def test_psnr_is_that_of_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    network = Dilran()
    read_weights(network, "dilran")
    image = torch.from_numpy(blob(9) / 255).float()[None]
    with torch.inference_mode():
        back = network.eval()(image[None])[0, 0].clamp(0, 1).numpy()
    expected = peak_signal_noise_ratio(image[0].numpy(), back, data_range=1)
    assert psnr_of(network.train(), (image,)).item() == pytest.approx(expected, abs=1e-3)


def test_the_shipped_config_is_read() -> None:
    config = read_config(SHIPPED_CONFIG)
    assert config.network == "dilran"
    assert len(config.sets) == 6
    assert config.validation_cases == ("4", "15", "28", "29", "30", "33")
    assert config.losses == {"l2": 1.0, "gradient": 0.2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": "ct-mri/ct"}, "expected a list, found a value of type str"),
        ({"validation_cases": "15"}, "expected a list, found a value of type str"),
        ({"validation_cases": 15}, "expected a list, found a value of type int"),
        ({"steps": 2.5}, "expected a whole number, found a value of type float"),
        ({"crop": "large"}, "expected a whole number, found a value of type str"),
        ({"batch": True}, "expected a whole number, found a value of type bool"),
        ({"learning_rate": "fast"}, "could not convert string to float: 'fast'"),
        ({"learning_rate": None}, "expected other values in .*NoneType"),
        ({"losses": ["l2"]}, "expected other values in"),
        ({"losses": {"l2": 0}}, "out of range: losses"),
        ({"losses": {"l2": float("nan")}}, "out of range: losses"),
        ({"free": {"l2": 0.5}}, "out of range: free"),
        (
            {"sets": [], "pairs": [{"structural": "a", "functional": "b"}], "free": {"l2": float("inf")}},
            "out of range: free",
        ),
        ({"sets": []}, "out of range: sets"),
        ({"validation_cases": []}, "out of range: validation_cases"),
        ({"steps": 0, "batch": 0}, "out of range: batch, steps"),
        ({"crop": 1}, "out of range: crop"),
        ({"learning_rate": 0}, "out of range: learning_rate"),
        ({"learning_rate": float("inf")}, "out of range: learning_rate"),
        ({"freeze_statistics_after": 1.5}, "out of range: freeze_statistics_after"),
        ({"seed": -1}, "out of range: seed"),
        ({"seed": 2**32}, "out of range: seed"),
        ({"learning_rate": True}, "expected a number, found a value of type bool"),
        ({"losses": {"l2": True}}, "expected a number, found a value of type bool"),
        ({"sets": ["../elsewhere"]}, "out of range: sets"),
        ({"sets": ["/elsewhere"]}, "out of range: sets"),
        ({"case": ".*"}, "out of range: case"),
        ({"case": "("}, "out of range: case"),
        ({"case": 3}, "expected a text .*, found a value of type int"),
        ({"precision": "float8"}, "out of range: precision"),
        ({"losses": None}, "losses: expected numbers by name, found nothing"),
        ({"clip_norm": 0, "report_every": 0}, "out of range: clip_norm, report_every"),
        ({"validation_images": 0}, "out of range: validation_images"),
        ({"patience": 0}, "out of range: patience"),
    ],
)
def test_values_that_make_no_training_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = written(shipped() | change, tmp_path / "odd.yaml")
    with pytest.raises(InputError, match=message) as caught:
        read_config(path)
    assert caught.value.exit_code == 3
    assert "odd.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_config_are_refused(tmp_path: Path) -> None:
    missing = shipped()
    del missing["seed"]
    with pytest.raises(InputError, match=r"in a\.yaml: the training: missing seed"):
        read_config(written(missing, tmp_path / "a.yaml"))
    with pytest.raises(InputError, match=r"in b\.yaml: the training: unknown momentum"):
        read_config(written(shipped() | {"momentum": 1}, tmp_path / "b.yaml"))
    for name, content in (("text", b"hello"), ("list", b"[1, 2]"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"in {name}: the training: expected keys with values"):
            read_config(tmp_path / name)
    for name, content in (("broken", b"{a: ["), ("binary", b"\xff\xfe\x00\x01")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"cannot read {name}"):
            read_config(tmp_path / name)
    with pytest.raises(InputError, match=r"cannot read absent\.yaml"):
        read_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": ("grey", "absent")}, "expected images or volumes under absent in the training data, found none"),
        ({"validation_cases": ("7", "99")}, "expected images of every validation case, found none of 99"),
        ({"validation_cases": ("3", "7", "12")}, "expected images on both sides of the split, found 0 and 8"),
        ({"losses": {"l2": 1.0, "beauty": 1.0}}, "expected losses of l2, gradient, perceptual, found beauty"),
        ({"network": "resnet"}, "expected a network of duet, .*siamese, found resnet"),
        ({"losses": {}}, "expected losses of l2, gradient, perceptual, found none"),
        ({"losses": {"perceptual": 1.0}}, "expected weights of VGG19 for the perceptual loss, found none"),
        ({"crop": 38}, "expected training images of at least 38 pixels a side, found one of 37"),
        ({"network": "siamese"}, "expected no losses, since siamese has its own, found l2, gradient"),
    ],
)
def test_a_config_that_does_not_fit_the_data_is_refused(
    data: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(replace(CONFIG, **change), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_siamese_network_is_validated_on_crops_too(data: Path, tmp_path: Path) -> None:
    Image.fromarray(blob(1, 24, 24)).save(data / "grey" / "7001.png")
    with pytest.raises(InputError, match="expected validation images of at least 32 pixels a side, found one of 24"):
        train(replace(CONFIG, network="siamese", losses={}), data, tmp_path / "out")


def test_two_images_of_one_name_are_refused(data: Path) -> None:
    """Which of them the other's partner is, nobody knows."""
    Image.fromarray(blob(9)).save(data / "color" / "3001.tif")
    with pytest.raises(InputError, match="expected one image a name in color, found names with several suffixes"):
        read_pairs(data, [PairSet("grey", "color")], CONFIG.validation_cases, CONFIG.case)


def test_images_that_cannot_be_used_are_refused(data: Path) -> None:
    odd = data / "grey" / "3003.png"
    odd.write_text("no image")
    with pytest.raises(InputError, match=r"expected an image, cannot read 3003\.png"):
        images_of(data)
    Image.fromarray(blob(1)).save(odd)
    odd.write_bytes(odd.read_bytes()[:120])
    with pytest.raises(InputError, match=r"expected an image, cannot read 3003\.png"):
        images_of(data)
    Image.fromarray(blob(1).astype(np.uint16) * 200).save(odd)
    with pytest.raises(InputError, match=r"8 bits a channel, grey or RGB, found mode I;16 in 3003\.png"):
        images_of(data)


@pytest.mark.parametrize("name", ["slice.png", "001.png", "3_12.png", "12.png"])
def test_an_image_whose_name_gives_no_case_is_refused(data: Path, name: str) -> None:
    """It could be of a validation case."""
    Image.fromarray(blob(1)).save(data / "grey" / name)
    with pytest.raises(InputError, match=f"expected a name that gives the case by the pattern .*, found {name}"):
        images_of(data)


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_training(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="could not write") as caught:
        train(replace(CONFIG, steps=1_000_000), data, tmp_path / "file")
    assert caught.value.exit_code == 7
    assert (tmp_path / "file").read_text() == "in the way"
