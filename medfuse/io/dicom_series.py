"""Find the DICOM images below a folder, group them into series and choose one. Reads headers only."""

from __future__ import annotations

import filecmp
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, uid

from medfuse.errors import MedfuseError, SeriesError, UnreadableFile
from medfuse.io.dicom_header import count, leniently, read_header, word, words
from medfuse.io.sidecar import to_modality
from medfuse.volume import Modality

#: SOP classes that are scans, and the modality that a class alone implies. All others are left out.
SCANS = {
    uid.CTImageStorage: Modality.CT,
    uid.EnhancedCTImageStorage: Modality.CT,
    uid.LegacyConvertedEnhancedCTImageStorage: Modality.CT,
    uid.MRImageStorage: Modality.MR,
    uid.EnhancedMRImageStorage: Modality.MR,
    uid.EnhancedMRColorImageStorage: Modality.MR,
    uid.LegacyConvertedEnhancedMRImageStorage: Modality.MR,
    uid.PositronEmissionTomographyImageStorage: Modality.PT,
    uid.EnhancedPETImageStorage: Modality.PT,
    uid.LegacyConvertedEnhancedPETImageStorage: Modality.PT,
    uid.NuclearMedicineImageStorage: Modality.NM,
    uid.SecondaryCaptureImageStorage: None,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage: None,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage: None,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage: None,
}
THREADS = 8
DICOM_SUFFIXES = {".dcm", ".ima"}
DAMAGED, CLOSED = "damaged DICOM file", "file that cannot be opened"


@dataclass(frozen=True)
class Series:
    """The images of one series, unsorted.

    Args:
        uid: Series Instance UID.
        files: Path and header of every image file; headers hold `dicom_header.KEYWORDS` only.
    """

    uid: str
    files: tuple[tuple[Path, Dataset], ...]

    @property
    def header(self) -> Dataset:
        """The header of the first file."""
        return self.files[0][1]

    @property
    def number(self) -> int | None:
        """Series Number, or None."""
        return count(self.header, "SeriesNumber") if word(self.header, "SeriesNumber") else None

    @property
    def images(self) -> int:
        """Number of images, frames counted."""
        return sum(max(1, count(header, "NumberOfFrames", 1)) for _, header in self.files)

    @property
    def modality(self) -> Modality:
        """What made the images: what the SOP class implies, else the attribute Modality, else OTHER."""
        implied = SCANS.get(word(self.header, "SOPClassUID"))
        known = {Modality.CT.value, Modality.MR.value, Modality.PT.value, Modality.NM.value}
        stated = word(self.header, "Modality").upper()
        return implied or (Modality(stated) if stated in known else Modality.OTHER)

    def __str__(self) -> str:
        size = f"{count(self.header, 'Rows')} × {count(self.header, 'Columns')}"
        number = "no number" if self.number is None else f"number {self.number}"
        return f"{number} ({self.modality.value}, {self.images} images of {size})"


@dataclass(frozen=True)
class Scan:
    """What was found below a path.

    Args:
        series: All series, by Series Number and UID.
        others: Files that are not DICOM.
        left_out: How many DICOM files were left out, by reason.
    """

    series: tuple[Series, ...]
    others: tuple[Path, ...]
    left_out: Counter[str]

    def list_left_out(self) -> list[str]:
        """As "1 file: RT Structure Set holds no image"."""
        return [f"{n} file{'s' if n > 1 else ''}: {reason}" for reason, n in sorted(self.left_out.items())]


def files_below(path: Path) -> list[Path]:
    """The path itself if it is a file, else all files below it, sorted; links to folders are not followed."""
    if path.is_file():
        return [path]
    found = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return sorted(file for file in found if file.is_file())


