"""The comparison of methods: its numbers are those of the measures called by hand, and copies are seen to be copies."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import statistics
import struct
from dataclasses import replace
from importlib import resources
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from phantoms import phantom
from pictures import scene
from PIL import ExifTags, Image

from medfuse.benchmark import CONTROLS, Outputs, Statistic, Table, check_volumes, run, score_result
from medfuse.benchmark.run import find_pairs
from medfuse.color import Window, apply_palette
from medfuse.errors import (
    GeometryError,
    GridMismatch,
    InputError,
    OutputError,
    SeriesError,
    UnreadableFile,
    UnsupportedImage,
)
from medfuse.fusion import Engine, display_of
from medfuse.fusion.weights import convert, to_bytes
from medfuse.io.files import read, write
from medfuse.io.pictures import read_picture, write_picture
from medfuse.metrics import MEASURES, SAFETY, background_error, flicker, score, score_safety, score_stack
from medfuse.pipeline import fuse, write_fused
from medfuse.volume import Modality

ROWS, COLUMNS = 48, 56
NAMES = ("7001", "7002", "7003")


def pixels(index: int) -> tuple[np.ndarray, np.ndarray]:
    """The structural and the functional image of a pair, (H, W) uint8; no two pairs are alike."""
    _, waves, blocks = scene(ROWS, COLUMNS)
    return np.roll(waves[0, 0].numpy(), 5 * index, axis=1), np.roll(blocks[0, 0].numpy(), 3 * index, axis=0)


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """Three grey pairs, in three formats."""
    folder = tmp_path / "grey"
    for name in ("mri", "ct"):
        (folder / name).mkdir(parents=True)
    for index, name in enumerate(NAMES):
        structural, functional = pixels(index)
        Image.fromarray(structural).save(folder / "mri" / f"{name}.png")
        Image.fromarray(functional).save(folder / "ct" / f"{name}{('.png', '.tif', '.bmp')[index]}")
    return folder


@pytest.fixture
def color(grey: Path) -> Path:
    """The pairs again, with the functional image in colour in the folder `pet`."""
    (grey / "pet").mkdir()
    for index, name in enumerate(NAMES):
        structural, functional = pixels(index)
        Image.fromarray(np.stack([functional, structural // 2, functional // 3], axis=-1)).save(
            grey / "pet" / f"{name}.png"
        )
    return grey


@pytest.fixture
def table(grey: Path) -> Table:
    return run(grey, structural="mri", functional="ct", methods="maximum", device="cpu")


def by_hand(table: Table, folder: Path, method: str) -> list[dict[str, float]]:
    """One row a pair, from the measures themselves."""
    rows = []
    for name in table.pairs:
        structural, functional = pixels(NAMES.index(name))
        fused = {
            "copy structural": structural,
            "copy functional": functional,
            "maximum": np.maximum(structural, functional),
            "average": np.rint((structural.astype(np.float32) + functional.astype(np.float32)) / 2).astype(np.uint8),
        }[method]
        images = (torch.from_numpy(np.ascontiguousarray(one))[None, None] for one in (fused, structural, functional))
        rows += score(*images).rows()
    return rows


# The numbers


@pytest.mark.parametrize("method", ["maximum", "copy structural", "copy functional"])
def test_numbers_are_those_of_the_measures_called_by_hand(table: Table, grey: Path, method: str) -> None:
    rows = by_hand(table, grey, method)
    for measure, side in table.values:
        values = [row[measure if side == "value" else f"{measure} {side}"] for row in rows]
        found = table.statistic(measure, method, side)
        assert found.n == 3
        if math.inf in values:
            assert (found.mean, found.sd) == (math.inf, None)
        else:
            assert found.mean == pytest.approx(statistics.mean(values), abs=1e-6)
            assert found.sd == pytest.approx(statistics.stdev(values), abs=1e-6)


def test_the_paper_s_convention_measures_floats_as_the_method_gives_them(grey: Path) -> None:
    table = run(grey, structural="mri", functional="ct", methods="dilran", convention="paper", device="cpu", limit=1)
    planes = [image.astype(np.float32)[None] / 255 for image in pixels(0)]
    fused = Engine("dilran", device="cpu").fuse_planes(*planes)
    images = (torch.from_numpy(plane)[:, None] for plane in (fused, *planes))
    (row,) = score(*images, convention="paper").rows()
    assert [measure.name for measure in table.measures] == ["PSNR", "SSIM", "MI", "FMI", "FSIM", "EN"]
    for measure, side in table.values:
        expected = row[measure if side == "value" else f"{measure} {side}"]
        assert table.statistic(measure, "dilran", side).mean == pytest.approx(expected, abs=1e-6)
    assert row["EN"] > 8


def test_a_method_is_told_the_modality_by_the_folder_s_name_or_in_words(grey: Path) -> None:
    planes = [image.astype(np.float32)[None] / 255 for image in pixels(0)]
    for structural, words, modality in (
        ("mri", {"functional": "ct"}, Modality.CT),
        ("mri", {"functional": "ct", "functional_modality": "spect"}, Modality.NM),
        ("ct", {"functional": "mri", "functional_modality": "pet"}, Modality.OTHER),
    ):
        table = run(grey, structural=structural, methods="duet", device="cpu", limit=1, **words)
        sources = planes if structural == "mri" else planes[::-1]
        fused = np.rint(255 * Engine(device="cpu").fuse_planes(*sources, modality=modality)).astype(np.uint8)
        images = (torch.from_numpy(plane)[:, None] for plane in (fused, *(np.uint8(255 * one) for one in sources)))
        assert table.statistic("VIF", "duet").mean == pytest.approx(score(*images)["VIF"].value.item(), abs=1e-6)
    with pytest.raises(ValueError, match=r"expected a modality of ct, .*, got 'gamma'"):
        run(grey, structural="mri", functional="ct", functional_modality="gamma")


def test_copies_are_seen_by_their_sides(table: Table) -> None:
    for own, other in (("structural", "functional"), ("functional", "structural")):
        method = f"copy {own}"
        assert table.statistic("SSIM", method, own).mean == pytest.approx(1, abs=1e-12)
        assert table.statistic("PSNR", method, own).mean == math.inf
        assert table.statistic("SCD", method, other).mean == pytest.approx(0, abs=1e-12) or own == "functional"
        for measure in ("SSIM", "PSNR", "FSIM", "CC", "FMI pixel"):
            worse = table.statistic(measure, method, "worse")
            assert worse == table.statistic(measure, method, other)
            assert worse.mean < table.statistic(measure, method).mean
    by_worse = table.mean_ranks("worse")
    assert by_worse["maximum"] < min(by_worse["copy structural"], by_worse["copy functional"])


def test_ranks_follow_each_measure_s_direction_and_ties_share(table: Table) -> None:
    ranks = []
    for measure in table.measures:
        means = [round(table.statistic(measure.name, method).mean, 9) for method in table.methods]
        sign = -1 if measure.better == "higher" else 1
        ordered = sorted(sign * mean for mean in means)
        places = [[place for place, one in enumerate(ordered, 1) if one == sign * mean] for mean in means]
        ranks.append([statistics.mean(place) for place in places])
    expected = [statistics.mean(column) for column in zip(*ranks, strict=True)]
    assert list(table.mean_ranks().values()) == pytest.approx(expected)
    assert sum(expected) == pytest.approx(len(CONTROLS) * (len(CONTROLS) + 1) / 2)


def test_a_method_ranks_by_what_is_better() -> None:
    values = {("EN", "value"): np.array([[3.0, 1.0]]), ("N_AB/F", "value"): np.array([[0.1, 0.9]])}
    table = Table("standard", "s", "f", "cpu", ("1",), ("good", "bad"), (), values, np.ones((1, 2)))
    assert table.mean_ranks() == {"good": 1.0, "bad": 2.0}


def test_the_controls_stand_in_every_table_once(grey: Path, table: Table) -> None:
    assert table.methods == ("maximum", *(name for name in CONTROLS if name != "maximum"))
    assert set(table.controls) == set(CONTROLS)
    blends = run(grey, structural="mri", functional="ct", methods="average", device="cpu", limit=1)
    structural, functional = (image.astype(np.float32) for image in pixels(0))
    for method, weight in (("blend 0.84 structural", 0.84), ("blend 0.84 functional", 0.16), ("average", 0.5)):
        fused = np.rint(weight * structural + (1 - weight) * functional)
        # A grey level halfway between two may be rounded either way.
        assert blends.statistic("SD", method).mean == pytest.approx(float(fused.std()), abs=0.1)


def test_two_runs_give_the_same_table(grey: Path, table: Table) -> None:
    again = run(grey, structural="mri", functional="ct", methods="maximum", device="cpu")
    assert again.values.keys() == table.values.keys()
    assert all(np.array_equal(again.values[key], table.values[key]) for key in table.values)
    assert again.cells()[:-1] == table.cells()[:-1]  # all but the seconds


def test_a_single_pair_has_no_deviation(grey: Path) -> None:
    table = run(grey, structural="mri", functional="ct", methods="maximum", device="cpu", limit=1)
    assert table.statistic("SSIM", "maximum").sd is None
    assert str(table.statistic("PSNR", "copy functional", "functional")) == "∞"
    assert str(Statistic(0.5, 0.25, 2)) == "0.500 ± 0.250"


# The forms


def test_infinite_values_break_no_form(grey: Path, tmp_path: Path) -> None:
    outputs = Outputs(json=tmp_path / "t.json", csv=tmp_path / "t.csv", markdown=tmp_path / "t.md")
    table = run(
        grey, structural="mri", functional="ct", methods="maximum", device="cpu", convention="paper", outputs=outputs
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "t.json").read_text(), parse_constant=refuse)
    copy = next(one for one in content["methods"] if one["method"] == "copy structural")
    assert copy["measures"]["PSNR"]["value"] == {"mean": None, "sd": None, "n": 3}
    assert copy["measures"]["SSIM"]["structural"]["mean"] == pytest.approx(1)
    assert copy["control"]
    assert content["pairs"] == 3
    assert [one["name"] for one in content["measures"]] == [one.name for one in MEASURES["paper"]]

    lines = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    by_key = {(line["method"], line["measure"], line["side"]): line for line in lines}
    assert len(by_key) == len(lines) == len(table.methods) * (len(table.values) + 3)
    assert float(by_key["copy structural", "PSNR", "value"]["mean"]) == math.inf
    assert by_key["copy structural", "PSNR", "value"]["sd"] == ""
    assert float(by_key["maximum", "mean rank", "worse"]["mean"]) == table.mean_ranks("worse")["maximum"]
    assert float(by_key["maximum", "seconds", "value"]["mean"]) > 0

    text = (tmp_path / "t.md").read_text()
    assert text == table.to_markdown()
    assert "| ∞ |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {len(table.methods) + 2}
    assert "nan" not in text.lower()


def test_the_page_gives_each_measure_s_direction_and_value_for_identical_images() -> None:
    page = (Path(__file__).parents[1] / "docs" / "benchmark.md").read_text(encoding="utf-8")
    _, _, image = scene(192, 192)
    identical = score(image, image, image)
    tables = [part.split("\n\n")[0] for part in page.split("| measure | ")[1:]]
    for convention, text in zip(("standard", "paper"), tables, strict=False):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
        assert [row[0] for row in rows] == [measure.name for measure in MEASURES[convention]]
        if convention == "paper":
            continue
        assert [row[2] for row in rows] == [measure.better for measure in MEASURES[convention]]
        for name, *_, value in rows:
            found = float(identical[name].value)
            if value == "its own":
                assert identical[name].structural is None
            elif value == "twice its entropy":
                assert found == pytest.approx(2 * float(identical["EN"].value))
            else:
                assert found == pytest.approx(math.inf if value == "∞" else float(value), abs=5e-5), name


def test_the_page_gives_the_direction_and_the_value_for_identical_images_of_what_must_not_be() -> None:
    page = (Path(__file__).parents[1] / "docs" / "benchmark.md").read_text(encoding="utf-8")
    text = page.split("| measure | what it says | better | identical |")[2].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    measures = [measure for kind in SAFETY.values() for measure in kind]
    assert [row[0] for row in rows] == [measure.name for measure in measures]
    assert [row[2].split(",")[0] for row in rows] == [measure.better for measure in measures]
    _, waves, blocks = scene(60, 64)
    color = torch.from_numpy(apply_palette(blocks[:, 0].numpy() / 255, "HOT_IRON")).movedim(-1, 1)
    slices = torch.cat([waves, waves.roll(1, 2), waves.roll(2, 2)])[:, 0]
    identical = (*score_safety(color, color, color).scores, *score_stack(slices, slices, slices).scores)
    for (name, *_, value), one in zip(rows, identical, strict=True):
        within = 1e-9 if "nearly" not in value else 0.2 if one.measure.unit == "%" else 0.05
        expected = float(value.removeprefix("nearly "))
        assert float(one.value) == pytest.approx(expected, abs=within), name


# What is saved


def test_grey_results_are_saved_and_score_what_the_table_says(grey: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = run(
        grey, structural="mri", functional="ct", methods="maximum,dilran", device="cpu", outputs=Outputs(pictures=out)
    )
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.png")) == sorted(
        f"{method}/{name}.png" for method in ("dilran", "maximum") for name in NAMES
    )
    saved = np.asarray(Image.open(out / "maximum" / "7002.png"))
    np.testing.assert_array_equal(saved, np.maximum(*pixels(1)))
    result = score_result(out / "dilran/7002.png", grey / "mri/7002.png", grey / "ct/7002.tif", device="cpu")
    column = table.methods.index("dilran")
    for key, values in result.values.items():
        assert values == pytest.approx(table.values[key][1, column], abs=1e-6)


def test_colour_is_put_back(color: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = run(
        color, structural="mri", functional="pet", methods="average", device="cpu", outputs=Outputs(pictures=out)
    )
    original, fused = (Image.open(folder / "7001.png") for folder in (color / "pet", out / "average"))
    assert fused.mode == "RGB"
    # Pillow's own conversion is the oracle; its integers, and colours beyond RGB, cost a few levels.
    before, after = (np.asarray(image.convert("YCbCr"), np.float64) for image in (original, fused))
    inside = (np.asarray(fused).min(-1) > 0) & (np.asarray(fused).max(-1) < 255)
    assert inside.mean() > 0.2
    np.testing.assert_allclose(after[inside][:, 1:], before[inside][:, 1:], atol=2)
    expected = (before[..., 0] + pixels(0)[0]) / 2
    np.testing.assert_allclose(after[inside][:, 0], expected[inside], atol=2)
    luminance = np.asarray(original.convert("L"), np.float64)
    assert table.values["SD", "value"][0, table.methods.index("copy functional")] == pytest.approx(
        luminance.std(), abs=0.1
    )
    assert table.statistic("SSIM", "copy functional", "functional").mean == pytest.approx(1)


def test_beside_a_ct_colour_keeps_its_room_as_in_a_fusion(color: Path, tmp_path: Path) -> None:
    """A white CT: what is measured is the picture that is saved, in which no colour is white."""
    for name in NAMES:
        Image.new("L", (COLUMNS, ROWS), 255).save(color / "ct" / f"{name}.png")
    for path in [*(color / "ct").glob("*.tif"), *(color / "ct").glob("*.bmp")]:
        path.unlink()
    out = tmp_path / "out"
    table = run(
        color, structural="ct", functional="pet", methods="maximum", device="cpu", outputs=Outputs(pictures=out)
    )
    index = table.methods.index("maximum")
    for pair, name in enumerate(NAMES):
        fused, tracer = read_picture(out / "maximum" / f"{name}.png"), read_picture(color / "pet" / f"{name}.png")
        assert tracer.chroma is not None
        strongest = np.asarray(Image.open(color / "pet" / f"{name}.png")).max(-1) / 255 - tracer.luminance
        np.testing.assert_allclose(fused.luminance, 1 - 2 / 3 * strongest, atol=0.01)
        assert table.values["SD", "value"][pair, index] == pytest.approx(255 * fused.luminance.std(), abs=0.1)
    assert (table.safety["colour lost"][:, index] == 0).all()


def test_methods_take_a_strategy_and_weights(grey: Path, shared: Path, tmp_path: Path) -> None:
    weights = tmp_path / "published.safetensors"
    weights.write_bytes(
        to_bytes(convert("dilran", shared / "reference-networks" / "dilran_published.pt"), {"network": "dilran"})
    )
    methods = f"dilran, dilran:average,dilran:maximum@{weights}"
    table = run(
        grey,
        **{"structural": "mri", "functional": "ct", "methods": methods, "device": "cpu", "limit": 1},
        outputs=Outputs(pictures=tmp_path / "out"),
    )
    names = ("dilran", "dilran:average", "dilran:maximum@published")
    assert table.methods[:3] == names
    assert len({float(table.values["SSIM", "value"][0, column]) for column in range(3)}) == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        name.translate({58: "-", 64: "-"}) for name in names
    }


# What is refused, and leaves nothing behind


def images(folder: Path, name: str, size: tuple[int, int] = (COLUMNS, ROWS), mode: str = "L") -> None:
    folder.mkdir(exist_ok=True, parents=True)
    Image.new(mode, size, 1).save(folder / name)


def sixteen_bits(path: Path) -> None:
    """An RGB TIFF of 16 bits, which Pillow reads as 8 bits without a word."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.full((ROWS, COLUMNS, 3), 4095, np.uint16), isVector=True)
    sitk.WriteImage(image, str(path))


