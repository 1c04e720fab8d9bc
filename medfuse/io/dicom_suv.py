"""The factor from a PET series' own values to SUV by body weight, from its headers; or why there is none.

The rules are those of the QIBA FDG-PET/CT Profile's vendor-neutral pseudo-code (RSNA QIBA wiki, "Standardized Uptake
Value (SUV)"), on the attributes of DICOM PS3.3 sections C.8.9.1 (PET Series) and C.8.9.2 (PET Isotope):

    SUVbw = (stored value × slope + intercept) × factor
    factor = body weight in g / injected activity in Bq, decayed until the time that the values are corrected to

A residue in the syringe is not known and not taken off. What is absent, contradictory or cannot be is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydicom import Dataset
from pydicom.valuerep import DT

from medfuse.errors import InputError, MissingAttribute, UnsupportedImage
from medfuse.io.dicom_header import moment_of, word, words

GE, PHILIPS = "GEMS_PETD_01", "Philips PET Private Group"
#: What a weight and an activity can be; a number beyond is in another unit (g, MBq) or a placeholder.
WEIGHT_KG, ACTIVITY_BQ = (0.01, 700.0), (1e5, 1e12)
#: Longest time from injection to scan, in half-lives: after ten, a thousandth is left; dates were then altered.
MOST_HALF_LIVES = 10.0
#: Times that ought to be one may differ by this many seconds and this share of a half-life (0.7 % of the SUV).
TOLERANCE_S, TOLERANCE = 2.0, 0.01
_HINT = "The values stay as stored, in the unit that the file states"


@dataclass(frozen=True)
class SuvFactor:
    """What a rescaled value is multiplied with to be SUV.

    Args:
        factor: In g/ml for one unit of the rescaled value.
        how: What it rests on, in words and without patient data.
    """

    factor: float
    how: str


def suv_factor(headers: Sequence[Dataset]) -> SuvFactor:
    """The factor to SUV by body weight, one for the whole series.

    Args:
        headers: The headers of all images of the series.

    Raises:
        MissingAttribute: An attribute on which SUV rests is absent or empty.
        UnsupportedImage: There is no SUV by body weight in or from such values, or the headers contradict themselves.
    """
    units = _common(headers, "Units")
    if units not in ("BQML", "CNTS", "GML"):
        raise UnsupportedImage(f"expected Units of BQML, CNTS or GML for SUV, found {units}", _HINT)
    if units == "GML" and _common(headers, "SUVType", "BW") != "BW":
        raise UnsupportedImage(f"expected SUV by body weight (BW), found SUVType {word(headers[0], 'SUVType')}", _HINT)
    _check_corrections(headers)
    if units == "GML":
        return SuvFactor(1.0, "Units GML: the values are SUV")
    if units == "CNTS":
        return _from_counts(headers)
    return _from_activity(headers)


def corrected_to(headers: Sequence[Dataset]) -> datetime | None:
    """The time to which values with Decay Correction START are corrected; None where the headers do not tell it.

    Args:
        headers: The headers of all images of the series.
    """
    try:
        if _common(headers, "DecayCorrection") != "START":
            return None
        tracers = [_tracer(header) for header in headers]
        return _start_of_scan(headers, _half_life_s(tracers))[0]
    except InputError:
        return None


def _check_corrections(headers: Sequence[Dataset]) -> None:
    """Refuse images that are not corrected for attenuation and decay (Corrected Image, PS3.3 section C.8.9.4)."""
    for header in headers:
        done = words(header, "CorrectedImage")
        missing = [name for name in ("ATTN", "DECY") if name not in done]
        if missing:
            raise UnsupportedImage(
                f"expected images corrected for attenuation and decay for SUV (CorrectedImage), found no "
                f"{' and no '.join(missing)}",
                _HINT,
            )


def _from_counts(headers: Sequence[Dataset]) -> SuvFactor:
    """From counts, through the private factors that Philips states: to SUV, or else to Bq/ml."""
    to_suv = _positive(_common_private(headers, 0x7053, 0x00, PHILIPS))
    if to_suv:
        return SuvFactor(to_suv, "Units CNTS, Philips' SUV scale factor (7053,1000)")
    to_activity = _positive(_common_private(headers, 0x7053, 0x09, PHILIPS))
    if to_activity:
        found = _from_activity(headers)
        return SuvFactor(to_activity * found.factor, f"Philips' activity scale factor (7053,1009), {found.how}")
    raise MissingAttribute("expected Philips' private scale factors to make SUV of Units CNTS, found none", _HINT)


def _from_activity(headers: Sequence[Dataset]) -> SuvFactor:
    """From Bq/ml, by the patient's weight and the activity that is left of the injected one."""
    correction = _common(headers, "DecayCorrection")
    if correction not in ("START", "ADMIN"):
        raise UnsupportedImage(f"expected DecayCorrection START or ADMIN for SUV, found {correction}", _HINT)
    weight_kg = _number(_common(headers, "PatientWeight"), "PatientWeight in kg", *WEIGHT_KG)
    tracers = [_tracer(header) for header in headers]
    activity_bq = _number(_common(tracers, "RadionuclideTotalDose"), "RadionuclideTotalDose in Bq", *ACTIVITY_BQ)
    if correction == "ADMIN":
        return SuvFactor(weight_kg * 1000 / activity_bq, "body weight / injected activity, decay corrected to ADMIN")
    half_life_s = _half_life_s(tracers)
    start, told_by = _start_of_scan(headers, half_life_s)
    decay_s = (start - _injection(tracers, headers[0], start, half_life_s)).total_seconds()
    if not 0 <= decay_s <= MOST_HALF_LIVES * half_life_s:
        raise UnsupportedImage(
            f"expected a scan after the injection and within {MOST_HALF_LIVES:g} half-lives of it, found one "
            f"{decay_s:.0f} s after it",
            f"The dates or times were altered. {_HINT}",
        )
    left_bq = activity_bq * 2 ** (-decay_s / half_life_s)
    return SuvFactor(
        weight_kg * 1000 / left_bq, f"body weight / injected activity, decayed for {decay_s:.3f} s until {told_by}"
    )


