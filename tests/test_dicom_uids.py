"""The same job has the same UIDs whenever it is done; another job shares none."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from derived import fake_header, grid_of, instances, objects, volume_of
from hypothesis import given
from hypothesis import strategies as st

import medfuse
from medfuse.align import Transform
from medfuse.align.warp import Warp
from medfuse.alignment import Alignment, ride_along
from medfuse.fusion import Engine
from medfuse.io.dicom_options import DicomOptions
from medfuse.io.dicom_uids import stable_uids, uids_of
from medfuse.pipeline import fuse, write_fused
from medfuse.volume import Source, Step, Volume

ALIGN = {"reason": "one frame", "registered": False, "trust": None, "registration": None}
FUSE = {"method": "dilran", "strategy": "nuclear", "weights_sha256": "ab12", "structural": {"window": "0.5%:99.5%"}}


def job(source: Source | None = None, align: dict | None = None, **changes: object) -> Volume:
    pet = Source("dicom", fake_header(Modality="PT"), instances("1.9", 3))
    source = source or Source("dicom", fake_header(), instances("1.8", 5), (pet,))
    steps = (Step("align", {**ALIGN, **(align or {})}), Step("fuse", {**FUSE, **changes}))
    return replace(volume_of("color", source=source), history=steps)


def uids(volume: Volume, folder: Path, **options: object) -> set[str]:
    """All UIDs that are new in what is written: neither the study's, nor the sources', nor those of DICOM itself."""
    known = {"1.2.3.4", "1.2.826.0.1.999"}
    return {
        str(element.value)
        for dataset in objects(volume, folder, **options)
        for element in dataset.iterall()
        if element.VR == "UI" and str(element.value) not in known and str(element.value).startswith("2.25.")
    }


@pytest.mark.parametrize("options", [{}, {"multiframe": True}], ids=str)
def test_a_rerun_has_the_same_uids_only_if_asked(options: dict[str, bool], tmp_path: Path) -> None:
    stable = [uids(job(), tmp_path / f"s{n}", stable_uids=True, **options) for n in (1, 2)]
    new = [uids(job(), tmp_path / f"n{n}", **options) for n in (1, 2)]
    assert len(stable[0]) >= 3
    assert stable[0] == stable[1]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations((stable[0], *new), 2))


REGISTERED = {"registered": True, "registration": {"kind": "rigid", "uncertainty_mm": 0.41}}
OTHERS = {
    "method": job(method="eh-dran"),
    "strategy": job(strategy="mean"),
    "weights": job(weights_sha256="ab13"),
    "precision": job(precision="bfloat16"),
    "window": job(structural={"window": "0.5%:99.4%"}),
    "registered": job(align=REGISTERED),
    "affine": job(align={**REGISTERED, "registration": {"kind": "affine", "uncertainty_mm": 0.41}}),
    "transform": job(align={"moving_from_fixed": [[1, 0, 0, 1]]}),
    "another that it rides along with": job(align={**REGISTERED, "of_sha256": "ef"}),
    "deformation": job(align={"deformation_sha256": "cd"}),
    "grid": replace(job(), grid=grid_of(seed=2)),
    "order": job(Source("dicom", fake_header(), instances("1.8", 5)[::-1])),
    "images": job(Source("dicom", fake_header(), instances("1.8", 4))),
    "study": job(Source("dicom", fake_header(StudyInstanceUID="1.2.3.5"), instances("1.8", 5))),
    "functional": job(
        Source("dicom", fake_header(), instances("1.8", 5), (Source("dicom", None, instances("1.9", 4)),))
    ),
    "version": replace(job(), history=tuple(replace(step, version="0.0.9") for step in job().history)),
}


def test_no_two_jobs_share_a_seed() -> None:
    seeds = [stable_uids(volume).seed for volume in (job(), *OTHERS.values())]
    assert len(set(seeds)) == len(seeds)


def test_what_a_registration_found_is_not_part_of_the_job() -> None:
    found = {"moving_from_fixed": [[0.99, 0, 0, 1]], "reason": "rigid, trusted (0.42 mm)", "trust": "trusted"}
    again = {**found, "registration": {"kind": "rigid", "uncertainty_mm": 0.42}, "registered": True}
    assert stable_uids(job(align=again)).seed == stable_uids(job(align=REGISTERED)).seed


def test_images_without_uids_are_told_apart_by_the_voxels() -> None:
    first = job(Source("nifti"))
    other = replace(first, array=first.array ^ 1)
    assert stable_uids(first).seed == stable_uids(job(Source("nifti"))).seed
    assert stable_uids(first).seed != stable_uids(other).seed


def test_forms_and_places_in_a_run_share_no_instance_and_no_series(tmp_path: Path) -> None:
    found = [
        uids(job(), tmp_path / "slices", stable_uids=True),
        uids(job(), tmp_path / "one", stable_uids=True, multiframe=True),
    ]
    (tmp_path / "second").mkdir()
    second = medfuse.io.dicom_write.write_dicom(job(), tmp_path / "second", 2, DicomOptions(stable_uids=True))
    found.append(
        {str(pydicom.dcmread(path)[k].value) for path in second for k in ("SeriesInstanceUID", "SOPInstanceUID")}
    )
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(found, 2))


@given(st.lists(st.one_of(st.text(max_size=5), st.integers(0, 99)), min_size=1, max_size=3))
def test_every_uid_is_legal_and_every_role_has_its_own(role: list[str | int]) -> None:
    one = stable_uids(job())
    assert one.of(*role).is_valid
    assert len(one.of(*role)) <= 64
    assert one.of(*role) == one.of(*role) != one.of(*role, "more")


def test_new_uids_agree_within_a_result() -> None:
    one, other = uids_of(job(), stable=False), uids_of(job(), stable=False)
    assert one.of("series") == one.of("series") != other.of("series")


def test_study_and_frame_are_the_sources_if_it_has_them() -> None:
    volume, bare = job(), job(Source("nifti"))
    bare = replace(bare, grid=grid_of(frame=None))
    assert stable_uids(volume).study(volume) == "1.2.3.4"
    assert stable_uids(volume).frame_of_reference(volume) == "1.2.826.0.1.999"
    assert stable_uids(bare).study(bare) == stable_uids(bare).of("study")
    assert stable_uids(bare).frame_of_reference(bare).startswith("2.25.")


def test_two_runs_of_the_whole_path(ct_series: Path, pt_series: Path, tmp_path: Path) -> None:
    def run(name: str, **words: object) -> list[str]:
        fused = fuse(ct_series, pt_series, engine=Engine("average", device="cpu"), **words)
        paths = write_fused(fused, tmp_path / name, dicom=DicomOptions(stable_uids=True))
        return [pydicom.dcmread(path).SOPInstanceUID for path in paths]

    first, again, other = run("first"), run("again"), run("other", palette="PET")
    assert first == again
    assert set(first).isdisjoint(other)


def test_a_given_deformation_counts_with_all_its_numbers() -> None:
    def warp(bend_mm: float) -> Warp:
        spline = sitk.BSplineTransformInitializer(sitk.Image(9, 9, 9, sitk.sitkFloat32), (4, 4, 4))
        parameters = np.zeros(spline.GetNumberOfParameters())
        parameters[100] = bend_mm
        spline.SetParameters(parameters.tolist())
        return Warp(Transform.identity(), spline)

    told = [Alignment(warp(bend), "a given transform").to_json() for bend in (0.5, 0.5, 0.6)]
    assert told[0] == told[1] != told[2]
    assert told[0]["moving_from_fixed"] == told[2]["moving_from_fixed"]


def test_what_rides_along_is_told_apart_by_what_it_rides_with(ct_series: Path, pt_series: Path) -> None:
    ct, pet = medfuse.read(ct_series), medfuse.read(pt_series)
    alignment = Alignment(Transform.identity(), "a given transform")
    others = (ct, ct.derive("smooth", {"mm": 2}))
    told = [ride_along(alignment, functional, pet).to_json()["of_sha256"] for functional in others]
    assert told[0] != told[1]
    assert ride_along(alignment, ct, pet).to_json()["of_sha256"] == told[0]


def test_values_in_place_of_nan_are_part_of_the_job(ct_series: Path) -> None:
    seeds = {stable_uids(medfuse.read(ct_series, fill_nan=value)).seed for value in (None, 0.0, 1.0)}
    assert len(seeds) == 3