def tiff_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "TIFF")
    return file.getvalue()


def spoil(folder: Path, how: str) -> None:
    """Make one image of the pairs unusable."""
    path = folder / "ct" / "7001.png"
    if how == "deep":
        Image.fromarray(np.full((ROWS, COLUMNS), 4095, np.uint16)).save(path)
    elif how == "deep colour":
        sixteen_bits(path)
    elif how == "text":
        path.write_text("hello")
    elif how == "empty page":
        path.unlink()
        tiff = bytearray(tiff_of(Image.new("L", (COLUMNS, ROWS))))
        (first,) = struct.unpack("<I", tiff[4:8])
        (entries,) = struct.unpack("<H", tiff[first : first + 2])
        struct.pack_into("<I", tiff, first + 2 + 12 * entries, len(tiff))  # where the next page is said to begin
        path.with_suffix(".tif").write_bytes(tiff + bytes(6))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-400])
    elif how == "transparent":
        Image.new("RGBA", (COLUMNS, ROWS), (1, 2, 3, 4)).save(path)
    elif how == "pages":
        path.unlink()
        pages = [Image.new("L", (COLUMNS, ROWS), level) for level in (1, 2)]
        pages[0].save(folder / "ct" / "7001.tif", save_all=True, append_images=pages[1:])
    elif how == "size":
        images(folder / "ct", "7001.png", (COLUMNS + 1, ROWS))
    elif how == "twice":
        images(folder / "ct", "7001.tif")
    elif how == "strangers":
        for image in (folder / "ct").iterdir():
            image.rename(image.with_stem(f"x{image.stem}"))
    elif how == "empty":
        for image in (folder / "ct").iterdir():
            image.unlink()
    elif how == "small":
        for place in ("mri", "ct"):
            images(folder / place, "7001.png", (COLUMNS, 40))


