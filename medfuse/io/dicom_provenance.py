"""What a derived DICOM image says about where it comes from: patient and study, sources, equipment, derivation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from pydicom import DataElement, Dataset, config
from pydicom.charset import python_encoding
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence_item
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR, validate_value

from medfuse._version import __version__
from medfuse.io.dicom_header import word, words
from medfuse.io.dicom_uids import all_sources
from medfuse.io.sidecar import MAKER
from medfuse.volume import Modality, Source, Step, Volume, parameters_of

#: Ends every series description.
WARNING = " - not for diagnostic use"
#: Most characters of the value representations LO and ST (PS3.5 section 6.2).
LO_MAX, ST_MAX = 64, 1024
#: Most characters that say what the alignment rests on, and as many for the numbers of a registration.
REASON_MAX = 256
#: Who the patient is: carried on unaltered even where the value is illegal.
IDENTIFIERS = ("PatientName", "PatientID", "AccessionNumber")
#: The values that PS3.3 allows, of attributes where others occur.
ALLOWED = {
    "PatientSex": ("M", "F", "O"),
    "Laterality": ("L", "R"),
    "PatientPosition": (
        *("HFP", "HFS", "HFDR", "HFDL", "FFP", "FFS", "FFDR", "FFDL"),
        *("LFP", "LFS", "RFP", "RFS", "AFDR", "AFDL", "PFDR", "PFDL"),
    ),
}
#: What stands for no other letters than those of ASCII.
ASCII = {"", "ISO_IR 6", "ISO 2022 IR 6"}
EQUIPMENT = (
    *("Manufacturer", "InstitutionName", "StationName", "ManufacturerModelName", "DeviceSerialNumber"),
    "SoftwareVersions",
)


def carry(header: Dataset, dataset: Dataset, keywords: Iterable[str]) -> None:
    """Copy attributes from one data set to another, except those that are absent, empty or break their own rules.

    An identifier is copied even if it is too long or has illegal characters: a shortened one would be another one.

    Args:
        header: Where from.
        dataset: Where to; what it holds under the keyword stays where nothing is copied.
        keywords: Which.
    """
    for keyword in keywords:
        try:
            element = deepcopy(header[keyword])
            legal = keyword in IDENTIFIERS or _is_legal(element)
        except (KeyError, ValueError, TypeError, AttributeError):  # absent, or cannot be decoded
            continue
        if legal and not element.is_empty:
            dataset.add(element)


def _is_legal(element: DataElement) -> bool:
    """Whether a value fits its value representation and, where there is one, the list of values allowed."""
    if element.VR == "SQ":
        return True
    values = [str(value) for value in (element.value if element.VM > 1 else [element.value])]
    allowed = ALLOWED.get(element.keyword)
    if allowed is not None:
        return all(value in allowed for value in values)
    try:
        for value in values:
            validate_value(element.VR, value, config.RAISE)
    except ValueError:
        return False
    return True


def describe_origin(dataset: Dataset, volume: Volume) -> None:
    """Set character set, derivation, compression, burned-in text and equipment; drop private elements in sequences.

    Args:
        dataset: The image, of which this is altered: SpecificCharacterSet, DerivationDescription,
            DerivationCodeSequence, LossyImageCompression, BurnedInAnnotation, ContributingEquipmentSequence.
        volume: What the image is made of.
    """
    dataset.DerivationDescription = derivation_description(volume.history)
    if volume.modality is Modality.FUSED or any(step.name == "resample" for step in volume.history):
        dataset.DerivationCodeSequence = [spatial_resampling()]
    headers = _headers(volume.source)
    lossy = [header for header in headers if word(header, "LossyImageCompression") == "01"]
    dataset.LossyImageCompression = "01" if lossy else "00"
    if lossy:
        carry(lossy[0], dataset, ("LossyImageCompressionRatio", "LossyImageCompressionMethod"))
    is_burned_in = any(word(header, "BurnedInAnnotation") == "YES" for header in headers)
    dataset.BurnedInAnnotation = "YES" if is_burned_in else "NO"
    describe_equipment(dataset, volume)


def spatial_resampling() -> Dataset:
    """How images come to be fused, as far as DICOM has a code for it (PS3.16 CID 7203)."""
    return code_item(codes.DCM.SpatialResampling)


def describe_equipment(dataset: Dataset, volume: Volume) -> None:
    """Set equipment and character set; drop private elements that came along in sequences.

    Args:
        dataset: Any object, of which this is altered: SpecificCharacterSet, ContributingEquipmentSequence.
        volume: What it is made of, or lies beside.
    """
    dataset.ContributingEquipmentSequence = [*_scanners(_headers(volume.source)), _processor(volume.history)]
    dataset.remove_private_tags()
    _set_character_set(dataset, volume.source)


def _headers(source: Source) -> list[Dataset]:
    return [one.header for one in all_sources(source) if one.header is not None]


def _set_character_set(dataset: Dataset, source: Source) -> None:
    """Keep the structural source's character set where it is one and all texts are in it, else UTF-8."""
    own, *others = [() if s.header is None else words(s.header, "SpecificCharacterSet") for s in all_sources(source)]
    is_shared = all(other in ((), own) for other in others)
    if not is_shared or not python_encoding.keys() >= set(own) or (ASCII.issuperset(own) and not _is_ascii(dataset)):
        dataset.SpecificCharacterSet = "ISO_IR 192"
    elif source.header is not None:
        carry(source.header, dataset, ("SpecificCharacterSet",))


