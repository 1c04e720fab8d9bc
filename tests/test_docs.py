"""The documentation says what is true: its examples run, its links lead somewhere, its tables name every word."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import typer

from medfuse.cli import app
from medfuse.color import CT_WINDOWS, PALETTES
from medfuse.fusion import METHODS
from medfuse.fusion.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "medfuse" / "models").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", ["python.md", "where-a-voxel-is.md"])
def test_the_examples_of_a_page_run(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    blocks = "\n".join(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if ">>>" in block)
    examples = doctest.DocTestParser().get_doctest(blocks, {}, name, None, 0)
    results = doctest.DocTestRunner().run(examples)
    assert results.attempted > 0
    assert results.failed == 0


def test_every_command_and_every_option_of_fuse_is_described() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    assert [name for name in group.commands if f"medfuse {name}" not in page] == []
    options = [option for one in group.commands["fuse"].params for option in one.opts if option.startswith("--")]
    assert [option for option in options if f"`{option}`" not in page and option != "--json"] == []
    assert [word for word in (*PALETTES, *CT_WINDOWS) if f"`{word}`" not in page] == []


def test_every_method_and_strategy_is_described() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [word for word in (*METHODS, *STRATEGIES) if f"`{word}`" not in page] == []
