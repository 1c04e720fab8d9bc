"""Find the DICOM images below a folder, group them into series and choose one. Reads headers only."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom import Dataset, uid

from medfuse.errors import MedfuseError, SeriesError, UnreadableFile
from medfuse.io.dicom_header import count, frames_in, leniently, read_header, word, words
from medfuse.io.dicom_mosaic import is_mosaic
from medfuse.io.dicom_strays import is_copy, remarks
from medfuse.io.sidecar import MAKER, to_modality
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
    uid.ParametricMapStorage: None,
}
THREADS = 8
FETCHED = 64 * 1024  # bytes; the header of a slice and more
DICOM_SUFFIXES = {".dcm", ".ima"}
DAMAGED, CLOSED = "damaged DICOM file", "file that cannot be opened"
LOCALIZER, COPY = "localizer (scout) image", "copy of an image that is there already"
#: What medfuse writes in Image Type, or as Content Label of a Parametric Map, of what it fused.
FUSED = "FUSED"
#: What an image cannot do without.
NEEDED = ("SOPClassUID", "SeriesInstanceUID", "Rows")


@dataclass(frozen=True)
class Series:
    """The images of one series, unsorted.

    Args:
        uid: Series Instance UID.
        files: Path and header of every image file; headers hold `dicom_header.TAGS` only.
        part: Which of the volumes that the series holds was asked for, from 1 (`dicom_parts`); None if none was.
        remarks: What a person should know of what was left out beside it (`dicom_strays`).
    """

    uid: str
    files: tuple[tuple[Path, Dataset], ...]
    part: int | None = None
    remarks: tuple[str, ...] = ()

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
        return sum(frames_in(header) for _, header in self.files)

    @property
    def may_be_volume(self) -> bool:
        """Whether there is more than one 2-D image: several files or frames, or a mosaic."""
        return self.images > 1 or is_mosaic(self.header)

    @property
    def modality(self) -> Modality:
        """What made the images: medfuse, or what the SOP class implies, else the attribute Modality, else OTHER."""
        if _is_fused(self.header):
            return Modality.FUSED
        implied = SCANS.get(word(self.header, "SOPClassUID"))
        known = {Modality.CT.value, Modality.MR.value, Modality.PT.value, Modality.NM.value}
        stated = word(self.header, "Modality").upper()
        if implied is Modality.PT and stated == Modality.NM.value:
            return Modality.NM  # SPECT that is written as PET
        return implied or (Modality(stated) if stated in known else Modality.OTHER)

    def __str__(self) -> str:
        size = f"{count(self.header, 'Rows')} × {count(self.header, 'Columns')}"
        number = "no number" if self.number is None else f"number {self.number}"
        return f"{number} ({self.modality.value}, {self.images} images of {size})"


def _is_fused(header: Dataset) -> bool:
    """Whether medfuse fused the images and kept their values: colour, or 0 to 1 in a Parametric Map.

    A fused series that was written as MR images is read as those, for its values have become whole numbers.
    """
    if word(header, "Manufacturer") != MAKER:
        return False
    is_color = word(header, "SamplesPerPixel") == "3" and FUSED in words(header, "ImageType")
    return is_color or (
        word(header, "SOPClassUID") == uid.ParametricMapStorage and word(header, "ContentLabel") == FUSED
    )


@dataclass(frozen=True)
class Scan:
    """What was found below a path.

    Args:
        series: All series, by Series Number and UID.
        others: Files that are not DICOM.
        left_out: How many DICOM files were left out, by reason.
        suspects: Those left out that may be a slice of a series, with the reason.
    """

    series: tuple[Series, ...]
    others: tuple[Path, ...]
    left_out: Counter[str]
    suspects: tuple[tuple[Path, str], ...] = ()

    def list_left_out(self) -> list[str]:
        """As "1 file: RT Structure Set holds no image"."""
        return [f"{n} file{'s' if n > 1 else ''}: {reason}" for reason, n in sorted(self.left_out.items())]


def files_below(path: Path) -> list[Path]:
    """The path itself if it is a file, else all files below it, sorted.

    Links to folders are followed, to each folder once, and not upwards. Links that lead nowhere stay if they are named
    as DICOM: what they stood for may be a slice.

    Raises:
        UnreadableFile: A folder cannot be looked into.
    """
    if path.is_file():
        return [path]
    found: list[Path] = []
    seen = set(path.resolve().parents)
    for name, below, names in os.walk(path, onerror=_refuse_closed, followlinks=True):
        folder = Path(name).resolve()
        if folder in seen:
            below.clear()
            continue
        seen.add(folder)
        found += (Path(name) / file for file in names)
    return sorted(file for file in found if file.is_file() or (file.is_symlink() and _is_named_dicom(file)))


def _refuse_closed(error: OSError) -> None:
    """A folder that cannot be looked into may hold slices."""
    raise UnreadableFile(
        f"expected folders that can be read, found that {Path(error.filename).name} cannot be "
        f"({error.strerror or type(error).__name__})",
        "Check the rights there, or give a folder without it",
    ) from error


def _is_named_dicom(path: Path) -> bool:
    """Whether a name is that of a DICOM file, and not that of macOS's notes on one, which begins with "._"."""
    return path.suffix.lower() in DICOM_SUFFIXES and not path.name.startswith("._")


