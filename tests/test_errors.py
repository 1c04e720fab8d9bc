"""The tree of errors: its exit codes, its texts, and that the drawing at the top of the file is the tree."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from medfuse import errors
from medfuse.errors import MedfuseError

ALL = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, MedfuseError)}


def drawn() -> dict[str, tuple[str, int | None]]:
    """Name → (name of the class above it, exit code if stated), read off the drawing."""
    above: list[str] = []
    found = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└ ]*)([A-Z]\w+) +(\d)?", line)
        if match:
            depth = len(match[1]) // 2
            above = [*above[:depth], match[2]]
            found[match[2]] = (above[-2] if depth else "Exception", int(match[3]) if match[3] else None)
    return found


def test_the_drawing_is_the_tree() -> None:
    drawing = drawn()
    assert drawing.keys() == ALL.keys()
    for name, (parent, exit_code) in drawing.items():
        assert ALL[name].__base__.__name__ == parent
        if exit_code is not None:
            assert ALL[name].exit_code == exit_code
        else:
            assert ALL[name].exit_code == ALL[parent].exit_code


def test_each_kind_has_an_exit_code_of_its_own() -> None:
    kinds = MedfuseError.__subclasses__()
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert not {0, 1, 2} & set(codes)


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
def test_text_is_message_and_hint(kind: type[MedfuseError]) -> None:
    error = kind("expected a, found b", "Do c")
    assert str(error) == "expected a, found b. Do c"
    assert error.hint == "Do c"
    assert str(kind("expected a, found b")) == "expected a, found b"
    assert not isinstance(error, ValueError | TypeError | OSError)


def test_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(errors.NoOverlap("message", "hint")))
    assert isinstance(error, errors.NoOverlap)
    assert str(error) == "message. hint"


def test_a_message_stays_one_line_and_steers_no_terminal() -> None:
    """A file's name may hold anything."""
    error = MedfuseError("found a\nb\x1b[31m\u202e\udcff.dcm × 2", "Look\tthere")
    assert str(error) == "found a b?[31m??.dcm × 2. Look there"
