"""Finding the transform between two volumes: the only file that runs a registration.

Mattes mutual information (Mattes et al., IEEE Trans. Med. Imaging 22(1), 2003), which holds across modalities, is
maximised by Powell's method at several resolutions, from several starts: line searches that never leave a better place
for a worse one, which gradient descent did on small, cropped volumes. The registration works on smoothed copies; what
is fused is resampled once, from the original voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medfuse.align.resample import overlap
from medfuse.align.transform import Transform
from medfuse.color.ycbcr import YCBCR_FROM_RGB
from medfuse.errors import RegistrationError
from medfuse.grid import Grid
from medfuse.itk import to_grid, to_image
from medfuse.volume import Volume

KINDS = ("rigid", "affine")

#: Points at which the two are compared at the coarsest resolution. With fewer, chance alone fills the joint histogram:
#: mutual information is overrated by about bins²/(2·points), the more the less the two overlap, and pulls them apart.
COARSE_POINTS = 30_000
FINE_POINTS = 120_000
#: With fewer than these at the coarsest resolution there is nothing but chance.
FEWEST_POINTS = 1_000
BINS = 32
SEED = 2212

#: Called with (step, steps) as a registration goes on.
Progress = Callable[[int, int], None]
#: The fixed and the moving one, at one resolution.
Images: TypeAlias = tuple[sitk.Image, sitk.Image]


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
        shift_mm: Mean distance between the header's alignment and the one found, over the fixed volume's body.
        spread_mm: RMS over the six halves of the fixed volume of how far each, registered alone, disagrees with the
            whole, mean over the body: how well the two volumes determine the alignment.
    """

    transform: Transform
    kind: str
    start: str
    information_before: float
    information_after: float
    overlap: float
    moved_mm: float
    rotated_degrees: float
    shift_mm: float
    spread_mm: float

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
        kind: "rigid" (3 rotations, 3 shifts) or "affine" (scales and skews too, from the rigid result).
        progress: Called as steps are done.

    Returns:
        The transform and its numbers. Equal input gives an equal result on one machine.

    Raises:
        ValueError: An unknown kind.
        RegistrationError: A volume is constant or too small to be compared, or nothing was found but what chance gives.
    """
    if kind not in KINDS:
        raise ValueError(f"expected {' or '.join(KINDS)}, got {kind!r}")
    images = _comparable(fixed), _comparable(moving)
    starts = dict(_starts(fixed, moving))
    coarsest, *finer = _levels_mm(fixed.grid)
    steps = len(starts) + len(finer) * (1 + (kind == "affine"))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, steps)

    coarse = _at_resolution(images[0], coarsest), _at_resolution(images[1], coarsest)
    for volume, image in zip((fixed, moving), coarse, strict=True):
        _check_size(volume.grid, image.GetNumberOfPixels())
    name, transform = _best(coarse, starts, coarsest, tick)
    pyramid = [(level, (_at_resolution(images[0], level), _at_resolution(images[1], level))) for level in finer]
    for model in KINDS[: KINDS.index(kind) + 1]:
        transform = _as_affine(transform) if model == "affine" else transform
        for level, fine in pyramid:
            transform = _refined(fine, transform, level)
            tick()
    linear = Transform.from_itk(transform)
    corners, body = fixed.grid.corners_mm, _body_mm(coarse[0])
    return Registration(
        transform=linear,
        kind=kind,
        start=name,
        information_before=_information(coarse, Transform.identity()),
        information_after=_information(coarse, linear),
        overlap=overlap(fixed.grid, moving.grid, linear),
        moved_mm=float(linear.distance_mm(Transform.identity(), corners).max()),
        rotated_degrees=linear.rotation_degrees,
        shift_mm=float(linear.distance_mm(Transform.identity(), body).mean()),
        spread_mm=_spread_mm(coarse, linear, body, coarsest),
    )


def _best(
    images: Images, starts: Mapping[str, sitk.Transform], level_mm: float, tick: Callable[[], None]
) -> tuple[str, sitk.Transform]:
    """The start that leads to the most information, by name, and where it leads."""
    found: dict[str, tuple[float, sitk.Transform]] = {}
    for name, start in starts.items():
        result = _optimized(images, start, level_mm)
        if result is not None:
            found[name] = result
        tick()
    if not found:
        raise RegistrationError(
            "expected two volumes that show the same anatomy, found no alignment in which they can be compared",
            "Check that both are of one patient and one body part, or give a --transform",
        )
    best = max(found, key=lambda name: found[name][0])
    information, transform = found[best]
    _check_information(information, images[0].GetNumberOfPixels())
    return best, transform


def _check_size(grid: Grid, points: int) -> None:
    if min(grid.shape) < 2 or points < FEWEST_POINTS:
        raise RegistrationError(
            f"expected at least 2 slices and {FEWEST_POINTS} voxels to compare, found a volume of shape {grid.shape} "
            f"with {points} at the coarsest resolution",
            "Give a larger scan or a --transform, or take the header's alignment with --register none",
        )


def _check_information(found: float, points: int) -> None:
    # Independent volumes reach about bins²/(6·points): Mattes' smoothing of the histogram takes two thirds of the bias.
    chance = BINS**2 / (4 * points)
    if found < chance:
        raise RegistrationError(
            f"expected two volumes that show the same anatomy, found {found:.4f} nats of mutual information, "
            f"where chance alone gives up to {chance:.4f}",
            "Check that both are of one patient and one body part, or give a --transform",
        )


def _levels_mm(grid: Grid) -> tuple[float, ...]:
    """Resolutions to register at, coarse to fine, by the size of the block of space that is compared."""
    coarse = float(np.clip((np.prod(grid.extent_mm) / COARSE_POINTS) ** (1 / 3), 2.0, 8.0))
    return coarse, coarse / 2, coarse / 4


def _comparable(volume: Volume) -> sitk.Image:
    """The volume as float, with its outliers clipped, so that the histogram's bins go where the tissue is."""
    values = _grey(volume)
    lower, upper = np.percentile(values, (0.1, 99.9)).tolist()
    if lower == upper:
        lower, upper = float(values.min()), float(values.max())
    if lower == upper:
        raise RegistrationError(
            "expected two volumes to compare, found one in which every voxel has the same value",
            "Check that both files hold the scans they should",
        )
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
    values = _grey(volume)
    body = values > values.mean()
    if not body.any():
        return volume.grid.center_mm
    counts = (body.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1)))
    middle: NDArray[np.float64] = volume.grid.points_mm(
        [[np.average(np.arange(len(count)), weights=count) for count in counts]]
    )[0]
    return middle


