"""Series that hold several volumes: told apart by their headers, listed, and chosen by whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from headers import ORIENTATIONS, header
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medfuse.errors import SeriesError, UnsupportedImage
from medfuse.io.dicom_parts import Part, parts_of
from medfuse.io.dicom_planes import Plane, planes_of
from medfuse.io.files import inspect, read
from medfuse.volume import Volume

HEIGHTS = (0.0, 3.0, 6.0)


def volume(number: int = 0, heights: tuple[float, ...] = HEIGHTS, **attributes: Any) -> list[Plane]:
    """Images at those heights; `number` begins their Instance Numbers."""
    headers = [header((0, 0, z), InstanceNumber=number + n, **attributes) for n, z in enumerate(heights, start=1)]
    return [plane for n, one in enumerate(headers) for plane in planes_of(Path(f"{number + n}.dcm"), one)]


def told(parts: tuple[Part, ...]) -> list[tuple[str, tuple[str, ...], list[int]]]:
    return [(part.label, part.labels, [len(frame) for frame in part.frames]) for part in parts]


def test_one_volume_is_one_part_whatever_else_differs_from_slice_to_slice() -> None:
    planes = [
        plane
        for n, z in enumerate(HEIGHTS)
        for plane in volume(n, (z,), AcquisitionNumber=n, AcquisitionTime=f"1015{n}0", EchoTime=str(30 + n))
    ]
    assert told(parts_of(planes)) == [("", ("",), [3])]


def test_echoes_are_parts_by_size_not_by_alphabet() -> None:
    planes = volume(0, EchoTime="30") + volume(9, EchoTime="4.6") + volume(20, EchoTime="100")
    assert told(parts_of(planes)) == [
        ("EchoTime 4.6", ("",), [3]),
        ("EchoTime 30", ("",), [3]),
        ("EchoTime 100", ("",), [3]),
    ]


def test_times_are_frames_in_their_order() -> None:
    planes = [plane for n in (2, 10, 1) for plane in volume(n * 9, TemporalPositionIdentifier=n)]
    (part,) = parts_of(planes)
    assert part.labels == tuple(f"TemporalPositionIdentifier {n}" for n in (1, 2, 10))
    assert [frame[0].header.TemporalPositionIdentifier for frame in part.frames] == [1, 2, 10]


def test_echoes_and_times_at_once() -> None:
    planes = [
        plane for echo in ("5", "9") for n in (1, 2, 3) for plane in volume(EchoTime=echo, TriggerTime=str(100 * n))
    ]
    times = ("TriggerTime 100", "TriggerTime 200", "TriggerTime 300")
    assert told(parts_of(planes)) == [("EchoTime 5", times, [3, 3, 3]), ("EchoTime 9", times, [3, 3, 3])]


def test_times_of_day_are_shown_as_seconds_after_the_first() -> None:
    planes = volume(0, AcquisitionTime="095958.5") + volume(9, AcquisitionTime="100001.25")
    (part,) = parts_of(planes)
    assert part.labels == ("AcquisitionTime + 0 s", "AcquisitionTime + 2.75 s")


@pytest.mark.parametrize("clock", ["Acquisition", "Content"])
def test_midnight_comes_after_the_evening(clock: str) -> None:
    times = (("20240301", "235900"), ("20240301", "235930.5"), ("20240302", "000000"), ("20240302", "000100"))
    planes = [
        plane
        for n in (2, 0, 3, 1)
        for plane in volume(n * 9, **{f"{clock}Date": times[n][0], f"{clock}Time": times[n][1]})
    ]
    (part,) = parts_of(planes)
    assert part.labels == tuple(f"{clock}Time + {seconds} s" for seconds in ("0", "30.5", "60", "120"))
    assert [frame[0].header[f"{clock}Time"].value for frame in part.frames] == [time for _, time in times]


def test_a_time_of_day_counts_alone_where_one_has_no_date() -> None:
    later = volume(9, AcquisitionDate="20240301", AcquisitionTime="100000")
    (part,) = parts_of(volume(0, AcquisitionTime="090000") + later)
    assert part.labels == ("AcquisitionTime + 0 s", "AcquisitionTime + 3600 s")


def test_the_order_of_the_images_is_the_last_resort() -> None:
    (part,) = parts_of(volume(0) + volume(3))
    assert part.labels == ("image 1", "image 2")
    assert [[plane.header.InstanceNumber for plane in frame] for frame in part.frames] == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("changes", [{"InstanceNumber": 1}, {"InstanceNumber": None}])
def test_what_nothing_tells_apart_is_refused(changes: dict[str, Any]) -> None:
    planes = volume(0) + volume(3)
    for plane in planes:
        plane.header.InstanceNumber = changes["InstanceNumber"]
    with pytest.raises(SeriesError, match="found 6 images at 3 positions, and nothing in their headers"):
        parts_of(planes)


def test_acquisitions_that_overlap_in_part_are_parts() -> None:
    planes = volume(0, (0, 3, 6, 9), AcquisitionNumber=1) + volume(9, (6, 9, 12), AcquisitionNumber=2)
    assert told(parts_of(planes)) == [("AcquisitionNumber 1", ("",), [4]), ("AcquisitionNumber 2", ("",), [3])]


def test_acquisitions_that_overlap_in_part_are_parts_where_every_place_has_as_many_images() -> None:
    """Two halves and the whole: the order of the images would make volumes of a half and another acquisition's."""
    planes = (
        volume(0, (0, 3, 6), AcquisitionNumber=1)
        + volume(3, (0, 3, 6, 9, 12, 15), AcquisitionNumber=2)
        + volume(9, (9, 12, 15), AcquisitionNumber=3)
    )
    lengths = ((1, 3), (2, 6), (3, 3))
    assert told(parts_of(planes)) == [(f"AcquisitionNumber {n}", ("",), [length]) for n, length in lengths]


