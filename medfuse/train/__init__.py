"""Training of the networks that medfuse ships. Needs torch and pillow only."""

from medfuse.train.config import Config, read_config
from medfuse.train.loop import train

__all__ = ["Config", "read_config", "train"]