@pytest.mark.parametrize(
    ("how", "kind", "match"),
    [
        ("deep", UnsupportedImage, "8 bits a channel.*mode I;16 in 7001.png"),
        ("deep colour", UnsupportedImage, "8 bits a channel.*16 bits in 7001.png"),
        ("text", UnreadableFile, "cannot read 7001.png"),
        ("cut", UnreadableFile, "cannot read 7001.png"),
        ("empty page", UnreadableFile, "cannot read 7001.tif"),
        ("transparent", UnsupportedImage, "7001.png transparent"),
        ("pages", UnsupportedImage, "2 pages in 7001.tif"),
        ("size", GridMismatch, "one size, found 56 × 48 and 57 × 48 for 7001"),
        ("twice", InputError, "one image a name in ct"),
        ("strangers", InputError, "no common name among 3 and 3 images"),
        ("empty", InputError, "no common name among 3 and 0 images"),
        ("small", UnsupportedImage, "7001: expected images of at least 41 × 41 pixels, found 40 × 56"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    grey: Path, tmp_path: Path, how: str, kind: type[Exception], match: str
) -> None:
    spoil(grey, how)
    outputs = Outputs(*(tmp_path / "new" / name for name in ("out", "t.json", "t.csv", "t.md")))
    with pytest.raises(kind, match=match):
        run(grey, structural="mri", functional="ct", methods="maximum", device="cpu", outputs=outputs)
    assert [path.name for path in tmp_path.iterdir()] == ["grey"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"methods": "magic"}, "method of .*dilran"),
        ({"methods": ""}, "method of .*dilran"),
        ({"methods": "dilran:magic"}, "strategy of nuclear"),
        ({"methods": "maximum,average,maximum"}, "once, got maximum"),
        ({"methods": "maximum@w.safetensors"}, "no weights"),
        ({"convention": "magic"}, "convention of standard, paper"),
        ({"device": "abacus"}, "expected a device"),
        ({"limit": 0}, "limit of at least 1"),
        ({"structural": "ct"}, "'ct' twice"),
        ({"structural": "ct/"}, "'ct/' twice"),
        ({"structural": "mri/../ct"}, "'mri/../ct' twice"),
    ],
)
def test_unknown_words_are_refused(grey: Path, words: dict[str, str], match: str) -> None:
    chosen = {"structural": "mri", "functional": "ct", "methods": "maximum", "device": "cpu", **words}
    with pytest.raises(ValueError, match=match):
        run(grey, **chosen)


