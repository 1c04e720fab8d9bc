"""What a header says of its stored pixels: which bits count, and how long Pixel Data has to be."""

from __future__ import annotations

from pydicom import Dataset
from pydicom.pixels.utils import get_expected_length

from medfuse.errors import MissingAttribute, UnreadableFile
from medfuse.io.dicom_header import count, frames_in, word

#: Bits that a stored value may take; a bit alone is no scan, and of others no reader knows the layout.
ALLOCATED = (8, 16, 32, 64)
#: Floats have so many bits, and no others are stored (PS3.3 section C.7.6.24, C.7.6.25).
FLOATS = (32, 64)


def check_bits(header: Dataset, name: str) -> None:
    """Refuse an image whose header contradicts itself, or says too little, of the bits of its stored values.

    Bits Stored is 1 to Bits Allocated, and High Bit one less than Bits Stored (PS3.5 section 8.1.1): other places of
    the bits were retired with ACR-NEMA, and nobody decodes them any more.

    Raises:
        MissingAttribute: An attribute is absent.
        UnreadableFile: One has a value that cannot be.
    """
    allocated = _required(header, "BitsAllocated", name)
    _check(allocated in ALLOCATED, "BitsAllocated of 8, 16, 32 or 64", allocated, name)
    samples = _required(header, "SamplesPerPixel", name)
    _check(samples in (1, 3), "SamplesPerPixel of 1 or 3", samples, name)
    if allocated in FLOATS and not word(header, "BitsStored"):
        return
    stored = _required(header, "BitsStored", name)
    _check(1 <= stored <= allocated, f"BitsStored of 1 to {allocated}, the BitsAllocated,", stored, name)
    signed = _required(header, "PixelRepresentation", name)
    _check(signed in (0, 1), "PixelRepresentation of 0 or 1", signed, name)
    if word(header, "HighBit"):
        high = count(header, "HighBit", -1)
        _check(high == stored - 1, f"HighBit of {stored - 1}, one less than BitsStored,", high, name)


def check_length(dataset: Dataset, name: str) -> None:
    """Refuse uncompressed pixels that are longer than the header says by a row or more.

    Then Rows, Columns, frames or bits are not what they were when the pixels were written. Less than a row is padding,
    which some makers add to more than the even length that PS3.5 section 7.1 asks for. Pixels that are too short are
    found on decoding.

    Raises:
        UnreadableFile: There is too much.
    """
    found = next(
        (
            dataset[keyword].value
            for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
            if keyword in dataset
        ),
        None,
    )
    if found is None or dataset.file_meta.TransferSyntaxUID.is_compressed:
        return
    expected = get_expected_length(dataset, "bytes")
    a_row = expected // max(1, count(dataset, "Rows") * frames_in(dataset))
    if len(found) >= expected + max(2, a_row):
        raise UnreadableFile(
            f"expected {expected} bytes of pixels in {name}, as its Rows, Columns, frames and bits say, found "
            f"{len(found)}",
            "Export the series again; the header is damaged",
        )


def _required(header: Dataset, keyword: str, name: str) -> int:
    """A whole number that must be there; -1 where something else is."""
    if not word(header, keyword):
        raise MissingAttribute(f"expected {keyword} in {name}, found none", "Export the series again with full headers")
    return count(header, keyword, -1)


def _check(fits: bool, expected: str, found: int, name: str) -> None:
    if not fits:
        raise UnreadableFile(
            f"expected {expected} in {name}, found {found if found >= 0 else 'something else'}",
            "Export the series again; the header is damaged",
        )
