"""The whole path: where the result lies, what it says of itself, how it is written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from agreement import assert_agrees_with_nifti, assert_grid_is_of_image, sitk_series
from phantoms import phantom
from programs import dcm2niix
from pydicom import Dataset, dcmread
from verdicts import REASON, SHIFT, registration

from medfuse import alignment, pipeline
from medfuse.align import Transform, resample, write_transform
from medfuse.alignment import Alignment, ride_along
from medfuse.benchmark.measuring import to_pictures
from medfuse.benchmark.volumes import shown_together
from medfuse.cli import app
from medfuse.color import Window
from medfuse.errors import (
    GeometryError,
    MedfuseWarning,
    OutputError,
    PatientMismatch,
    RegistrationError,
    UnsupportedImage,
)
from medfuse.fusion import Engine, display_of
from medfuse.fusion.weights import SHIPPED
from medfuse.grid import Grid
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.files import read, write
from medfuse.metrics import color_loss
from medfuse.pipeline import check_fused_target, check_pair, check_words, fuse, resampled, write_fused
from medfuse.sample.series import write_series
from medfuse.stages import OTHER, profiled
from medfuse.volume import Modality, Source, Unit, Volume

FRAME = "1.2.826.0.1.999.1"


@pytest.fixture(scope="module")
def rule() -> Engine:
    """A warm engine with a rule that can be checked by hand."""
    return Engine("maximum", device="cpu")


@pytest.fixture
def mr() -> Volume:
    return phantom(Modality.MR, (12, 18, 20), FRAME)


@pytest.fixture
def pet() -> Volume:
    return phantom(Modality.PT, (9, 10, 12), FRAME)


@pytest.fixture
def ct() -> Volume:
    return phantom(Modality.CT, (12, 15, 16), FRAME)


def black(volume: Volume) -> Volume:
    return replace(volume, array=np.zeros_like(volume.array))


# A service


def test_a_warm_engine_fuses_the_next_pair_without_loading_anything(mr: Volume, pet: Volume, tmp_path: Path) -> None:
    write_series(mr, tmp_path / "mr", description="mr", number=1)
    write_series(pet, tmp_path / "pet", description="pet", number=2)
    code = """
import sys
import medfuse

loaded = []
sys.addaudithook(lambda event, args: loaded.append(args[0]) if event in ("open", "import", "exec") else None)
engine = medfuse.Engine("dilran", device="cpu")
mr, pet = medfuse.read("mr"), medfuse.read("pet")
loaded.clear()
first = medfuse.fuse(mr, pet, engine=engine)
assert loaded
loaded.clear()
second = medfuse.fuse(mr, pet, engine=engine)
assert loaded == [], loaded
assert (first.array == second.array).all()
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr


def test_a_profile_says_where_the_time_of_the_library_went(tmp_path: Path, mr: Volume, pet: Volume) -> None:
    write_series(mr, tmp_path / "mr", description="mr", number=1)
    write_series(pet, tmp_path / "pet", description="pet", number=2)
    start = time.perf_counter()
    with profiled() as profile:
        fused = fuse(tmp_path / "mr", tmp_path / "pet", method="maximum", register="none", device="cpu")
        write_fused(fused, tmp_path / "out")
    assert {"start-up", "read", "window", "resample", "write", OTHER} <= set(profile.seconds)
    assert "register" not in profile.seconds
    assert min(profile.seconds.values()) >= 0
    assert 0 < profile.total <= time.perf_counter() - start


# Where the result lies, and what is in it


def test_the_functional_scan_is_resampled_once_as_itk_would(
    mr: Volume, pet: Volume, rule: Engine, tmp_path: Path
) -> None:
    """With a black structural scan and a grey palette, the result is the resampled functional scan itself."""
    fused = fuse(black(mr), pet, transform=SHIFT, palette="GREY", window="0:16", engine=rule)
    write_transform(SHIFT, tmp_path / "shift.tfm")
    write(mr, tmp_path / "mr.nii")
    write(pet, tmp_path / "pet.nii")
    mr_image, pet_image = (sitk.ReadImage(tmp_path / name) for name in ("mr.nii", "pet.nii"))
    expected = sitk.Resample(pet_image, mr_image, sitk.ReadTransform(tmp_path / "shift.tfm"), sitk.sitkLinear, 0.0)
    np.testing.assert_allclose(fused.array, sitk.GetArrayFromImage(expected) / 16, atol=1e-5)
    assert fused.array.max() > 0.4


@pytest.mark.parametrize("place", ["structural", "functional"])
def test_the_scan_whose_grid_it_is_is_not_interpolated(mr: Volume, ct: Volume, rule: Engine, place: str) -> None:
    pair = (mr, black(replace(ct, array=ct.array * 0 - 1000))) if place == "structural" else (black(mr), ct)
    windows = {"window": "0:300", "structural_window": "0:1000"}
    fused = fuse(*pair, grid=place, transform=SHIFT, engine=rule, **windows)
    own = mr.array / 1000 if place == "structural" else ct.array / 300
    np.testing.assert_allclose(fused.array, np.clip(own, 0, 1), atol=1e-6)
    assert fused.grid is (mr if place == "structural" else ct).grid


