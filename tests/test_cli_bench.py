"""`medfuse bench` and `medfuse score` as their user meets them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import scene
from PIL import Image
from rich.console import Console
from test_cli import Command, medfuse, refused  # noqa: F401

from medfuse.cli.tables import _parts, print_table

BENCH = ("bench", "data", "--functional", "pet", "--structural", "mri", "--device", "cpu")


@pytest.fixture
def data(medfuse: Command) -> Path:  # noqa: F811
    """Two pairs with a functional image in colour, and one image without a partner, in the folder of the command."""
    folder = Path("data")
    for name in ("mri", "pet"):
        (folder / name).mkdir(parents=True)
    _, waves, blocks = (image[0, 0].numpy() for image in scene(44, 48))
    for index, name in enumerate(("1001", "1002")):
        structural, functional = np.roll(waves, index, axis=1), np.roll(blocks, index, axis=0)
        Image.fromarray(structural).save(folder / "mri" / f"{name}.png")
        Image.fromarray(np.stack([functional, functional // 2, structural // 3], -1)).save(
            folder / "pet" / f"{name}.png"
        )
    Image.fromarray(waves).save(folder / "mri" / "1003.png")
    return folder


def test_bench_prints_markdown_to_a_pipe_and_writes_what_is_asked(medfuse: Command, data: Path) -> None:  # noqa: F811
    files = ("--json", "t/t.json", "--csv", "t/t.csv", "--markdown", "t/t.md", "--save", "out")
    ran = medfuse(*BENCH, "--methods", "average,maximum", *files)
    assert ran.code == 0
    assert ran.err == "left out, without a partner of the same name: 1\n"
    assert ran.out == Path("t/t.md").read_text(encoding="utf-8")
    assert "| measure | average | maximum | copy structural |" in ran.out
    content = json.loads(Path("t/t.json").read_text(encoding="utf-8"))
    assert (content["pairs"], content["left_out"], content["convention"]) == (2, 1, "standard")
    assert Path("t/t.csv").read_text(encoding="utf-8").startswith("method,control,measure,side,mean,sd,n\n")
    assert sorted(str(path) for path in Path("out").rglob("*.png")) == [
        f"out/{method}/{name}.png" for method in ("average", "maximum") for name in ("1001", "1002")
    ]
    assert Image.open("out/average/1001.png").mode == "RGB"
    again = medfuse(
        *BENCH, "--methods", "average,maximum", *files, "--overwrite", "--convention", "paper", "--limit", 1
    )
    assert again.code == 0
    assert json.loads(Path("t/t.json").read_text(encoding="utf-8"))["convention"] == "paper"


def test_a_terminal_is_drawn_a_table_that_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    header = ["measure", "dilran", "average", "maximum", "[red]copy"]
    rows = [header, *([name, *(["12.345 ± 6.789"] * 4)] for name in ("SSIM ↑", "PSNR, worse source"))]
    print_table("2 pairs", rows, "markdown")
    drawn = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "markdown" not in drawn
    assert max(map(len, drawn.splitlines())) <= Console().width == 60
    for name in header[1:]:
        assert drawn.count(name) == 1
    assert drawn.count("PSNR, worse source") == 2
    assert drawn.count("12.345 ± 6.789") == 8
    assert _parts(rows, 10) == [[0, 1], [0, 2], [0, 3], [0, 4]]


@pytest.mark.parametrize(
    ("code", "match", "options"),
    [
        (2, "method of .*dilran.*got 'magic'", "--methods magic"),
        (2, "strategy of", "--methods dilran:magic"),
        (2, "convention of standard, paper, got 'magic'", "--convention magic"),
        (2, "expected a device", "--device abacus"),
        (2, "limit", "--limit 0"),
        (2, "'mri' twice", "--functional mri"),
        (2, "apart from one another", "--save out --json out/t.json"),
        (3, "a folder spect of images", "--functional spect"),
        (3, "no common name", "--functional empty"),
        (3, "8 bits a channel", "--functional deep"),
        (4, "one size", "--functional wide"),
        (6, "missing", "--methods dilran@missing.safetensors"),
        (7, "note.txt exists", "--json note.txt"),
    ],
)
def test_bench_refuses(
    medfuse: Command,  # noqa: F811
    refused: Callable[..., None],  # noqa: F811
    data: Path,
    code: int,
    match: str,
    options: str,
) -> None:
    Path("note.txt").write_text("hello")
    for name in ("empty", "deep", "wide"):
        (data / name).mkdir()
    Image.fromarray(np.full((44, 48), 4095, np.uint16)).save(data / "deep" / "1001.png")
    Image.new("L", (49, 44)).save(data / "wide" / "1001.png")
    refused(code, match, *BENCH, "--methods", "maximum", "--markdown", "t.md", *options.split())


def test_score_of_an_image(medfuse: Command, data: Path) -> None:  # noqa: F811
    images = (data / "mri/1001.png", data / "mri/1001.png", data / "pet/1001.png")
    told, listed = medfuse("score", *images), medfuse("score", *images, "--json")
    assert (told.code, listed.code, told.err, listed.err) == (0, 0, "", "")
    assert "| measure | both | structural | functional | worse |" in told.out
    psnr = listed.json["measures"]["PSNR"]
    assert psnr["structural"]["mean"] is None
    assert psnr["worse"] == psnr["functional"]
    assert f"| PSNR (dB) ↑ | {psnr['value']['mean']:.3f} | ∞ | {psnr['functional']['mean']:.3f} |" in told.out
    paper = medfuse("score", *images, "--convention", "paper", "--json").json
    assert list(paper["measures"]) == ["PSNR", "SSIM", "MI", "FMI", "FSIM", "EN"]


def test_score_refuses(medfuse: Command, refused: Callable[..., None], data: Path) -> None:  # noqa: F811
    image, other = data / "mri/1001.png", data / "pet/1001.png"
    Image.new("L", (49, 44)).save("wide.png")
    refused(2, "convention of", "score", image, image, other, "--convention", "magic")
    refused(2, "windows for volumes", "score", image, image, other, "--window", "0:1")
    refused(3, "cannot read missing.png", "score", "missing.png", image, other)
    refused(3, "both kinds", "score", image, image, "scan.nii.gz")
    refused(4, "one size", "score", image, image, "wide.png")
