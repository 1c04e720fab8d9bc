"""The embedded sample: genuine series, a plausible and lopsided head, a misalignment that is truly known."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import external
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from medfuse.errors import OutputError
from medfuse.grid import Grid
from medfuse.sample import HeadScans, SampleFolders, Study, head_scans, organs, write_sample, write_series
from medfuse.sample.anatomy import render, tissue_at
from medfuse.sample.organs import LESIONS, Lesion, Tissue
from medfuse.volume import Modality, Unit, Volume

KINDS = [
    (Modality.CT, Unit.HU),
    (Modality.MR, Unit.ARBITRARY),
    (Modality.PT, Unit.SUV),
    (Modality.PT, Unit.BQML),
]


@pytest.fixture(scope="module")
def scans() -> HeadScans:
    return head_scans()


@pytest.fixture(scope="module")
def folders(scans, tmp_path_factory) -> SampleFolders:
    return write_sample(tmp_path_factory.mktemp("sample"), scans)


def errors_of(path: Path) -> list[str]:
    done = subprocess.run([external("dciodvfy"), path], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert any(line.endswith("Image") for line in lines), "the checker did not recognise the kind of image"
    return [line for line in lines if line.startswith("Error")]


def read_with_itk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    reader.SetOutputPixelType(sitk.sitkFloat64)
    return reader.Execute()


def assert_same_geometry(image: sitk.Image, grid: Grid) -> None:
    assert image.GetSize() == grid.shape[::-1]
    for k, j, i in np.ndindex(2, 2, 2):
        index = np.array((k, j, i)) * (np.array(grid.shape) - 1)
        point = image.TransformIndexToPhysicalPoint(index[::-1].tolist())
        np.testing.assert_allclose(point, grid.points_mm([index])[0], atol=1e-3)


def head_points(volume: Volume, head_from_lps: np.ndarray) -> np.ndarray:
    """Head coordinates of all voxels, (3, N)."""
    index = np.indices(volume.grid.shape, np.float32).reshape(3, -1)
    matrix = (head_from_lps @ volume.grid.lps_from_index).astype(np.float32)
    return matrix[:3, :3] @ index + matrix[:3, 3:]


def all_scans(scans: HeadScans) -> list[tuple[Volume, np.ndarray]]:
    """Each volume with the matrix from its world to the head."""
    return [(scans.ct, scans.head_from_pet), (scans.mr, scans.head_from_mr), (scans.pet, scans.head_from_pet)]


def near_lesion(lesion: Lesion, volume: Volume, head_from_lps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Head coordinates (3, N), shares of tissues and values of the voxels around a lesion."""
    points = head_points(volume, head_from_lps)
    near = np.linalg.norm(points - np.array(lesion.solid.center, np.float32)[:, None], axis=0) < 32
    points = points[:, near]
    return points, tissue_at(points, edge_mm=2), volume.array.ravel()[near]


def values_at(volume: Volume, points_mm: np.ndarray) -> np.ndarray:
    """Nearest voxels' values at LPS points, (N, 3)."""
    index = np.rint(volume.grid.index_of(points_mm)).astype(int)
    inside = ((index >= 0) & (index < volume.grid.shape)).all(axis=1)
    return volume.array[tuple(index[inside].T)]


# --- write_series


@pytest.fixture
def volume(oblique_volume, request) -> Volume:
    modality, unit = request.param
    return Volume(np.abs(oblique_volume.array) * 3.25 + 1, oblique_volume.grid, modality, unit)


@pytest.mark.parametrize("volume", KINDS, indirect=True)
def test_series_conforms(volume, tmp_path):
    for path in write_series(volume, tmp_path, description="A", number=1):
        assert errors_of(path) == []


@pytest.mark.parametrize("volume", KINDS, indirect=True)
def test_series_reads_back(volume, tmp_path):
    write_series(volume, tmp_path, description="A", number=1)
    image = read_with_itk(tmp_path)
    assert_same_geometry(image, volume.grid)
    read = sitk.GetArrayFromImage(image)
    if volume.modality is Modality.PT:
        half_step = volume.array.max(axis=(1, 2), keepdims=True) / 32767 * 0.501
        assert (np.abs(read - volume.array) <= half_step).all()
    else:
        np.testing.assert_array_equal(read, np.rint(volume.array))


