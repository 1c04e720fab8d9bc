"""The whole path on one page: read two volumes, align them, lay them on one grid, fuse them, write the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from medfuse.align import Registration, Transform, overlap, resample
from medfuse.align import register as run_registration
from medfuse.color import CT_WINDOWS, PALETTES, Percentiles, Window, parse_window
from medfuse.errors import GeometryError, NoOverlap, OutputError, PatientMismatch, UnsupportedImage
from medfuse.fusion import DEFAULT_PALETTE, Engine, display_of
from medfuse.grid import Grid
from medfuse.io.files import check_output, known_suffix, read, write
from medfuse.io.limits import MAX_VOXELS
from medfuse.io.output import whole
from medfuse.volume import Pair, Step, Unit, Volume

REGISTER = ("auto", "rigid", "affine", "none")
GRIDS = ("structural", "functional")
FORMATS = ("dicom", "nifti", "both")

#: How many times its own uncertainty a registration must move a volume before it is believed against the header,
#: where the files do not say whether their coordinates are one (docs/alignment.md has the measurements).
CLEAR_SHIFT = 2.0

#: Called with (what is being done, done, total).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Alignment:
    """How two volumes were brought together.

    Args:
        transform: From the structural world to the functional one.
        reason: Why this transform: what it rests on, in words.
        registration: The numbers of the registration that was run, if one was.
    """

    transform: Transform
    reason: str
    registration: Registration | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "reason": self.reason,
            "moving_from_fixed": self.transform.moving_from_fixed.tolist(),
            "registration": self.registration.to_json() if self.registration else None,
        }


def align(
    structural: Volume,
    functional: Volume,
    register: str = "auto",
    transform: Transform | None = None,
    progress: Progress | None = None,
) -> Alignment:
    """Decide how the functional volume lies on the structural one.

    Args:
        structural: The volume that stays.
        functional: The volume that moves.
        register: "auto" trusts the header where both share a frame of reference or a grid; where their frames differ it
            registers; where a file states no frame, it registers and believes the result only if it clearly leads away
            from the header's alignment. "rigid" and "affine" register in any case; "none" takes the header's alignment.
        transform: A known transform from the structural to the functional world, instead of all that.
        progress: Called as the registration goes on.

    Raises:
        ValueError: An unknown `register`.
        NoOverlap: The header's alignment is to be taken, and leaves the two apart.
        RegistrationError: No alignment was found.
    """
    if register not in REGISTER:
        raise ValueError(f"expected a register of {', '.join(REGISTER)}, got {register!r}")
    if transform is not None:
        return Alignment(transform, "given")
    trusted = _shared_coordinates(structural.grid, functional.grid)
    if register == "none" or (register == "auto" and trusted):
        if overlap(structural.grid, functional.grid) == 0:
            raise NoOverlap(
                "expected two volumes that overlap, found that by their headers nothing of one lies inside the other",
                "If both show the same body part, let them be registered with --register rigid",
            )
        return Alignment(Transform.identity(), trusted or "header, as asked")
    kind = "rigid" if register == "auto" else register
    registration = run_registration(
        structural, functional, kind, progress=partial(progress, "registering") if progress else None
    )
    if register == "auto" and _header_holds(structural.grid, functional.grid, registration):
        return Alignment(
            Transform.identity(), "header, from which a registration did not clearly lead away", registration
        )
    return Alignment(registration.transform, f"{kind} registration, not verified: check it by eye", registration)


def fuse(
    structural: Volume | str | Path,
    functional: Volume | str | Path,
    *,
    method: str = "dilran",
    strategy: str | None = None,
    register: str = "auto",
    transform: Alignment | Transform | None = None,
    grid: str | float | Grid = "structural",
    palette: str = DEFAULT_PALETTE,
    window: str | Window | Percentiles | None = None,
    structural_window: str | Window | Percentiles | None = None,
    device: str = "auto",
    weights: Path | None = None,
    engine: Engine | None = None,
    any_patient: bool = False,
    progress: Progress | None = None,
) -> Volume:
    """Fuse two scans of one patient.

    Args:
        structural: MR or CT, as a volume or a path to read.
        functional: PET or SPECT (shown in colour), an RGB volume, or the other of CT and MR (shown in grey).
        method: A key of `medfuse.METHODS`.
        strategy: How a learned method merges features; None for its default.
        register: See `align`.
        transform: A known transform or alignment from the structural to the functional world.
        grid: Where the result lies: "structural", "functional", a voxel size in mm (the structural block with cubic
            voxels), or any `Grid` in the structural world.
        palette: Palette of the uptake, a key of `medfuse.PALETTES`.
        window: Window of the functional volume (see `medfuse.parse_window`); default SUV 0-10, or percentiles where
            there are no SUV, or soft tissue for CT.
        structural_window: Window of the structural volume; default soft tissue for CT, percentiles for MR.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        weights: Weights in place of the shipped ones.
        engine: A warm engine; then method, strategy, device and weights are not looked at.
        any_patient: Do not ask whether both scans are of one patient.
        progress: Called as the work goes on.

    Returns:
        RGB uint8 where the functional volume is shown in colour, otherwise float32 in [0, 1]: for display, never HU or
        SUV. Its history says everything that was done.

    Raises:
        ValueError: An unknown word among the arguments.
        MedfuseError: See `medfuse.errors`.
    """
    structural = structural if isinstance(structural, Volume) else read(structural)
    functional = functional if isinstance(functional, Volume) else read(functional)
    check_pair(structural, functional, any_patient=any_patient)
    shown_structural = display_of(structural, functional=False, window=to_window(structural_window, structural))
    shown_functional = display_of(functional, functional=True, window=to_window(window, functional), palette=palette)
    engine = engine or Engine(method, strategy, device, weights)
    target = _target(structural, functional, grid)
    if not isinstance(transform, Alignment):
        transform = align(structural, functional, register, transform, progress)
    pair = _on_grid(structural, functional, transform.transform, target)
    fused = engine.fuse(pair, shown_structural, shown_functional, partial(progress, "fusing") if progress else None)
    if target is functional.grid:
        fused = replace(fused, source=replace(functional.source, also=(structural.source,)))
    return replace(
        fused,
        history=(
            Step("align", transform.to_json()),
            Step(
                "fuse",
                {
                    "method": engine.method.name,
                    "strategy": engine.method.strategy,
                    "weights_sha256": engine.method.weights_sha256,
                    "grid": grid if isinstance(grid, str | float | int) else "given",
                    "structural": _described(structural, str(shown_structural.window), None),
                    "functional": _described(functional, str(shown_functional.window), shown_functional.palette),
                    "meaning": "for display only: values are neither HU nor SUV; not for diagnostic use",
                },
            ),
        ),
    )


def write_fused(
    fused: Volume, out: Path, format: str | None = None, *, overwrite: bool = False, inputs: tuple[Path, ...] = ()
) -> list[Path]:
    """Write a fused volume: all of it or nothing.

    Args:
        fused: What `fuse` returned.
        out: A folder; or a file whose suffix names the format.
        format: "dicom" makes `out` a folder of slices; "nifti" puts `fused.nii.gz` and `fused.json` in it; "both" puts
            these there beside a folder `dicom`. None: DICOM where the structural scan was DICOM, otherwise NIfTI.
        overwrite: Replace what an earlier run wrote there.
        inputs: What was read, and must not be replaced.

    Returns:
        The files written.

    Raises:
        ValueError: An unknown format.
        OutputError: The target exists or cannot be written, or has the name of another format.
    """
    check_target(out, format, overwrite=overwrite, inputs=inputs)
    format = format or ("nifti" if fused.source.header is None else "dicom")
    if known_suffix(out) or format == "dicom":
        return write(fused, out, overwrite=overwrite, inputs=inputs)
    with whole(out, overwrite=overwrite, inputs=inputs) as beside:
        written = write(fused, beside / "fused.nii.gz")
        if format == "both":
            written += write(fused, beside / "dicom", format="dicom")
        written = [out / path.relative_to(beside) for path in written]
    return written


def check_target(
    out: Path, format: str | None = None, *, overwrite: bool = False, inputs: tuple[Path, ...] = ()
) -> None:
    """Refuse a target that `write_fused` would refuse, before anything is computed.

    Args:
        out: As for `write_fused`.
        format: As for `write_fused`.
        overwrite: As for `write_fused`.
        inputs: As for `write_fused`.

    Raises:
        ValueError: An unknown format.
        OutputError: The target exists, cannot be written to, or has the name of another format.
    """
    if format not in (*FORMATS, None):
        raise ValueError(f"expected a format of {', '.join(FORMATS)}, got {format!r}")
    if known_suffix(out) and format == "both":
        raise OutputError(f"expected a folder for both formats, found the file name {out.name}", "Name a folder")
    named = format if known_suffix(out) or format == "dicom" else None
    check_output(out, format=named, overwrite=overwrite, inputs=inputs)


def check_words(*, register: str, grid: str, palette: str, windows: Iterable[str | None] = ()) -> None:
    """Refuse a word that nothing here knows, before anything is read.

    Raises:
        ValueError: One of them is unknown.
    """
    for name, word, known in (("register", register, REGISTER), ("palette", palette, PALETTES)):
        if word not in known:
            raise ValueError(f"expected a {name} of {', '.join(known)}, got {word!r}")
    if grid not in GRIDS:
        _spacing(grid)
    for window in windows:
        if window is not None:
            parse_window(window)


def check_pair(structural: Volume, functional: Volume, *, any_patient: bool = False) -> None:
    """Refuse what can be seen to be wrong before anything is computed.

    Raises:
        UnsupportedImage: The structural volume is in colour, or shows uptake.
        PatientMismatch: The headers name two patients.
    """
    if structural.is_color or structural.modality.is_functional:
        found = "a colour volume" if structural.is_color else f"a {structural.modality.value} volume"
        raise UnsupportedImage(
            f"expected a grey MR or CT as the structural volume, found {found}",
            "Give the MR or CT first and the PET, SPECT or colour volume second",
        )
    if not any_patient and _different_patients(structural, functional):
        raise PatientMismatch(
            "expected two scans of one patient, found two patient identities in the headers",
            "If they are one patient under two identities, pass --any-patient",
        )


def _different_patients(structural: Volume, functional: Volume) -> bool:
    """By patient ID, or by name and birth date where an ID is missing; what is missing in one file decides nothing."""
    first, second = structural.source.header, functional.source.header
    if first is None or second is None:
        return False

    def stated(header: Mapping[str, Any], *keywords: str) -> tuple[str, ...]:
        return tuple(str(getattr(header, keyword, "") or "").strip().upper() for keyword in keywords)

    for keywords in (("PatientID",), ("PatientName", "PatientBirthDate")):
        one, other = stated(first, *keywords), stated(second, *keywords)
        if all(one) and all(other):
            return one != other
    return False


def _shared_coordinates(structural: Grid, functional: Grid) -> str:
    """Why the two worlds can be taken as one, in words; empty where nothing says so."""
    if structural.frame_of_reference and structural.frame_of_reference == functional.frame_of_reference:
        return "one frame of reference"
    if structural.matches(functional):
        return "one grid"
    return ""


def _header_holds(structural: Grid, functional: Grid, registration: Registration) -> bool:
    """Whether the header's alignment stands against a registration, where a file states no frame of reference."""
    unstated = structural.frame_of_reference is None or functional.frame_of_reference is None
    return unstated and registration.shift_mm <= CLEAR_SHIFT * registration.spread_mm


