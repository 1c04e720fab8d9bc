"""What a fusion must not do to colour: shift hues, lose colour, or turn the order of the tracer upside down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.metrics.images import precision, to_levels

#: Which hue is meant: the angle of HSV's hexagon, or that of a* and b* in CIELAB.
Hue = Literal["hsv", "cielab"]

#: Least chroma for a hue to be told: in HSV the largest less the smallest channel, in levels 0-255; in CIELAB C*ab.
#: With so much, one level more or less in one channel, as rounding leaves it, turns the hue by less than 2°.
LEAST_CHROMA: dict[Hue, float] = {"hsv": 32.0, "cielab": 25.0}

#: C*ab below which a pixel that had a hue counts as grey.
GREY_CHROMA = 10.0

#: Share of the functional image's nonzero pixels that is its hot region, and that is its hottest.
HOT_SHARE, HOTTEST_SHARE = 0.25, 0.01

_Floats = NDArray[np.float64]


def hue_error(fused: Tensor, functional: Tensor, *, quantile: float | None = None, hue: Hue = "hsv") -> Tensor:
    """By how many degrees hues of the functional image were turned, where both images have colour.

    The difference of two angles, the short way round, over the pixels whose chroma reaches `LEAST_CHROMA` in both.
    "hsv" is the hue of HSV, the angle among R, G and B (A. R. Smith, SIGGRAPH 1978): another luminance under the same
    Cb and Cr adds one number to R, G and B, so this hue stays, but for rounding, unless the colour leaves the range of
    RGB and is cut off. "cielab" is h_ab = atan2(b*, a*) (CIE 15:2004, of sRGB under D65), closer to what is seen; such
    an addition turns it by up to some tens of degrees, for a light and a dark colour of one hue in HSV are of two in
    CIELAB. Range 0° to 180°, LOWER is better, symmetric. Identical images give 0, as do images without a pixel that has
    colour in both: `color_loss` shows those.

    Args:
        fused: (N, 3, H, W) RGB or (N, 1, H, W) grey, uint8 or float in [0, 1].
        functional: (N, 3, H, W), of the same size.
        quantile: Which of the pixels' errors: 1 for the worst, 0.999 for the 99.9th percentile; None for their mean.
        hue: Which hue, see above.

    Returns:
        (N,), degrees.
    """
    found = []
    for pixels in _tinted(fused, functional):
        (first, chroma), (second, other) = (_hue_and_chroma(one, hue) for one in pixels)
        errors = np.abs((first - second + 180) % 360 - 180)[np.minimum(chroma, other) >= LEAST_CHROMA[hue]]
        found.append(_summary(errors, quantile))
    return _to_tensor(found, fused)


def color_loss(fused: Tensor, functional: Tensor) -> Tensor:
    """The share of the functional image's coloured pixels that the result shows grey.

    Coloured is C*ab of at least 25, grey is C*ab below 10 (CIELAB of sRGB under D65); by definition. Range 0 to 1,
    LOWER is better. Identical images give 0, as does a functional image without colour.

    Args:
        fused: (N, 3, H, W) RGB or (N, 1, H, W) grey, uint8 or float in [0, 1].
        functional: (N, 3, H, W), of the same size.

    Returns:
        (N,).
    """
    found = []
    for pixels in _tinted(fused, functional):
        kept, there = (_hue_and_chroma(one, "cielab")[1] for one in pixels)
        colored = there >= LEAST_CHROMA["cielab"]
        found.append((kept[colored] < GREY_CHROMA).sum() / max(colored.sum(), 1))
    return _to_tensor(found, fused)


def tracer_order(fused: Tensor, uptake: Tensor) -> Tensor:
    """Whether what is hotter looks lighter: Spearman's rank correlation of L* and uptake inside the hot region.

    L* is CIELAB's lightness of the result (CIE 15:2004, sRGB); the hot region is the upper quarter of the nonzero
    uptake, its limit included; ties share their ranks (C. Spearman, Am. J. Psychol. 15:72-101, 1904). Range -1 to 1,
    higher is better; 1 where L* rises with uptake, 0 for a result of one lightness. Uptake of one value, or none, has
    no order to lose and gives 1. A functional image and its own luminance give 1 as far as L* follows luminance (0.98
    to 1 in practice). Luminance stands for uptake only where the palette gets lighter with it, as HOT_IRON does;
    of a rainbow, whose hottest red is darker than its yellow, the order of luminance is that of the picture alone.

    Args:
        fused: (N, 3, H, W) RGB or (N, 1, H, W) grey, uint8 or float in [0, 1].
        uptake: (N, 1, H, W), from 0, of any scale: the tracer itself, or the functional image's luminance.

    Returns:
        (N,).
    """
    return _to_tensor([_agreement(region) for region in _hot_regions(fused, uptake)], fused)


def hottest_is_lightest(fused: Tensor, uptake: Tensor) -> Tensor:
    """The share of the hottest hundredth of the uptake that is among as many of the lightest pixels of the hot region.

    The hottest hundredth, of the nonzero pixels and with all that tie with its last, is n pixels; the lightest are the
    n of highest L* in the hot region of `tracer_order`, and where more tie, each counts for its chance. By definition.
    Range 0 to 1, higher is better; chance gives 0.04, a result of one lightness n over the region's pixels. Uptake
    of one value, or none, gives 1. A functional image and its own luminance give 1 as far as L* follows luminance.

    Args:
        fused: (N, 3, H, W) RGB or (N, 1, H, W) grey, uint8 or float in [0, 1].
        uptake: (N, 1, H, W), from 0, of any scale: the tracer itself, or the functional image's luminance.

    Returns:
        (N,).
    """
    return _to_tensor([_share(region) for region in _hot_regions(fused, uptake)], fused)


def luminance(rgb: Tensor) -> Tensor:
    """The luma of a colour image as ITU-R BT.601 weighs R, G and B: (N, 3, H, W) to (N, 1, H, W) float in [0, 1].

    Args:
        rgb: (N, 3, H, W), RGB, uint8 or float in [0, 1]; a grey image (N, 1, H, W) is its own luma.
    """
    levels = _to_rgb_levels(rgb)
    return (levels * levels.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True) / 255


def _to_rgb_levels(image: Tensor) -> Tensor:
    """Grey levels of three channels, (N, 3, H, W); a grey image has three alike."""
    if image.ndim != 4 or image.shape[1] not in (1, 3):
        raise ValueError(f"expected images (N, 3, H, W) or (N, 1, H, W), got {tuple(image.shape)}")
    (levels,) = to_levels(image.flatten(0, 1)[:, None])
    return levels.view(image.shape).expand(-1, 3, -1, -1)


def _to_rgb(*images: Tensor) -> tuple[_Floats, ...]:
    """Images of one size as RGB in [0, 1] for scikit-image, (N, H, W, 3) each."""
    levels = [_to_rgb_levels(image) for image in images]
    if any(one.shape != levels[0].shape for one in levels):
        raise ValueError(f"expected images of one size, got {[tuple(image.shape) for image in images]}")
    return tuple((one / 255).movedim(1, -1).double().cpu().numpy() for one in levels)


def _tinted(fused: Tensor, functional: Tensor) -> Iterator[tuple[_Floats, _Floats]]:
    """Of each image the n pixels at which the functional one is not grey, in both, (n, 3) each."""
    for result, source in zip(*_to_rgb(fused, functional), strict=True):
        tinted = np.ptp(source, axis=-1) > 0
        yield result[tinted], source[tinted]


def _hue_and_chroma(rgb: _Floats, hue: Hue) -> tuple[_Floats, _Floats]:
    """Hue in degrees, and chroma in the units of `LEAST_CHROMA`, of pixels (n, 3), each (n,)."""
    from skimage.color import rgb2hsv, rgb2lab

    if len(rgb) == 0:
        return np.empty(0), np.empty(0)
    if hue == "hsv":
        return 360 * rgb2hsv(rgb)[:, 0], np.round(255 * np.ptp(rgb, axis=-1), 6)  # whole levels
    _, red_green, yellow_blue = rgb2lab(rgb).T
    return np.degrees(np.arctan2(yellow_blue, red_green)), np.hypot(red_green, yellow_blue)


def _summary(errors: _Floats, quantile: float | None) -> float:
    if errors.size == 0:
        return 0.0
    return float(errors.mean() if quantile is None else np.quantile(errors, quantile))


@dataclass(frozen=True)
class _HotRegion:
    """The n pixels of one image where its uptake is high, each (n,)."""

    lightness: _Floats
    uptake: _Floats
    is_hottest: NDArray[np.bool_]


def _hot_regions(fused: Tensor, uptake: Tensor) -> Iterator[_HotRegion]:
    from skimage.color import rgb2lab

    if uptake.ndim != 4 or uptake.shape != (len(fused), 1, *fused.shape[2:]):
        raise ValueError(f"expected uptake (N, 1, H, W) of the images' size, got {tuple(uptake.shape)}")
    for rgb, values in zip(*_to_rgb(fused), uptake[:, 0].double().cpu().numpy(), strict=True):
        present = values[values > 0]
        if present.size == 0:
            yield _HotRegion(np.empty(0), np.empty(0), np.empty(0, bool))
            continue
        limit, last = np.quantile(present, [1 - HOT_SHARE, 1 - HOTTEST_SHARE])
        hot = values >= limit
        yield _HotRegion(rgb2lab(rgb[hot])[:, 0], values[hot], values[hot] >= last)


def _agreement(region: _HotRegion) -> float:
    from scipy.stats import rankdata

    if region.uptake.size == 0 or np.ptp(region.uptake) == 0:
        return 1.0
    if np.ptp(region.lightness) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(region.lightness), rankdata(region.uptake))[0, 1])


def _share(region: _HotRegion) -> float:
    count = int(region.is_hottest.sum())
    if count == 0:
        return 1.0
    last = np.partition(region.lightness, -count)[-count]
    lighter, tied = region.lightness > last, region.lightness == last
    chance = (count - lighter.sum()) / tied.sum()
    return float(((region.is_hottest & lighter).sum() + chance * (region.is_hottest & tied).sum()) / count)


def _to_tensor(values: Sequence[float] | _Floats, images: Tensor) -> Tensor:
    """One value an image, on the images' device."""
    return torch.as_tensor(values, dtype=precision(images), device=images.device)
