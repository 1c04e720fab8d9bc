"""The door: any path in, a `Volume` out, and back. Formats are told by content when reading, by suffix when writing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from medfuse.errors import OutputError, SeriesError, UnreadableFile, UnsupportedImage
from medfuse.io import itk_files
from medfuse.io.archive import unpacked
from medfuse.io.content import DICOM, METAIMAGE, NIFTI, NRRD, VOLUMES, ZIP, format_of, header_of, voxels_of
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.dicom_read import Reading, read_series
from medfuse.io.dicom_series import Scan, choose, files_below, scan
from medfuse.io.dicom_uids import Uids
from medfuse.io.dicomdir import directory_in, files_of_medium
from medfuse.io.inspection import Inspection, inspect_file, inspect_series
from medfuse.io.nifti import read_nifti, write_nifti
from medfuse.io.sidecar import sidecar_path, sidecar_places, to_json, to_modality
from medfuse.itk import itk_path
from medfuse.output import check_target, refuse_folder, whole
from medfuse.stages import stage
from medfuse.volume import Modality, Unit, Volume

#: The formats that `write` knows, by the suffixes that stand for them.
SUFFIXES = {".nii": NIFTI, ".nii.gz": NIFTI, ".nrrd": NRRD, ".mha": METAIMAGE}
#: The files of a DICOM series that may be written, digits as `medfuse.output` folds them: one form replaces the other.
DICOM_NAMES = ("fused-#.dcm", "fused.dcm")
#: What `read` can be asked for as units.
UNITS = ("suv", "native")
_FORMATS = {"dicom": DICOM, "nifti": NIFTI, "nrrd": NRRD, "mha": METAIMAGE, "metaimage": METAIMAGE}


def read(
    path: Path | str,
    *,
    series: str | int | None = None,
    modality: Modality | str | None = None,
    fill_nan: float | None = None,
    frame: int | None = None,
    allow_gaps: bool = False,
    allow_2d: bool = False,
    units: str | None = None,
) -> Volume:
    """Read one scan.

    Args:
        path: A DICOM folder (any depth, order and file names, several series), a zip archive of one, a DICOM file with
            several frames, or a NIfTI, NRRD or MetaImage file, or a folder with one of these.
        series: Series Instance UID, Series Number or modality, where a DICOM folder holds several; with ":2" after it,
            part 2 of a series that holds several volumes.
        modality: What made the image, overriding what the file says: CT, MR (MRI), PT (PET), NM (SPECT), in any case.
            Where a folder holds several series, the one of this modality is read.
        fill_nan: Finite value to put in place of NaN and infinity; None refuses them.
        frame: Which time point, from 1, of a scan that holds several; None refuses such a scan.
        allow_gaps: Resample DICOM slices at uneven distances to even ones, instead of refusing them.
        allow_2d: Take a single DICOM image as a volume of one slice.
        units: "suv" refuses what is not, and cannot be made, SUV by body weight; "native" leaves the unit of the file;
            None makes SUV of DICOM PET where its headers allow it, and otherwise says in the history why not.

    Returns:
        float32 of shape (K, J, I) or uint8 RGB of shape (K, J, I, 3), with exact geometry in LPS millimetres.

    Raises:
        UnreadableFile: Nothing is there, no reader knows it, or it is damaged.
        SeriesError: There is no series, more than one, or one that is not a single regular stack.
        MissingAttribute: The header lacks what must not be guessed.
        UnsupportedImage: It is an image, but not usable as a volume.
        GeometryError: The axes are not at right angles.
        ValueError: `modality` is not a modality, `units` none of these, or `fill_nan` is not finite.
    """
    if units not in (None, *UNITS):
        raise ValueError(f"expected units of {', '.join(UNITS)}, got {units!r}")
    if fill_nan is not None and not abs(fill_nan) <= np.finfo(np.float32).max:
        raise ValueError(f"expected a finite number in place of NaN, got {fill_nan}")
    wanted = None if modality is None else to_modality(modality)
    with stage("read"), unpacked(_existing(path)) as place:
        found = scan(_files(place))
        volumes = _volumes(found)
        if found.series or (found.left_out and not volumes):
            reading = Reading(wanted, frame, allow_gaps, allow_2d, units, fill_nan)
            return read_series(choose(found, series, wanted), reading)
        file, format = _only(volumes, place, Path(path).name)
        if series is not None:
            raise SeriesError(f"expected a DICOM series, found {file.name}, which has none", "Leave out --series")
        if format == NIFTI:
            return _in_units(read_nifti(file, wanted, fill_nan, frame), units)
        if frame is not None:
            raise SeriesError(
                f"expected several volumes in {file.name}, found one and no frame {frame}", "Leave out --frame"
            )
        return _in_units(itk_files.read_itk(file, format, wanted, fill_nan), units)


def _in_units(volume: Volume, units: str | None) -> Volume:
    """A volume from a file that lacks what SUV is made of: as it is, if that was not asked for."""
    if units == "suv" and volume.unit is not Unit.SUV:
        raise UnsupportedImage(
            f"expected a scan in SUV, found {volume.unit.value}",
            "Give the DICOM series, or say in the sidecar that Units are SUV, if they are",
        )
    return volume


def inspect(path: Path | str) -> Inspection:
    """Tell what a path holds and what of it can be used, from headers alone.

    Args:
        path: As for `read`.

    Raises:
        UnreadableFile: Nothing is there, or an archive is damaged.
    """
    with unpacked(_existing(path)) as place:
        found = scan(_files(place))
        volumes = _volumes(found)
        infos = [info for one in found.series for info in inspect_series(one)]
        infos += [inspect_file(file, format) for file, format in volumes]
        return Inspection(tuple(infos), (*found.list_left_out(), *_list_unknown(found, volumes)))


def _list_unknown(found: Scan, volumes: list[tuple[Path, str]]) -> list[str]:
    """The files that belong to no scan, as "2 files: no image format that is known"."""
    known = {*_with_sidecars(path for path, _ in volumes), *(voxels_of(*volume) for volume in volumes)}
    packed = [format_of(path) == ZIP for path in set(found.others) - known]
    reasons = {
        "zip archive, which is opened only where it is given itself": sum(packed),
        "no image format that is known": len(packed) - sum(packed),
    }
    return [f"{count} file{'s' * (count > 1)}: {reason}" for reason, count in reasons.items() if count]


def _existing(path: Path | str) -> Path:
    """The path, if a file or folder is there."""
    path = Path(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # or a NUL in it
        raise UnreadableFile(f"expected a file or folder, found nothing named {path.name}", "Check the path") from error
    except OSError as error:
        raise UnreadableFile(
            f"expected a file or folder, found that {path.name} cannot be looked at ({error.strerror})",
            "Check the path, and the rights of the folders above it",
        ) from error
    if not (path.is_file() or path.is_dir()):
        raise UnreadableFile(f"expected a file or folder, found that {path.name} is neither", "Check the path")
    return path


def _files(place: Path) -> list[Path]:
    """The file itself, all files below the folder, or those of the medium that a DICOMDIR belongs to."""
    directory = place if place.is_file() else directory_in(place)
    medium = None if directory is None else files_of_medium(directory)
    return files_below(header_of(place) if place.is_file() else place) if medium is None else medium


def _volumes(found: Scan) -> list[tuple[Path, str]]:
    """The NIfTI, NRRD and MetaImage files among those that are not DICOM, with their format."""
    formats = ((path, format_of(path)) for path in found.others)
    return [(path, format) for path, format in formats if format in VOLUMES]


def _only(volumes: list[tuple[Path, str]], place: Path, name: str) -> tuple[Path, str]:
    """The one file that is a volume, with its format; `name` is what was given for the place."""
    if len(volumes) == 1:
        return volumes[0]
    if place.is_file():
        raise UnreadableFile(
            f"expected DICOM, NIfTI, NRRD, MetaImage or a zip of them, found none of these in {name}",
            "Give a scan, or the folder that holds one",
        )
    if volumes:
        names = ", ".join(path.name for path, _ in volumes)
        raise SeriesError(f"expected one scan in the folder, found {len(volumes)}: {names}", "Give one of the files")
    raise SeriesError(
        f"expected a scan in {name}, found none of DICOM, NIfTI, NRRD and MetaImage",
        "Give the folder or file of a DICOM series, NIfTI, NRRD or MetaImage; a zip in a folder or a zip stays packed",
    )


def write(
    volume: Volume,
    path: Path | str,
    *,
    format: str | None = None,
    overwrite: bool = False,
    inputs: Iterable[Path | str] = (),
    nth: int = 1,
    dicom: DicomOptions | None = None,
    uids: Uids | None = None,
) -> list[Path]:
    """Write a volume; all of it or nothing.

    Args:
        volume: What to write.
        path: A file that ends with .nii, .nii.gz, .nrrd or .mha, or a folder for DICOM.
        format: "dicom", "nifti", "nrrd" or "mha"; None goes by the suffix, and without one is DICOM.
        overwrite: Replace what an earlier run wrote there.
        inputs: Files and folders that were read and must not be replaced.
        nth: Which of several DICOM series that are made of one scan, from 1: each gets a Series Number of its own.
        dicom: Form, name and number of a DICOM series (`medfuse.DicomOptions`), and whether its UIDs are those of the
            same job done earlier; not looked at for other formats.
        uids: Where the UIDs of a DICOM series come from, for objects that are written apart and must agree.

    Returns:
        The files written. Beside a NIfTI, NRRD or MHA file lies a JSON sidecar with modality, unit and history.

    Raises:
        OutputError: The target exists or cannot be written, or the format cannot hold the volume.
        ValueError: `format` is not a format.
    """
    path, spared = _meant(Path(path)), _with_sidecars(inputs)
    kind = _format_to_write(path, format)
    with stage("write"):
        if kind == DICOM:
            return _write_dicom(volume, path, overwrite, spared, nth, dicom, uids)
        return _write_file(volume, path, kind, overwrite, spared)


def _write_file(volume: Volume, path: Path, kind: str, overwrite: bool, inputs: list[Path]) -> list[Path]:
    """Write one file with its sidecar."""
    sidecar = sidecar_path(path)
    _check_files((path, sidecar), overwrite, inputs)
    with (
        whole(path, overwrite=overwrite, inputs=inputs) as beside,
        whole(sidecar, overwrite=overwrite, inputs=inputs) as sidecar_beside,
    ):
        sidecar_beside.write_text(to_json(volume), encoding="utf-8")
        if kind == NIFTI:
            write_nifti(volume, beside)
        else:
            itk_files.write_itk(volume, beside, kind)
    return [path, sidecar]


def check_output(
    path: Path | str, *, format: str | None = None, overwrite: bool = False, inputs: Iterable[Path | str] = ()
) -> None:
    """Refuse a target that `write` would refuse, before long work.

    Args:
        path: As for `write`.
        format: As for `write`.
        overwrite: As for `write`.
        inputs: As for `write`.

    Raises:
        OutputError: The target exists, cannot be written to, or has the name of another format.
        ValueError: `format` is not a format.
    """
    path, spared = _meant(Path(path)), _with_sidecars(inputs)
    kind = _format_to_write(path, format)
    if kind == DICOM:
        check_target(path, overwrite, spared)
    else:
        if kind != NIFTI:
            itk_path(Path(os.path.realpath(path)), OutputError)
        _check_files((path, sidecar_path(path)), overwrite, spared)


def _check_files(targets: tuple[Path, Path], overwrite: bool, inputs: list[Path]) -> None:
    """Refuse an image file and its sidecar that cannot both be written."""
    for target in targets:
        if target in inputs and not target.exists():
            raise OutputError(
                f"expected another name, found that {target.name}, its sidecar, would be taken for that of an input",
                "Choose a name that differs before the suffix, or another folder",
            )
        check_target(target, overwrite, inputs)
        refuse_folder(target)


def _meant(path: Path) -> Path:
    """What a link names: that is replaced, in its own format and with its own sidecar, while the link stays."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _with_sidecars(inputs: Iterable[Path | str]) -> list[Path]:
    """What was read, and the sidecars that may lie beside it."""
    paths = [Path(path) for path in inputs]
    return [*paths, *(place for path in paths if os.path.isfile(path) for place in sidecar_places(path))]


