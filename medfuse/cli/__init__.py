"""The command line: parses and prints, decides nothing. One file a family of commands.

Exit codes: 0 done; 2 wrong usage; 3 to 7 by the kind of error (`medfuse.errors`); 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
import warnings

import typer

from medfuse.cli import convert, demo, fuse, info, register, train, weights
from medfuse.errors import MedfuseError

app = typer.Typer(
    name="medfuse",
    help="Two scans of one patient in, one fused series out. Not for diagnostic use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("fuse")(fuse.fuse)
app.command("info")(info.info)
app.command("register")(register.register)
app.command("convert")(convert.convert)
app.command("methods")(info.methods)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.add_typer(weights.app, name="weights")


@app.callback(invoke_without_command=True)
def version(
    show: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    """Two scans of one patient in, one fused series out. Not for diagnostic use."""
    if show:
        from medfuse import __version__

        typer.echo(f"medfuse {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors that a user can cause end in one line and their exit code."""
    # Libraries may quote a header in their warnings, and a header names a patient.
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        app()
    except MedfuseError as error:
        typer.echo(f"medfuse: {error}", err=True)
        sys.exit(error.exit_code)
    except MemoryError:
        typer.echo("medfuse: not enough memory; fuse on a coarser grid, for example --grid 2", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("medfuse: interrupted; nothing was written", err=True)
        sys.exit(130)
