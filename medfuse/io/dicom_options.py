"""What a user may say of a DICOM series that is written: its form, its name and number, and whose UIDs it gets."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

#: Forms of a grey series: single-frame MR images, or one Parametric Map.
GREY_AS = ("mr", "parametric-map")
#: What may stand in braces in a series description.
FIELDS = ("structural", "functional", "method", "strategy")
#: Largest value of the VR IS (PS3.5 section 6.2).
IS_MAX = 2**31 - 1


@dataclass(frozen=True)
class DicomOptions:
    """How a DICOM series is written.

    Args:
        multiframe: Colour as one Multi-frame True Color Secondary Capture object instead of a file for each slice.
        grey_as: What a grey series becomes: "mr", derived MR images of whole numbers, or "parametric-map", one
            Parametric Map of floats without a unit.
        series_description: Text in which {structural} and {functional} stand for the modalities that were fused,
            {method} and {strategy} for how; None for medfuse's own. The words "not for diagnostic use" end it always.
        series_number: Number of the first series that a run writes, the next one gets the next number; None for 1000,
            2000 … above the structural scan's.
        stable_uids: The same UIDs whenever the same job is done again (`medfuse.io.dicom_uids`), so that a rerun
            replaces its result; otherwise new ones.

    Raises:
        ValueError: An unknown form or field, or a number that DICOM cannot hold.
    """

    multiframe: bool = False
    grey_as: str = "mr"
    series_description: str | None = None
    series_number: int | None = None
    stable_uids: bool = False

    def __post_init__(self) -> None:
        if self.grey_as not in GREY_AS:
            raise ValueError(f"expected grey as {' or '.join(GREY_AS)}, got {self.grey_as!r}")
        if self.series_number is not None and not 1 <= self.series_number <= IS_MAX:
            raise ValueError(f"expected a series number of 1 to {IS_MAX}, got {self.series_number}")
        if self.series_description is not None:
            _check_template(self.series_description)


def _check_template(text: str) -> None:
    """Refuse what cannot be filled in, or cannot stand in a series description (VR LO, PS3.5 section 6.2)."""
    if not text.isprintable() or "\\" in text or not text.strip():
        raise ValueError("expected a series description of printable characters without a backslash, got another")
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"expected fields in the series description as {{method}}, got {text!r}: {error}") from error
    known = [f"{{{name}}}" for name in FIELDS]
    for _, field, form, conversion in parts:
        if field is not None and (field not in FIELDS or form or conversion):
            whole = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise ValueError(f"expected fields of {', '.join(known)} in the series description, got {{{whole}}}")
