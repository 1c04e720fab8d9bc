"""Where images show anything, so that nothing is computed where they do not.

Not asked on a GPU, where the answer would take longer than the work it saves.
"""

from __future__ import annotations

from torch import Tensor

from medfuse.fusion.networks.autoencoder import Part


def is_black(x: Tensor) -> bool:
    """Whether every value is 0, as far as is asked."""
    return x.device.type == "cpu" and not bool(x.any())


def lit(images: Tensor, reach: int = 0) -> Part:
    """Rows and columns of what is not 0 in any image, (N, 1, H, W), and of what lies no further than `reach` from it.

    They begin at even ones, where blocks of 2 × 2 pixels begin. With a reach they are never empty.
    """
    if images.device.type != "cpu":
        return slice(0, images.shape[-2]), slice(0, images.shape[-1])
    shown = images.abs()

    def along(axis: int) -> slice:
        found = shown.amax([other for other in range(4) if other != axis]).nonzero()
        first, last = (int(found[0]), int(found[-1])) if len(found) else (0, -1)
        return slice(max(first - reach, 0) // 2 * 2, min((last + reach + 2) // 2 * 2, images.shape[axis]))

    return along(2), along(3)