def _start_of_scan(headers: Sequence[Dataset], half_life_s: float) -> tuple[datetime, str]:
    """The time to which values with Decay Correction START are corrected, and what tells it.

    Series Date and Time, unless they lie after the first acquisition, as in a series that was processed later: then
    GE's private scan time; else what the frames tell (Siemens); else the first acquisition. Whatever it is, a Decay
    Factor must not contradict it.
    """
    series = _moment(_common(headers, "SeriesDate"), _common(headers, "SeriesTime"), "SeriesTime")
    acquired = [
        _moment(_text(header, "AcquisitionDate"), _text(header, "AcquisitionTime"), "AcquisitionTime")
        for header in headers
    ]
    tolerance_s = TOLERANCE_S + TOLERANCE * half_life_s
    by_factor = _starts_by(headers, acquired, half_life_s, "DecayFactor", 1.0)
    by_reference = _starts_by(headers, acquired, half_life_s, "FrameReferenceTime", 0.0)
    private = _common_private(headers, 0x0009, 0x0D, GE)
    if series <= min(acquired):
        start, told_by = series, "Series Time"
    elif private:
        start, told_by = _local(private, headers[0], "GE's scan time (0009,100D)"), "GE's scan time (0009,100D)"
    elif starts := by_factor or by_reference:
        start = min(starts)
        told_by = f"the start of the scan that {'Decay Factor' if by_factor else 'Frame Reference Time'} tells"
        if (max(starts) - start).total_seconds() > tolerance_s:
            raise UnsupportedImage("expected frames that are decay corrected to one time, found several times", _HINT)
    else:
        start, told_by = min(acquired), "the first Acquisition Time"
    off_s = max((abs((one - start).total_seconds()) for one in by_factor), default=0.0)
    if off_s > tolerance_s or (min(acquired) - start).total_seconds() > MOST_HALF_LIVES * half_life_s:
        raise UnsupportedImage(
            f"expected one start of the scan, found that {told_by} contradicts the frames' times or Decay Factors",
            f"The dates or times were altered. {_HINT}",
        )
    return start, told_by


def _starts_by(
    headers: Sequence[Dataset], acquired: Sequence[datetime], half_life_s: float, keyword: str, nothing: float
) -> list[datetime]:
    """The start of the scan as each frame tells it; empty where a frame does not.

    It lies before the moment in the frame at which the activity has its mean: by Frame Reference Time, or by as many
    half-lives as Decay Factor has powers of two (PS3.3 section C.8.9.4).

    Args:
        headers: The frames' headers.
        acquired: When each frame began.
        half_life_s: Of the tracer.
        keyword: "FrameReferenceTime" or "DecayFactor".
        nothing: The value that says nothing; those at or below it neither.
    """
    values = [_positive(word(header, keyword)) for header in headers]
    durations_ms = [_positive(word(header, "ActualFrameDuration")) for header in headers]
    if not all(durations_ms) or min(values) <= nothing:
        return []
    is_factor = keyword == "DecayFactor"
    return [
        moment
        + timedelta(seconds=_mean_activity_s(duration / 1000, half_life_s))
        - timedelta(seconds=math.log2(value) * half_life_s if is_factor else value / 1000)
        for moment, value, duration in zip(acquired, values, durations_ms, strict=True)
    ]


def _mean_activity_s(duration_s: float, half_life_s: float) -> float:
    """The time into a frame at which the activity equals its mean over the frame.

    ln(λT / (1 − exp(−λT))) / λ, with λ = ln 2 / half-life and T the duration (PS3.3 section C.8.9.4.1.5, example 2).

    >>> round(_mean_activity_s(120, 6586.2), 9)
    59.936854673
    """
    decay = math.log(2) / half_life_s
    return math.log(decay * duration_s / -math.expm1(-decay * duration_s)) / decay