def test_results_of_two_methods_are_not_saved_to_one_folder(grey: Path, tmp_path: Path) -> None:
    for name in ("own 1", "Own-1"):
        shutil.copy(str(resources.files("medfuse") / "models" / "duet.safetensors"), tmp_path / f"{name}.safetensors")
    methods = ",".join(f"duet@{tmp_path}/{name}.safetensors" for name in ("own 1", "Own-1"))
    words = {"structural": "mri", "functional": "ct", "methods": methods, "device": "cpu", "limit": 1}
    with pytest.raises(ValueError, match="a folder each to save to, got one for duet@own 1, duet@Own-1"):
        run(grey, **words, outputs=Outputs(pictures=tmp_path / "out"))
    assert run(grey, **words).methods[:2] == ("duet@own 1", "duet@Own-1")


def test_a_missing_folder_is_named(grey: Path) -> None:
    with pytest.raises(InputError, match="a folder spect of images in grey"):
        run(grey, structural="mri", functional="spect", methods="maximum")


def test_outputs_are_checked_before_anything_is_computed(grey: Path, tmp_path: Path) -> None:
    words = {"structural": "mri", "functional": "ct", "methods": "maximum", "device": "cpu", "limit": 1}
    for path in (tmp_path / "out" / "t.json", tmp_path / "out"):
        with pytest.raises(ValueError, match="apart from one another"):
            run(grey, **words, outputs=Outputs(pictures=tmp_path / "out", json=path))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="loop"):
        run(grey, **words, outputs=Outputs(json=tmp_path / "loop", csv=tmp_path / "t.csv"))
    (tmp_path / "loop").unlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("of others")
    with pytest.raises(OutputError, match="expected a file to write, found the folder folder"):
        run(grey, **words, outputs=Outputs(json=tmp_path / "folder", csv=tmp_path / "t.csv"))
    with pytest.raises(OutputError, match="expected a folder for pictures, found the file file"):
        run(grey, **words, outputs=Outputs(pictures=tmp_path / "file", csv=tmp_path / "t.csv"), overwrite=True)
    (tmp_path / "folder").rmdir()
    (tmp_path / "file").unlink()
    with pytest.raises(OutputError, match="an input"):
        run(grey, **words, outputs=Outputs(pictures=grey / "ct"), overwrite=True)
    outputs = Outputs(pictures=tmp_path / "out", json=tmp_path / "t.json")
    run(grey, **words, outputs=outputs)
    before = (tmp_path / "t.json").read_text()
    with pytest.raises(OutputError, match="out exists"):
        run(grey, **words, outputs=outputs)
    assert (tmp_path / "t.json").read_text() == before
    run(grey, **words, outputs=outputs, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"grey", "out", "t.json"}


