"""DICOM Spatial Registration objects, written with pydicom: which way their matrices lead, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from medfuse.align import Transform, read_transform
from medfuse.errors import MedfuseError, MissingAttribute, UnreadableFile, UnsupportedImage
from medfuse.grid import Grid

MR, PET, ATLAS, STRANGER = (f"1.2.826.0.1.3680043.8.498.{n}" for n in (11, 22, 33, 44))
#: The same landmark of the patient, as it lies in each frame of reference.
LANDMARKS = np.array([(10.0, 20, 30), (-50, 0, 12), (7, -80, 140), (33, 21, -60)])
GRID = Grid.from_axes((3, 4, 5), (0, 0, 0), (3, 2, 1), np.eye(3)[:, ::-1])


def rigid(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rng.normal(size=3)).as_matrix()
    matrix[:3, 3] = rng.uniform(-90, 90, 3)
    return matrix


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def matrix_item(matrix: np.ndarray, kind: str = "RIGID") -> Dataset:
    item = Dataset()
    item.FrameOfReferenceTransformationMatrixType = kind
    item.FrameOfReferenceTransformationMatrix = [float(f"{number:.9g}") for number in matrix.ravel()]
    return item


def registration(source: str | None, *matrices: Dataset) -> Dataset:
    """An item of the Registration Sequence; without a frame of reference it names an image."""
    inner, item = Dataset(), Dataset()
    inner.MatrixSequence = list(matrices)
    item.MatrixRegistrationSequence = [inner]
    if source:
        item.FrameOfReferenceUID = source
    else:
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", generate_uid()
        item.ReferencedImageSequence = [image]
    return item


Write = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Writes an object that registers frames of reference into one; returns its path."""

    def write(registered: str | None, *items: Dataset, edit: Callable[[Dataset], object] | None = None) -> Path:
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66.1", generate_uid()
        dataset.Modality, dataset.PatientName = "REG", "Secret^Name"
        if registered:
            dataset.FrameOfReferenceUID = registered
        dataset.RegistrationSequence = list(items)
        if edit:
            edit(dataset)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pydicom.dcmwrite(tmp_path / "reg", dataset, enforce_file_format=True)
        return tmp_path / "reg"

    return write


def between(path: Path, fixed: str | None = MR, moving: str | None = PET) -> Transform:
    found = read_transform(path, replace(GRID, frame_of_reference=fixed), replace(GRID, frame_of_reference=moving))
    assert isinstance(found, Transform)
    return found


@pytest.mark.parametrize("own_item", [True, False], ids=["identity stated", "identity implied"])
@pytest.mark.parametrize("registered", [MR, PET])
def test_whichever_frame_is_the_registered_one(registered: str, own_item: bool, written: Write) -> None:
    """A matrix takes a point of its item's frame into the registered one (PS3.3 C.20.2.1.1)."""
    source = PET if registered == MR else MR
    registered_from_source = rigid(1)
    items = [registration(source, matrix_item(registered_from_source))]
    if own_item:
        items.insert(0, registration(registered, matrix_item(np.eye(4))))
    path = written(registered, *items)
    in_source, in_registered = LANDMARKS, moved(registered_from_source, LANDMARKS)
    in_mr, in_pet = (in_registered, in_source) if registered == MR else (in_source, in_registered)
    np.testing.assert_allclose(between(path, MR, PET).apply(in_mr), in_pet, atol=1e-5)
    np.testing.assert_allclose(between(path, PET, MR).apply(in_pet), in_mr, atol=1e-5)


def test_both_registered_into_a_third_frame(written: Write) -> None:
    atlas_from_mr, atlas_from_pet = rigid(1), rigid(2)
    path = written(
        ATLAS,
        registration(STRANGER, matrix_item(rigid(9))),
        registration(PET, matrix_item(atlas_from_pet)),
        registration(None, matrix_item(rigid(8))),
        registration(MR, matrix_item(atlas_from_mr)),
    )
    in_mr = LANDMARKS
    in_pet = moved(np.linalg.inv(atlas_from_pet), moved(atlas_from_mr, LANDMARKS))
    np.testing.assert_allclose(between(path, MR, PET).apply(in_mr), in_pet, atol=1e-5)
    np.testing.assert_allclose(between(path, PET, MR).apply(in_pet), in_mr, atol=1e-5)


def scaled(before: tuple[float, ...], after: tuple[float, ...]) -> np.ndarray:
    return np.diag([*after, 1.0]) @ rigid(4) @ np.diag([*before, 1.0])


SHEARED = rigid(4) @ np.array([[1, 0.1, 0, 0], [0, 1.2, 0.3, 0], [0, 0, 0.9, 0], [0, 0, 0, 1.0]])
ONE, SOME = (1.0, 1.0, 1.0), (1.1, 0.9, 1.3)


