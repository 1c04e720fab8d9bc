"""`medfuse fuse`."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from medfuse.cli.console import (
    print_json,
    progress_bars,
    read_scan,
    say_doubt,
    say_evidence,
    say_warnings,
    usage_errors,
)
from medfuse.cli.options import (
    AcceptUntrusted,
    Allow2d,
    AllowGaps,
    AnyPatient,
    AsJson,
    Device,
    FillNan,
    Frame,
    Out,
    Overwrite,
    SeriesOf,
    Threads,
    Units,
    path_argument,
    path_option,
)
from medfuse.cli.profile import print_profile, profile_json
from medfuse.defaults import METHOD, NOTICE, PALETTE
from medfuse.errors import UnreadableFile
from medfuse.io.dicom_options import DicomOptions
from medfuse.stages import Profile, profiled, stage


def fuse(
    structural: Annotated[Path, path_argument(help="MR or CT: a DICOM folder, zip or file, NIfTI, NRRD or MHA.")],
    functional: Annotated[Path, path_argument(help="PET or SPECT (or CT beside an MR): likewise.")],
    out: Out,
    format: Annotated[
        str | None, typer.Option(help="dicom, nifti or both; default as the scan came whose grid it has.")
    ] = None,
    method: Annotated[str, typer.Option(help="How to fuse; `medfuse methods` lists them.")] = METHOD,
    strategy: Annotated[str | None, typer.Option(help="How a learned method merges features.")] = None,
    weights: Annotated[Path | None, path_option(help="Weights in place of the shipped ones (safetensors).")] = None,
    register: Annotated[str, typer.Option(help="auto, rigid, affine, deformable or none.")] = "auto",
    accept_untrusted: AcceptUntrusted = False,
    transform: Annotated[
        Path | None,
        path_option(
            help="A known transform, structural to functional: ITK's (.tfm, .h5), a 4 x 4 matrix as text, or a "
            "DICOM spatial registration."
        ),
    ] = None,
    save_transform: Annotated[
        Path | None, path_option(help="Save the transform that was used (.tfm, .h5; .txt if linear).")
    ] = None,
    grid: Annotated[str, typer.Option(help="Grid of the result: structural, functional, or a voxel size in mm.")] = (
        "structural"
    ),
    palette: Annotated[
        str, typer.Option(help="Colours of uptake: HOT_IRON, PET, HOT_METAL_BLUE, PET_20_STEP or GREY.")
    ] = PALETTE,
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
    also: Annotated[
        Path | None,
        path_option(help="A scan that moves with FUNCTIONAL, as PET does with its CT; it is fused to OUT/also."),
    ] = None,
    also_series: SeriesOf = None,
    also_frame: Frame = None,
    also_modality: Annotated[str | None, typer.Option(help="pet, spect, ct or mr, likewise.")] = None,
    also_units: Annotated[str | None, typer.Option(help="suv or native, of the scan that rides along.")] = None,
    also_window: Annotated[str | None, typer.Option(help="Window of the scan that rides along, likewise.")] = None,
    allow_gaps: AllowGaps = False,
    allow_2d: Allow2d = False,
    fill_nan: FillNan = None,
    any_patient: AnyPatient = False,
    multiframe: Annotated[
        bool, typer.Option("--multiframe", help="Colour as one multi-frame DICOM object, not a file for each slice.")
    ] = False,
    grey_as: Annotated[
        str, typer.Option(help="Grey in DICOM: mr (derived images), or parametric-map (one object of floats).")
    ] = "mr",
    series_description: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help='Of the DICOM series, with {structural}, {functional}, {method}, {strategy}; the words "not for '
            'diagnostic use" end it always.',
        ),
    ] = None,
    series_number: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of the DICOM series; default 1000 above that of the scan whose grid it has."),
    ] = None,
    stable_uids: Annotated[
        bool, typer.Option("--stable-uids", help="The same UIDs when the same job is done again: a rerun replaces.")
    ] = False,
    no_companions: Annotated[
        bool,
        typer.Option("--no-companions", help="No registration and no blending of the two scans beside a DICOM series."),
    ] = False,
    resampled: Annotated[
        bool, typer.Option("--resampled", help="Write the functional scan on the result's grid, too, in its own unit.")
    ] = False,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Name nobody in what is written; needs the extra research.")
    ] = False,
    deidentify_key: Annotated[
        Path | None,
        path_option(metavar="FILE", help="What pseudonyms are made with: the same key, the same ones. Keep it secret."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    precision: Annotated[
        str, typer.Option(help="How a network computes: float32, tf32 (CUDA) or bfloat16.")
    ] = "float32",
    memory: Annotated[
        int | None,
        typer.Option(metavar="MIB", min=1, help="What slices in flight may take; default half of a GPU's free memory."),
    ] = None,
    overwrite: Overwrite = False,
    show_profile: Annotated[bool, typer.Option("--profile", help="Print where the time went.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fuse two scans of one patient into one series. It lies where the patient lay, as the structural scan does."""
    with profiled() as profile:
        profile.add("start-up", time.process_time())  # what the interpreter and the words of the command have taken
        with stage("start-up"):
            from medfuse import pipeline
            from medfuse.align import write_transform
            from medfuse.alignment import align, check_ride, ride_along
            from medfuse.fusion import Engine
            from medfuse.output import whole

        inputs = tuple(path for path in (structural, functional, also, transform, weights, deidentify_key) if path)
        of_structural, of_functional = (
            {"series": structural_series, "modality": structural_modality, "frame": structural_frame},
            {"series": functional_series, "modality": functional_modality, "frame": functional_frame},
        )
        of_also = {"series": also_series, "modality": also_modality, "frame": also_frame, "units": also_units}
        of_all = {"fill_nan": fill_nan, "allow_gaps": allow_gaps, "allow_2d": allow_2d}
        choices = (structural_window, window, also_window)
        with usage_errors():
            pipeline.check_words(register=register, grid=grid, palette=palette, windows=choices)
            dicom = DicomOptions(multiframe, grey_as, series_description, series_number, stable_uids)
            pipeline.check_fused_target(
                out, format, several=also is not None or resampled, dicom=dicom, overwrite=overwrite, inputs=inputs
            )
            _check_transforms(transform, save_transform, out, register, overwrite, inputs)
            _check_extras(resampled, grid, also, also_window, *of_also.values())
            key = _key(deidentify, deidentify_key)
            with stage("start-up"):
                engine = Engine(
                    method, strategy, device, weights, threads=threads, precision=precision, memory_mib=memory
                )
        scan = read_scan("structural", structural, **of_structural, **of_all)
        moving = [read_scan("functional", functional, **of_functional, **of_all, units=units)]
        if also:
            moving.append(read_scan("also", also, **of_also, **of_all))
            check_ride(*moving)
        _check_scans(scan, moving, grid, engine, any_patient, resampled)
        windows = [pipeline.to_window(choice, volume) for choice, volume in zip(choices, (scan, *moving), strict=False)]
        known = _given(transform, save_transform, scan, moving[0], overwrite) if transform else None
        with progress_bars() as progress:
            alignment = align(
                scan, moving[0], register, known, progress, accept_untrusted=accept_untrusted, threads=threads
            )
            alignments = [alignment, *(ride_along(alignment, moving[0], volume) for volume in moving[1:])]
            fused = [
                pipeline.fuse(
                    scan,
                    volume,
                    transform=alignment,
                    grid=grid,
                    palette=palette,
                    window=shown,
                    structural_window=windows[0],
                    engine=engine,
                    any_patient=any_patient,
                    progress=progress,
                )
                for volume, alignment, shown in zip(moving, alignments, windows[1:], strict=True)
            ]
        with ExitStack() as stack:
            if save_transform:
                beside = stack.enter_context(whole(save_transform, overwrite=overwrite, inputs=inputs))
                write_transform(alignment.transform, beside)
            written = pipeline.write_fused(
                fused[0],
                out,
                format,
                also=fused[1] if also else None,
                companions=not no_companions,
                resampled=pipeline.resampled(moving[0], fused[0], alignment) if resampled else None,
                deidentify=key,
                dicom=dicom,
                overwrite=overwrite,
                inputs=inputs,
            )
    seconds = _seconds(profile)
    _warn(alignment, fused)
    slices = sum(one.grid.shape[0] for one in fused)
    if as_json:
        summary = _summary(fused, [*written, *([save_transform] if save_transform else [])], seconds, key)
        print_json(summary | ({"profile": profile_json(profile, slices)} if show_profile else {}))
        return
    _tell(fused, alignments, engine, out, written, save_transform, seconds)
    if show_profile:
        print_profile(profile, slices)


