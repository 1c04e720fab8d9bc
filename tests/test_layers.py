"""The floors of the house: imports run downward only, and what one place alone may do is done nowhere else."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import medfuse
from medfuse.volume import Volume

ROOT = Path(medfuse.__file__).parent

#: Top down. A line may import from the lines below it, and within a package; packages on one line never import one
#: another. The longest name that fits counts: `sample.demo` runs the pipeline, the rest of `sample` only makes volumes.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("sample.demo",),
    ("pacs", "report", "benchmark", "train"),
    ("pipeline",),
    ("alignment",),
    ("io", "align", "fusion", "sample"),
    ("itk", "interpolation", "devices"),
    ("volume",),
    ("grid", "color", "metrics"),
    ("markdown", "output", "process", "stages", "values"),
    ("errors", "defaults", "_version"),
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}

MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imported(name: str) -> Iterator[str]:
    """Every module that a module imports, at the top, in a function or for annotations only."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            module = (above + (node.module or "")).rstrip(".")
            inner = [f"{module}.{alias.name}" for alias in node.names]
            yield from (one if one in MODULES else module for one in inner)


def floor_of(module: str) -> str:
    inner = module.removeprefix("medfuse.")
    return max((name for name in LEVEL if inner == name or inner.startswith(f"{name}.")), key=len, default="")


def house(name: str) -> list[str]:
    return [module for module in imported(name) if module.split(".")[0] == "medfuse"]


def test_every_module_has_a_floor() -> None:
    assert len(MODULES) > 30
    assert [name for name in MODULES if name != "medfuse" and not floor_of(name)] == []


@pytest.mark.parametrize("name", [name for name in MODULES if name != "medfuse"])
def test_imports_run_downward(name: str) -> None:
    own = floor_of(name)
    for module in house(name):
        if module == "medfuse":
            assert own == "cli", f"{name} imports the front door of the package"
            continue
        theirs = floor_of(module)
        assert theirs == own or LEVEL[theirs] > LEVEL[own], f"{name} imports {module}, which is not below it"


def test_the_check_sees_imports_of_every_kind() -> None:
    assert "torch" in set(imported("medfuse.fusion.engine"))
    assert "medfuse.pipeline" in house("medfuse.cli.fuse")  # in a function, as `from medfuse import pipeline`
    assert "pydicom" in set(imported("medfuse.volume"))  # for annotations only
    assert floor_of("medfuse.sample.demo") == "sample.demo"
    assert floor_of("medfuse.sample.head") == "sample"


def importers(library: str) -> set[str]:
    return {name for name in MODULES if any(module.split(".")[0] == library for module in imported(name))}


def test_one_file_knows_nifti_and_one_siemens_headers() -> None:
    assert importers("nibabel") == {"medfuse.io.nifti", "medfuse.io.dicom_mosaic"}
    csa = {module for module in imported("medfuse.io.dicom_mosaic") if module.startswith("nibabel")}
    assert csa == {"nibabel.nicom"}  # only its reader of Siemens' CSA headers, which knows nothing of RAS


def test_one_file_runs_a_registration() -> None:
    users = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "ImageRegistrationMethod"
    }
    engine = {name for name in MODULES if name.startswith("medfuse.align.engine")}
    assert users
    assert users <= {"medfuse.align.register", *engine}
    lookers = {name for name in set(MODULES) - engine if any(module in engine for module in imported(name))}
    assert lookers <= {"medfuse.align.register"}


def test_torch_stays_with_the_networks() -> None:
    assert {floor_of(name) for name in importers("torch")} <= {
        "fusion",
        "train",
        "metrics",
        "benchmark",
        "interpolation",
        "devices",
    }


def speech(tree: ast.Module) -> Iterator[str]:
    """What prints or ends the process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("print", "exit", "quit", "SystemExit", "breakpoint"):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = f"{node.value.id}.{node.attr}"
            if called in ("sys.exit", "sys.stdout", "sys.stderr", "os._exit", "os.abort", "logging.basicConfig"):
                yield called


def test_only_the_command_line_prints_or_exits() -> None:
    quiet = {name: list(speech(tree)) for name, tree in TREES.items() if floor_of(name) != "cli"}
    assert {name: found for name, found in quiet.items() if found} == {}
    assert list(speech(TREES["medfuse.cli"]))  # the check finds what there is
    assert {floor_of(name) for library in ("typer", "rich", "click") for name in importers(library)} == {"cli"}


BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} was imported")
sys.meta_path.insert(0, Blocker())
"""


def run_without(blocked: set[str], code: str) -> None:
    script = BLOCK.format(blocked=blocked) + code
    result = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_the_blocker_blocks() -> None:
    with pytest.raises(AssertionError, match="torch was imported"):
        run_without({"torch"}, "import medfuse.fusion")


@pytest.mark.parametrize(
    "code",
    [
        "import medfuse; medfuse.read, medfuse.write, medfuse.register, medfuse.resample, medfuse.Volume",
        "import medfuse.cli",
        "import medfuse.sample",
    ],
)
def test_torch_is_not_waited_for(code: str) -> None:
    run_without({"torch"}, code)


def test_info_does_not_wait_for_torch(ct_series: Path, oblique_volume: Volume) -> None:
    run_without({"torch"}, f"from medfuse.cli import app\napp(['info', {str(ct_series)!r}], standalone_mode=False)")


#: What takes long to load, and which commands are not to load it.
HEAVY = ("torch", "scipy", "SimpleITK", "nibabel", "highdicom", "skimage", "matplotlib")


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a command has loaded when it ends."""
    code = """
import sys
from medfuse.cli import app
app(sys.argv[1:], standalone_mode=False)
print(*sys.modules, file=sys.stderr)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.split())


def test_help_loads_nothing_heavy() -> None:
    assert loaded_by("--help").isdisjoint({*HEAVY, "numpy", "pydicom"})


def test_info_loads_no_more_than_it_needs(ct_series: Path) -> None:
    loaded = loaded_by("info", str(ct_series))
    assert "pydicom" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_fusing_loads_no_more_than_it_needs(ct_series: Path, tmp_path: Path) -> None:
    loaded = loaded_by(
        *("fuse", str(ct_series), str(ct_series), "-o", str(tmp_path / "fused.mha"), "--method", "average"),
        *("--device", "cpu"),
    )
    assert {"torch", "SimpleITK"} <= loaded
    needless = {"nibabel", "highdicom", "skimage", "matplotlib", "scipy.optimize", "scipy.spatial", "scipy.ndimage"}
    assert loaded.isdisjoint(needless)


def test_networks_do_without_the_libraries_of_files() -> None:
    code = """
import numpy as np
import medfuse.train
from medfuse.fusion import Engine, Display, display_of
planes = np.random.default_rng(0).random((2, 1, 20, 24), np.float32)
fused = Engine(device="cpu").fuse_planes(*planes)
assert fused.shape == (1, 20, 24)
"""
    run_without({"pydicom", "nibabel", "SimpleITK", "highdicom"}, code)


def test_metrics_need_no_file_libraries() -> None:
    if "medfuse.metrics" not in MODULES:
        pytest.skip("medfuse.metrics is not here")
    names = [name for name in MODULES if floor_of(name) == "metrics"]
    code = "import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in names)
    run_without({"pydicom", "nibabel", "SimpleITK", "highdicom"}, code)
