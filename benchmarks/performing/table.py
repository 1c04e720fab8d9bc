"""Rows of measurements as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from statistics import median

from rows import NOTHING, Row, by, markdown

from performing import machine
from performing.ceilings import COPY
from performing.forms import OURS, PLAIN, REFERENCE, is_learned


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """What one file holds, in words and tables; what failed is told last."""
    yield from (machine.sentence(row) for row in rows if row["what"] == machine.WHAT)
    good = [row for row in rows if "failure" not in row]
    for kinds, table in TABLES:
        if chosen := [row for row in good if row["what"] in kinds]:
            yield from table(chosen, good)
    if failed := [row for row in rows if "failure" in row]:
        told = dict.fromkeys((row["what"], row["method"], row["precision"], row["failure"]) for row in failed)
        yield markdown(("failed", "method", "precision", "why"), [tuple(map(str, line)) for line in told])


def ceiling_tables(rows: Sequence[Row], _all: Sequence[Row]) -> Iterator[str]:
    """The best of the runs, by operation, device and threads."""
    head = ("operation", "device", "threads", "side", "most a second")
    lines = []
    for method, of_method in by(rows, "method"):
        for device, of_device in by(of_method, "device"):
            for threads, group in by(of_device, "threads"):
                best = max(group, key=lambda row: row["rate"])
                count = NOTHING if device != "cpu" else str(threads)
                lines.append((method, device, count, str(best["side"]), _rate(best["rate"], best["unit"])))
    yield markdown(head, lines)


def pair_tables(rows: Sequence[Row], _all: Sequence[Row]) -> Iterator[str]:
    """Milliseconds a pair and how many times faster than the reference; a table for each number of threads and kind."""
    for threads, of_threads in by(rows, "threads"):
        for kind, group in by(of_threads, "pictures"):
            yield f"{_counted(threads, 'thread')}, pictures `{kind}`{_load(group)}, {_runs(group)}:"
            yield _pair_table(group)
            yield from _beside_others(group)
        yield _linear_table(of_threads)


def _pair_table(group: Sequence[Row]) -> str:
    shapes = list(dict.fromkeys(row["shape"] for row in group))
    seconds = _medians(group)
    head = ["method", "learned"]
    for shape in shapes:
        head += [f"{_size(shape)}, ms", "× reference"]
    lines = []
    for method in dict.fromkeys(row["method"] for row in group):
        line = [f"`{method}`", "yes" if is_learned(method) else "no"]
        for shape in shapes:
            own, reference = seconds.get((method, shape)), seconds.get((REFERENCE, shape))
            line += [_short(own * 1000) if own else NOTHING, _ratio(reference, own)]
        lines.append(line)
    return markdown(head, lines)


def memory_tables(rows: Sequence[Row], _all: Sequence[Row]) -> Iterator[str]:
    """Most MB of a process that fuses pairs of one size."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    lines = []
    for method, group in by(rows, "method"):
        held = {row["shape"]: str(row["memory_mb"]) for row in group}
        before = str(min(row["before_mb"] for row in group))
        lines.append((f"`{method}`", before, *(held.get(shape, NOTHING) for shape in shapes)))
    yield markdown(("method", "before it, MB", *(f"{_size(shape)}, MB" for shape in shapes)), lines)


def _beside_others(group: Sequence[Row]) -> Iterator[str]:
    """Ours against the fastest other method with a network, and against the reference, in words."""
    seconds = _medians(group)
    told = []
    for shape in dict.fromkeys(row["shape"] for row in group):
        others = {
            method: value
            for (method, other), value in seconds.items()
            if other == shape and is_learned(method) and method not in (OURS, REFERENCE) and not method.endswith(PLAIN)
        }
        if others and (OURS, shape) in seconds:
            fastest = min(others, key=lambda method: others[method])
            told.append(f"{others[fastest] / seconds[OURS, shape]:.2f} at {_size(shape)} (`{fastest}`)")
    if told:
        yield f"`{OURS}`, times faster than the fastest other learned method: {', '.join(told)}."


