"""Compressed data that is unpacked and thrown away, against zlib and gzip themselves."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zlib

import numpy as np
import pytest

from medfuse.io.deflate import BARE, WRAPPED, inflated

DATA = np.random.default_rng(1).integers(0, 20, 3_000_000, np.uint8).tobytes()


@pytest.mark.parametrize(
    ("packed", "form"),
    [
        (zlib.compress(DATA), WRAPPED),
        (gzip.compress(DATA), WRAPPED),
        (zlib.compress(DATA, wbits=-15), BARE),
    ],
    ids=["zlib", "gzip", "bare"],
)
def test_size_and_checksum(packed: bytes, form: int) -> None:
    assert inflated(io.BytesIO(packed), len(DATA), form) == (len(DATA), zlib.crc32(DATA))
    file = io.BytesIO(b"before" + packed + b"after")
    file.seek(6)
    assert inflated(file, len(DATA), form)[0] == len(DATA)
    with pytest.raises(zlib.error, match="ends too early"):
        inflated(io.BytesIO(packed[:-2]), len(DATA), form)


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_a_wrong_checksum_is_damage(pack) -> None:
    packed = bytearray(pack(DATA))
    packed[-2] ^= 1
    with pytest.raises(zlib.error, match="incorrect"):
        inflated(io.BytesIO(packed), len(DATA))


def test_a_bomb_is_counted_only_so_far_and_never_held() -> None:
    bomb = io.BytesIO(zlib.compress(bytes(2**27)))
    tracemalloc.start()
    size, _ = inflated(bomb, 2**22)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2**22 < size <= 2**22 + 2**20
    assert peak < 2**23
