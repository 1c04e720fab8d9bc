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
from medfuse.io import sidecar
from medfuse.io.pictures import SUFFIXES, is_picture, pictures_by_name, read_picture
from medfuse.train.config import PairSet

_SUFFIXES = (*sidecar.SUFFIXES, *SUFFIXES, ".dcm", ".ima", ".zip")
#: A slice whose luminances lie closer together than this shows nothing, and is left out.
LEAST_CONTRAST = 0.1
#: A hot spot begins at this share of the brightest functional luminance of an image, and is one wholly at the other.
HOT = (0.65, 0.85)


@dataclass(frozen=True)
class Images:
    """Grey images or luminances, each (1, H, W) float32 in [0, 1], or pairs of them, (4, H, W).

    The third plane of a pair says how much of a hot spot each pixel is, 0 where there is no tracer; the fourth has the
    number of its set everywhere.
    """

    training: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]


def read_images(folder: Path, sets: Iterable[str], validation_cases: Iterable[str], case: str) -> Images:
    """All images of the sets, split by case so that no patient is on both sides.

    Args:
        folder: The data folder.
        sets: Folders or patterns below it, as in `Config`. Uptake in a volume that does not say that it is PET or SPECT
            is shown as a grey scan is.
        validation_cases: The cases to keep out of training.
        case: Regular expression of the case, as in `Config`.

    Raises:
        InputError: A set holds no image, an image cannot be used, no image is of a validation case, or none is left for
            training.
    """
    split = _Split(folder, set(validation_cases), case)
    for name in sets:
        paths = [path for match in sorted(folder.glob(name)) for path in _sources(match)]
        if not paths:
            raise InputError(
                f"expected images or volumes under {name} in the training data, found none",
                "Name a folder of images, or a pattern, below the folder given with --data",
            )
        for path in paths:
            split.add(path, _planes(path, folder))
    return split.images()


def read_pairs(folder: Path, pairs: Iterable[PairSet], validation_cases: Iterable[str], case: str) -> Images:
    """All pairs of the sets, split by case so that no patient is on both sides.

    Args:
        folder: The data folder.
        pairs: Folders below it.
        validation_cases: The cases to keep out of training.
        case: Regular expression of the case, as in `Config`; of the structural image.

    Raises:
        InputError: A set holds no pair, an image cannot be used, the two of a pair differ in size, no image is of a
            validation case, or none is left for training.
    """
    split = _Split(folder, set(validation_cases), case)
    for number, one in enumerate(pairs):
        structural, functional = (
            pictures_by_name(folder / name) if (folder / name).is_dir() else {}
            for name in (one.structural, one.functional)
        )
        names = sorted(structural.keys() & functional.keys())
        if not names:
            raise InputError(
                f"expected images of the same names under {one.structural} and {one.functional} in the training data, "
                "found none",
                "Name two folders of images below the folder given with --data",
            )
        for name in names:
            planes = [torch.from_numpy(read_picture(side[name]).luminance)[None] for side in (structural, functional)]
            if planes[0].shape != planes[1].shape:
                raise InputError(f"expected two images of one size, found others for {name}")
            hot = hot_spots(planes[1]) if one.tracer else torch.zeros_like(planes[1])
            pair = torch.cat([*planes, hot, torch.full_like(hot, number)])
            split.add(structural[name], [pair], one.times)
    return split.images()


class _Split:
    """Images on the two sides of the split."""

    def __init__(self, folder: Path, held_out: set[str], case: str) -> None:
        self.folder, self.held_out, self.case = folder, held_out, case
        self.seen: set[str] = set()
        self.training: list[Tensor] = []
        self.validation: list[Tensor] = []

    def add(self, path: Path, images: Iterable[Tensor], times: int = 1) -> None:
        """Put images on the side of their case; for training as often as they count."""
        found = case_of(path.relative_to(self.folder), self.case)
        self.seen.add(found)
        if found in self.held_out:
            self.validation.extend(images)
        else:
            self.training.extend(list(images) * times)

    def images(self) -> Images:
        """Both sides, checked."""
        missing = sorted(self.held_out - self.seen)
        if missing:
            raise InputError(
                f"expected images of every validation case, found none of {', '.join(missing)}",
                "Write the cases as the file names do; quote one that begins with 0",
            )
        sides = len(self.training), len(self.validation)
        if 0 in sides:
            raise InputError(f"expected images on both sides of the split, found {sides[0]} and {sides[1]}")
        return Images(tuple(self.training), tuple(self.validation))


def hot_spots(functional: Tensor) -> Tensor:
    """How much of a hot spot each pixel is, 0 to 1, of a functional image, any shape, in [0, 1]."""
    low, high = HOT
    relative = functional / functional.max().clamp(min=1e-6)
    return ((relative - low) / (high - low)).clamp(0, 1)


def case_of(path: Path, case: str) -> str:
    r"""The case that an image or volume belongs to.

    Args:
        path: Its path below the data folder.
        case: Regular expression, matched against the whole path without the suffix of an image's format; its first
            group is the case.

    Raises:
        InputError: The path does not match.

    >>> case_of(Path("mri/34012.png"), r"(?:.*/)?([^/]+)\d{3}")
    '34'
    """
    suffix = next((end for end in _SUFFIXES if path.name.lower().endswith(end)), "")
    found = re.fullmatch(case, path.as_posix()[: -len(suffix) or None])
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


def _planes(path: Path, folder: Path) -> Iterator[Tensor]:
    if path.suffix.lower() in SUFFIXES:
        yield torch.from_numpy(read_picture(path).luminance)[None]
        return
    from medfuse.io.files import read  # the libraries of volumes, which pictures do without

    try:
        volume = read(path)
    except InputError as error:  # whose hint names options of other commands
        raise InputError(
            f"cannot train on {path.relative_to(folder)}: {error.args[0]}",
            "Leave it out of `sets`, or put what medfuse convert makes of it in its place",
        ) from error
    display = display_of(volume, functional=volume.modality.is_functional)
    for values in volume.array:
        luminance, _ = display.show(values[None])
        if np.ptp(luminance) >= LEAST_CONTRAST:
            yield torch.from_numpy(np.array(luminance, np.float32))


def crops(images: tuple[Tensor, ...], count: int, side: int, generator: torch.Generator) -> Tensor:
    """Random square crops, mirrored at random, (count, C, side, side)."""
    chosen = []
    for index in torch.randint(len(images), (count,), generator=generator).tolist():
        image = images[index]
        top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in image.shape[-2:])
        crop = image[:, top : top + side, left : left + side]
        chosen.append(crop.flip(-1) if torch.rand((), generator=generator) < 0.5 else crop)
    return torch.stack(chosen)
