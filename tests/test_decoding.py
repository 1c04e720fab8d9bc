"""Decoding of stored pixels: every encoding against the uncompressed image, and decoders that crash, hang or grow."""

from __future__ import annotations

import base64
import io
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    MPEG2MPML,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from medfuse.errors import MedfuseError, UnreadableFile, UnsupportedImage
from medfuse.io import decoding
from medfuse.io.decoding import NATIVE, PLUGINS, Decoder, Request, is_decodable
from medfuse.io.dicom_header import leniently, read_dataset
from medfuse.io.files import inspect, read

#: A picture of 12 bits, 12 × 9, compressed without loss by another program: OpenJPH's ojph_compress.
HIGH_THROUGHPUT = base64.b64decode(
    "/0//UQApQAAAAAAJAAAADAAAAAAAAAAAAAAACQAAAAwAAAAAAAAAAAABCwEB/1AACAACAAAAB/9SAAwAAgABAAIEBEAB/1wACiBw"
    "eHh4cHB4/2QAFgABT3BlbkpQSCBWZXIgMC45LjAu/5AACgAAAAAAcQAB/5PAAWqA/1/upz/hp+/wtYt4ixhLzIQA+bgAwACogAFT"
    "AAJQ/weHAEzzVQCc5LzAMQH+tgAx/rKzAMABaMABWwACQP97fd/Hx8fHQKBjkgMfp1kASAgNQf70CEYggZy4AOg6lAD/2Q=="
)


def picture() -> np.ndarray:
    """What `HIGH_THROUGHPUT` holds."""
    j, i = np.indices((12, 9))
    return ((j * 37 + i * 11 + j * i * i) % 4096).astype(np.uint16)


def request_of(path: Path, frames: tuple[int, ...] = (0,)) -> Request:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    count = int(dataset.get("NumberOfFrames", 1))
    return Request(path, frames, dataset.file_meta.TransferSyntaxUID, (dataset.Rows, dataset.Columns), count)


@leniently()
def decode(*requests: Request) -> list[list[np.ndarray]]:
    with Decoder(requests) as decoder:
        return [list(decoder.frames(request, read_dataset(request.path))) for request in requests]


