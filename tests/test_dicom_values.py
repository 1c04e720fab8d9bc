"""What stored values mean: real world value maps, photometric interpretation; units and rescaling: test_dicom_read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medfuse.errors import MedfuseWarning, SeriesError, UnsupportedImage
from medfuse.io.dicom_values import rescaled
from medfuse.io.files import read
from medfuse.volume import Unit


def mapping(code: str, slope: float = 2.0, intercept: float = 1.0) -> Dataset:
    """Item of a Real World Value Mapping Sequence."""
    item = Dataset()
    item.RealWorldValueFirstValueMapped, item.RealWorldValueLastValueMapped = -32768, 32767
    item.RealWorldValueSlope, item.RealWorldValueIntercept = slope, intercept
    unit = Dataset()
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = code, "UCUM", code
    item.MeasurementUnitsCodeSequence = [unit]
    return item


@pytest.fixture
def multi(pt_series: Path, tmp_path: Path) -> Path:
    """The PET series as one enhanced image, without Units, as enhanced PET has none."""
    datasets = [pydicom.dcmread(path) for path in sorted(pt_series.iterdir())]
    image = hd.legacy.LegacyConvertedEnhancedPETImage(
        datasets, hd.UID(), 9, hd.UID(), 1, transfer_syntax_uid=ExplicitVRLittleEndian
    )
    image.save_as(tmp_path / "multi.dcm")
    ds = pydicom.dcmread(tmp_path / "multi.dcm")
    del ds.SharedFunctionalGroupsSequence[0].UnassignedSharedConvertedAttributesSequence
    ds.save_as(tmp_path / "multi.dcm")
    return tmp_path / "multi.dcm"


def add_mappings(path: Path, per_frame: list[list[Dataset]]) -> np.ndarray:
    """Put mappings into the frames of an image; returns its stored values, (frames, rows, columns)."""
    ds = pydicom.dcmread(path)
    for groups, items in zip(ds.PerFrameFunctionalGroupsSequence, per_frame, strict=True):
        groups.RealWorldValueMappingSequence = items
    ds.save_as(path)
    return ds.pixel_array


def in_slice_order(path: Path, frames: np.ndarray) -> np.ndarray:
    """Frames sorted along their normal."""
    ds = pydicom.dcmread(path)
    orientation = np.array(
        ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient, float
    )
    normal = np.cross(orientation[:3], orientation[3:])
    heights = [
        normal @ np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        for groups in ds.PerFrameFunctionalGroupsSequence
    ]
    return frames[np.argsort(heights)]


@pytest.mark.parametrize(
    ("codes", "unit", "slope"),
    [
        (["Bq/ml"], Unit.BQML, 1),
        (["{SUVbw}g/ml"], Unit.SUV, 1),
        (["g/ml{SUVbw}"], Unit.SUV, 1),
        (["Bq/ml", "{SUVbw}g/ml"], Unit.SUV, 2),
        (["{counts}"], Unit.COUNTS, 1),
    ],
)
def test_every_frame_has_its_own_map(multi: Path, codes: list[str], unit: Unit, slope: int) -> None:
    per_frame = [[mapping(code, (n + 1) * (m + 1)) for m, code in enumerate(codes)] for n in range(5)]
    stored = add_mappings(multi, per_frame).astype(float)
    volume = read(multi, units="native")
    assert volume.unit is unit
    expected = stored * slope * np.arange(1, 6)[:, None, None] + 1
    np.testing.assert_allclose(volume.array, in_slice_order(multi, expected), rtol=1e-6)


@pytest.mark.parametrize("code", ["1", "mm2/s", ""])
def test_a_map_to_another_unit_is_left_alone(multi: Path, code: str) -> None:
    expected = read(multi, units="native")
    add_mappings(multi, [[mapping(code)]] * 5)
    volume = read(multi, units="native")
    assert volume.unit is expected.unit is Unit.ARBITRARY
    np.testing.assert_array_equal(volume.array, expected.array)


def test_frames_of_two_units_are_refused(multi: Path) -> None:
    add_mappings(multi, [[mapping("Bq/ml")]] * 4 + [[mapping("{counts}")]])
    with pytest.raises(SeriesError, match="one unit in the series, found BQML, COUNTS"):
        read(multi, units="native")


def test_a_map_that_keeps_nothing_apart_is_refused(multi: Path) -> None:
    add_mappings(multi, [[mapping("Bq/ml", slope=0.0)]] * 5)
    with pytest.raises(UnsupportedImage, match="slope and intercept that keep values apart, found 0"):
        read(multi, units="native")


def test_what_the_header_itself_states_goes_before_a_map(ct_series: Path) -> None:
    expected = read(ct_series).array
    for path in ct_series.iterdir():
        ds = pydicom.dcmread(path)
        ds.RealWorldValueMappingSequence = [mapping("[hnsf'U]", 7, 7)]
        ds.save_as(path)
    volume = read(ct_series)
    assert volume.unit is Unit.HU
    np.testing.assert_array_equal(volume.array, expected)


def test_a_map_counts_where_the_rescaling_of_a_ct_leads_to_no_hu(ct_series: Path) -> None:
    edit_all(ct_series, RescaleType="US", RescaleSlope="1", RescaleIntercept="0")
    stated = read(ct_series)
    assert stated.unit is Unit.ARBITRARY
    edit_all(ct_series, RealWorldValueMappingSequence=[mapping("[hnsf'U]", 2, -1000)])
    volume = read(ct_series)
    assert volume.unit is Unit.HU
    np.testing.assert_array_equal(volume.array, 2 * stated.array - 1000)


def edit_all(folder: Path, **changes: Any) -> None:
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        ds.save_as(path)


def test_monochrome1_is_a_matter_of_display(ct_series: Path) -> None:
    expected = read(ct_series)
    edit_all(ct_series, PhotometricInterpretation="MONOCHROME1")
    with pytest.warns(MedfuseWarning, match="MONOCHROME1: values are kept"):
        volume = read(ct_series)
    np.testing.assert_array_equal(volume.array, expected.array)
    assert any("MONOCHROME1" in message for message in volume.history[0].parameters["warnings"])


def test_slices_of_unequal_thickness_are_read_with_a_warning(ct_series: Path) -> None:
    expected = read(ct_series)
    ds = pydicom.dcmread(min(ct_series.iterdir()))
    ds.SliceThickness = "7"
    ds.save_as(min(ct_series.iterdir()))
    with pytest.warns(MedfuseWarning, match="slice thickness differs: 3.*, 7 mm"):
        volume = read(ct_series)
    np.testing.assert_array_equal(volume.array, expected.array)
    assert volume.grid.matches(expected.grid, 1e-9)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("first", "entries"), [(-32768, 65536), (-2048, 30000), (-100, 300)])
def test_a_lookup_table_of_signed_values_goes_on_at_its_ends(bits: int, first: int, entries: int) -> None:
    item = Dataset()
    item.LUTDescriptor = [entries % 2**16, first, bits]
    item["LUTDescriptor"].VR = "SS"
    table = np.arange(entries, dtype=np.uint16) if bits == 16 else (np.arange(entries) % 200).astype(np.uint8)
    item.add_new("LUTData", *(("OW", table.tobytes()) if bits == 16 else ("US", table.tolist())))
    header = Dataset()
    header.ModalityLUTSequence = [item]
    header.set_original_encoding(False, True)
    stored = np.array([[-32768, -2048, -101, -1, 0, 1, 199, 20000, 32767]], np.int16)
    found = rescaled(stored, SimpleNamespace(header=header, frame=0, path=Path("x.dcm")), Unit.ARBITRARY)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, table[(stored.astype(int) - first).clip(0, entries - 1)])
