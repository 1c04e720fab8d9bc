"""What is measured: medfuse, and the registrations that others use, each by its common recipe.

All get the volumes as they are, as float32; all return a transform from the fixed world to the moving one, LPS mm.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk

from medfuse.align import Transform, register
from medfuse.errors import MedfuseError
from medfuse.itk import to_image
from medfuse.volume import Volume

SEED = 1
#: Share of the voxels that SimpleITK's recipe looks at.
SAMPLED = 0.01


@dataclass(frozen=True)
class Found:
    """What a method answered.

    Args:
        transform: From the fixed world to the moving one (its `apply` takes points); None where there is none.
        trust: "trusted", "doubtful" or "failed"; None of methods that do not judge.
        numbers: What it said about itself, JSON values.
        failure: Why there is no transform, one line.
    """

    transform: Any = None
    trust: str | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None


#: Called with (fixed, moving, kind, threads).
Method: TypeAlias = Callable[[Volume, Volume, str, int], Found]


def _medfuse(fixed: Volume, moving: Volume, kind: str, threads: int) -> Found:
    options: dict[str, Any] = {"threads": threads} if "threads" in inspect.signature(register).parameters else {}
    try:
        result = register(fixed, moving, kind, **options)
    except MedfuseError as error:
        return Found(trust="failed", failure=f"{type(error).__name__}: {error}")
    numbers = {name: value for name, value in result.to_json().items() if name not in ("kind", "transform", "trust")}
    verdict = getattr(result, "verdict", None)
    return Found(result.transform, None if verdict is None else verdict.trust.value, numbers)


def _simpleitk(start: int, fixed: Volume, moving: Volume, _kind: str, threads: int) -> Found:
    """The settings of SimpleITK's notebook "Registration Introduction" (60), with a seed."""
    images = to_image(fixed), to_image(moving)
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(threads)
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(SAMPLED, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescent(
        learningRate=1.0, numberOfIterations=100, convergenceMinimumValue=1e-6, convergenceWindowSize=10
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    initial = sitk.CenteredTransformInitializer(*images, sitk.Euler3DTransform(), start)
    method.SetInitialTransform(initial, inPlace=False)
    return Found(Transform.from_itk(method.Execute(*images)))


def _elastix(fixed: Volume, moving: Volume, _kind: str, threads: int) -> Found:
    """The default "rigid" parameter map, started with geometrical centre on geometrical centre."""
    import itk

    parameters = itk.ParameterObject.New()
    settings = dict(parameters.GetDefaultParameterMap("rigid"))
    settings["AutomaticTransformInitialization"] = ("true",)
    settings["WriteResultImage"] = ("false",)
    parameters.AddParameterMap(settings)
    _, result = itk.elastix_registration_method(
        _itk_image(itk, fixed),
        _itk_image(itk, moving),
        parameter_object=parameters,
        number_of_threads=threads,
        log_to_console=False,
    )
    found = result.GetParameterMap(0)
    euler = sitk.Euler3DTransform()
    euler.SetCenter([float(value) for value in found["CenterOfRotationPoint"]])
    euler.SetComputeZYX(found["ComputeZYX"][0] == "true")
    euler.SetParameters([float(value) for value in found["TransformParameters"]])
    return Found(Transform.from_itk(euler))


def _itk_image(itk: Any, volume: Volume) -> Any:
    """The volume as an image of the `itk` package; its matrices go by (i, j, k) in rows of LPS, as SimpleITK's."""
    image = itk.image_from_array(np.ascontiguousarray(volume.array, dtype=np.float32))
    image.SetOrigin(volume.grid.origin_mm.tolist())
    image.SetSpacing(list(volume.grid.spacing_mm[::-1]))
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(volume.grid.direction[:, ::-1])))
    return image


def _greedy(options: str, fixed: Volume, moving: Volume, _kind: str, threads: int) -> Found:
    """Greedy's rigid mode with mutual information, image centre on image centre; it answers in RAS."""
    from picsl_greedy import Greedy3D

    greedy = Greedy3D()
    greedy.execute(
        "-i fixed moving -a -dof 6 -m NMI -ia-image-centers -n 100x50x10 -o found "
        f"{options} -seed {SEED} -threads {threads} -V 0",
        fixed=to_image(fixed),
        moving=to_image(moving),
        found=None,
        out=io.StringIO(),
        err=io.StringIO(),
    )
    lps_from_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Found(Transform(lps_from_ras @ np.asarray(greedy["found"]) @ lps_from_ras))


METHODS: dict[str, Method] = {
    "medfuse": _medfuse,
    "simpleitk": partial(_simpleitk, sitk.CenteredTransformInitializerFilter.GEOMETRY),
    "simpleitk-moments": partial(_simpleitk, sitk.CenteredTransformInitializerFilter.MOMENTS),
    "elastix": _elastix,
    "greedy": partial(_greedy, ""),
    "greedy-search": partial(_greedy, "-search 1000 any 20"),
}
#: Packages that are no dependency of medfuse: (module, name to install).
NEEDS = {
    "elastix": ("itk", "itk-elastix"),
    "greedy": ("picsl_greedy", "picsl_greedy"),
    "greedy-search": ("picsl_greedy", "picsl_greedy"),
}


def missing(method: str) -> str | None:
    """The package to install for a method, None where it is there."""
    module, package = NEEDS.get(method, ("", ""))
    return package if module and find_spec(module) is None else None


def load(method: str) -> None:
    """Import what a method needs."""
    if method in NEEDS:
        module = import_module(NEEDS[method][0])
        if method == "elastix":
            module.ParameterObject  # noqa: B018  # the package loads its parts when they are first named
