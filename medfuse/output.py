"""Nothing is ever half-written: a result is made beside its place and moved there when it is whole."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medfuse.errors import OutputError

#: How the names of temporary folders begin, in which a kill leaves what was not finished.
UNFINISHED = ".medfuse-"


@contextmanager
def whole(
    path: Path, *, overwrite: bool, inputs: Iterable[Path] = (), may_hold: Collection[str] = ()
) -> Iterator[Path]:
    """A path to write a file or folder to, which takes its place at `path` when the block ends well.

    The block makes the file or folder itself, at the path given to it: of the same name, in a temporary folder beside
    the target. If the block ends in an error, or is interrupted, nothing is left, not even a folder made for it.

    Args:
        path: Where the result shall be. Folders above it are made.
        overwrite: Whether an existing file, or a folder that holds an earlier result of the same kind, may be replaced.
        inputs: Files and folders that were read, and must not be replaced.
        may_hold: Names of files that an earlier result may hold although the new one does not.

    Raises:
        OutputError: The target exists, is or holds an input, holds files of others, or cannot be written.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with whole(Path(folder.name) / "result.txt", overwrite=False) as beside:
    ...     _ = beside.write_text("done")
    >>> [path.name for path in Path(folder.name).iterdir()]
    ['result.txt']
    >>> folder.cleanup()
    """
    target = Path(os.path.realpath(path))
    made: list[Path] = []
    try:
        check_target(target, overwrite, inputs)
        _make_parents(target, made)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=target.parent) as temporary:
            beside = Path(temporary, "new", target.name)
            beside.parent.mkdir()
            yield beside
            _put(beside, target, Path(temporary, "old"), overwrite, may_hold)
    except BaseException as error:
        for folder in reversed(made):
            _remove_if_empty(folder)
        if isinstance(error, OSError):
            raise OutputError(
                f"could not write {target.name}: {error.strerror or type(error).__name__}",
                "Check the rights and the space left there, or choose another place",
            ) from error
        raise


def check_target(target: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Refuse a target that holds an input, or that exists without leave to replace it.

    `whole` does this too; call it to refuse before long work.

    Args:
        target: Where the result shall be.
        overwrite: As for `whole`.
        inputs: As for `whole`.

    Raises:
        OutputError: It may not be written to.
    """
    target = Path(os.path.realpath(target))
    try:
        _check_target(target, overwrite, inputs)
    except OSError as error:
        raise OutputError(
            f"could not write {target.name}: {error.strerror or type(error).__name__}",
            "Check the rights of the folders above it, or choose another place",
        ) from error


def _check_target(target: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        target.stat()
    for path in (Path(os.path.realpath(path)) for path in inputs):
        if path.is_relative_to(target) or (target.is_relative_to(path) and target.exists()):
            raise OutputError(
                f"expected an output apart from what is read, found that {target.name} is or holds an input, or is "
                "part of one",
                "Choose another place to write to",
            )
    if target.exists() and not overwrite and not _is_empty_folder(target):
        raise OutputError(
            f"expected a new file or folder, found that {target.name} exists",
            "Choose another place, or replace it with --overwrite (in Python: overwrite=True)",
        )
    if target.is_dir() and os.path.ismount(target):
        raise OutputError(
            f"expected a folder that can be put in place as a whole, found that {target.name} is a mount point",
            f"Name a folder in it, such as {target.name}/fused",
        )
    above = next(folder for folder in target.parents if os.path.exists(folder))
    if not above.is_dir():
        raise OutputError(f"could not write {target.name}: {above.name} above it is a file", "Choose another place")
    if not os.access(above, os.W_OK):
        raise OutputError(
            f"could not write {target.name}: no right to write to {above.name or 'the root folder'}",
            "Check the rights there, or choose another place",
        )


def refuse_folder(target: Path) -> None:
    """Refuse a target that a file is to take the place of, and that is a folder.

    Raises:
        OutputError: It is one.
    """
    if target.is_dir():
        raise OutputError(f"expected a file to write, found the folder {target.name}", "Choose another name")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _make_parents(target: Path, made: list[Path]) -> None:
    """Make the folders above the target, and note in `made` which are new, outermost first."""
    for folder in reversed(target.parents):
        if not folder.is_dir():
            folder.mkdir()
            made.append(folder)


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder unless somebody else has put something into it."""
    if _is_empty_folder(folder):
        folder.rmdir()


def _put(new: Path, target: Path, old: Path, overwrite: bool, may_hold: Collection[str]) -> None:
    """Move the new file or folder to its target; what was there is moved to `old` first, and back on failure."""
    if not new.exists():
        raise RuntimeError(f"nothing was written to {new.name}")
    if target.exists() and not _is_empty_folder(target):
        if not overwrite:
            raise OutputError(f"expected a new file or folder, found that {target.name} exists by now", "Try again")
        _check_replaceable(new, target, may_hold)
    if not new.is_dir():
        refuse_folder(target)
        new.replace(target)
        return
    try:
        if target.exists():
            _make_alike(new, target)
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise


def _make_alike(new: Path, folder: Path) -> None:
    """Give a folder the rights of the one whose place it takes, and its group where we may."""
    with suppress(OSError, AttributeError):  # Windows has no groups
        os.chown(new, -1, folder.stat().st_gid)
    shutil.copymode(folder, new)


def _check_replaceable(new: Path, target: Path, may_hold: Collection[str]) -> None:
    """Refuse to replace a folder that holds anything but an earlier result: names, digits apart, as in the new one."""
    if new.is_dir() and not target.is_dir():
        raise OutputError(f"expected a folder to write, found the file {target.name}", "Choose another name")
    if target.is_dir():
        refuse_strangers(target, _names(new), may_hold)


def refuse_strangers(target: Path, names: Iterable[str], may_hold: Collection[str] = ()) -> None:
    """Refuse to replace a folder that holds anything but an earlier result; `whole` does this too, in the end.

    Args:
        target: The folder.
        names: Paths in the new one; which digits they have does not matter.
        may_hold: As for `whole`.

    Raises:
        OutputError: It does.
    """
    strangers = _names(target) - {_folded(name) for name in names}
    strangers = {name for name in strangers if name.rpartition("/")[2] not in may_hold}
    if strangers:
        raise OutputError(
            f"expected only an earlier result in the folder {target.name}, found {len(strangers)} other kinds of files",
            "Choose another folder; only results of medfuse are replaced",
        )


def _names(folder: Path) -> set[str]:
    """The paths of everything in a folder, relative to it, each run of digits folded to one sign."""
    return {_folded(path.relative_to(folder).as_posix()) for path in folder.rglob("*")}


def _folded(name: str) -> str:
    return re.sub(r"\d+", "#", name)
