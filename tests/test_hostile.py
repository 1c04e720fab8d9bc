"""Whatever a file holds: an error that says so, or the right volume. Never a traceback, a hang or all memory."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from agreement import assert_grid_is_of_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media import write_medium
from pydicom import Dataset

from medfuse.errors import InputError, MedfuseError, UnreadableFile
from medfuse.io import limits
from medfuse.io.files import inspect, read
from medfuse.io.itk_files import write_itk
from medfuse.io.nifti import write_nifti
from medfuse.volume import Volume

#: Hypothesis gives the seed; what is done with it is written out here, so that whole files need not be drawn.
SEEDS = st.integers(0, 2**32 - 1)
fuzz = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
hostile = pytest.mark.filterwarnings("ignore::medfuse.errors.MedfuseWarning")


def outcomes(paths: Sequence[Path], *arguments: str) -> list[dict]:
    """What `hostile.py` says of files that it reads in a process of its own."""
    ran = subprocess.run(
        [sys.executable, Path(__file__).with_name("hostile.py"), *arguments],
        input="".join(f"{path}\n" for path in paths),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        cwd=Path(__file__).parents[1],
        timeout=120,
        check=False,
    )
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(found) == len(paths), f"ended by {paths[len(found)].name}: {ran.stderr[-500:]}"
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
@pytest.mark.parametrize("arguments", [(), ("placed",)], ids=["as they are", "placed"])
def test_a_published_corpus_of_malformed_files(shared: Path, arguments: tuple[str, ...]) -> None:
    paths = sorted(path for path in (shared / "fuzz").rglob("*") if path.is_file())
    assert len(paths) == 345
    found = outcomes(paths, *arguments)
    assert [one for one in found if one["outcome"].startswith("unforeseen")] == []
    assert max(one["seconds"] for one in found) < 10
    assert max(one["bytes"] for one in found) < 2**30
    volumes = sum(one["outcome"] == "volume" for one in found)
    assert volumes > 150 if arguments else volumes == 0  # most files of the corpus are wrong in what is not read


# DICOM series


@pytest.fixture
def ct_bytes(ct_series: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(ct_series.iterdir())]


def change_header(change: Callable[[Dataset], None], raw: bytes) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(raw))
    change(dataset)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def flipped(raw: bytes, pick: random.Random, start: int = 0, end: int | None = None) -> bytes:
    """With one to four bytes changed between two places."""
    changed = bytearray(raw)
    for _ in range(pick.randint(1, 4)):
        changed[pick.randrange(start, end or len(raw))] = pick.choice((0, 1, 0x7F, 0x80, 0xFF, pick.randrange(256)))
    return bytes(changed)


def write_all(folder: Path, files: Sequence[bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for n, raw in enumerate(files):
        (folder / f"{n}.dcm").write_bytes(raw)
    return folder


def read_or_refuse(path: Path, **options: object) -> Volume | None:
    """The volume, whose form is checked, or None where it is refused; inspecting must agree to say something."""
    inspect(path)
    try:
        volume = read(path, **options)
    except MedfuseError as refusal:
        said = str(refusal)
    else:
        said = ""
    if said:
        assert "\n" not in said
        assert str(path.parent) not in said
        return None
    assert volume.array.shape[:3] == volume.grid.shape
    assert volume.array.dtype in (np.float32, np.uint8)
    return volume


def assert_same(volume: Volume | None, expected: Volume) -> None:
    """If there is a volume, it is the one that was there before the damage."""
    if volume is not None:
        assert volume.grid.matches(expected.grid, 1e-3)
        np.testing.assert_array_equal(volume.array, expected.array)


@hostile
@fuzz
@given(seed=SEEDS)
def test_a_series_without_an_attribute_is_the_same_or_refused(
    ct_bytes: list[bytes], oblique_volume: Volume, tmp_path: Path, seed: int
) -> None:
    pick = random.Random(seed)
    tags = list(pydicom.dcmread(io.BytesIO(ct_bytes[0])).keys())
    dropped = pick.sample(tags, pick.randint(1, 2))
    spoiled = range(5) if pick.random() < 0.5 else [pick.randrange(5)]

    def drop(dataset: Dataset) -> None:
        for tag in dropped:
            del dataset[tag]

    files = [change_header(drop, raw) if n in spoiled else raw for n, raw in enumerate(ct_bytes)]
    assert_same(read_or_refuse(write_all(tmp_path / "x", files), modality="ct"), oblique_volume)


@hostile
@fuzz
@given(seed=SEEDS)
def test_a_series_with_odd_values_is_read_or_refused(ct_bytes: list[bytes], tmp_path: Path, seed: int) -> None:
    """Values that a header may hold, of the right kind or not, in one file or in all."""
    pick = random.Random(seed)
    tags = [tag for tag in pydicom.dcmread(io.BytesIO(ct_bytes[0]))._dict if tag.group > 2]
    tag = pick.choice(tags)
    odd = {
        "US": [0, 1, 7, 65535, [1, 2]],
        "DS": ["0", "-1", "1e38", "1E-300", "", "0.0001", ["1", "2"], ["0"] * 6, ["1"] * 7],
        "IS": ["0", "-1", "2147483647", "", ["1", "2"]],
        "CS": ["", "X", "RGB", "MONOCHROME1", "PALETTE COLOR", "LOCALIZER", ["A", "B"]],
        "UI": ["", "1.2", "1.2.840.10008.5.1.4.1.1.128", "1.2.840.10008.5.1.4.1.1.2.1"],
    }
    value = pick.choice(odd.get(pydicom.dcmread(io.BytesIO(ct_bytes[0]))[tag].VR, ["", b"", "é" * 70]))

    def alter(dataset: Dataset) -> None:
        dataset[tag]._value = value

    spoiled = range(5) if pick.random() < 0.5 else [pick.randrange(5)]
    try:
        files = [change_header(alter, raw) if n in spoiled else raw for n, raw in enumerate(ct_bytes)]
    except Exception:
        return  # pydicom cannot write such a file
    read_or_refuse(write_all(tmp_path / "x", files))


@hostile
@fuzz
@given(seed=SEEDS)
def test_a_series_with_bytes_changed_lost_or_twice_is_read_or_refused(
    ct_bytes: list[bytes], oblique_volume: Volume, tmp_path: Path, seed: int
) -> None:
    pick, files, same = random.Random(seed), list(ct_bytes), False
    n = pick.randrange(5)
    match pick.randrange(4):
        case 0:
            files[n] = flipped(files[n], pick)
        case 1:
            files[n] = files[n][: pick.randrange(len(files[n]))]
            same = True
        case 2:
            at = pick.randrange(132, len(files[n]))
            files[n] = files[n][:at] + files[n][at : at + pick.randrange(1, 200)] + files[n][at:]
        case 3:
            files.append(files[n])
            same = True
    volume = read_or_refuse(write_all(tmp_path / "x", files))
    if same:
        assert_same(volume, oblique_volume)


@hostile
def test_a_slice_cut_short_anywhere_is_never_left_out_without_a_word(ct_bytes: list[bytes], tmp_path: Path) -> None:
    """At an end of the stack no gap would tell."""
    for cut in range(0, len(ct_bytes[0]), 7):
        folder = write_all(tmp_path / "x", [ct_bytes[0][:cut], *ct_bytes[1:]])
        with pytest.raises(InputError, match=r"expected .*, found "):
            read(folder)


@hostile
@pytest.mark.parametrize("depth", [50, 20_000])
def test_sequences_in_sequences_without_end(ct_bytes: list[bytes], tmp_path: Path, depth: int) -> None:
    """Sequences of undefined length (PS3.5 section 7.5), which have to be read to be passed over."""
    opened = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    at = ct_bytes[0].index(b"\x10\x00\x10\x00PN")
    deep = ct_bytes[0][:at] + opened * depth + closed * depth + ct_bytes[0][at:]
    volume = read_or_refuse(write_all(tmp_path / "x", [deep, *ct_bytes[1:]]))
    assert (volume is None) == (depth > 1000)


def test_a_deflated_bomb_is_refused_before_it_is_unpacked(
    ct_series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = pydicom.dcmread(next(ct_series.iterdir()))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "x.dcm")
    assert read(tmp_path / "x.dcm", allow_2d=True).grid.shape == (1, 7, 9)
    monkeypatch.setattr(limits, "MAX_INFLATED_BYTES", 300)
    with pytest.raises(UnreadableFile, match="expected whole DICOM files, found 1 damaged"):
        read(tmp_path / "x.dcm", allow_2d=True)


@pytest.mark.parametrize("attribute", ["Rows", "Columns", "NumberOfFrames"])
def test_absurd_sizes_are_refused_before_anything_is_allocated(
    ct_series: Path, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_VOXELS", 2**20)
    for path in ct_series.iterdir():
        dataset = pydicom.dcmread(path)
        setattr(dataset, attribute, 60_000 if attribute != "NumberOfFrames" else 2**31 - 1)
        dataset.save_as(path)
    with pytest.raises(MedfuseError, match=r"expected 1 to 1048576 voxels, found .*limits\.MAX_VOXELS"):
        read(ct_series)


# Files of one volume


@contextmanager
def quiet() -> Iterator[None]:
    """ITK keeps its warnings to itself."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    yield
    sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@hostile
