"""All measures together: how each combines its two sources, and one table row an image.

Means over two sources reward the copy of one: a measure of two sources therefore also says what it gives each source
alone, and the worse of the two, by which a copy is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from medfuse.metrics.color import color_loss, hottest_is_lightest, hue_error, luminance, tracer_order
from medfuse.metrics.gradient import (
    average_gradient,
    edge_preservation,
    fusion_artifacts,
    spatial_frequency,
    standard_deviation,
)
from medfuse.metrics.images import Convention, check_size
from medfuse.metrics.information import (
    entropy,
    feature_mutual_information,
    mutual_information,
    normalized_mutual_information,
)
from medfuse.metrics.safety import background_error, flicker, gain_flicker
from medfuse.metrics.similarity import correlation, correlation_of_difference, ms_ssim, psnr, ssim
from medfuse.metrics.structure import FSIM_SMALLEST, VIF_SMALLEST, fsim, vif

#: Images measured at once, which bounds the memory that a long batch takes.
IMAGES_AT_ONCE = 4
#: Fewest rows and columns that all measures of a convention can work on: VIF's, and FSIM's.
SMALLEST: dict[Convention, int] = {"standard": VIF_SMALLEST, "paper": FSIM_SMALLEST}

_Values = tuple[Tensor, Tensor | None, Tensor | None]
_Two = Callable[[Tensor, Tensor], Tensor]
_Three = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Measure:
    """One column of the table.

    Args:
        name: As tables print it, such as "SSIM".
        title: What it is, in a few words.
        unit: "bits", "dB", "grey levels", or empty.
        better: Which way is better.
        compute: (fused, structural, functional) to the value, and that of each source alone, each (N,); None twice
            where the measure looks at no source.
    """

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    compute: Callable[[Tensor, Tensor, Tensor], _Values]


@dataclass(frozen=True)
class Score:
    """What one measure gave.

    Args:
        measure: The measure.
        value: (N,), over both sources.
        structural: (N,), for this source alone; None where the measure looks at no source.
        functional: (N,), likewise.
    """

    measure: Measure
    value: Tensor
    structural: Tensor | None = None
    functional: Tensor | None = None

    @property
    def worse(self) -> Tensor | None:
        """(N,), the worse of the two sources' values; None where the measure looks at no source."""
        if self.structural is None or self.functional is None:
            return None
        choose = torch.minimum if self.measure.better == "higher" else torch.maximum
        return choose(self.structural, self.functional)


@dataclass(frozen=True)
class Scorecard:
    """What all measures gave, in the order of the table's columns."""

    scores: tuple[Score, ...]

    def __getitem__(self, name: str) -> Score:
        """The score of the measure of that name."""
        for score in self.scores:
            if score.measure.name == name:
                return score
        raise KeyError(name)

    def rows(self) -> list[dict[str, float]]:
        """One row an image: `NAME`, and where there are sources `NAME structural`, `NAME functional`, `NAME worse`."""
        columns: dict[str, list[float]] = {}
        for score in self.scores:
            columns[score.measure.name] = score.value.tolist()
            for side in ("structural", "functional", "worse"):
                values: Tensor | None = getattr(score, side)
                if values is not None:
                    columns[f"{score.measure.name} {side}"] = values.tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def score(
    fused: Tensor,
    structural: Tensor,
    functional: Tensor,
    *,
    convention: Convention = "standard",
    names: Sequence[str] | None = None,
) -> Scorecard:
    """Measure a batch of results against the two sources they were made from.

    Args:
        fused: (N, 1, H, W), uint8 or float in [0, 1]; of a colour image the luminance.
        structural: The same shape.
        functional: The same shape; of a colour image the luminance.
        convention: "standard", every measure as its own paper defines it; "paper", the six columns of the DILRAN
            paper's table (arXiv 2212.04661) as they were computed there.
        names: Which measures, in this order; all of the convention by default.

    Returns:
        One score a measure, on the images' device.

    Raises:
        ValueError: A name or the convention is unknown, or the images are not fit (`medfuse.metrics.images`).
        UnsupportedImage: The images are smaller than a measure needs; for all of them, than `SMALLEST`.
    """
    if convention not in MEASURES:
        raise ValueError(f"expected a convention of {', '.join(MEASURES)}, got {convention!r}")
    if names is None:
        check_size(fused.shape, SMALLEST[convention])
    known = {measure.name: measure for measure in MEASURES[convention]}
    chosen = list(known) if names is None else list(names)
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"expected measures of {', '.join(known)}, got {', '.join(unknown)}")
    batches = list(
        zip(*(torch.split(images, IMAGES_AT_ONCE) for images in (fused, structural, functional)), strict=True)
    )
    with torch.inference_mode():
        return Scorecard(tuple(_score(known[name], batches) for name in chosen))


