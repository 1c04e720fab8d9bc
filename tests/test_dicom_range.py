"""Padding and limits of CT, and values that float32 cannot hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from edits import change_all
from pydicom import Dataset

from medfuse.errors import UnsupportedImage
from medfuse.io.dicom_header import leniently
from medfuse.io.files import read
from medfuse.volume import Modality, Unit


@leniently()
def store(dataset: Dataset, pixels: np.ndarray, **changes: object) -> None:
    """Put other pixels into an image, and change its header."""
    if pixels.dtype.kind == "f":
        del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
        setattr(dataset, "FloatPixelData" if pixels.itemsize == 4 else "DoubleFloatPixelData", pixels.tobytes())
    else:
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.BitsStored, dataset.HighBit = pixels.itemsize * 8, pixels.itemsize * 8 - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.BitsAllocated = pixels.itemsize * 8
    for keyword, value in changes.items():
        dataset.add_new(keyword, padding_vr(pixels) if keyword.startswith("PixelPadding") else "DS", value)


def padding_vr(pixels: np.ndarray) -> str:
    """Pixel Padding Value is signed as the pixels are."""
    return "SS" if pixels.dtype.kind == "i" else "US"


def ramp(dtype: str) -> np.ndarray:
    """A CT with its intercept still in it, and, in the corners, four pixels to be used for padding."""
    pixels = np.arange(7 * 9).reshape(7, 9).astype(dtype) + np.dtype(dtype).type(1024)
    return pixels


@pytest.mark.parametrize(
    ("dtype", "corners", "changes", "expected"),
    [
        ("i2", (-2000, -2000), {"PixelPaddingValue": -2000}, (-1000, -1000)),
        ("u2", (63536, 63536), {"PixelPaddingValue": 63536}, (-1000, -1000)),
        ("i2", (-2000, -1999), {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}, (-1000, -1000)),
        ("i2", (-1990, -2000), {"PixelPaddingValue": -1990, "PixelPaddingRangeLimit": -2000}, (-1000, -1000)),
        ("i2", (3000, 3000), {"PixelPaddingValue": 3000}, (-1000, -1000)),
        ("i2", (-2000, -1), {}, (-1024, -1024)),
        ("i2", (-2004, -2000), {"PixelPaddingValue": -2000}, (-1024, -1000)),
        ("i2", (0, 1), {"PixelPaddingValue": None}, (-1024, -1023)),
    ],
)
def test_padding_of_a_ct_is_air(
    ct_series: Path, dtype: str, corners: tuple[int, int], changes: dict[str, object], expected: tuple[float, float]
) -> None:
    pixels = ramp(dtype)
    pixels[0, 0], pixels[-1, -1] = corners
    change_all(ct_series, lambda dataset: store(dataset, pixels, RescaleIntercept=-1024, RescaleSlope=1, **changes))
    volume = read(ct_series)
    assert volume.unit is Unit.HU
    assert (volume.array[2, 0, 0], volume.array[2, -1, -1]) == expected
    np.testing.assert_array_equal(volume.array[2].ravel()[1:-1], np.arange(1, 62))


def test_a_mixed_up_sign_of_the_padding_value(ct_series: Path) -> None:
    pixels = ramp("i2")
    pixels[0, 0] = -2000

    def change(dataset: Dataset) -> None:
        store(dataset, pixels, RescaleIntercept=-1024, RescaleSlope=1)
        dataset.add_new("PixelPaddingValue", "US", 63536)

    change_all(ct_series, change)
    assert read(ct_series).array[2, 0, 0] == -1000


def test_padding_of_other_images_is_kept(pt_series: Path, ct_series: Path) -> None:
    expected = read(pt_series).array
    change_all(pt_series, lambda dataset: dataset.add_new("PixelPaddingValue", "US", 0))
    np.testing.assert_array_equal(read(pt_series).array, expected)
    change_all(ct_series, lambda dataset: setattr(dataset, "RescaleType", "US"))
    below = read(ct_series)
    assert below.unit is Unit.ARBITRARY
    change_all(ct_series, lambda dataset: setattr(dataset, "RescaleIntercept", -5000))
    assert read(ct_series).array.min() < -4000


def test_real_padding(shared: Path) -> None:
    path = shared / "wg04" / "CT1_UNC.dcm"
    stored = pydicom.dcmread(path).pixel_array
    volume = read(path, allow_2d=True)
    assert (volume.modality, volume.unit) == (Modality.CT, Unit.HU)
    assert np.count_nonzero(stored == -2000) == 55772
    assert (volume.array[0][stored == -2000] == -1000).all()
    np.testing.assert_array_equal(volume.array[0][stored >= 0], stored[stored >= 0] - 1024)


def test_hu_that_no_scanner_writes(ct_series: Path) -> None:
    change_all(ct_series, lambda dataset: setattr(dataset, "RescaleIntercept", 70000))
    with pytest.raises(UnsupportedImage, match=r"expected HU of at most 32768, found 7\d{4} in IM\d+\.dcm"):
        read(ct_series)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_float_pixels(ct_series: Path, dtype: str) -> None:
    pixels = (np.arange(63).reshape(7, 9) / 7).astype(dtype)
    change_all(ct_series, lambda dataset: store(dataset, pixels, RescaleIntercept=-10, RescaleSlope=2))
    np.testing.assert_allclose(read(ct_series).array[3], pixels * 2 - 10, rtol=1e-6)


def without_rescale(dataset: Dataset) -> None:
    del dataset.RescaleSlope, dataset.RescaleIntercept


def test_nan_among_float_pixels(ct_series: Path) -> None:
    pixels = np.full((7, 9), np.nan, "f4")
    pixels[1:] = 5
    change_all(ct_series, lambda dataset: (store(dataset, pixels), without_rescale(dataset)))
    with pytest.raises(UnsupportedImage, match="expected finite values, found 45 of 315"):
        read(ct_series, modality="mr")
    assert np.unique(read(ct_series, modality="mr", fill_nan=-3).array).tolist() == [-3, 5]


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((7, 9), 1e39, "f8"), "values of at most 3.40282347e[+]38, found 1e[+]39"),
        (np.full((7, 9), 2**24 + 1, "u4"), "whole numbers of at most 16777216, found 16777217"),
        (np.full((7, 9), -(2**31), "i4"), "whole numbers of at most 16777216, found 2.14748365e[+]09"),
    ],
)
def test_values_that_do_not_fit(ct_series: Path, pixels: np.ndarray, reason: str) -> None:
    change_all(ct_series, lambda dataset: (store(dataset, pixels), without_rescale(dataset)))
    with pytest.raises(UnsupportedImage, match=reason):
        read(ct_series, modality="mr")


def test_spect_that_comes_as_a_pet_series(pt_series: Path) -> None:
    change_all(pt_series, lambda dataset: (setattr(dataset, "Modality", "NM"), setattr(dataset, "Units", "CNTS")))
    volume = read(pt_series)
    assert (volume.modality, volume.unit) == (Modality.NM, Unit.COUNTS)
    change_all(pt_series, lambda dataset: setattr(dataset, "Units", "BQML"))
    assert read(pt_series).unit is Unit.BQML
    assert read(pt_series, units="suv").unit is Unit.SUV