def test_on_the_functional_grid_the_structural_scan_comes_back_along_the_inverse(
    mr: Volume, pet: Volume, rule: Engine
) -> None:
    """A point of the structural world lies at `transform` of it in the functional one."""
    whole_voxels = Transform(np.array([[1, 0, 0, 8.0], [0, 1, 0, -9.0], [0, 0, 1, 4.0], [0, 0, 0, 1.0]]))
    spot = np.zeros(mr.grid.shape, np.float32)
    spot[4:7, 9:12, 6:9] = 1
    fused = fuse(
        replace(mr, array=spot),
        black(pet),
        grid="functional",
        transform=whole_voxels,
        palette="GREY",
        structural_window="0:1",
        engine=rule,
    )
    where = np.average(np.argwhere(fused.array > 0), axis=0, weights=fused.array[fused.array > 0])
    center = mr.grid.points_mm([(5, 10, 7)])
    np.testing.assert_allclose(fused.grid.points_mm([where]), whole_voxels.apply(center), atol=1.5)


def test_a_voxel_size_makes_cubes_over_the_structural_block(mr: Volume, pet: Volume, rule: Engine) -> None:
    for grid in (2, "2", 2.0):
        fused = fuse(mr, pet, grid=grid, engine=rule)
        assert fused.grid.shape == (18, 23, 24)
        assert fused.grid.spacing_mm == pytest.approx((2, 2, 2))
        assert fused.grid.frame_of_reference == FRAME


def test_any_grid_may_be_given(mr: Volume, pet: Volume, rule: Engine) -> None:
    grid = Grid.from_axes((4, 6, 5), (25, -5, 40), (3, 2, 2.5), np.eye(3)[:, ::-1], FRAME)
    fused = fuse(mr, pet, grid=grid, engine=rule)
    assert fused.grid is grid
    assert fused.history[-1].parameters["grid"] == "given"


@pytest.mark.parametrize("grid", ["fine", "0", "-1", "nan", "inf", 0, -2.0])
def test_a_grid_that_is_none(mr: Volume, pet: Volume, rule: Engine, grid: str | float) -> None:
    with pytest.raises(ValueError, match="structural, functional or a voxel size in mm"):
        fuse(mr, pet, grid=grid, engine=rule)


def test_a_grid_too_fine_for_any_memory(mr: Volume, pet: Volume, rule: Engine) -> None:
    with pytest.raises(GeometryError, match=r"found that 0\.001 mm makes about 8e\+13.*larger voxel size"):
        fuse(mr, pet, grid=0.001, engine=rule)


def test_too_small_a_memory_is_refused_before_the_registration(
    mr: Volume, pet: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfuse.pipeline.align", pytest.fail)
    with pytest.raises(ValueError, match=r"expected at least \d+ MiB of memory for slices of .*, got 1"):
        fuse(mr, pet, method="maximum", device="cpu", grid=1.0, memory_mib=1)


def test_uptake_is_colour_and_ct_beside_mr_is_grey(mr: Volume, pet: Volume, ct: Volume, rule: Engine) -> None:
    color, grey = fuse(mr, pet, engine=rule), fuse(mr, ct, engine=rule)
    assert (color.array.dtype, color.unit, color.array.shape) == (np.uint8, Unit.RGB, (12, 18, 20, 3))
    assert (grey.array.dtype, grey.unit, grey.array.shape) == (np.float32, Unit.ARBITRARY, (12, 18, 20))
    assert 0 <= grey.array.min() < grey.array.max() <= 1
    assert color.modality is grey.modality is Modality.FUSED
    assert np.ptp(color.array.astype(int), axis=-1).max() > 100


def test_a_colour_scan_is_shown_as_it_is(mr: Volume, rule: Engine) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (*mr.grid.shape, 3), dtype=np.uint8)
    functional = Volume(rgb, mr.grid, Modality.OTHER, Unit.RGB)
    fused = fuse(black(mr), functional, window="0:10", palette="PET", engine=rule)
    assert np.abs(fused.array.astype(int) - rgb).max() <= 1
    assert fused.history[-1].parameters["functional"]["window"] == "as it is"


def test_the_chroma_is_the_functional_scans(mr: Volume, rule: Engine) -> None:
    """A constant hot uptake: where the structural scan is darker than the uptake, the colour is the palette's."""
    pet = replace(phantom(Modality.PT, mr.grid.shape, FRAME), array=np.full(mr.grid.shape, 5, np.float32))
    fused = fuse(black(mr), pet, window="0:10", palette="HOT_METAL_BLUE", engine=rule)
    from pydicom.pixels import apply_color_lut

    expected = apply_color_lut(np.array([[128]], np.uint8), palette="1.2.840.10008.1.5.3")[0, 0]
    assert np.abs(fused.array.astype(int) - expected).max() <= 1


def test_a_ct_window_is_for_scans_in_hu_only(mr: Volume, ct: Volume, pet: Volume, rule: Engine) -> None:
    assert fuse(mr, ct, window="bone", engine=rule).history[-1].parameters["functional"]["window"] == "-500:1500"
    for words in ({"window": "brain"}, {"structural_window": "lung"}):
        with pytest.raises(
            UnsupportedImage, match=r"expected a CT in HU for the window .* found (PT in SUV|MR in ARB)"
        ):
            fuse(mr, pet, engine=rule, **words)