@leniently()
def scan(paths: Iterable[Path]) -> Scan:
    """Read the header of every file and group the images by Series Instance UID."""
    paths = list(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        headers = list(pool.map(_header_or_reason, paths))
    series: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    twins: dict[tuple[str, str], list[Path]] = defaultdict(list)
    others: list[Path] = []
    left_out: Counter[str] = Counter()
    for path, header in zip(paths, headers, strict=True):
        if header is None:
            others.append(path)
            continue
        if isinstance(header, str) or (reason := _reason_to_leave_out(header)):
            left_out[header if isinstance(header, str) else reason] += 1
            continue
        key = word(header, "SeriesInstanceUID")
        same = twins[key, word(header, "SOPInstanceUID")]
        if any(filecmp.cmp(path, twin, shallow=False) for twin in same):
            left_out["copy of an image that is there already"] += 1
            continue
        same.append(path)
        series[key].append((path, header))
    found = [Series(key, tuple(files)) for key, files in series.items()]
    found.sort(key=lambda one: (one.number is None, one.number or 0, one.uid))
    return Scan(tuple(found), tuple(others), left_out)


def _header_or_reason(path: Path) -> Dataset | str | None:
    """The header, or None if the file is not DICOM, or why it cannot be read.

    A file that is named as DICOM but does not begin as such, an empty one for example, is a damaged one: it may have
    been the last slice.
    """
    try:
        header = read_header(path)
        return DAMAGED if header is None and path.suffix.lower() in DICOM_SUFFIXES else header
    except MedfuseError:
        return DAMAGED
    except OSError:
        return CLOSED


def _reason_to_leave_out(header: Dataset) -> str:
    """Why a DICOM file is no image of a scan, or ""."""
    sop_class = uid.UID(word(header, "SOPClassUID") or word(header.file_meta, "MediaStorageSOPClassUID"))
    name = sop_class.name.removesuffix(" Storage") if sop_class.name != sop_class else "object of an unknown class"
    if not sop_class or (sop_class in SCANS and not ("Rows" in header and word(header, "SeriesInstanceUID"))):
        return DAMAGED
    if sop_class not in SCANS:
        return f"{name} is not a scan" if "Rows" in header else f"{name} holds no image"
    return "localizer (scout) image" if "LOCALIZER" in words(header, "ImageType") else ""


@leniently()
def choose(found: Scan, series: str | int | None = None, modality: Modality | None = None) -> Series:
    """Choose one series.

    Args:
        found: What `scan` found.
        series: Series Instance UID, Series Number, or a modality as `to_modality` knows it; None chooses the only one
            that can be a volume.
        modality: Considered where several series are left.

    Raises:
        SeriesError: None or several are left; the message lists them.
        UnreadableFile: A damaged file may be a slice of the series.
    """
    if damaged := found.left_out[DAMAGED] + found.left_out[CLOSED]:
        raise UnreadableFile(
            f"expected whole DICOM files, found {damaged} damaged or unreadable, which may belong to the series",
            "Copy or export them again, or remove them",
        )
    if not found.series:
        raise SeriesError(
            f"expected a series of images, found none ({', '.join(found.list_left_out())})",
            "Give the folder that holds the images",
        )
    candidates = list(found.series)
    if series is not None:
        candidates = _asked_for(candidates, str(series).strip())
    elif len(candidates) > 1:
        candidates = [one for one in candidates if one.images > 1] or candidates
    if len(candidates) > 1 and modality is not None:
        candidates = [one for one in candidates if one.modality is modality]
    if len(candidates) == 1:
        return candidates[0]
    listed = "; ".join(str(one) for one in candidates or found.series)
    raise SeriesError(
        f"expected one series, found {len(candidates) or 'none that fits'} among {len(found.series)}: {listed}",
        "Choose one by its number, UID or modality with --series (in Python: series=); `medfuse info` lists them",
    )


def _asked_for(candidates: list[Series], asked: str) -> list[Series]:
    """The series of a UID or number, else those of a modality."""
    named = [one for one in candidates if asked in (one.uid, str(one.number))]
    if named:
        return named
    try:
        modality = to_modality(asked)
    except ValueError:
        return []
    fitting = [one for one in candidates if one.modality is modality]
    return [one for one in fitting if one.images > 1] or fitting
