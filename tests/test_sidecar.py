"""What a file's numbers mean, where the format itself cannot say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset

from medfuse.errors import UnreadableFile
from medfuse.io.sidecar import meaning_of, sidecar_path, to_json, to_modality
from medfuse.volume import Modality, Source, Step, Unit, Volume


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("CT.nii.gz", Modality.CT),
        ("sub-01_ses-1_T1w.nii.gz", Modality.MR),
        ("patient_MR_T1_image.nii", Modality.MR),
        ("p_3_scan_1_pet.nii.gz", Modality.PT),
        ("PT.mha", Modality.PT),
        ("ictal-spect.nrrd", Modality.NM),
        ("t1_in_pet_space.nii", Modality.OTHER),  # the words disagree
        ("picture.nii", Modality.OTHER),  # "ct" within a word is no word
        ("petra.nii", Modality.OTHER),
    ],
)
def test_words_of_the_file_name(tmp_path: Path, name: str, modality: Modality) -> None:
    meaning = meaning_of(tmp_path / name)
    assert meaning.modality is modality
    assert meaning.modality_from == ("nothing" if modality is Modality.OTHER else "file name")
    assert meaning.unit is (Unit.HU if modality is Modality.CT else Unit.ARBITRARY)


def test_folders_play_no_part(tmp_path: Path) -> None:
    assert meaning_of(tmp_path / "ct" / "x.nii").modality is Modality.OTHER


@pytest.mark.parametrize(
    ("notes", "modality", "unit"),
    [
        ({"Modality": "MR"}, Modality.MR, Unit.ARBITRARY),
        ({"Modality": "PT", "Units": "Bq/mL"}, Modality.PT, Unit.BQML),
        ({"Modality": "PT", "Units": "g/ml"}, Modality.PT, Unit.SUV),
        ({"Modality": "NM", "Units": "counts"}, Modality.NM, Unit.COUNTS),
        ({"Modality": "CT"}, Modality.CT, Unit.HU),
        ({"Modality": "FUSED"}, Modality.FUSED, Unit.ARBITRARY),
        ({"Units": "Bq/mL"}, Modality.PT, Unit.BQML),
        ({"Modality": ["odd"], "Units": 3}, Modality.PT, Unit.ARBITRARY),
        (["a list"], Modality.PT, Unit.ARBITRARY),
    ],
)
def test_sidecar_goes_before_the_name(tmp_path: Path, notes: object, modality: Modality, unit: Unit) -> None:
    (tmp_path / "x_pet.json").write_text(json.dumps(notes))
    meaning = meaning_of(tmp_path / "x_pet.nii.gz")
    assert (meaning.modality, meaning.unit) == (modality, unit)


def test_argument_goes_before_the_sidecar_and_drops_its_unit(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"Modality": "PT", "Units": "SUV"}')
    meaning = meaning_of(tmp_path / "x.nii", Modality.MR)
    assert (meaning.modality, meaning.unit, meaning.modality_from) == (Modality.MR, Unit.ARBITRARY, "argument")
    assert meaning_of(tmp_path / "x.nii", Modality.PT).unit is Unit.SUV


def test_a_damaged_sidecar_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"Modality": ')
    with pytest.raises(UnreadableFile, match=r"found x\.json damaged"):
        meaning_of(tmp_path / "x.nii")


def test_one_that_is_nested_without_end_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(UnreadableFile, match=r"found x\.json damaged"):
        meaning_of(tmp_path / "x.nii")


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"Modality": "PT"}', encoding="utf-8-sig")
    assert meaning_of(tmp_path / "x.nii").modality is Modality.PT


@pytest.mark.parametrize("parameters", ["[1]", "null", '{"warnings": 5}', '{"warnings": [5]}'])
def test_a_history_that_somebody_edited_does_no_harm(tmp_path: Path, parameters: str) -> None:
    step = f'{{"name": "fuse", "parameters": {parameters}}}'
    (tmp_path / "x.json").write_text(f'{{"Software": "medfuse", "History": [{step}]}}')
    (found,) = meaning_of(tmp_path / "x.nii").history
    assert (found.name, found.parameters) == ("fuse", {})


def test_history_and_meaning_come_back(oblique_volume: Volume, tmp_path: Path) -> None:
    volume = replace(oblique_volume, unit=Unit.ARBITRARY, modality=Modality.FUSED)
    volume = volume.derive("resample", {"mm": 2.0}).derive("fuse", {"method": "dilran"})
    (tmp_path / "x.json").write_text(to_json(volume))
    meaning = meaning_of(tmp_path / "x.nii.gz")
    assert meaning.history == volume.history
    assert (meaning.modality, meaning.unit, meaning.modality_from) == (Modality.FUSED, Unit.ARBITRARY, "sidecar")


def test_a_stranger_s_history_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"Software": "other", "History": [{"name": "secret"}]}')
    assert meaning_of(tmp_path / "x.nii").history == ()


def test_a_sidecar_is_labelled_and_holds_no_patient(oblique_volume: Volume) -> None:
    header = Dataset()
    header.PatientName, header.PatientID, header.StudyInstanceUID = "SECRET^NAME", "SECRET-ID", "1.2.3.4.5.6.7"
    source = Source("dicom", header, (("1.2.840.1", "1.2.3.4.5.6.7.8"),))
    fused = replace(oblique_volume, modality=Modality.FUSED, source=source, history=(Step("fuse", {"weights": "ab"}),))
    text = to_json(fused)
    assert "SECRET" not in text
    assert "1.2.3.4.5" not in text
    notes = json.loads(text)
    assert "Not for diagnostic use" in notes["Label"]
    assert notes["Software"] == "medfuse"
    assert notes["History"][0]["parameters"] == {"weights": "ab"}
    assert "Label" not in json.loads(to_json(oblique_volume))


def test_where_the_sidecar_lies() -> None:
    for name in ("x.nii", "x.nii.gz", "x.NII.GZ", "x.nrrd", "x.mha"):
        assert sidecar_path(Path(name)).name == "x.json"
    assert sidecar_path(Path("1.2.nii")).name == "1.2.json"


def test_names_of_modalities() -> None:
    assert [to_modality(name) for name in ("PET", "pt", "Spect", "nm", "ct", "MRI", "mr", Modality.CT)] == [
        Modality.PT,
        Modality.PT,
        Modality.NM,
        Modality.NM,
        Modality.CT,
        Modality.MR,
        Modality.MR,
        Modality.CT,
    ]
    with pytest.raises(ValueError, match=r"expected a modality of ct, .*got 'xray'"):
        to_modality("xray")
