"""Siemens mosaics: the slices of one volume, tiled into one image.

What the tiles are stands in Siemens' private CSA header (0029,1010), a list of named values. Image Position (Patient)
of a mosaic is that of a plain image of the mosaic's size around the same middle as the first slice, and has to be moved
(nibabel, "DICOM mosaics", https://nipy.org/nibabel/dicom/dicom_mosaic.html, describes both).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medfuse.errors import MissingAttribute, UnreadableFile
from medfuse.io.dicom_header import numbers, words
from medfuse.io.dicom_planes import Plane, directions_of, size_of, spacing_of

CSA_CREATOR, CSA_IMAGE = 0x00290010, 0x00291010
HINT = "Export the series with private elements, or convert it with dcm2niix"
#: Largest cosine between Slice Normal Vector and the planes; rounding leaves less.
NORMAL_TOLERANCE = 1e-3


def is_mosaic(header: Dataset) -> bool:
    """Whether an image holds several slices as tiles."""
    return "MOSAIC" in words(header, "ImageType")


def planes_of_mosaic(path: Path, header: Dataset) -> Iterator[Plane]:
    """The slices of one mosaic, in the order in which they are tiled: row by row.

    Raises:
        MissingAttribute: The CSA header, or what it must say, is absent.
        UnreadableFile: It contradicts the image.
    """
    (rows, columns), _ = size_of(header, path.name)
    csa = _csa_values(header, path.name)
    slices = int(csa["NumberOfImagesInMosaic"][0])
    tiles = math.ceil(math.sqrt(max(1, slices)))  # in a row, and in a column
    if slices < 1 or rows % tiles or columns % tiles:
        raise UnreadableFile(
            f"expected {tiles} × {tiles} tiles of one size in the mosaic {path.name}, found {rows} × {columns} pixels",
            "Export the series again; the header is damaged",
        )
    shape = rows // tiles, columns // tiles
    row, column = directions_of(header, path.name)
    spacing = spacing_of(header, path.name)
    corner = numbers(header, "ImagePositionPatient", 3, path.name)
    moved_rows, moved_columns = (rows - shape[0]) / 2, (columns - shape[1]) / 2
    first = corner + moved_rows * spacing[0] * column + moved_columns * spacing[1] * row
    step = _normal(csa, row, column, path.name) * numbers(header, "SpacingBetweenSlices", 1, path.name)[0]
    for n in range(slices):
        tile = n // tiles * shape[0], n % tiles * shape[1]
        yield Plane(path, 0, header, first + n * step, row, column, spacing, shape, tile)


def _normal(
    csa: dict[str, list[Any]], row: NDArray[np.float64], column: NDArray[np.float64], name: str
) -> NDArray[np.float64]:
    """The unit vector along which the tiles are stacked, which is either normal of the planes."""
    stated = np.array(csa["SliceNormalVector"], dtype=np.float64)
    normal: NDArray[np.float64] = np.cross(row, column)
    if stated.shape != (3,) or abs(abs(float(stated @ normal)) - 1) > NORMAL_TOLERANCE:
        raise UnreadableFile(
            f"expected SliceNormalVector at right angles to the slices of the mosaic {name}, found another direction",
            "Export the series again; the header is damaged",
        )
    return normal * np.sign(stated @ normal)


def _csa_values(header: Dataset, name: str) -> dict[str, list[Any]]:
    """The values of the CSA header that a mosaic needs, by name.

    Raises:
        MissingAttribute: One is absent.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import: that nibabel's readers of DICOM are experimental
        from nibabel.nicom import csareader
    creator = str(header[CSA_CREATOR].value).strip() if CSA_CREATOR in header else ""
    stated = creator.startswith("SIEMENS CSA") and CSA_IMAGE in header
    tags = csareader.read(header[CSA_IMAGE].value)["tags"] if stated else {}
    needed = ("NumberOfImagesInMosaic", "SliceNormalVector")
    values = {key: list(tags[key]["items"]) for key in needed if key in tags}
    for key in needed:
        if not values.get(key):
            raise MissingAttribute(f"expected {key} in the CSA header of the mosaic {name}, found none", HINT)
    return values
