"""The whole path on one page: read two volumes, align them, lay them on one grid, fuse them, write the result."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from medfuse.align import Registration, Transform, resample
from medfuse.align.warp import Warp
from medfuse.alignment import REGISTER, Alignment, align
from medfuse.color import CT_WINDOWS, PALETTES, Percentiles, Window, parse_window
from medfuse.defaults import METHOD, PALETTE
from medfuse.errors import GeometryError, OutputError, PatientMismatch, UnsupportedImage
from medfuse.fusion import Display, Engine, display_of, least_color, modality_beside, slices_whitened
from medfuse.grid import Grid
from medfuse.io.dicom_deidentify import deidentified
from medfuse.io.dicom_header import words
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.dicom_uids import uids_of
from medfuse.io.files import check_output, known_suffix, read, write
from medfuse.io.limits import MAX_VOXELS
from medfuse.io.results import NAMES, write_resampled_scan, write_result
from medfuse.output import whole
from medfuse.stages import Progress, stage
from medfuse.volume import Pair, Step, Unit, Volume

GRIDS = ("structural", "functional")
FORMATS = ("dicom", "nifti", "both")
#: Folder, in that of the result, of what rode along.
ALSO = "also"


def fuse(
    structural: Volume | str | Path,
    functional: Volume | str | Path,
    *,
    method: str = METHOD,
    strategy: str | None = None,
    register: str = "auto",
    transform: Alignment | Registration | Transform | Warp | None = None,
    accept_untrusted: bool = False,
    grid: str | float | Grid = "structural",
    palette: str = PALETTE,
    window: str | Window | Percentiles | None = None,
    structural_window: str | Window | Percentiles | None = None,
    device: str = "auto",
    weights: str | Path | None = None,
    engine: Engine | None = None,
    any_patient: bool = False,
    threads: int | None = None,
    precision: str = "float32",
    memory_mib: int | None = None,
    progress: Progress | None = None,
) -> Volume:
    """Fuse two scans of one patient.

    Args:
        structural: MR or CT, as a volume or a path to read.
        functional: PET or SPECT (shown in colour), an RGB volume, or the other of CT and MR (shown in grey).
        method: A key of `medfuse.METHODS`.
        strategy: How a learned method merges features; None for its default.
        register: See `medfuse.alignment.align`.
        transform: A known transform or alignment from the structural to the functional world, or a registration, which
            is used or refused by its verdict.
        accept_untrusted: Use a registration that is doubtful or failed, too.
        grid: Where the result lies: "structural", "functional", a voxel size in mm (the structural block with cubic
            voxels), or any `Grid` in the structural world.
        palette: Palette of the uptake, a key of `medfuse.PALETTES`.
        window: Window of the functional volume (see `medfuse.parse_window`); default SUV 0-10, or percentiles where
            there are no SUV, or soft tissue for CT.
        structural_window: Window of the structural volume; default soft tissue for CT, percentiles for MR.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        weights: Weights in place of the shipped ones.
        engine: A warm engine; then method, strategy, device, weights, precision and memory_mib are not looked at.
        any_patient: Do not ask whether both scans are of one patient.
        threads: Threads of the registration and of the engine; None for as many as there are cores.
        precision: As for `medfuse.Engine`.
        memory_mib: As for `medfuse.Engine`.
        progress: Called as the work goes on.

    Returns:
        RGB uint8 where the functional volume is shown in colour, otherwise float32 in [0, 1]: for display, never HU or
        SUV. Its history says everything that was done.

    Raises:
        ValueError: An unknown word among the arguments, or a slice needs more than `memory_mib`.
        MedfuseError: See `medfuse.errors`.
    """
    structural = structural if isinstance(structural, Volume) else read(structural)
    functional = functional if isinstance(functional, Volume) else read(functional)
    check_pair(structural, functional, any_patient=any_patient)
    with stage("window"):
        shown_structural = display_of(structural, functional=False, window=to_window(structural_window, structural))
        shown_functional = display_of(
            functional, functional=True, window=to_window(window, functional), palette=palette
        )
    if engine is None:
        with stage("start-up"):
            engine = Engine(
                method, strategy, device, weights, threads=threads, precision=precision, memory_mib=memory_mib
            )
    target = _target(structural, functional, grid)
    is_functional = grid == "functional" or (target is functional.grid and target is not structural.grid)
    engine.check_memory(target.shape)
    if not isinstance(transform, Alignment):
        transform = align(
            structural,
            functional,
            register,
            transform,
            progress,
            accept_untrusted=accept_untrusted,
            threads=threads,
        )
    with stage("resample"):
        windows = (shown_structural.window, shown_functional.window)
        pair = _on_grid(structural, functional, transform.transform, target, engine, is_functional, windows)
    fused = engine.fuse(pair, shown_structural, shown_functional, partial(progress, "fusing") if progress else None)
    kept = least_color(structural.modality) if fused.is_color else 0
    warnings = _warnings(fused, pair.functional, shown_functional) if fused.is_color and not kept else []
    if is_functional and (functional.source.header is not None or structural.source.header is None):
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
                    "weights_sha256": engine.method.weights_sha256(
                        modality_beside(structural.modality, functional.modality)
                    ),
                    "precision": engine.method.precision,
                    "grid": _name_of(grid, is_functional),
                    "structural": _described(structural, str(shown_structural.window), None),
                    "functional": _described(functional, str(shown_functional.window), shown_functional.palette),
                    **({"least_color": round(kept, 3)} if kept else {}),
                    "meaning": "for display only: values are neither HU nor SUV; not for diagnostic use",
                    **({"warnings": warnings} if warnings else {}),
                },
            ),
        ),
    )


def _warnings(fused: Volume, functional: Volume, shown: Display) -> list[str]:
    """What a reader of a fused volume in colour should know, where no room was made for the colour."""
    with stage("colour"):
        count = slices_whitened(fused, functional, shown)
    if not count:
        return []
    return [
        f"in {count} of {len(fused.array)} slices uptake that has a colour lies on white, and shows none; a wider "
        "window of the structural scan leaves room for it"
    ]


def resampled(functional: Volume, fused: Volume, alignment: Alignment) -> Volume:
    """The functional scan on the grid of the fused volume, in its own unit.

    Args:
        functional: The scan that was fused.
        fused: What `fuse` returned.
        alignment: How the two scans lie to one another.

    Raises:
        UnsupportedImage: It is in colour, which is no unit.
        NoOverlap: Nothing of it lies there.
    """
    check_unit(functional)
    return resample(functional.derive("align", alignment.to_json()), fused.grid, alignment.transform)


def check_unit(functional: Volume) -> None:
    """Refuse before long work a functional scan that `resampled` would refuse.

    Raises:
        UnsupportedImage: It is in colour, which is no unit.
    """
    if functional.is_color:
        raise UnsupportedImage(
            "expected a functional scan with a unit to resample, found a colour volume", "Leave --resampled away"
        )


def write_fused(
    fused: Volume,
    out: Path,
    format: str | None = None,
    *,
    also: Volume | None = None,
    companions: bool = True,
    resampled: Volume | None = None,
    deidentify: bytes | None = None,
    dicom: DicomOptions | None = None,
    overwrite: bool = False,
    inputs: tuple[Path, ...] = (),
) -> list[Path]:
    """Write a fused volume, or two: all of it or nothing.

    Args:
        fused: What `fuse` returned.
        out: A folder; or a file whose suffix names the format.
        format: "dicom" makes `out` a folder of slices; "nifti" puts `fused.nii.gz` and `fused.json` in it; "both" puts
            these there beside a folder `dicom`. None: DICOM where the structural scan was DICOM, or, on the functional
            scan's grid, where either was; otherwise NIfTI.
        also: A second fused volume, of a series that rode along; it goes likewise to the folder `also` in `out`.
        companions: Write the registration and the blending of the two scans beside a DICOM series, where both were
            DICOM (`medfuse.io.dicom_companions`).
        resampled: What `resampled` returned, to write as `resampled`, in its own unit: a folder of DICOM, or NIfTI.
        deidentify: A key to de-identify all of it under (`medfuse.io.dicom_deidentify`); None leaves the patient named.
        dicom: Form, name and number of the DICOM series, and whether a rerun gets its UIDs; without a format, to give
            any of these makes it DICOM.
        overwrite: Replace what an earlier run wrote there.
        inputs: What was read, and must not be replaced.

    Returns:
        The files written.

    Raises:
        ValueError: An unknown format.
        OutputError: The target exists or cannot be written, or has the name of another format.
    """
    several = also is not None or resampled is not None
    check_fused_target(out, format, several=several, dicom=dicom, overwrite=overwrite, inputs=inputs)
    dicom = dicom or DicomOptions()
    if deidentify is not None:
        fused = deidentified(fused, deidentify)
        also, resampled = (each and deidentified(each, deidentify) for each in (also, resampled))
    format = format or ("nifti" if fused.source.header is None and dicom == DicomOptions() else "dicom")
    if known_suffix(out):
        return write(fused, out, overwrite=overwrite, inputs=inputs)
    with stage("write"), whole(out, overwrite=overwrite, inputs=inputs, may_hold=NAMES) as beside:
        uids = uids_of(fused, stable=dicom.stable_uids)
        written = write_result(fused, beside, format, companions, dicom, uids)
        if also is not None:
            others = uids_of(also, stable=dicom.stable_uids, beside=uids)
            written += write_result(also, beside / ALSO, format, companions, dicom, others, nth=2)
        if resampled is not None:
            written += write_resampled_scan(resampled, fused, beside, format, dicom, uids)
        return [out / path.relative_to(beside) for path in written]


def check_fused_target(
    out: Path,
    format: str | None = None,
    *,
    several: bool = False,
    dicom: DicomOptions | None = None,
    overwrite: bool = False,
    inputs: tuple[Path, ...] = (),
) -> None:
    """Refuse a target that `write_fused` would refuse, before anything is computed.

    Args:
        out: As for `write_fused`.
        format: As for `write_fused`.
        several: Whether a second volume is to be written beside the first.
        dicom: As for `write_fused`.
        overwrite: As for `write_fused`.
        inputs: As for `write_fused`.

    Raises:
        ValueError: An unknown format, or what is said of a DICOM series although none is to be written.
        OutputError: The target exists, cannot be written to, or has the name of another format.
    """
    if format not in (*FORMATS, None):
        raise ValueError(f"expected a format of {', '.join(FORMATS)}, got {format!r}")
    if known_suffix(out) and (format == "both" or several):
        needed = "both formats" if format == "both" else "two series"
        raise OutputError(f"expected a folder for {needed}, found the file name {out.name}", "Name a folder")
    if dicom not in (None, DicomOptions()) and (known_suffix(out) or format == "nifti"):
        raise ValueError("expected a DICOM series with the options of one, got another format to write")
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


def check_memory(structural: Volume, functional: Volume, grid: str | float | Grid, engine: Engine) -> None:
    """Refuse a grid whose slices need more memory than an engine may take, before anything is computed.

    Raises:
        ValueError: Then.
        GeometryError: The grid has too many voxels.
    """
    engine.check_memory(_target(structural, functional, grid).shape)


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
    check_patients(structural, functional, any_patient=any_patient)


def check_patients(first: Volume, second: Volume, *, any_patient: bool = False) -> None:
    """Refuse scans of two patients.

    Raises:
        PatientMismatch: The headers name two patients, and `any_patient` is not set.
    """
    if not any_patient and _different_patients(first, second):
        raise PatientMismatch(
            "expected two scans of one patient, found two patient identities in the headers",
            "If they are one patient under two identities, pass --any-patient",
        )


def _different_patients(first: Volume, second: Volume) -> bool:
    """By patient ID, or by name and birth date where an ID is missing; what is missing in one file decides nothing."""
    one_header, other_header = first.source.header, second.source.header
    if one_header is None or other_header is None:
        return False

    for keywords in (("PatientID",), ("PatientName", "PatientBirthDate")):
        one, other = (
            ["\\".join(words(header, keyword)).upper() for keyword in keywords] for header in (one_header, other_header)
        )
        if all(one) and all(other):
            return one != other
    return False


def _target(structural: Volume, functional: Volume, grid: str | float | Grid) -> Grid:
    if isinstance(grid, Grid):
        return grid
    if grid == "structural":
        return structural.grid
    if grid == "functional":
        return functional.grid
    return _fine(structural.grid, _spacing(grid))


def _name_of(grid: str | float | Grid, is_functional: bool) -> str | float:
    """A grid as the history says it."""
    if isinstance(grid, Grid):
        return "functional" if is_functional else "given"
    return grid


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


def _on_grid(
    structural: Volume,
    functional: Volume,
    transform: Transform | Warp,
    target: Grid,
    engine: Engine,
    is_functional: bool,
    windows: tuple[Window | None, Window | None],
) -> Pair:
    """Both volumes on the target grid, each interpolated at most once; on the functional one's own, that one stays.

    Where one has nothing to show, it is black in its window, so that the other stands alone. The engine's GPU does it,
    unless `memory_mib` bounds its memory, which a whole volume does not keep to.
    """
    device = str(engine.device) if engine.device.type == "cuda" and engine.memory_mib is None else None
    lowest = [None if window is None else window.lower for window in windows]
    to_target = partial(resample, grid=target, device=device)
    if is_functional:
        back = transform.inverse()
        return Pair(to_target(structural, transform=back, outside_at_most=lowest[0]), functional)
    return Pair(
        to_target(structural, outside_at_most=lowest[0]),
        to_target(functional, transform=transform, outside_at_most=lowest[1]),
    )


def to_window(choice: str | Window | Percentiles | None, volume: Volume) -> Window | Percentiles | None:
    """The window of a volume from text, or as it is; None stays None: the default of the scan.

    Raises:
        ValueError: The text is no window.
        TypeError: It is neither text nor a window.
        UnsupportedImage: It names a CT window, and the volume is not in HU.
    """
    if choice is None or isinstance(choice, Window | Percentiles):
        return choice
    if not isinstance(choice, str):
        raise TypeError(f"expected a window as text, Window or Percentiles, got {type(choice).__name__}")
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
