"""Finding the transform between two volumes: the only file that runs a registration.

Mattes mutual information (Mattes et al., IEEE Trans. Med. Imaging 22(1), 2003), which holds across modalities, is
maximised by Powell's method at several resolutions, from several starts: line searches that never leave a better place
for a worse one, which gradient descent did on small, cropped volumes. The registration works on smoothed copies; what
is fused is resampled once, from the original voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medfuse.align.resample import overlap
from medfuse.align.transform import Transform
from medfuse.errors import RegistrationError
from medfuse.grid import Grid
from medfuse.itk import to_image
from medfuse.volume import Volume

KINDS = ("rigid", "affine")

#: Points at which the two are compared at the coarsest resolution. With fewer, chance alone fills the joint histogram:
#: mutual information is overrated by about bins²/(2·points), the more the less the two overlap, and pulls them apart.
COARSE_POINTS = 30_000
FINE_POINTS = 120_000
BINS = 32
SEED = 2212

#: Called with (step, steps) as a registration goes on.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Registration:
    """A found transform, and the numbers that say what to think of it. None of them proves it right: look at it.

    Args:
        transform: From the fixed world to the moving one.
        kind: "rigid" or "affine".
        start: Which start led to it: "header", "centers" or "moments".
        information_before: Mutual information at the header's alignment, nats; 0 where that does not overlap.
        information_after: The same at the transform found; higher is better.
        overlap: Share of the fixed grid that lies inside the moving one at the transform found.
        moved_mm: Largest distance between the header's alignment and the one found, at the fixed grid's corners.
        rotated_degrees: Angle of the rotation in the transform.
    """

    transform: Transform
    kind: str
    start: str
    information_before: float
    information_after: float
    overlap: float
    moved_mm: float
    rotated_degrees: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; the matrix as nested lists."""
        values = asdict(self)
        values["transform"] = self.transform.moving_from_fixed.tolist()
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def register(fixed: Volume, moving: Volume, kind: str = "rigid", progress: Progress | None = None) -> Registration:
    """Find the linear transform that lays the moving volume on the fixed one.

    Args:
        fixed: The volume that stays; any modality.
        moving: The volume to move; any modality, colour by its luminance.
        kind: "rigid" (3 rotations, 3 shifts) or "affine" (12 parameters, from the rigid result).
        progress: Called as steps are done.

    Returns:
        The transform and its numbers. Equal input gives an equal result on one machine.

    Raises:
        ValueError: An unknown kind.
        RegistrationError: No start gave an overlap in which the two can be compared.
    """
    if kind not in KINDS:
        raise ValueError(f"expected {' or '.join(KINDS)}, got {kind!r}")
    images = _comparable(fixed), _comparable(moving)
    starts = dict(_starts(fixed, moving))
    levels_mm = _levels_mm(fixed.grid)
    steps = len(starts) + len(levels_mm) - 1 + (kind == "affine")
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, steps)

    coarse = _at_resolution(images[0], levels_mm[0]), _at_resolution(images[1], levels_mm[0])
    found: dict[str, tuple[float, sitk.Transform]] = {}
    for name, start in starts.items():
        result = _optimized(*coarse, start, levels_mm[0])
        if result is not None:
            found[name] = result
        tick()
    if not found:
        raise RegistrationError(
            "expected two volumes that show the same anatomy, found no alignment in which they overlap",
            "Check that both are of one patient and one body part, or give a --transform",
        )
    name = max(found, key=lambda key: found[key][0])
    transform = found[name][1]
    for level in levels_mm[1:]:
        fine = _at_resolution(images[0], level), _at_resolution(images[1], level)
        transform = _refined(*fine, transform, level)
        tick()
    if kind == "affine":
        transform = _refined(*fine, _as_affine(transform), level)
        tick()
    linear = Transform.from_itk(transform)
    corners = fixed.grid.corners_mm
    return Registration(
        transform=linear,
        kind=kind,
        start=name,
        information_before=_information(*coarse, Transform.identity()),
        information_after=_information(*coarse, linear),
        overlap=overlap(fixed.grid, moving.grid, linear),
        moved_mm=float(linear.distance_mm(Transform.identity(), corners).max()),
        rotated_degrees=linear.rotation_degrees,
    )


def _levels_mm(grid: Grid) -> tuple[float, ...]:
    """Resolutions to register at, coarse to fine, by the size of the block of space that is compared."""
    coarse = float(np.clip((np.prod(grid.extent_mm) / COARSE_POINTS) ** (1 / 3), 2.0, 8.0))
    return coarse, coarse / 2, coarse / 4


