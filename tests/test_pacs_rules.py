"""Rules are read as they are written, and refused before anything starts where they cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from medfuse.errors import InputError
from medfuse.io.dicom_options import DicomOptions
from medfuse.pacs.rules import DEFAULT, NO_ANATOMY, Criteria, Fusion, Rule, Rules, read_rules
from medfuse.volume import Modality

PAGE = Path(__file__).resolve().parents[1] / "docs" / "rules.md"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rules.yaml"


def test_without_a_file_uptake_goes_on_mr_else_on_ct_and_ct_on_mr() -> None:
    rules = read_rules().rules
    told = [(rule.name, rule.structural.modality, rule.functional.modality, rule.unless) for rule in rules]
    uptake = (Modality.PT, Modality.NM)
    assert told == [
        ("uptake-on-mr", (Modality.MR,), uptake, ()),
        ("uptake-on-ct", (Modality.CT,), uptake, ("uptake-on-mr",)),
        ("ct-on-mr", (Modality.MR,), (Modality.CT,), ()),
    ]
    assert {rule.within_days for rule in rules} == {None}
    assert {rule.fusion for rule in rules} == {Fusion()}


def test_every_key_is_read(file: Path) -> None:
    file.write_text(
        dedent("""
        fusion: {method: msdra, palette: PET, register: rigid}
        rules:
          - name: pet-on-t1
            structural:
              modality: mri
              description: t1|mprage
              not_description: post
              orientation: sagittal
              min_slices: 60
              max_slices: 300
              exclude_image_types: [derived, mip]
              choose: latest
            functional: {modality: [pet, spect], choose: all}
            within_days: 30
            fusion:
              method: eh-dran
              strategy: maximum
              precision: bfloat16
              accept_untrusted: true
              grid: 2.5
              window: "0:10"
              structural_window: 1%:99%
              units: suv
              allow_gaps: true
              format: both
              multiframe: true
              grey_as: parametric-map
              series_description: "{structural} with {functional}"
              series_number: 7000
              companions: false
        """)
    )
    structural = Criteria((Modality.MR,), "t1|mprage", "post", "sagittal", 60, 300, ("DERIVED", "MIP"), choose="latest")
    fusion = Fusion(
        **{"method": "eh-dran", "strategy": "maximum", "precision": "bfloat16", "register": "rigid"},
        **{"accept_untrusted": True, "grid": "2.5", "palette": "PET", "window": "0:10", "structural_window": "1%:99%"},
        **{"units": "suv", "allow_gaps": True, "format": "both", "multiframe": True, "grey_as": "parametric-map"},
        **{"series_description": "{structural} with {functional}", "series_number": 7000, "companions": False},
    )
    functional = Criteria((Modality.PT, Modality.NM), choose="all")
    assert read_rules(file) == Rules((Rule("pet-on-t1", structural, functional, 30, fusion=fusion),))
    assert fusion.dicom == DicomOptions(True, "parametric-map", "{structural} with {functional}", 7000, True)


def test_settings_go_before_the_file(file: Path) -> None:
    file.write_text(json.dumps({"fusion": {"method": "laplacian", "palette": "PET"}, "rules": [DEFAULT[2]]}))
    over = {"fusion": {"method": "average"}}
    (rule,) = read_rules(file, over).rules
    assert (rule.name, rule.fusion) == ("ct-on-mr", Fusion(method="average", palette="PET"))
    other = {"rules": [{**DEFAULT[0], "fusion": {"method": "maximum", "palette": "GREY"}}], **over}
    (rule,) = read_rules(file, other).rules
    assert (rule.name, rule.fusion) == ("uptake-on-mr", Fusion(method="average", palette="GREY"))


def test_json_and_an_empty_file_are_rules_too(file: Path) -> None:
    file.write_text("")
    assert read_rules(file) == read_rules()
    file.write_text(json.dumps({"rules": DEFAULT}))
    assert read_rules(file) == read_rules()


def test_the_page_shows_the_rules_that_hold_without_a_file(file: Path) -> None:
    blocks = PAGE.read_text(encoding="utf-8").split("```yaml\n")[1:]
    first, *others = (block.split("```")[0] for block in blocks)
    assert yaml.safe_load(first)["rules"] == [dict(rule) for rule in DEFAULT]
    assert others
    for block in others:
        file.write_text(block, encoding="utf-8")
        assert read_rules(file).rules


def test_the_page_names_every_key() -> None:
    page = PAGE.read_text(encoding="utf-8")
    kinds = (Criteria, Fusion, Rule)
    assert [name for kind in kinds for name in kind.__dataclass_fields__ if f"`{name}`" not in page] == []
    assert [value for value in NO_ANATOMY if f"`{value}`" not in page] == []


MR = "structural: {modality: MR}"
PT = "functional: {modality: PT}"
ONE = f"name: one, {MR}, {PT}"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[", "cannot read rules.yaml"),
        ("[1]", r"rules.yaml: expected keys with values, found a value of type list"),
        ("{rule: []}", "rules.yaml: expected keys of fusion, rules, found rule"),
        ("{rules: 3}", "rules.yaml: expected a list as rules, found a value of type int"),
        ("{rules: []}", "rules.yaml: expected at least one rule"),
        (f"rules: [{{{MR}, {PT}}}]", "rule 1 in rules.yaml: expected the key name, found none"),
        (f"rules: [{{name: one, {MR}}}]", "rule 1 in rules.yaml: expected the key functional"),
        (f"rules: [{{{ONE}, colour: red}}]", "rule 1 in rules.yaml: expected keys of .*, found colour"),
        (f"rules: [{{{ONE}}}, {{{ONE}}}]", "two rules one"),
        (f"rules: [{{{ONE}, unless: [two]}}]", "expected rules before one in its unless, got two"),
        (f"rules: [{{{ONE}, within_days: 1.5}}]", "within_days of rule 1 .* whole number"),
        (f"rules: [{{{ONE}, within_days: -1}}]", "within_days of at least 0, got -1"),
        (f"rules: [{{name: a/b, {MR}, {PT}}}]", "rule 1 .*: expected a name of at most 40 letters"),
        (f"rules: [{{name: one, structural: {{modality: PT}}, {PT}}}]", "expected MR or CT as the structural .*PT"),
        (f"rules: [{{name: one, structural: MR, {PT}}}]", "structural of rule 1 .*: expected keys with values"),
        (f"rules: [{{name: one, structural: {{modality: []}}, {PT}}}]", "expected a modality, got an empty list"),
        (f"rules: [{{name: one, structural: {{modality: US}}, {PT}}}]", "modality of structural of rule 1 .*'US'"),
        ("structural: {description: '('}", r"regular expression, got '\('"),
        ("structural: {not_description: '['}", r"regular expression, got '\['"),
        ("structural: {orientation: oblique}", "orientation of axial, coronal, sagittal, got 'oblique'"),
        ("structural: {choose: newest}", "choose of best, most-slices, latest, all, got 'newest'"),
        ("structural: {min_slices: 1}", "min_slices of at least 2, got 1"),
        ("structural: {max_slices: 4}", "max_slices of at least 5, got 4"),
        ("structural: {min_slices: true}", "min_slices of structural .* whole number"),
        ("fusion: {method: magic}", "fusion of rule 1 .*: expected method of .*dilran.*'magic'"),
        ("fusion: {method: dilran, strategy: energy}", "strategy for dilran of nuclear"),
        ("fusion: {method: average, strategy: maximum}", "strategy for average of none"),
        ("fusion: {weights: missing.safetensors}", "expected a file, found none named missing.safetensors"),
        ("fusion: {precision: float8}", "precision of float32"),
        ("fusion: {register: elastic}", "expected a register of auto"),
        ("fusion: {accept_untrusted: 1}", "accept_untrusted of fusion of rule 1 .*: expected true or false"),
        ("fusion: {grid: huge}", "expected a grid of structural, functional or a voxel size"),
        ("fusion: {palette: RAINBOW}", "expected a palette of"),
        ("fusion: {window: 1:10}", "window of fusion .*in quotes.*found a value of type int"),
        ("fusion: {window: wide}", "expected a window as"),
        ("fusion: {units: kg}", "units of suv, native, got 'kg'"),
        ("fusion: {format: jpeg}", "format of dicom, nifti, both, got 'jpeg'"),
        ("fusion: {format: nifti, multiframe: true}", "expected a DICOM series"),
        ("fusion: {grey_as: ct}", "grey as mr or parametric-map"),
        ("fusion: {series_description: '{patient}'}", "expected fields of"),
        ("fusion: {series_number: -1}", "series number of 1 to"),
        ("fusion: {contrast: high}", "expected keys of .*, found contrast"),
    ],
)
def test_what_is_refused(file: Path, text: str, match: str) -> None:
    if text.startswith("fusion"):
        text = f"rules: [{{{ONE}, {text}}}]"
    elif text.startswith("structural"):
        text = f"rules: [{{name: one, {text.replace('{', '{modality: MR, ')}, {PT}}}]"
    file.write_text(text)
    with pytest.raises(InputError, match=match) as refused:
        read_rules(file)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 3


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read none\.yaml"):
        read_rules(tmp_path / "none.yaml")


def test_settings_are_checked_alike() -> None:
    with pytest.raises(InputError, match="the settings: expected keys of fusion, rules, found method"):
        read_rules(None, {"method": "average"})
    with pytest.raises(InputError, match="fusion in the settings: expected keys of"):
        read_rules(None, {"fusion": {"magic": 1}})
    with pytest.raises(InputError, match="rule 1 in the settings"):
        read_rules(None, {"rules": [{}]})
