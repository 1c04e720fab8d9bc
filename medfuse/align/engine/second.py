"""Another engine, for a second opinion: Mattes mutual information and gradient descent, through SimpleITK.

It shares nothing with the first but the images: not the measure (Mattes et al., IEEE Trans. Med. Imaging 22(1), 2003),
not the points, not the optimizer.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from medfuse.align.engine.information import SEED, Floats
from medfuse.align.engine.pyramid import Level
from medfuse.align.transform import Transform
from medfuse.itk import to_image_of

POINTS = 15_000
BINS = 32


def second_opinion(fixed: Level, moving: Level, start: Floats, center: Floats) -> Floats:
    """Where a rigid registration from a start (4, 4) ends; the start itself where it loses the volumes.

    Args:
        fixed: At a fine resolution.
        moving: Likewise.
        start: Rigid, from fixed to moving LPS mm.
        center: What to turn about, LPS mm in the fixed world.
    """
    transform = sitk.Euler3DTransform()
    transform.SetCenter(center.tolist())
    transform.SetMatrix(start[:3, :3].ravel().tolist(), 1e-6)
    transform.SetTranslation((start[:3, :3] @ center + start[:3, 3] - center).tolist())
    method = sitk.ImageRegistrationMethod()
    # One thread, since the order of ITK's sums, and with it the result, is otherwise left to chance.
    method.SetNumberOfThreads(1)
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(1.0, POINTS / fixed.array.size), SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=120, relaxationFactor=0.7
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    # Its gradient filter refuses fewer than 4 voxels along an axis.
    if min(fixed.array.shape) < 4 or min(moving.array.shape) < 4:
        method.MetricUseFixedImageGradientFilterOff()
        method.MetricUseMovingImageGradientFilterOff()
    try:
        method.Execute(to_image_of(fixed.array, fixed.grid), to_image_of(moving.array, moving.grid))
    except RuntimeError:
        return start
    return np.array(Transform.from_itk(transform).moving_from_fixed)
