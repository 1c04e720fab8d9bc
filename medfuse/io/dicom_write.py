"""A derived volume → DICOM, in the geometry of the volume's grid. The form is chosen here; what has none is refused.

Colour becomes Secondary Capture images (`medfuse.io.dicom_slices`) or one multi-frame object of them
(`medfuse.io.dicom_multiframe`), grey becomes MR images or one Parametric Map (`medfuse.io.dicom_parametric_map`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medfuse.errors import OutputError
from medfuse.io.dicom_derived import Result
from medfuse.io.dicom_header import leniently, unvalidated
from medfuse.io.dicom_multiframe import write_multiframe
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.dicom_parametric_map import write_parametric_map
from medfuse.io.dicom_slices import write_slices
from medfuse.io.dicom_uids import Uids, uids_of
from medfuse.volume import Modality, Volume


def write_dicom(
    volume: Volume, folder: Path, nth: int = 1, options: DicomOptions | None = None, uids: Uids | None = None
) -> list[Path]:
    """Write a volume as one DICOM series.

    Args:
        volume: Colour of any modality, grey `Modality.FUSED` with values in [0, 1], or a grey MR.
        folder: An existing, empty folder.
        nth: Which of the series that one run makes of a source, from 1; it tells in the Series Number.
        options: Form, name and number of the series, and whether its UIDs are those of an earlier run.
        uids: Where the UIDs come from, for objects that are written apart and must agree; None for as the options say.

    Returns:
        The files: ``fused-0001.dcm`` and so on, or ``fused.dcm`` of all slices.

    Raises:
        OutputError: A file cannot be written, or DICOM has no place for the volume here (grey CT, PET, SPECT; an MR of
            which 16 bits would keep little).
        ValueError: A grey fused volume has values outside [0, 1].
    """
    options = options or DicomOptions()
    form, write = _form(volume, options)
    uids = uids or uids_of(volume, stable=options.stable_uids)
    with leniently(), unvalidated():
        return write(Result(volume, form, options, uids, nth), folder)


def _form(volume: Volume, options: DicomOptions) -> tuple[str, Callable[[Result, Path], list[Path]]]:
    """The name of the form that a volume takes, and what writes it; the checks of what can be written."""
    if volume.is_color:
        return ("multi-frame color", write_multiframe) if options.multiframe else ("color", write_slices)
    if volume.modality is Modality.FUSED:
        low, high = float(volume.array.min()), float(volume.array.max())
        if low < 0 or high > 1:
            raise ValueError(f"expected fused values in [0, 1], got {low:g} to {high:g}")
    elif volume.modality is not Modality.MR:
        raise OutputError(
            f"expected a fused volume, a colour one or an MR to write as DICOM, found grey {volume.modality.value}",
            "Write it as NIfTI instead",
        )
    return ("parametric map", write_parametric_map) if options.grey_as == "parametric-map" else ("mr", write_slices)
