"""How fast medfuse is, beside the published arithmetic, the other methods and the machine's own ceilings.

    python benchmarks/performance.py run --data DATA --out performance.jsonl
    python benchmarks/performance.py table performance.jsonl

`run` is `ceilings`, `pairs`, `volumes` and, where there is a CUDA device, `gpu`, one after the other; each is a command
too. A run that was interrupted goes on where it stopped when it is called again with the same --out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from performing import machine
from performing.ceilings import ON_CPU, ON_GPU
from performing.forms import FORMS, OURS, PRECISIONS, USUAL, has_plain
from performing.measuring import run as measure
from performing.pictures import RANDOM, picture_names
from performing.table import tables
from performing.task import Task, tasks_of
from performing.volumes import series_of
from rows import Row, read_rows

from medfuse.defaults import METHOD
from medfuse.fusion import READY

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None)

CORES = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
ONE_AND_ALL = ",".join(dict.fromkeys(("1", CORES)))
ALL_METHODS = ",".join(USUAL)
DEFAULT_AND_OURS = ",".join((METHOD, OURS))
SLICES = "25x256x256,50x256x256,100x256x256,200x256x256,200x512x512"

Data = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="Folder of real scans; the digital head alone without")
]
Out = Annotated[Path, typer.Option(dir_okay=False, help="JSON Lines file that rows are added to")]
Methods = Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(FORMS)}")]
Threads = Annotated[str, typer.Option(help="Comma-separated; a run with so many threads has as many cores")]
Device = Annotated[str, typer.Option(help="cuda, cuda:N or cpu")]


@app.command()
def run(out: Out, data: Data = None, threads: Threads = CORES) -> None:
    """Everything, as docs/performance.md shows it."""
    ceilings(out)
    pairs(out, data, threads=threads)
    volumes(out, data)
    if machine.has_gpu():
        ceilings(out, device="cuda")
        gpu(out, data)


@app.command()
def pairs(
    out: Out,
    data: Data = None,
    methods: Methods = ALL_METHODS,
    plain: Annotated[bool, typer.Option("--plain", help="The networks as they are trained, too")] = False,
    sizes: Annotated[str, typer.Option(help="Comma-separated sides of the pictures")] = "128,256,512",
    pictures: Annotated[str, typer.Option(help="Comma-separated kinds; all there are without")] = "",
    count: Annotated[int, typer.Option(min=1, help="Runs of each method")] = 7,
    threads: Threads = CORES,
) -> None:
    """Time pairs of slices, each method beside the others in turn; then their arithmetic, accuracy and memory."""
    chosen = _words(methods, FORMS)
    chosen += [form for form in FORMS if plain and form not in chosen and form not in USUAL]
    shapes = [f"{side}x{side}" for side in _words(sizes)]
    kinds = _words(pictures, picture_names(data)) or picture_names(data)
    of_networks = [form for form in chosen if has_plain(form)]
    tasks = [
        *tasks_of("pair", threads=_numbers(threads), shape=shapes, pictures=kinds, index=range(count), method=chosen),
        *tasks_of("accuracy", threads=_numbers(threads)[-1:], shape=shapes, pictures=kinds, method=of_networks),
        *tasks_of(
            "arithmetic",
            threads=_numbers(threads),
            shape=shapes[len(shapes) // 2 :][:1],
            pictures=kinds[:2],
            method=chosen,
        ),
        *tasks_of("memory", threads=_numbers(threads)[-1:], shape=shapes, pictures=[RANDOM], method=chosen),
    ]
    _measure(tasks, data, out)


@app.command()
def volumes(
    out: Out,
    data: Data = None,
    methods: Methods = DEFAULT_AND_OURS,
    shapes: Annotated[str, typer.Option(help="Comma-separated slices x rows x columns of both scans")] = SLICES,
    count: Annotated[int, typer.Option(min=1, help="Runs of each")] = 3,
    threads: Threads = ONE_AND_ALL,
) -> None:
    """Time `medfuse fuse` without registration, DICOM to DICOM."""
    chosen = _words(shapes)
    tasks = tasks_of(
        "end to end", index=range(count), shape=chosen, method=_words(methods, READY), threads=_numbers(threads)
    )
    with series_of(chosen, data):
        _measure(tasks, data, out)


@app.command()
def ceilings(
    out: Out,
    device: Device = "cpu",
    side: Annotated[int, typer.Option(min=0, help="Largest side of the matrices; 0: 4096, on a GPU 16384")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Runs of each")] = 5,
    threads: Threads = ONE_AND_ALL,
) -> None:
    """Time the largest products, copies and Fourier transforms: what the machine can do at most."""
    is_gpu = device != "cpu"
    tasks = tasks_of(
        "ceiling",
        threads=_numbers(threads)[-1:] if is_gpu else _numbers(threads),
        device=[device],
        shape=[str(side or (16384 if is_gpu else 4096))],
        index=range(count),
        method=ON_GPU if is_gpu else ON_CPU,
    )
    _measure(tasks, None, out)


@app.command()
def gpu(
    out: Out,
    data: Data = None,
    device: Device = "cuda",
    methods: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(READY)}")] = DEFAULT_AND_OURS,
    precisions: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(PRECISIONS)}")] = "",
    shape: Annotated[str, typer.Option(help="Rows x columns of the slices that go in batches")] = "256x256",
    volume: Annotated[str, typer.Option(help="Slices x rows x columns of the volume")] = "200x512x512",
    batches: Annotated[str, typer.Option(help="Comma-separated slices at a time; 0 is the engine's choice")] = (
        "0,1,8,32,128"
    ),
    slices: Annotated[int, typer.Option(min=1, help="Slices a call")] = 512,
    count: Annotated[int, typer.Option(min=1, help="Runs of each")] = 5,
    threads: Threads = CORES,
) -> None:
    """Time batches of slices, and a volume fused and resampled, host memory to host memory; and batches that stay."""
    known = [name for name in PRECISIONS if device != "cpu" or name != "tf32"]
    common = {
        "threads": _numbers(threads)[-1:],
        "device": [device],
        "pictures": picture_names(None),
        "method": _words(methods, READY),
        "precision": _words(precisions, PRECISIONS) or known,
    }
    on_cpu = common | {"device": ["cpu"], "precision": ["float32"]}
    linear = {"method": ["linear"], "precision": ["float32"]}
    at_a_time = _numbers(batches)
    tasks = [
        *tasks_of("batch", index=range(count), shape=[shape], count=[slices], batch=at_a_time, **common),
        *tasks_of("resident", index=range(count), shape=[shape], batch=[size for size in at_a_time if size], **common),
        *tasks_of("volume", index=range(count), shape=[volume], **common),
        *tasks_of("resampling", index=range(count), shape=[volume], **common | linear),
        *(task for task in tasks_of("accuracy", shape=[shape], **common) if has_plain(task.method)),
        *tasks_of("arithmetic", shape=[shape, "x".join(volume.split("x")[1:])], **on_cpu),
        *tasks_of("arithmetic", shape=[shape, "x".join(volume.split("x")[1:])], **common),
    ]
    _measure(tasks, data, out)


@app.command()
def table(
    results: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Files that the others wrote")],
) -> None:
    """Print the Markdown tables of measured rows, file by file: one file is of one machine."""
    typer.echo("\n\n".join(part for path in results for part in tables(read_rows(path))))


def _measure(tasks: Iterable[Task], data: Path | None, out: Path) -> None:
    try:
        for row in measure(tasks, data, out):
            if row["what"] != machine.WHAT:
                typer.echo(_line(row), err=True)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _line(row: Row) -> str:
    """A row in brief, as it is done."""
    named = " ".join(str(row[name]) for name in ("what", "method", "shape", "pictures", "precision") if row[name])
    values = {name: value for name, value in row.items() if name not in Task.__dataclass_fields__}
    told = (f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, int | float))
    return f"{named} #{row['index']}, {row['threads']} threads: {row.get('failure') or ', '.join(told)}"


def _words(text: str, known: Sequence[str] = ()) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if known and word not in known:
            raise typer.BadParameter(f"expected words of {', '.join(known)}, got {word}")
    return words


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


if __name__ == "__main__":
    app()
