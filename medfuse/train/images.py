"""Images to train on: 2-D pictures and slices of volumes, split by case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medfuse.errors import InputError
from medfuse.fusion.display import display_of
from medfuse.io.pictures import SUFFIXES, is_picture, read_picture
from medfuse.volume import Modality

#: A slice whose luminances lie closer together than this shows nothing, and is left out.
LEAST_CONTRAST = 0.1


@dataclass(frozen=True)
class Images:
    """Grey images or luminances, each (1, H, W) float32 in [0, 1]."""

    training: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]


def read_images(folder: Path, sets: Iterable[str], validation_cases: Iterable[str], case: str) -> Images:
    """All images of the sets, split by case so that no patient is on both sides.

    Args:
        folder: The data folder.
        sets: Folders or patterns below it, as in `Config`.
        validation_cases: The cases to keep out of training.
        case: Regular expression of the case, as in `Config`.

    Raises:
        InputError: A set holds no image, an image cannot be used, no image is of a validation case, or none is left for
            training.
    """
    held_out = set(validation_cases)
    seen: set[str] = set()
    training: list[Tensor] = []
    validation: list[Tensor] = []
    for name in sets:
        paths = [path for match in sorted(folder.glob(name)) for path in _sources(match)]
        if not paths:
            raise InputError(
                f"expected images or volumes under {name} in the training data, found none",
                "Name a folder of images, or a pattern, below the folder given with --data",
            )
        for path in paths:
            found = case_of(path.relative_to(folder), case)
            seen.add(found)
            (validation if found in held_out else training).extend(_planes(path))
    if held_out - seen:
        raise InputError(
            f"expected images of every validation case, found none of {', '.join(sorted(held_out - seen))}",
            "Write the cases as the file names do; quote one that begins with 0",
        )
    if not training or not validation:
        raise InputError(f"expected images on both sides of the split, found {len(training)} and {len(validation)}")
    return Images(tuple(training), tuple(validation))


def case_of(path: Path, case: str) -> str:
    r"""The case that an image or volume belongs to.

    Args:
        path: Its path below the data folder.
        case: Regular expression, matched against the whole path without suffixes; its first group is the case.

    Raises:
        InputError: The path does not match.

    >>> case_of(Path("mri/34012.png"), r"(?:.*/)?([^/]+)\d{3}")
    '34'
    """
    parts = path.with_name(path.name[: len(path.name) - len("".join(path.suffixes))]) if path.suffix else path
    found = re.fullmatch(case, parts.as_posix())
    if not found or not found[1]:
        raise InputError(
            f"expected a name that gives the case by the pattern {case}, found {path.name}",
            "Images are kept out of training by case: rename them, or set `case` in the training's file",
        )
    return found[1]


def _sources(match: Path) -> list[Path]:
    """The images of a folder of images, otherwise the image or volume itself."""
    pictures = sorted(path for path in match.iterdir() if is_picture(path)) if match.is_dir() else []
    return pictures or [match]


def _planes(path: Path) -> Iterator[Tensor]:
    if path.suffix.lower() in SUFFIXES:
        yield torch.from_numpy(read_picture(path).luminance)[None]
        return
    from medfuse.io.files import read  # the libraries of volumes, which pictures do without

    volume = read(path)
    display = display_of(volume, functional=volume.modality in (Modality.PT, Modality.NM))
    for values in volume.array:
        luminance, _ = display.show(values[None])
        if np.ptp(luminance) >= LEAST_CONTRAST:
            yield torch.from_numpy(np.array(luminance, np.float32))


def crops(images: tuple[Tensor, ...], count: int, side: int, generator: torch.Generator) -> Tensor:
    """Random square crops, mirrored at random, (count, 1, side, side)."""
    chosen = []
    for index in torch.randint(len(images), (count,), generator=generator).tolist():
        image = images[index]
        top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in image.shape[-2:])
        crop = image[:, top : top + side, left : left + side]
        chosen.append(crop.flip(-1) if torch.rand((), generator=generator) < 0.5 else crop)
    return torch.stack(chosen)