def test_volumes_of_which_each_half_is_an_acquisition_are_told_by_the_order_of_the_images() -> None:
    halves = ((0, 3, 6), (9, 12, 15)) * 2
    planes = [plane for n, half in enumerate(halves) for plane in volume(3 * n, half, AcquisitionNumber=n + 1)]
    assert told(parts_of(planes)) == [("", ("image 1", "image 2"), [6, 6])]


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"ImageOrientationPatient": list(ORIENTATIONS["coronal"])}, "geometry 2 (coronal, 7 × 9)"),
        ({"Rows": 14}, "geometry 2 (axial, 14 × 9)"),
        ({"FrameOfReferenceUID": "9.9"}, "geometry 2 (axial, 7 × 9)"),
        ({"PixelSpacing": [1, 1]}, "geometry 2 (axial, 7 × 9)"),
    ],
)
def test_images_of_different_geometry_are_parts(changes: dict[str, Any], label: str) -> None:
    parts = parts_of(volume() + volume(9, **changes))
    assert [part.label for part in parts] == ["geometry 1 (axial, 7 × 9)", label]


def test_images_all_around_are_no_scan() -> None:
    angles = np.linspace(0, np.pi, 201, endpoint=False)
    planes = [
        plane
        for n, angle in enumerate(angles)
        for plane in volume(n, (0,), ImageOrientationPatient=[np.cos(angle), np.sin(angle), 0, 0, 0, -1])
    ]
    assert len(parts_of(planes[:200])) == 200
    with pytest.raises(SeriesError, match="one geometry in the series, found more than 200"):
        parts_of(planes)


def enhanced(frames: list[dict[str, Any]]) -> list[Plane]:
    """The planes of an enhanced image, each frame with a height and attributes of its functional groups."""
    ds = header()
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, keyword)
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [1.5, 1.25]
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = list(ORIENTATIONS["axial"])
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = []
    for frame in frames:
        groups = Dataset()
        groups.PlanePositionSequence = [Dataset()]
        groups.PlanePositionSequence[0].ImagePositionPatient = [0, 0, frame["height"]]
        groups.FrameContentSequence = [Dataset()]
        for keyword in ("StackID", "TemporalPositionIndex", "DimensionIndexValues", "FrameAcquisitionDateTime"):
            if keyword in frame:
                setattr(groups.FrameContentSequence[0], keyword, frame[keyword])
        if "EffectiveEchoTime" in frame:
            groups.MREchoSequence = [Dataset()]
            groups.MREchoSequence[0].EffectiveEchoTime = frame["EffectiveEchoTime"]
        ds.PerFrameFunctionalGroupsSequence.append(groups)
    ds.NumberOfFrames = len(frames)
    return list(planes_of(Path("enhanced.dcm"), ds))