def _warn(alignment: Any, fused: list[Any]) -> None:
    """Print on standard error why to look twice at the alignment, or at the result."""
    if alignment.registration:
        say_doubt(alignment.registration.verdict, alignment.reason)
    say_warnings(*fused)


def _check_scans(scan: Any, moving: list[Any], grid: str, engine: Any, any_patient: bool, resampled: bool) -> None:
    """Refuse before the registration scans that do not go together, or whose slices need more memory than there is."""
    from medfuse import pipeline

    if resampled:
        pipeline.check_unit(moving[0])
    for volume in moving:
        pipeline.check_pair(scan, volume, any_patient=any_patient)
        with usage_errors():
            pipeline.check_memory(scan, volume, grid, engine)


def _check_extras(resampled: bool, grid: str, also: Path | None, *words: object) -> None:
    """Refuse options of a scan that rides along where there is none, and to resample where nothing is resampled."""
    if also is None and any(word is not None for word in words):
        raise ValueError("expected --also with its options, got them alone")
    if resampled and grid == "functional":
        raise ValueError("expected another grid than functional with --resampled, on which nothing is resampled")


def _key(deidentify: bool, path: Path | None) -> bytes | None:
    """What de-identification is done with: the content of a file, or bytes that nobody will know."""
    from medfuse.io.dicom_deidentify import check_key

    if not deidentify:
        if path is not None:
            raise ValueError("expected --deidentify with --deidentify-key, got the key alone")
        return None
    try:
        key = secrets.token_bytes() if path is None else path.read_bytes()
    except OSError as error:
        raise UnreadableFile("expected a key file, found one that cannot be read", "Check the path") from error
    check_key(key)
    return key