def _is_ascii(dataset: Dataset) -> bool:
    """Whether no text has letters beyond ASCII, which need a character set to be said."""
    texts = (element for element in dataset.iterall() if element.VR in CUSTOMIZABLE_CHARSET_VR)
    return all(str(element.value).isascii() for element in texts)


class SourceReferences:
    """SourceImageSequence of every slice (PS3.3 section C.7.6.1.1.4), encoded once.

    Of the structural source a slice names the one image that it lies on, where there is one to each slice, else all; of
    every other source all, for their voxels were resampled. Encoding those anew for each slice, hundreds of items
    mostly alike, would take longer than all the rest of writing.

    Args:
        volume: What the series is made of.
    """

    def __init__(self, volume: Volume) -> None:
        first, *others = all_sources(volume.source)
        own = [_encoded_reference(*image) for image in first.images]
        self._own = own if is_slice_to_slice(volume) else [b"".join(own)] * volume.grid.shape[0]
        self._others = b"".join(_encoded_reference(*image) for source in others for image in source.images)

    def set_on(self, dataset: Dataset, k: int) -> None:
        """Set the references of slice `k` on a data set that was read from Explicit VR Little Endian."""
        if value := self._own[k] + self._others:
            tag = Tag("SourceImageSequence")
            dataset[tag] = RawDataElement(tag, "SQ", len(value), value, 0, False, True)


def series_description(volume: Volume, template: str | None = None) -> str:
    """At most 64 characters: what was fused and how, and always that it is not for diagnostic use.

    Where the volumes lie by a registration that is not trusted, its verdict is said, too.

    Args:
        volume: What is to be written.
        template: Text instead, with the fields of `medfuse.io.dicom_options`.

    >>> from medfuse.grid import Grid
    >>> grid = Grid((1, 1, 1), np.eye(4))
    >>> series_description(Volume(np.zeros((1, 1, 1)), grid, Modality.FUSED).derive("fuse", {"method": "dilran"}))
    'medfuse dilran - not for diagnostic use'
    """
    if template is not None:
        return _with_warning(template.format(**_fields(volume)), volume.history)
    fields = _fields(volume)
    modalities = [fields["functional"], fields["structural"]]
    if not all(modalities):
        first, *others = all_sources(volume.source)
        modalities = [word(source.header, "Modality") for source in (*others, first) if source.header is not None]
    if volume.modality is not Modality.FUSED and not any(modalities):
        modalities = [volume.modality.value]
    parts = ("medfuse", "+".join(dict.fromkeys(filter(None, modalities))), fields["method"])
    return _with_warning(_printable(" ".join(filter(None, parts))).replace("\\", "/"), volume.history)


