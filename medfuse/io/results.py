"""What one fusion leaves in a folder: the fused volume in its formats, and what lies beside it."""

from __future__ import annotations

from pathlib import Path

from medfuse.io.dicom_options import DicomOptions
from medfuse.io.dicom_uids import Uids
from medfuse.io.files import DICOM_NAMES, write
from medfuse.volume import Volume

#: Names, digits folded, that an earlier result may have left and a new one need not have.
NAMES = (
    *DICOM_NAMES,
    *("registration.dcm", "blending.dcm", "resampled", "resampled-#.dcm", "resampled.dcm", "dicom", "also"),
    *("fused.nii.gz", "fused.json", "resampled.nii.gz", "resampled.json"),
)


def write_result(
    fused: Volume, folder: Path, format: str, companions: bool, dicom: DicomOptions, uids: Uids, nth: int = 1
) -> list[Path]:
    """Write a fused volume into a new folder.

    Args:
        fused: What to write.
        folder: Where to; made here.
        format: "dicom", "nifti" or "both".
        companions: Write what `medfuse.io.dicom_companions` can say of the two scans beside the DICOM series.
        dicom: How the DICOM series is written.
        uids: Its UIDs.
        nth: As for `write`.

    Returns:
        The files.

    Raises:
        OutputError: As `write`.
    """
    if format == "dicom":
        return _write_dicom(fused, folder, companions, dicom, uids, nth)
    written = write(fused, folder / "fused.nii.gz")
    if format == "both":
        written += _write_dicom(fused, folder / "dicom", companions, dicom, uids, nth)
    return written


def _write_dicom(
    fused: Volume, folder: Path, companions: bool, dicom: DicomOptions, uids: Uids, nth: int
) -> list[Path]:
    from medfuse.io.dicom_companions import write_companions

    written = write(fused, folder, format="dicom", nth=nth, dicom=dicom, uids=uids)
    return [*written, *(write_companions(fused, folder, uids, nth, dicom) if companions else [])]


def write_resampled_scan(
    resampled: Volume, fused: Volume, folder: Path, format: str, dicom: DicomOptions, uids: Uids
) -> list[Path]:
    """Write the functional scan on the grid of a fused volume, beside it: `resampled.nii.gz`, or a folder `resampled`.

    Args:
        resampled: The functional scan.
        fused: What lies in the folder.
        folder: As for `write_result`.
        format: As for `write_result`.
        dicom: As for `write_result`.
        uids: Those of the fused volume.

    Returns:
        The files.

    Raises:
        OutputError: As `write`.
    """
    from medfuse.io.dicom_resampled import write_resampled

    written = [] if format == "dicom" else write(resampled, folder / "resampled.nii.gz")
    if format == "nifti":
        return written
    series = folder / ("dicom" if format == "both" else "") / "resampled"
    series.mkdir()
    return [*written, *write_resampled(resampled, fused.source, series, uids, options=dicom)]