@settings(max_examples=15, deadline=None)
@given(
    turn=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 7)] * 3),
    origin=st.tuples(*[st.floats(-2000, 2000)] * 3),
)
def test_series_lies_where_the_grid_says(turn, spacing, origin, tmp_path_factory):
    rotation = sitk.Euler3DTransform((0, 0, 0), *turn).GetMatrix()
    direction = np.reshape(rotation, (3, 3))[:, ::-1]
    grid = Grid.from_axes((2, 3, 4), origin, spacing, direction)
    mr = Volume(np.arange(24).reshape(2, 3, 4), grid, Modality.MR)
    folder = tmp_path_factory.mktemp("series")
    write_series(mr, folder, description="A", number=1)
    image = read_with_itk(folder)
    assert_same_geometry(image, grid)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), mr.array)


@pytest.mark.parametrize("volume", [(Modality.PT, Unit.SUV)], indirect=True)
def test_pet_slices_have_slopes_of_their_own(volume, tmp_path):
    sets = [pydicom.dcmread(path) for path in write_series(volume, tmp_path, description="A", number=1)]
    slopes = [float(ds.RescaleSlope) for ds in sets]
    assert len(set(slopes)) == len(slopes)
    assert all(np.abs(ds.pixel_array).max() == 32767 for ds in sets)


def test_an_empty_pet_slice_stays_empty(oblique_grid, tmp_path):
    pet = Volume(np.zeros(oblique_grid.shape), oblique_grid, Modality.PT, Unit.SUV)
    write_series(pet, tmp_path, description="A", number=1)
    assert not sitk.GetArrayFromImage(read_with_itk(tmp_path)).any()


def test_pet_header_says_when_and_how_much_was_injected(oblique_grid, tmp_path):
    ones = Volume(np.ones(oblique_grid.shape), oblique_grid, Modality.PT, Unit.BQML)
    study = Study(patient_weight_kg=64, injected_bq=2e8)
    ds = pydicom.dcmread(write_series(ones, tmp_path, description="A", number=1, study=study)[0])
    tracer = ds.RadiopharmaceuticalInformationSequence[0]
    started = datetime.strptime(ds.SeriesDate + ds.SeriesTime, "%Y%m%d%H%M%S")
    injected = datetime.strptime(tracer.RadiopharmaceuticalStartDateTime, "%Y%m%d%H%M%S")
    assert (started - injected).total_seconds() == 3600
    assert (ds.Units, ds.DecayCorrection) == ("BQML", "START")
    assert (tracer.RadionuclideTotalDose, ds.PatientWeight) == (2e8, 64)


def test_files_are_not_in_the_order_of_the_slices(oblique_volume, tmp_path):
    paths = write_series(oblique_volume, tmp_path, description="A", number=1)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    assert sorted(paths) not in (paths, paths[::-1])
    positions = [pydicom.dcmread(path).ImagePositionPatient for path in paths]
    along = oblique_volume.grid.direction[:, 0]
    assert (np.diff(np.array(positions, float) @ along) > 0).all()


def test_the_same_arguments_give_the_same_bytes(oblique_volume, tmp_path):
    for name, number in (("a", 1), ("b", 1), ("c", 2)):
        write_series(oblique_volume, tmp_path / name, description="A", number=number)
    a, b, c = (
        [path.read_bytes() for path in sorted(folder.iterdir())]
        for folder in (tmp_path / "a", tmp_path / "b", tmp_path / "c")
    )
    assert a == b
    assert not set(a) & set(c)


def test_series_of_one_study_share_it_and_the_frame_of_reference(oblique_volume, tmp_path):
    study = Study(patient_id="P", patient_name="A^B", study_instance_uid="1.2.3")
    first, second = (
        pydicom.dcmread(
            write_series(oblique_volume, tmp_path / str(n), description="A", number=n, study=study, position="FFP")[0]
        )
        for n in (1, 2)
    )
    for ds in (first, second):
        assert (ds.StudyInstanceUID, ds.PatientID, ds.PatientName) == ("1.2.3", "P", "A^B")
        assert ds.FrameOfReferenceUID == oblique_volume.grid.frame_of_reference
        assert ds.PatientPosition == "FFP"
    assert first.SeriesInstanceUID != second.SeriesInstanceUID


