"""Everything that a training is at one step, so that it can be written down and taken up again, bit for bit."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medfuse.errors import InputError
from medfuse.train.config import Config


@dataclass
class State:
    """A training in progress.

    Args:
        config: What it was started with.
        network: In its initial state; on its device.
        start: Hash of the weights that it began with; None for random ones.
    """

    config: Config
    network: nn.Module
    start: str | None = None
    step: int = 0
    seconds: float = 0.0
    reports: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    optimizer: torch.optim.Adam = field(init=False)
    schedule: torch.optim.lr_scheduler.OneCycleLR = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        if config.only:
            self.network.requires_grad_(False)
            self.learning.requires_grad_(True)
        learning = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(learning, lr=config.learning_rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=config.steps
        )
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=config.precision == "float16")
        self.generator = torch.Generator().manual_seed(config.seed)

    @property
    def learning(self) -> nn.Module:
        """The part of the network that learns."""
        return self.network.get_submodule(self.config.only or "")

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def best_report(self) -> dict[str, float]:
        """The report with the highest score, the first of equal ones."""
        return max(self.reports, key=lambda report: report["score"])

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or the score has not risen for longer than the config's patience."""
        patience = self.config.patience
        if patience and self.reports:
            waited = len(self.reports) - 1 - self.reports.index(self.best_report)
            if waited >= patience:
                return True
        return self.step >= self.config.steps

    def to_bytes(self) -> bytes:
        """The state as `torch.save` writes it, of tensors, numbers and texts only."""
        buffer = BytesIO()
        torch.save(self._content(), buffer)
        return buffer.getvalue()

    def _content(self) -> dict[str, Any]:
        return {
            "config": plain(self.config),
            "start": self.start,
            "step": self.step,
            "seconds": self.seconds,
            "reports": self.reports,
            "best": self.best,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else [],
        }

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; no code in it is run.

        Raises:
            InputError: The file is no checkpoint, or one of another training.
        """
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            config = dict(content["config"])
            content = {key: content[key] for key in self._content()}
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"expected the checkpoint of a training, cannot read {path.name}",
                "Start again with --overwrite, without --resume",
            ) from error
        if config != plain(self.config):
            differing = sorted(key for key, value in plain(self.config).items() if config.get(key) != value)
            raise InputError(
                f"expected the checkpoint of this training, found one with another {', '.join(differing)}",
                "Resume with the file it was started with, or choose another folder with --out",
            )
        self.start, self.step, self.seconds = content["start"], content["step"], content["seconds"]
        self.reports, self.best = content["reports"], content["best"]
        for name in ("network", "optimizer", "schedule", "scaler"):
            getattr(self, name).load_state_dict(content[name])
        self.generator.set_state(content["generator"])
        torch.set_rng_state(content["random"])
        for state in content["random_cuda"][:1] if self._device.type == "cuda" else []:
            torch.cuda.set_rng_state(state, self._device)


def plain(config: Config) -> dict[str, Any]:
    """The config in lists, numbers and texts."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
