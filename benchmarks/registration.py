"""How well registrations find a known displacement, and whether their verdict can be believed.

    python benchmarks/registration.py run --data DATA --out results.jsonl
    python benchmarks/registration.py nonsense --data DATA --out nonsense.jsonl
    python benchmarks/registration.py timing --out timing.jsonl
    python benchmarks/registration.py table results.jsonl nonsense.jsonl timing.jsonl

A run that was interrupted goes on where it stopped when it is called again with the same --out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from registering.cases import case_names
from registering.judging import judged
from registering.measuring import Task, run
from registering.methods import METHODS, missing
from registering.nonsense import NONSENSE, nonsense_names
from registering.table import displacement_table, nonsense_table, timing_table
from registering.timing import TIMING
from rows import Row, read_rows

from medfuse.align.register import KINDS

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None)

Data = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="Folder of real scans; the digital head alone without")
]
Out = Annotated[Path, typer.Option(dir_okay=False, help="JSON Lines file that rows are added to")]
Methods = Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(METHODS)}; or all")]
Kind = Annotated[str, typer.Option(help=f"What medfuse is asked for, of {', '.join(KINDS)}")]
Seed = Annotated[int, typer.Option(help="Of the displacements")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of each process")]


@app.command("run")
def run_(
    out: Out,
    data: Data = None,
    cases: Annotated[str, typer.Option(help="Comma-separated shell patterns, as in 'head/*,sts_*/ct-mr'")] = "",
    methods: Methods = "medfuse",
    count: Annotated[int, typer.Option(min=1, help="Displacements of each case")] = 200,
    first: Annotated[int, typer.Option(min=0, help="Number of the first one")] = 0,
    kind: Kind = "rigid",
    seed: Seed = 0,
    jobs: Jobs = 1,
    threads: Threads = 1,
) -> None:
    """Displace each case many times, and measure how far from the truth each method ends."""
    names = case_names(data, [name.strip() for name in cases.split(",") if name.strip()])
    if not names:
        raise typer.BadParameter(f"no case is named like {cases}; there are {', '.join(case_names(data, ['*']))}")
    indices = range(first, first + count)
    present = _present(methods)
    _run(
        [Task(case, index, method, kind, seed) for method in present for case in names for index in indices],
        data,
        out,
        jobs,
        threads,
    )
    table([out])


@app.command()
def nonsense(
    out: Out,
    data: Data = None,
    methods: Methods = "medfuse",
    kind: Kind = "rigid",
    jobs: Jobs = 1,
    threads: Threads = 1,
) -> None:
    """Register pairs that cannot be registered; none may be trusted."""
    names = nonsense_names(data)
    if len(names) < len(NONSENSE):
        typer.echo(f"{len(names)} of {len(NONSENSE)} pairs: the others need scans that are not here", err=True)
    _run([Task(name, 0, method, kind, 0) for method in _present(methods) for name in names], data, out, jobs, threads)
    table([out])


@app.command()
def timing(
    out: Out,
    methods: Methods = "medfuse,simpleitk",
    count: Annotated[int, typer.Option(min=1, help="Runs of each method")] = 7,
    kind: Kind = "rigid",
    seed: Seed = 0,
    threads: Threads = 2,
) -> None:
    """Time a displaced pair of 256 × 256 × 100 voxels, verdict included, each method beside the others in turn."""
    tasks = [Task(TIMING, index, method, kind, seed) for index in range(count) for method in _present(methods)]
    _run(tasks, None, out, 1, threads)
    table([out])


@app.command()
def table(
    results: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Files that the others wrote")],
    judge: Annotated[bool, typer.Option("--judge", help="Judge anew, by the thresholds medfuse has now")] = False,
) -> None:
    """Print the Markdown tables of measured rows."""
    rows = [judged(row) for row in read_rows(*results)] if judge else read_rows(*results)
    typer.echo("\n\n".join(_tables(rows)))


def _tables(rows: list[Row]) -> Iterator[str]:
    pairs = [row for row in rows if row["case"] in NONSENSE]
    timed = [row for row in rows if row["case"] == TIMING]
    displaced = [row for row in rows if row["case"] not in NONSENSE and row["case"] != TIMING]
    if displaced:
        yield displacement_table(displaced)
    if pairs:
        yield nonsense_table(pairs)
    if timed:
        yield timing_table(timed)


def _present(methods: str) -> list[str]:
    """The methods asked for that are installed; says which are not."""
    names = list(METHODS) if methods == "all" else [name.strip() for name in methods.split(",")]
    for name in names:
        if name not in METHODS:
            raise typer.BadParameter(f"expected methods of {', '.join(METHODS)}, got {name}")
        if package := missing(name):
            typer.echo(f"{name} is skipped: pip install {package}", err=True)
    return [name for name in names if missing(name) is None]


def _run(tasks: list[Task], data: Path | None, out: Path, jobs: int, threads: int) -> None:
    for row in run(tasks, data, out, jobs, threads):
        error = f"{row['error_mm']:8.2f} mm" if "error_mm" in row else " " * 11
        typer.echo(
            f"{row['case']:20} {row['index']:4} {row['method']:17} {error} {row['trust'] or '':9}"
            f"{row['seconds']:6.1f} s {row['memory_mb']:5} MB  {row['failure'] or ''}",
            err=True,
        )


if __name__ == "__main__":
    app()