def test_without_a_frame_of_reference_each_series_has_its_own(tmp_path):
    grid = Grid((1, 2, 3), np.eye(4))
    mr = Volume(np.zeros((1, 2, 3)), grid, Modality.MR)
    frames = {
        pydicom.dcmread(write_series(mr, tmp_path, description="A", number=n)[0]).FrameOfReferenceUID for n in (1, 2)
    }
    assert len(frames) == 2


def test_series_refuses_what_no_scanner_writes(oblique_volume, oblique_grid, tmp_path):
    zeros = np.zeros(oblique_grid.shape)
    with pytest.raises(ValueError, match="grey CT, MR or PT volume, got FUSED"):
        write_series(Volume(zeros, oblique_grid, Modality.FUSED), tmp_path, description="A", number=1)
    with pytest.raises(ValueError, match="PET in SUV, BQML or COUNTS, got HU"):
        write_series(Volume(zeros, oblique_grid, Modality.PT, Unit.HU), tmp_path, description="A", number=1)
    with pytest.raises(ValueError, match="fit 16 bits, got 40000"):
        write_series(Volume(zeros + 4e4, oblique_grid, Modality.MR), tmp_path, description="A", number=1)
    with pytest.raises(ValueError, match="HFS, HFP, FFS or FFP, got HXS"):
        write_series(oblique_volume, tmp_path, description="A", number=1, position="HXS")
    assert list(tmp_path.iterdir()) == []


def test_series_reports_a_folder_that_cannot_be(oblique_volume, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match=r"expected to write 5 files, found that this is not possible: .*exists"):
        write_series(oblique_volume, tmp_path / "taken", description="A", number=1)


# --- the three scans


def test_sample_is_three_conformant_series_of_one_study(folders):
    sets = {}
    for name, folder in (("mr", folders.mr), ("ct", folders.ct), ("pet", folders.pet)):
        path = sorted(folder.iterdir())[0]
        assert errors_of(path) == []
        sets[name] = pydicom.dcmread(path, stop_before_pixels=True)
    assert len({ds.StudyInstanceUID for ds in sets.values()}) == 1
    assert len({ds.PatientID for ds in sets.values()}) == 1
    assert sets["pet"].FrameOfReferenceUID == sets["ct"].FrameOfReferenceUID != sets["mr"].FrameOfReferenceUID
    assert sets["pet"].Units == "GML"


def test_sample_reads_back(folders, scans):
    for volume, folder in ((scans.mr, folders.mr), (scans.ct, folders.ct), (scans.pet, folders.pet)):
        image = read_with_itk(folder)
        assert_same_geometry(image, volume.grid)
        step = volume.array.max() / 32767 * 0.501 if volume.modality is Modality.PT else 0
        np.testing.assert_allclose(sitk.GetArrayFromImage(image), volume.array, rtol=0, atol=step)


def test_grids_are_oblique_and_lopsided(scans):
    spacings = {volume.grid.spacing_mm for volume in (scans.mr, scans.ct, scans.pet)}
    assert len(spacings) == 3
    for volume in (scans.mr, scans.ct, scans.pet):
        assert len(set(volume.grid.shape)) == 3
        assert np.linalg.det(volume.grid.direction[:, ::-1]) == pytest.approx(1)
    slice_axis, row_axis, _ = scans.mr.grid.direction.T
    assert np.degrees(np.arccos(slice_axis[2])) == pytest.approx(10, abs=3)
    assert np.count_nonzero(np.abs(slice_axis) > 0.03) == np.count_nonzero(np.abs(row_axis) > 0.03) == 3


def test_scans_are_deterministic(scans):
    twin = head_scans()
    for one, other in ((scans.mr, twin.mr), (scans.ct, twin.ct), (scans.pet, twin.pet)):
        np.testing.assert_array_equal(one.array, other.array)
        assert one.grid.frame_of_reference == other.grid.frame_of_reference
    np.testing.assert_array_equal(scans.mr_from_pet, twin.mr_from_pet)