def score_safety(fused: Tensor, structural: Tensor, functional: Tensor) -> Scorecard:
    """Measure what a batch of results must not do, as pictures that are seen: `SAFETY`, without "stack".

    Args:
        fused: (N, 3, H, W) RGB, or (N, 1, H, W) grey, uint8 or float in [0, 1].
        structural: The same, with 1 or 3 channels.
        functional: The same, with 1 or 3 channels; measures of colour are left out where it has 1.

    Returns:
        One score a measure, without sides, on the images' device.

    Raises:
        ValueError: The images are not fit (`medfuse.metrics.images`).
    """
    measures = (*SAFETY["grey"], *(SAFETY["color"] if functional.shape[1] == 3 else ()))
    with torch.inference_mode():
        return Scorecard(tuple(_score(measure, [(fused, structural, functional)]) for measure in measures))


def score_stack(fused: Tensor, structural: Tensor, functional: Tensor) -> Scorecard:
    """Measure what a stack of slices must not do: "stack" of `SAFETY`.

    Args:
        fused: (K, H, W), K at least 2, uint8 or float in [0, 1]; of colour the luminance.
        structural: The same shape, on the same grid.
        functional: The same shape.

    Returns:
        One score a measure, without sides, of one value, (1,), for the stack.

    Raises:
        ValueError: There are fewer than 2 slices, or the stacks are not fit (`medfuse.metrics.images`).
    """
    with torch.inference_mode():
        return Scorecard(tuple(_score(measure, [(fused, structural, functional)]) for measure in SAFETY["stack"]))


def _score(measure: Measure, batches: list[tuple[Tensor, ...]]) -> Score:
    parts = zip(*(measure.compute(*batch) for batch in batches), strict=True)
    value, structural, functional = (None if part[0] is None else torch.cat(part) for part in parts)
    assert value is not None
    return Score(measure, value, structural, functional)


def _alone(measure: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], _Values]:
    """A measure of the result, whatever its sources."""
    return lambda fused, _structural, _functional: (measure(fused), None, None)


def _each(measure: _Two, combine: _Two) -> Callable[[Tensor, Tensor, Tensor], _Values]:
    """A measure of the result and one source, combined over both."""

    def compute(fused: Tensor, structural: Tensor, functional: Tensor) -> _Values:
        first, second = measure(fused, structural), measure(fused, functional)
        return combine(first, second), first, second

    return compute


def _beyond(measure: _Three, combine: _Two) -> Callable[[Tensor, Tensor, Tensor], _Values]:
    """A measure of what one source gave the result beyond the other, combined over both."""

    def compute(fused: Tensor, structural: Tensor, functional: Tensor) -> _Values:
        first, second = measure(fused, structural, functional), measure(fused, functional, structural)
        return combine(first, second), first, second

    return compute


def _jointly(measure: _Three) -> Callable[[Tensor, Tensor, Tensor], _Values]:
    """A measure that weighs both sources pixel by pixel; a source alone is that source given twice."""
    return lambda fused, structural, functional: (
        measure(fused, structural, functional),
        measure(fused, structural, structural),
        measure(fused, functional, functional),
    )


def _together(measure: _Three) -> Callable[[Tensor, Tensor, Tensor], _Values]:
    """A measure that looks at both sources at once, and cannot be told of one."""
    return lambda *images: (measure(*images).reshape(-1), None, None)  # a stack has one value


def _beside(measure: _Two) -> Callable[[Tensor, Tensor, Tensor], _Values]:
    """A measure that looks at the functional source only."""
    return lambda fused, _structural, functional: (measure(fused, functional), None, None)


def _by_luminance(measure: _Two) -> Callable[[Tensor, Tensor, Tensor], _Values]:
    """A measure of uptake, for which the functional picture's luminance stands."""
    return lambda fused, _structural, functional: (measure(fused, luminance(functional)), None, None)


def _mean(first: Tensor, second: Tensor) -> Tensor:
    return (first + second) / 2


def _mean_error(first: Tensor, second: Tensor) -> Tensor:
    """PSNR of the mean of two squared errors, from the two values in dB; a copy of one source gains just 3 dB."""
    return -10 * torch.log10((10 ** (-first / 10) + 10 ** (-second / 10)) / 2)


_pixel_fmi = partial(feature_mutual_information, feature="pixel")
_gradient_fmi = partial(feature_mutual_information, feature="gradient")
_edge_fmi = partial(feature_mutual_information, feature="edge")