def _linear_table(rows: Sequence[Row]) -> str:
    """Nanoseconds a pixel: alike at every size where the cost is linear in pixels."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    kinds = list(dict.fromkeys(row["pictures"] for row in rows))
    lines = []
    for method in sorted({REFERENCE, OURS} & {row["method"] for row in rows}):
        for kind in kinds:
            seconds = _medians([row for row in rows if row["pictures"] == kind])
            own = {shape: seconds.get((method, shape)) for shape in shapes}
            each = (_short(value * 1e9 / _pixels(shape)) if value else NOTHING for shape, value in own.items())
            lines.append((f"`{method}`", kind, *each))
    return markdown(("method", "pictures", *(f"{_size(shape)}, ns a pixel" for shape in shapes)), lines)


def accuracy_tables(rows: Sequence[Row], _all: Sequence[Row]) -> Iterator[str]:
    """Largest differences on [0, 1], of all sizes and pictures."""
    head = ("method", "device", "precision", "pairs", "from float64, at most", "from the float32 reference, at most")
    lines = []
    for method, of_method in by(rows, "method"):
        for device, of_device in by(of_method, "device"):
            for precision, group in by(of_device, "precision"):
                most = f"{max(row['from_float64'] for row in group):.1e}"
                beside = [row["from_reference"] for row in group if "from_reference" in row]
                reference = f"{max(beside):.1e}" if beside else NOTHING
                lines.append((f"`{method}`", device, precision, str(len(group)), most, reference))
    yield markdown(head, lines)


def arithmetic_tables(rows: Sequence[Row], everything: Sequence[Row]) -> Iterator[str]:
    """What is computed and moved a pair, how fast, and beside the ceilings of as many threads.

    `plain` is the same method written plainly, `effective` its operations in the time that ours takes.
    """
    head = ("method", "pictures", "size", "plain GFLOP", "GFLOP", "of which FFT", "of which SVD, QR")
    head += ("GB", "effective FLOP/s", "FLOP/s", "of ceiling", "B/s", "of copy ceiling", "not counted")
    products = _ceilings(everything, "float32 product")
    copies = _ceilings(everything, COPY)
    lines = []
    for row in rows:
        timed = [one for one in everything if one["what"] == "pair" and _same(one, row)]
        if not timed:  # counted for batches
            continue
        seconds = median(one["seconds"] for one in timed)
        key = (row["device"], row["threads"])
        plain = row.get("plain_flops")
        lines.append(
            (
                f"`{row['method']}`",
                row["pictures"],
                _size(row["shape"]),
                f"{plain / 1e9:.3g}" if plain else NOTHING,
                f"{row['flops'] / 1e9:.3g}",
                f"{row['transforms'] / 1e9:.3g}",
                f"{row['decompositions'] / 1e9:.3g}",
                f"{row['bytes'] / 1e9:.3g}",
                _rate(plain / seconds, "FLOP/s") if plain else NOTHING,
                _rate(row["flops"] / seconds, "FLOP/s"),
                _share(row["flops"], seconds, products.get(key)),
                _rate(row["bytes"] / seconds, "B/s"),
                _share(row["bytes"], seconds, copies.get(key)),
                ", ".join(row["uncounted"]) or NOTHING,
            )
        )
    if lines:
        yield markdown(head, lines)


def end_to_end_tables(rows: Sequence[Row], _all: Sequence[Row]) -> Iterator[str]:
    """One line a method, shape and number of threads; medians, and the most memory."""
    head = ("method", "threads", "volume", "runs", "s", "s in the network", "share", "slices/s", "ms a slice", "MB")
    stages = list(dict.fromkeys(name for row in rows for name in _stages(row)))
    lines = []
    for method, of_method in by(rows, "method"):
        for threads, of_threads in by(of_method, "threads"):
            for shape, group in by(of_threads, "shape"):
                wall, slices = median(row["wall_s"] for row in group), group[0]["slices"]
                network = _median(row["network_s"] for row in group)
                share = f"{network / wall:.0%}" if network is not None else NOTHING
                memory = [row["memory_mb"] for row in group if row["memory_mb"]]
                lines.append(
                    (
                        f"`{method}`",
                        str(threads),
                        _size(shape),
                        str(len(group)),
                        f"{wall:.2f}",
                        NOTHING if network is None else f"{network:.2f}",
                        share,
                        f"{slices / wall:.2f}",
                        f"{wall / slices * 1000:.1f}",
                        str(max(memory)) if memory else NOTHING,
                        *(_told(_median(_stages(row).get(name) for row in group)) for name in stages),
                    )
                )
    yield f"DICOM to DICOM{_load(rows)}; stages in seconds:"
    yield markdown((*head, *stages), lines)


def batch_tables(rows: Sequence[Row], everything: Sequence[Row]) -> Iterator[str]:
    """Slices a second by pictures, precision and slices at a time; beside the ceilings where all is known."""
    head = ("what", "method", "device", "precision", "pictures", "size", "at a time", "runs", "s", "pairs/s")
    head += ("FLOP/s", "of ceiling", "B/s", "of copy ceiling", "host MB", "device MB")
    lines = []
    for key in dict.fromkeys(_batch_key(row) for row in rows):
        group = [row for row in rows if _batch_key(row) == key]
        one = group[0]
        seconds, slices = median(row["seconds"] for row in group), one["slices"]
        ceiling = _ceilings(everything, f"{one['precision']} product").get((one["device"], one["threads"]))
        copy = _ceilings(everything, COPY).get((one["device"], one["threads"]))
        flops, moved = (work * slices if work else None for work in _work(one, everything))
        lines.append(
            (
                _kind(one),
                f"`{one['method']}`",
                one["device"],
                one["precision"],
                one["pictures"],
                _size(one["shape"]),
                str(one["batch"] or "its choice"),
                str(len(group)),
                _short(seconds),
                _short(slices / seconds),
                _rate(flops / seconds, "FLOP/s") if flops else NOTHING,
                _share(flops, seconds, ceiling),
                _rate(moved / seconds, "B/s") if moved else NOTHING,
                _share(moved, seconds, copy),
                str(max(row["memory_mb"] for row in group)),
                str(max(row["device_mb"] for row in group)) if "device_mb" in one else NOTHING,
            )
        )
    yield f"Many slices a call{_load(rows)}:"
    yield markdown(head, lines)


#: Kinds of rows, and what makes tables of these and all rows.
TABLES: tuple[tuple[tuple[str, ...], Callable[[Sequence[Row], Sequence[Row]], Iterator[str]]], ...] = (
    (("ceiling",), ceiling_tables),
    (("pair",), pair_tables),
    (("memory",), memory_tables),
    (("accuracy",), accuracy_tables),
    (("arithmetic",), arithmetic_tables),
    (("end to end",), end_to_end_tables),
    (("batch", "resident", "volume", "resampling"), batch_tables),
)
SETTINGS = ("method", "device", "threads", "precision", "pictures", "shape", "batch")


def _kind(row: Row) -> str:
    if row["what"] == "volume":
        return f"volume, {'in colour' if row['palette'] else 'grey'}"
    return {"batch": "host to host", "resident": "on the device", "resampling": "resampling"}[row["what"]]


def _batch_key(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in ("what", *SETTINGS))


def _work(row: Row, everything: Sequence[Row]) -> tuple[float | None, float | None]:
    """Operations and bytes of a slice, if they were counted.

    Where the device shows none, those of float32 on the CPU, with half the bytes in bfloat16.
    """
    plane = "x".join(row["shape"].split("x")[-2:])
    wanted = (row["method"], row["pictures"], plane)
    counted = {
        (one["device"], one["precision"]): one
        for one in everything
        if one["what"] == "arithmetic" and (one["method"], one["pictures"], one["shape"]) == wanted
    }
    if own := counted.get((row["device"], row["precision"])):
        return own["flops"], own["bytes"]
    if other := counted.get(("cpu", "float32")):
        return other["flops"], other["bytes"] / (2 if row["precision"] == "bfloat16" else 1)
    return None, None


def _medians(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """Median seconds by method and shape."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["shape"]), []).append(row["seconds"])
    return {key: median(seconds) for key, seconds in groups.items()}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _same(one: Row, other: Row) -> bool:
    return all(one[name] == other[name] for name in ("method", "shape", "pictures", "threads", "device"))