def test_tissues_look_as_they_do_in_a_hospital(scans):
    expected = {
        Tissue.AIR: ((-1010, -980), (0, 30), (0, 0.3)),
        Tissue.CSF: ((0, 20), (100, 230), (0, 3)),
        Tissue.GREY: ((33, 43), (430, 620), (5, 10)),
        Tissue.WHITE: ((22, 33), (640, 900), (1.5, 4)),
        Tissue.BONE: ((1100, 1350), (10, 120), (0, 1.5)),
        Tissue.FAT: ((-110, -60), (750, 1150), (0, 1.2)),
    }
    for column, (volume, head_from_lps) in enumerate(all_scans(scans)):
        pure = tissue_at(head_points(volume, head_from_lps)[:, ::11], edge_mm=4) > 0.999
        for tissue, ranges in expected.items():
            values = volume.array.ravel()[::11][pure[tissue]]
            assert values.size > 9
            assert ranges[column][0] < values.mean() < ranges[column][1], (tissue.name, volume.modality)


def test_head_lies_within_the_field_of_view(scans):
    """No border but the lower one cuts the head."""
    for volume, air in ((scans.mr, 120), (scans.ct, -700), (scans.pet, 0.25)):
        array = volume.array
        for border in (array[-1], array[:, -1], array[:, :, 0], array[:, :, -1]):
            assert np.mean(border > air) < 0.01


@pytest.mark.parametrize("lesion", LESIONS, ids=lambda lesion: lesion.tissue.name)
def test_lesion_shows_in_one_modality_only(scans, lesion):
    contrasts = {}
    for volume, head_from_lps in all_scans(scans):
        points, shares, values = near_lesion(lesion, volume, head_from_lps)
        within = shares[lesion.tissue] > 0.95
        center = points[:, within].mean(axis=1, keepdims=True)
        close = np.linalg.norm(points - center, axis=0) < 26
        around = close & (shares[Tissue.WHITE] > 0.98)
        contrasts[volume.modality] = values[within].mean() - np.median(values[around])
    shown = {Modality.CT: 25.0, Modality.MR: 150.0, Modality.PT: 5.0}
    for modality, contrast in contrasts.items():
        if modality is lesion.seen_by:
            assert abs(contrast) > shown[modality]
        else:
            assert abs(contrast) < 0.3 * shown[modality]


def test_hot_focus_lies_in_the_pet_where_the_anatomy_has_it(scans):
    focus = next(lesion for lesion in LESIONS if lesion.tissue is Tissue.FOCUS)
    points, shares, values = near_lesion(focus, scans.pet, scans.head_from_pet)
    share = shares[Tissue.FOCUS]
    truth = (points * share).sum(axis=1) / share.sum()
    weight = np.maximum(values - 9, 0)
    found = (points * weight).sum(axis=1) / weight.sum()
    np.testing.assert_allclose(found, truth, atol=0.7)


# --- the anatomy


def test_shares_of_tissues_sum_to_one():
    points = np.random.default_rng(3).uniform(-100, 100, (3, 4000))
    shares = tissue_at(points)
    assert shares.shape == (len(Tissue), 4000)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    assert shares.min() > -1e-6


def test_a_point_looks_the_same_whatever_it_is_sampled_with():
    points = np.random.default_rng(4).uniform(-90, 90, (3, 500))
    together = tissue_at(points)
    alone = np.hstack([tissue_at(points[:, [n]]) for n in range(0, 500, 25)])
    np.testing.assert_allclose(together[:, ::25], alone, atol=1e-4)


def test_every_tissue_is_there():
    points = np.stack(np.meshgrid(*[np.arange(-112, 113, 2.0)] * 3)).reshape(3, -1)
    shares = np.concatenate([tissue_at(part).max(axis=1, keepdims=True) for part in np.array_split(points, 20, 1)], 1)
    assert (shares.max(axis=1) > 0.9).all()