def _injection(tracers: Sequence[Dataset], header: Dataset, scan: datetime, half_life_s: float) -> datetime:
    """When the tracer was given; a time without a date is the last such time before the scan.

    Raises:
        MissingAttribute: A time without a date may be that of an earlier day, for the tracer lives so long.
    """
    if any(word(tracer, "RadiopharmaceuticalStartDateTime") for tracer in tracers):
        stated = _common(tracers, "RadiopharmaceuticalStartDateTime")
        return _local(stated, header, "RadiopharmaceuticalStartDateTime")
    time = _common(tracers, "RadiopharmaceuticalStartTime")
    moment, day = _moment(scan.strftime("%Y%m%d"), time, "RadiopharmaceuticalStartTime"), timedelta(days=1)
    moment = moment if moment <= scan else moment - day
    if (scan - moment + day).total_seconds() <= MOST_HALF_LIVES * half_life_s:
        raise MissingAttribute(
            "expected RadiopharmaceuticalStartDateTime for SUV with a tracer that may have been given on an earlier "
            "day, found a time alone",
            _HINT,
        )
    return moment


def _half_life_s(tracers: Sequence[Dataset]) -> float:
    return _number(_common(tracers, "RadionuclideHalfLife"), "RadionuclideHalfLife in s", 1.0, 1e12)


def _tracer(header: Dataset) -> Dataset:
    """The one item of the Radiopharmaceutical Information Sequence."""
    items = header.get("RadiopharmaceuticalInformationSequence") or []
    if not items:
        raise MissingAttribute("expected a RadiopharmaceuticalInformationSequence for SUV, found none", _HINT)
    if len(items) > 1:
        raise UnsupportedImage(f"expected one tracer for SUV, found {len(items)} in the header", _HINT)
    tracer: Dataset = items[0]
    return tracer


def _moment(date: str, time: str, what: str) -> datetime:
    """A date (DA) and a time (TM) as one moment."""
    moment = moment_of(date, time)
    if moment is None:
        raise UnsupportedImage(f"expected a date and time as {what}, found something else", _HINT)
    return moment


def _local(text: str, header: Dataset, what: str) -> datetime:
    """A DT value on the clock of the other times of the header, which states how that differs from UTC, or nothing."""
    try:
        moment = DT(text)
        offset = word(header, "TimezoneOffsetFromUTC")
        zone = DT(f"20000101000000{offset}").tzinfo if offset else None
    except (ValueError, TypeError, OverflowError):
        moment = None
    if moment is None or len(text) < len("YYYYMMDDHHMM"):
        raise UnsupportedImage(f"expected a date and time as {what}, found something else", _HINT)
    found = datetime.combine(moment.date(), moment.time())
    if moment.tzinfo is None:
        return found
    if zone is None:
        raise MissingAttribute(f"expected TimezoneOffsetFromUTC beside {what} in another time zone, found none", _HINT)
    return datetime.combine(moment.date(), moment.time(), moment.tzinfo).astimezone(zone).replace(tzinfo=None)


def _number(text: str, what: str, least: float, most: float) -> float:
    """A number within bounds, both included."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        found = "0" if value == 0 else "something else"
        raise UnsupportedImage(f"expected a {what} of {least:g} to {most:g}, found {found}", _HINT)
    return value


def _positive(text: str) -> float:
    """A positive, finite number, or 0 where there is none."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 < value < math.inf else 0.0


def _text(header: Dataset, keyword: str) -> str:
    """An attribute that must not be empty."""
    text = word(header, keyword)
    if not text:
        raise MissingAttribute(f"expected {keyword} for SUV, found none", _HINT)
    return text


def _common(headers: Sequence[Dataset], keyword: str, default: str = "") -> str:
    """What all headers state for an attribute; `default`, if there is one, where all say nothing."""
    found = {word(header, keyword) or default for header in headers}
    if found == {""} or not found:
        raise MissingAttribute(f"expected {keyword} for SUV, found none", _HINT)
    if len(found) > 1:
        raise UnsupportedImage(f"expected one {keyword} in the series for SUV, found {len(found)}", _HINT)
    return found.pop()


def _common_private(headers: Sequence[Dataset], group: int, offset: int, creator: str) -> str:
    """What all headers state for a private element; "" where none does."""
    found = {_private(header, group, offset, creator) for header in headers}
    if len(found) > 1:
        raise UnsupportedImage(
            f"expected one private element ({group:04X},xx{offset:02X}) of {creator} in the series, found {len(found)}",
            _HINT,
        )
    return found.pop() if found else ""


def _private(header: Dataset, group: int, offset: int, creator: str) -> str:
    """A private element as text; in files without explicit VRs its value comes as bytes."""
    try:
        value = header.private_block(group, creator)[offset].value
    except (KeyError, ValueError):
        return ""
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip(" \0")
