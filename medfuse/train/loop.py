"""The training loop: batches in, weights out, judged on images of cases it has not seen."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import platform
import time
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medfuse.errors import InputError, OutputError, WeightsError
from medfuse.fusion.networks import FUSERS, TRAINABLE
from medfuse.fusion.networks.collapsed import channels_last
from medfuse.fusion.weights import read_weights, to_bytes
from medfuse.output import refuse_folder, whole
from medfuse.train.config import Config
from medfuse.train.images import Images, read_images, read_pairs
from medfuse.train.processes import Process, this_process
from medfuse.train.state import State, plain
from medfuse.train.tasks import Task, task_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
#: A line a report; what was trained, and how; and where TensorBoard's log goes.
LOG, MADE, BOARD = "log.csv", "training.json", "tensorboard"


def train(
    config: Config,
    data: Path,
    out: Path,
    device: torch.device | str = "cpu",
    *,
    vgg: Path | None = None,
    start: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
) -> dict[str, float]:
    """Train a network, and write its weights and logs.

    Under `torchrun`, all processes train together and the first writes.

    Args:
        config: What to train, and how.
        data: Folder that holds the sets.
        out: Folder for `NETWORK.safetensors` (of the best report), `log.csv` (a line a report), `training.json` (the
            final figures, and on what they were made) and `checkpoint.pt`; made if absent.
        device: Where to train.
        vgg: Weights of VGG19, safetensors, for the perceptual loss.
        start: Weights to begin with, safetensors; random ones without. Not read where a checkpoint is resumed.
        resume: Go on from the checkpoint in `out`, or start where there is none.
        overwrite: Start again, and replace what is in `out`.
        tensorboard: Write the log for TensorBoard too, to `out/tensorboard`.

    Returns:
        The figures of the weights written, over all images of the validation cases: step, seconds, and those of the
        task; of a reconstruction "score" and "lowest", the mean and the lowest PSNR in dB.

    Raises:
        InputError: Config and data do not fit together, or the checkpoint is of another training.
        OutputError: The folder holds a training already, or cannot be written to.
        WeightsError: Weights of VGG19, or to begin with, cannot be used; or the training diverged.
        ValueError: The precision is not for this device, or TensorBoard is not installed.
    """
    device = torch.device(device)
    if config.precision == "float16" and device.type != "cuda":
        raise ValueError(f"expected float32 or bfloat16 on {device.type}, got float16")
    if config.network not in TRAINABLE:
        raise InputError(f"expected a network of {', '.join(TRAINABLE)}, found {config.network}")
    checkpoint, results = out / CHECKPOINT, [out / name for name in (f"{config.network}.safetensors", LOG, MADE)]
    logs = list((out / BOARD).glob("events.out.tfevents.*"))
    is_there = any(path.exists() for path in (checkpoint, *results, *logs))
    if is_there and not overwrite and not (resume and checkpoint.exists()):
        raise OutputError(
            f"expected a new folder, found a training in {out.name}",
            f"Go on with --resume, which needs its {CHECKPOINT}, or replace it: --overwrite",
        )
    with this_process(device) as process:
        task = task_of(config, vgg, process.device)
        images = _images_for(config, data, process)
        _check_sizes(images, config.crop, task.smallest)
        torch.manual_seed(config.seed)
        network = TRAINABLE[config.network]()
        _check_part(network, config)
        channels_last(network)
        state = State(config, network.to(process.device))
        if resume and checkpoint.exists():
            state.restore(checkpoint)
            if not process.is_first:  # of the others the checkpoint has no random state
                torch.manual_seed(config.seed + process.rank + state.step)
        else:
            if start:
                state.start = read_weights(network, config.network, start)
            torch.manual_seed(config.seed + process.rank)  # each process drops its own features
            if process.is_first:
                _write(checkpoint, state.to_bytes())  # refused here rather than at the first report
                for path in (*results, *logs):
                    refuse_folder(path)
                    path.unlink(missing_ok=True)
        board = _board(out, state.step) if tensorboard and process.is_first else None
        try:
            _run(state, task, images, out, process, board)
        finally:
            if board:
                board.close()
        return _finish(state, task, images, out, process)


def _images_for(config: Config, data: Path, process: Process) -> Images:
    """The images of a training, once it is sure that they and the config fit together."""
    if config.batch % process.count:
        raise InputError(f"expected a batch that {process.count} processes can share, found {config.batch}")
    if (config.network in FUSERS) != bool(config.pairs):
        expected = "pairs" if config.network in FUSERS else "sets"
        raise InputError(f"expected {expected} to train {config.network} on, found none")
    if config.pairs:
        images = read_pairs(data, config.pairs, config.validation_cases, config.case)
    else:
        images = read_images(data, config.sets, config.validation_cases, config.case)
    return images


def _check_sizes(images: Images, crop: int, smallest: int) -> None:
    """Refuse images that no crop can be taken of, and crops and images that are too small for the losses."""
    if crop < smallest:
        raise InputError(
            f"expected a crop of at least {smallest} pixels for these losses, found {crop}", "Make the crop larger"
        )
    for side, needed, hint in (("training", crop, "Make the crop smaller"), ("validation", smallest, "Leave it out")):
        found = min(min(image.shape[-2:]) for image in getattr(images, side))
        if found < needed:
            raise InputError(f"expected {side} images of at least {needed} pixels a side, found one of {found}", hint)


def _check_part(network: nn.Module, config: Config) -> None:
    """Refuse a part to learn alone that is none of those which do not learn unless they are asked for."""
    parts = [name for name, part in network.named_children() if not any(one.requires_grad for one in part.parameters())]
    if config.only not in (None, *parts):
        raise InputError(f"expected {', '.join(parts) or 'nothing'} as what learns only, found {config.only}")


def _run(state: State, task: Task, images: Images, out: Path, process: Process, board: SummaryWriter | None) -> None:
    """Take steps until the training is over; report, and write everything down, at every report."""
    config, network = state.config, process.joined(state.network)
    watched = _spread(images.validation, config.validation_images)
    started = time.monotonic() - state.seconds
    while not process.agreed(state.is_over):
        state.step += 1
        rate = state.optimizer.param_groups[0]["lr"]
        loss, norm = _step(state, task, network, process.share(task.batch(images.training, state.generator)))
        if state.step % config.report_every and state.step < config.steps:
            continue
        _check_finite(state, loss + norm)
        if process.is_first:
            report = {"step": state.step, "loss": loss.item(), "gradient_norm": norm.item()}
            report["learning_rate"] = rate
            report |= task.validate(state.network, watched)
            state.seconds = report["seconds"] = time.monotonic() - started
            state.reports.append(report)
            if state.best_report is report:
                state.best = {name: tensor.cpu().clone() for name, tensor in state.network.state_dict().items()}
            _record(state, out, board)


def _step(state: State, task: Task, network: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """One step of the optimiser: the loss, and the length of the gradient before it was clipped."""
    config = state.config
    state.network.eval()  # what does not learn is as in use
    state.learning.train()
    if state.step > config.freeze_statistics_after * config.steps:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    dtype = getattr(torch, config.precision)
    with torch.autocast(batch[0].device.type, dtype, enabled=dtype is not torch.float32):
        loss = task.loss(network, batch)
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), config.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.schedule.step()
    return loss.detach(), norm


def _check_finite(state: State, found: Tensor) -> None:
    """Refuse to go on with a training that has diverged: values that are not finite once make all later ones so.

    In float16 gradients are computed larger by a factor. Where they overflow by it, the step is left out and the factor
    is halved; it falls below 1 only where nothing else helped.
    """
    values = state.network.state_dict().values()
    fine = state.scaler.get_scale() >= 1 if state.scaler.is_enabled() else bool(found.isfinite())
    if not (fine and all(bool(value.isfinite().all()) for value in values)):
        raise WeightsError(
            f"expected finite losses and weights, found NaN or infinity at step {state.step}: the training diverged",
            "Train again with a lower learning_rate or clip_norm",
        )


def _spread(images: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """At most so many images, spread evenly over all."""
    count = min(count, len(images))
    return tuple(images[index * len(images) // count] for index in range(count))


def _record(state: State, out: Path, board: SummaryWriter | None) -> None:
    """Write down the last report, the best weights so far, and the checkpoint last, which the others belong to."""
    report = state.reports[-1]
    log.info("%s", {key: float(f"{value:.6g}") for key, value in report.items()})
    text = StringIO()
    rows = csv.DictWriter(text, report.keys(), lineterminator="\n")
    rows.writeheader()
    rows.writerows(state.reports)
    if board:
        for name, value in report.items():
            board.add_scalar(name, value, int(report["step"]))
        board.flush()
    _write(out / LOG, text.getvalue().encode())
    _write(out / f"{state.config.network}.safetensors", to_bytes(state.best))
    _write(out / CHECKPOINT, state.to_bytes())


def _finish(state: State, task: Task, images: Images, out: Path, process: Process) -> dict[str, float]:
    """The figures of the best weights on all validation images; the first process writes them down."""
    if not process.is_first:
        return {}
    state.network.load_state_dict(state.best)
    figures = {"step": state.best_report["step"], "seconds": state.seconds}
    figures |= task.validate(state.network, images.validation)
    made = {
        "figures": figures,
        "images": {"training": len(images.training), "validation": len(images.validation)},
        "start_sha256": state.start,
        "weights_sha256": hashlib.sha256(to_bytes(state.best)).hexdigest(),
        "machine": _machine(process),
        "config": plain(state.config),
    }
    _write(out / MADE, (json.dumps(made, indent=2) + "\n").encode())
    return figures


def _machine(process: Process) -> dict[str, str | int]:
    """What trained: no name of a machine or user."""
    gpu = torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else None
    return {
        "device": gpu or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": process.count,
        "torch": torch.__version__,
    }


def _board(out: Path, step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("TensorBoard is not installed; install it with: pip install tensorboard") from error
    return SummaryWriter(str(out / BOARD), purge_step=step or None)


def _write(path: Path, content: bytes) -> None:
    with whole(path, overwrite=True) as beside:
        beside.write_bytes(content)
