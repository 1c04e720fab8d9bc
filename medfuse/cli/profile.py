"""Where the time of a command went, for people and for scripts."""

from __future__ import annotations

from typing import Any

import typer

from medfuse.cli.tables import print_table
from medfuse.markdown import markdown
from medfuse.stages import OTHER, Profile, peak_memory_bytes

#: The stages in the order of the path; others that there may be come before what is left.
STAGES = ("start-up", "read", "register", "resample", "window", "network", "colour", "write")


def profile_json(profile: Profile, slices: int) -> dict[str, Any]:
    """A profile as plain values.

    Args:
        profile: Of the whole command.
        slices: How many slices it fused.
    """
    return {
        "seconds": {name: round(seconds, 3) for name, seconds in _rows(profile)},
        "total_seconds": round(profile.total, 3),
        "slices_per_second": round(slices / profile.total, 2),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def print_profile(profile: Profile, slices: int) -> None:
    """Print a profile as a table, with the slices a second and the most memory that was held below it."""
    rows = [(name, f"{seconds:.2f}", f"{seconds / profile.total:.1%}") for name, seconds in _rows(profile)]
    table = [("stage", "seconds", "share"), *rows, ("total", f"{profile.total:.2f}", "100.0%")]
    print_table("where the time went", table, f"\n{markdown(table)}\n")
    memory = peak_memory_bytes()
    held = "" if memory is None else f"; at most {memory / 2**20:.0f} MiB of memory"
    typer.echo(f"{slices} slices, {slices / profile.total:.1f} a second{held}")


def _rows(profile: Profile) -> list[tuple[str, float]]:
    """The stages that ran, in the order of the path, what belongs to none last."""
    more = [name for name in profile.seconds if name not in (*STAGES, OTHER)]
    return [(name, profile.seconds[name]) for name in (*STAGES, *more, OTHER) if name in profile.seconds]
