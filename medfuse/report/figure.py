"""A figure of volumes on one grid, side by side: a column a volume, a row a slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medfuse.color import apply_palette
from medfuse.fusion import Display
from medfuse.volume import Volume

GAP = 6
TITLE = 22


def figure(columns: Mapping[str, tuple[Volume, Display]], slices: Sequence[int], height: int = 260) -> Image.Image:
    """Draw the same slices of several volumes.

    Args:
        columns: By title: a volume on the common grid, and how it is shown.
        slices: Indices along the grid's first axis, one a row.
        height: Of each picture, pixels; the width follows the voxels' size in mm.

    Returns:
        An RGB image, black between the pictures.
    """
    grid = next(iter(columns.values()))[0].grid
    _, row_mm, column_mm = grid.extent_mm
    size = (max(1, round(height * column_mm / row_mm)), height)
    canvas = Image.new("RGB", (len(columns) * (size[0] + GAP) - GAP, TITLE + len(slices) * (height + GAP) - GAP))
    draw = ImageDraw.Draw(canvas)
    for across, (title, (volume, display)) in enumerate(columns.items()):
        left = across * (size[0] + GAP)
        draw.text((left + size[0] // 2, TITLE // 2), title, "white", ImageFont.load_default(14), anchor="mm")
        for down, index in enumerate(slices):
            picture = Image.fromarray(_picture(volume.array[index], display)).resize(size, Image.Resampling.BICUBIC)
            canvas.paste(picture, (left, TITLE + down * (height + GAP)))
    return canvas


def _picture(plane: NDArray[Any], display: Display) -> NDArray[np.uint8]:
    """A slice (J, I) or (J, I, 3) as RGB."""
    if display.window is None:
        return plane.astype(np.uint8, copy=False)
    return apply_palette(display.window.apply(plane), display.palette or "GREY")
