"""Compressed data, unpacked piece by piece and thrown away: whether it is whole, and how much it unpacks to."""

from __future__ import annotations

import zlib
from typing import BinaryIO

#: What zlib calls a bare deflate stream (RFC 1951), and one with the header and checksum of zlib or gzip.
BARE, WRAPPED = -zlib.MAX_WBITS, zlib.MAX_WBITS | 32
#: Deflate cannot pack tighter than this.
MAX_RATIO = 1032
_PIECE = 2**20


def inflated(file: BinaryIO, most: int, form: int = WRAPPED) -> tuple[int, int]:
    """How many bytes a stream unpacks to, counted no further than just beyond `most`, and their CRC-32.

    Args:
        file: A file that stands where the stream begins.
        most: Where to stop counting.
        form: `BARE` or `WRAPPED`.

    Raises:
        zlib.error: The stream is damaged, which its checksum tells if it has one, or ends too early.
    """
    inflater = zlib.decompressobj(form)
    size = checksum = 0
    while not inflater.eof and size <= most:
        packed = inflater.unconsumed_tail or file.read(_PIECE)
        if not packed:
            raise zlib.error("the stream ends too early")
        piece = inflater.decompress(packed, _PIECE)
        size += len(piece)
        checksum = zlib.crc32(piece, checksum)
    return size, checksum
