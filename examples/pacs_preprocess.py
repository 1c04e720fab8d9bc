"""A PACS preprocessing step: a study arrives in a folder, the fused series leaves in another.

    python examples/pacs_preprocess.py INCOMING OUTGOING [--method duet]

Takes the first MR and the first PET, SPECT or CT series in INCOMING, results of earlier runs apart, fuses them and
writes a DICOM series to OUTGOING, which a router can send on (`medfuse run` chooses by rules). Exits with 0 when a
series was written, 10 when the study holds no pair to fuse, and otherwise with the code of the error (2 wrong usage, 3
input, 4 geometry, 5 registration, 6 weights, 7 output). Prints one line of JSON, without patient data, but for wrong
usage; a router can hold back for a person what it says is not "trusted".
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import medfuse

NO_PAIR = 10


def find_pair(incoming: Path) -> tuple[str, str] | None:
    """The UIDs of the MR and of what to lay on it, or None. PET goes before SPECT, and both before CT."""
    by_modality: dict[str, str] = {}
    for series in medfuse.inspect(incoming).series:
        if series.usable and series.uid and not series.by_medfuse:
            by_modality.setdefault(series.modality, series.uid)
    functional = next((by_modality[name] for name in ("PT", "NM", "CT") if name in by_modality), None)
    return (by_modality["MR"], functional) if "MR" in by_modality and functional else None


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuse the MR and the PET, SPECT or CT of a study.")
    parser.add_argument("incoming", type=Path)
    parser.add_argument("outgoing", type=Path)
    parser.add_argument("--method", choices=medfuse.METHODS, default="duet")
    words = parser.parse_args()
    try:
        pair = find_pair(words.incoming)
        if pair is None:
            print(json.dumps({"status": "no pair"}))
            return NO_PAIR
        structural, functional = (medfuse.read(words.incoming, series=uid) for uid in pair)
        fused = medfuse.fuse(structural, functional, method=words.method)
        rerun = medfuse.DicomOptions(stable_uids=True)  # replaces its result, here and in the archive
        written = medfuse.write(fused, words.outgoing, overwrite=True, inputs=[words.incoming], dicom=rerun)
    except medfuse.MedfuseError as error:
        print(json.dumps({"status": "failed", "error": str(error)}))
        return error.exit_code
    alignment = fused.history[0].parameters
    told = {"alignment": alignment["reason"], "trust": alignment["trust"]}
    print(json.dumps({"status": "fused", "images": len(written), **told}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