def test_pictures_among_others_are_refused_before_the_work(grey: Path, tmp_path: Path) -> None:
    words = {"structural": "mri", "functional": "ct", "device": "cpu", "limit": 2}
    outputs = Outputs(pictures=tmp_path / "out", csv=tmp_path / "t.csv")
    for _ in range(2):
        run(grey, methods="maximum", outputs=outputs, overwrite=True, **words)
    for stranger in ("maximum/notes.txt", "maximum/mine.png", "7.png", "laplacian/7001.png"):
        theirs = tmp_path / "out" / stranger
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_bytes(b"mine")
        table = (tmp_path / "t.csv").read_bytes()
        with pytest.raises(OutputError, match="expected only an earlier result in the folder out"):
            run(grey, methods="maximum", outputs=outputs, overwrite=True, progress=pytest.fail, **words)
        assert (theirs.read_bytes(), (tmp_path / "t.csv").read_bytes()) == (b"mine", table)
        theirs.unlink()
        if theirs.parent.name == "laplacian":
            theirs.parent.rmdir()


def test_an_interruption_leaves_nothing(grey: Path, tmp_path: Path) -> None:
    def interrupt(_what: str, done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt("Ctrl-C")

    outputs = Outputs(pictures=tmp_path / "out", csv=tmp_path / "t.csv")
    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        run(grey, structural="mri", functional="ct", methods="maximum", outputs=outputs, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["grey"]


def test_pairs_are_found_by_name_and_a_limit_spreads_over_them(tmp_path: Path) -> None:
    for number in range(10):
        images(tmp_path / "a", f"{number}.png")
        images(tmp_path / "b", f"{number + 2}.PNG")
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    (tmp_path / "b" / "._3.png").write_text("not an image either")
    pairs, left_out = find_pairs(tmp_path, "a", "b")
    assert ([pair.name for pair in pairs], left_out) == (list("23456789"), 4)
    assert [pair.name for pair in find_pairs(tmp_path, "a", "b", limit=3)[0]] == ["2", "4", "7"]
    assert len(find_pairs(tmp_path, "a", "b", limit=99)[0]) == 8


def test_pairs_are_chosen_by_patterns_of_their_names(tmp_path: Path) -> None:
    for name in ("28001", "28002", "2801", "33001", "4001"):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("L", (4, 4)).save(tmp_path / folder / f"{name}.png")
    pairs, left_out = find_pairs(tmp_path, "a", "b", "28???, 33*")
    assert [pair.name for pair in pairs] == ["28001", "28002", "33001"]
    assert left_out == 0
    assert [pair.name for pair in find_pairs(tmp_path, "a", "b", "28???,33*", limit=1)[0]] == ["28001"]
    with pytest.raises(InputError, match=r"expected pairs named 99\*, found none"):
        find_pairs(tmp_path, "a", "b", "99*")


# What a fusion must not do


def test_safety_is_measured_on_the_pictures_that_are_saved(color: Path, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "out", tmp_path / "t.json", tmp_path / "t.csv")
    table = run(color, structural="mri", functional="pet", methods="maximum", device="cpu", outputs=outputs)
    assert [one.name for one in table.safety_measures] == [
        one.name for kind in ("grey", "color") for one in SAFETY[kind]
    ]
    by_hand = []
    for name in NAMES:
        paths = (tmp_path / f"out/maximum/{name}.png", color / f"mri/{name}.png", color / f"pet/{name}.png")
        images = [torch.from_numpy(np.atleast_3d(np.asarray(Image.open(path))).copy()) for path in paths]
        by_hand += score_safety(*(image.permute(2, 0, 1)[None] for image in images)).rows()
    content = json.loads((tmp_path / "t.json").read_text())
    assert [one["name"] for one in content["safety"]] == list(table.safety)
    lines = {
        (line["method"], line["measure"], line["side"]): float(line["mean"])
        for line in csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text()))
    }
    for measure in table.safety_measures:
        values = [row[measure.name] for row in by_hand]
        worst = (min if measure.better == "higher" else max)(values)
        found = table.safety_of(measure.name, "maximum")
        assert found.statistic.mean == pytest.approx(statistics.mean(values), abs=1e-9), measure.name
        assert found.worst == pytest.approx(worst, abs=1e-9)
        assert content["methods"][0]["safety"][measure.name]["worst"] == pytest.approx(worst, abs=1e-9)
        assert lines["maximum", measure.name, "worst"] == pytest.approx(worst, abs=1e-9)
        assert lines["maximum", measure.name, "value"] == pytest.approx(found.statistic.mean)
    assert table.safety_of("hue 99.9 %", "copy functional").worst == 0
    assert table.safety_of("hue 99.9 %", "maximum").worst < 2
    names = [row[0] for row in table.cells()]
    assert names[-2:] == ["hottest ↑", "seconds a pair"]
    assert names.index("background (levels) ↓") > names.index("mean rank, worse source")