#: The columns of the table, by convention.
MEASURES: dict[Convention, tuple[Measure, ...]] = {
    "standard": (
        Measure("EN", "entropy", "bits", "higher", _alone(entropy)),
        Measure("SD", "standard deviation", "grey levels", "higher", _alone(standard_deviation)),
        Measure("SF", "spatial frequency", "grey levels", "higher", _alone(spatial_frequency)),
        Measure("AG", "average gradient", "grey levels", "higher", _alone(average_gradient)),
        Measure("MI", "mutual information, sum", "bits", "higher", _each(mutual_information, torch.add)),
        Measure("Q_MI", "normalised MI, sum", "", "higher", _each(normalized_mutual_information, torch.add)),
        Measure("FMI pixel", "feature MI of pixels, mean", "", "higher", _each(_pixel_fmi, _mean)),
        Measure("FMI gradient", "feature MI of gradients, mean", "", "higher", _each(_gradient_fmi, _mean)),
        Measure("Q_AB/F", "edges preserved", "", "higher", _jointly(edge_preservation)),
        Measure("N_AB/F", "edges made up", "", "lower", _jointly(fusion_artifacts)),
        Measure("VIF", "visual information fidelity, sum", "", "higher", _each(vif, torch.add)),
        Measure("SCD", "correlations of differences, sum", "", "higher", _beyond(correlation_of_difference, torch.add)),
        Measure("CC", "correlation, mean", "", "higher", _each(correlation, _mean)),
        Measure("SSIM", "structural similarity, mean", "", "higher", _each(ssim, _mean)),
        Measure("MS-SSIM", "multi-scale SSIM, mean", "", "higher", _each(ms_ssim, _mean)),
        Measure("PSNR", "peak signal to noise, of the mean error", "dB", "higher", _each(psnr, _mean_error)),
        Measure("FSIM", "feature similarity, mean", "", "higher", _each(fsim, _mean)),
    ),
    "paper": (
        Measure("PSNR", "mean of two dB values", "dB", "higher", _each(partial(psnr, convention="paper"), _mean)),
        Measure("SSIM", "11 × 11 Gaussian, valid area", "", "higher", _each(partial(ssim, convention="paper"), _mean)),
        Measure("MI", "in truth the 8-bit entropy of the result", "bits", "higher", _alone(entropy)),
        Measure("FMI", "feature MI of Sobel edge maps, mean", "", "higher", _each(_edge_fmi, _mean)),
        Measure("FSIM", "integer gradients, mean", "", "higher", _each(partial(fsim, convention="paper"), _mean)),
        Measure("EN", "entropy of float values", "bits", "higher", _alone(partial(entropy, convention="paper"))),
    ),
}

_mean_background = partial(background_error, largest=False)
_most_of_hue = partial(hue_error, quantile=0.999)
_cielab_hue = partial(hue_error, hue="cielab")
_most_of_cielab_hue = partial(hue_error, hue="cielab", quantile=0.999)

#: What a fusion must not do, on pictures as they are seen: "grey" of all, "color" where the functional one has colour,
#: "stack" of the slices of a volume.
SAFETY: dict[Literal["grey", "color", "stack"], tuple[Measure, ...]] = {
    "grey": (
        Measure("background", "largest level where both are black", "levels", "lower", _together(background_error)),
        Measure("background mean", "mean level there", "levels", "lower", _together(_mean_background)),
    ),
    "color": (
        Measure("hue", "hue turned, of HSV, mean", "°", "lower", _beside(hue_error)),
        Measure("hue 99.9 %", "the same, 99.9th percentile", "°", "lower", _beside(_most_of_hue)),
        Measure("hue CIELAB", "hue turned, of CIELAB, mean", "°", "lower", _beside(_cielab_hue)),
        Measure("hue CIELAB 99.9 %", "the same, 99.9th percentile", "°", "lower", _beside(_most_of_cielab_hue)),
        Measure("colour lost", "share of coloured pixels shown grey", "", "lower", _beside(color_loss)),
        Measure("tracer order", "rank agreement where it is hot", "", "higher", _by_luminance(tracer_order)),
        Measure("hottest", "hottest 1 % among the lightest", "", "higher", _by_luminance(hottest_is_lightest)),
    ),
    "stack": (
        Measure("flicker", "change between slices, against the sources' own", "", "lower", _together(flicker)),
        Measure("gain flicker", "brightness that pumps on still pixels", "%", "lower", _together(gain_flicker)),
    ),
}
