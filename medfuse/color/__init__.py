"""Grey to colour and back, on plain arrays: window, palette, YCbCr. The last axis of a colour array is 3."""

from medfuse.color.palette import PALETTES, apply_palette, ycbcr_of_palette
from medfuse.color.window import CT_WINDOWS, Percentiles, Window, parse_window
from medfuse.color.ycbcr import rgb_with_luminance, room_for_color, ycbcr_from_rgb

__all__ = [
    "CT_WINDOWS",
    "PALETTES",
    "Percentiles",
    "Window",
    "apply_palette",
    "parse_window",
    "rgb_with_luminance",
    "room_for_color",
    "ycbcr_from_rgb",
    "ycbcr_of_palette",
]
