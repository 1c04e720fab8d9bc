"""What a reconstruction is charged for, and data that is not a folder of pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from test_train_state import CONFIG

from medfuse.errors import InputError
from medfuse.fusion.networks import Vgg19
from medfuse.fusion.weights import to_bytes
from medfuse.train import train
from medfuse.train.images import case_of, read_images
from medfuse.train.losses import Perceptual, to_losses


@pytest.fixture
def vgg(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "vgg19.safetensors"
    path.write_bytes(to_bytes(Vgg19().state_dict()))
    return path


def test_the_perceptual_loss_is_the_mean_square_of_feature_differences(vgg: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = torch.rand((2, 2, 1, 12, 9), generator=generator)
    ((weight, loss),) = to_losses({"perceptual": 0.5}, vgg, "cpu")
    assert weight == 0.5
    assert isinstance(loss, Perceptual)
    assert loss(one, one) == 0
    pairs = zip(loss.vgg(one), loss.vgg(other), strict=True)
    expected = np.mean([float(((first - second) / 255).square().mean()) for first, second in pairs])
    assert loss(one, other).item() == pytest.approx(expected, rel=1e-5)


def test_the_perceptual_loss_trains_the_result_and_not_vgg(vgg: Path) -> None:
    ((_, loss),) = to_losses({"perceptual": 1.0}, vgg, "cpu")
    result = torch.full((1, 1, 8, 8), 0.4, requires_grad=True)
    loss(result, torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(2))).backward()
    assert result.grad is not None
    assert result.grad.abs().min() > 0
    assert isinstance(loss, Perceptual)
    assert not any(parameter.requires_grad for parameter in loss.vgg.parameters())


def test_only_the_losses_that_are_named_count(vgg: Path) -> None:
    one, other = torch.rand((2, 1, 1, 12, 12), generator=torch.Generator().manual_seed(3))
    alone = {
        name: to_losses({name: 1.0}, vgg, "cpu")[0][1](one, other).item() for name in ("l2", "gradient", "perceptual")
    }
    assert len(set(alone.values())) == 3
    both = to_losses({"gradient": 3.0, "l2": 2.0}, None, "cpu")
    assert sum(weight * loss(one, other).item() for weight, loss in both) == pytest.approx(
        3 * alone["gradient"] + 2 * alone["l2"]
    )


def test_a_training_with_every_loss(vgg: Path, tmp_path: Path) -> None:
    volumes(tmp_path / "data")
    losses = {"l2": 1.0, "gradient": 0.2, "perceptual": 0.01}
    config = replace(CONFIG, sets=("*/mr.nii.gz", "*/pet.nii.gz"), case=r"([^/]+)/.*", losses=losses)
    config = replace(config, validation_cases=("beta",))
    figures = train(config, tmp_path / "data", tmp_path / "out", vgg=vgg)
    assert figures["score"] > 0


def volumes(folder: Path) -> None:
    """Two patients' MR and PET, (24, 20, 3) voxels; the last PET slice is empty."""
    rng = np.random.default_rng(4)
    for index, patient in enumerate(("alpha", "beta")):
        (folder / patient).mkdir(parents=True)
        for name in ("mr", "pet"):
            values = rng.random((24, 20, 3)).astype(np.float32) * (100 + index)
            if name == "pet":
                values[..., 2] = 0
            image = nibabel.Nifti1Image(values, np.diag([2.0, 2, 3, 1]))
            image.header.set_xyzt_units("mm")
            nibabel.save(image, folder / patient / f"{name}.nii.gz")


def test_volumes_serve_slice_by_slice_split_by_patient(tmp_path: Path) -> None:
    volumes(tmp_path)
    images = read_images(tmp_path, ("*/mr.nii.gz", "*/pet.nii.gz"), ("beta",), r"([^/]+)/.*")
    assert (len(images.training), len(images.validation)) == (5, 5)  # the empty slices are left out
    for image in (*images.training, *images.validation):
        assert image.shape == (1, 20, 24)
        assert image.dtype == torch.float32
        assert 0 <= image.min() < 0.05
        assert 0.8 < image.max() <= 1
    # PET is trained on as it is fused: the luminance of its palette.
    assert not torch.equal(images.training[0], images.training[3])


def test_a_dicom_series_serves_as_a_volume(ct_series: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ct").symlink_to(ct_series, target_is_directory=True)
    images = read_images(tmp_path, ("*/ct",), ("two",), r"([^/]+)/ct")
    assert len(images.training) == len(images.validation) > 1
    assert torch.equal(images.training[0], images.validation[0])


def test_a_volume_that_cannot_be_used_is_named_with_what_can_be_done(tmp_path: Path) -> None:
    """By its place, as every patient's file may have one name; options of other commands do not help."""
    volumes(tmp_path)
    odd = nibabel.load(tmp_path / "alpha" / "pet.nii.gz")
    values = odd.get_fdata(dtype=np.float32)
    values[3, 4, 1] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, odd.affine, odd.header), tmp_path / "alpha" / "pet.nii.gz")
    with pytest.raises(InputError, match=r"cannot train on alpha/pet\.nii\.gz: .*NaN.*medfuse convert") as caught:
        read_images(tmp_path, ("*/pet.nii.gz",), ("beta",), r"([^/]+)/.*")
    assert "--fill-nan" not in str(caught.value)


def test_a_path_that_gives_no_case_is_refused(tmp_path: Path) -> None:
    volumes(tmp_path)
    with pytest.raises(InputError, match=r"expected a name that gives the case by the pattern .*, found mr\.nii\.gz"):
        read_images(tmp_path, ("*/mr.nii.gz",), ("beta",), CONFIG.case)


@pytest.mark.parametrize(
    ("path", "case", "expected"),
    [
        ("ct-mri/ct/2004.png", CONFIG.case, "2"),
        ("34012.png", CONFIG.case, "34"),
        ("sub-07/anat/sub-07_T1w.nii.gz", r"sub-(\d+)/.*", "07"),
        ("STS_001/PET", r"([^/]+)/PET", "STS_001"),
        ("pat.03", r"([^/]+)", "pat.03"),
        ("pet/pat.03.nii.gz", r"pet/([^/]+)", "pat.03"),
        ("1.2.3.DCM", r"([^/]+)", "1.2.3"),
    ],
)
def test_the_case_is_in_the_path(path: str, case: str, expected: str) -> None:
    assert case_of(Path(path), case) == expected
