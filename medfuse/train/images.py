"""Images to train on: 2-D files whose name says the case, split by case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from medfuse.errors import InputError

SUFFIXES = {".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class Images:
    """Grey images or luminances, each (1, H, W) float32 in [0, 1]."""

    training: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]


def case_of(path: Path) -> str:
    """The case an image belongs to: its name without the last three digits, which are the slice.

    >>> case_of(Path("34012.png"))
    '34'
    """
    return path.stem[:-3]


def read_luminance(path: Path) -> Tensor:
    """One image as luminance (1, H, W) in [0, 1]: ITU-R BT.601 luma of colour, rounded to 8 bits; grey as it is."""
    with Image.open(path) as image:
        grey = image.convert("L")
    pixels = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, grey.height, grey.width).to(torch.float32) / 255


def read_images(folder: Path, sets: Iterable[str], validation_cases: Iterable[str]) -> Images:
    """All images of the sets, split by case so that no patient is on both sides.

    Raises:
        InputError: A set holds no image, or one side of the split is empty.
    """
    held_out = set(validation_cases)
    training: list[Tensor] = []
    validation: list[Tensor] = []
    for name in sets:
        paths = sorted(path for path in (folder / name).glob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise InputError(f"expected images in the folder {name} of the training data, found none")
        for path in paths:
            (validation if case_of(path) in held_out else training).append(read_luminance(path))
    if not training or not validation:
        raise InputError(f"expected images on both sides of the split, found {len(training)} and {len(validation)}")
    return Images(tuple(training), tuple(validation))
