"""The command line: parses and prints, decides nothing. One file a family of commands.

Exit codes: 0 done; 1 a fault of medfuse, or too little memory; 2 wrong usage; 3 to 7 by the kind of error
(`medfuse.errors`); 130 interrupted, 143 terminated. What goes wrong is said in one line on standard error.
"""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import signal
import sys
import warnings
from typing import Any, NoReturn

import typer

from medfuse.cli import (
    bench,
    convert,
    demo,
    fuse,
    info,
    pull,
    push,
    queue,
    register,
    run,
    score,
    serve,
    train,
    weights,
)
from medfuse.errors import MedfuseError, OutputError

#: What typer raises on wrong usage; it exports this child of it only.
UsageError: Any = typer.BadParameter.__base__
#: Errors of the system that say that nothing more can be written.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
#: What a `RuntimeError` of torch or ITK says where memory is short: on a GPU, in its libraries, on the CPU, in C++.
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator", "Failed to allocate memory", "bad_alloc")

app = typer.Typer(name="medfuse", pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
app.command("fuse")(fuse.fuse)
app.command("info")(info.info)
app.command("register")(register.register)
app.command("run")(run.run)
app.command("convert")(convert.convert)
app.command("methods")(info.methods)
app.command("demo")(demo.demo)
app.command("bench")(bench.bench)
app.command("score")(score.score)
app.command("train")(train.train)
app.command("serve")(serve.serve)
app.command("push")(push.push)
app.command("pull")(pull.pull)
app.add_typer(queue.app, name="queue")
app.add_typer(weights.app, name="weights")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    """Two scans of one patient in, one fused series out. Not for diagnostic use."""
    if version:
        from medfuse import __version__

        typer.echo(f"medfuse {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def main() -> None:
    """Run the command line; whatever goes wrong ends in one line and an exit code."""
    # Libraries may quote a header in their warnings, and a header names a patient.
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    # PyTorch's modules are hundreds of thousands of objects that stay: Python's collector would go through them again
    # and again while they are loaded, and take them apart one by one at the end.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    # Linux hands out memory for large tensors in few large pages: PyTorch asks for them on this word.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # What was begun is cleared away on the way out, as after Ctrl-C; a closed terminal ends nothing that nohup began.
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        code = app(prog_name="medfuse", standalone_mode=False)
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "medfuse"
        _stop(f"{error.format_message().rstrip('.')}. See {command} --help", 2)
    except MedfuseError as error:
        _stop(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if os.environ.get("MEDFUSE_DEBUG"):
            raise
        if isinstance(error, OSError) and error.errno in FULL:  # as of what is printed, to a file
            _stop(f"could not write: {os.strerror(error.errno)}", OutputError.exit_code)
        _stop(_explained(error), 1)
    if code == 130:
        _stop("interrupted", 130)
    sys.exit(code or 0)


def _explained(error: Exception) -> str:
    """What to say of an error that medfuse did not foresee; its own text may quote a header, and is left out."""
    is_short = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    if is_short or isinstance(error, MemoryError):
        return "not enough memory. Fuse on a coarser grid, for example --grid 2"
    return f"an unforeseen {type(error).__name__}. Set MEDFUSE_DEBUG=1 to see where, and please report it"


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(f"medfuse: {' '.join(message.split())}", err=True)
    sys.exit(code)
