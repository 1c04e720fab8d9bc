"""One result measured: an image beside its two sources, or a volume slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medfuse.benchmark.measuring import SLICES_AT_ONCE, Planes, Shown, Values, check_shown, measure_planes
from medfuse.benchmark.table import SIDES, Safety, Statistic, described, heading, measures_of, number
from medfuse.color import Percentiles, Window
from medfuse.defaults import PALETTE
from medfuse.devices import choose_device
from medfuse.errors import GridMismatch, MedfuseError, UnsupportedImage
from medfuse.fusion import Display, display_of
from medfuse.io.dicom_header import words
from medfuse.io.dicom_slices import FUSED_MAX
from medfuse.io.files import read
from medfuse.io.pictures import is_picture, read_picture
from medfuse.markdown import markdown
from medfuse.metrics import MEASURES, Convention
from medfuse.pipeline import to_window
from medfuse.volume import Modality, Unit, Volume, parameters_of

#: How far a fused volume may leave [0, 1]; interpolation and rounding do, a little.
OVERSHOOT = 1e-3
#: What the three are called, in the order in which they are given.
PLACES = ("fused", "structural", "functional")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Result:
    """What every measure gave one result.

    Args:
        convention: That of the measures.
        values: By (measure, side), one a slice, (n,); an image has one slice.
        left_out: Slices that were not measured, because nothing is in either source.
        safety: By measure of `SAFETY`, (n,): one a slice, the empty ones among them, or one of the whole volume; of
            colour only where the functional source has some, and empty in the paper's convention.
    """

    convention: Convention
    values: Values
    left_out: int = 0
    safety: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def slices(self) -> int:
        """How many slices were measured."""
        return len(next(iter(self.values.values())))

    def statistic(self, measure: str, side: str = "value") -> Statistic:
        """Over all slices; a KeyError says that the measure has no such side."""
        return Statistic.of(self.values[measure, side])

    def safety_of(self, measure: str) -> Safety:
        """Over all slices; a KeyError says that the measure was not taken."""
        return Safety.of(measures_of([measure])[0], self.safety[measure])

    def cells(self) -> list[list[str]]:
        """Rows of text, the header first: a row a measure, a column a side."""
        rows = [["measure", "both", "structural", "functional", "worse"]]
        for measure in MEASURES[self.convention]:
            sides = ((measure.name, side) for side in SIDES)
            cells = [number(self.statistic(*key).mean) if key in self.values else "" for key in sides]
            rows.append([heading(measure), *cells])
        for measure in measures_of(self.safety):
            rows.append([heading(measure), str(self.safety_of(measure.name)), "", "", ""])
        return rows

    @property
    def title(self) -> str:
        """What the table is of, in one line."""
        slices = f"mean of {self.slices} slices ({self.left_out} empty ones left out); " if self.slices > 1 else ""
        return f"{slices}{self.convention} convention"

    def to_markdown(self) -> str:
        """Title and table."""
        return f"{self.title}\n\n{markdown(self.cells())}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, without infinities."""
        measures = [
            {
                **described(measure),
                **{
                    side: self.statistic(measure.name, side).to_json()
                    for side in SIDES
                    if (measure.name, side) in self.values
                },
            }
            for measure in MEASURES[self.convention]
        ]
        return {
            "convention": self.convention,
            "slices": self.slices,
            "left_out": self.left_out,
            "measures": {one.pop("name"): one for one in measures},
            "safety": {
                measure.name: {**described(measure), "value": self.safety_of(measure.name).to_json()}
                for measure in measures_of(self.safety)
            },
        }


def score_result(
    fused: Path,
    structural: Path,
    functional: Path,
    *,
    convention: Convention = "standard",
    window: str | Window | Percentiles | None = None,
    structural_window: str | Window | Percentiles | None = None,
    palette: str | None = None,
    series: tuple[str | None, str | None, str | None] = (None, None, None),
    device: str = "auto",
    progress: Progress | None = None,
) -> Result:
    """Measure one result against the two sources it was made from: three images, or three volumes on one grid.

    Args:
        fused: What was fused: an image, or a volume in colour or in [0, 1].
        structural: The structural source, as it was fused. What its file does not say, the history says.
        functional: The functional one.
        convention: That of the measures.
        window: Of a functional volume, the one it was fused with, as for `medfuse.fuse`; None for the one that the
            fused volume's history names, or else its default.
        structural_window: Of a structural volume, likewise.
        palette: Of a functional volume that shows uptake, likewise.
        series: Of each of the three, as for `medfuse.read`, where a DICOM folder holds several.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        progress: Called with (slices done, slices).

    Raises:
        ValueError: An unknown word.
        InputError: Something cannot be read, or is empty or too small to be measured; or a source is in another unit
            than the history says, and no window is named for it.
        GridMismatch: The three are not of one size, or not on one grid.
    """
    if convention not in MEASURES:
        raise ValueError(f"expected a convention of {', '.join(MEASURES)}, got {convention!r}")
    paths = (fused, structural, functional)
    chosen = choose_device(device)
    if any(is_picture(path) for path in paths):
        for what, given in (("windows", window or structural_window), ("a palette", palette), ("series", any(series))):
            if given:
                raise ValueError(f"expected {what} for volumes only, got one for images")
        shown, kept = _read_pictures(paths), np.array([True])
    else:
        volumes = tuple(map(_read, PLACES, paths, series))
        shown = _shown(volumes, structural_window, window, palette)
        kept = np.any([_varied(luminance) for luminance, _ in shown[1:]], axis=0)
    if not kept.any():
        raise UnsupportedImage("expected something in a source, found every slice of both empty", "Check the windows")
    indices = np.flatnonzero(kept)
    found = []
    for start in range(0, len(indices), SLICES_AT_ONCE):
        part = indices[start : start + SLICES_AT_ONCE]
        planes = (luminance[part] for luminance, _ in shown)
        found.append(measure_planes(*planes, convention=convention, device=chosen))
        if progress:
            progress(start + len(part), len(indices))
    values = {key: np.concatenate([one[key] for one in found]) for key in found[0]}
    safety = check_shown(*shown) if convention == "standard" else {}
    return Result(convention, values, int(len(kept) - len(indices)), safety)