def test_grey_pairs_have_no_measures_of_colour_and_the_paper_none_of_safety(grey: Path, table: Table) -> None:
    assert list(table.safety) == ["background", "background mean"]
    paper = run(grey, structural="mri", functional="ct", methods="maximum", device="cpu", convention="paper", limit=1)
    assert paper.safety == {}
    assert json.loads(paper.to_json())["safety"] == []


def test_a_grey_picture_among_colours_is_measured_too(color: Path) -> None:
    Image.fromarray(pixels(1)[1]).save(color / "pet" / "7002.png")
    table = run(color, structural="mri", functional="pet", methods="maximum", device="cpu")
    assert table.safety["hue"].shape == (3, len(table.methods))
    assert (table.safety["hue"][1] == 0).all()
    assert (table.safety["colour lost"][1] == 0).all()


def test_light_where_both_are_black_is_seen(tmp_path: Path) -> None:
    structural, functional = (np.where(image > 120, image, 0).astype(np.uint8) for image in pixels(0))
    air = np.maximum(structural, functional) == 0
    fused = np.where(air, 0, 200).astype(np.uint8)
    fused[tuple(np.argwhere(air)[3])] = 17
    for name, image in (("fused", fused), ("mri", structural), ("ct", functional)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    result = score_result(*(tmp_path / f"{name}.png" for name in ("fused", "mri", "ct")), device="cpu")
    assert result.safety_of("background").worst == 17
    assert result.safety_of("background mean").statistic.mean == pytest.approx(17 / air.sum())
    assert list(result.safety) == ["background", "background mean"]  # a single grey slice
    assert result.cells()[-2] == ["background (levels) ↓", "17.000", "", "", ""]
    assert result.to_json()["safety"]["background"]["value"]["worst"] == 17


def test_safety_of_volumes(volumes: Path) -> None:
    mr, pet, fused = (nib.load(volumes / f"{name}.nii.gz") for name in ("mr", "pet", "fused_pet"))
    assert mr.shape == pet.shape == fused.shape[:3]
    result = score_result(*(volumes / f"{name}.nii.gz" for name in ("fused_pet", "mr", "pet")), device="cpu")
    assert list(result.safety) == [one.name for kind in ("grey", "color", "stack") for one in SAFETY[kind]]
    assert len(result.safety["hue"]) == result.slices + result.left_out == 6
    assert result.safety["flicker"].shape == (1,)
    assert result.safety_of("background").worst == 0
    assert 0 < result.safety_of("flicker").worst <= 1.05
    grey = score_result(*(volumes / f"{name}.nii.gz" for name in ("fused_ct", "mr", "ct")), device="cpu")
    assert list(grey.safety) == [one.name for kind in ("grey", "stack") for one in SAFETY[kind]]
    assert "∞" not in grey.to_markdown().split("flicker")[-1]


def test_methods_on_a_pair_of_volumes() -> None:
    mr, pet = (phantom(modality, (6, 44, 46), "1.2.3") for modality in (Modality.MR, Modality.PT))
    told = []
    table = check_volumes(mr, pet, "average", device="cpu", progress=lambda *call: told.append(call))
    assert list(table.values) == ["average", *(name for name in CONTROLS if name != "average")]
    assert told[-1] == ("checking", len(CONTROLS), len(CONTROLS))
    assert table.slices == 6
    shown = [
        torch.from_numpy(np.rint(display.show(volume.array)[0] * 255).astype(np.uint8))
        for display, volume in ((display_of(mr, functional=False), mr), (display_of(pet, functional=True), pet))
    ]
    for name, fused in (("maximum", torch.maximum(*shown)), ("copy structural", shown[0])):
        assert table.safety_of("flicker", name).worst == pytest.approx(flicker(fused, *shown).item())
        assert table.safety_of("flicker", name).worst <= 1
        assert (
            table.safety_of("background", name).worst
            == background_error(*(one[:, None] for one in (fused, *shown))).max()
        )
    assert table.safety_of("hue 99.9 %", "copy functional").worst == 0
    words = check_volumes(mr, pet, "average", device="cpu", window="0:3")
    objects = check_volumes(mr, pet, "average", device="cpu", window=Window(0, 3))
    assert words.to_markdown() == objects.to_markdown() != table.to_markdown()
    assert table.to_markdown().startswith("6 slices; mean and worst slice\n\n| measure | average | copy structural |")


def test_volumes_beside_a_ct_keep_their_colour_and_beside_an_mr_what_the_luminance_leaves() -> None:
    pet = phantom(Modality.PT, (6, 44, 46), "1.2.3")
    lost = []
    for modality in (Modality.CT, Modality.MR):
        light = replace(phantom(modality, (6, 44, 46), "1.2.3"), array=np.full((6, 44, 46), 1000, np.float32))
        table = check_volumes(light, pet, "maximum", structural_window=Window(0, 1000), device="cpu")
        lost.append(table.safety_of("colour lost", "maximum").worst)
    assert lost[0] == 0
    assert lost[1] == 1


# Pictures


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_pictures_of_every_mode_give_pillow_s_own_luminance(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert(mode)
    image.save(tmp_path / "x.png")
    picture = read_picture(tmp_path / "x.png")
    expected = np.asarray(image.convert("L"), np.float64)
    np.testing.assert_allclose(picture.luminance * 255, expected, atol=0.51)
    assert (picture.chroma is not None) == (mode in ("P", "RGB", "RGBA"))
    write_picture(tmp_path / "y.png", picture.luminance, picture.chroma)
    rgb = np.asarray(image.convert("RGB"), np.int16)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "y.png").convert("RGB")), rgb)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_pictures_are_turned_as_they_say(tmp_path: Path, suffix: str) -> None:
    levels = np.zeros((ROWS, COLUMNS), np.uint8)
    levels[: ROWS // 3] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(levels).save(tmp_path / f"x.{suffix}", exif=exif)
    np.testing.assert_allclose(read_picture(tmp_path / f"x.{suffix}").luminance, np.rot90(levels, -1) / 255, atol=0.1)


def test_a_picture_whose_exif_is_damaged_is_read_as_it_lies(tmp_path: Path) -> None:
    Image.new("L", (COLUMNS, ROWS), 51).save(tmp_path / "x.png", exif=b"Exif\0\0nothing")
    np.testing.assert_allclose(read_picture(tmp_path / "x.png").luminance, np.full((ROWS, COLUMNS), 0.2))


# One result


def test_one_image_beside_its_sources(grey: Path) -> None:
    structural, functional = grey / "mri/7001.png", grey / "ct/7001.png"
    result = score_result(structural, structural, functional, device="cpu")
    assert (result.slices, result.left_out) == (1, 0)
    assert result.statistic("SSIM", "structural").mean == pytest.approx(1)
    assert result.statistic("SSIM", "worse") == result.statistic("SSIM", "functional")
    assert result.to_json()["measures"]["PSNR"]["structural"]["mean"] is None
    assert result.to_json()["measures"]["EN"]["unit"] == "bits"
    json.dumps(result.to_json(), allow_nan=False)
    header, *rows = result.cells()
    assert header == ["measure", "both", "structural", "functional", "worse"]
    assert [row[0].split(" ")[0] for row in rows[:2]] == ["EN", "SD"]
    with pytest.raises(KeyError, match="worse"):
        result.statistic("EN", "worse")
    with pytest.raises(UnsupportedImage, match="three images or three volumes"):
        score_result(structural, structural, grey / "ct.nii.gz")


def test_images_of_differing_sizes_are_refused(grey: Path) -> None:
    images(grey, "other.png", (50, 50))
    with pytest.raises(GridMismatch, match="56 × 48, 56 × 48, 50 × 50"):
        score_result(grey / "mri/7001.png", grey / "mri/7001.png", grey / "other.png")


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """An MR, a CT and a PET on one grid of 44 × 46 voxels, and what `fuse` makes of them."""
    mr = phantom(Modality.MR, (6, 44, 46), "1.2.3")
    for modality, name in ((Modality.CT, "ct"), (Modality.PT, "pet")):
        other = phantom(modality, (6, 44, 46), "1.2.3")
        write(other, tmp_path / f"{name}.nii.gz")
        write(fuse(mr, other, method="average", device="cpu"), tmp_path / f"fused_{name}.nii.gz")
    grey = fuse(mr, phantom(Modality.PT, (6, 44, 46), "1.2.3"), method="average", device="cpu", palette="GREY")
    write(grey, tmp_path / "fused_grey_pet.nii.gz")
    write(mr, tmp_path / "mr.nii.gz")
    return tmp_path


@pytest.mark.parametrize(("name", "palette"), [("ct", "HOT_IRON"), ("pet", "HOT_IRON"), ("grey_pet", "GREY")])
def test_volumes_are_measured_slice_by_slice(volumes: Path, name: str, palette: str) -> None:
    paths = (volumes / f"fused_{name}.nii.gz", volumes / "mr.nii.gz", volumes / f"{name.removeprefix('grey_')}.nii.gz")
    result = score_result(*paths, palette=palette)
    assert result.slices + result.left_out == 6
    assert result.slices >= 3
    assert result.statistic("CC").mean > 0.9
    # The mean of two images is as far from one as from the other, but for colours beyond RGB, which are cut off.
    structural, functional = (result.statistic("PSNR", side).mean for side in ("structural", "functional"))
    if name != "pet":
        assert structural == pytest.approx(functional, abs=0.3)


@pytest.mark.filterwarnings("ignore:.*unit of length:medfuse.errors.MedfuseWarning")
def test_volumes_on_another_grid_are_a_geometry_error(volumes: Path) -> None:
    image = nib.load(volumes / "ct.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), volumes / "short_ct.nii.gz")
    shifted = image.affine.copy()
    shifted[0, 3] += 1
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), shifted), volumes / "shifted_ct.nii.gz")
    for name, match in (("short", "of 6 × 44 × 45 against 6 × 44 × 46 voxels"), ("shifted", "at another place")):
        with pytest.raises(GeometryError, match=f"the functional one {match}"):
            score_result(volumes / "fused_ct.nii.gz", volumes / "mr.nii.gz", volumes / f"{name}_ct.nii.gz")