def _fields(volume: Volume) -> dict[str, str]:
    """What stands for the fields of a template; "" for what the history does not say."""
    fused = parameters_of(volume.history, "fuse")
    sides = {side: fused.get(side) for side in ("structural", "functional")}
    modalities = {side: str(of.get("modality", "")) if isinstance(of, Mapping) else "" for side, of in sides.items()}
    return {**modalities, **{name: str(fused.get(name) or "") for name in ("method", "strategy")}}


def companion_description(what: str, history: Iterable[Step]) -> str:
    """The same of an object that lies beside a fused series.

    >>> companion_description("registration", ())
    'medfuse registration - not for diagnostic use'
    """
    return _with_warning(f"medfuse {what}", history)


def _with_warning(text: str, history: Iterable[Step]) -> str:
    """At most 64 characters: a text, the verdict where a registration that is not trusted was used, and the warning."""
    aligned = parameters_of(history, "align")
    doubt = aligned.get("registered") and aligned.get("trust") in ("doubtful", "failed")
    ending = f" ({aligned['trust']} match){WARNING}" if doubt else WARNING
    return text[: LO_MAX - len(ending)].rstrip() + ending


def derivation_description(history: Iterable[Step]) -> str:
    """At most 1024 characters: what the alignment rests on, then every step, the longest values shortened first."""
    history = tuple(history)
    aligned = _aligned_by(parameters_of(history, "align"))
    head = f"medfuse {__version__}, not for diagnostic use{aligned}"
    for longest in (ST_MAX, 256, 128, 64, 32, 16):
        text = _printable("; ".join((head, *(_step(step, longest) for step in history))))
        if len(text) <= ST_MAX:
            return text
    return text[: ST_MAX - 3] + "..."


def _step(step: Step, longest: int) -> str:
    """A step as text, each value of at most `longest` characters."""
    values = {name: json.dumps(_rounded(value), default=str) for name, value in step.parameters.items()}
    version = "" if step.version == __version__ else f" [{step.version}]"
    told = ", ".join(f"{name}={_shortened(value, longest)}" for name, value in values.items())
    return f"{step.name}{version}({told})"


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _aligned_by(alignment: Mapping[str, Any]) -> str:
    """What an alignment rests on, and the numbers of the registration that was run, if one was."""
    registration = alignment.get("registration")
    values = registration.items() if isinstance(registration, Mapping) else ()
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in values if isinstance(value, float))
    told = {"aligned by": str(alignment.get("reason", "")), "registration": numbers}
    return "".join(f"; {word}: {_shortened(text, REASON_MAX)}" for word, text in told.items() if text)


def _rounded(value: Any) -> Any:
    """Plain JSON values with floats cut to 7 significant digits, so that a matrix stays readable."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _printable(text: str) -> str:
    """The text in printable ASCII, which every character set of DICOM contains."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def is_slice_to_slice(volume: Volume) -> bool:
    """Whether the structural source has one image to each slice, at the slice's own place."""
    source, grid = volume.source, volume.grid
    if len(source.instances) != grid.shape[0] or _had_gaps(volume.history):
        return False
    position = None if source.header is None else source.header.get("ImagePositionPatient")
    return not position or bool(np.allclose(np.array(position, dtype=float), grid.origin_mm, rtol=0, atol=0.01))