def _target(structural: Volume, functional: Volume, grid: str | float | Grid) -> Grid:
    if isinstance(grid, Grid):
        return grid
    if grid == "structural":
        return structural.grid
    if grid == "functional":
        return functional.grid
    return _fine(structural.grid, _spacing(grid))


def _fine(grid: Grid, spacing_mm: float) -> Grid:
    """The same block of space with another voxel size, if that can be held in memory."""
    voxels = math.prod(grid.extent_mm) / spacing_mm**3
    if voxels > MAX_VOXELS:
        raise GeometryError(
            f"expected a grid of at most {MAX_VOXELS} voxels, found that {spacing_mm:g} mm makes about {voxels:.1g}",
            "Choose a larger voxel size",
        )
    return grid.with_spacing(spacing_mm)


def _spacing(text: str | float) -> float:
    try:
        spacing_mm = float(text)
    except ValueError:
        spacing_mm = 0.0
    if not 0 < spacing_mm < float("inf"):
        raise ValueError(f"expected a grid of {', '.join(GRIDS)} or a voxel size in mm, got {text!r}")
    return spacing_mm


def _on_grid(structural: Volume, functional: Volume, transform: Transform, target: Grid) -> Pair:
    """Both volumes on the target grid, each interpolated at most once."""
    if target is functional.grid:
        return Pair(resample(structural, target, transform.inverse()), functional)
    return Pair(resample(structural, target), resample(functional, target, transform))


def to_window(choice: str | Window | Percentiles | None, volume: Volume) -> Window | Percentiles | None:
    """The window of a volume from text, or as it is; None stays None: the default of the scan.

    Raises:
        ValueError: The text is no window.
        UnsupportedImage: It names a CT window, and the volume is not in HU.
    """
    if not isinstance(choice, str):
        return choice
    if choice in CT_WINDOWS and volume.unit is not Unit.HU:
        raise UnsupportedImage(
            f"expected a CT in HU for the window {choice}, found {volume.modality.value} in {volume.unit.value}",
            "Give the window as LOWER:UPPER or LOWER%:UPPER%; if it is a CT, say so with the modality",
        )
    return parse_window(choice)


def _described(volume: Volume, window: str, palette: str | None) -> dict[str, Any]:
    """What went in, for the history of what came out."""
    return {
        "modality": volume.modality.value,
        "unit": volume.unit.value,
        "shape": list(volume.grid.shape),
        "spacing_mm": [round(size, 6) for size in volume.grid.spacing_mm],
        "window": "as it is" if volume.is_color else window,
        "palette": palette,
        "history": [{"name": step.name, "parameters": dict(step.parameters)} for step in volume.history],
    }
