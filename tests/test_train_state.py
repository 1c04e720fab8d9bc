"""A training can be killed, resumed, shared among processes and stopped early, and says what it did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from medfuse.errors import InputError, OutputError, WeightsError
from medfuse.fusion.networks import TRAINABLE
from medfuse.train import Config, loop, train
from medfuse.train.tasks import Reconstruction

CONFIG = Config(
    network="dilran",
    sets=("images",),
    validation_cases=("7",),
    losses={"l2": 1.0, "gradient": 0.2},
    crop=16,
    batch=2,
    steps=9,
    learning_rate=2e-3,
    freeze_statistics_after=0.5,
    seed=5,
    report_every=2,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem in ("3001", "3002", "7001", "7002"):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6), np.uint8))
        coarse.resize((28, 24), Image.Resampling.BICUBIC).save(folder / f"{stem}.png")
    return tmp_path / "data"


def weights_in(out: Path, network: str = "dilran") -> bytes:
    return (out / f"{network}.safetensors").read_bytes()


def figures_in(out: Path) -> str:
    """The log without the seconds that it took."""
    rows = [line.rsplit(",", 1)[0] for line in (out / "log.csv").read_text(encoding="utf-8").splitlines()]
    return "\n".join(rows)


def killed_at(step: int) -> object:
    """A training that ends in the middle of that step, as by a kill: nothing is cleaned up or written."""
    original = loop._step

    def run(state: loop.State, *rest: object) -> object:
        if state.step == step:
            raise KeyboardInterrupt
        return original(state, *rest)

    return patch.object(loop, "_step", run)


@pytest.mark.parametrize("network", ["dilran", "eh-dran"])
@pytest.mark.parametrize("step", [1, 2, 3, 6, 9])
def test_a_resumed_training_ends_in_the_same_bits(data: Path, tmp_path: Path, step: int, network: str) -> None:
    """Also of a network that leaves features out at random."""
    config = replace(CONFIG, network=network)
    whole = train(config, data, tmp_path / "whole")
    with killed_at(step), pytest.raises(KeyboardInterrupt):
        train(config, data, tmp_path / "killed")
    torch.manual_seed(99)  # whatever else the process that resumes has drawn
    resumed = train(config, data, tmp_path / "killed", resume=True)
    assert weights_in(tmp_path / "killed", network) == weights_in(tmp_path / "whole", network)
    assert figures_in(tmp_path / "killed") == figures_in(tmp_path / "whole")
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}


def test_a_killed_process_is_resumed_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=60, report_every=5)
    path = tmp_path / "config.yaml"
    content = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "medfuse", "train", str(path), "--data", str(data), "-o", str(out)]
    process = subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out / "log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert not (out / "training.json").exists()
    train(config, data, out, resume=True)
    train(config, data, tmp_path / "whole")
    assert weights_in(out) == weights_in(tmp_path / "whole")
    assert figures_in(out) == figures_in(tmp_path / "whole")


def test_a_training_is_not_replaced_unasked(data: Path, tmp_path: Path) -> None:
    first = train(CONFIG, data, tmp_path / "out")
    before = weights_in(tmp_path / "out")
    with pytest.raises(OutputError, match="expected a new folder, found a training in out") as caught:
        train(replace(CONFIG, seed=6), data, tmp_path / "out")
    assert "--resume" in caught.value.hint
    assert "--overwrite" in caught.value.hint
    assert weights_in(tmp_path / "out") == before
    again = train(CONFIG, data, tmp_path / "out", resume=True)  # it is over: nothing is left to do
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    train(replace(CONFIG, seed=6), data, tmp_path / "out", overwrite=True)
    assert weights_in(tmp_path / "out") != before


def test_a_training_that_never_began_is_started_by_resume(data: Path, tmp_path: Path) -> None:
    train(CONFIG, data, tmp_path / "out", resume=True)
    train(CONFIG, data, tmp_path / "other")
    assert weights_in(tmp_path / "out") == weights_in(tmp_path / "other")


def test_another_trainings_checkpoint_is_refused(data: Path, tmp_path: Path) -> None:
    train(CONFIG, data, tmp_path / "out")
    with pytest.raises(InputError, match="found one with another batch, learning_rate"):
        train(replace(CONFIG, batch=4, learning_rate=1e-3), data, tmp_path / "out", resume=True)
    fresh = "Start again with --overwrite, without --resume"
    for content in (b"no checkpoint", b"", (tmp_path / "out" / "checkpoint.pt").read_bytes()[:2000]):
        (tmp_path / "out" / "checkpoint.pt").write_bytes(content)
        message = rf"expected the checkpoint of a training, cannot read checkpoint\.pt\. {fresh}"
        with pytest.raises(InputError, match=message):
            train(CONFIG, data, tmp_path / "out", resume=True)


@pytest.mark.parametrize("change", [{"random": None}, {"optimizer": None}, {"config": None}])
def test_a_checkpoint_that_is_not_whole_is_refused(data: Path, tmp_path: Path, change: dict[str, None]) -> None:
    train(replace(CONFIG, steps=1), data, tmp_path / "out")
    path = tmp_path / "out" / "checkpoint.pt"
    whole = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in (whole | change).items() if value is not None}, path)
    with pytest.raises(InputError, match=r"expected the checkpoint of a training, cannot read checkpoint\.pt"):
        train(replace(CONFIG, steps=1), data, tmp_path / "out", resume=True)
    torch.save(whole | change, path)
    if "config" in change:
        with pytest.raises(InputError, match=r"cannot read checkpoint\.pt"):
            train(replace(CONFIG, steps=1), data, tmp_path / "out", resume=True)


def test_each_process_resumes_with_random_numbers_of_its_own(data: Path, tmp_path: Path) -> None:
    """The first with those it would have drawn, the others with neither these nor those that they began with."""
    train(replace(CONFIG, steps=4), data, tmp_path / "out")
    drawn = []
    for rank in range(3):
        process = loop.Process(torch.device("cpu"), rank)
        with patch.object(loop, "this_process", lambda _, process=process: nullcontext(process)):
            train(replace(CONFIG, steps=4), data, tmp_path / "out", resume=True)
        drawn.append(torch.rand(()).item())
    expected = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["random"]
    torch.set_rng_state(expected)
    assert drawn[0] == torch.rand(()).item()
    begun = [torch.rand((), generator=torch.Generator().manual_seed(CONFIG.seed + rank)).item() for rank in (1, 2)]
    assert len({*drawn, *begun}) == 5


def test_only_the_random_state_of_its_own_gpu_is_kept_and_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where a checkpoint has more of them than there are GPUs now."""
    taken: list[tuple[int, torch.device]] = []
    monkeypatch.setattr(loop.State, "_device", torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([10 + device.index]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda kept, device: taken.append((kept.item(), device)))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", pytest.fail)
    state, path = loop.State(CONFIG, TRAINABLE["dilran"]()), tmp_path / "checkpoint.pt"
    path.write_bytes(state.to_bytes())
    state.restore(path)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"random_cuda": [torch.tensor([number]) for number in range(4)]}, path)
    state.restore(path)
    assert taken == [(11, torch.device("cuda", 1)), (0, torch.device("cuda", 1))]