def test_a_volume_is_measured_through_the_windows_it_was_fused_with(volumes: Path, tmp_path: Path) -> None:
    mr, pet = read(volumes / "mr.nii.gz"), read(volumes / "pet.nii.gz")
    words = {"window": "1:3", "structural_window": "5%:80%", "palette": "PET"}
    write(fuse(mr, pet, method="average", device="cpu", **words), tmp_path / "so.nii.gz")
    paths = (tmp_path / "so.nii.gz", volumes / "mr.nii.gz", volumes / "pet.nii.gz")
    told, named = score_result(*paths, device="cpu"), score_result(*paths, device="cpu", **words)
    assert told.to_json() == named.to_json()
    (tmp_path / "so.json").unlink()
    assert score_result(*paths, device="cpu").to_json() != named.to_json()
    with pytest.raises(UnsupportedImage, match="expected a CT in HU for the window brain, found PT in SUV"):
        score_result(*paths, device="cpu", window="brain")


@pytest.mark.parametrize(("name", "modality"), [("pet", "pet"), ("ct", "ct"), ("ct", "mr")])
def test_what_a_source_does_not_say_the_history_says(volumes: Path, tmp_path: Path, name: str, modality: str) -> None:
    """Its modality, and with it its unit and whether it has a colour, as they were given to `fuse`."""
    (tmp_path / "bare").mkdir()
    for one, bare in (("mr", "one"), (name, "two")):
        shutil.copy(volumes / f"{one}.nii.gz", tmp_path / "bare" / f"{bare}.nii.gz")
    paths = [tmp_path / "bare" / f"{bare}.nii.gz" for bare in ("so", "one", "two")]
    words = {"window": "1:300", "structural_window": "-50:600", "palette": "PET"}
    sources = (read(paths[1], modality="ct"), read(paths[2], modality=modality))
    write(fuse(*sources, method="average", device="cpu", register="none", **words), paths[0])
    told = score_result(*paths, device="cpu")
    for path, said in zip(paths[1:], ("CT", modality), strict=True):
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps({"Modality": said}))
    assert told.to_json() == score_result(*paths, device="cpu", **words).to_json()


