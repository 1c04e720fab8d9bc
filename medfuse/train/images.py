"""Images to train on: 2-D files whose name says the case, split by case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from medfuse.errors import InputError

#: Pillow's modes of 8 bits and less; deeper ones would be cut off at 255.
MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}
SUFFIXES = {".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class Images:
    """Grey images or luminances, each (1, H, W) float32 in [0, 1]."""

    training: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]


def case_of(path: Path) -> str:
    """The case an image belongs to: its name without the last three digits, which are the slice.

    Raises:
        InputError: The name does not end in three digits after a case.

    >>> case_of(Path("34012.png"))
    '34'
    """
    case, slice_number = path.stem[:-3], path.stem[-3:]
    if not (case and slice_number.isdecimal()):
        raise InputError(
            f"expected an image named by its case and three digits for its slice, found {path.name}",
            "Name it so, because images are kept out of training by case",
        )
    return case


def read_luminance(path: Path) -> Tensor:
    """One image as luminance (1, H, W) in [0, 1]: ITU-R BT.601 luma of colour, rounded to 8 bits; grey as it is.

    Raises:
        InputError: It cannot be read, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            mode, grey = image.mode, image.convert("L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"expected an image, cannot read {path.name}", "Take it out, or replace it") from error
    if mode not in MODES:
        raise InputError(f"expected an image of 8 bits a channel, found mode {mode} in {path.name}", "Convert it")
    pixels = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, grey.height, grey.width).to(torch.float32) / 255


def read_images(folder: Path, sets: Iterable[str], validation_cases: Iterable[str]) -> Images:
    """All images of the sets, split by case so that no patient is on both sides.

    Raises:
        InputError: A set holds no image, an image cannot be used, no image is of a validation case, or none is left for
            training.
    """
    held_out = set(validation_cases)
    seen: set[str] = set()
    training: list[Tensor] = []
    validation: list[Tensor] = []
    for name in sets:
        paths = sorted(path for path in (folder / name).glob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise InputError(f"expected images in the folder {name} of the training data, found none")
        for path in paths:
            case = case_of(path)
            seen.add(case)
            (validation if case in held_out else training).append(read_luminance(path))
    if held_out - seen:
        raise InputError(
            f"expected images of every validation case, found none of {', '.join(sorted(held_out - seen))}",
            "Write the cases as the file names do; quote one that begins with 0",
        )
    if not training or not validation:
        raise InputError(f"expected images on both sides of the split, found {len(training)} and {len(validation)}")
    return Images(tuple(training), tuple(validation))