def test_stacks_echoes_and_times_of_an_enhanced_image() -> None:
    stacks = enhanced([{"height": z, "StackID": name} for name in "AB" for z in (0, 3, 6)])
    assert [len(part.frames[0]) for part in parts_of(stacks)] == [3, 3]
    frames = [
        {"height": z, "TemporalPositionIndex": time, "EffectiveEchoTime": echo}
        for z in (0, 3)
        for time in (1, 2)
        for echo in (5.0, 9.0)
    ]
    times = ("TemporalPositionIndex 1", "TemporalPositionIndex 2")
    found = parts_of(enhanced(frames))
    assert told(found) == [("EffectiveEchoTime 5", times, [2, 2]), ("EffectiveEchoTime 9", times, [2, 2])]
    assert [plane.frame for plane in found[1].frames[0]] == [1, 5]


def test_frames_of_an_enhanced_image_that_differ_in_their_time_alone_are_times() -> None:
    clocks = ("20240301235959.5+0100", "20240302000001+0100")
    (part,) = parts_of(
        enhanced([{"height": z, "FrameAcquisitionDateTime": clock} for clock in clocks[::-1] for z in (0, 3, 6)])
    )
    assert part.labels == ("FrameAcquisitionDateTime + 0 s", "FrameAcquisitionDateTime + 1.5 s")
    assert [plane.frame for plane in part.frames[0]] == [3, 4, 5]


def test_dimensions_tell_apart_what_no_known_attribute_does() -> None:
    frames = [
        {"height": z, "DimensionIndexValues": [1, place, direction]}
        for place, z in enumerate((0, 3), start=1)
        for direction in (1, 2, 3)
    ]
    planes = enhanced(frames)
    planes[0].header.DimensionIndexSequence = [Dataset() for _ in range(3)]
    pointers = ("StackID", "InStackPositionNumber", "DiffusionGradientDirectionSequence")
    for item, keyword in zip(planes[0].header.DimensionIndexSequence, pointers, strict=True):
        item.DimensionIndexPointer = tag_for_keyword(keyword)
    (part,) = parts_of(planes)
    assert part.labels == tuple(f"dimension DiffusionGradientDirectionSequence {n}" for n in (1, 2, 3))
    assert [[plane.frame for plane in frame] for frame in part.frames] == [[0, 3], [1, 4], [2, 5]]


def test_dimensions_count_in_all_files_of_a_concatenation() -> None:
    def half(directions: tuple[int, int], concatenation: str) -> list[Plane]:
        frames = [
            {"height": z, "DimensionIndexValues": [place, n]} for n in directions for place, z in enumerate((0, 3), 1)
        ]
        planes = enhanced(frames)
        planes[0].header.DimensionIndexSequence = [Dataset(), Dataset()]
        for item, pointer in zip(planes[0].header.DimensionIndexSequence, (0x00209057, 0x20051413), strict=True):
            item.DimensionIndexPointer = pointer  # In-Stack Position Number, and a private element
        planes[0].header.ConcatenationUID = concatenation
        return [replace(plane, path=Path(f"{directions[0]}.dcm")) for plane in planes]

    (part,) = parts_of(half((1, 2), "1.2.9") + half((3, 4), "1.2.9"))
    assert part.labels == tuple(f"dimension 2 {n}" for n in (1, 2, 3, 4))
    with pytest.raises(SeriesError, match="nothing in their headers"):
        parts_of(half((1, 2), "1.2.9") + half((3, 4), "1.2.8"))


