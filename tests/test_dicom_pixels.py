"""What headers say of their pixels: contradictions are refused by the attribute's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset

from medfuse.errors import MedfuseError, MissingAttribute, SeriesError, UnreadableFile
from medfuse.io.dicom_header import leniently
from medfuse.io.files import inspect, read
from medfuse.volume import Volume


@leniently()
def edit(paths: list[Path], change: Callable[[Dataset], object]) -> None:
    for path in paths:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)


def with_bits(**bits: int) -> Callable[[Dataset], None]:
    return lambda dataset: [setattr(dataset, keyword, value) for keyword, value in bits.items()] and None


@pytest.mark.parametrize(
    ("bits", "match"),
    [
        ({"HighBit": 14}, r"expected HighBit of 15, one less than BitsStored, in IM\d+\.dcm, found 14"),
        ({"BitsStored": 12}, "expected HighBit of 11, one less than BitsStored, in .*, found 15"),
        ({"BitsStored": 17, "HighBit": 16}, "expected BitsStored of 1 to 16, the BitsAllocated, in .*, found 17"),
        ({"BitsStored": 0}, "expected BitsStored of 1 to 16, .*, found 0"),
        ({"BitsAllocated": 8}, "expected BitsStored of 1 to 8, .*, found 16"),
        ({"BitsAllocated": 24}, "expected BitsAllocated of 8, 16, 32 or 64 in .*, found 24"),
        ({"SamplesPerPixel": 2}, "expected SamplesPerPixel of 1 or 3 in .*, found 2"),
        ({"PixelRepresentation": 2}, "expected PixelRepresentation of 0 or 1 in .*, found 2"),
    ],
)
def test_bits_that_contradict_one_another_are_refused(ct_series: Path, bits: dict[str, int], match: str) -> None:
    edit(list(ct_series.iterdir()), with_bits(**bits))
    with pytest.raises(UnreadableFile, match=match):
        read(ct_series)
    assert "expected" in str(inspect(ct_series).series[0].reason)


@pytest.mark.parametrize("keyword", ["BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel"])
def test_what_pixels_need_is_named_where_it_is_absent(ct_series: Path, keyword: str) -> None:
    edit(list(ct_series.iterdir()), lambda dataset: dataset.pop(keyword))
    with pytest.raises(MissingAttribute, match=rf"expected {keyword} in IM\d+\.dcm, found none"):
        read(ct_series)


def test_a_high_bit_that_is_not_stated_is_not_missed(ct_series: Path) -> None:
    edit(list(ct_series.iterdir()), lambda dataset: dataset.pop("HighBit"))
    assert read(ct_series).grid.shape == (5, 7, 9)


def test_one_image_whose_sign_was_lost_is_refused(ct_series: Path) -> None:
    edit([next(ct_series.iterdir())], with_bits(PixelRepresentation=0))
    with pytest.raises(SeriesError, match="expected one PixelRepresentation in the series, found 2 among 5 images"):
        read(ct_series)


def test_slopes_of_both_signs_are_refused_and_of_the_wrong_one_told(ct_series: Path) -> None:
    paths = list(ct_series.iterdir())
    edit(paths[:1], lambda dataset: setattr(dataset, "RescaleSlope", -1))
    with pytest.raises(SeriesError, match="expected rescale slopes of one sign"):
        read(ct_series)
    edit(paths[1:], lambda dataset: setattr(dataset, "RescaleSlope", -1))
    assert inspect(ct_series).series[0].warnings == (
        "the rescale slope is negative: the highest stored value becomes the lowest",
    )


def longer(by: int) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, "PixelData", dataset.PixelData + b"\1" * by)


def test_pixels_are_padded_by_less_than_a_row(ct_series: Path, oblique_volume: Volume) -> None:
    edit(list(ct_series.iterdir()), longer(16))
    assert (read(ct_series).array == oblique_volume.array).all()


@pytest.mark.parametrize("change", [longer(18), longer(126), longer(1260), with_bits(Rows=6), with_bits(Columns=7)])
def test_pixels_that_are_too_long_are_refused(ct_series: Path, change: Callable[[Dataset], None]) -> None:
    edit(list(ct_series.iterdir()), change)
    with pytest.raises(UnreadableFile, match=r"expected \d+ bytes of pixels in IM\d+\.dcm, as its Rows, .*, found \d+"):
        read(ct_series)


def test_the_published_corpus_is_refused_by_name(shared: Path) -> None:
    """The cases of bits and of lengths; the corpus says nothing of place, which is given here."""
    cases = {path.name[7:-4]: path for path in (shared / "fuzz" / "cat04_pixel_data").glob("*_bits_*.dcm")}
    assert len(cases) > 8
    for name, path in cases.items():
        with pytest.raises(MedfuseError) as caught:
            read(path, allow_2d=True)
        assert any(word in str(caught.value) for word in ("BitsAllocated", "BitsStored", "HighBit")), name