def _ceilings(rows: Iterable[Row], name: str) -> dict[tuple[str, int], float]:
    """The best rate of an operation by device and threads."""
    found: dict[tuple[str, int], float] = {}
    for row in rows:
        if row["what"] == "ceiling" and row["method"] == name:
            key = (row["device"], row["threads"])
            found[key] = max(found.get(key, 0.0), row["rate"])
    return found


def _stages(row: Row) -> dict[str, float]:
    """Seconds by stage: of the profile where there is one, else of the summary."""
    profile = row.get("profile") or row.get("seconds") or {}
    nested = next((value for value in profile.values() if isinstance(value, dict)), profile)
    return {name: value for name, value in nested.items() if isinstance(value, int | float)}


def _short(value: float) -> str:
    """Three digits, and all that stand before the point."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _told(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:.2f}"


def _ratio(above: float | None, below: float | None) -> str:
    return f"{above / below:.2f}" if above and below else NOTHING


def _share(work: float | None, seconds: float | None, ceiling: float | None) -> str:
    return f"{work / seconds / ceiling:.0%}" if work and seconds and ceiling else NOTHING


def _rate(value: float, unit: str) -> str:
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{_short(value / size)} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _size(shape: str) -> str:
    return shape.replace("x", " × ")


def _pixels(shape: str) -> int:
    return prod(int(side) for side in shape.split("x"))


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"


def _runs(group: Sequence[Row]) -> str:
    numbers = {sum(row["method"] == one["method"] and row["shape"] == one["shape"] for row in group) for one in group}
    return "medians of " + (
        _counted(min(numbers), "run") if len(numbers) == 1 else f"{min(numbers)}–{max(numbers)} runs"
    )


def _load(group: Sequence[Row]) -> str:
    """Load of the machine before the runs, the benchmark's own included."""
    known = [row["load"] for row in group if row["load"] is not None]
    return f", load {min(known):.1f}–{max(known):.1f}" if known else ""