def _had_gaps(history: Sequence[Step]) -> bool:
    """Whether slices of the scan on whose grid the volume lies were made of two, where these lay unevenly apart."""
    fused = parameters_of(history, "fuse")
    side = fused.get("functional" if fused.get("grid") == "functional" else "structural") or {}
    steps = [(step.name, step.parameters) for step in history]
    steps += [(step["name"], step["parameters"]) for step in side.get("history", ())]
    return any(name == "straighten" and "gaps_mm" in parameters for name, parameters in steps)


def source_references(source: Source) -> list[Dataset]:
    """An item of SourceImageSequence (PS3.3 section C.7.6.1.1.4) for each image of one source."""
    return [_reference(*image) for image in source.images]


def reference(sop_class_uid: str, sop_instance_uid: str, frames: Sequence[int] = ()) -> Dataset:
    """A reference to an image, or to some of its frames, from 1 (PS3.3 table 10-3)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    if frames:
        item.ReferencedFrameNumber = list(frames)
    return item


def refer(dataset: Dataset, sources: Iterable[Source]) -> None:
    """Set what an object refers to, by study and series (PS3.3 section C.12.2), as far as sources name their series."""
    by_study: dict[str, list[Dataset]] = {}
    for one in sources:
        if one.header is None or not (one.instances and word(one.header, "SeriesInstanceUID")):
            continue
        series = Dataset()
        series.SeriesInstanceUID = word(one.header, "SeriesInstanceUID")
        series.ReferencedInstanceSequence = [reference(*instance) for instance in one.instances]
        by_study.setdefault(word(one.header, "StudyInstanceUID"), []).append(series)
    if own := by_study.pop(word(dataset, "StudyInstanceUID"), []):
        dataset.ReferencedSeriesSequence = own
    if by_study:
        dataset.StudiesContainingOtherReferencedInstancesSequence = [of_study(*other) for other in by_study.items()]


def of_study(study_instance_uid: str, series: list[Dataset]) -> Dataset:
    """References by series as an item of their study."""
    item = Dataset()
    item.StudyInstanceUID, item.ReferencedSeriesSequence = study_instance_uid, series
    return item


def _reference(sop_class_uid: str, sop_instance_uid: str, frames: Sequence[int]) -> Dataset:
    item = reference(sop_class_uid, sop_instance_uid, frames)
    item.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.SourceImageForImageProcessingOperation)]
    return item


def _encoded_reference(sop_class_uid: str, sop_instance_uid: str, frames: Sequence[int]) -> bytes:
    """An item of SourceImageSequence in Explicit VR Little Endian."""
    item = _reference(sop_class_uid, sop_instance_uid, frames)
    with DicomBytesIO() as buffer:
        buffer.is_implicit_VR, buffer.is_little_endian = False, True
        write_sequence_item(buffer, item, ["ascii"])
        encoded: bytes = buffer.getvalue()
    return encoded


def _scanners(headers: Iterable[Dataset]) -> Iterator[Dataset]:
    """The equipment that acquired the sources (PS3.3 section C.12.1, CID 7005)."""
    for header in headers:
        item = Dataset()
        carry(header, item, EQUIPMENT)
        if "Manufacturer" in item:
            item.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.AcquisitionEquipment)]
            yield item


def _processor(history: Iterable[Step]) -> Dataset:
    """Medfuse itself, with the method and the weights that fused (PS3.3 section C.12.1)."""
    item = Dataset()
    item.Manufacturer = item.ManufacturerModelName = MAKER
    item.SoftwareVersions = __version__
    fused = parameters_of(history, "fuse")
    told = {"method": fused.get("method"), "weights SHA-256": fused.get("weights_sha256")}
    item.ContributionDescription = _printable(
        ", ".join(["not for diagnostic use", *(f"{name} {value}" for name, value in told.items() if value)])
    )[:ST_MAX]
    item.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.ProcessingEquipment)]
    return item


def code_item(code: Any) -> Dataset:
    """An item of a code sequence (PS3.3 section 8.8)."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item