@settings(fuzz, max_examples=250)
@given(seed=SEEDS)
def test_a_nifti_with_its_header_changed_is_what_nibabel_reads_or_refused(
    oblique_volume: Volume, tmp_path: Path, seed: int
) -> None:
    pick, path = random.Random(seed), tmp_path / "x.nii"
    if not path.exists():
        write_nifti(oblique_volume, path)
        (tmp_path / "whole").write_bytes(path.read_bytes())
    path.write_bytes(flipped((tmp_path / "whole").read_bytes(), pick, 0, 352))
    volume = read_or_refuse(path)
    if volume is None:
        return
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    if not volume.is_color:
        np.testing.assert_allclose(volume.array, data.reshape(image.shape[:3], order="A").T, rtol=1e-6)
    mm = {1: 1e3, 3: 1e-3}.get(int(image.header["xyzt_units"]) % 8, 1.0)
    last = np.array(image.shape[:3]) - 1
    theirs = nib.affines.apply_affine(image.affine, last) * (-mm, -mm, mm)
    np.testing.assert_allclose(volume.grid.points_mm([last[::-1]])[0], theirs, rtol=1e-5, atol=1e-4)


@hostile
@settings(fuzz, max_examples=80)
@given(seed=SEEDS)
def test_a_gzipped_nifti_with_any_byte_changed_is_the_same_or_refused(
    oblique_volume: Volume, tmp_path: Path, seed: int
) -> None:
    """Its checksum sees every change of what is packed."""
    path = tmp_path / "x.nii.gz"
    if not path.exists():
        write_nifti(oblique_volume, path)
        (tmp_path / "whole").write_bytes(path.read_bytes())
    path.write_bytes(flipped((tmp_path / "whole").read_bytes(), random.Random(seed)))
    assert_same(read_or_refuse(path), oblique_volume)