def _comparable(volume: Volume) -> sitk.Image:
    """The volume as float, with its outliers clipped, so that the histogram's bins go where the tissue is."""
    values = volume.array.mean(axis=-1) if volume.is_color else volume.array
    values = values.astype(np.float32)
    lower, upper = np.percentile(values, (0.1, 99.9)).tolist()
    image = sitk.GetImageFromArray(np.clip(values, lower, upper))
    image.CopyInformation(to_image(volume))
    return image


def _starts(fixed: Volume, moving: Volume) -> Iterator[tuple[str, sitk.Transform]]:
    """Where to begin: as the headers say, middle on middle, and centre of mass on centre of mass."""
    center = fixed.grid.center_mm
    yield "header", _shifted(center, np.zeros(3))
    yield "centers", _shifted(center, moving.grid.center_mm - center)
    yield "moments", _shifted(center, _center_of_mass(moving) - _center_of_mass(fixed))


def _shifted(center: NDArray[np.float64], shift: NDArray[np.float64]) -> sitk.Euler3DTransform:
    start = sitk.Euler3DTransform()
    start.SetCenter(center.tolist())
    start.SetTranslation(shift.tolist())
    return start


def _center_of_mass(volume: Volume) -> NDArray[np.float64]:
    """In LPS mm, of the values above their mean, each counted once: the body, not its brightest part."""
    values = volume.array.mean(axis=-1) if volume.is_color else volume.array
    body = np.argwhere(values > values.mean())
    if not len(body):
        return volume.grid.center_mm
    middle: NDArray[np.float64] = volume.grid.points_mm([body.mean(axis=0)])[0]
    return middle


def _at_resolution(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """The image with voxels of about `spacing_mm`, smoothed to match; axes that are coarser stay as they are."""
    spacing = np.array(image.GetSpacing())
    shrink = np.maximum(1, np.floor(spacing_mm / spacing + 0.25)).astype(int)
    shrink = np.minimum(shrink, np.maximum(1, np.array(image.GetSize()) // 4))
    sigma = np.where(shrink > 1, 0.4 * shrink * spacing, 0)
    if sigma.any():
        image = sitk.DiscreteGaussian(image, (sigma**2).tolist(), maximumKernelWidth=64)
    return sitk.BinShrink(image, shrink.tolist()) if (shrink > 1).any() else image


def _method(image: sitk.Image) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=BINS)
    voxels = image.GetNumberOfPixels()
    if voxels > FINE_POINTS:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(FINE_POINTS / voxels, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _optimized(
    fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform, level_mm: float
) -> tuple[float, sitk.Transform] | None:
    """Mutual information reached and the transform, or None where the two do not overlap enough to be compared."""
    method = _method(fixed)
    method.SetOptimizerAsPowell(
        numberOfIterations=20, stepLength=level_mm / 2, stepTolerance=level_mm / 100, valueTolerance=1e-5
    )
    method.SetOptimizerScales(_scales(start, fixed))
    transform = type(start)(start)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:
        return None
    return -float(method.GetMetricValue()), transform


def _scales(transform: sitk.Transform, fixed: sitk.Image) -> list[float]:
    """How far each parameter moves the far parts of the image, in mm per unit: what makes the parameters comparable."""
    radius_mm = float(np.linalg.norm(np.multiply(fixed.GetSize(), fixed.GetSpacing()))) / 4
    turning = transform.GetNumberOfParameters() - 3
    return [radius_mm] * turning + [1.0] * 3


def _refined(fixed: sitk.Image, moving: sitk.Image, start: sitk.Transform, level_mm: float) -> sitk.Transform:
    result = _optimized(fixed, moving, start, level_mm)
    if result is None:
        raise RegistrationError(
            f"the alignment was lost at a resolution of {level_mm:g} mm",
            "Check that both volumes show the same body part, or give a --transform",
        )
    return result[1]


def _as_affine(rigid: sitk.Euler3DTransform) -> sitk.AffineTransform:
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    affine.SetCenter(rigid.GetCenter())
    return affine


def _information(fixed: sitk.Image, moving: sitk.Image, transform: Transform) -> float:
    """Mutual information at a transform, nats; 0 where the two do not overlap."""
    method = _method(fixed)
    method.SetInitialTransform(transform.to_itk())
    try:
        return -float(method.MetricEvaluate(fixed, moving))
    except RuntimeError:
        return 0.0