@leniently()
def scan(paths: Iterable[Path]) -> Scan:
    """Read the header of every file and group the images by Series Instance UID."""
    paths = list(paths)
    with ThreadPoolExecutor(THREADS) as pool:
        headers = [_header_or_reason(path) for path, _ in zip(paths, pool.map(_fetch, paths), strict=True)]
    series: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    twins: dict[tuple[str, str], list[tuple[Path, Dataset]]] = defaultdict(list)
    aside: dict[str, list[tuple[str, Dataset]]] = defaultdict(list)
    others: list[Path] = []
    suspects: list[tuple[Path, str]] = []
    left_out: Counter[str] = Counter()
    for path, header in zip(paths, headers, strict=True):
        if header is None:
            others.append(path)
            continue
        reason = header if isinstance(header, str) else _reason_to_leave_out(header)
        if isinstance(header, str) or reason.startswith((DAMAGED, CLOSED)):
            left_out[reason] += 1
            suspects.append((path, reason))
            continue
        key = word(header, "SeriesInstanceUID")
        same = twins[key, word(header, "SOPInstanceUID")]
        if not reason and any(is_copy((path, header), twin) for twin in same):
            reason = COPY
        if reason:
            left_out[reason] += 1
            aside[key].append((reason, header))
            continue
        same.append((path, header))
        series[key].append((path, header))
    found = [Series(key, tuple(files)) for key, files in series.items()]
    alone = [one.header for one in found if not one.may_be_volume]
    for n, one in enumerate(found):
        copies = sum(reason == COPY for reason, _ in aside[one.uid])
        scouts = [header for reason, header in aside[one.uid] if reason == LOCALIZER]
        headers = [header for _, header in one.files]
        said = remarks(headers, copies, scouts, alone if len(headers) > 1 else [])
        found[n] = replace(one, remarks=said)
    found.sort(key=lambda one: (one.number is None, one.number or 0, one.uid))
    return Scan(tuple(found), tuple(others), left_out, tuple(suspects))


def _fetch(path: Path) -> None:
    """Have the system bring the beginning of a file: on a network's drive, many do so side by side.

    Only that is for threads: parsing holds Python's lock, and two at it take longer than one.
    """
    with suppress(OSError), path.open("rb") as file:
        file.read(FETCHED)


