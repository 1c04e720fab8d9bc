"""What real scanners wrote, read by us and by other programs: one table, which is also a page of the documentation.

`python tests/test_reading_table.py` writes docs/reading.md anew.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from agreement import nearest_in, nifti_values
from programs import dcm2niix, external

from medfuse.errors import MedfuseError, MedfuseWarning
from medfuse.io.files import read
from medfuse.itk import to_image
from medfuse.volume import Unit, Volume

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reading.md"
#: CT below this is padding, which we make air and others leave as it is.
LOWEST_HU, AIR_HU = -1024, -1000
#: What may differ: geometry in mm (dcm2niix and NIfTI's headers are single precision), values relative to the largest.
MOST_MM, MOST_VALUE = 5e-3, 2e-6


@dataclass(frozen=True)
class Case:
    """One thing to read, and who says what it should be.

    Args:
        name: Path below the folder of data.
        what: In words.
        reference: Whose answer it is compared with: "NIfTI", "dcm2niix", "slices", or a part of our refusal.
        options: For `read`.
        answer: Path of the reference, below the folder of data.
        tolerance: Largest value error allowed beyond that of exact reading, in steps of the stored values.
    """

    name: str
    what: str
    reference: str
    options: dict[str, Any] = field(default_factory=dict)
    answer: str = ""
    tolerance: float = 0.0


@dataclass(frozen=True)
class Row:
    """One line of the table; errors are None where there is nothing to compare."""

    case: Case
    size: str
    geometry_mm: float | None
    value: float | None
    verdict: str

    @property
    def is_right(self) -> bool:
        return self.verdict.startswith(("same", "refused: "))


def cases(shared: Path) -> Iterator[Case]:
    yield from _vendors(shared)
    sts = sorted(path.name for path in (shared / "ibsi-sts" / "dicom").iterdir())
    for patient in sts:
        for name in ("CT", "PET", "MR_T1"):
            answer = f"ibsi-sts/nifti/{patient}/{name}_image.nii.gz"
            yield Case(f"ibsi-sts/dicom/{patient}/{name}", f"{name}, whole series", "NIfTI", {}, answer)
    mosaics = (("corasc35", "coronal", "cor_asc_35sl_16.nii"), ("sagasc35", "sagittal", "sag_asc_35sl_22.nii"))
    for folder, what, answer in mosaics:
        yield Case(f"mosaic-4d/{folder}", f"Siemens mosaic, {what}, two times", "found 2 of 35 images each")
        for frame in (1, 2):
            told = f"Siemens mosaic, {what}, --frame {frame}"
            yield Case(f"mosaic-4d/{folder}", told, "NIfTI", {"frame": frame}, f"mosaic-4d/{answer}")
    fmri = "mosaic-4d/ge_fmri_mr_0004"
    yield Case(fmri, "GE fMRI, ten times", "found 10 of 15 images each")
    for frame in (1, 10):
        answer = "mosaic-4d/DCM2NIIX_regression_test_4.nii"
        yield Case(fmri, f"GE fMRI, --frame {frame}", "NIfTI", {"frame": frame}, answer)
    tilted = "ct-gantry-tilt-ge"
    yield Case(tilted, "gantry tilt of 18.5°, uneven gaps", "gaps of 4.22 mm (×13), 7.38 mm (×13), 1.14 mm (×1)")
    yield Case(tilted, "the same with --allow-gaps", "slices", {"allow_gaps": True})
    yield from _codecs(shared)


def _vendors(shared: Path) -> Iterator[Case]:
    folder = shared / "dicom2nifti"
    told = {
        "ge_anatomical": "GE MR",
        "philips_enhanced": "Philips enhanced MR",
        "siemens_multiframe/anatomical": "Siemens enhanced MR",
        "hitachi/anatomical": "Hitachi MR, oblique",
        "hyperfine/anatomical": "Hyperfine enhanced MR",
        "generic/anatomical": "MR, sagittal",
        "generic/compressed": "JPEG 2000 MR",
        "generic/compressed_jpeg": "JPEG lossless MR",
        "generic/compressed_jpegls": "JPEG-LS MR",
        "generic/compressed_j2k": "JPEG 2000 MR",
        "generic/compressed_rle": "RLE MR",
        "generic/rgb": "RGB secondary capture",
    }
    for answer in sorted(folder.rglob("*_ground_truth.nii.gz")):
        case = answer.with_name(answer.name.removesuffix("_ground_truth.nii.gz"))
        if case.is_dir():
            what = told[str(case.parent.relative_to(folder))]
            yield Case(str(case.relative_to(shared)), what, "NIfTI", {}, str(answer.relative_to(shared)))
    failing = "dicom2nifti/failing"
    yield Case(f"{failing}/gantrytilting/001", "gantry tilt of 14°", "dcm2niix", {}, "*_Tilt_1.nii", 0.5)
    yield Case(f"{failing}/gantrytilting/001", "gantry tilt of 14°", "slices")
    yield Case(f"{failing}/sliceincrement/001", "a slice is missing", "gaps of 5.00 mm (×2), 10.00 mm (×1)")
    gaps = {"allow_gaps": True}
    yield Case(f"{failing}/sliceincrement/001", "the same with --allow-gaps", "dcm2niix", gaps, "*_Eq_1.nii", 0.5)
    yield Case(f"{failing}/sliceincrement/001", "the same with --allow-gaps", "slices", gaps)
    yield Case(f"{failing}/notavolume/001", "one slice, four times", "found 4 of 1 image each")


def _codecs(shared: Path) -> Iterator[Case]:
    """NEMA's samples, each one image: lossless ones bit by bit, near-lossless ones by 4, lossy ones as in GDCM."""
    names = {
        "UNC": "uncompressed",
        "RLE": "RLE",
        "JPLL": "JPEG lossless",
        "JLSL": "JPEG-LS lossless",
        "JLSN": "JPEG-LS near-lossless",
        "J2KR": "JPEG 2000 lossless",
        "J2KI": "JPEG 2000 lossy",
    }
    for image in ("CT1", "CT2", "MR1", "MR3", "MR4"):
        yield Case(f"wg04/{image}_UNC.dcm", "one slice", "found one 2-D image, which is not a volume")
        for code, name in names.items():
            answer = f"wg04/{image}_{code if code == 'J2KI' else 'UNC'}.dcm"
            what = f"{name}, --allow-2d"
            tolerance = {"JLSN": 4.0, "J2KI": 1.0}.get(code, 0.0)
            yield Case(f"wg04/{image}_{code}.dcm", what, "GDCM", {"allow_2d": True}, answer, tolerance)
    for code, name in names.items():
        yield Case(f"wg04/NM1_{code}.dcm", f"{name}, planar", "screen capture, without a place in the patient")