def cut(volume: Volume) -> Volume:
    """A block of a volume, away from the middle."""
    return replace(volume, array=volume.array[:4, :5, :6], grid=replace(volume.grid, shape=(4, 5, 6)))


def test_where_one_scan_ends_the_other_stands_alone(mr: Volume, ct: Volume, pet: Volume, rule: Engine) -> None:
    """Whatever the window: air is grey in a lung's, and no uptake has a colour in one that begins below 0."""

    def outside(block: Volume, fused: Volume) -> np.ndarray:
        points = fused.grid.points_mm(np.argwhere(np.ones(fused.grid.shape)))
        found: np.ndarray = ~block.grid.contains(points).reshape(fused.grid.shape)
        assert 0.5 < found.mean() < 1
        return found

    fused = fuse(mr, cut(ct), window="lung", engine=rule)
    alone, _ = display_of(mr, functional=False).show(mr.array)
    np.testing.assert_array_equal(fused.array[outside(cut(ct), fused)], alone[outside(cut(ct), fused)])

    fused = fuse(ct, cut(pet), window="-1:5", engine=rule)
    alone, _ = display_of(ct, functional=False).show(ct.array)
    grey = np.rint(alone * 255)[outside(cut(pet), fused)]
    assert np.abs(fused.array[outside(cut(pet), fused)] - grey[:, None]).max() <= 1

    fused = fuse(cut(ct), pet, grid="functional", structural_window="lung", engine=rule)
    nothing = fuse(black(cut(ct)), pet, grid="functional", structural_window="0:1", engine=rule)
    np.testing.assert_array_equal(fused.array[outside(cut(ct), fused)], nothing.array[outside(cut(ct), fused)])