@pytest.mark.parametrize(
    ("kind", "matrix"),
    [
        ("RIGID", rigid(4)),
        ("RIGID_SCALE", rigid(4)),
        ("RIGID_SCALE", scaled(SOME, ONE)),
        ("RIGID_SCALE", scaled(ONE, SOME)),
        ("AFFINE", rigid(4)),
        ("AFFINE", SHEARED),
    ],
)
def test_matrices_of_every_type(kind: str, matrix: np.ndarray, written: Write) -> None:
    path = written(MR, registration(PET, matrix_item(matrix, kind)))
    np.testing.assert_allclose(between(path, PET, MR).apply(LANDMARKS), moved(matrix, LANDMARKS), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "matrix"),
    [
        ("RIGID", scaled(SOME, ONE)),
        ("RIGID", np.diag([1.0, 1, -1, 1])),
        ("RIGID_SCALE", SHEARED),
        ("RIGID_SCALE", np.diag([1.1, 1, -1, 1])),
        ("HELMERT", rigid(4)),
        ("", rigid(4)),
    ],
)
def test_refuses_a_matrix_that_is_not_of_its_type(kind: str, matrix: np.ndarray, written: Write) -> None:
    path = written(MR, registration(PET, matrix_item(matrix, kind)))
    with pytest.raises(UnsupportedImage, match="RIGID, RIGID_SCALE or AFFINE as its type says"):
        between(path)


def test_several_matrices_are_multiplied_where_their_order_does_not_matter(written: Write) -> None:
    turn, shift_along = np.eye(4), np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    shift_along[2, 3] = 40
    path = written(MR, registration(PET, matrix_item(turn), matrix_item(np.eye(4)), matrix_item(shift_along)))
    expected = moved(turn, LANDMARKS) + shift_along[:3, 3]
    np.testing.assert_allclose(between(path, PET, MR).apply(LANDMARKS), expected, atol=1e-5)


def test_refuses_several_matrices_whose_order_matters(written: Write) -> None:
    path = written(MR, registration(PET, matrix_item(rigid(1)), matrix_item(rigid(2))))
    with pytest.raises(UnsupportedImage, match="one matrix for each frame of reference, found 2 whose order matters"):
        between(path)


def test_a_frame_may_be_placed_twice_alike_but_not_at_two_places(written: Write) -> None:
    twice = [registration(PET, matrix_item(rigid(1)))] * 2
    np.testing.assert_allclose(
        between(written(MR, *twice), PET, MR).apply(LANDMARKS), moved(rigid(1), LANDMARKS), atol=1e-5
    )
    for items in (
        [*twice, registration(PET, matrix_item(rigid(2)))],
        [registration(MR, matrix_item(rigid(1))), *twice],
    ):
        with pytest.raises(
            UnsupportedImage, match=r"one place for the frame of reference of the .* scan, found several"
        ):
            between(written(MR, *items))


@pytest.mark.parametrize(("fixed", "moving", "missing"), [(STRANGER, PET, "structural"), (MR, STRANGER, "functional")])
def test_refuses_an_object_of_other_scans(fixed: str, moving: str, missing: str, written: Write) -> None:
    path = written(MR, registration(PET, matrix_item(rigid(1))), registration(None, matrix_item(rigid(2))))
    with pytest.raises(UnsupportedImage, match=f"frames of reference of both scans, found none of the {missing} one"):
        between(path, fixed, moving)


def test_refuses_scans_that_cannot_be_told_apart(written: Write) -> None:
    path = written(MR, registration(PET, matrix_item(rigid(1))))
    with pytest.raises(UnsupportedImage, match="different frames of reference, found that both state the same one"):
        between(path, PET, PET)
    with pytest.raises(UnsupportedImage, match="found that the functional one states none"):
        between(path, MR, None)
    with pytest.raises(UnsupportedImage, match="expected both scans beside a DICOM registration"):
        read_transform(path)


@pytest.mark.parametrize(
    ("uid", "kind"),
    [("1.2.840.10008.5.1.4.1.1.66.3", "a deformable one"), ("1.2.840.10008.5.1.4.1.1.2", "another kind")],
)
def test_refuses_other_objects(uid: str, kind: str, written: Write) -> None:
    path = written(MR, edit=lambda dataset: setattr(dataset, "SOPClassUID", uid))
    with pytest.raises(UnsupportedImage, match=f"expected a DICOM Spatial Registration, found {kind}"):
        between(path)


def damaged() -> Iterator[tuple[str, Dataset, type[MedfuseError]]]:
    yield "no matrix", registration(PET), MissingAttribute
    bare = Dataset()
    bare.FrameOfReferenceUID = PET
    yield "no matrices at all", bare, MissingAttribute
    short = matrix_item(rigid(1))
    short.FrameOfReferenceTransformationMatrix = [1.0] * 12
    yield "12 numbers", registration(PET, short), MissingAttribute
    yield "no last row", registration(PET, matrix_item(np.ones((4, 4)), "AFFINE")), UnsupportedImage
    yield "flat", registration(PET, matrix_item(np.diag([1.0, 1, 0, 1]), "AFFINE")), UnsupportedImage


@pytest.mark.parametrize(("item", "error"), [case[1:] for case in damaged()], ids=[case[0] for case in damaged()])
def test_refuses_an_item_without_a_matrix(item: Dataset, error: type[MedfuseError], written: Write) -> None:
    with pytest.raises(error, match=r"expected .*, found .* reg"):
        between(written(MR, item))


def test_a_file_cut_short_is_an_error_that_names_no_patient(written: Write) -> None:
    path = written(MR, registration(PET, matrix_item(rigid(1))))
    whole = path.read_bytes()
    for length in range(140, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(MedfuseError, match="reg") as refusal:
            between(path)
        assert "Secret" not in str(refusal.value)
    path.write_bytes(whole[:-40] + b"\xff" * 40)
    with pytest.raises((UnreadableFile, UnsupportedImage), match="reg"):
        between(path)
