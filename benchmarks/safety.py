"""What methods must not do, on one pair of volumes: `python benchmarks/safety.py STRUCTURAL FUNCTIONAL`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medfuse import parse_window, read
from medfuse.benchmark import check_volumes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structural", type=Path, help="MR or CT, any form that medfuse reads")
    parser.add_argument("functional", type=Path, help="PET, SPECT, CT or MR in the same world")
    parser.add_argument("--methods", default="all", help="as for `medfuse bench`")
    parser.add_argument("--window", help="of the functional volume")
    parser.add_argument("--structural-window", help="of the structural volume")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    table = check_volumes(
        read(given.structural),
        read(given.functional),
        given.methods,
        window=parse_window(given.window) if given.window else None,
        structural_window=parse_window(given.structural_window) if given.structural_window else None,
        device=given.device,
        progress=lambda what, done, total: print(f"{what} {done}/{total}", file=sys.stderr),
    )
    print(table.to_markdown(), end="")


if __name__ == "__main__":
    main()
