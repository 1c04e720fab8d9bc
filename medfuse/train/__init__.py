"""Training of the networks that medfuse ships. Loads torch, scipy, safetensors, pillow and PyYAML, no more."""

from medfuse.train.config import Config, read_config
from medfuse.train.loop import train

__all__ = ["Config", "read_config", "train"]
