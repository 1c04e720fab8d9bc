"""Methods × pairs × measures → one table, in which the controls always stand; and the same measures for one result.

    from medfuse.benchmark import run

    table = run(Path("ct-mri"), structural="mri", functional="ct", methods="dilran,dilran:average")
    table.statistic("SSIM", "dilran", "worse").mean

What is fused and measured is luminance. The standard convention measures the 8-bit grey levels that a saved image
holds; the paper's measures the floats as a method gives them.
"""

from medfuse.benchmark.contenders import CONTROLS
from medfuse.benchmark.result import Result, score_result
from medfuse.benchmark.run import Outputs, run
from medfuse.benchmark.table import SIDES, Safety, Statistic, Table
from medfuse.benchmark.volumes import SafetyTable, check_volumes

__all__ = [
    "CONTROLS",
    "SIDES",
    "Outputs",
    "Result",
    "Safety",
    "SafetyTable",
    "Statistic",
    "Table",
    "check_volumes",
    "run",
    "score_result",
]