def known_suffix(path: Path) -> str | None:
    """The suffix by which `write` knows the format of a file, or None: then the path is a folder."""
    return next((end for end in SUFFIXES if path.name.lower().endswith(end)), None)


def _format_to_write(path: Path, format: str | None) -> str:
    """The format asked for, which the suffix must not contradict."""
    if format is not None and format.lower() not in _FORMATS:
        raise ValueError(f"expected a format of {', '.join(_FORMATS)}, got {format!r}")
    suffix = known_suffix(path)
    by_suffix = SUFFIXES[suffix] if suffix else DICOM
    asked = by_suffix if format is None else _FORMATS[format.lower()]
    if asked != by_suffix or path.suffix.lower() == ".mhd":
        raise OutputError(
            f"expected a {asked} name ({_names(asked)}), found {path.name}", "Change the name or the format"
        )
    return asked


def _names(format: str) -> str:
    """How a path of a format must end."""
    return ", ".join(end for end, of in SUFFIXES.items() if of == format) or "a folder"


def _write_dicom(
    volume: Volume,
    path: Path,
    overwrite: bool,
    inputs: list[Path],
    nth: int,
    options: DicomOptions | None,
    uids: Uids | None,
) -> list[Path]:
    """Write a DICOM series into a new folder."""
    from medfuse.io.dicom_write import write_dicom

    if not (volume.is_color or volume.modality in (Modality.MR, Modality.FUSED)):
        raise OutputError(
            f"expected a fused, colour or MR volume to write as DICOM, found {volume.modality.value} in "
            f"{volume.unit.value}",
            "Write it as NIfTI, under a name that ends with .nii.gz",
        )
    with whole(path, overwrite=overwrite, inputs=inputs, may_hold=DICOM_NAMES) as beside:
        beside.mkdir()
        names = [written.relative_to(beside) for written in write_dicom(volume, beside, nth, options, uids)]
    return [path / name for name in names]