def _read_pictures(paths: tuple[Path, ...]) -> list[Shown]:
    """Three images as (1, H, W) each."""
    if not all(is_picture(path) for path in paths):
        raise UnsupportedImage("expected three images or three volumes, found both kinds", "Give three of one kind")
    pictures = [read_picture(path) for path in paths]
    sizes = [picture.size for picture in pictures]
    if len(set(sizes)) > 1:
        raise GridMismatch(
            f"expected three images of one size, found {', '.join(sizes)} pixels (fused, structural, functional)",
            "Score the result beside the images it was made from",
        )
    return [(one.luminance[None], None if one.chroma is None else one.chroma[None]) for one in pictures]


def _read(place: str, path: Path, series: str | None) -> Volume:
    """Read one of the three; an error says which, and what `medfuse score` has for it."""
    try:
        return read(path, series=series)
    except MedfuseError as error:
        hint = error.hint.replace("--series", f"--{place}-series")
        if any(option in hint for option in ("--frame", "--allow-2d", "--allow-gaps", "--fill-nan")):
            hint = "Make one volume of it first: medfuse convert has --frame, --allow-2d, --allow-gaps and --fill-nan"
        raise type(error)(f"{place} volume: {error.args[0]}", hint) from error


def _shown(
    volumes: tuple[Volume, ...],
    structural_window: str | Window | Percentiles | None,
    window: str | Window | Percentiles | None,
    palette: str | None,
) -> list[Shown]:
    """Three volumes on one grid as luminances (K, J, I) each, with their chroma."""
    fused, structural, functional = volumes
    for name, volume in (("structural", structural), ("functional", functional)):
        if not volume.grid.matches(fused.grid):
            shapes = [" × ".join(map(str, one.grid.shape)) for one in (volume, fused)]
            found = (
                "at another place or spacing"
                if shapes[0] == shapes[1]
                else f"of {shapes[0]} against {shapes[1]} voxels"
            )
            raise GridMismatch(
                f"expected the sources on the grid of the result, found the {name} one {found}",
                "Resample the sources to the result's grid first (in Python: medfuse.resample)",
            )
    palette = palette or _told(fused, "functional").get("palette") or PALETTE
    structural, structural_window = _as_fused(structural, fused, "structural", structural_window)
    functional, window = _as_fused(functional, fused, "functional", window)
    displays = (
        _display_of_result(fused),
        display_of(structural, functional=False, window=structural_window),
        display_of(functional, functional=True, window=window, palette=palette),
    )
    return [display.show(volume.array) for display, volume in zip(displays, volumes, strict=True)]


def _as_fused(
    volume: Volume, fused: Volume, side: str, choice: str | Window | Percentiles | None
) -> tuple[Volume, Window | Percentiles | None]:
    """A source as what it was fused as, by the result's history, with the window it was fused with, or that chosen.

    `fuse` may have been told what its file does not say; that alone changes no value.

    Raises:
        UnsupportedImage: It is in another unit than what was fused, and no window was chosen for it.
    """
    told = _told(fused, side)
    try:
        modality, unit = Modality(told.get("modality")), Unit(told.get("unit"))
    except ValueError:
        return volume, to_window(choice, volume)
    says_nothing = volume.unit is Unit.ARBITRARY and volume.modality in (Modality.OTHER, modality)
    if volume.unit is unit or (says_nothing and unit is not Unit.RGB):
        volume = replace(volume, modality=modality, unit=unit)
        return volume, to_window(choice or (None if volume.is_color else told.get("window")), volume)
    if not choice:
        raise UnsupportedImage(
            f"expected the {side} source as it was fused, {modality.value} in {unit.value}, "
            f"found {volume.modality.value} in {volume.unit.value}",
            "Give what was fused, the structural scan first, or name the window of that source in its own unit",
        )
    return volume, to_window(choice, volume)


def _told(fused: Volume, side: str) -> Mapping[str, Any]:
    """What a result's history says of a source; empty where it says nothing."""
    told = parameters_of(fused.history, "fuse").get(side)
    return told if isinstance(told, Mapping) else {}


def _display_of_result(fused: Volume) -> Display:
    """A result is shown as it is."""
    if fused.is_color:
        return Display(None, None)
    lowest, highest = float(fused.array.min()), float(fused.array.max())
    if highest > 1 + OVERSHOOT and "FUSED" in words(fused.source.header or Dataset(), "ImageType"):
        return Display(Window(0, FUSED_MAX), None)
    if not (lowest >= -OVERSHOOT and highest <= 1 + OVERSHOOT):
        raise UnsupportedImage(
            f"expected a fused volume in colour or in [0, 1], found values from {lowest:g} to {highest:g}",
            "Give what was fused first, as `medfuse fuse` wrote it, then the structural and the functional scan",
        )
    return Display(Window(0, 1), None)


def _varied(planes: Planes) -> NDArray[np.bool_]:
    """Which slices are not constant. (K, J, I) to (K,)."""
    varied: NDArray[np.bool_] = planes.max(axis=(1, 2)) > planes.min(axis=(1, 2))
    return varied
