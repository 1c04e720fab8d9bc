"""What other programs make of every object that medfuse writes: docs/interoperability.md says it, this finds it out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from agreement import RAS_FROM_LPS, nifti_values
from nodes import free_port
from numpy.typing import NDArray
from PIL import Image
from programs import ORTHANC, dcm2niix, external
from test_dicom_companions import OTHER, POSE, posed
from test_dicom_write import grid_of, volume_of

from medfuse.align import Transform
from medfuse.alignment import align
from medfuse.fusion import Engine
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.dicom_write import write_dicom
from medfuse.io.files import read
from medfuse.pipeline import fuse, resampled, write_fused
from medfuse.sample.series import write_series
from medfuse.volume import Modality, Volume

PAGE = Path(__file__).resolve().parents[1] / "docs" / "interoperability.md"
#: What the table may say, best first.
RIGHT, PIXELS, READ, NO, NONE = "right", "pixels", "read", "no", "–"
FRAME = "1.2.826.0.1.999.1"


class Written:
    """An object that was written.

    Args:
        paths: Its files, slices along the normal.
        volume: What it shows; None where it is no image.
        values: What a reader shall find at the voxels of the volume.
        tolerance: How far off it may be.
    """

    def __init__(self, paths: list[Path], volume: Volume | None, values: NDArray | None = None, tolerance: float = 0):
        self.paths, self.volume, self.values, self.tolerance = paths, volume, values, tolerance

    @property
    def folder(self) -> Path:
        return self.paths[0].parent

    @property
    def frames(self) -> NDArray:
        """The values in the order of the files or frames."""
        axes = self.volume.grid.lps_from_index[:3, :3]
        return self.values if np.linalg.det(axes[:, ::-1]) > 0 else self.values[::-1]

    def verdict(self, found: NDArray, lps_from_index: NDArray | None) -> str:
        """Right, if every voxel has its value at its place; pixels, if the values are there in their order."""
        shape = self.volume.grid.shape
        if lps_from_index is not None and found.shape[:3] == shape:
            points = self.volume.grid.points_mm(list(np.ndindex(shape)))
            index = np.linalg.solve(lps_from_index, np.c_[points, np.ones(len(points))].T)[:3].T
            nearest = np.rint(index).astype(int)
            inside = ((nearest >= 0) & (nearest < shape)).all()
            off_mm = np.abs(index - nearest).max() * max(self.volume.grid.spacing_mm)
            if inside and off_mm < 1e-2 and self._same(found[tuple(nearest.T)].reshape(found.shape), self.values):
                return RIGHT
        return PIXELS if found.shape == self.frames.shape and self._same(found, self.frames) else NO

    def _same(self, one: NDArray, other: NDArray) -> bool:
        return bool(np.allclose(one, other, rtol=0, atol=self.tolerance))


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """Every object, small, oblique and lopsided."""
    folder = tmp_path_factory.mktemp("objects")
    color, grey = volume_of("color", grid_of()), volume_of("fused", grid_of())
    grey_values = np.rint(grey.array * 4095)

    def written(name: str, volume: Volume, values: NDArray, tolerance: float = 0, **options: object) -> Written:
        (folder / name).mkdir()
        return Written(write_dicom(volume, folder / name, options=DicomOptions(**options)), volume, values, tolerance)

    found = {
        "Secondary Capture, a file a slice": written("sc", color, color.array),
        "Secondary Capture, multi-frame": written("multi", color, color.array, multiframe=True),
        "MR": written("mr", grey, grey_values),
        "Parametric Map": written("map", grey, grey.array, 1e-6, grey_as="parametric-map"),
    }
    mr = phantom_series(folder / "study" / "mr", Modality.MR)
    pet = phantom_series(folder / "study" / "pet", Modality.PT)
    fused = fuse(mr, pet, transform=Transform(POSE), engine=Engine("maximum", device="cpu"))
    functional = read(pet)
    moved = resampled(functional, fused, align(read(mr), functional, transform=Transform(POSE)))
    write_fused(fused, folder / "fused", "dicom", resampled=moved)
    paths = sorted((folder / "fused" / "resampled").iterdir())
    found["Resampled PET"] = Written(paths, moved, moved.array, float(moved.array.max()) / 65535)
    for name in ("registration", "blending"):
        alone = folder / name / "object.dcm"
        alone.parent.mkdir()
        shutil.copy(folder / "fused" / f"{name}.dcm", alone)
        found[name.capitalize()] = Written([alone], None)
    return found


def phantom_series(folder: Path, modality: Modality) -> Path:
    from phantoms import phantom

    volume = phantom(modality, (5, 6, 7), FRAME)
    volume = posed(volume, OTHER) if modality is Modality.PT else volume
    write_series(volume, folder, description=modality.value, number=1)
    return folder


# Readers


def by_simpleitk(written: Written) -> str:
    reader: sitk.ImageSeriesReader | sitk.ImageFileReader
    if len(written.paths) > 1:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(written.folder)))
    else:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(written.paths[0]))
    try:
        image = reader.Execute()
    except RuntimeError:
        return NO
    if written.volume is None:
        return READ
    matrix = np.eye(4)
    axes = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, :3], matrix[:3, 3] = axes[:, ::-1], image.GetOrigin()
    return written.verdict(sitk.GetArrayFromImage(image), matrix)


def by_highdicom(written: Written) -> str:
    if written.volume is None:
        return NO  # it reads images, segmentations, reports and annotations
    images = [highdicom.imread(path) for path in written.paths]
    volume = highdicom.get_volume_from_series(images) if len(images) > 1 else images[0].get_volume()
    return written.verdict(volume.array, volume.affine)


def by_dcm2niix(written: Written) -> str:
    files = dcm2niix(written.folder, written.folder / "nifti", check=False)
    if written.volume is None or len(files) != 1:
        return READ if files and written.volume is None else NO
    image = nibabel.load(files[0])
    array = nifti_values(image)
    if array.ndim < 3:
        return NO
    swap = np.eye(4)[[2, 1, 0, 3]]  # from (k, j, i) to (i, j, k)
    return written.verdict(np.swapaxes(array, 0, 2), RAS_FROM_LPS @ image.affine @ swap)


def by_gdcm(written: Written) -> str:
    import gdcm

    if written.volume is None:
        reader = gdcm.Reader()
        reader.SetFileName(str(written.paths[0]))
        return READ if reader.Read() else NO
    slices, origins = [], []
    for path in written.paths:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        if not reader.Read():
            return NO
        image = reader.GetImage()
        stored = image.GetBuffer().encode("utf-8", errors="surrogateescape")
        kind = {"UINT8": "u1", "UINT16": "<u2", "UINT12": "<u2", "FLOAT32": "<f4"}[
            image.GetPixelFormat().GetScalarTypeAsString()
        ]
        dimensions = [image.GetDimension(n) for n in range(image.GetNumberOfDimensions())]
        samples = image.GetPixelFormat().GetSamplesPerPixel()
        values = np.frombuffer(stored, kind)[: int(np.prod(dimensions)) * samples]
        values = values.reshape(*dimensions[::-1], *([samples] if samples > 1 else []))
        slices.append(values if samples > 1 else values * image.GetSlope() + image.GetIntercept())
        origins.append(np.array(image.GetOrigin()))
    row, column = np.reshape(image.GetDirectionCosines(), (2, 3))
    spacing = image.GetSpacing()
    step = origins[1] - origins[0] if len(origins) > 1 else np.cross(row, column) * spacing[2]
    matrix = np.eye(4)
    matrix[:3] = np.stack([step, column * spacing[1], row * spacing[0], origins[0]], axis=1)
    found = np.stack(slices) if len(slices) > 1 else slices[0]
    return written.verdict(found, matrix if np.linalg.det(matrix) else None)


def by_dcmtk(written: Written) -> str:
    """Its images hold no geometry; dcmdump reads what says it."""
    dumped = [subprocess.run([external("dcmdump"), path], check=False, capture_output=True) for path in written.paths]
    if any(run.returncode or b"Unknown Tag" in run.stdout for run in dumped):
        return NO
    if written.volume is None:
        return READ
    planes = []
    for number in range(len(written.frames)):
        path, frame = (written.paths[0], number + 1) if len(written.paths) == 1 else (written.paths[number], 1)
        png = written.folder / f"{number}.png"
        command = [external("dcm2pnm", "dcm2img"), "+on", "+F", str(frame), "--no-modality", "+Wm", path, png]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return NO
        planes.append(np.asarray(Image.open(png)))
    return PIXELS if _shows(np.stack(planes), written.frames) else NO


def _shows(found: NDArray, expected: NDArray) -> bool:
    """Whether what is shown is what is stored: colour as it is, grey scaled plane by plane to 8 bits."""
    if expected.ndim == 4:
        return bool(np.array_equal(found, expected))
    if found.shape != expected.shape:
        return False
    pairs = ((one.ravel(), other.ravel()) for one, other in zip(found, expected, strict=True) if np.ptp(other))
    return all(np.corrcoef(one, other)[0, 1] > 0.999 for one, other in pairs)


def by_orthanc(written: Written, url: str) -> str:
    """What its preview shows, frame by frame; whether it keeps what is no image."""
    planes = []
    for path in written.paths:
        kept = json.load(urllib.request.urlopen(f"{url}/instances", path.read_bytes()))
        if written.volume is None:
            dataset = BytesIO(urllib.request.urlopen(f"{url}/instances/{kept['ID']}/file").read())
            return READ if pydicom.dcmread(dataset) == pydicom.dcmread(path) else NO
        frames = json.load(urllib.request.urlopen(f"{url}/instances/{kept['ID']}/frames"))
        for frame in frames:
            try:
                png = urllib.request.urlopen(f"{url}/instances/{kept['ID']}/frames/{frame}/preview").read()
            except urllib.error.HTTPError:
                return NO
            planes.append(np.asarray(Image.open(BytesIO(png))))
    return PIXELS if _shows(np.stack(planes), written.frames) else NO


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an Orthanc that listens here alone."""
    program = external(*ORTHANC)
    folder = tmp_path_factory.mktemp("orthanc")
    port = free_port()
    settings = {
        **{
            "StorageDirectory": str(folder),
            "IndexDirectory": str(folder),
            "HttpPort": port,
            "DicomServerEnabled": False,
        },
        **{"RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": []},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with subprocess.Popen(
        [program, folder / "orthanc.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        url = f"http://127.0.0.1:{port}"
        for _ in range(150):
            try:
                urllib.request.urlopen(f"{url}/system").close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
        process.terminate()


READERS: dict[str, Callable[..., str]] = {
    "SimpleITK": by_simpleitk,
    "highdicom": by_highdicom,
    "dcm2niix": by_dcm2niix,
    "GDCM": by_gdcm,
    "DCMTK": by_dcmtk,
    "Orthanc": by_orthanc,
}
OBJECTS = (
    *("Secondary Capture, a file a slice", "Secondary Capture, multi-frame", "MR", "Parametric Map"),
    *("Resampled PET", "Registration", "Blending"),
)


def said() -> dict[tuple[str, str], str]:
    """The table of the page, by object and reader; what follows the first word of a cell is a remark."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    head = next(row for row in rows if row[0] == "object")
    return {
        (row[0], reader): re.split(r"[ ,¹²³⁴]", cell)[0]
        for row in rows
        if row[0] in OBJECTS
        for reader, cell in zip(head[1:], row[1:], strict=True)
    }


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", OBJECTS)
def test_the_table_says_what_is_found(
    name: str, reader: str, objects: dict[str, Written], request: pytest.FixtureRequest
) -> None:
    more = [request.getfixturevalue("orthanc")] if reader == "Orthanc" else []
    assert READERS[reader](objects[name], *more) == said()[name, reader]


def test_the_table_is_whole() -> None:
    assert set(said()) == {(name, reader) for name in OBJECTS for reader in READERS}
