"""`medfuse fuse`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from medfuse.cli.console import NOTICE, print_json, progress_bars, read_scan, usage_errors
from medfuse.cli.options import Allow2d, AllowGaps, As_json, FillNan, Frame, Out, Overwrite, SeriesOf, Units


def fuse(
    structural: Annotated[Path, typer.Argument(help="MR or CT: a DICOM folder, zip or file, NIfTI, NRRD or MHA.")],
    functional: Annotated[Path, typer.Argument(help="PET or SPECT (or CT beside an MR): likewise.")],
    out: Out,
    format: Annotated[
        str | None, typer.Option(help="dicom, nifti or both; default as the structural scan came.")
    ] = None,
    method: Annotated[str, typer.Option(help="How to fuse; `medfuse methods` lists them.")] = "dilran",
    strategy: Annotated[str | None, typer.Option(help="How a learned method merges features.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights in place of the shipped ones (safetensors).")] = None,
    register: Annotated[str, typer.Option(help="auto, rigid, affine or none.")] = "auto",
    transform: Annotated[
        Path | None, typer.Option(help="A known transform (.tfm, .h5), structural to functional.")
    ] = None,
    save_transform: Annotated[Path | None, typer.Option(help="Save the transform that was used (.tfm, .h5).")] = None,
    grid: Annotated[str, typer.Option(help="Grid of the result: structural, functional, or a voxel size in mm.")] = (
        "structural"
    ),
    palette: Annotated[
        str, typer.Option(help="Colours of uptake: HOT_IRON, PET, HOT_METAL_BLUE, PET_20_STEP or GREY.")
    ] = "HOT_IRON",
    window: Annotated[
        str | None,
        typer.Option(
            help="Window of the functional scan: LEVEL,WIDTH or LOWER:UPPER or LOWER%:UPPER%, or for CT brain, bone, "
            "soft-tissue, lung. Default: SUV 0:10, or percentiles."
        ),
    ] = None,
    structural_window: Annotated[str | None, typer.Option(help="Window of the structural scan, likewise.")] = None,
    structural_series: SeriesOf = None,
    functional_series: SeriesOf = None,
    structural_frame: Frame = None,
    functional_frame: Frame = None,
    structural_modality: Annotated[str | None, typer.Option(help="ct or mr, where the file does not say.")] = None,
    functional_modality: Annotated[str | None, typer.Option(help="pet, spect, ct or mr, likewise.")] = None,
    units: Units = None,
    allow_gaps: AllowGaps = False,
    allow_2d: Allow2d = False,
    fill_nan: FillNan = None,
    any_patient: Annotated[
        bool, typer.Option("--any-patient", help="Do not ask whether both scans are of one patient.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    overwrite: Overwrite = False,
    as_json: As_json = False,
) -> None:
    """Fuse two scans of one patient into one series. It lies where the patient lay, as the structural scan does."""
    from medfuse import pipeline
    from medfuse.align import read_transform, write_transform
    from medfuse.fusion import Engine
    from medfuse.io.output import whole

    started = time.monotonic()
    inputs = tuple(path for path in (structural, functional, transform, weights) if path)
    with usage_errors():
        pipeline.check_words(register=register, grid=grid, palette=palette, windows=(window, structural_window))
        pipeline.check_target(out, format, overwrite=overwrite, inputs=inputs)
        _check_transforms(transform, save_transform, out, register, overwrite)
        engine = Engine(method, strategy, device, weights)
    known = read_transform(transform) if transform else None
    both = {"fill_nan": fill_nan, "allow_gaps": allow_gaps, "allow_2d": allow_2d}
    of_structural = {"series": structural_series, "modality": structural_modality, "frame": structural_frame}
    of_functional = {"series": functional_series, "modality": functional_modality, "frame": functional_frame}
    pair = (
        read_scan("structural", structural, **of_structural, **both),
        read_scan("functional", functional, **of_functional, **both, units=units),
    )
    pipeline.check_pair(*pair, any_patient=any_patient)
    windows = [
        pipeline.to_window(choice, volume) for choice, volume in zip((structural_window, window), pair, strict=True)
    ]
    read_at = time.monotonic()
    with progress_bars() as progress:
        alignment = pipeline.align(*pair, register, known, progress)
        aligned_at = time.monotonic()
        fused = pipeline.fuse(
            *pair,
            transform=alignment,
            grid=grid,
            palette=palette,
            window=windows[1],
            structural_window=windows[0],
            engine=engine,
            any_patient=any_patient,
            progress=progress,
        )
    fused_at = time.monotonic()
    with ExitStack() as stack:
        if save_transform:
            beside = stack.enter_context(whole(save_transform, overwrite=overwrite, inputs=inputs))
            write_transform(alignment.transform, beside)
        written = pipeline.write_fused(fused, out, format, overwrite=overwrite, inputs=inputs)
    seconds = {
        "read": read_at - started,
        "align": aligned_at - read_at,
        "fuse": fused_at - aligned_at,
        "write": time.monotonic() - fused_at,
    }
    if as_json:
        print_json(_summary(fused, [*written, *([save_transform] if save_transform else [])], seconds))
    else:
        _tell(fused, alignment, engine, out, written, seconds)


def _check_transforms(
    transform: Path | None, save_transform: Path | None, out: Path, register: str, overwrite: bool
) -> None:
    """Refuse before long work what is said of transforms and cannot be done."""
    from medfuse.align.transform import check_target

    if transform and register in ("rigid", "affine"):
        raise ValueError(f"--transform and --register {register} exclude one another")
    if save_transform:
        check_target(save_transform, overwrite=overwrite)
        if save_transform.resolve().is_relative_to(out.resolve()):
            raise ValueError("expected --save-transform apart from the output, got a path in it")


def _summary(fused: Any, written: list[Path], seconds: dict[str, float]) -> dict[str, Any]:
    steps = {step.name: dict(step.parameters) for step in fused.history}
    return {
        "outputs": [str(path) for path in written],
        "shape": list(fused.grid.shape),
        "spacing_mm": list(fused.grid.spacing_mm),
        "align": steps["align"],
        "fuse": steps["fuse"],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "notice": NOTICE,
    }


def _tell(fused: Any, alignment: Any, engine: Any, out: Path, written: list[Path], seconds: dict[str, float]) -> None:
    k, j, i = fused.grid.shape
    typer.echo(f"aligned: {alignment.reason} ({seconds['align']:.1f} s)")
    found = alignment.registration
    if found:
        typer.echo(
            f"         a registration moved the body by {found.shift_mm:.1f} mm ({found.rotated_degrees:.1f}°), "
            f"uncertain by {found.spread_mm:.1f} mm: halves of the scan, registered alone, differ by that"
        )
    name = engine.method.name + (f" ({engine.method.strategy})" if engine.method.strategy else "")
    typer.echo(f"fused:   {k} slices of {j} × {i} with {name} on {engine.device} ({seconds['fuse']:.1f} s)")
    typer.echo(f"written: {len(written)} files in {out if out.is_dir() else out.parent}")
    typer.echo(NOTICE)