def test_a_source_in_another_unit_than_was_fused_needs_a_window(volumes: Path) -> None:
    paths = [volumes / f"{name}.nii.gz" for name in ("fused_pet", "mr", "pet")]
    sidecar = volumes / "pet.json"
    sidecar.write_text(sidecar.read_text().replace('"SUV"', '"BQML"'))
    with pytest.raises(UnsupportedImage, match="functional source as it was fused, PT in SUV, found PT in BQML"):
        score_result(*paths, device="cpu")
    assert score_result(*paths, device="cpu", window="0:10").slices


def test_grey_as_dicom_is_measured_as_it_is_in_nifti(volumes: Path, tmp_path: Path) -> None:
    """Also where another series lies in its folder."""
    mr, ct = read(volumes / "mr.nii.gz"), read(volumes / "ct.nii.gz")
    write_fused(fuse(mr, ct, method="average", device="cpu"), tmp_path / "out", "both", resampled=ct)
    sources = (volumes / "mr.nii.gz", volumes / "ct.nii.gz")
    stored = score_result(tmp_path / "out/dicom", *sources, series=("1000", None, None), device="cpu")
    exact = score_result(tmp_path / "out/fused.nii.gz", *sources, device="cpu")
    for name in ("SSIM", "PSNR", "VIF"):
        assert stored.statistic(name).mean == pytest.approx(exact.statistic(name).mean, rel=0.01)
    with pytest.raises(SeriesError, match=r"fused volume: expected one series, found 2.* with --fused-series "):
        score_result(tmp_path / "out/dicom", *sources, device="cpu")
    with pytest.raises(ValueError, match="series for volumes only"):
        score_result(*[tmp_path / "a.png"] * 3, series=("1", None, None))
    with pytest.raises(ValueError, match="a palette for volumes only"):
        score_result(*[tmp_path / "a.png"] * 3, palette="HOT_IRON")


def test_a_source_that_score_cannot_read_is_said_to_be_converted(volumes: Path) -> None:
    """`medfuse score` has none of the options by which `medfuse.read` takes it."""
    volume = nib.load(volumes / "pet.nii.gz")
    values = volume.get_fdata(dtype=np.float32)
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, volume.affine, volume.header), volumes / "pet.nii.gz")
    paths = (volumes / f"{name}.nii.gz" for name in ("fused_pet", "mr", "pet"))
    with pytest.raises(UnsupportedImage, match=r"functional volume: .*NaN.* medfuse convert has .*--fill-nan$"):
        score_result(*paths, device="cpu")


def test_what_is_no_result_is_refused(volumes: Path) -> None:
    with pytest.raises(UnsupportedImage, match=r"in colour or in \[0, 1\], found values from"):
        score_result(volumes / "ct.nii.gz", volumes / "mr.nii.gz", volumes / "ct.nii.gz")
    with pytest.raises(ValueError, match="palette of"):
        score_result(volumes / "fused_pet.nii.gz", volumes / "mr.nii.gz", volumes / "pet.nii.gz", palette="VIRIDIS")


# Real images


def test_three_real_pairs(shared: Path) -> None:
    folder = shared / "wba" / "ct-mri"
    table = run(folder, structural="mri", functional="ct", methods="dilran", device="cpu", limit=3)
    assert len(table.pairs) == 3
    assert table.statistic("SSIM", "copy functional", "functional").mean == pytest.approx(1)
    assert table.statistic("PSNR", "copy functional").mean < math.inf
    # Means of two sources put a copy before the average; the worse source puts it behind.
    assert table.mean_ranks()["copy functional"] < table.mean_ranks()["average"]
    assert table.mean_ranks("worse")["copy functional"] > table.mean_ranks("worse")["average"]
    for values in table.values.values():
        assert not np.isnan(values).any()