def image(pixels: np.ndarray, syntax: UID, bits: int | None = None, **changes: object) -> Dataset:
    """A DICOM image of (J, I) or (J, I, 3) values, native in `syntax`."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = pixels.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    content = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    if pixels.dtype.kind == "f":
        del dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
        setattr(dataset, "FloatPixelData" if pixels.itemsize == 4 else "DoubleFloatPixelData", content)
    else:
        dataset.PixelData = content + b"\0" * (len(content) % 2)
        dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def compress(dataset: Dataset, syntax: UID = RLELossless) -> None:
    """Compress native pixels with another library than the one that is to decode them, where there is one."""
    encoders = {RLELossless: "pydicom", JPEG2000Lossless: "pylibjpeg", JPEGLSLossless: "pyjpegls"}
    dataset.compress(syntax, encoding_plugin=encoders[syntax], generate_instance_uid=False)


def encapsulated(dataset: Dataset, stream: bytes, syntax: UID) -> Dataset:
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def save(dataset: Dataset, path: Path) -> Request:
    syntax = dataset.file_meta.TransferSyntaxUID
    dataset.save_as(
        path,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return request_of(path)


@pytest.mark.parametrize("name", ["CT1", "CT2", "MR1", "MR3", "MR4", "NM1"])
def test_nema_samples_equal_the_uncompressed_ones(shared: Path, name: str) -> None:
    encodings = {"JPLL": 0, "JLSL": 0, "J2KR": 0, "RLE": 0, "JLSN": 4}
    folder = shared / "wg04"
    [[expected]] = decode(request_of(folder / f"{name}_UNC.dcm"))
    found = decode(*(request_of(folder / f"{name}_{encoding}.dcm") for encoding in encodings))
    errors = [int(np.abs(frame.astype(int) - expected).max()) for [frame] in found]
    assert errors == list(encodings.values())


@pytest.mark.parametrize("name", ["CT1", "CT2", "MR1", "MR3", "MR4", "NM1"])
def test_nema_samples_with_loss_equal_another_decoder_s(shared: Path, name: str) -> None:
    import SimpleITK as sitk

    path = shared / "wg04" / f"{name}_J2KI.dcm"
    [[found]] = decode(request_of(path))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    np.testing.assert_allclose(found * slope + intercept, theirs, atol=1e-6)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
def test_native_values(tmp_path: Path, syntax: UID, dtype: str) -> None:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        pixels = np.linspace(-3e5, 7e9, 35, dtype=kind).reshape(5, 7)
    else:
        pixels = np.linspace(np.iinfo(kind).min, np.iinfo(kind).max, 35).astype(kind).reshape(5, 7)
    [[found]] = decode(save(image(pixels, syntax), tmp_path / "x.dcm"))
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 12), ("u2", 16), ("i2", 16), ("u1", 3)])
def test_compressed_values(tmp_path: Path, syntax: UID, dtype: str, bits: int) -> None:
    low = -(2 ** (bits - 1)) if dtype == "i2" else 0
    pixels = np.linspace(low, low + 2**bits - 1, 37 * 41).astype(dtype).reshape(37, 41)
    dataset = image(pixels, ExplicitVRLittleEndian, bits if bits > 3 else None)
    compress(dataset, syntax)
    [[found]] = decode(save(dataset, tmp_path / "x.dcm"))
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K])
def test_high_throughput_jpeg_2000(tmp_path: Path, syntax: UID) -> None:
    dataset = encapsulated(image(picture(), ExplicitVRLittleEndian, 12), HIGH_THROUGHPUT, syntax)
    [[found]] = decode(save(dataset, tmp_path / "x.dcm"))
    np.testing.assert_array_equal(found, picture())


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_what_lies_above_the_bits_stored_is_no_value(tmp_path: Path, syntax: UID, dtype: type) -> None:
    """An overlay may, or rubbish."""
    values = (np.arange(64 * 48).reshape(64, 48) * 10 % 4096 - (2048 if dtype is np.int16 else 0)).astype(dtype)
    with_overlay = (values.view(np.uint16) & 0xFFF) | (np.arange(48, dtype=np.uint16) % 16 << 12)
    dataset = image(with_overlay.view(dtype), ExplicitVRLittleEndian)
    compress(dataset, syntax)
    dataset.BitsStored, dataset.HighBit = 12, 11
    [[found]] = decode(save(dataset, tmp_path / "x.dcm"))
    np.testing.assert_array_equal(found, values)


def test_a_worker_may_wait_for_who_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does while a long file is before its own, or while all is stopped."""
    monkeypatch.setattr(decoding, "SECONDS", 0.2)
    monkeypatch.setattr(decoding, "SECONDS_A_MILLION", 0.0)
    frames = np.random.default_rng(1).integers(0, 4096, (4, 256, 256)).astype(np.uint16)  # each more than a pipe holds
    dataset = image(frames[0], ExplicitVRLittleEndian, NumberOfFrames=4)
    dataset.PixelData = frames.tobytes()
    compress(dataset)
    request = save(dataset, tmp_path / "x.dcm")
    with Decoder([replace(request, frames=(0, 1, 2, 3))] * 2) as decoder:
        for frame in decoder.frames(replace(request, frames=(0, 1, 2, 3)), Dataset()):
            time.sleep(0.5)
            assert frame.shape == (256, 256)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