@hostile
@settings(fuzz, max_examples=150)
@given(seed=SEEDS, suffix=st.sampled_from([".mha", ".nrrd"]))
def test_a_text_header_changed_is_what_itk_reads_or_refused(
    oblique_volume: Volume, tmp_path: Path, seed: int, suffix: str
) -> None:
    pick, path = random.Random(seed), tmp_path / f"x{suffix}"
    if not path.exists():
        write_itk(oblique_volume, path, {".mha": "metaimage", ".nrrd": "nrrd"}[suffix])
        (tmp_path / f"whole{suffix}").write_bytes(path.read_bytes())
    raw = (tmp_path / f"whole{suffix}").read_bytes()
    end = raw.index(b"LOCAL\n") + 6 if suffix == ".mha" else raw.index(b"\n\n") + 2
    path.write_bytes(flipped(raw, pick, 0, end))
    with quiet():
        volume = read_or_refuse(path)
        if volume is not None:
            image = sitk.ReadImage(str(path), imageIO={".mha": "MetaImageIO", ".nrrd": "NrrdImageIO"}[suffix])
            assert_grid_is_of_image(volume, image, 1e-3 + 1e-6 * float(np.abs(volume.grid.corners_mm).max()))
            np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(image), rtol=1e-6)


# Archives and lists of files


@hostile
@settings(fuzz, max_examples=100)
@given(seed=SEEDS)
def test_an_archive_with_any_byte_changed_is_the_same_or_refused(
    ct_bytes: list[bytes], oblique_volume: Volume, tmp_path: Path, seed: int
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for n, raw in enumerate(ct_bytes):
            archive.writestr(f"IM{n}", raw)
    (tmp_path / "x.zip").write_bytes(flipped(packed.getvalue(), random.Random(seed)))
    try:
        volume = read(tmp_path / "x.zip")
    except MedfuseError:
        return
    assert_same(volume, oblique_volume)


@hostile
@settings(fuzz, max_examples=40)
@given(seed=SEEDS)
def test_a_dicomdir_with_any_byte_changed_leads_to_the_series_or_is_refused(
    ct_series: Path, oblique_volume: Volume, tmp_path: Path, seed: int
) -> None:
    medium = tmp_path / "medium"
    if not medium.exists():
        write_medium(ct_series, medium)
        (tmp_path / "whole").write_bytes((medium / "DICOMDIR").read_bytes())
    raw = (tmp_path / "whole").read_bytes()
    (medium / "DICOMDIR").write_bytes(flipped(raw, random.Random(seed)))
    try:
        volume = read(medium / "DICOMDIR")
    except MedfuseError:
        return
    assert_same(volume, oblique_volume)
