"""The training loop: crops in, weights out, judged on whole images of cases it has not seen."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from medfuse.errors import InputError
from medfuse.fusion.networks import NETWORKS
from medfuse.fusion.weights import to_bytes
from medfuse.io.output import whole
from medfuse.train.config import Config
from medfuse.train.images import Images, read_images
from medfuse.train.losses import LOSSES

log = logging.getLogger(__name__)


def train(config: Config, data: Path, out: Path, device: str = "cpu", report_every: int = 100) -> dict[str, float]:
    """Train a network to reconstruct images, and write its weights and log.

    Args:
        config: What to train, and how.
        data: Folder that holds the sets.
        out: Folder for `<network>.safetensors` and `log.jsonl` (one line a report); made if absent. What an earlier
            training left there is replaced at the first report.
        device: Where to train.
        report_every: Steps between two reports.

    Returns:
        The last report: step, loss, mean and lowest PSNR of the held-out images in dB, seconds.

    Raises:
        InputError: Config and data do not fit together.
        OutputError: The folder cannot be written to.
    """
    images = _images_for(config, data)
    _write(out / "log.jsonl", b"")  # refused here rather than at the first report
    torch.manual_seed(config.seed)
    network = NETWORKS[config.network]().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    generator = torch.Generator().manual_seed(config.seed)
    started = time.monotonic()
    reports: list[dict[str, float]] = []
    for step in range(1, config.steps + 1):
        network.train(step <= config.freeze_statistics_after * config.steps)
        target = crops(images.training, config.batch, config.crop, generator).to(device)
        result = network(target)
        loss = torch.stack([weight * LOSSES[name](result, target) for name, weight in config.losses.items()]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % report_every == 0 or step == config.steps:
            quality = psnr_of(network, images.validation)
            reports.append(
                {
                    "step": step,
                    "loss": loss.item(),
                    "psnr": quality.mean().item(),
                    "worst_psnr": quality.min().item(),
                    "seconds": time.monotonic() - started,
                }
            )
            log.info("%s", reports[-1])
            _write(out / "log.jsonl", "".join(json.dumps(report) + "\n" for report in reports).encode())
            _write(out / f"{config.network}.safetensors", to_bytes(network.state_dict()))
    return reports[-1]


def _images_for(config: Config, data: Path) -> Images:
    """The images of a training, once it is sure that they and the config fit together."""
    unknown = [name for name in config.losses if name not in LOSSES]
    unknown += [name for name in [config.network] if name not in NETWORKS]
    if unknown:
        raise InputError(
            f"expected known losses and network, found {', '.join(unknown)}",
            f"Losses are {', '.join(LOSSES)}; networks are {', '.join(NETWORKS)}",
        )
    images = read_images(data, config.sets, config.validation_cases)
    smallest = min(min(image.shape[-2:]) for image in images.training)
    if smallest < config.crop:
        raise InputError(
            f"expected training images of at least {config.crop} pixels a side, found one of {smallest}",
            "Make the crop smaller",
        )
    return images


def _write(path: Path, content: bytes) -> None:
    with whole(path, overwrite=True) as beside:
        beside.write_bytes(content)


def crops(images: tuple[Tensor, ...], count: int, side: int, generator: torch.Generator) -> Tensor:
    """Random square crops, mirrored at random, (count, 1, side, side)."""
    chosen = []
    for index in torch.randint(len(images), (count,), generator=generator).tolist():
        image = images[index]
        top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in image.shape[-2:])
        crop = image[:, top : top + side, left : left + side]
        chosen.append(crop.flip(-1) if torch.rand((), generator=generator) < 0.5 else crop)
    return torch.stack(chosen)


@torch.no_grad()
def psnr_of(network: nn.Module, images: tuple[Tensor, ...]) -> Tensor:
    """Peak signal-to-noise ratio in dB (peak 1) of each image's reconstruction, clamped to [0, 1], as it is used."""
    network.eval()
    device = next(network.parameters()).device
    errors = [
        (network(image[None].to(device)).clamp(0, 1) - image.to(device)).square().mean().cpu() for image in images
    ]
    return -10 * torch.stack(errors).clamp_min(1e-10).log10()