def test_directions_of_diffusion_are_told_apart_without_dimensions() -> None:
    """The orientation lies in a sequence of its own; images without diffusion have none."""
    planes = enhanced([{"height": z} for z in (0, 3) for _ in range(3)])
    for plane, groups in zip(planes, planes[0].header.PerFrameFunctionalGroupsSequence, strict=True):
        groups.MRDiffusionSequence = [Dataset()]
        groups.MRDiffusionSequence[0].DiffusionBValue = 1000.0 if plane.frame % 3 else 0.0
        if plane.frame % 3:
            direction = Dataset()
            direction.DiffusionGradientOrientation = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]][plane.frame % 3 - 1]
            groups.MRDiffusionSequence[0].DiffusionGradientDirectionSequence = [direction]
    (part,) = parts_of(planes)
    assert part.labels == tuple(f"DiffusionGradientOrientation {told}" for told in ("0/1/0", "1/0/0", "none"))
    assert [[plane.frame for plane in frame] for frame in part.frames] == [[2, 5], [1, 4], [0, 3]]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    order=st.randoms(use_true_random=False),
)
def test_every_image_is_in_one_frame_of_one_part(counts, order) -> None:
    echoes, times, slices = counts
    planes = [
        plane
        for echo in range(echoes)
        for time in range(times)
        for plane in volume(0, tuple(3.0 * z for z in range(slices)), EchoTime=echo, TriggerTime=time)
    ]
    order.shuffle(planes)
    parts = parts_of(planes)
    assert sorted(id(plane) for part in parts for frame in part.frames for plane in frame) == sorted(map(id, planes))
    assert len(parts) == echoes
    for part in parts:
        assert [len(frame) for frame in part.frames] == [slices] * times
        for frame in part.frames:
            assert len({(plane.header.EchoTime, plane.header.TriggerTime) for plane in frame}) == 1
            assert len({plane.position_mm[2] for plane in frame}) == slices


@pytest.fixture
def echoes(ct_series: Path) -> Iterator[Path]:
    """The CT series twice in one, the second one 100 HU brighter and with another echo time."""
    for path in list(ct_series.iterdir()):
        ds = pydicom.dcmread(path)
        ds.EchoTime = "10"
        ds.save_as(path)
        ds.EchoTime = "20"
        ds.RescaleIntercept = float(ds.RescaleIntercept) + 100
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.save_as(path.with_name(f"second_{path.name}"))
    return ct_series


def test_parts_are_listed_and_chosen(echoes: Path, oblique_volume: Volume) -> None:
    with pytest.raises(SeriesError, match=r"found 2: 3:1 \(EchoTime 10: 5 images\); 3:2 \(EchoTime 20: 5 images\)"):
        read(echoes)
    infos = inspect(echoes).series
    assert [(info.part, info.label, info.files, info.usable) for info in infos] == [
        (1, "EchoTime 10", 5, True),
        (2, "EchoTime 20", 5, True),
    ]
    for series in ("3:2", "ct:2", f"{infos[0].uid}:2", ":2"):
        second = read(echoes, series=series)
        np.testing.assert_array_equal(second.array, oblique_volume.array + 100)
    assert second.history[0].parameters["part"] == "EchoTime 20"
    with pytest.raises(SeriesError, match=r"expected a part of the series, not 3, found 2: 3:1 "):
        read(echoes, series="3:3")


def test_echoes_and_times_of_a_converted_image(echoes: Path, oblique_volume: Volume, tmp_path: Path) -> None:
    datasets = []
    for path in sorted(echoes.iterdir()):
        for time in (1, 2):
            ds = pydicom.dcmread(path)
            ds.TemporalPositionIdentifier = time
            ds.RescaleIntercept = float(ds.RescaleIntercept) + 10 * time
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            datasets.append(ds)
    converted = hd.legacy.LegacyConvertedEnhancedCTImage(
        datasets, hd.UID(), 9, hd.UID(), 1, transfer_syntax_uid=ExplicitVRLittleEndian
    )
    converted.save_as(tmp_path / "converted.dcm")
    assert [(info.label, len(info.frames)) for info in inspect(tmp_path / "converted.dcm").series] == [
        ("EchoTime 10", 2),
        ("EchoTime 20", 2),
    ]
    for part, frame, brighter in ((1, 1, 10), (1, 2, 20), (2, 1, 110), (2, 2, 120)):
        found = read(tmp_path / "converted.dcm", series=f"9:{part}", frame=frame)
        np.testing.assert_array_equal(found.array, oblique_volume.array + brighter)
        assert found.grid.matches(oblique_volume.grid, 1e-4)
        ((_, uid, frames),) = found.source.images
        assert (uid, len(frames)) == (converted.SOPInstanceUID, len(oblique_volume.array))
        used = [converted.PerFrameFunctionalGroupsSequence[number - 1] for number in frames]
        intercepts = {item.PixelValueTransformationSequence[0].RescaleIntercept for item in used}
        assert len(intercepts) == 1  # that of this part and this time


