"""The command line as its first user meets it: what it prints, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from phantoms import moved, phantom
from PIL import Image
from verdicts import REASON, SHIFT, registration

from medfuse.align import Registration
from medfuse.cli import main
from medfuse.cli.console import progress_bars
from medfuse.fusion import Engine
from medfuse.io.files import read, write
from medfuse.sample.series import Study, write_series
from medfuse.volume import Modality, Volume

COMMANDS = (
    "fuse",
    "info",
    "register",
    "run",
    "convert",
    "methods",
    "demo",
    "bench",
    "score",
    "train",
    "serve",
    "push",
    "pull",
    "queue",
    "queue list",
    "weights",
    "weights convert",
)
NAME, IDENTITY = "MUSTERMANN^ERIKA", "PID-271828"
FRAME = "1.2.826.0.1.999.1"


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The one object on standard output."""
        content = json.loads(self.out)
        assert isinstance(content, dict)
        return content


Command = Callable[..., Ran]


@pytest.fixture
def medfuse(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Command]:
    """Run `medfuse` with some arguments, in a fresh folder. No patient is ever named, and no traceback is shown."""
    level = logging.getLogger("pydicom").level
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    place, temporary = tmp_path / "place", tmp_path / "tmp"
    place.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["medfuse", *map(str, arguments)])
        code = None
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        assert isinstance(code, int)
        for secret in (*NAME.split("^"), IDENTITY, "Traceback"):
            assert secret not in out + err
        assert [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")] == []
        return Ran(code, out, err)

    yield run
    logging.getLogger("pydicom").setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def refused(medfuse: Command) -> Callable[..., None]:
    """Check that a command is refused with one line and an exit code, and that every file stays as it is."""

    def check(code: int, match: str, *arguments: object) -> None:
        before = content_of(Path())
        ran = medfuse(*arguments)
        assert (ran.code, ran.out) == (code, "")
        assert ran.err.startswith("medfuse: ")
        assert ran.err.count("\n") == 1
        assert re.search(match, ran.err), ran.err
        assert content_of(Path()) == before

    return check


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patient's MR, PET and CT as DICOM and as NIfTI (with sidecars), another patient's PET, and a far one."""
    root = tmp_path_factory.mktemp("scans")
    study = Study(IDENTITY, NAME)
    mr, ct = phantom(Modality.MR, (12, 18, 20), FRAME), phantom(Modality.CT, (12, 15, 16), FRAME)
    pet = phantom(Modality.PT, (9, 10, 12), FRAME)
    far = moved(pet, (900, 0, 0), FRAME)
    for number, (name, volume) in enumerate({"mr": mr, "pet": pet, "ct": ct, "far": far}.items(), 1):
        write_series(volume, root / "study" / name, description=name, number=number, study=study)
        write(read(root / "study" / name), root / f"{name}.nii.gz")
    write_series(pet, root / "other", description="pet", number=2, study=Study("PID-314159", NAME))
    (root / "study" / "far").rename(root / "far")
    return root


FUSE = ("--method", "maximum", "--device", "cpu")


# Help and versions


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(medfuse: Command, command: str) -> None:
    ran = medfuse(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: medfuse {command} ")
    listed = [line for line in ran.out.splitlines() if re.match(r"  -", line)]
    assert listed[-1].split()[0] == "--help"


def test_the_list_of_commands_is_whole_and_nothing_in_it_is_cut_short(medfuse: Command) -> None:
    ran = medfuse("--help")
    listed = ran.out.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == [command for command in COMMANDS if " " not in command]
    assert not any(line.endswith("...") for line in listed)
    assert "not for diagnostic use" in ran.out.lower()


def test_version(medfuse: Command) -> None:
    ran = medfuse("--version")
    assert (ran.code, ran.err) == (0, "")
    assert re.fullmatch(r"medfuse \d+\.\d+\.\d+\S*\n", ran.out)


def test_without_a_command_the_help_goes_to_standard_error(medfuse: Command) -> None:
    ran = medfuse()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: medfuse ")


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (("--help",), {"torch", "SimpleITK", "nibabel", "pydicom", "numpy", "scipy", "rich.progress"}),
        (("info",), {"torch", "skimage"}),
        (("convert", "--help"), {"torch", "numpy"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_not_needed_is_not_imported(scans: Path, arguments: tuple[str, ...], heavy: set[str]) -> None:
    arguments = (*arguments, str(scans / "study")) if arguments == ("info",) else arguments
    code = (
        "import atexit, sys; from medfuse.cli import main; sys.argv[0] = 'medfuse';"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout
    assert heavy & set(ran.stderr.split()) == set()


# Right input


def test_fuse_warns_of_uptake_on_white(medfuse: Command, scans: Path) -> None:
    words = ("fuse", scans / "study/mr", scans / "study/pet", "-o", "out.nii.gz", "--json", *FUSE)
    ran = medfuse(*words, "--structural-window=-2:-1")
    (told,) = json.loads(ran.out)["fuse"]["warnings"]
    assert (ran.code, ran.err) == (0, f"warning: {told}\n")
    assert re.match(r"in [1-9]\d* of 12 slices uptake that has a colour lies on white", told)
    assert medfuse(*words, "--overwrite").err == ""


@pytest.mark.parametrize("form", ["dicom", "nifti", "both"])
def test_fuse_says_what_it_did_and_where_it_wrote(medfuse: Command, scans: Path, form: str) -> None:
    ran = medfuse("fuse", scans / "study/mr", scans / "study/pet", "-o", "out", "--format", form, *FUSE)
    assert (ran.code, ran.err) == (0, "")
    assert "one frame of reference" in ran.out
    assert "12 slices of 18 × 20 with maximum on cpu" in ran.out
    assert "not for diagnostic use" in ran.out
    names = {path.name for path in Path("out").iterdir()}
    slices = {f"fused-{n:04d}.dcm" for n in range(1, 13)} | {"blending.dcm"}
    assert (
        names
        == {
            "dicom": slices,
            "nifti": {"fused.nii.gz", "fused.json"},
            "both": {"dicom", "fused.nii.gz", "fused.json"},
        }[form]
    )
    if form == "both":
        assert {path.name for path in Path("out/dicom").iterdir()} == slices


def test_json_of_fuse_is_one_object_that_names_what_was_written(medfuse: Command, scans: Path) -> None:
    ran = medfuse(
        *("fuse", scans / "study/mr", scans / "study/pet", "-o", "out", "--format", "both", *FUSE),
        *("--save-transform", "found.tfm", "--json"),
    )
    assert (ran.code, ran.err) == (0, "")
    content = ran.json
    assert sorted(content["outputs"]) == sorted(str(path) for path in Path().rglob("*") if path.is_file())
    assert content["shape"] == [12, 18, 20]
    assert content["spacing_mm"] == pytest.approx([3, 2.5, 2.4])
    assert content["align"]["moving_from_fixed"] == np.eye(4).tolist()
    assert content["fuse"]["method"] == "maximum"
    assert set(content["seconds"]) == {"read", "align", "fuse", "write"}
    assert "not for diagnostic use" in content["notice"]


def test_a_profile_in_json_adds_up(medfuse: Command, scans: Path) -> None:
    study = scans / "study"
    ran = medfuse("fuse", study / "mr", study / "pet", "-o", "out", *FUSE, "--register", "none", "--profile", "--json")
    assert (ran.code, ran.err) == (0, "")
    profile = ran.json["profile"]
    assert list(profile) == ["seconds", "total_seconds", "slices_per_second", "peak_memory_bytes"]
    assert list(profile["seconds"])[:2] == ["start-up", "read"]
    assert list(profile["seconds"])[-1] == "other"
    assert {"resample", "window", "write"} <= set(profile["seconds"])
    assert sum(profile["seconds"].values()) == pytest.approx(profile["total_seconds"], abs=0.01)
    assert profile["slices_per_second"] == pytest.approx(12 / profile["total_seconds"], rel=0.01, abs=0.06)
    assert profile["peak_memory_bytes"] is None or profile["peak_memory_bytes"] > 50e6


def test_a_profile_for_people_is_a_table(medfuse: Command, scans: Path) -> None:
    mr, pet = scans / "mr.nii.gz", scans / "pet.nii.gz"
    without = medfuse("fuse", mr, pet, "-o", "without", *FUSE, "--register", "none")
    assert "start-up" not in without.out
    ran = medfuse("fuse", mr, pet, "-o", "out", *FUSE, "--register", "none", "--profile")
    assert (ran.code, ran.err) == (0, "")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in ran.out.splitlines() if line[:1] == "|"]
    assert rows[0] == ["stage", "seconds", "share"]
    assert rows[-1][::2] == ["total", "100.0%"]
    shares = [float(share.rstrip("%")) for _, _, share in rows[2:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    assert re.search(r"^12 slices, [0-9.]+ a second", ran.out, re.MULTILINE)


@pytest.mark.parametrize("name", ["fused.nii", "fused.nii.gz", "fused.nrrd", "fused.mha", "deep/er/fused.mha"])
def test_a_file_name_chooses_the_format(medfuse: Command, scans: Path, name: str) -> None:
    ran = medfuse("fuse", scans / "mr.nii.gz", scans / "pet.nii.gz", "-o", name, *FUSE, "--register", "none")
    assert (ran.code, ran.err) == (0, "")
    assert read(name).is_color
    assert read(name).grid.matches(read(scans / "mr.nii.gz").grid)
    written = [path for path in Path().rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in written) == sorted([Path(name).suffix, ".json"])


def test_a_file_name_and_its_format_may_both_be_given(medfuse: Command, scans: Path) -> None:
    ran = medfuse(
        "fuse", scans / "study/mr", scans / "study/pet", "-o", "fused.nii.gz", "--format", "nifti", *FUSE, "--json"
    )
    assert ran.json["outputs"] == ["fused.nii.gz", "fused.json"]


@pytest.mark.parametrize(
    ("structural", "functional"), [("1", "2"), ("MR", "PT"), ("mr", "pet"), ("t1", "PET"), ("uid", "uid")]
)
def test_series_are_chosen_by_number_modality_and_uid(
    medfuse: Command, scans: Path, structural: str, functional: str
) -> None:
    if structural == "uid":
        uids = {one["modality"]: one["uid"] for one in medfuse("info", scans / "study", "--json").json["series"]}
        structural, functional = uids["MR"], uids["PT"]
    ran = medfuse(
        *("fuse", scans / "study", scans / "study", "-o", "out", *FUSE, "--json"),
        *("--structural-series", structural, "--functional-series", functional),
    )
    assert (ran.code, ran.err) == (0, "")
    assert [ran.json["fuse"][place]["modality"] for place in ("structural", "functional")] == ["MR", "PT"]


def test_zips_are_fused_like_folders(medfuse: Command, scans: Path) -> None:
    for name in ("mr", "pet"):
        shutil.make_archive(name, "zip", scans / "study" / name)
    assert medfuse("fuse", "mr.zip", "pet.zip", "-o", "zip.nii", *FUSE).code == 0
    assert medfuse("fuse", scans / "study/mr", scans / "study/pet", "-o", "folder.nii", *FUSE).code == 0
    assert Path("zip.nii").read_bytes() == Path("folder.nii").read_bytes()


@pytest.mark.parametrize("suffix", [".tfm", ".h5", ".txt"])
def test_a_saved_transform_gives_the_same_result_again(medfuse: Command, scans: Path, suffix: str) -> None:
    scans_of = ("fuse", scans / "study/mr", scans / "study/pet", *FUSE)
    first = medfuse(*scans_of, "-o", "a.nii", "--register", "rigid", "--save-transform", f"t{suffix}", "--json")
    again = medfuse(*scans_of, "-o", "b.nii", "--transform", f"t{suffix}", "--json")
    plain = medfuse(*scans_of, "-o", "c.nii", "--json")
    assert again.json["align"]["reason"] == "a given transform"
    assert first.json["align"]["moving_from_fixed"] == again.json["align"]["moving_from_fixed"] != np.eye(4).tolist()
    assert Path("a.nii").read_bytes() == Path("b.nii").read_bytes() != Path("c.nii").read_bytes()
    assert plain.json["align"]["registration"] is None


def test_a_deformable_transform_is_taken_and_saved_again(
    medfuse: Command, refused: Callable[..., None], scans: Path
) -> None:
    save = ("--save-transform", "x.txt")
    field = sitk.GetImageFromArray(np.broadcast_to((2.0, -1.0, 3.0), (8, 8, 8, 3)), isVector=True)
    field.SetOrigin((5.0, -25.0, 25.0))
    field.SetSpacing((8.0, 8.0, 8.0))
    sitk.WriteTransform(sitk.DisplacementFieldTransform(field), "bent.h5")
    pair = ("fuse", scans / "study/mr", scans / "study/pet", *FUSE, "--json")
    bent = medfuse(*pair, "-o", "a.nii", "--transform", "bent.h5", "--save-transform", "again.tfm")
    assert (bent.code, bent.json["align"]["reason"], bent.json["align"]["deformable"]) == (0, "a given transform", True)
    assert medfuse(*pair, "-o", "b.nii", "--transform", "again.tfm").json["align"]["deformable"]
    refused(7, "deformable transform ending in .*got x.txt", *pair, "-o", "x.nii", "--transform", "bent.h5", *save)
    Path("straight.txt").write_text("1 0 0 2\n0 1 0 -1\n0 0 1 3\n0 0 0 1\n")
    straight = medfuse(*pair, "-o", "c.nii", "--transform", "straight.txt").json
    assert not straight["align"]["deformable"]
    np.testing.assert_allclose(
        straight["align"]["moving_from_fixed"], bent.json["align"]["moving_from_fixed"], atol=1e-6
    )
    for name in ("b.nii", "c.nii"):
        np.testing.assert_allclose(read(name).array.astype(int), read("a.nii").array.astype(int), atol=1)


def test_register_writes_the_transform_that_fuse_finds(medfuse: Command, scans: Path) -> None:
    found = medfuse("register", scans / "study/mr", scans / "study/pet", "-o", "t.tfm", "--json")
    assert (found.code, found.err) == (0, "")
    assert found.json["outputs"] == ["t.tfm"]
    fused = medfuse(
        "fuse", scans / "study/mr", scans / "study/pet", *FUSE, "-o", "a.nii", "--register", "rigid", "--json"
    )
    assert fused.json["align"]["moving_from_fixed"] == found.json["transform"]
    told = medfuse("register", scans / "study", scans / "study", "-o", "t.tfm", "--overwrite", *SERIES_OF_REGISTER)
    assert f"found:   rigid registration, {found.json['trust']} (" in told.out


SERIES_OF_REGISTER = ("--fixed-series", "MR", "--moving-series", "2")


def test_register_affine(medfuse: Command, scans: Path) -> None:
    ran = medfuse("register", scans / "mr.nii.gz", scans / "pet.nii.gz", "-o", "t.h5", "--kind", "affine", "--json")
    assert ran.json["kind"] == "affine"
    assert Path("t.h5").is_file()


def test_windows_and_palettes_reach_the_picture(medfuse: Command, scans: Path) -> None:
    def picture(*options: str) -> bytes:
        Path("x.nii").unlink(missing_ok=True)
        ran = medfuse("fuse", scans / "study/mr", scans / "study/pet", "-o", "x.nii", *FUSE, "--overwrite", *options)
        assert ran.code == 0
        return Path("x.nii").read_bytes()

    default = picture()
    assert picture("--window", "0:10", "--palette", "HOT_IRON") == picture("--window", "5,10") == default
    others = [
        picture("--window", "0:3"),
        picture("--window", "0%:90%"),
        picture("--structural-window", "450,100"),
        *(picture("--palette", name) for name in ("PET", "HOT_METAL_BLUE", "PET_20_STEP")),
    ]
    assert len({default, *others}) == 1 + len(others)
    picture("--palette", "GREY")
    assert not read("x.nii").is_color


def test_the_network_is_the_default_and_its_weights_can_be_given(medfuse: Command, scans: Path) -> None:
    from importlib import resources

    shipped = resources.files("medfuse") / "models" / "duet-pet.safetensors"
    pair = ("fuse", scans / "study/mr", scans / "study/pet", "--device", "cpu", "--json")
    default = medfuse(*pair, "-o", "a.nii").json
    assert (default["fuse"]["method"], default["fuse"]["strategy"]) == ("duet", None)
    given = medfuse(*pair, "-o", "b.nii", "--weights", shipped).json
    assert given["fuse"]["weights_sha256"] == default["fuse"]["weights_sha256"]
    averaged = medfuse(*pair, "-o", "c.nii", "--method", "dilran", "--strategy", "average").json
    assert averaged["fuse"]["strategy"] == "average"
    assert Path("a.nii").read_bytes() == Path("b.nii").read_bytes() != Path("c.nii").read_bytes()


def test_nan_is_filled_only_when_asked(medfuse: Command, refused: Callable[..., None], scans: Path) -> None:
    spoil(scans / "pet.nii.gz", Path("nan_pet.nii.gz"))
    pair = ("fuse", scans / "mr.nii.gz", "nan_pet.nii.gz", "-o", "x.nii", *FUSE, "--register", "none")
    refused(3, r"functional scan: .*2 of 1080 voxels that are NaN or infinite.*--fill-nan", *pair)
    for value in ("nan", "inf", "zero"):
        refused(2, "number", *pair, "--fill-nan", value)
    assert medfuse(*pair, "--fill-nan", "0").code == 0


def spoil(source: Path, target: Path) -> None:
    image = nib.load(source)
    data = image.get_fdata(dtype=np.float32)
    data[1, 2, 3], data[3, 2, 1] = np.nan, np.inf
    nib.save(nib.Nifti1Image(data, image.affine), target)


def test_an_earlier_result_is_replaced_only_when_asked(
    medfuse: Command, refused: Callable[..., None], scans: Path
) -> None:
    pair = ("fuse", scans / "study/mr", scans / "study/pet", "-o", "out", "--format", "both", *FUSE)
    assert medfuse(*pair).code == 0
    uid = medfuse("info", "out/dicom", "--json").json["series"][0]["uid"]
    refused(7, "out exists.*--overwrite", *pair)
    assert medfuse(*pair, "--overwrite").code == 0
    assert medfuse("info", "out/dicom", "--json").json["series"][0]["uid"] != uid
    Path("out/thesis.txt").write_text("years of work")
    refused(7, "out.*1 other", *pair, "--overwrite")


def test_a_fused_series_is_a_functional_scan_again_but_never_a_structural_one(
    medfuse: Command, refused: Callable[..., None], scans: Path
) -> None:
    assert medfuse("fuse", scans / "study/mr", scans / "study/pet", "-o", "out", "--format", "both", *FUSE).code == 0
    for again in ("out/dicom", "out/fused.nii.gz"):
        ran = medfuse("fuse", scans / "study/mr", again, "-o", "x.nii", *FUSE, "--register", "none", "--overwrite")
        assert ran.code == 0
        refused(3, "grey MR or CT.*colour.*second", "fuse", again, scans / "study/pet", "-o", "y", *FUSE)


def test_info_tells_people_and_scripts_the_same(medfuse: Command, scans: Path) -> None:
    told, listed = medfuse("info", scans / "study"), medfuse("info", scans / "study", "--json")
    assert (told.code, listed.code, told.err, listed.err) == (0, 0, "", "")
    by_modality = {one["modality"]: one for one in listed.json["series"]}
    assert set(by_modality) == {"MR", "PT", "CT"}
    assert by_modality["MR"]["shape"] == [12, 18, 20]
    assert by_modality["PT"]["unit"] == "SUV"
    for one in by_modality.values():
        assert one["usable"]
        assert one["uid"] in told.out
    assert "12 × 18 × 20 (slices × rows × columns)" in told.out


@pytest.mark.parametrize("kind", ["empty", "text", "sidecar"])
def test_info_of_what_holds_no_scan(medfuse: Command, scans: Path, kind: str) -> None:
    Path("folder").mkdir()
    if kind == "text":
        Path("folder/note.txt").write_text("hello")
    if kind == "sidecar":
        shutil.copy(scans / "pet.nii.gz", "folder")
        shutil.copy(scans / "pet.json", "folder")
    content = medfuse("info", "folder", "--json").json
    assert len(content["series"]) == (kind == "sidecar")
    assert len(content["left_out"]) == (kind == "text")
    assert medfuse("info", "folder").code == 0


@pytest.mark.parametrize("out", ["x.nii.gz", "x.nii", "x.nrrd", "x.mha", "x"])
def test_convert(medfuse: Command, scans: Path, out: str) -> None:
    ran = medfuse("convert", scans / "study", out, "--series", "MR", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert all(Path(path).is_file() for path in ran.json["outputs"])
    original, converted = read(scans / "study/mr"), read(out)
    assert converted.grid.matches(original.grid)
    np.testing.assert_allclose(converted.array, original.array, atol=0.5)
    assert medfuse("convert", scans / "study/mr", out, "--overwrite").out.startswith("written: ")


def test_methods_lists_every_method_and_strategy(medfuse: Command) -> None:
    told, listed = medfuse("methods"), medfuse("methods", "--json")
    assert set(listed.json) >= {"dilran", "average", "maximum"}
    for name, entry in listed.json.items():
        assert name in told.out
        assert all(strategy in told.out for strategy in entry["strategies"])


def test_weights_convert_makes_weights_that_fuse_takes(
    medfuse: Command, refused: Callable[..., None], scans: Path, shared: Path
) -> None:
    published = shared / "reference-networks" / "dilran_published.pt"
    assert medfuse("weights", "convert", published, "w.safetensors", "--json").json["outputs"] == ["w.safetensors"]
    ran = medfuse(
        "fuse",
        scans / "mr.nii.gz",
        scans / "pet.nii.gz",
        "-o",
        "x.nii",
        "--method",
        "dilran",
        "--weights",
        "w.safetensors",
    )
    assert ran.code == 0
    refused(7, "w.safetensors exists", "weights", "convert", published, "w.safetensors")
    refused(2, "network of dilran", "weights", "convert", published, "v.safetensors", "--network", "unet")
    Path("note.pt").write_text("hello")
    refused(6, "cannot read note.pt", "weights", "convert", "note.pt", "v.safetensors")
    refused(2, "[Mm]issing command", "weights")


def test_train_writes_weights_and_tells_its_figures(medfuse: Command, refused: Callable[..., None]) -> None:
    Path("data/set").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("1001", "1002", "2001"):
        Image.fromarray(rng.integers(0, 256, (24, 20), dtype=np.uint8)).save(f"data/set/{name}.png")
    Path("small.yaml").write_text(
        "network: dilran\nsets: [set]\nvalidation_cases: ['2']\nlosses: {l2: 1.0}\ncrop: 16\nbatch: 2\nsteps: 2\n"
        "learning_rate: 0.001\nfreeze_statistics_after: 0.5\nseed: 1\n"
    )
    ran = medfuse("train", "small.yaml", "--data", "data", "-o", "out", "--device", "cpu", "--json")
    assert (ran.code, ran.json["step"]) == (0, 2)
    assert {path.name for path in Path("out").iterdir()} == {
        "checkpoint.pt",
        "dilran.safetensors",
        "log.csv",
        "training.json",
    }
    refused(7, "found a training in out", "train", "small.yaml", "--data", "data", "-o", "out", "--device", "cpu")
    again = medfuse("train", "small.yaml", "--data", "data", "-o", "out", "--device", "cpu", "--resume", "--json")
    assert again.json == ran.json
    Path("out/checkpoint.pt").unlink()  # it is large, and the weights are there
    for words in ((), ("--resume",)):
        line = ("train", "small.yaml", "--data", "data", "-o", "out", "--device", "cpu", *words)
        refused(7, "found a training in out. Go on with --resume, which needs its checkpoint.pt", *line)
    Path("out/tensorboard").mkdir()
    for name in ("events.out.tfevents.1", "mine.txt"):
        Path("out/tensorboard", name).write_text("log")
    log = Path("out2/tensorboard/events.out.tfevents.1")
    log.parent.mkdir(parents=True)
    log.write_text("log")
    refused(7, "found a training in out2", "train", "small.yaml", "--data", "data", "-o", "out2", "--device", "cpu")
    log.unlink()
    Path("small.yaml").write_text(Path("small.yaml").read_text().replace("seed: 1", "seed: 2"))
    new = medfuse("train", "small.yaml", "--data", "data", "-o", "out", "--device", "cpu", "--overwrite", "--json")
    assert new.code == 0
    assert [path.name for path in Path("out/tensorboard").iterdir()] == ["mine.txt"]
    refused(3, "YAML file", "train", "nothing.yaml", "--data", "data", "-o", "out2")
    refused(3, "none", "train", "small.yaml", "--data", "nothing", "-o", "out2")
    refused(2, "expected a device", "train", "small.yaml", "--data", "data", "-o", "out2", "--device", "abacus")


def test_demo_registers_the_phantom_and_tells_the_error(
    medfuse: Command, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfuse.sample.demo.Engine", partial(Engine, "maximum"))  # the network is not the point here
    ran = medfuse("demo", "-o", "demo", "--device", "cpu", "--json")
    assert (ran.code, ran.err) == (0, "")
    content = ran.json
    assert content["misalignment_mm"] > 5
    assert set(content["error_mm"]) == {"pet", "ct"}
    assert max(content["error_mm"].values()) < 2
    assert all(reason.startswith("rigid registration, trusted") for reason in content["aligned"].values())
    assert Image.open(content["figure"]).size[0] > 300
    for path in (content["scans"], *content["fused"].values()):
        assert Path(path).is_dir()
    refused(7, "demo exists", "demo")


# Registrations that are trusted, and those that are not


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let every registration find `SHIFT`, with such a verdict."""

    def let(trust: str) -> None:
        def run(_fixed: Volume, _moving: Volume, kind: str, **_options: object) -> Registration:
            return registration(trust, kind)

        monkeypatch.setattr("medfuse.alignment.run_registration", run)
        monkeypatch.setattr("medfuse.align.register", run)

    return let


def test_a_trusted_registration_is_told_with_its_numbers(
    medfuse: Command, scans: Path, find: Callable[[str], None]
) -> None:
    find("trusted")
    ran = medfuse("fuse", scans / "study/mr", scans / "study/pet", "-o", "out", *FUSE, "--register", "rigid")
    assert (ran.code, ran.err) == (0, "")
    assert "aligned: rigid registration, trusted (agreement 0.4 mm) (" in ran.out
    for number in ("inverse 0.4 mm", "moved by 5.8 mm", "1.020 before, 1.190 after", "overlap 81% before"):
        assert number in ran.out
    ran = medfuse("register", scans / "study/mr", scans / "study/pet", "-o", "t.tfm", "--kind", "affine")
    assert (ran.code, ran.err) == (0, "")
    assert "found:   affine registration, trusted (agreement 0.4 mm)\n" in ran.out
    assert "inverse 0.4 mm" in ran.out


def test_a_doubtful_registration_is_said_to_be_so_everywhere(
    medfuse: Command, scans: Path, find: Callable[[str], None]
) -> None:
    find("doubtful")
    pair = (scans / "study/mr", scans / "study/pet", "--json")
    warning = f"warning: {{}} ({REASON}). Look at the result before you rely on it\n"
    ran = medfuse("fuse", *pair, "-o", "a", *FUSE, "--register", "rigid")
    assert (ran.code, ran.err) == (0, warning.format("header, for the rigid registration is doubtful"))
    assert (ran.json["align"]["trust"], ran.json["align"]["registered"]) == ("doubtful", False)
    assert ran.json["align"]["registration"]["reasons"] == [REASON]
    ran = medfuse("fuse", *pair[:2], "-o", "c", *FUSE, "--register", "rigid", "--save-transform", "c.txt")
    assert "of the registration, which is not used:\n         independent runs" in ran.out
    assert "written: c.txt\n" in ran.out
    ran = medfuse("fuse", *pair, "-o", "b", *FUSE, "--register", "rigid", "--accept-untrusted")
    assert (ran.code, ran.err) == (0, warning.format("rigid registration, doubtful"))
    assert ran.json["align"]["registered"]
    assert ran.json["align"]["moving_from_fixed"] == SHIFT.moving_from_fixed.tolist()
    ran = medfuse("register", *pair, "-o", "t.tfm")
    assert (ran.code, ran.err) == (0, warning.format("rigid registration, doubtful"))
    assert ran.json["trust"] == "doubtful"
    assert Path("t.tfm").is_file()


def test_a_failed_registration_writes_nothing_unless_accepted(
    medfuse: Command, refused: Callable[..., None], scans: Path, find: Callable[[str], None]
) -> None:
    find("failed")
    match = rf"rigid one failed \({REASON}\): .*agreement 0.4 mm.*--register none.*--transform.*--accept-untrusted"
    fusing = ("fuse", scans / "study/mr", scans / "study/pet", "-o", "out", *FUSE, "--register", "rigid")
    registering = ("register", scans / "study/mr", scans / "study/pet", "-o", "t.tfm")
    for command in (fusing, registering):
        refused(5, match, *command)
        ran = medfuse(*command, "--accept-untrusted", "--json")
        assert (ran.code, f"rigid registration, failed ({REASON})" in ran.err) == (0, True)
        assert ran.json.get("align", ran.json)["trust"] == "failed"


@pytest.mark.parametrize("command", ["fuse", "register"])
def test_threads_reach_the_registration(
    medfuse: Command, scans: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    asked = []

    def run(*_pair: object, threads: int, **_options: object) -> Registration:
        asked.append(threads)
        return registration("trusted")

    monkeypatch.setattr("medfuse.alignment.run_registration", run)
    monkeypatch.setattr("medfuse.align.register", run)
    how = {"fuse": ("-o", "out", *FUSE, "--register", "rigid"), "register": ("-o", "t.tfm")}
    assert medfuse(command, scans / "study/mr", scans / "study/pet", *how[command], "--threads", 3).code == 0
    assert asked == [3]


# What rides along


def test_pet_moves_with_its_ct(medfuse: Command, scans: Path, find: Callable[[str], None]) -> None:
    find("trusted")
    study = scans / "study"
    ran = medfuse(
        *("fuse", study / "mr", study / "ct", "--also", study / "pet", "-o", "out", "--format", "both", *FUSE),
        *("--register", "rigid", "--accept-untrusted", "--also-window", "0:4", "--json"),
    )
    assert (ran.code, ran.err) == (0, "")
    assert sorted(ran.json["outputs"]) == sorted(str(path) for path in Path().rglob("*") if path.is_file())
    also = ran.json["also"]
    assert also["align"]["reason"].startswith("with the CT, one frame of reference: rigid registration, trusted")
    assert (
        also["align"]["moving_from_fixed"] == ran.json["align"]["moving_from_fixed"] == SHIFT.moving_from_fixed.tolist()
    )
    assert (ran.json["fuse"]["functional"]["modality"], also["fuse"]["functional"]["modality"]) == ("CT", "PT")
    assert also["fuse"]["functional"]["window"] == "0:4"
    assert also["shape"] == ran.json["shape"]
    assert not read("out/fused.nii.gz").is_color
    assert read("out/also/fused.nii.gz").is_color
    assert read("out/also/dicom").grid.matches(read(study / "mr").grid)
    medfuse("register", study / "mr", study / "ct", "-o", "t.tfm")
    medfuse("fuse", study / "mr", study / "pet", "-o", "alone.nii.gz", *FUSE, "--transform", "t.tfm", "--window", "0:4")
    assert np.array_equal(read("out/also/fused.nii.gz").array, read("alone.nii.gz").array)
    told = medfuse(
        "fuse", study / "mr", study / "ct", "--also", study / "pet", "-o", "told", *FUSE, "--grid", "functional"
    )
    k, j, i = read(study / "pet").grid.shape
    assert (
        f"also:    {k} slices of {j} × {i}, with the CT, one frame of reference: one frame of reference\n" in told.out
    )


def test_what_rides_along_is_read_by_its_own_words(medfuse: Command, refused: Callable[..., None], scans: Path) -> None:
    pair = ("fuse", scans / "study/mr", scans / "study/ct", "-o", "out", *FUSE, "--also")
    refused(3, "also scan: .*--also-series", *pair, scans / "study")
    refused(3, "also scan: expected a scan in SUV", *pair, scans / "ct.nii.gz", "--also-units", "suv")
    refused(3, "also scan: .*nothing named nowhere", *pair, "nowhere")
    ran = medfuse(*pair, scans / "study", "--also-series", "PT", "--also-modality", "spect", "--json")
    assert ran.json["also"]["fuse"]["functional"]["modality"] == "NM"


def test_what_may_not_ride_along(refused: Callable[..., None], scans: Path) -> None:
    study = ("fuse", scans / "study/mr", scans / "study/ct", *FUSE)
    refused(4, "expected a series to ride along.*--save-transform", *study, "-o", "out", "--also", scans / "pet.nii.gz")
    refused(3, "two patient identities", *study, "-o", "out", "--also", scans / "other")
    refused(7, "folder for two series", *study, "-o", "x.nii", "--also", scans / "study/pet")
    refused(7, "is or holds an input", *study, "-o", scans / "study/pet", "--overwrite", "--also", scans / "study/pet")


# Wrong input


@pytest.mark.parametrize(
    ("code", "match", "options"),
    [
        (2, "format of dicom, nifti, both, got 'png'", "--format png"),
        (2, "method of duet, dilran, eh-dran, .*average, maximum, got 'magic'", "--method magic"),
        (2, "strategy.*'magic'", "--method dilran --strategy magic"),
        (2, "strategy.*'average'", "--strategy average"),
        (2, "no weights", "--weights note.txt"),
        (2, "register of auto, rigid, affine, deformable, none, got 'magic'", "--register magic"),
        (2, "palette of HOT_IRON.*got 'VIRIDIS'", "--palette VIRIDIS"),
        *((2, "grid of structural, functional or a voxel size", f"--grid {word}") for word in ("x", "0", "-2", "nan")),
        *((2, "expected a window", f"--window {word}") for word in ("x", "7", "1,2,3", "9:1", "5,0", "nan:1", "1%:5")),
        (2, "expected a window", "--structural-window wide"),
        (2, "expected a device", "--device abacus"),
        (2, "no device 'cuda:99'", "--device cuda:99"),
        (2, "modality of ct", "--structural-modality x-ray"),
        (2, "modality of ct", "--functional-modality x-ray"),
        *((2, "exclude one another", f"--transform t.tfm --register {kind}") for kind in ("rigid", "deformable")),
        *((2, "--also with its options, got them alone", f"--also-{word}") for word in ("series 2", "frame 0")),
        (2, "threads", "--threads 0"),
        (2, "apart from the output", "--save-transform out/t.tfm"),
        (2, "No such option", "--magic"),
        (3, "grey MR or CT.*PT", "--structural-modality pet"),
        (3, "structural scan: .*none that fits.*--structural-series", "--structural-series 77"),
        (3, "functional scan: .*none that fits.*--functional-series", "--functional-series MR"),
        (3, "nothing named t.tfm", "--transform t.tfm"),
        (3, "cannot read note.tfm", "--transform note.tfm"),
        (3, "linear 3-D transform", "--transform flat.tfm"),
        (4, "at most .* voxels.*larger", "--grid 0.001"),
        (4, "no voxel of one inside the other", "--transform away.tfm"),
        (6, "found something else in note.txt", "--method dilran --weights note.txt"),
        (6, "cannot read nothing.safetensors", "--method dilran --weights nothing.safetensors"),
        (7, r"\.tfm or \.h5", "--save-transform t.png"),
        (7, "deformable.*t.txt", "--register deformable --save-transform t.txt"),
        (7, "note.txt above it is a file", "--save-transform note.txt/t.tfm"),
        (7, "note.tfm exists", "--save-transform note.tfm"),
        (7, "note.tfm is or holds an input", "--transform note.tfm --save-transform note.tfm --overwrite"),
        (7, "folder for both", "-o x.nii.gz --format both"),
        (7, "dicom name", "-o x.nii.gz --format dicom"),
        (7, "dicom name", "-o x.mhd"),
    ],
)
def test_a_wrong_word_is_refused(
    refused: Callable[..., None], scans: Path, code: int, match: str, options: str
) -> None:
    Path("note.txt").write_text("hello")
    Path("note.tfm").write_text("hello")
    sitk.WriteTransform(sitk.TranslationTransform(2, (1, 1)), "flat.tfm")
    sitk.WriteTransform(sitk.TranslationTransform(3, (500, 1, 1)), "away.tfm")
    refused(code, match, "fuse", scans / "study/mr", scans / "study/pet", "-o", "out", *FUSE, *options.split())


def test_no_gpu_is_said_before_anything_is_read(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(2, "no device 'cuda'.*--device auto or cpu", "fuse", "x", "y", "-o", "out", "--device", "cuda")


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("No such command 'magic'", "magic"),
        ("Missing argument", "fuse"),
        ("Missing argument", "fuse x"),
        ("Missing option '-o'", "fuse x y"),
        ("unexpected extra argument", "fuse x y z -o out"),
        ("Missing argument", "info"),
        ("Missing option '-o'", "register x y"),
        ("kind of rigid, affine, deformable, got 'none'", "register x y -o t.tfm --kind none"),
        ("Missing argument", "convert x"),
        ("expected a device", "demo --device abacus"),
    ],
)
def test_wrong_usage_names_the_help(refused: Callable[..., None], match: str, arguments: str) -> None:
    refused(2, rf"{match}.* See medfuse( {arguments.split(maxsplit=1)[0]})? --help$", *arguments.split())


@pytest.mark.parametrize("place", ["structural", "functional"])
@pytest.mark.parametrize(
    "kind", ["missing", "empty", "text file", "text folder", "cut slice", "cut header", "cut nifti"]
)
def test_a_scan_that_cannot_be_read(refused: Callable[..., None], scans: Path, kind: str, place: str) -> None:
    wrong, match = Path("wrong"), "nothing named wrong"
    if kind.endswith("file"):
        wrong.write_text("hello")
        match = "none of these in wrong"
    elif kind in ("empty", "text folder"):
        wrong.mkdir()
        match = "expected a scan in wrong"
        if kind != "empty":
            (wrong / "note.txt").write_text("hello")
    elif kind == "cut nifti":
        content = (scans / "mr.nii.gz").read_bytes()
        wrong.write_bytes(content[: len(content) // 2])
        match = "cut short or damaged"
    elif kind.startswith("cut"):
        shutil.copytree(scans / "study/mr", wrong)
        content = (wrong / "IM0003.dcm").read_bytes()
        (wrong / "IM0003.dcm").write_bytes(content[: len(content) - 100 if kind == "cut slice" else 200])
        match = "IM0003.dcm truncated or damaged" if kind == "cut slice" else "1 damaged"
    pair = {"structural": scans / "study/mr", "functional": scans / "study/pet"} | {place: wrong}
    refused(3, f"{place} scan: .*{match}", "fuse", *pair.values(), "-o", "out", *FUSE)


def test_two_patients(medfuse: Command, refused: Callable[..., None], scans: Path) -> None:
    fusing = ("fuse", scans / "study/mr", scans / "other", "-o", "out", *FUSE)
    registering = ("register", scans / "study/mr", scans / "other", "-o", "t.tfm", "--accept-untrusted")
    for command in (fusing, registering):
        refused(3, "two patient identities.*--any-patient", *command)
        assert medfuse(*command, "--any-patient").code == 0


@pytest.mark.parametrize("form", ["dicom", "nifti"])
def test_scans_that_do_not_overlap(refused: Callable[..., None], scans: Path, form: str) -> None:
    pair = (scans / "study/mr", scans / "far") if form == "dicom" else (scans / "mr.nii.gz", scans / "far.nii.gz")
    refused(4, "overlap.*--register rigid", "fuse", *pair, "-o", "out", *FUSE, "--register", "none")


def test_pet_in_the_structural_place(refused: Callable[..., None], scans: Path) -> None:
    refused(3, "found a PT volume.*MR or CT first", "fuse", scans / "study/pet", scans / "study/mr", "-o", "out", *FUSE)


def test_several_series_are_listed(refused: Callable[..., None], scans: Path) -> None:
    listed = r"number 1 \(MR, 12 images of 18 × 20\); number 2 \(PT.*number 3 \(CT.*--structural-series"
    refused(3, listed, "fuse", scans / "study", scans / "study/pet", "-o", "out", *FUSE)
    refused(3, "fixed scan: .*--fixed-series", "register", scans / "study", scans / "study/pet", "-o", "t.tfm")
    refused(3, "--series", "convert", scans / "study", "x.nii")


@pytest.mark.parametrize(
    ("command", "above"),
    [
        *product(("fuse", "register", "convert", "demo"), ("note.txt", "note.txt/deep")),
        *product(("fuse", "register", "convert"), ("/proc/nobody",)),
    ],
)
def test_an_unwritable_output(refused: Callable[..., None], scans: Path, command: str, above: str) -> None:
    if above.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("there is no /proc here")
    Path("note.txt").write_text("hello")
    mr, pet = scans / "study/mr", scans / "study/pet"
    arguments = {
        "fuse": (mr, pet, "-o", f"{above}/out", *FUSE, "--save-transform", "t.tfm"),
        "register": (mr, pet, "-o", f"{above}/t.tfm"),
        "convert": (mr, f"{above}/x.nii"),
        "demo": ("-o", f"{above}/out"),
    }
    refused(7, "(could not|cannot) write (out|t.tfm|x.nii)", command, *arguments[command])


@pytest.mark.parametrize("out", ["study", "study/mr", "study/mr/IM0001.dcm", "."])
def test_an_input_is_never_overwritten(refused: Callable[..., None], scans: Path, out: str) -> None:
    shutil.copytree(scans / "study", "study")
    refused(7, "is or holds an input", "fuse", "study/mr", "study/pet", "-o", out, *FUSE, "--overwrite")
    refused(7, "is or holds an input", "convert", "study/mr", out, "--overwrite")


def test_a_nifti_input_and_its_sidecar_are_never_overwritten(refused: Callable[..., None], scans: Path) -> None:
    for name in ("mr", "pet"):
        shutil.copy(scans / f"{name}.nii.gz", f"{name}.nii.gz")
        shutil.copy(scans / f"{name}.json", f"{name}.json")
    for out in ("mr.nii.gz", "pet.nii.gz", "pet.nrrd"):
        refused(7, "is or holds an input", "fuse", "mr.nii.gz", "pet.nii.gz", "-o", out, *FUSE, "--overwrite")


def test_nothing_is_left_when_writing_fails(
    refused: Callable[..., None], scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_volume: Volume, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medfuse.io.files.write_nifti", full)
    options = ("--format", "both", "--save-transform", "deep/t.tfm", *FUSE)
    refused(7, "No space left", "fuse", scans / "study/mr", scans / "study/pet", "-o", "deep/out", *options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device on this system")
@pytest.mark.parametrize("command", ["methods", "info"])
def test_what_is_printed_to_a_full_disk_is_no_fault_of_ours(scans: Path, command: str) -> None:
    arguments = ["methods"] if command == "methods" else ["info", str(scans / "pet.nii.gz"), "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "medfuse", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, "could not write: No space left on device" in done.stderr) == (7, True), done.stderr


@pytest.mark.parametrize(("place", "code"), [("scan", 0), ("folder", 0), ("out", 7)])
def test_the_system_s_rights_are_judged_by_what_reads_and_writes(
    medfuse: Command, scans: Path, monkeypatch: pytest.MonkeyPatch, place: str, code: int
) -> None:
    """Not by the options, as a wrong usage, with the whole path."""
    Path("out.nii").write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    arguments = {
        "scan": ("info", scans / "pet.nii.gz"),
        "folder": ("info", scans / "study"),
        "out": ("convert", scans / "pet.nii.gz", "out.nii", "--overwrite"),
    }[place]
    assert medfuse(*arguments).code == code


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (MemoryError(), "not enough memory.*--grid 2"),
        (RuntimeError("CUDA out of memory"), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (RuntimeError("allocation policy in memory"), "unforeseen RuntimeError"),
        (ValueError("out of memory"), "unforeseen ValueError"),
        (ZeroDivisionError(NAME), "unforeseen ZeroDivisionError.*MEDFUSE_DEBUG=1"),
        (OSError(errno.ENOTTY, NAME), "unforeseen OSError"),
    ],
)
def test_what_was_not_foreseen_ends_in_one_line_too(
    refused: Callable[..., None], scans: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, match: str
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.delenv("MEDFUSE_DEBUG", raising=False)
    monkeypatch.setattr("medfuse.pipeline.fuse", fail)
    refused(1, match, "fuse", scans / "study/mr", scans / "study/pet", "-o", "out", *FUSE)


def test_too_small_a_memory_is_refused_before_the_registration(
    refused: Callable[..., None], scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfuse.alignment.align", pytest.fail)
    options = ("--grid", 1, "--memory", 1, "--method", "maximum", "--device", "cpu")
    match = r"expected at least \d+ MiB of memory for slices of \d+ × \d+, got 1\. See medfuse fuse --help"
    refused(2, match, "fuse", scans / "study/mr", scans / "study/pet", "-o", "out", *options)


def test_the_traceback_of_a_fault_can_be_asked_for(
    medfuse: Command, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError("here")

    monkeypatch.setenv("MEDFUSE_DEBUG", "1")
    monkeypatch.setattr("medfuse.pipeline.fuse", fail)
    with pytest.raises(ZeroDivisionError, match="here"):
        medfuse("fuse", scans / "study/mr", scans / "study/pet", "-o", "out", *FUSE)


# As a process


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_stopped_in_the_middle_of_writing(scans: Path, tmp_path: Path, sign: signal.Signals, code: int) -> None:
    program = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it,
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # and what nohup began this one
        "import medfuse.io.files as files\n"
        "from medfuse.cli import main\n"
        "def slow(volume, path):\n"
        "    path.write_bytes(b'half')\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
        "files.write_nifti = slow\n"
        "main()\n"
    )
    arguments = ("fuse", scans / "study/mr", scans / "study/pet", "-o", "deep/out", "--format", "both", *FUSE)
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments), "--save-transform", "t.tfm"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    assert list(tmp_path.rglob("fused.nii.gz"))
    process.send_signal(sign)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err == ("medfuse: interrupted\n" if code == 130 else "")
    assert list(tmp_path.iterdir()) == []


def test_the_installed_command(scans: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("medfuse")
    if not command.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("medfuse is not installed beside this Python")
    arguments = ("fuse", scans / "study/mr", scans / "study/pet", "-o", "out", *FUSE, "--json")
    ran = subprocess.run([command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    assert len(json.loads(ran.stdout)["outputs"]) == 13  # 12 slices, and how to blend the two scans
    ran = subprocess.run([command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (7, "", 1)


def test_a_terminal_sees_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bars() as progress:
        progress("fusing", 1, 2)
        progress("fusing", 2, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "fusing" in err