def test_a_lesion_is_transparent_to_a_scanner_that_does_not_list_it(monkeypatch):
    points = np.random.default_rng(5).uniform(-45, 45, (3, 20000))
    table = {tissue: float(tissue) for tissue in Tissue if tissue < Tissue.FOCUS}
    with_lesions = render(points, table)
    monkeypatch.setattr(organs, "LESIONS", ())
    np.testing.assert_array_equal(render(points, table), with_lesions)


def test_no_mirror_fits_the_head():
    """Left and right differ by far more than noise, wherever near the middle the mirror stands and however it leans."""
    rng = np.random.default_rng(6)
    points = rng.uniform((-60, -75, -40), (60, 75, 70), (6000, 3)).T
    values = {tissue: float(tissue in (Tissue.BONE, Tissue.WHITE)) for tissue in Tissue}
    here = render(points, values, edge_mm=4)[0]
    chance = np.abs(here - rng.permutation(here)).mean()
    misfits = []
    for lean in np.radians(np.arange(-4, 5, 2)):
        for offset in np.arange(-6, 7, 2):
            normal = np.array([np.cos(lean), np.sin(lean), 0])[:, None]
            mirrored = points - 2 * normal * (normal.T @ points - offset)
            misfits.append(np.abs(render(mirrored, values, edge_mm=4)[0] - here).mean() / chance)
    assert min(misfits) > 0.4


# --- the truth


def test_misalignment_is_what_it_says(scans):
    matrix = scans.mr_from_pet
    turn = np.degrees(np.arccos((np.trace(matrix[:3, :3]) - 1) / 2))
    assert turn == pytest.approx(8)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    middle = np.linalg.inv(scans.head_from_pet)[:3, 3]
    assert np.linalg.norm(matrix[:3, :3] @ middle + matrix[:3, 3] - middle) == pytest.approx(12)


def test_truth_brings_each_tissue_of_the_ct_to_the_same_in_the_mr(scans):
    points = scans.ct.grid.points_mm(np.argwhere(scans.ct.array > 900)[::50])
    moved = points @ scans.mr_from_pet[:3, :3].T + scans.mr_from_pet[:3, 3]
    assert np.mean(values_at(scans.mr, moved) < 300) > 0.85
    assert np.mean(values_at(scans.mr, points) < 300) < 0.75


@pytest.mark.parametrize("name", ["ct", "pet"])
def test_mutual_information_is_best_at_the_truth(scans, name):
    moving = getattr(scans, name)
    rng = np.random.default_rng(8)
    points = scans.mr.grid.points_mm(rng.uniform(0, np.array(scans.mr.grid.shape) - 1, (40000, 3)))
    middle = points.mean(axis=0)
    true = np.linalg.inv(scans.mr_from_pet)

    def values(volume: Volume, points: np.ndarray) -> np.ndarray:
        return map_coordinates(volume.array.astype(float), volume.grid.index_of(points).T, order=1, mode="nearest")

    def information(turn_deg=(0, 0, 0), shift_mm=(0, 0, 0)) -> float:
        nudged = Rotation.from_rotvec(turn_deg, degrees=True).apply(points - middle) + middle + shift_mm
        seen = values(moving, nudged @ true[:3, :3].T + true[:3, 3])
        joint = np.histogram2d(fixed, np.clip(seen, -200, 1500), bins=40)[0] / len(points)
        apart = joint.sum(axis=0) * joint.sum(axis=1)[:, None]
        return float((joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum())

    fixed = values(scans.mr, points)
    best = information()
    for axis in np.vstack([np.eye(3), -np.eye(3)]):
        assert information(shift_mm=3 * axis) < best
        assert information(turn_deg=3 * axis) < best


def test_what_rounding_leaves_of_a_zero_is_zero(oblique_volume, tmp_path):
    grid = Grid.from_axes((5, 7, 9), (-1e-17, 1e-12, 5), (3, 1.5, 1.25), np.eye(3)[:, ::-1] + 1e-17)
    path = write_series(replace(oblique_volume, grid=grid), tmp_path / "x", description="x", number=1)[0]
    ds = pydicom.dcmread(path)
    assert [float(value) for value in ds.ImagePositionPatient] == [0, 0, 5]
    assert all(len(str(value)) <= 16 for value in (*ds.ImagePositionPatient, *ds.ImageOrientationPatient))
