"""What was left out beside a series is told where it may be a part of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from medfuse.errors import MedfuseWarning, SeriesError
from medfuse.io.files import inspect, read
from medfuse.volume import Volume


def edit(path: Path, change: Callable[[Dataset], object], target: Path | None = None) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(target or path)


def first_slice(folder: Path) -> Path:
    """The file of a slice at one end of the stack, where no gap tells that it is missing."""
    return min(folder.iterdir(), key=lambda path: float(pydicom.dcmread(path).SliceLocation))


def test_an_end_slice_with_another_series_uid_is_told(ct_series: Path) -> None:
    edit(first_slice(ct_series), lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.3"))
    with pytest.warns(MedfuseWarning, match="left out: 1 image of the same study, .*; a slice may be missing"):
        assert read(ct_series).grid.shape == (4, 7, 9)
    (told,) = [info.warnings for info in inspect(ct_series).series if info.files == 4]
    assert "1 image of the same study" in told[0]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("StudyInstanceUID", "1.2.4"),
        ("FrameOfReferenceUID", "1.2.4"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 0, -1]),
        ("ImageOrientationPatient", None),
    ],
)
def test_a_single_image_of_another_kind_is_no_news(ct_series: Path, keyword: str, value: object) -> None:
    def change(dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = "1.2.3"
        setattr(dataset, keyword, value)

    edit(first_slice(ct_series), change)
    assert read(ct_series).grid.shape == (4, 7, 9)


def test_an_end_slice_marked_as_localizer_is_told(ct_series: Path) -> None:
    edit(first_slice(ct_series), lambda dataset: setattr(dataset, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    with pytest.warns(MedfuseWarning, match="left out: 1 image of this series marked as localizer, yet placed"):
        read(ct_series)


def test_copies_are_dropped_with_a_word(ct_series: Path, oblique_volume: Volume) -> None:
    """Byte for byte, of another institution, and encoded in another way."""
    first, second, third, *_ = sorted(ct_series.iterdir())
    shutil.copy(first, ct_series / "same")
    edit(second, lambda dataset: setattr(dataset, "InstitutionName", "Elsewhere"), ct_series / "edited")
    implicit = pydicom.dcmread(third)
    implicit.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    implicit.save_as(ct_series / "implicit", implicit_vr=True)
    with pytest.warns(MedfuseWarning, match="left out: 3 copies of images that are there already"):
        volume = read(ct_series)
    np.testing.assert_array_equal(volume.array, oblique_volume.array)


@pytest.mark.parametrize("keyword", ["PixelData", "SOPInstanceUID", "RescaleIntercept"])
def test_what_differs_in_pixels_place_or_meaning_is_no_copy(ct_series: Path, keyword: str) -> None:
    def change(dataset: Dataset) -> None:
        dataset.InstanceNumber = ""
        if keyword == "PixelData":
            dataset.PixelData = bytes(reversed(dataset.PixelData))
        elif keyword == "SOPInstanceUID":
            dataset.SOPInstanceUID = ""
        else:
            dataset.RescaleIntercept = "0"

    edit(first_slice(ct_series), change, ct_series / "other")
    with pytest.raises(SeriesError, match="expected one image at each position, found 6 images at 5 positions"):
        read(ct_series)


def test_a_pet_that_is_shorter_than_it_says_is_told(pt_series: Path) -> None:
    first_slice(pt_series).unlink()
    with pytest.warns(
        MedfuseWarning, match="4 images where the header says that a volume has 5; slices may be missing"
    ):
        read(pt_series)


def test_a_volume_of_several_that_is_shorter_than_it_says_is_told(pt_series: Path) -> None:
    """Number of Slices is that of one volume: the slice is absent in each, of more images than that in all."""
    first_slice(pt_series).unlink()
    for path in list(pt_series.iterdir()):
        edit(path, lambda dataset: dataset.update({"FrameReferenceTime": "30000"}))
        later = {"FrameReferenceTime": "90000", "SOPInstanceUID": generate_uid()}
        edit(path, lambda dataset, later=later: dataset.update(later), path.with_name(f"later_{path.name}"))
    said = "4 images where the header says that a volume has 5; slices may be missing"
    with pytest.warns(MedfuseWarning, match=said):
        assert read(pt_series, frame=2).grid.shape == (4, 7, 9)
    (info,) = inspect(pt_series).series
    assert (len(info.frames), info.warnings) == (2, (said,))


@pytest.mark.parametrize("parts", [2, 3])
def test_a_part_of_a_concatenation_that_is_not_there_is_told(ct_series: Path, parts: int) -> None:
    """Of one image in parts; five slices stand for them."""
    for n, path in enumerate(sorted(ct_series.iterdir())):
        part = {"ConcatenationUID": "1.2.3", "InConcatenationNumber": n % 2 + 1, "InConcatenationTotalNumber": parts}
        edit(path, lambda dataset, part=part: [setattr(dataset, *one) for one in part.items()])
    told = ("2 of the 3 files of a concatenation; slices may be missing",) if parts == 3 else ()
    (info,) = inspect(ct_series).series
    assert info.warnings == told
