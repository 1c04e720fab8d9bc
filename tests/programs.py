"""The programs of others that judge what was written: where they are, and what dcm2niix makes of a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

#: Orthanc's names; Debian puts it where not every user's PATH leads.
ORTHANC = ("Orthanc", "/usr/sbin/Orthanc", "orthanc")


def external(*names: str) -> str:
    """The path of a program; without it the test is skipped, saying so, but fails where CI is set.

    What a virtual environment has of the name, such as pynetdicom's storescu, is not taken for it.
    """
    path = os.pathsep.join(folder for folder in os.get_exec_path() if not Path(folder, "../pyvenv.cfg").is_file())
    found = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
    if found is None:
        (pytest.fail if "CI" in os.environ else pytest.skip)(f"{names[0]} is not installed")
    return str(found)


def dcm2niix(source: Path, target: Path, check: bool = True) -> list[Path]:
    """All that dcm2niix makes of a folder, NIfTI without sidecars, in a folder that is made for it."""
    target.mkdir()
    command = [external("dcm2niix"), "-b", "n", "-f", "out", "-o", target, source]
    subprocess.run(command, check=check, capture_output=True)
    return sorted(target.iterdir())