def diverging_after(steps: int) -> object:
    """A training whose loss is NaN from a step on."""
    original, done = Reconstruction.loss, count(1)

    def loss(task: Reconstruction, *rest: object) -> torch.Tensor:
        return original(task, *rest) * (1 if next(done) <= steps else float("nan"))

    return patch.object(Reconstruction, "loss", loss)


@pytest.mark.parametrize("steps", [0, 5])
def test_a_training_that_diverges_is_refused_and_the_best_stays(data: Path, tmp_path: Path, steps: int) -> None:
    message = f"found NaN or infinity at step {steps + 2 - steps % 2}: the training diverged"
    with diverging_after(steps), pytest.raises(WeightsError, match=message) as caught:
        train(CONFIG, data, tmp_path / "out")
    assert "learning_rate" in caught.value.hint
    assert not (tmp_path / "out" / "training.json").exists()
    written = tmp_path / "out" / "dilran.safetensors"
    assert written.exists() == (steps > 0)
    assert not written.exists() or all(tensor.isfinite().all() for tensor in load_file(written).values())


def test_a_fuser_that_diverges_is_refused(tmp_path: Path) -> None:
    """In use its network would give the maximum, which is no bad score."""
    network = TRAINABLE["duet"]()
    state = loop.State(replace(CONFIG, network="duet"), network)
    loop._check_finite(state, torch.ones(()))
    torch.nn.init.constant_(network.last.bias, float("nan"))
    with pytest.raises(WeightsError, match="the training diverged"):
        loop._check_finite(state, torch.ones(()))


