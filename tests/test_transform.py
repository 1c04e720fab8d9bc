"""Transforms: their direction and their files, checked against SimpleITK's own transforms."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.transform import Rotation

from medfuse.align import Transform, read_transform, write_transform
from medfuse.align.transform import Warp, check_transform_target
from medfuse.errors import OutputError, UnreadableFile, UnsupportedImage

POINTS = np.random.default_rng(3).uniform(-200, 200, (20, 3))
CENTER = (-12.5, 40.0, 71.25)


def rigid(degrees: float = 20, shift: tuple[float, float, float] = (5, -7, 11)) -> Transform:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * np.array((0.48, -0.6, 0.64))).as_matrix()
    matrix[:3, 3] = shift
    return Transform(matrix)


def versor() -> sitk.Transform:
    transform = sitk.VersorRigid3DTransform()
    transform.SetCenter(CENTER)
    transform.SetRotation((0.6, 0, 0.8), 0.4)
    transform.SetTranslation((1, 2, 3))
    return transform


def affine() -> sitk.Transform:
    transform = sitk.AffineTransform(3)
    transform.SetCenter(CENTER)
    transform.SetMatrix((1.1, 0.02, 0, -0.1, 0.9, 0.05, 0.03, 0, 1.2))
    transform.SetTranslation((-4, 5, 6))
    return transform


def similarity() -> sitk.Transform:
    return sitk.Similarity3DTransform(1.1, (0, 0.6, 0.8), 0.3, (1, 2, 3), CENTER)


LINEAR = {
    "identity": sitk.Transform(),
    "translation": sitk.TranslationTransform(3, (1, 2, 3)),
    "euler": sitk.Euler3DTransform(CENTER, 0.1, -0.2, 0.3, (4, 5, 6)),
    "versor": versor(),
    "similarity": similarity(),
    "scale": sitk.ScaleTransform(3, (1, 2, 0.5)),
    "affine": affine(),
    "composite": sitk.CompositeTransform([versor(), affine(), sitk.TranslationTransform(3, (7, 8, 9))]),
}

NON_LINEAR = {
    "b-spline": sitk.BSplineTransform(3),
    "displacement": sitk.DisplacementFieldTransform(sitk.Image((4, 4, 4), sitk.sitkVectorFloat64)),
    "composite": sitk.CompositeTransform([affine(), sitk.BSplineTransform(3)]),
    "two-dimensional": sitk.Euler2DTransform(),
}


@pytest.mark.parametrize("itk", LINEAR.values(), ids=LINEAR)
def test_from_itk_maps_every_point_as_itk_does(itk: sitk.Transform) -> None:
    expected = [itk.TransformPoint(tuple(point)) for point in POINTS.tolist()]
    np.testing.assert_allclose(Transform.from_itk(itk).apply(POINTS), expected, atol=1e-9)


@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
@pytest.mark.parametrize("itk", LINEAR.values(), ids=LINEAR)
def test_reads_what_itk_wrote(itk: sitk.Transform, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"transform{suffix}"
    sitk.WriteTransform(itk, str(path))
    expected = [itk.TransformPoint(tuple(point)) for point in POINTS.tolist()]
    np.testing.assert_allclose(read_transform(path).apply(POINTS), expected, atol=1e-9)


def test_reads_what_ants_writes(tmp_path: Path) -> None:
    path = tmp_path / "0GenericAffine.mat"
    sitk.WriteTransform(affine(), str(path))
    expected = [affine().TransformPoint(tuple(point)) for point in POINTS.tolist()]
    np.testing.assert_allclose(read_transform(path).apply(POINTS), expected, atol=1e-9)


@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_itk_reads_what_was_written(suffix: str, tmp_path: Path) -> None:
    transform = rigid()
    path = tmp_path / "new" / f"transform{suffix}"
    write_transform(transform, path)
    np.testing.assert_allclose(read_transform(path).moving_from_fixed, transform.moving_from_fixed, atol=1e-14)
    itk = sitk.ReadTransform(str(path))
    expected = [itk.TransformPoint(tuple(point)) for point in POINTS.tolist()]
    np.testing.assert_allclose(transform.apply(POINTS), expected, atol=1e-9)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_to_itk_maps_every_point_alike() -> None:
    transform = Transform.from_itk(affine())
    expected = [transform.to_itk().TransformPoint(tuple(point)) for point in POINTS.tolist()]
    np.testing.assert_allclose(transform.apply(POINTS), expected, atol=1e-9)


@pytest.mark.parametrize("itk", NON_LINEAR.values(), ids=NON_LINEAR)
def test_only_what_is_linear_becomes_a_matrix(itk: sitk.Transform) -> None:
    with pytest.raises(UnsupportedImage, match="expected a linear 3-D transform"):
        Transform.from_itk(itk)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_a_path_that_is_not_utf_8_ends_no_process(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"J\xf6rg")
    folder.mkdir()
    with pytest.raises(OutputError, match="expected a path in UTF-8"):
        write_transform(Transform.identity(), folder / "x.tfm")
    assert list(folder.iterdir()) == []
    write_transform(Transform.identity(), tmp_path / "x.tfm")
    (tmp_path / "x.tfm").rename(folder / "x.tfm")
    with pytest.raises(UnreadableFile, match="expected a path in UTF-8"):
        read_transform(folder / "x.tfm")
    write_transform(Transform.identity(), folder / "x.txt")
    assert isinstance(read_transform(folder / "x.txt"), Transform)


def test_a_file_of_two_dimensions_is_refused(tmp_path: Path) -> None:
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "flat.tfm"))
    with pytest.raises(UnsupportedImage, match="3-D transform, found Euler2DTransform in 2 dimensions"):
        read_transform(tmp_path / "flat.tfm")


@pytest.mark.parametrize("name", ["x.xfm", "reg", "x.h5", "x.dat"])
def test_a_text_of_itk_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    write_transform(rigid(), tmp_path / "x.tfm")
    (tmp_path / "x.tfm").rename(tmp_path / name)
    np.testing.assert_allclose(read_transform(tmp_path / name).moving_from_fixed, rigid().moving_from_fixed, atol=1e-9)


@pytest.mark.parametrize("name", ["x.xfm", "x.tfm", "x"])
def test_what_is_no_transform_is_refused_without_a_word_of_a_library(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("MNI Transform File\nno matrix")
    with pytest.raises(UnreadableFile, match="expected a transform, cannot read x"):
        read_transform(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_a_deformable_file_is_read_as_a_warp(tmp_path: Path) -> None:
    sitk.WriteTransform(NON_LINEAR["displacement"], str(tmp_path / "bent.h5"))
    assert isinstance(read_transform(tmp_path / "bent.h5"), Warp)


MATRIX = rigid().moving_from_fixed


def rows(separator: str = " ", end: str = "\n") -> str:
    return end.join(separator.join(str(number) for number in row) for row in MATRIX.tolist())


@pytest.mark.parametrize(
    "text",
    [
        rows(),
        f"# from structural to functional\n{rows()}  # done\n",
        "\ufeff" + rows(),
        rows(",", "\r\n"),
        rows("\t", " "),
        f"[{rows(', ', '; ')}]",
        str(MATRIX.tolist()),
    ],
    ids=["plain", "comments", "byte order mark", "commas", "one line", "matlab", "python"],
)
@pytest.mark.parametrize("name", ["a.txt", "a.mat", "a.tfm", "a"])
def test_reads_sixteen_numbers_whatever_they_are_called(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    np.testing.assert_array_equal(read_transform(tmp_path / name).moving_from_fixed, MATRIX)


def test_numpy_reads_the_matrix_that_was_written(tmp_path: Path) -> None:
    write_transform(rigid(), tmp_path / "a.txt")
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "a.txt"), MATRIX)
    np.testing.assert_array_equal(read_transform(tmp_path / "a.txt").moving_from_fixed, MATRIX)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 0 0 5\n0 1 0 6\n0 0 1 7\n", "expected the 16 numbers of a 4 x 4 matrix, found 12 in a.txt"),
        ("1 0 0 0 0 1 0 0 0 0 1 0 5 6 7 1", "invertible matrix with last row 0 0 0 1"),
        ("1 0 0 5 0 1 0 6 0 0 0 7 0 0 0 1", "invertible matrix"),
        ("1 0 0 nan 0 1 0 6 0 0 1 7 0 0 0 1", "invertible matrix"),
    ],
    ids=["three rows", "columns first", "flat", "not a number"],
)
def test_refuses_numbers_that_are_no_transform(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UnsupportedImage, match=reason):
        read_transform(tmp_path / "a.txt")


def test_refuses_a_file_that_flattens_space(tmp_path: Path) -> None:
    path = tmp_path / "flat.tfm"
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 0 1 2 3\nFixedParameters: 0 0 0\n"
    )
    with pytest.raises(UnsupportedImage, match="flattens space"):
        read_transform(path)


def test_refuses_what_no_two_scans_of_one_patient_need(tmp_path: Path) -> None:
    for numbers, found in (
        ((-1, 1, 1), "mirrors the patient"),
        ((1, 1, 3), "stretches 3 times"),
        ((0.4, 0.4, 0.4), "stretches 2.5 times"),
        ((1e90, 1e90, 1e90), r"stretches 1e\+90 times"),
    ):
        text, itk = tmp_path / "a.txt", tmp_path / "a.tfm"
        np.savetxt(text, np.diag([*numbers, 1]))
        sitk.WriteTransform(sitk.ScaleTransform(3, numbers), str(itk))
        for path in (text, itk):
            with pytest.raises(UnsupportedImage, match=f"of one patient, found one in {path.name} that {found}"):
                read_transform(path)


@pytest.mark.parametrize("itk", [affine(), NON_LINEAR["b-spline"]])
def test_a_file_cut_off_anywhere_is_no_identity(itk: sitk.Transform, tmp_path: Path) -> None:
    path = tmp_path / "a.tfm"
    sitk.WriteTransform(itk, str(path))
    content = path.read_bytes()
    for length in range(30, content.rindex(b"FixedParameters") + 18, len(content) // 40):
        path.write_bytes(content[:length])
        with pytest.raises(UnreadableFile, match=r"cannot read a\.tfm"):
            read_transform(path)


@pytest.mark.parametrize("kind", ["BSplineTransform", "DisplacementFieldTransform"])
@pytest.mark.parametrize("sizes", ["-3 4 4", "3000 3000 3000", "0 4 4", "4 4", "x 4 4", "4.5 4 4"])
def test_a_lattice_without_its_points_ends_no_process(kind: str, sizes: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tfm"
    path.write_text(
        f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}_double_3_3\nParameters: 0 0 0\n"
        f"FixedParameters: {sizes} 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"from medfuse.align import read_transform; read_transform({str(path)!r})"],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, b"UnreadableFile" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize("kind", ["ConstantVelocityFieldTransform", "GaussianExponentialDiffeomorphicTransform"])
def test_a_kind_whose_memory_cannot_be_foreseen_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tfm"
    path.write_text(
        f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}_double_3_3\nParameters: 0 0 0\n"
        "FixedParameters: 400 400 400 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1\n"
    )
    with pytest.raises(UnsupportedImage, match=r"B-spline or a displacement field, found another kind in a\.tfm"):
        read_transform(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "ComponentTransformFile: other.tfm\n",
        lambda text: text.replace("Transform: Affine", "ComponentTransformFile: other.tfm\nTransform: Affine"),
        lambda text: text.replace("FixedParameters", "Parameters: 1 0 0 0 1 0 0 0 1 9 9 9\nFixedParameters"),
        lambda text: text + "FixedParameters: 0 0 0\n",
        lambda text: "Parameters: 1\n" + text.replace("\nParameters", "\nParametres"),
    ],
    ids=["another file at the end", "another file in a composite", "parameters twice", "centre twice", "none"],
)
def test_a_text_with_more_or_less_than_its_parameters_is_refused(edit: Callable[[str], str], tmp_path: Path) -> None:
    path, other = tmp_path / "a.tfm", tmp_path / "other.tfm"
    sitk.WriteTransform(sitk.CompositeTransform([affine(), sitk.TranslationTransform(3, (1, 2, 3))]), str(path))
    sitk.WriteTransform(sitk.TranslationTransform(3, (50, 60, 70)), str(other))
    header, _, rest = path.read_text().partition("\n")
    path.write_text(f"{header}\n{edit(rest)}")
    with pytest.raises(UnreadableFile, match=r"all parameters of every transform, cannot read a\.tfm"):
        read_transform(path)


def test_a_text_that_names_itself_ends_no_process(tmp_path: Path) -> None:
    path = tmp_path / "a.tfm"
    sitk.WriteTransform(affine(), str(path))
    path.write_text(path.read_text() + "ComponentTransformFile: a.tfm\n")
    done = subprocess.run(
        [sys.executable, "-c", f"from medfuse.align import read_transform; read_transform({str(path)!r})"],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, b"UnreadableFile" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize("name", ["a.mat", "A.MAT"])
def test_a_matlab_file_is_read_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    """ITK takes a centre of 0 where the file ends before it."""
    sitk.WriteTransform(affine(), str(tmp_path / "whole.mat"))
    content, path = (tmp_path / "whole.mat").read_bytes(), tmp_path / name
    path.write_bytes(content)
    np.testing.assert_allclose(read_transform(path).apply(CENTER), affine().TransformPoint(CENTER))
    for length in range(1, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(UnreadableFile, match=f"cannot read {name}"):
            read_transform(path)


@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_a_kind_that_simpleitk_has_no_class_for_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteTransform(sitk.ComposeScaleSkewVersor3DTransform(), str(path))
    with pytest.raises(UnsupportedImage, match="a kind of transform that SimpleITK knows"):
        read_transform(path)


def test_a_list_of_transforms_is_none(tmp_path: Path) -> None:
    """ITK reads the first, and drops the rest."""
    one, other = (tmp_path / name for name in ("a.tfm", "b.tfm"))
    sitk.WriteTransform(sitk.TranslationTransform(3, (10, 0, 0)), str(one))
    sitk.WriteTransform(sitk.TranslationTransform(3, (0, 20, 0)), str(other))
    one.write_text(one.read_text() + other.read_text().partition("\n")[2])
    with pytest.raises(UnsupportedImage, match=r"found 2 side by side in a\.tfm"):
        read_transform(one)


@pytest.mark.parametrize("name", ["a.tfm", "a.h5", "a.txt", "a"])
@pytest.mark.parametrize(
    "content",
    [b"", b"no transform", b"#Insight Transform File V1.0\nTransform: Foo\nParameters: 1\nFixedParameters:\n"],
)
def test_refuses_what_is_no_transform(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableFile, match=rf"cannot read {name}\. Give") as refusal:
        read_transform(tmp_path / name)
    assert str(tmp_path) not in str(refusal.value)


def test_a_path_may_be_text(tmp_path: Path) -> None:
    write_transform(rigid(10), str(tmp_path / "a.tfm"))
    assert read_transform(str(tmp_path / "a.tfm")).rotation_degrees == pytest.approx(10)


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"nothing named a\.tfm"):
        read_transform(tmp_path / "a.tfm")


@pytest.mark.parametrize("name", ["a.nii", "a", "a.mat", "tfm"])
def test_refuses_to_write_another_suffix(name: str, tmp_path: Path) -> None:
    for refuse in (check_transform_target, lambda path: write_transform(rigid(), path)):
        with pytest.raises(OutputError, match=r"ending in \.tfm or \.h5 or \.txt"):
            refuse(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_does_not_overwrite_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.tfm"
    write_transform(rigid(10), path)
    with pytest.raises(OutputError, match=r"a\.tfm exists.*--overwrite"):
        write_transform(rigid(20), path)
    with pytest.raises(OutputError, match=r"a\.tfm is or holds an input"):
        write_transform(rigid(20), path, overwrite=True, inputs=[path])
    assert read_transform(path).rotation_degrees == pytest.approx(10)
    write_transform(rigid(20), path, overwrite=True)
    assert read_transform(path).rotation_degrees == pytest.approx(20)


@pytest.mark.parametrize("below", ["file/a.tfm", "file/deep/a.tfm"])
def test_a_place_that_cannot_be_written_is_named_without_its_folders(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match=r"a\.tfm") as refusal:
        write_transform(rigid(), tmp_path / below)
    assert str(tmp_path) not in str(refusal.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.tfm").mkdir()
    with pytest.raises(OutputError, match=r"a\.tfm"):
        write_transform(rigid(), tmp_path / "a.tfm", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tfm"]


@given(arrays.arrays(np.float64, (3, 4), elements=st.floats(-5, 5)))
def test_inverse_undoes_it(rows: np.ndarray) -> None:
    matrix = np.vstack([rows + np.eye(3, 4) * 20, (0, 0, 0, 1)])  # the diagonal outweighs the rest: invertible
    transform = Transform(matrix)
    np.testing.assert_allclose(transform.inverse().apply(transform.apply(POINTS)), POINTS, atol=1e-8)


@pytest.mark.parametrize("degrees", [0, 1, 90, 179])
def test_rotation_is_its_angle_whatever_the_scale(degrees: float) -> None:
    matrix = rigid(degrees).moving_from_fixed @ np.diag([1.2, 0.9, 1, 1])
    assert Transform(matrix).rotation_degrees == pytest.approx(degrees, abs=1e-5)


def test_distance_is_in_mm_at_the_points() -> None:
    turn = Transform.from_itk(sitk.Euler3DTransform((0, 0, 0), 0, 0, np.pi / 2, (0, 0, 0)))
    distance = turn.distance_mm(Transform.identity(), [(0, 0, 9), (10, 0, 0), (0, 3, 0)])
    np.testing.assert_allclose(distance, (0, 10 * np.sqrt(2), 3 * np.sqrt(2)), atol=1e-12)
    np.testing.assert_allclose(turn.apply([(10, 0, 0)]), [(0, 10, 0)], atol=1e-12)


def test_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Transform.identity().moving_from_fixed[0, 3] = 1


@pytest.mark.parametrize("matrix", [np.eye(3), np.ones((4, 4)), np.diag([1, np.nan, 1, 1]), np.eye(4)[::-1]])
def test_refuses_a_matrix_of_the_wrong_form(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"finite \(4, 4\) matrix"):
        Transform(matrix)


def test_refuses_a_matrix_that_flattens_space() -> None:
    with pytest.raises(ValueError, match="flattens space"):
        Transform(np.diag([1, 1, 0, 1]))
