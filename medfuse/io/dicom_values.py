"""What the stored values of a DICOM image mean: units, rescaling (PS3.3 section C.11.1), colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.uid import ParametricMapStorage

from medfuse.errors import UnsupportedImage
from medfuse.io.dicom_header import numbers, word
from medfuse.io.dicom_nm import is_nuclear
from medfuse.io.dicom_planes import Plane, group
from medfuse.volume import Modality, Unit

#: PET Units (0054,1001), PS3.3 section C.8.9.1.1.3.
PET_UNITS = {"GML": Unit.SUV, "BQML": Unit.BQML, "CNTS": Unit.COUNTS}
#: Codes of Measurement Units Code Sequence (UCUM; PS3.16 CID 82, 84, 85), the most telling first.
REAL_WORLD_UNITS = {
    "{SUVbw}g/ml": Unit.SUV,
    "g/ml{SUVbw}": Unit.SUV,
    "Bq/ml": Unit.BQML,
    "[hnsf'U]": Unit.HU,
    "{counts}": Unit.COUNTS,
}
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")


def unit_of(plane: Plane, modality: Modality) -> Unit:
    """What the number of a voxel means, from the header."""
    header = plane.header
    if word(header, "PhotometricInterpretation") in COLORS:
        return Unit.RGB
    if modality not in (Modality.CT, Modality.PT, Modality.NM):
        return Unit.ARBITRARY
    mapped = _real_world(plane)
    if modality is Modality.CT:
        if mapped and mapped[0] is Unit.HU:
            return Unit.HU
        return Unit.HU if _rescales_to_hu(plane) else Unit.ARBITRARY
    if not word(header, "Units"):
        return mapped[0] if mapped else Unit.COUNTS if is_nuclear(header) else Unit.ARBITRARY
    unit = PET_UNITS.get(word(header, "Units"), Unit.ARBITRARY)
    by_weight = word(header, "SUVType") in ("", "BW")
    return unit if by_weight or unit is not Unit.SUV else Unit.ARBITRARY


def _rescales_to_hu(plane: Plane) -> bool:
    """Whether the rescaling of a CT leads to HU, as it does where no Rescale Type is stated."""
    return word(group(plane.header, plane.frame, "PixelValueTransformationSequence"), "RescaleType") in ("", "HU")


def _real_world(plane: Plane) -> tuple[Unit, Dataset] | None:
    """The unit and the item of a plane's Real World Value Mapping (PS3.3 section C.7.6.16.2.11), if a linear one says.

    Of several, the one that comes first in `REAL_WORLD_UNITS`.
    """
    found: dict[Unit, Dataset] = {}
    for item in mappings(plane):
        codes = item.get("MeasurementUnitsCodeSequence") or []
        unit = REAL_WORLD_UNITS.get(word(codes[0], "CodeValue")) if codes else None
        if unit and word(item, "RealWorldValueSlope"):
            found.setdefault(unit, item)
    return next(((unit, found[unit]) for unit in REAL_WORLD_UNITS.values() if unit in found), None)


def mappings(plane: Plane) -> list[Dataset]:
    """The items of the Real World Value Mapping Sequence of a frame, of all frames, or of the image."""
    header = plane.header
    for groups, item in (("PerFrameFunctionalGroupsSequence", plane.frame), ("SharedFunctionalGroupsSequence", 0)):
        items = header.get(groups) or []
        if item < len(items) and items[item].get("RealWorldValueMappingSequence"):
            return list(items[item].RealWorldValueMappingSequence)
    return list(header.get("RealWorldValueMappingSequence") or [])


def slope_and_intercept(plane: Plane, unit: Unit) -> tuple[float, float] | None:
    """Slope and intercept from stored values to `unit`, or None where the stored values are the values.

    Those of the modality transformation; of the real world value mapping, where that alone says what the values are.

    Raises:
        MissingAttribute: One is absent, though the unit rests on it.
        UnsupportedImage: The slope is zero, or values would overflow.
    """
    name, values = plane.path.name, group(plane.header, plane.frame, "PixelValueTransformationSequence")
    mapped = _real_world(plane)
    if unit is Unit.RGB or "ModalityLUTSequence" in values:
        return None
    states_unit = _rescales_to_hu(plane) if unit is Unit.HU else word(plane.header, "Units")
    if word(plane.header, "SOPClassUID") == ParametricMapStorage:
        slope, intercept = _of_map(plane)
    elif mapped and mapped[0] is unit and not (states_unit and word(values, "RescaleSlope")):
        slope = float(numbers(mapped[1], "RealWorldValueSlope", 1, name)[0])
        intercept = float(numbers(mapped[1], "RealWorldValueIntercept", 1, name)[0])
    elif not word(values, "RescaleSlope") and (unit is Unit.ARBITRARY or is_nuclear(plane.header)):
        return None
    else:
        slope = float(numbers(values, "RescaleSlope", 1, name)[0])
        intercept = float(numbers(values, "RescaleIntercept", 1, name)[0])
    if slope == 0 or max(abs(slope), abs(intercept)) * 2.0**32 > float(np.finfo(np.float32).max):
        raise UnsupportedImage(
            f"expected a rescale slope and intercept that keep values apart, found {slope} and {intercept} in {name}",
            "Export the series again; the header is damaged",
        )
    return slope, intercept


def _of_map(plane: Plane) -> tuple[float, float]:
    """Slope and intercept of the one mapping by which a parametric map says its values (PS3.3 section A.75.5).

    Raises:
        UnsupportedImage: There are several mappings, or none that is linear.
    """
    items, name = mappings(plane), plane.path.name
    if len(items) != 1 or not word(items[0], "RealWorldValueSlope"):
        raise UnsupportedImage(
            f"expected one linear real world value mapping in the parametric map {name}, found "
            f"{'one of another kind' if len(items) == 1 else len(items)}",
            "Export the map as a series of images whose values need one rescaling",
        )
    slope, intercept = (float(numbers(items[0], f"RealWorldValue{end}", 1, name)[0]) for end in ("Slope", "Intercept"))
    return slope, intercept


def linear(planes: Sequence[Plane], unit: Unit) -> tuple[float, float] | None:
    """Slope and intercept from all stored values of one file to `unit`, or None where no single pair says it."""
    if any("ModalityLUTSequence" in group(p.header, p.frame, "PixelValueTransformationSequence") for p in planes):
        return None
    pairs = {slope_and_intercept(plane, unit) or (1.0, 0.0) for plane in planes}
    return pairs.pop() if len(pairs) == 1 else None


def rescaled(stored: NDArray[np.generic], plane: Plane, unit: Unit) -> NDArray[np.generic]:
    """Stored values after the modality transformation or real world mapping, in float64 where there is one.

    The photometric interpretation plays no part: MONOCHROME1 says how values are shown, not what they are.
    """
    values = group(plane.header, plane.frame, "PixelValueTransformationSequence")
    if "ModalityLUTSequence" in values:
        entries, first, _ = values.ModalityLUTSequence[0].LUTDescriptor
        within = stored.astype(np.int64).clip(first, first + (entries or 2**16) - 1)  # or pydicom's sums may wrap round
        looked_up: NDArray[np.generic] = apply_modality_lut(within, values)
        return looked_up
    rescale = slope_and_intercept(plane, unit)
    return stored if rescale is None else stored.astype(np.float64) * rescale[0] + rescale[1]


def to_rgb(stored: NDArray[np.generic], dataset: Dataset, name: str) -> NDArray[np.generic]:
    """Stored values as RGB of 8 bits; YBR was already converted on decoding.

    Raises:
        UnsupportedImage: Colour has more than 8 bits.
    """
    if word(dataset, "PhotometricInterpretation") == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        if stored.dtype == np.uint16:
            stored = np.right_shift(stored, 8, dtype=np.uint16).astype(np.uint8)
    if stored.dtype != np.uint8:
        raise UnsupportedImage(
            f"expected colour of 8 bits a sample, found {stored.dtype} in {name}", "Convert the images to 8-bit RGB"
        )
    return stored[..., :3]