def test_frames_are_listed_and_chosen(echoes: Path, oblique_volume: Volume) -> None:
    for path in echoes.iterdir():
        ds = pydicom.dcmread(path)
        ds.TriggerTime, ds.EchoTime = ds.EchoTime, "1"
        ds.save_as(path)
    with pytest.raises(SeriesError, match=r"found 2 of 5 images each: 1 \(TriggerTime 10\); 2 \(TriggerTime 20\)"):
        read(echoes)
    (info,) = inspect(echoes).series
    assert (info.frames, info.usable, info.shape) == (("TriggerTime 10", "TriggerTime 20"), True, (5, 7, 9))
    second = read(echoes, frame=2)
    np.testing.assert_array_equal(second.array, oblique_volume.array + 100)
    assert (second.history[0].parameters["frame"], second.history[0].parameters["frames"]) == (2, 2)
    for wrong in (0, 3):
        with pytest.raises(SeriesError, match=rf"expected a frame of 1 to 2, not {wrong}"):
            read(echoes, frame=wrong)


def test_a_frame_of_a_series_without_frames(ct_series: Path) -> None:
    assert read(ct_series, frame=1).array.shape == (5, 7, 9)
    with pytest.raises(SeriesError, match="expected a frame of 1 to 1, not 2, found 1 of 5 images each"):
        read(ct_series, frame=2)


def test_one_image_is_a_volume_only_when_asked(ct_series: Path, oblique_volume: Volume) -> None:
    for path in sorted(ct_series.iterdir())[1:]:
        path.unlink()
    with pytest.raises(UnsupportedImage, match=r"one 2-D image, which is not a volume.*--allow-2d"):
        read(ct_series)
    slab = read(ct_series, allow_2d=True)
    assert slab.array.shape == (1, 7, 9)
    assert slab.grid.spacing_mm == pytest.approx((3, 1.5, 1.25))
    index = np.rint(oblique_volume.grid.index_of([slab.grid.origin_mm])).astype(int)[0]
    np.testing.assert_array_equal(slab.array[0], oblique_volume.array[index[0]])
    assert slab.history[0].parameters["allow_2d"] is True


def test_stacks_that_reach_into_one_another_are_parts() -> None:
    """A place that was acquired twice, with the couch a little farther on."""
    planes = volume(0, (0.0, 3.0, 6.0, 9.0), AcquisitionNumber=1) + volume(9, (4.0, 7.0, 10.0), AcquisitionNumber=2)
    assert told(parts_of(planes)) == [("AcquisitionNumber 1", ("",), [4]), ("AcquisitionNumber 2", ("",), [3])]


@pytest.mark.parametrize("keyword", ["EchoTime", "ConvolutionKernel", "ImageType"])
def test_stacks_of_two_kinds_are_parts_though_together_they_are_regular(keyword: str) -> None:
    planes = volume(0, (0.0, 3.0, 6.0), **{keyword: "10"}) + volume(9, (1.5, 4.5, 7.5), **{keyword: "20"})
    assert told(parts_of(planes)) == [(f"{keyword} 10", ("",), [3]), (f"{keyword} 20", ("",), [3])]


def test_stacks_of_two_frame_types_of_an_enhanced_image_are_parts() -> None:
    planes = enhanced([{"height": z} for z in (0, 3, 6, 1.5, 4.5, 7.5)])
    for plane, groups in zip(planes, planes[0].header.PerFrameFunctionalGroupsSequence, strict=True):
        groups.MRImageFrameTypeSequence = [Dataset()]
        groups.MRImageFrameTypeSequence[0].FrameType = "10" if plane.frame < 3 else "20"
    assert told(parts_of(planes)) == [("FrameType 10", ("",), [3]), ("FrameType 20", ("",), [3])]


@pytest.mark.parametrize("second", [(20.0, 23.0, 26.0), (1.5, 4.5, 7.5), (1.0, 5.0, 7.0)])
def test_stacks_apart_even_together_or_uneven_are_not_divided(second: tuple[float, ...]) -> None:
    """`dicom_stack` judges them: a gap, one interleaved scan, slices at odd places."""
    planes = volume(0, (0.0, 3.0, 6.0), AcquisitionNumber=1) + volume(9, second, AcquisitionNumber=2)
    assert told(parts_of(planes)) == [("", ("",), [6])]