def test_steps_that_float16_leaves_out_are_no_divergence() -> None:
    state = loop.State(replace(CONFIG, precision="float16"), TRAINABLE["dilran"]())
    state.scaler.scale(torch.ones(()))
    loop._check_finite(state, torch.tensor(float("inf")))
    state.scaler.update(0.5)
    with pytest.raises(WeightsError, match="the training diverged"):
        loop._check_finite(state, torch.tensor(float("inf")))


def test_code_in_a_checkpoint_is_not_run(data: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "code-was-run",)

    (tmp_path / "out").mkdir()
    torch.save({"config": Trap()}, tmp_path / "out" / "checkpoint.pt")
    with pytest.raises(InputError, match=r"cannot read checkpoint\.pt"):
        train(CONFIG, data, tmp_path / "out", resume=True)
    assert not (tmp_path / "code-was-run").exists()


def test_it_stops_early_and_keeps_the_best(data: Path, tmp_path: Path) -> None:
    scores = iter([20.0, 30.0, 25.0, 24.0, 23.0, 22.0])
    kept: list[dict[str, torch.Tensor]] = []

    def validate(_self: object, network: torch.nn.Module, images: tuple[torch.Tensor, ...]) -> dict[str, float]:
        kept.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return {"score": next(scores)}

    with patch("medfuse.train.tasks.Reconstruction.validate", validate):
        figures = train(replace(CONFIG, steps=1000, patience=3), data, tmp_path / "out")
    assert figures["step"] == 4
    assert len(kept) == 6  # five reports, and the end
    written = load_file(tmp_path / "out" / "dilran.safetensors")
    assert all(torch.equal(written[name], kept[1][name]) for name in written)
    assert any(not torch.equal(written[name], kept[4][name]) for name in written)


def test_long_gradients_are_clipped(data: Path, tmp_path: Path) -> None:
    train(replace(CONFIG, clip_norm=1e-12), data, tmp_path / "clipped")
    torch.manual_seed(CONFIG.seed)
    initial = TRAINABLE["dilran"]().state_dict()
    train(CONFIG, data, tmp_path / "free")
    clipped, free = (load_file(tmp_path / name / "dilran.safetensors") for name in ("clipped", "free"))
    # Adam divides by the gradient's size, all but its epsilon of 1e-8: so short a gradient hardly moves anything.
    moved = [(tensors["decoder.0.weight"] - initial["decoder.0.weight"]).abs().max() for tensors in (clipped, free)]
    assert moved[0] < moved[1] / 20


def test_precision(data: Path, tmp_path: Path, training_device: str) -> None:
    exact = train(replace(CONFIG, steps=30, report_every=10), data, tmp_path / "exact", training_device)
    short = replace(CONFIG, steps=30, report_every=10, precision="bfloat16")
    rough = train(short, data, tmp_path / "rough", training_device)
    assert rough["score"] != exact["score"]
    assert rough["score"] > exact["score"] - 6
    with pytest.raises(ValueError, match="expected float32 or bfloat16 on cpu, got float16"):
        train(replace(CONFIG, precision="float16"), data, tmp_path / "half", "cpu")


def test_tensorboard_gets_what_the_log_gets(data: Path, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(CONFIG, data, tmp_path / "out", tensorboard=True)
    events = accumulators.EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("score")] == [2, 4, 6, 8, 9]
    logged = [line.split(",") for line in (tmp_path / "out" / "log.csv").read_text(encoding="utf-8").splitlines()]
    for name in ("score", "loss", "learning_rate"):
        column = logged[0].index(name)
        expected = [float(row[column]) for row in logged[1:]]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(expected, rel=1e-6)


def test_two_processes_train_what_one_does(data: Path, tmp_path: Path) -> None:
    """Each takes its share of the batch; without batch statistics the averaged gradient is that of the whole batch."""
    config = replace(CONFIG, steps=4, freeze_statistics_after=0.0)
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_train_state import CONFIG\nfrom medfuse.train import train\n"
        "train(replace(CONFIG, steps=4, freeze_statistics_after=0.0), Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    result = subprocess.run([*command, str(data), str(tmp_path / "two")], check=False, capture_output=True, timeout=240)
    assert result.returncode == 0, result.stderr.decode()[-3000:]
    train(config, data, tmp_path / "one")
    one, two = (load_file(tmp_path / name / "dilran.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-5)
    machine = json.loads((tmp_path / "two" / "training.json").read_text(encoding="utf-8"))["machine"]
    assert machine["processes"] == 2


def test_a_batch_that_cannot_be_shared_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a batch that 3 processes can share, found 2"):
        loop._images_for(CONFIG, data, loop.Process(torch.device("cpu"), 0, 3))
