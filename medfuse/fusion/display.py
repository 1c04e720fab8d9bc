"""How a volume is shown before it is fused: its window, and the palette of tracer uptake.

What is shown is a luminance in [0, 1] and, for colour, the chroma that is carried past the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfuse.color import (
    CT_WINDOWS,
    PALETTES,
    Percentiles,
    Window,
    room_for_color,
    ycbcr_from_rgb,
    ycbcr_of_palette,
)
from medfuse.defaults import PALETTE
from medfuse.volume import Modality, Unit, Volume

#: SUV from 0 to 10: the usual window of PET in oncology.
SUV_WINDOW = Window(0, 10)
#: MR has no units: its window is read off the whole volume, so that every slice gets the same one.
STRUCTURAL_PERCENTILES = Percentiles(0.5, 99.5)
#: Uptake without units: from nothing to just below the hottest voxels.
FUNCTIONAL_PERCENTILES = Percentiles(0, 99.9)

#: Beside a CT, whose bone is white, uptake keeps this share of its colour: of half of it, much still looked grey.
COLOR_BESIDE_CT = 2 / 3

#: From here on R, G and B make white, and from here on the length of (Cb, Cr) a colour.
WHITE, VIVID = 250, 0.2
#: A slice is whitened where more than this share of its coloured pixels is white, and at least so many are.
WHITENED, FEW = 0.1, 20


@dataclass(frozen=True)
class Display:
    """How to show a volume.

    Args:
        window: What becomes black and white; None for an RGB volume, which is shown as it is.
        palette: Name of the palette for uptake; None for grey.
    """

    window: Window | None
    palette: str | None

    @property
    def is_color(self) -> bool:
        """Whether there is chroma to carry past the network."""
        return self.window is None or self.palette not in (None, "GREY")

    def show(self, values: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Slices (N, J, I), or (N, J, I, 3) RGB, as luminance (N, J, I) in [0, 1] and chroma (N, J, I, 2) or None."""
        if self.window is None:
            ycbcr = ycbcr_from_rgb(values.astype(np.uint8, copy=False))
        else:
            grey = self.window.apply(values)
            if self.palette in (None, "GREY"):
                return grey, None
            ycbcr = ycbcr_of_palette(grey, self.palette)
        return ycbcr[..., 0], ycbcr[..., 1:]


def display_of(
    volume: Volume,
    *,
    functional: bool,
    window: Window | Percentiles | None = None,
    palette: str = PALETTE,
) -> Display:
    """How to show a volume in its place, structural or functional.

    Args:
        volume: The volume as read, before resampling, so that padding does not enter the percentiles.
        functional: Whether it stands in the functional place: then uptake is coloured, also where the file does not say
            what it is. CT and MR stay grey in either place.
        window: The user's choice; None for the default of its modality and unit.
        palette: The palette for uptake.

    Raises:
        ValueError: No such palette.
    """
    if palette not in PALETTES:
        raise ValueError(f"expected a palette of {', '.join(PALETTES)}, got {palette!r}")
    if volume.is_color:
        return Display(None, None)
    uptake = functional and volume.modality not in (Modality.CT, Modality.MR)
    chosen = window or _default_window(volume, uptake)
    if isinstance(chosen, Percentiles):
        found = chosen.of(volume.array)
        is_from_nothing = window is None and uptake and found.lower < 0 < found.upper
        chosen = Window(0, found.upper) if is_from_nothing else found  # what was reconstructed below 0 is no uptake
    return Display(chosen, palette if uptake else None)


def least_color(structural: Modality) -> float:
    """The share of its colour that uptake keeps at least beside a structural scan; 0 asks for nothing.

    A CT's window cuts off in bone, which has no detail to lose there; uptake in it would have no colour. An MR's light
    greys are anatomy: beside it, a colour is as strong as the luminance leaves it.
    """
    return COLOR_BESIDE_CT if structural is Modality.CT else 0.0


def leaving_color(
    fused: NDArray[np.float32], chroma: NDArray[np.float32] | None, structural: Modality
) -> NDArray[np.float32]:
    """The luminance that a fused plane is shown with in colour: lowered where that needs room, as `least_color` has it.

    Args:
        fused: Luminance (…) in [0, 1].
        chroma: Cb and Cr of the functional plane, (…, 2); None where it is grey.
        structural: What the structural plane is.
    """
    share = least_color(structural)
    return room_for_color(fused, chroma, share) if chroma is not None and share else fused


def slices_whitened(fused: Volume, functional: Volume, shown: Display) -> int:
    """In how many slices of a fused volume in colour the tracer's colour is lost in white.

    A colour as light as white is white: nothing that keeps the luminance can show it (`rgb_with_luminance`). Beside a
    CT that does not happen, see `leaving_color`. What measures it is `medfuse.metrics.color_loss`, which takes too long
    for every result.

    Args:
        fused: uint8 RGB.
        functional: The functional volume on its grid.
        shown: How that was shown; in colour.
    """
    return sum(_is_whitened(*planes, shown) for planes in zip(fused.array, functional.array, strict=True))


def _is_whitened(picture: NDArray[np.uint8], values: NDArray[np.generic], shown: Display) -> bool:
    lost = _vivid(values[np.logical_and.reduce([picture[..., color] >= WHITE for color in range(3)])], shown)
    return lost >= FEW and lost > WHITENED * _vivid(values, shown)


def _vivid(values: NDArray[np.generic], shown: Display) -> int:
    """How many of the values are shown in a colour that is no grey."""
    _, chroma = shown.show(values)
    return 0 if chroma is None else int((np.hypot(chroma[..., 0], chroma[..., 1]) > VIVID).sum())


def _default_window(volume: Volume, uptake: bool) -> Window | Percentiles:
    if volume.unit is Unit.HU:
        return CT_WINDOWS["soft-tissue"]
    if not uptake:
        return STRUCTURAL_PERCENTILES
    if volume.unit is Unit.SUV or _looks_like_suv(volume):
        return SUV_WINDOW
    return FUNCTIONAL_PERCENTILES


def _looks_like_suv(volume: Volume) -> bool:
    """Whether a PET without units has the range of SUV: Bq/ml reaches thousands, a normalised image stays at 1."""
    return volume.modality is Modality.PT and volume.unit is Unit.ARBITRARY and 1.5 <= float(volume.array.max()) <= 100