def _check_transforms(
    transform: Path | None,
    save_transform: Path | None,
    out: Path,
    register: str,
    overwrite: bool,
    inputs: Iterable[Path],
) -> None:
    """Refuse before long work what is said of transforms and cannot be done."""
    from medfuse.align.transform import check_transform_target

    if transform and register not in ("auto", "none"):
        raise ValueError(f"--transform and --register {register} exclude one another")
    if transform and not os.path.isfile(transform):
        raise UnreadableFile(f"expected a transform file, found nothing named {transform.name}", "Check the path")
    if save_transform:
        check_transform_target(save_transform, overwrite=overwrite, deformable=register == "deformable", inputs=inputs)
        if Path(os.path.realpath(save_transform)).is_relative_to(os.path.realpath(out)):
            raise ValueError("expected --save-transform apart from the output, got a path in it")


def _given(path: Path, save_transform: Path | None, structural: Any, functional: Any, overwrite: bool) -> Any:
    """The transform of a file, if it can be saved as asked."""
    from medfuse.align.transform import Warp, check_transform_target, read_transform

    transform = read_transform(path, structural.grid, functional.grid)
    if save_transform:
        check_transform_target(save_transform, overwrite=overwrite, deformable=isinstance(transform, Warp))
    return transform


def _seconds(profile: Profile) -> dict[str, float]:
    """The seconds of the four steps that a person thinks in; the start is none of them."""
    read, align, write = (profile.seconds.get(name, 0.0) for name in ("read", "register", "write"))
    start = profile.seconds.get("start-up", 0.0)
    return {"read": read, "align": align, "fuse": profile.total - read - align - write - start, "write": write}


def _summary(fused: list[Any], written: list[Path], seconds: dict[str, float], key: bytes | None) -> dict[str, Any]:
    """What a script is told: nothing of the sources that de-identified results do not say."""
    if key:
        from medfuse.io.dicom_deidentify import deidentified

        fused = [deidentified(one, key) for one in fused]
    first, *others = (
        {
            "shape": list(one.grid.shape),
            "spacing_mm": list(one.grid.spacing_mm),
            **{step.name: dict(step.parameters) for step in one.history},
        }
        for one in fused
    )
    return {
        "outputs": [str(path) for path in written],
        **first,
        **({"also": others[0]} if others else {}),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "notice": NOTICE,
    }


def _tell(
    fused: list[Any],
    alignments: list[Any],
    engine: Any,
    out: Path,
    written: list[Path],
    save_transform: Path | None,
    seconds: dict[str, float],
) -> None:
    first, *others = alignments
    typer.echo(f"aligned: {first.reason} ({seconds['align']:.1f} s)")
    if first.registration:
        if not first.is_registered:
            typer.echo("         of the registration, which is not used:")
        say_evidence(first.registration.verdict)
    name = engine.method.name + (f" ({engine.method.strategy})" if engine.method.strategy else "")
    typer.echo(f"fused:   {_told_shape(fused[0])} with {name} on {engine.device} ({seconds['fuse']:.1f} s)")
    for volume, alignment in zip(fused[1:], others, strict=True):
        typer.echo(f"also:    {_told_shape(volume)}, {alignment.reason}")
    typer.echo(f"written: {len(written)} files in {out if out.is_dir() else out.parent}")
    if save_transform:
        typer.echo(f"written: {save_transform}")
    typer.echo(NOTICE)


def _told_shape(volume: Any) -> str:
    k, j, i = volume.grid.shape
    return f"{k} slices of {j} × {i}"
