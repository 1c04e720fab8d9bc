"""What the figures were measured on, as the machine itself tells it; neither its name nor a path."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from rows import Row

from medfuse import __version__

WHAT = "machine"
#: Instructions that matter to matrix products, as /proc/cpuinfo calls them.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve")


def described() -> Row:
    """A row about this machine."""
    model, flags = _processor()
    found: Row = {
        "what": WHAT,
        "cpu": model,
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": _cores(),
        "memory_gb": _memory_gb(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "medfuse": __version__,
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {"gpu": card.name, "gpu_memory_gb": round(card.total_memory / 2**30), "cuda": torch.version.cuda}
    return found


def sentence(row: Row) -> str:
    """The machine in words."""
    instructions = f" ({', '.join(row['instructions'])})" if row["instructions"] else ""
    card = f"; {row['gpu']}, {row['gpu_memory_gb']} GiB, CUDA {row['cuda']}" if "gpu" in row else ""
    return (
        f"{row['cpu']}{instructions}, {row['cores']} cores, {row['memory_gb']} GiB{card}; {row['system']}, "
        f"Python {row['python']}, torch {row['torch']}, numpy {row['numpy']}, medfuse {row['medfuse']}"
    )


def has_gpu() -> bool:
    """Whether there is a CUDA device."""
    return torch.cuda.is_available()


def load() -> float | None:
    """How many processes wanted to run in the last minute, the benchmark's own among them; None where not known."""
    with suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 2)
    return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> tuple[str, set[str]]:
    model, flags = platform.processor() or platform.machine(), set()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name == "model name":
                model = value
            elif name in ("flags", "Features"):
                flags = set(value.split())
    return model, flags


def _memory_gb() -> int | None:
    with suppress(OSError, ValueError, AttributeError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    return None