def _header_or_reason(path: Path) -> Dataset | str | None:
    """The header, or None if the file is not DICOM, or why it cannot be read.

    A file that is named as DICOM but does not begin as such, an empty one for example, is a damaged one: it may have
    been the last slice.
    """
    try:
        header = read_header(path)
        return DAMAGED if header is None and _is_named_dicom(path) else header
    except MedfuseError:
        return DAMAGED
    except OSError:
        return CLOSED


def _reason_to_leave_out(header: Dataset) -> str:
    """Why a DICOM file is no image of a scan, or ""."""
    stored_as = word(header.file_meta, "MediaStorageSOPClassUID")
    sop_class = uid.UID(word(header, "SOPClassUID") or stored_as)
    cut_short = "SOPClassUID" not in header and stored_as != uid.MediaStorageDirectoryStorage
    lacking = next((keyword for keyword in NEEDED if not word(header, keyword)), "")
    if cut_short or (stored_as in SCANS and sop_class not in SCANS):
        return f"{DAMAGED} without {lacking}" if lacking else DAMAGED
    name = sop_class.name.removesuffix(" Storage") if sop_class.name != sop_class else "object of an unknown class"
    if not sop_class or (sop_class in SCANS and lacking):
        return f"{DAMAGED} without {lacking}"
    if sop_class not in SCANS:
        return f"{name} is not a scan" if "Rows" in header else f"{name} holds no image"
    kinds = {kind.upper() for kind in words(header, "ImageType")}
    if "LOCALIZER" in kinds:
        return LOCALIZER
    placeless = "SecondaryCapture" in (sop_class.keyword or "") and not _is_placed(header)
    return "screen capture, without a place in the patient" if placeless or "SCREEN SAVE" in kinds else ""


def _is_placed(header: Dataset) -> bool:
    """Whether a header says where its image lies."""
    return bool(word(header, "ImagePositionPatient") or header.get("PerFrameFunctionalGroupsSequence"))


@leniently()
def choose(found: Scan, series: str | int | None = None, modality: Modality | None = None) -> Series:
    """Choose one series.

    Args:
        found: What `scan` found.
        series: Series Instance UID, Series Number, or a modality as `to_modality` knows it, each with ":N" after it for
            part N of the series; None chooses the only one that can be a volume.
        modality: Considered where several series are left.

    Raises:
        SeriesError: None or several are left; the message lists them.
        UnreadableFile: A damaged file may be a slice of the series.
    """
    if found.suspects:
        path, reason = found.suspects[0]
        first = "the first, " if len(found.suspects) > 1 else ""
        raise UnreadableFile(
            f"expected whole DICOM files, found {len(found.suspects)} damaged or unreadable, which may belong to the "
            f"series ({first}{path.name}: {reason})",
            "Copy or export them again, or remove them",
        )
    if not found.series:
        raise SeriesError(
            f"expected a series of images, found none ({', '.join(found.list_left_out())})",
            "Give the folder that holds the images",
        )
    candidates = list(found.series)
    name, part = _name_and_part(series)
    if name:
        candidates = _asked_for(candidates, name)
    elif len(candidates) > 1:
        candidates = [one for one in candidates if one.may_be_volume] or candidates
    if len(candidates) > 1 and modality is not None:
        candidates = [one for one in candidates if one.modality is modality]
    if len(candidates) == 1:
        return candidates[0] if part is None else replace(candidates[0], part=part)
    listed = "; ".join(str(one) for one in candidates or found.series)
    raise SeriesError(
        f"expected one series, found {len(candidates) or 'none that fits'} among {len(found.series)}: {listed}",
        "Choose one by its number, UID or modality with --series (in Python: series=); `medfuse info` lists them",
    )


def _name_and_part(series: str | int | None) -> tuple[str, int | None]:
    """What names a series, and the number of the part of it: "4:2" is part 2 of number 4, ":2" that of the only one."""
    name, _, part = str(series if series is not None else "").strip().partition(":")
    return (name, int(part)) if part.isdecimal() else (f"{name}:{part}" if part else name, None)


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
    return [one for one in fitting if one.may_be_volume] or fitting