@pytest.mark.parametrize(
    ("photometric", "subsampling"),
    [("MONOCHROME2", 0), ("YBR_FULL", 0), ("YBR_FULL_422", 1), ("RGB", 0)],  # RGB is what careless writers say of YBR
)
def test_baseline_jpeg_equals_pillow_s(tmp_path: Path, syntax: UID, photometric: str, subsampling: int) -> None:
    j, i = np.indices((16, 24))
    is_color = photometric != "MONOCHROME2"
    pixels = (np.stack([j * 15, i * 10, 255 - j * 8], -1) if is_color else j * 9 + i * 4).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, **({"subsampling": subsampling} if is_color else {}))
    dataset = image(pixels, ExplicitVRLittleEndian, PhotometricInterpretation=photometric)
    [[found]] = decode(save(encapsulated(dataset, stream.getvalue(), syntax), tmp_path / "x.dcm"))
    assert np.abs(found.astype(int) - np.asarray(Image.open(stream)).astype(int)).max() <= 1


def test_jpeg_of_more_than_eight_bits_with_loss_is_refused_beforehand(tmp_path: Path) -> None:
    uids = {"SeriesInstanceUID": "1.2", "StudyInstanceUID": "1.3"}
    dataset = image(picture(), ExplicitVRLittleEndian, 12, Modality="CT", **uids)
    dataset = encapsulated(dataset, b"whatever", JPEGExtended12Bit)
    save(dataset, tmp_path / "x.dcm")
    with pytest.raises(UnsupportedImage, match="expected JPEG of 8 bits, or without loss, found 12 bits with loss"):
        read(tmp_path / "x.dcm")
    assert not inspect(tmp_path / "x.dcm").series[0].usable


def test_frames_in_the_order_asked_for(tmp_path: Path) -> None:
    frames = np.arange(6 * 4 * 5, dtype=np.uint16).reshape(6, 4, 5)
    dataset = image(frames[0], ExplicitVRLittleEndian, NumberOfFrames=6)
    dataset.PixelData = frames.tobytes()
    native = save(dataset, tmp_path / "native.dcm")
    compress(dataset)
    compressed = save(dataset, tmp_path / "rle.dcm")
    order = (4, 0, 5)
    for request in (native, compressed):
        [found] = decode(Request(request.path, order, request.syntax, request.shape, 6))
        np.testing.assert_array_equal(found, frames[list(order)])


