"""What methods must not do, on a pair of volumes: slice by slice, and from slice to slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medfuse.align.resample import resample
from medfuse.benchmark.contenders import to_contenders
from medfuse.benchmark.measuring import SafetyValues, Shown, check_shown
from medfuse.benchmark.table import Safety, heading, measures_of
from medfuse.color import Percentiles, Window
from medfuse.defaults import PALETTE
from medfuse.devices import choose_device
from medfuse.fusion import display_of, leaving_color, modality_beside
from medfuse.markdown import markdown
from medfuse.pipeline import to_window
from medfuse.stages import Progress
from medfuse.volume import Volume


@dataclass(frozen=True, eq=False)
class SafetyTable:
    """What the measures of safety gave every method on one pair of volumes.

    Args:
        slices: How many slices the volumes have.
        values: By method, by measure, (slices,), or (1,) of the slices together.
    """

    slices: int
    values: Mapping[str, SafetyValues]

    def safety_of(self, measure: str, method: str) -> Safety:
        """Over all slices; a KeyError says that the measure was not taken."""
        return Safety.of(measures_of([measure])[0], self.values[method][measure])

    def cells(self) -> list[list[str]]:
        """Rows of text, the header first: a row a measure, a column a method."""
        rows = [["measure", *self.values]]
        for measure in measures_of(next(iter(self.values.values()))):
            rows.append([heading(measure), *(str(self.safety_of(measure.name, method)) for method in self.values)])
        return rows

    def to_markdown(self) -> str:
        """Title and table."""
        return f"{self.slices} slices; mean and worst slice\n\n{markdown(self.cells())}"


def check_volumes(
    structural: Volume,
    functional: Volume,
    methods: str = "all",
    *,
    window: str | Window | Percentiles | None = None,
    structural_window: str | Window | Percentiles | None = None,
    palette: str = PALETTE,
    device: str = "auto",
    progress: Progress | None = None,
) -> SafetyTable:
    """Fuse two volumes by several methods, and by the controls, and measure what none of them must do.

    Args:
        structural: MR or CT; its slices are those of the result.
        functional: The other one, in the same world; it is resampled where its grid is another.
        methods: As for `medfuse.benchmark.run`.
        window: Of the functional volume, as for `medfuse.fuse`; None for its default.
        structural_window: Of the structural volume, likewise.
        palette: Of a functional volume that shows uptake.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        progress: Called after each method.

    Raises:
        ValueError: An unknown word.
        NoOverlap: No voxel of one volume lies inside the other.
        WeightsError: Weights cannot be used.
    """
    modality = modality_beside(structural.modality, functional.modality)
    contenders = to_contenders(methods, str(choose_device(device)), modality)
    sources = shown_together(structural, functional, window, structural_window, palette)
    chroma = sources[1][1]
    values = {}
    for done, contender in enumerate(contenders, 1):
        fused = contender.fuse(*(luminance for luminance, _ in sources))
        shown = leaving_color(fused, chroma, structural.modality), chroma
        values[contender.name] = check_shown(shown, *sources)
        if progress:
            progress("checking", done, len(contenders))
    return SafetyTable(structural.grid.shape[0], values)


def shown_together(
    structural: Volume,
    functional: Volume,
    window: str | Window | Percentiles | None = None,
    structural_window: str | Window | Percentiles | None = None,
    palette: str = PALETTE,
) -> tuple[Shown, Shown]:
    """Two volumes in one world as `medfuse.fuse` shows them, on the grid of the structural one.

    Args:
        structural: As for `check_volumes`, and so are the others.
        functional: It is resampled where its grid is another.
        window: Of the functional volume.
        structural_window: Of the structural volume.
        palette: Of a functional volume that shows uptake.
    """
    displays = (
        display_of(structural, functional=False, window=to_window(structural_window, structural)),
        display_of(functional, functional=True, window=to_window(window, functional), palette=palette),
    )
    if not functional.grid.matches(structural.grid):
        functional = resample(functional, structural.grid)
    return displays[0].show(structural.array), displays[1].show(functional.array)
