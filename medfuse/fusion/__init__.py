"""The fusion: two luminances into one, by a network or a rule; the only room that needs torch on the way."""

from medfuse.fusion.display import Display, display_of, least_color, leaving_color, slices_whitened
from medfuse.fusion.engine import Engine
from medfuse.fusion.methods import METHODS, READY, Method
from medfuse.fusion.weights import modality_beside

__all__ = [
    "METHODS",
    "READY",
    "Display",
    "Engine",
    "Method",
    "display_of",
    "least_color",
    "leaving_color",
    "modality_beside",
    "slices_whitened",
]
