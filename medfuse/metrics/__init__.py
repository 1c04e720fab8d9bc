"""How good a fused image is: measures of the image itself, and of what it kept of its two sources.

    from medfuse.metrics import score

    card = score(fused, structural, functional)   # each (N, 1, H, W), uint8, or float in [0, 1]
    card["SSIM"].value                                # (N,), mean of both sources
    card["SSIM"].worse                                # (N,), of the source that fared worse
    card.rows()                                       # a dictionary an image

    score_safety(picture, structural, color).rows()   # what a fusion must not do, on pictures (N, 1 or 3, H, W)

Every measure takes a batch (N, 1, H, W) and returns one float64 value an image, (N,), on the images' own device. It
checks the images, brings them to grey levels 0-255, then computes; none is ever NaN. An 8-bit image and the same over
255 give the same value.
"""

from medfuse.metrics.color import Hue, color_loss, hottest_is_lightest, hue_error, tracer_order
from medfuse.metrics.gradient import (
    average_gradient,
    edge_preservation,
    fusion_artifacts,
    spatial_frequency,
    standard_deviation,
)
from medfuse.metrics.images import Convention
from medfuse.metrics.information import (
    Feature,
    entropy,
    feature_mutual_information,
    mutual_information,
    normalized_mutual_information,
)
from medfuse.metrics.safety import background_error, flicker, gain_flicker
from medfuse.metrics.scorecard import (
    MEASURES,
    SAFETY,
    SMALLEST,
    Measure,
    Score,
    Scorecard,
    score,
    score_safety,
    score_stack,
)
from medfuse.metrics.similarity import correlation, correlation_of_difference, ms_ssim, psnr, ssim
from medfuse.metrics.structure import fsim, vif

__all__ = [
    "MEASURES",
    "SAFETY",
    "SMALLEST",
    "Convention",
    "Feature",
    "Hue",
    "Measure",
    "Score",
    "Scorecard",
    "average_gradient",
    "background_error",
    "color_loss",
    "correlation",
    "correlation_of_difference",
    "edge_preservation",
    "entropy",
    "feature_mutual_information",
    "flicker",
    "fsim",
    "fusion_artifacts",
    "gain_flicker",
    "hottest_is_lightest",
    "hue_error",
    "ms_ssim",
    "mutual_information",
    "normalized_mutual_information",
    "psnr",
    "score",
    "score_safety",
    "score_stack",
    "spatial_frequency",
    "ssim",
    "standard_deviation",
    "tracer_order",
    "vif",
]