def _grey(volume: Volume) -> NDArray[np.float32]:
    """The volume as float32, colour as its luminance."""
    values = volume.array.astype(np.float32)
    return values @ YCBCR_FROM_RGB[0].astype(np.float32) if volume.is_color else values


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
    # Powell's method needs no gradient, and its filter would refuse fewer than 4 slices.
    method.MetricUseFixedImageGradientFilterOff()
    method.MetricUseMovingImageGradientFilterOff()
    return method


def _optimized(images: Images, start: sitk.Transform, level_mm: float) -> tuple[float, sitk.Transform] | None:
    """Mutual information reached and the transform, or None where the two do not overlap enough to be compared."""
    method = _method(images[0])
    method.SetOptimizerAsPowell(
        numberOfIterations=20, stepLength=level_mm / 2, stepTolerance=level_mm / 100, valueTolerance=1e-5
    )
    method.SetOptimizerScales(_scales(start, images[0]))
    transform = type(start)(start)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(*images)
    except RuntimeError:
        return None
    return -float(method.GetMetricValue()), transform


def _scales(transform: sitk.Transform, fixed: sitk.Image) -> list[float]:
    """How far each parameter moves the far parts of the image, in mm per unit: what makes the parameters comparable."""
    radius_mm = float(np.linalg.norm(np.multiply(fixed.GetSize(), fixed.GetSpacing()))) / 4
    stretching = transform.GetNumberOfParameters() - 6
    return [radius_mm] * 3 + [1.0] * 3 + [radius_mm] * stretching


def _refined(images: Images, start: sitk.Transform, level_mm: float) -> sitk.Transform:
    result = _optimized(images, start, level_mm)
    if result is None:
        raise RegistrationError(
            f"the alignment was lost at a resolution of {level_mm:g} mm",
            "Check that both volumes show the same body part, or give a --transform",
        )
    return result[1]


def _as_affine(rigid: sitk.Euler3DTransform) -> sitk.ScaleSkewVersor3DTransform:
    """The same as turn, shift, scales and skews: Powell's line searches go along these, not along matrix entries."""
    turn = sitk.VersorRigid3DTransform()
    turn.SetMatrix(rigid.GetMatrix())
    affine = sitk.ScaleSkewVersor3DTransform()
    affine.SetCenter(rigid.GetCenter())
    affine.SetRotation(turn.GetVersor())
    affine.SetTranslation(rigid.GetTranslation())
    return affine


def _body_mm(image: sitk.Image) -> NDArray[np.float64]:
    """LPS mm of the voxels above the mean, shape (N, 3): where an error of the alignment matters."""
    values = sitk.GetArrayViewFromImage(image)
    return to_grid(image).points_mm(np.argwhere(values > values.mean()))


def _spread_mm(images: Images, found: Transform, body_mm: NDArray[np.float64], level_mm: float) -> float:
    """How far the transforms that halves of the fixed image lead to lie from the one found, RMS, at the body."""
    start = _rigid_part(found, body_mm.mean(axis=0))
    whole = Transform.from_itk(start)
    results = [_optimized((half, images[1]), start, level_mm) for half in _halves(images[0])]
    distances = [Transform.from_itk(result[1]).distance_mm(whole, body_mm).mean() for result in results if result]
    return float(np.sqrt(np.mean(np.square(distances)))) if distances else float("inf")


def _halves(image: sitk.Image) -> Iterator[sitk.Image]:
    """Both halves of an image along each axis that can be cut."""
    size = np.array(image.GetSize())
    for axis in np.flatnonzero(size >= 4).tolist():
        first = np.where(np.arange(3) == axis, size // 2, size)
        second = np.where(np.arange(3) == axis, size // 2, 0)
        yield sitk.RegionOfInterest(image, first.tolist(), [0, 0, 0])
        yield sitk.RegionOfInterest(image, (size - second).tolist(), second.tolist())


def _rigid_part(transform: Transform, center: NDArray[np.float64]) -> sitk.Euler3DTransform:
    """The rotation and shift in a linear transform, about a centre."""
    u, _, v = np.linalg.svd(transform.moving_from_fixed[:3, :3])
    rigid = _shifted(center, transform.apply([center])[0] - center)
    rigid.SetMatrix((u @ v).ravel().tolist(), 1e-9)
    return rigid


def _information(images: Images, transform: Transform) -> float:
    """Mutual information at a transform, nats; 0 where the two do not overlap."""
    method = _method(images[0])
    method.SetInitialTransform(transform.to_itk())
    try:
        return -float(method.MetricEvaluate(*images))
    except RuntimeError:
        return 0.0
