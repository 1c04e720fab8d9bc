"""NRRD and MetaImage, against SimpleITK's own files and hand-written headers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from agreement import assert_grid_is_of_image

from medfuse.errors import MissingAttribute, OutputError, UnreadableFile, UnsupportedImage
from medfuse.grid import Grid
from medfuse.io.files import inspect, read
from medfuse.io.itk_files import write_itk
from medfuse.volume import Modality, Unit, Volume

DATA = np.arange(24, dtype="<i2").reshape(4, 3, 2)
NRRD = """NRRD0004
type: short
dimension: 3
space: {space}
sizes: 2 3 4
space directions: (0.5,0,0) (0,2,0) (0,0,3)
space origin: (5,6,7)
encoding: raw
endian: little
"""
MHA = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
TransformMatrix = 0 1 0 0 0 1 1 0 0
Offset = 5 6 7
ElementSpacing = 0.5 2 3
DimSize = 2 3 4
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
#: The header of a MetaImage that does not say yet where its voxels are.
DETACHED = MHA.replace("ElementDataFile = LOCAL\n", "")


def nrrd(path: Path, text: str = NRRD.format(space="left-posterior-superior"), data: bytes = DATA.tobytes()) -> Path:
    path.write_bytes(text.encode() + b"\n" + data)
    return path


def mha(path: Path, text: str = MHA, data: bytes = DATA.tobytes()) -> Path:
    path.write_bytes(text.encode() + data)
    return path


@pytest.mark.parametrize(("format", "suffix"), [("nrrd", ".nrrd"), ("metaimage", ".mha")])
@pytest.mark.parametrize("color", [False, True])
def test_round_trip(oblique_volume: Volume, tmp_path: Path, format: str, suffix: str, color: bool) -> None:
    volume = oblique_volume
    if color:
        rgb = np.random.default_rng(3).integers(0, 256, (*volume.grid.shape, 3), np.uint8)
        volume = Volume(rgb, volume.grid, Modality.FUSED, Unit.RGB)
    write_itk(volume, tmp_path / f"x{suffix}", format)
    back = read(tmp_path / f"x{suffix}")
    assert back.source.format == format
    assert back.grid.matches(volume.grid, 1e-6)
    assert back.array.dtype == (np.uint8 if color else np.float32)
    np.testing.assert_array_equal(back.array, volume.array)
    assert_grid_is_of_image(volume, sitk.ReadImage(str(tmp_path / f"x{suffix}")), 1e-6)


@pytest.mark.parametrize(
    ("space", "sign"),
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("LPS", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
    ],
)
def test_every_space_of_nrrd_that_is_taken_becomes_lps(tmp_path: Path, space: str, sign: tuple[int, ...]) -> None:
    volume = read(nrrd(tmp_path / "x.nrrd", NRRD.format(space=space)))
    np.testing.assert_array_equal(volume.array, DATA)
    np.testing.assert_allclose(volume.grid.origin_mm, np.array((5, 6, 7)) * sign)
    np.testing.assert_allclose(volume.grid.points_mm([(3, 2, 1)])[0], np.array((5.5, 10, 16)) * sign)


def test_axes_of_a_metaimage(tmp_path: Path) -> None:
    """TransformMatrix lists, axis by axis, where each index axis points: i to +y, j to +z, k to +x."""
    volume = read(mha(tmp_path / "any.name"))
    np.testing.assert_array_equal(volume.array, DATA)
    np.testing.assert_allclose(
        volume.grid.points_mm([(0, 0, 1), (0, 1, 0), (1, 0, 0)]) - (5, 6, 7),
        [
            (0, 0.5, 0),
            (0, 0, 2),
            (3, 0, 0),
        ],
    )


def test_a_header_with_its_data_in_a_file_beside(tmp_path: Path) -> None:
    (tmp_path / "voxels.raw").write_bytes(DATA.tobytes())
    path = mha(tmp_path / "x.mhd", MHA.replace("LOCAL", "voxels.raw"), b"")
    np.testing.assert_array_equal(read(path).array, DATA)
    np.testing.assert_array_equal(read(tmp_path).array, DATA)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (NRRD.replace("space: {space}\n", "space dimension: 3\n"), "space"),
        (NRRD.format(space="LPS").replace("space origin: (5,6,7)\n", ""), "space origin"),
        (NRRD.format(space="LPS").replace("space directions: (0.5,0,0) (0,2,0) (0,0,3)\n", ""), "space directions"),
    ],
)
def test_nrrd_without_geometry_is_refused(tmp_path: Path, text: str, missing: str) -> None:
    path = nrrd(tmp_path / "x.nrrd", text)
    with pytest.raises(MissingAttribute, match=rf"the position in the patient in x\.nrrd, found no {missing}"):
        read(path)
    assert not inspect(path).series[0].usable


@pytest.mark.parametrize("line", ["TransformMatrix", "Offset", "ElementSpacing"])
def test_metaimage_without_geometry_is_refused(tmp_path: Path, line: str) -> None:
    text = "".join(kept for kept in MHA.splitlines(keepends=True) if not kept.startswith(line))
    with pytest.raises(MissingAttribute, match=r"the position in the patient in x\.mha"):
        read(mha(tmp_path / "x.mha", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NRRD.format(space="scanner-xyz"), "space LPS, RAS or LAS"),
        (NRRD.format(space="3D-right-handed"), "space LPS, RAS or LAS"),
        (NRRD.format(space="LPS") + 'space units: "m" "m" "m"\n', "millimetres"),
        (NRRD.format(space="LPS") + "data file: ../elsewhere.raw\n", "a path to another folder"),
    ],
)
def test_nrrd_of_other_kinds_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UnsupportedImage, match=message):
        read(nrrd(tmp_path / "x.nrrd", text))


def test_metaimage_does_not_reach_into_other_folders(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedImage, match="a path to another folder"):
        read(mha(tmp_path / "x.mhd", MHA.replace("LOCAL", "/etc/passwd"), b""))


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        (DETACHED, "Comment = x\rElementDataFile = voxels.raw\nElementDataFile = {elsewhere}\n"),
        (DETACHED, "elementdatafile = voxels.raw\nElementDataFile = {elsewhere}\n"),
        (DETACHED, "\nElementDataFile = {elsewhere}\n"),
        (DETACHED, "Comment = " + "x" * 65536 + "\nElementDataFile = {elsewhere}\n"),
        (DETACHED, "ElementDataFile = LIST\n{elsewhere}\n"),
        (DETACHED, "ElementDataFile = LISTED\n{elsewhere}\n"),
        (DETACHED, "ElementDataFile = %d.raw 1 1 1\n"),
        (DETACHED, ""),
        (NRRD.format(space="LPS"), "content: x\rdata file: voxels.raw\ndata file: {elsewhere}\n"),
        (NRRD.format(space="LPS"), "data file: voxels.raw\ndatafile: {elsewhere}\n"),
        (NRRD.format(space="LPS"), " \ndata file: {elsewhere}\n"),
        (NRRD.format(space="LPS"), "data file: LIST 3\n{elsewhere}\n"),
    ],
)
def test_nothing_is_read_but_what_was_checked(tmp_path: Path, header: str, lines: str) -> None:
    """ITK would open the other file, or make voxels up, without a word."""
    (tmp_path / "elsewhere").mkdir()
    for name in ("elsewhere/voxels.raw", "voxels.raw", "LIST", "LIST 3", "LISTED", "%d.raw 1 1 1", "1.raw"):
        (tmp_path / name).write_bytes(DATA.tobytes())
    path = tmp_path / "x.header"
    path.write_bytes((header + lines.format(elsewhere=tmp_path / "elsewhere" / "voxels.raw")).encode())
    with pytest.raises((UnreadableFile, UnsupportedImage)):
        read(path)


@pytest.mark.parametrize("named", ["LIST\nvoxels.raw", "slice%03d.raw 1 4 1", "absent.raw", ".", "x\0y"])
def test_voxels_are_in_one_file_beside_or_nowhere(tmp_path: Path, named: str) -> None:
    (tmp_path / "voxels.raw").write_bytes(DATA.tobytes())
    with pytest.raises(UnreadableFile, match=r"the voxels in x\.mhd or in one file beside it, found no such file"):
        read(mha(tmp_path / "x.mhd", MHA.replace("LOCAL", named), b""))


def damaged_in_many_ways(path: Path) -> Iterator[bytes]:
    raw = path.read_bytes()
    yield from (raw[:-lost] for lost in (1, 2, 4, 8, 9, 20, 200))
    for at in np.random.default_rng(1).integers(len(raw) - 700, len(raw), 60):
        yield raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]


@pytest.mark.parametrize(("format", "suffix"), [("nrrd", ".nrrd"), ("metaimage", ".mha")])
def test_damage_in_compressed_voxels_never_passes_unseen(
    oblique_volume: Volume, tmp_path: Path, format: str, suffix: str
) -> None:
    """ITK alone passes over all of it in MetaImage files, and over some of it in NRRD files."""
    path = tmp_path / f"x{suffix}"
    write_itk(oblique_volume, path, format)
    refused = 0
    for damaged in damaged_in_many_ways(path):
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read(path).array, oblique_volume.array)
        except UnreadableFile:
            refused += 1
    assert refused >= 60  # flags of the gzip header may change without harm


def test_compressed_voxels_in_a_file_beside(tmp_path: Path) -> None:
    text = MHA.replace("LOCAL", "voxels.zraw").replace("ElementData", "CompressedData = True\nElementData")
    path = mha(tmp_path / "x.mhd", text, b"")
    (tmp_path / "voxels.zraw").write_bytes(zlib.compress(DATA.tobytes()))
    np.testing.assert_array_equal(read(path).array, DATA)
    (tmp_path / "voxels.zraw").write_bytes(zlib.compress(DATA.tobytes() + b"more"))
    with pytest.raises(UnreadableFile, match=r"found voxels\.zraw cut short or damaged"):
        read(path)


@pytest.mark.parametrize(
    "compressed", ["", "CompressedData = True\n", "CompressedData = True\nCompressedDataSize = 9e9\n"]
)
def test_nothing_is_allocated_for_voxels_that_cannot_be_there(tmp_path: Path, compressed: str) -> None:
    text = MHA.replace("DimSize = 2 3 4", "DimSize = 1000 1000 1000").replace(
        "ElementDataFile", compressed + "ElementDataFile"
    )
    with pytest.raises(UnreadableFile, match=r"1000 × 1000 × 1000 voxels in x\.mha, found it cut short"):
        read(mha(tmp_path / "x.mha", text))


@pytest.mark.parametrize("line", ["encoding: bzip2", "encoding: gzip\nbyte skip: 3"])
def test_encodings_that_cannot_be_checked_are_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(UnsupportedImage, match=r"encoding raw, text, hex or gzip in x\.nrrd"):
        read(nrrd(tmp_path / "x.nrrd", NRRD.format(space="LPS").replace("encoding: raw", line)))


def test_text_encodings(tmp_path: Path) -> None:
    numbers = " ".join(map(str, DATA.ravel()))
    text = NRRD.format(space="LPS").replace("encoding: raw", "encoding: ascii")
    np.testing.assert_array_equal(read(nrrd(tmp_path / "x.nrrd", text, numbers.encode())).array, DATA)
    text = MHA.replace("BinaryData = True", "BinaryData = False")
    np.testing.assert_array_equal(read(mha(tmp_path / "x.mha", text, numbers.encode() + b"\n")).array, DATA)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_numbers_that_float32_cannot_hold_are_not_written(tmp_path: Path, dtype: type) -> None:
    large = 1e39 if dtype is np.float64 else 2**24 + 1
    volume = Volume(np.full((2, 2, 2), large, dtype), Grid((2, 2, 2), np.eye(4)), Modality.MR)
    with pytest.raises(OutputError, match="float32 holds, found"):
        write_itk(volume, tmp_path / "x.mha", "metaimage")


def test_four_dimensions_and_complex_numbers_are_refused(tmp_path: Path) -> None:
    four = sitk.JoinSeries([sitk.Image(2, 3, 4, sitk.sitkInt16)] * 2)
    sitk.WriteImage(four, str(tmp_path / "four.mha"))
    with pytest.raises(UnsupportedImage, match="three dimensions, found 2 × 3 × 4 × 2"):
        read(tmp_path / "four.mha")
    sitk.WriteImage(sitk.Image((2, 3, 4), sitk.sitkVectorFloat32, 3), str(tmp_path / "vector.mha"))
    with pytest.raises(UnsupportedImage, match="real numbers or 8-bit RGB, found 3 samples"):
        read(tmp_path / "vector.mha")


def test_nan_is_refused_or_filled(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.array([[[1, np.nan]], [[3, 4]]], np.float32))
    sitk.WriteImage(image, str(tmp_path / "x.nrrd"))
    with pytest.raises(UnsupportedImage, match="found 1 of 4 voxels"):
        read(tmp_path / "x.nrrd")
    assert read(tmp_path / "x.nrrd", fill_nan=9).array.ravel().tolist() == [1, 9, 3, 4]


@pytest.mark.parametrize("keep", [4, 30])
def test_files_cut_short_are_unreadable(tmp_path: Path, keep: int) -> None:
    for path in (nrrd(tmp_path / "x.nrrd", data=DATA.tobytes()[:keep]), mha(tmp_path / "x.mha", data=b"\0" * keep)):
        with pytest.raises(UnreadableFile, match="cut short or damaged"):
            read(path)


def test_itk_that_cannot_write_is_an_output_error(oblique_volume: Volume, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"could not write x\.mha"):
        write_itk(oblique_volume, tmp_path / "absent" / "x.mha", "metaimage")