def test_windows_may_be_text_or_objects(mr: Volume, pet: Volume, rule: Engine) -> None:
    text = fuse(mr, pet, window="1:4", structural_window="450,900", engine=rule)
    same = fuse(mr, pet, window=Window(1, 4), structural_window=Window(0, 900), engine=rule)
    assert np.array_equal(text.array, same.array)
    assert text.history[-1].parameters["functional"]["window"] == "1:4"
    for wrong in ("narrow", (0, 10)):
        with pytest.raises((ValueError, TypeError), match="expected a window"):
            fuse(mr, pet, window=wrong, engine=rule)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"method": "magic"}, "method of duet"),
        ({"strategy": "magic"}, "expected no strategy for duet"),
        ({"register": "magic"}, "register of"),
        ({"palette": "magic"}, "palette of"),
        ({"device": "abacus"}, "device of"),
    ],
)
def test_unknown_words_are_programming_errors(mr: Volume, pet: Volume, words: dict[str, str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fuse(mr, pet, **{"device": "cpu", **words})


def test_the_history_says_everything_and_is_json(mr: Volume, pet: Volume) -> None:
    steps = fuse(mr, pet, device="cpu", method="dilran", strategy="average").history
    assert [step.name for step in steps] == ["align", "fuse"]
    said = json.loads(json.dumps(steps[1].parameters))
    assert (said["method"], said["strategy"], said["grid"]) == ("dilran", "average", "structural")
    assert len(said["weights_sha256"]) == 64
    assert said["structural"]["shape"] == [12, 18, 20]
    assert (said["functional"]["unit"], said["functional"]["palette"]) == ("SUV", "HOT_IRON")
    assert "not for diagnostic use" in said["meaning"]


def test_the_history_names_the_weights_in_use(mr: Volume, ct: Volume, pet: Volume) -> None:
    for structural, functional, name in ((mr, pet, "duet-pet"), (mr, ct, "duet-ct"), (ct, pet, "duet")):
        assert fuse(structural, functional, device="cpu").history[1].parameters["weights_sha256"] == SHIPPED[name]


def test_uptake_on_white_is_told_and_a_wider_window_shows_it(mr: Volume, pet: Volume, rule: Engine) -> None:
    fat = replace(mr, array=np.where(mr.array > 0, np.float32(700), np.float32(0)))
    faint = replace(pet, array=np.where(pet.array > 0, np.float32(4), np.float32(0)))
    (told,) = fuse(fat, faint, structural_window="0:600", engine=rule).history[1].parameters["warnings"]
    assert re.match(r"in [1-9]\d* of 12 slices uptake that has a colour lies on white", told)
    for words in ({"structural_window": "0:1200"}, {"structural_window": "0:600", "palette": "GREY"}):
        assert "warnings" not in fuse(fat, faint, engine=rule, **words).history[1].parameters


def test_uptake_in_bone_keeps_two_thirds_of_its_colour(ct: Volume, pet: Volume, rule: Engine) -> None:
    bone = replace(ct, array=np.full_like(ct.array, 700))
    faint = replace(pet, array=np.full_like(pet.array, 10 / 3))  # (170, 0, 0) in HOT_IRON
    fused = fuse(bone, faint, engine=rule)
    rgb = fused.array
    np.testing.assert_allclose(rgb, np.broadcast_to((255, 255 - 2 / 3 * 170, 255 - 2 / 3 * 170), rgb.shape), atol=1)
    assert fused.history[1].parameters["least_color"] == 0.667
    assert (fuse(bone, black(pet), engine=rule).array == 255).all()
    unknown = replace(bone, modality=Modality.OTHER)
    for white, level in ((fuse(bone, faint, palette="GREY", engine=rule), 1), (fuse(unknown, faint, engine=rule), 255)):
        assert (white.array == level).all()
        assert "least_color" not in white.history[1].parameters


def test_of_real_scans_uptake_in_bone_keeps_its_colour(shared: Path, rule: Engine) -> None:
    patient = shared / "ibsi-sts" / "dicom" / "STS_002"
    ct, pet = (read(patient / scan) for scan in ("CT", "PET"))
    fused = fuse(ct, pet, engine=rule)
    assert "warnings" not in fused.history[1].parameters
    (grey, _), (luminance, chroma) = shown_together(ct, pet)
    tracer = to_pictures(luminance, chroma)
    now, before = torch.from_numpy(fused.array.copy()).movedim(-1, 1), to_pictures(np.maximum(grey, luminance), chroma)
    assert color_loss(before, tracer).max() > 0.3
    assert color_loss(now, tracer).max() < 0.01


def test_progress_is_told(mr: Volume, pet: Volume, rule: Engine) -> None:
    calls: list[tuple[str, int, int]] = []
    fuse(mr, pet, engine=rule, progress=lambda *call: calls.append(call))
    assert calls == [("fusing", done, 12) for done in range(1, 13)]


def test_paths_are_read(mr: Volume, pet: Volume, rule: Engine, tmp_path: Path) -> None:
    write_series(mr, tmp_path / "mr", description="MR", number=1)
    write_series(pet, tmp_path / "pet", description="PET", number=2)
    from_paths = fuse(tmp_path / "mr", str(tmp_path / "pet"), engine=rule)
    from_volumes = fuse(read(tmp_path / "mr"), read(tmp_path / "pet"), engine=rule)
    assert np.array_equal(from_paths.array, from_volumes.array)


@pytest.mark.parametrize(("grid", "first"), [("structural", "MR"), ("functional", "PT"), (2.0, "MR")])
def test_the_sources_of_both_go_with_the_result(
    mr: Volume, pet: Volume, rule: Engine, tmp_path: Path, grid: str | float, first: str
) -> None:
    write_series(mr, tmp_path / "mr", description="MR", number=1)
    write_series(pet, tmp_path / "pet", description="PET", number=2)
    source = fuse(tmp_path / "mr", tmp_path / "pet", grid=grid, engine=rule).source
    assert source.header is not None
    assert source.header.Modality == first
    assert {one.header.Modality for one in (source, *source.also) if one.header} == {"MR", "PT"}
    assert len(source.also) == 1


def test_a_grid_that_both_share_is_the_structural_one(mr: Volume, pet: Volume, rule: Engine, tmp_path: Path) -> None:
    write_series(mr, tmp_path / "mr", description="MR", number=1)
    write_series(pet, tmp_path / "pet", description="PET", number=2)
    mr, shift = read(tmp_path / "mr"), np.eye(4)
    shift[0, 3] = 9
    pet = resample(read(tmp_path / "pet"), mr.grid)
    assert pet.grid is mr.grid
    equal = replace(pet, grid=replace(mr.grid))
    for grid in ("structural", "functional", mr.grid):
        shared, apart = (fuse(mr, one, grid=grid, transform=Transform(shift), engine=rule) for one in (pet, equal))
        assert shared.source.header is not None
        assert shared.source.header.Modality == ("PT" if grid == "functional" else "MR")
        np.testing.assert_array_equal(shared.array, apart.array)
        assert shared.history == apart.history


@pytest.mark.parametrize("is_dicom", ["structural", "functional"])
def test_on_the_functional_grid_the_one_header_is_kept(
    mr: Volume, pet: Volume, rule: Engine, tmp_path: Path, is_dicom: str
) -> None:
    of_dicom = mr if is_dicom == "structural" else pet
    write_series(of_dicom, tmp_path / "dicom", description="of a patient", number=1)
    known = read(tmp_path / "dicom")
    pair = (known, pet) if is_dicom == "structural" else (mr, known)
    fused = fuse(*pair, grid="functional", register="none", engine=rule)
    assert fused.grid is pair[1].grid
    header = dcmread(write_fused(fused, tmp_path / "out")[0])
    assert known.source.header is not None
    for keyword in ("PatientID", "StudyInstanceUID"):
        assert header[keyword].value == known.source.header[keyword].value
    assert header.SeriesNumber == 1001
    assert header.SeriesDescription == "medfuse PT+MR maximum - not for diagnostic use"


def test_the_words_of_registering_are_passed_on(
    mr: Volume, pet: Volume, rule: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def run(_fixed: Volume, _moving: Volume, kind: str, **options: object) -> object:
        asked.append({"kind": kind, **options})
        return registration("failed", kind)

    monkeypatch.setattr(alignment, "run_registration", run)
    with pytest.raises(RegistrationError, match="affine one failed"):
        fuse(mr, pet, register="affine", engine=rule, threads=2)
    with pytest.warns(MedfuseWarning, match="affine registration, failed"):
        fused = fuse(mr, pet, register="affine", engine=rule, accept_untrusted=True)
    assert asked == [{"kind": "affine", "progress": None, "threads": threads} for threads in (2, None)]
    assert fused.history[0].parameters["moving_from_fixed"] == SHIFT.moving_from_fixed.tolist()


@pytest.mark.parametrize(
    ("trust", "series", "text"),
    [
        (
            "trusted",
            "medfuse PT+MR maximum - not for diagnostic use",
            "rigid registration, trusted (agreement 0.4 mm);",
        ),
        ("doubtful", "medfuse PT+MR maximum (doubtful match) - not for diagnostic use", f"doubtful ({REASON});"),
        ("failed", "medfuse PT+MR maximum (failed match) - not for diagnostic use", f"failed ({REASON});"),
    ],
)
def test_the_verdict_goes_into_every_file(
    mr: Volume, pet: Volume, rule: Engine, tmp_path: Path, trust: str, series: str, text: str
) -> None:
    write_series(mr, tmp_path / "mr", description="MR", number=1)
    found = registration(trust)
    how = Alignment(found.transform, alignment.told(found), found)
    write_fused(fuse(tmp_path / "mr", pet, transform=how, engine=rule), tmp_path / "out", "both")
    image = dcmread(tmp_path / "out" / "dicom" / "fused-0001.dcm")
    assert image.SeriesDescription == series
    assert f"aligned by: {how.reason};" in image.DerivationDescription
    assert text in image.DerivationDescription
    assert len(image.DerivationDescription) <= 1024
    notes = json.loads((tmp_path / "out" / "fused.json").read_text())
    assert notes["Alignment"] == how.reason
    said = notes["History"][0]["parameters"]["registration"]
    assert (said["trust"], said["reasons"]) == (trust, list(found.verdict.reasons))
    assert said["uncertainty_mm"] == 0.4


@pytest.mark.parametrize("trust", ["trusted", "doubtful"])
def test_the_verdict_goes_with_what_was_resampled_too(
    mr: Volume, pet: Volume, rule: Engine, tmp_path: Path, trust: str
) -> None:
    write_series(mr, tmp_path / "mr", description="MR", number=1)
    found = registration(trust)
    how = Alignment(found.transform, alignment.told(found), found)
    fused = fuse(tmp_path / "mr", pet, transform=how, engine=rule)
    write_fused(fused, tmp_path / "out", "both", resampled=resampled(pet, fused, how))
    image = dcmread(tmp_path / "out" / "dicom" / "resampled" / "resampled-0001.dcm")
    assert ("(doubtful match)" in image.SeriesDescription) == (trust == "doubtful")
    assert f"aligned by: {how.reason};" in image.DerivationDescription
    notes = json.loads((tmp_path / "out" / "resampled.json").read_text())
    assert [step["name"] for step in notes["History"]] == ["align", "resample"]
    assert notes["History"][0]["parameters"]["registration"]["trust"] == trust


def test_a_header_that_a_doubtful_registration_yields_to_is_no_doubtful_match(
    mr: Volume, pet: Volume, rule: Engine, tmp_path: Path
) -> None:
    write_series(mr, tmp_path / "mr", description="MR", number=1)
    how = Alignment(Transform.identity(), "header, for the registration is doubtful", registration("doubtful"))
    write_fused(fuse(tmp_path / "mr", pet, transform=how, engine=rule), tmp_path / "out", "dicom")
    image = dcmread(tmp_path / "out" / "fused-0001.dcm")
    assert image.SeriesDescription == "medfuse PT+MR maximum - not for diagnostic use"
    assert "aligned by: header, for the registration is doubtful;" in image.DerivationDescription


def test_what_rides_along_is_resampled_once_through_the_same_transform(
    mr: Volume, ct: Volume, pet: Volume, rule: Engine
) -> None:
    found = registration("trusted")
    how = Alignment(found.transform, "rigid registration", found)
    rode = fuse(black(mr), pet, transform=ride_along(how, ct, pet), engine=rule, palette="GREY", window="0:16")
    alone = fuse(black(mr), pet, transform=SHIFT, engine=rule, palette="GREY", window="0:16")
    assert np.array_equal(rode.array, alone.array)
    assert rode.history[0].parameters["reason"] == "with the CT, one frame of reference: rigid registration"


# What is refused


def patient(**attributes: str) -> Source:
    header = Dataset()
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    return Source("dicom", header)


SAME = {"PatientID": "A1", "PatientName": "DOE^JANE", "PatientBirthDate": "19700101"}


@pytest.mark.parametrize(
    ("structural", "functional", "differ"),
    [
        (SAME, SAME, False),
        (SAME, {**SAME, "PatientID": "B2"}, True),
        (SAME, {**SAME, "PatientID": " a1 "}, False),
        (SAME, {**SAME, "PatientName": "DOE^J"}, False),
        (SAME, {"PatientName": "DOE^JOHN", "PatientBirthDate": "19700101"}, True),
        (SAME, {"PatientName": "DOE^JANE", "PatientBirthDate": "19710101"}, True),
        (SAME, {"PatientName": "Doe^Jane", "PatientBirthDate": "19700101"}, False),
        (SAME, {"PatientName": "DOE^JOHN"}, False),
        (SAME, {}, False),
        (SAME, None, False),
        (None, SAME, False),
    ],
)
def test_two_patients_are_told_apart_by_what_both_headers_state(
    mr: Volume, pet: Volume, structural: dict[str, str] | None, functional: dict[str, str] | None, differ: bool
) -> None:
    one = mr if structural is None else replace(mr, source=patient(**structural))
    other = pet if functional is None else replace(pet, source=patient(**functional))
    if differ:
        with pytest.raises(PatientMismatch, match=r"two patient identities.*--any-patient") as found:
            check_pair(one, other)
        assert "DOE" not in str(found.value)
    else:
        check_pair(one, other)
    check_pair(one, other, any_patient=True)


def test_the_structural_scan_must_be_grey_and_show_structure(mr: Volume, pet: Volume) -> None:
    rgb = Volume(np.zeros((*mr.grid.shape, 3), np.uint8), mr.grid, Modality.OTHER, Unit.RGB)
    for structural, found in ((pet, "a PT volume"), (replace(pet, modality=Modality.NM), "a NM"), (rgb, "a colour")):
        with pytest.raises(UnsupportedImage, match=f"found {found}.*MR or CT first"):
            fuse(structural, pet)


def test_words_are_checked_before_anything_is_read() -> None:
    check_words(register="auto", grid="2.5", palette="PET")
    for wrong in ({"register": "x"}, {"grid": "x"}, {"palette": "x"}):
        with pytest.raises(ValueError, match="got 'x'"):
            check_words(**{"register": "auto", "grid": "structural", "palette": "PET", **wrong})


# How it is written


@pytest.fixture
def from_dicom(mr: Volume, pet: Volume, rule: Engine, tmp_path: Path) -> Volume:
    write_series(mr, tmp_path / "mr", description="MR", number=1)
    write_series(pet, tmp_path / "pet", description="PET", number=2)
    return fuse(tmp_path / "mr", tmp_path / "pet", engine=rule)


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


SLICES = {f"fused-{n:04d}.dcm" for n in range(1, 13)}
NIFTI = {"fused.nii.gz", "fused.json"}
#: Two scans of one frame of reference have no registration beside them.
DICOM = SLICES | {"blending.dcm"}


def test_the_format_is_as_the_structural_scan_came(
    from_dicom: Volume, mr: Volume, pet: Volume, rule: Engine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert set(write_fused(from_dicom, out / "a")) == {out / "a" / name for name in names_below(out / "a")}
    assert names_below(out / "a") == DICOM
    write_fused(fuse(mr, pet, engine=rule), out / "b")
    assert names_below(out / "b") == NIFTI


def test_both_formats_hold_the_same(from_dicom: Volume, tmp_path: Path) -> None:
    written = write_fused(from_dicom, tmp_path / "out", "both")
    assert {path.relative_to(tmp_path / "out").as_posix() for path in written} == names_below(tmp_path / "out")
    assert names_below(tmp_path / "out") == NIFTI | {f"dicom/{name}" for name in DICOM}
    for back in (read(tmp_path / "out" / "dicom"), read(tmp_path / "out" / "fused.nii.gz")):
        assert np.array_equal(back.array, from_dicom.array)
        assert back.grid.matches(from_dicom.grid)


@pytest.mark.parametrize(
    ("format", "names"),
    [("dicom", DICOM), ("nifti", NIFTI), ("both", NIFTI | {f"dicom/{name}" for name in DICOM})],
)
def test_what_rode_along_goes_beside(from_dicom: Volume, tmp_path: Path, format: str, names: set[str]) -> None:
    written = write_fused(from_dicom, tmp_path / "out", format, also=from_dicom)
    assert {path.relative_to(tmp_path / "out").as_posix() for path in written} == names_below(tmp_path / "out")
    assert names_below(tmp_path / "out") == names | {f"also/{name}" for name in names}
    numbers = {dcmread(path).SeriesNumber for path in written if path.name.startswith("fused-")}
    assert numbers == (set() if format == "nifti" else {1001, 2001})
    write_fused(from_dicom, tmp_path / "out", format, also=from_dicom, overwrite=True)


@pytest.mark.parametrize("stable", [True, False])
def test_all_of_a_run_is_one_study_in_one_frame_also_where_no_scan_states_one(
    mr: Volume, pet: Volume, rule: Engine, tmp_path: Path, stable: bool
) -> None:
    mr, pet = (replace(one, grid=replace(one.grid, frame_of_reference=None)) for one in (mr, pet))
    first, second = (fuse(mr, pet, register="none", engine=rule, palette=palette) for palette in ("HOT_IRON", "PET"))
    options = DicomOptions(stable_uids=stable)
    written = write_fused(
        first, tmp_path / "out", "dicom", also=second, resampled=resample(pet, first.grid), dicom=options
    )
    headers = [dcmread(path, stop_before_pixels=True) for path in written]
    assert len({(one.StudyInstanceUID, one.FrameOfReferenceUID) for one in headers}) == 1
    assert len({one.SeriesInstanceUID for one in headers}) == 3
    assert len({one.SOPInstanceUID for one in headers}) == len(headers)


def test_a_colour_scan_that_is_to_be_resampled_is_refused_before_the_work(
    mr: Volume, rule: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(mr, tmp_path / "mr.nii")
    write(
        fuse(mr, replace(mr, modality=Modality.PT, unit=Unit.SUV), register="none", engine=rule), tmp_path / "rgb.nii"
    )
    monkeypatch.setattr(pipeline, "fuse", pytest.fail)
    words = ("--resampled", "--functional-modality", "pet", "--json", "--any-patient")
    with pytest.raises(UnsupportedImage, match=r"found a colour volume. Leave --resampled away"):
        app(["fuse", str(tmp_path / "mr.nii"), str(tmp_path / "rgb.nii"), "-o", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_two_results_do_not_fit_into_a_file(from_dicom: Volume, tmp_path: Path) -> None:
    for check in (
        lambda: write_fused(from_dicom, tmp_path / "x.nii", also=from_dicom),
        lambda: check_fused_target(tmp_path / "x.nii", several=True),
    ):
        with pytest.raises(OutputError, match=r"folder for two series, found the file name x\.nii"):
            check()
    assert not (tmp_path / "x.nii").exists()


def test_a_file_name_says_the_format(from_dicom: Volume, tmp_path: Path) -> None:
    for name, format in (("x.nii.gz", None), ("y.nrrd", None), ("z.nii", "nifti")):
        assert write_fused(from_dicom, tmp_path / name, format)[0] == tmp_path / name
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize(
    ("name", "format", "match"),
    [
        ("x.nii.gz", "both", "folder for both"),
        ("x.nii.gz", "dicom", "dicom name"),
        ("x.nrrd", "nifti", "nifti name"),
        ("x.mhd", None, "dicom name"),
        ("x.mhd", "dicom", "dicom name"),
        ("file/x", None, "could not write x"),
        ("file/x/y", "both", "could not write y"),
        ("file", "dicom", "file exists"),
        ("mr", "dicom", "is or holds an input"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_refused_before_and_after(
    from_dicom: Volume, tmp_path: Path, name: str, format: str | None, match: str
) -> None:
    (tmp_path / "file").write_text("x")
    before = names_below(tmp_path)
    for check in (check_fused_target, lambda *target, **options: write_fused(from_dicom, *target, **options)):
        with pytest.raises(OutputError, match=match):
            check(tmp_path / name, format, inputs=(tmp_path / "mr",))
    assert names_below(tmp_path) == before


def test_an_unknown_format(from_dicom: Volume, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format of dicom, nifti, both, got 'png'"):
        write_fused(from_dicom, tmp_path / "out", "png")


def test_all_or_nothing(from_dicom: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    before = names_below(tmp_path)
    monkeypatch.setattr("medfuse.io.dicom_write.write_dicom", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_fused(from_dicom, tmp_path / "deep" / "out", "both")
    assert names_below(tmp_path) == before
    assert not (tmp_path / "deep").exists()


# Real scans


def assert_same_picture(one: Volume, other: Volume, most: int = 4) -> None:
    """Alike to 1/255, but where rounding chose the next of a palette's 256 colours: those are up to 4/255 apart."""
    levels = 1 if one.is_color else 255
    difference = np.abs(one.array.astype(float) - other.array.astype(float)) * levels
    assert difference.max() <= most
    assert (difference > 1.001).mean() < 1e-4


def assert_lies_as(structural: Path, out: Path, tmp_path: Path) -> None:
    """What was written, DICOM and NIfTI, has the geometry of the structural series, to other programs' eyes."""
    slices, nifti, scan = sitk_series(out / "dicom"), sitk.ReadImage(out / "fused.nii.gz"), sitk_series(structural)
    for image in (slices, nifti):
        assert image.GetSize() == scan.GetSize()
        for what in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(image, what)(), getattr(scan, what)(), atol=1e-3)
    (of_scan,), (of_fused,) = dcm2niix(structural, tmp_path / "scan"), dcm2niix(out / "dicom", tmp_path / "fused")
    np.testing.assert_allclose(nib.load(of_scan).affine, nib.load(of_fused).affine, atol=1e-3)
    # dcm2niix reckons with float32: over a whole stack of slices that comes to a few µm.
    assert_agrees_with_nifti(read(out / "dicom"), of_fused, tolerance_mm=5e-3)
    assert_grid_is_of_image(read(out / "fused.nii.gz"), slices, 1e-3)


@pytest.mark.parametrize("pair", [("MR_T1", "PET"), ("CT", "PET"), ("MR_T1", "CT")], ids="+".join)
@pytest.mark.parametrize("name", ["STS_002", "STS_003", "STS_018", "STS_051"])
def test_sarcoma_patients(shared: Path, rule: Engine, tmp_path: Path, name: str, pair: tuple[str, str]) -> None:
    folder = shared / "ibsi-sts"
    scans = [folder / "dicom" / name / scan for scan in pair]
    fused = fuse(*scans, engine=rule)
    assert fused.history[0].parameters["reason"] == "one frame of reference"
    assert fused.is_color == (pair[1] == "PET")
    write_fused(fused, tmp_path / "out", "both")
    assert_lies_as(scans[0] / "image", tmp_path / "out", tmp_path)
    copies = [folder / "nifti" / name / f"{scan}_image.nii.gz" for scan in pair]
    assert_same_picture(fused, fuse(*copies, engine=rule, register="none"))


@pytest.mark.filterwarnings("ignore:header, for the rigid:medfuse.errors.MedfuseWarning")
def test_a_sarcoma_patient_by_default_options_from_dicom_and_from_nifti(shared: Path, tmp_path: Path) -> None:
    scans = [shared / "ibsi-sts" / "dicom" / "STS_051" / scan for scan in ("MR_T1", "PET")]
    fused = fuse(*scans)
    write_fused(fused, tmp_path / "out", "both")
    assert_lies_as(scans[0] / "image", tmp_path / "out", tmp_path)
    copies = [shared / "ibsi-sts" / "nifti" / "STS_051" / f"{scan}_image.nii.gz" for scan in ("MR_T1", "PET")]
    from_nifti = fuse(*copies)
    assert from_nifti.history[0].parameters["reason"].startswith("header, f")
    # A pixel may have the next of a palette's colours, whose luminance differs by half as much more in the result.
    assert_same_picture(fused, from_nifti, most=6)
    assert (np.abs(fused.array.astype(float) - from_nifti.array.astype(float)) > 2.001).mean() < 1e-5


@pytest.mark.filterwarnings("ignore:.*unit of length:medfuse.errors.MedfuseWarning")
@pytest.mark.parametrize(
    ("structural", "functional", "grid"),
    [
        ("spect-mr-epilepsy/RM_brain.nii.gz", "spect-mr-epilepsy/masked_ictal.nii.gz", 3.0),
        ("spect-mr-epilepsy/RM_brain.nii.gz", "spect-mr-epilepsy/masked_interictal.nii.gz", 4.0),
        ("spect-ct-lu177/p_3_scan_1_ct.nii.gz", "spect-ct-lu177/p_3_scan_1_pet.nii.gz", "structural"),
    ],
)
def test_spect(shared: Path, rule: Engine, structural: str, functional: str, grid: str | float) -> None:
    scan, spect = read(shared / structural), read(shared / functional, modality="spect")
    fused = fuse(scan, spect, grid=grid, engine=rule)
    assert fused.is_color
    assert fused.history[0].parameters["reason"] == "one grid"
    assert max(fused.grid.extent_mm) == pytest.approx(max(scan.grid.extent_mm), abs=4)
    # HOT_IRON: what is hot is red before it is anything else, and lies where the SPECT says.
    hottest = spect.grid.points_mm([np.unravel_index(spect.array.argmax(), spect.array.shape)])
    k, j, i = np.rint(fused.grid.index_of(hottest)[0]).astype(int)
    red, _, blue = fused.array[k, j, i].astype(int)
    assert red > 200
    assert red >= blue


@pytest.mark.parametrize(
    ("device", "memory_mib", "used"), [("cpu", None, None), ("cuda:1", None, "cuda:1"), ("cuda:1", 500, None)]
)
@pytest.mark.parametrize("grid", ["structural", "functional", 3.0])
def test_scans_are_resampled_on_a_gpu_that_need_not_be_shared(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    memory_mib: int | None,
    used: str | None,
    grid: str | float,
    oblique_volume: Volume,
) -> None:
    asked, ends = [], []

    def laid(volume: Volume, grid: Grid, *, device: object, outside_at_most: float, **_: object) -> Volume:
        asked.append(device and str(device))
        ends.append(outside_at_most)
        return replace(volume, array=np.zeros(grid.shape, np.float32), grid=grid)

    monkeypatch.setattr(pipeline, "resample", laid)
    coarse = oblique_volume.grid.with_spacing(2)
    functional = replace(oblique_volume, array=np.zeros(coarse.shape, np.float32), grid=coarse)
    target = pipeline._target(oblique_volume, functional, grid)
    engine = SimpleNamespace(device=torch.device(device), memory_mib=memory_mib)
    is_functional, windows = grid == "functional", (Window(-7, 1), Window(-5, 2))
    pipeline._on_grid(oblique_volume, functional, Transform.identity(), target, engine, is_functional, windows)
    assert set(asked) == {used}
    assert ends == ([-7] if is_functional else [-7, -5])


@pytest.mark.parametrize("method", ["duet", "dilran"])
def test_scans_are_resampled_and_fused_alike_on_every_device(method: str, mr: Volume, device: str) -> None:
    turn = np.deg2rad(4)
    to_pet = Transform(
        np.array([[np.cos(turn), -np.sin(turn), 0, 3], [np.sin(turn), np.cos(turn), 0, -2], [0, 0, 1, 1], [0, 0, 0, 1]])
    )
    pet = phantom(Modality.PT, (9, 14, 16), FRAME)
    fused = [fuse(mr, pet, method=method, transform=to_pet, grid=2.0, device=where) for where in ("cpu", device)]
    assert fused[0].array.std() > 20
    assert np.abs(np.subtract(*(volume.array.astype(int) for volume in fused))).max() <= 2
