"""How much a file may ask for before anything is allocated or unpacked; a caller may set other numbers.

>>> from medfuse.io import limits
>>> limits.MAX_VOXELS = 2**31
>>> limits.MAX_VOXELS = 2**30
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from medfuse.errors import UnreadableFile, UnsupportedImage

#: Most voxels of one volume: 4 GiB as float32, four times a 512 × 512 × 1000 CT.
MAX_VOXELS = 2**30
#: Most volumes of one 4-D file.
MAX_FRAMES = 100_000
#: Most bytes that an archive, or a compressed file, may unpack to.
MAX_UNPACKED_BYTES = 16 * 2**30
#: Most bytes that a deflated DICOM file, which is unpacked in memory, may unpack to.
MAX_INFLATED_BYTES = 2**28
#: Most files that an archive may hold.
MAX_UNPACKED_FILES = 200_000
#: Most times its own size that an archive may unpack to, where that is more than `RATIO_FROM_BYTES`. Scans shrink to a
#: half or a tenth, empty images to a hundredth.
MAX_UNPACKED_RATIO = 200
RATIO_FROM_BYTES = 2**28


def check_voxels(shape: Iterable[int], name: str) -> None:
    """Refuse a volume that is empty or absurdly large, before its voxels are read.

    Args:
        shape: Sizes along all axes, colour apart, as the header gives them.
        name: Name of the file.

    Raises:
        UnsupportedImage: A size is below 1, or there are more than `MAX_VOXELS` voxels.
    """
    shape = tuple(shape)
    if min(shape) < 1 or math.prod(map(int, shape)) > MAX_VOXELS:
        raise UnsupportedImage(
            f"expected 1 to {MAX_VOXELS} voxels, found {' × '.join(map(str, shape))} in the header of {name}",
            "Check the file; a larger volume can be let in by setting medfuse.io.limits.MAX_VOXELS",
        )


def check_unpacked(size: int, name: str) -> None:
    """Refuse what unpacks to absurdly much, before it is unpacked.

    Args:
        size: Bytes once unpacked, as the file's own header states them.
        name: Name of the file.

    Raises:
        UnreadableFile: It is more than `MAX_UNPACKED_BYTES`.
    """
    if size > MAX_UNPACKED_BYTES:
        raise UnreadableFile(
            f"expected at most {MAX_UNPACKED_BYTES} bytes once unpacked, found {size} in {name}",
            "Check the file; more can be let in by setting medfuse.io.limits.MAX_UNPACKED_BYTES",
        )