def tried(case: Case, shared: Path) -> Row:
    """Read one case and compare it."""
    path = shared / case.name
    known = case.reference in COMPARED
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MedfuseWarning)
            volume = read(path, **case.options)
    except MedfuseError as error:
        right = not known and case.reference in str(error)
        return Row(case, "", None, None, f"refused: {case.reference}" if right else f"WRONG: refused, {error}")
    size = " × ".join(map(str, volume.grid.shape))
    if not known:
        return Row(case, size, None, None, f"WRONG: read, though {case.reference}")
    geometry_mm, value = COMPARED[case.reference](volume, case, shared)
    scale = max(1.0, float(np.abs(volume.array).max()))
    step = float(getattr(volume.source.header, "RescaleSlope", None) or 1)
    same = not geometry_mm > MOST_MM and value <= MOST_VALUE * scale + case.tolerance * step
    return Row(case, size, geometry_mm, value, "same" if same else "WRONG")


def by_nifti(volume: Volume, image: Any, frame: int) -> tuple[float, float]:
    """Largest distance in mm from a voxel to the nearest one of a NIfTI image, and largest difference of the two."""
    data = nifti_values(image)
    if image.ndim == 4:
        data = data[:, :, :, frame - 1]
    whole, off_mm = nearest_in(image, volume)
    inside = ((whole >= 0) & (whole < np.array(image.shape[:3])[:, None])).all(axis=0)
    if inside.sum() < math.prod(image.shape[:3]):
        return math.inf, math.inf  # theirs has voxels that ours lacks
    if not inside.all() and "gaps_mm" not in volume.history[-1].parameters:
        return math.inf, math.inf  # dcm2niix adds no slices where it closes gaps, and so loses the last ones
    expected = data[tuple(whole[:, inside])].astype(float)
    found_values = volume.array.reshape(-1, *volume.array.shape[3:])[inside]
    return off_mm, differing(volume, found_values, expected)


def differing(volume: Volume, values: Any, expected: Any) -> float:
    """The largest difference, padding of a CT and what a tilted block adds at its corners apart."""
    off = np.abs(values - expected)
    if volume.unit is Unit.HU:
        off[(expected < LOWEST_HU) & ((values == AIR_HU) | (values == LOWEST_HU))] = 0
        off[(expected == LOWEST_HU) & (values == volume.history[-1].parameters.get("outside"))] = 0
    return float(off.max())


def stored(volume: Volume, case: Case, shared: Path) -> tuple[float, float]:
    return by_nifti(volume, nib.load(shared / case.answer), case.options.get("frame", 1))


def converted(volume: Volume, case: Case, shared: Path) -> tuple[float, float]:
    """Against what dcm2niix makes of the same files."""
    with tempfile.TemporaryDirectory() as folder:
        made = dcm2niix(shared / case.name, Path(folder) / "nifti")
        return by_nifti(volume, nib.load(next(file for file in made if file.match(case.answer))), 1)