@pytest.fixture
def rle(tmp_path: Path) -> list[Request]:
    """Seven compressed files, no two alike."""
    requests = []
    for n in range(7):
        dataset = image(np.full((3, 4), n, np.uint16), ExplicitVRLittleEndian)
        compress(dataset)
        requests.append(save(dataset, tmp_path / f"{n}.dcm"))
    return requests


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_several_workers_keep_the_order(
    rle: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    native = save(image(np.full((3, 4), 99, np.uint16), ExplicitVRLittleEndian), tmp_path / "native.dcm")
    monkeypatch.setattr(decoding, "FILES_A_WORKER", 1)
    monkeypatch.setattr(decoding, "WORKERS", workers)
    monkeypatch.setattr(decoding.os, "cpu_count", lambda: workers)
    found = decode(*rle[:3], native, *rle[3:])
    assert [int(frame.max()) for [frame] in found] == [0, 1, 2, 99, 3, 4, 5, 6]


def test_no_worker_outlives_the_reading_or_serves_native_files(rle: list[Request], tmp_path: Path) -> None:
    with Decoder(rle) as decoder:
        assert next(decoder.frames(rle[0], Dataset())).max() == 0
        [worker] = decoder._workers
        assert worker._process.poll() is None
    assert worker._process.poll() is not None
    native = save(image(picture(), ExplicitVRLittleEndian), tmp_path / "native.dcm")
    with Decoder([native]) as decoder:
        assert decoder._workers == []


def sabotaged(act: str) -> str:
    """A worker's program, in which a decoder does something else than decode."""
    return f"""
import json, sys; sys.path[:] = json.loads(sys.argv[1])
import ctypes, os, time
import medfuse.io.decoding as decoding
def act(question):
    if "3.dcm" in question["path"]:
        {act}
    yield from honest(question)
honest, decoding._decode = decoding._decode, act
decoding.work()
"""


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("ctypes.string_at(0)", "the decoder crashed on 3.dcm"),
        ("os._exit(0)", "the decoder crashed on 3.dcm"),
        ("time.sleep(60)", "the decoder took more than 1 s on 3.dcm"),
        ("exec('while True: pass')", "the decoder took more than 1 s on 3.dcm"),
        ("ctypes.PyDLL(None).sleep(60)", "the decoder took more than 1 s on 3.dcm"),  # holding Python's lock
        ("raise RuntimeError('SECRET')", r"3.dcm truncated or damaged \(RuntimeError\)"),
        ("return", None),
        (
            "question['path'] = question['path'].replace('3.dcm', 'other.dcm')",
            r"shape \(3, 4\) in 3.dcm, found \(5, 4\)",
        ),
        ("bytearray(2**30)", r"3.dcm truncated or damaged \(MemoryError\)"),
    ],
)
def test_a_decoder_that_fails_is_an_error_in_one_file(
    rle: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, reason: str | None
) -> None:
    if sys.platform != "linux" and act.startswith(("bytearray", "ctypes.PyDLL")):
        pytest.skip("memory limits and this library are Linux's")
    dataset = image(np.zeros((5, 4), np.uint16), ExplicitVRLittleEndian)
    compress(dataset)
    save(dataset, tmp_path / "other.dcm")  # of another size than 3.dcm says
    monkeypatch.setattr(decoding, "PROGRAM", sabotaged(act))
    monkeypatch.setattr(decoding, "SECONDS", 1.0)
    started, done = time.monotonic(), []
    with Decoder(rle) as decoder:
        for request in rle[:3]:
            done += decoder.frames(request, Dataset())
        if reason is None:
            assert list(decoder.frames(rle[3], Dataset())) == []
        else:
            with pytest.raises(UnreadableFile, match=reason):
                list(decoder.frames(rle[3], Dataset()))
    assert [int(frame.max()) for frame in done] == [0, 1, 2]
    assert time.monotonic() - started < 10


def test_a_worker_that_cannot_start(rle: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PROGRAM", "raise SystemExit(1)")
    with pytest.raises(UnreadableFile, match=r"the decoder crashed on 0\.dcm"):
        decode(rle[0])


def test_a_crash_is_an_error_of_the_whole_reading(ct_series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ct_series.iterdir():
        dataset = pydicom.dcmread(path)
        compress(dataset)
        dataset.save_as(path)
    assert read(ct_series).array.shape == (5, 7, 9)
    monkeypatch.setattr(decoding, "PROGRAM", sabotaged("ctypes.string_at(0)").replace("3.dcm", ".dcm"))
    with pytest.raises(MedfuseError, match=r"the decoder crashed on .*\.dcm"):
        read(ct_series)


def cut(stream: bytes) -> bytes:
    return stream[: len(stream) // 2]


def flipped(stream: bytes) -> bytes:
    return stream[:60] + bytes(255 - byte for byte in stream[60:120]) + stream[120:]


@pytest.mark.parametrize("damage", [cut, flipped, lambda _: b"\0\0", lambda _: b"\xff\x4f" * 50])
def test_damaged_streams_end_in_an_error_or_an_image(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    dataset = encapsulated(image(picture(), ExplicitVRLittleEndian, 12), damage(HIGH_THROUGHPUT), HTJ2KLossless)
    request = save(dataset, tmp_path / "x.dcm")
    try:
        [[found]] = decode(request)
    except MedfuseError as error:
        assert "x.dcm" in str(error)  # noqa: PT017
    else:
        assert found.shape == (12, 9)


def test_what_can_be_decoded() -> None:
    assert all(map(is_decodable, (*NATIVE, *PLUGINS)))
    assert not any(map(is_decodable, (MPEG2MPML, "1.2.840.10008.1.2.4.65", "1.2.3", "")))
    assert JPEGLossless in PLUGINS
