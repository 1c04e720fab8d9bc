"""The comparison: pairs of one folder through every method and control, measured and saved, whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.benchmark.contenders import Contender, to_contenders, weights_of
from medfuse.benchmark.measuring import Planes, SafetyValues, Values, measure_planes, measure_safety, to_pictures
from medfuse.benchmark.table import Table
from medfuse.devices import choose_device
from medfuse.errors import GridMismatch, InputError, OutputError, UnsupportedImage
from medfuse.fusion import leaving_color, modality_beside
from medfuse.io.pictures import Picture, pictures_by_name, read_picture, write_picture
from medfuse.io.sidecar import modality_named, to_modality
from medfuse.metrics import MEASURES, SMALLEST, Convention
from medfuse.metrics.images import check_size
from medfuse.output import check_target, refuse_folder, refuse_strangers, whole
from medfuse.stages import Progress
from medfuse.volume import Modality

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Outputs:
    """Where to write; None writes nothing.

    Args:
        pictures: A folder for `METHOD/NAME.png`, of the methods that were asked for.
        json: A file for the table.
        csv: A file for the table.
        markdown: A file for the table.
    """

    pictures: Path | None = None
    json: Path | None = None
    csv: Path | None = None
    markdown: Path | None = None

    def paths(self) -> list[Path]:
        """Those that are to be written."""
        return [path for path in (self.pictures, self.json, self.csv, self.markdown) if path]

    def check(self, *, overwrite: bool, inputs: Iterable[Path]) -> None:
        """Refuse what could not be written in the end.

        Raises:
            ValueError: One lies in another.
            OutputError: One exists, or holds an input.
        """
        for first, second in combinations([Path(os.path.realpath(path)) for path in self.paths()], 2):
            if first.is_relative_to(second) or second.is_relative_to(first):
                raise ValueError(f"expected outputs apart from one another, got {first.name} and {second.name}")
        for path in self.paths():
            check_target(path, overwrite, inputs)
            if path is not self.pictures:
                refuse_folder(path)
        if self.pictures and self.pictures.exists() and not self.pictures.is_dir():
            raise OutputError(
                f"expected a folder for pictures, found the file {self.pictures.name}", "Choose another name"
            )


@dataclass(frozen=True)
class ImagePair:
    """Two images of one name."""

    name: str
    structural: Path
    functional: Path

    def read(self) -> tuple[Picture, Picture]:
        """Both images.

        Raises:
            InputError: One cannot be used.
            GridMismatch: They differ in size.
        """
        structural, functional = read_picture(self.structural), read_picture(self.functional)
        if structural.size != functional.size:
            raise GridMismatch(
                f"expected two images of one size, found {structural.size} and {functional.size} for {self.name}",
                "Register and resample one to the other first",
            )
        return structural, functional


def run(
    folder: Path,
    *,
    structural: str,
    functional: str,
    functional_modality: str | None = None,
    methods: str = "all",
    convention: Convention = "standard",
    device: str = "auto",
    names: str | None = None,
    limit: int | None = None,
    outputs: Outputs | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Table:
    """Fuse and measure all pairs of a folder by several methods, and by the controls.

    Args:
        folder: Holds two folders of 2-D images; same names, suffix aside, make a pair.
        structural: Name of the folder of structural images; of colour their luminance is taken.
        functional: Name of the folder of functional images, grey or in colour.
        functional_modality: "pet", "spect", "ct" or "mr"; None for what the folder's name says. Of no account where the
            structural folder's name says CT.
        methods: Comma-separated `NAME[:STRATEGY][@WEIGHTS]`, or "all".
        convention: That of the measures: "standard" or "paper".
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        names: Comma-separated patterns such as `28???,33???`; only pairs so named, without suffix, are taken.
        limit: At most so many pairs, spread evenly over all, in order of their names.
        outputs: What to write.
        overwrite: Replace what an earlier run wrote there.
        progress: Called after each pair.

    Raises:
        ValueError: An unknown word, the same folder twice, or a limit below 1; or results of two methods would be
            saved to one folder.
        InputError: A folder is missing, there is no pair, or an image cannot be used.
        GridMismatch: Two images of a pair differ in size.
        WeightsError: Weights cannot be used.
        OutputError: A target exists, or cannot be written.
    """
    if convention not in MEASURES:
        raise ValueError(f"expected a convention of {', '.join(MEASURES)}, got {convention!r}")
    beside = modality_named(structural)
    modality = modality_beside(
        beside,
        to_modality(functional_modality) if functional_modality else modality_named(functional),
    )
    outputs = outputs or Outputs()
    inputs = (folder / structural, folder / functional, *weights_of(methods))
    outputs.check(overwrite=overwrite, inputs=inputs)
    chosen = choose_device(device)
    contenders = to_contenders(methods, str(chosen), modality)
    asked = [contender for contender in contenders if contender.is_asked]
    folders = [contender.folder.casefold() for contender in asked]  # as some file systems compare names
    if outputs.pictures and (alike := [one.name for one in asked if folders.count(one.folder.casefold()) > 1]):
        raise ValueError(f"expected methods with a folder each to save to, got one for {', '.join(alike)}")
    pairs, left_out = find_pairs(folder, structural, functional, names, limit)
    colors = [_has_color(pair, convention) for pair in pairs]  # what cannot be used is told now, not after an hour
    if outputs.pictures and outputs.pictures.is_dir():
        made = [name for one in asked for name in (one.folder, *(f"{one.folder}/{pair.name}.png" for pair in pairs))]
        refuse_strangers(outputs.pictures, made)
    with ExitStack() as stack:

        def place(path: Path | None) -> Path | None:
            return stack.enter_context(whole(path, overwrite=overwrite, inputs=inputs)) if path else None

        pictures, *files = (place(path) for path in (outputs.pictures, outputs.json, outputs.csv, outputs.markdown))
        values, safety, seconds = _compare(
            pairs, contenders, beside, convention, chosen, any(colors), pictures, progress
        )
        table = Table(
            convention,
            structural,
            functional,
            str(chosen),
            tuple(pair.name for pair in pairs),
            tuple(contender.name for contender in contenders),
            tuple(contender.name for contender in contenders if contender.is_control),
            values,
            seconds,
            left_out,
            safety,
        )
        for file, form in zip(files, (table.to_json, table.to_csv, table.to_markdown), strict=True):
            if file:
                file.write_text(form(), encoding="utf-8")
    return table


def _has_color(pair: ImagePair, convention: Convention) -> bool:
    """Whether the functional image has colour.

    Raises:
        InputError: The pair cannot be used.
    """
    structural, functional = pair.read()
    try:
        check_size(structural.luminance.shape, SMALLEST[convention])
    except UnsupportedImage as error:
        raise UnsupportedImage(f"{pair.name}: {error.args[0]}", error.hint) from error
    return functional.chroma is not None


def find_pairs(
    folder: Path, structural: str, functional: str, names: str | None = None, limit: int | None = None
) -> tuple[list[ImagePair], int]:
    """The pairs of a folder in order of their names, and how many images have no partner.

    Args:
        folder: As for `run`.
        structural: As for `run`.
        functional: As for `run`.
        names: As for `run`.
        limit: As for `run`.

    Raises:
        ValueError: The two folders are one, or the limit is below 1.
        InputError: A folder is missing, one name is there twice, or the folders have no name in common.
    """
    if os.path.realpath(folder / structural) == os.path.realpath(folder / functional):
        raise ValueError(f"expected two folders of images, got {structural!r} twice")
    if limit is not None and limit < 1:
        raise ValueError(f"expected a limit of at least 1 pair, got {limit}")
    first, second = (_images(folder, name) for name in (structural, functional))
    common = sorted(first.keys() & second.keys())
    if not common:
        raise InputError(
            f"expected images of one name in {structural} and {functional}, found no common name "
            f"among {len(first)} and {len(second)} images",
            "Name the two images of a pair alike",
        )
    left_out = len(first) + len(second) - 2 * len(common)
    if names is not None:
        patterns = [pattern.strip() for pattern in names.split(",")]
        common = [name for name in common if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not common:
            raise InputError(
                f"expected pairs named {names}, found none", "Patterns are compared with names without suffix"
            )
    count = min(limit or len(common), len(common))
    chosen = [common[index * len(common) // count] for index in range(count)]
    return [ImagePair(name, first[name], second[name]) for name in chosen], left_out


def _images(folder: Path, name: str) -> dict[str, Path]:
    """The images of a folder by name, without suffix."""
    place = folder / name
    if not place.is_dir():
        raise InputError(
            f"expected a folder {name} of images in {folder.name}, found none",
            "Name the folders of DIR with --structural and --functional",
        )
    return pictures_by_name(place)


def _compare(
    pairs: list[ImagePair],
    contenders: list[Contender],
    beside: Modality,
    convention: Convention,
    device: torch.device,
    is_color: bool,
    pictures: Path | None,
    progress: Progress | None,
) -> tuple[Values, SafetyValues, NDArray[np.float64]]:
    """By (measure, side) the values, by measure of safety the values, and the seconds, each (pairs, methods)."""
    found: list[Values] = []
    safe: list[SafetyValues] = []
    seconds: list[list[float]] = []
    _warm_up(pairs[0], contenders)
    for done, pair in enumerate(pairs, 1):
        structural, functional = pair.read()
        planes = structural.luminance[None], functional.luminance[None]
        results, times = zip(*(_timed(contender, *planes) for contender in contenders), strict=True)
        fused = [leaving_color(result, functional.chroma, beside) for result in results]
        sources = (np.broadcast_to(plane, (len(contenders), *plane.shape[1:])) for plane in planes)
        found.append(measure_planes(np.concatenate(fused), *sources, convention=convention, device=device))
        if convention == "standard":
            safe.append(_check(np.concatenate(fused), structural, functional, is_color))
        seconds.append(list(times))
        if pictures:
            _save(pictures, f"{pair.name}.png", contenders, fused, functional)
        if progress:
            progress("comparing", done, len(pairs))
    return _stacked(found), _stacked(safe), np.array(seconds)


def _stacked(rows: list[dict[_Key, NDArray[np.float64]]]) -> dict[_Key, NDArray[np.float64]]:
    """By key what the rows, one a pair, hold of it."""
    return {key: np.stack([row[key] for row in rows]) for key in (rows[0] if rows else ())}


def _check(fused: Planes, structural: Picture, functional: Picture, is_color: bool) -> SafetyValues:
    """What one pair's results do that they must not, as they would be saved; by measure, (methods,)."""
    chroma = functional.chroma
    if is_color and chroma is None:  # a grey picture among others in colour
        chroma = np.zeros((*functional.luminance.shape, 2), np.float32)
    pictures = [to_pictures(structural.luminance[None], None), to_pictures(functional.luminance[None], chroma)]
    return measure_safety(to_pictures(fused, chroma), *(one.expand(len(fused), -1, -1, -1) for one in pictures))


def _warm_up(pair: ImagePair, contenders: list[Contender]) -> None:
    """Let everything be loaded, so that the first pair takes no longer than the others."""
    planes = [picture.luminance[None] for picture in pair.read()]
    for contender in contenders:
        contender.fuse(*planes)


def _timed(contender: Contender, structural: Planes, functional: Planes) -> tuple[Planes, float]:
    started = time.perf_counter()
    fused = contender.fuse(structural, functional)
    return fused, time.perf_counter() - started


def _save(
    pictures: Path,
    name: str,
    contenders: list[Contender],
    fused: list[Planes],
    functional: Picture,
) -> None:
    for contender, planes in zip(contenders, fused, strict=True):
        if contender.is_asked:
            folder = pictures / contender.folder
            folder.mkdir(parents=True, exist_ok=True)
            write_picture(folder / name, planes[0], functional.chroma)