def decoded(volume: Volume, case: Case, shared: Path) -> tuple[float, float]:
    """Against one file as GDCM, in SimpleITK, reads it."""
    image = sitk.ReadImage(shared / case.answer)
    off = [
        volume.grid.points_mm([(0, j, i)])[0] - image.TransformIndexToPhysicalPoint((i, j, 0))
        for j, i in ((0, 0), (0, image.GetWidth() - 1), (image.GetHeight() - 1, 0))
    ]
    value = differing(volume, volume.array, sitk.GetArrayFromImage(image).astype(float))
    return float(np.linalg.norm(off, axis=1).max()), value


def interpolated(volume: Volume, case: Case, shared: Path) -> tuple[float, float]:
    """Against the files one by one, as SimpleITK puts them in the world and interpolates in their planes.

    Values between two slices are weighted by the distances in mm. There is no other grid, so no geometry is compared.
    """
    normal = volume.grid.direction[:, 0]
    images = [sitk.ReadImage(path, sitk.sitkFloat64) for path in sorted((shared / case.name).glob("*.dcm"))]
    images = [sitk.Threshold(image, LOWEST_HU, 1e9, AIR_HU) for image in images]
    images.sort(key=lambda image: float(np.dot(image.GetOrigin(), normal)))
    heights = np.array([np.dot(image.GetOrigin(), normal) for image in images])
    whole = to_image(volume)
    worst = 0.0
    for k in range(volume.grid.shape[0]):
        place = whole[:, :, k : k + 1]
        height = float(np.dot(place.GetOrigin(), normal))
        above = int(np.clip(np.searchsorted(heights, height - 1e-6), 1, len(heights) - 1))
        share = np.clip((height - heights[above - 1]) / (heights[above] - heights[above - 1]), 0, 1)
        planes = []
        for n in (above - 1, above):
            target = sitk.Image(place)  # the same voxels, moved along the normal into the plane of slice n
            target.SetOrigin((np.array(place.GetOrigin()) + (heights[n] - height) * normal).tolist())
            planes.append(sitk.Resample(images[n], target, sitk.Transform(), sitk.sitkLinear, math.nan))
        low, high = (sitk.GetArrayFromImage(plane)[0] for plane in planes)
        expected = (1 - share) * low + share * high
        off = np.abs(volume.array[k] - expected)[np.isfinite(expected)]  # beside the slices there is nothing to compare
        worst = max(worst, float(off.max()))
    return math.nan, worst


COMPARED: dict[str, Callable[[Volume, Case, Path], tuple[float, float]]] = {
    "NIfTI": stored,
    "dcm2niix": converted,
    "GDCM": decoded,
    "slices": interpolated,
}
IN_WORDS = {
    "NIfTI": "stored NIfTI",
    "dcm2niix": "dcm2niix",
    "GDCM": "GDCM",
    "slices": "SimpleITK, slice by slice",
}


def rounded_up(error: float | None) -> str:
    """An error as its power of ten from above, which no platform's rounding changes."""
    if error is None or math.isnan(error):
        return ""
    if error == 0:
        return "0"
    return f"< {10.0 ** math.ceil(math.log10(max(error, 1e-7) * 1.0001)):g}" if math.isfinite(error) else "elsewhere"


def as_table(rows: list[Row]) -> str:
    head = "| case | what | size | compared with | geometry, mm | values | verdict |\n|---|---|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {row.case.name} | {row.case.what} | {row.size} | {IN_WORDS.get(row.case.reference, '')} "
        f"| {rounded_up(row.geometry_mm)} | {rounded_up(row.value)} | {row.verdict} |"
        for row in rows
    )


def as_page(rows: list[Row], now: str) -> str:
    """The page with its table made anew; the words around it stay."""
    before, _, rest = now.partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end of table -->")
    return f"{before}<!-- table -->\n{as_table(rows)}\n<!-- end of table -->{after}"


@pytest.fixture(scope="module")
def rows(shared: Path) -> list[Row]:
    external("dcm2niix")  # before all that is read in vain without it
    return [tried(case, shared) for case in cases(shared)]


def test_no_case_is_wrong(rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{as_table(rows)}\n")
    assert len(rows) > 80
    assert [f"{row.case.name}, {row.case.what}: {row.verdict}" for row in rows if not row.is_right] == []


def test_the_page_has_this_table(rows: list[Row]) -> None:
    now = PAGE.read_text(encoding="utf-8")
    assert as_page(rows, now) == now, "run `python tests/test_reading_table.py`"


def test_a_wrong_case_is_seen(shared: Path) -> None:
    name = "dicom2nifti/hitachi/anatomical/001"
    wrong = Case(name, "", "NIfTI", {}, "dicom2nifti/ge_anatomical/001_ground_truth.nii.gz")
    assert not tried(wrong, shared).is_right
    assert not tried(Case(name, "", "some refusal"), shared).is_right


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    made = [tried(case, data) for case in cases(data)]
    sys.stdout.write(as_table(made) + "\n")
    if all(row.is_right for row in made):
        PAGE.write_text(as_page(made, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
