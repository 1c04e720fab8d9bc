"""Fuse a pair with several methods and export everything as NIfTI, cell by cell.

    python examples/research_export.py STRUCTURAL FUNCTIONAL OUT

The `# %%` marks are cells for editors that run them one by one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import medfuse

structural_path, functional_path, out = (Path(word) for word in sys.argv[1:4])

# %% Read. A volume is an array with its geometry: (slices, rows, columns), LPS millimetres.
structural = medfuse.read(structural_path)
functional = medfuse.read(functional_path)
print("structural", structural.modality.value, structural.grid.shape, structural.grid.spacing_mm)
print("functional", functional.modality.value, functional.unit.value, functional.grid.shape)

# %% Register once, keep the transform, and look at the verdict and its numbers before you use it.
registration = medfuse.register(structural, functional)
medfuse.write_transform(registration.transform, out / "functional_from_structural.tfm")
verdict = registration.verdict
print(verdict.trust.value, "; ".join(verdict.reasons))
print(f"moved {verdict.evidence.moved_mm:.1f} mm, rotated {verdict.evidence.rotated_degrees:.1f} degrees")
print(f"uncertain by {verdict.evidence.uncertainty_mm:.1f} mm: independent runs differ by that")

# %% The functional volume in its own units on the structural grid, for measurements: fused values are for display.
resampled = medfuse.resample(functional, structural.grid, registration.transform)
medfuse.write(resampled, out / "functional_on_structural.nii.gz")

# %% Fuse with every rule that needs no network, and with Duet on a coarser grid. A registration that failed is refused.
for method in ("average", "maximum"):
    fused = medfuse.fuse(structural, functional, transform=registration, method=method)
    medfuse.write(fused, out / f"fused_{method}.nii.gz")
    print(method, fused.array.shape, fused.array.dtype)

fused = medfuse.fuse(structural, functional, transform=registration, grid=4.0)
medfuse.write(fused, out / "fused_duet_4mm.nii.gz")

# %% Every result says how it was made.
for step in fused.history:
    print(step.name, {name: value for name, value in step.parameters.items() if not isinstance(value, dict | list)})
print("mean brightness", float(np.mean(fused.array)))
