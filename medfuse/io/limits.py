"""How much a file may ask for before anything is allocated or unpacked; a caller may set other numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from medfuse.errors import UnsupportedImage

#: Most voxels of one volume: 4 GiB as float32, four times a 512 × 512 × 1000 CT.
MAX_VOXELS = 2**30
#: Most bytes that an archive may unpack to.
MAX_UNPACKED_BYTES = 16 * 2**30
#: Most files that an archive may hold.
MAX_UNPACKED_FILES = 200_000


def check_voxels(shape: Iterable[int], name: str) -> None:
    """Refuse a volume that is empty or absurdly large, before its voxels are read.

    Args:
        shape: Sizes along all axes, colour apart, as the header gives them.
        name: Name of the file.

    Raises:
        UnsupportedImage: A size is below 1, or there are more than `MAX_VOXELS` voxels.
    """
    shape = tuple(shape)
    if min(shape) < 1 or math.prod(shape) > MAX_VOXELS:
        raise UnsupportedImage(
            f"expected 1 to {MAX_VOXELS} voxels, found {' × '.join(map(str, shape))} in the header of {name}",
            "Check the file; a larger volume can be let in by setting medfuse.io.limits.MAX_VOXELS",
        )
