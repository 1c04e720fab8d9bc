"""The pictures that are fused: real ones, slices of the digital head, and the head with noise everywhere.

They differ in what can be saved on them. The head lies in a background of nothing, of which rows and columns are alike;
with noise everywhere no two are, which is the worst case. Real pictures are what they are.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEAD = "head"
SHEPP_LOGAN = "shepp-logan"
NOISE = "noise"
#: Nothing but noise, which takes no memory to make: what memory is measured with.
RANDOM = "random"
#: Sets of the Whole Brain Atlas, in DATA/wba: the names of their structural and functional folders.
ATLAS = {"ct-mri": ("mri", "ct"), "pet-mri": ("mri", "pet"), "spect-mri": ("mri", "spect")}
#: Pictures of each kind; runs take them in turns.
VARIETY = 8
#: What is darker than this, of white, is background: more than the noise of the digital head's MR.
BACKGROUND = 0.08
#: Share of white that the noise reaches.
NOISE_LEVEL = 0.1

Planes = NDArray[np.float32]


def picture_names(data: Path | None) -> list[str]:
    """The kinds there are, with a folder of real pictures or without; the phantom first, then it with noise.

    The phantom is the digital head or, where what reads scans is not installed, that of Shepp and Logan.
    """
    atlas = [name for name in ATLAS if data is not None and (data / "wba" / name).is_dir()]
    return [HEAD if has_readers() else SHEPP_LOGAN, NOISE, *atlas]


@lru_cache(maxsize=64)
def pictures(name: str, index: int, size: tuple[int, int], data: Path | None = None) -> tuple[Planes, Planes]:
    """One pair, structural and functional luminance, each (1, H, W) in [0, 1].

    Args:
        name: Of `picture_names`, or `RANDOM`.
        index: Number of the pair.
        size: Rows and columns.
        data: Folder of real pictures.
    """
    if name == RANDOM:
        structural, functional = np.random.default_rng(index).random((2, 1, *size), np.float32)
        return structural, functional
    drawn = _atlas(name, data) if name in ATLAS else _head() if has_readers() else _shepp_logan()
    structural, functional = (_resized(planes[index % len(planes)], size)[None] for planes in drawn)
    if name != NOISE:
        return structural, functional
    rng = np.random.default_rng(index)
    return _noisy(structural, rng), _noisy(functional, rng)


def _noisy(planes: Planes, rng: np.random.Generator) -> Planes:
    """With noise in every pixel, that nothing cuts off."""
    noise = rng.random(planes.shape, np.float32)
    return np.float32(1 - NOISE_LEVEL) * planes + np.float32(NOISE_LEVEL) * noise


def _resized(plane: NDArray[np.floating], size: tuple[int, int]) -> Planes:
    from skimage.transform import resize

    if plane.shape == size:
        return np.ascontiguousarray(plane, np.float32)
    smaller = any(ours < theirs for ours, theirs in zip(size, plane.shape, strict=True))
    resized = resize(plane.astype(np.float64), size, order=1, anti_aliasing=smaller)
    resized[resized < 0.5 / 255] = 0  # what smoothing spreads into nothing
    return np.clip(resized, 0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def has_readers() -> bool:
    """Whether pydicom and SimpleITK are installed: a machine that is lent for its GPU need not have them."""
    try:
        import pydicom  # noqa: F401
        import SimpleITK  # noqa: F401
    except ImportError:
        return False
    return True


@lru_cache(maxsize=1)
def _head() -> tuple[list[Planes], list[Planes]]:
    """Slices of the digital head's MR and PET, as medfuse shows them, in a background of nothing."""
    from medfuse.align import Transform, resample
    from medfuse.fusion import display_of
    from medfuse.sample.head import head_scans

    scans = head_scans()
    pet = resample(scans.pet, scans.mr.grid, Transform(scans.mr_from_pet).inverse())
    shown = []
    for volume, original in ((scans.mr, scans.mr), (pet, scans.pet)):
        luminance, _ = display_of(original, functional=original is scans.pet).show(volume.array)
        chosen = np.linspace(0.4, 0.8, VARIETY) * len(luminance)
        shown.append([_squared(np.where(plane < BACKGROUND, 0, plane)) for plane in luminance[chosen.astype(int)]])
    return shown[0], shown[1]


def _squared(plane: Planes) -> Planes:
    """With equal margins of nothing, a sixteenth of the side at least, so that it is as high as it is wide."""
    side = round(max(plane.shape) * 9 / 8)
    margins = [((side - size) // 2, side - size - (side - size) // 2) for size in plane.shape]
    return np.pad(plane, margins)


@lru_cache(maxsize=1)
def _shepp_logan() -> tuple[list[Planes], list[Planes]]:
    """The phantom turned, and blurred as uptake is."""
    from scipy.ndimage import gaussian_filter
    from skimage.data import shepp_logan_phantom
    from skimage.transform import rotate

    phantom = shepp_logan_phantom()
    turned = [_squared(rotate(phantom, 5 * index, order=1).astype(np.float32)) for index in range(VARIETY)]
    blurred = (np.clip(gaussian_filter(plane, 8) * 2, 0, 1) for plane in turned)
    return turned, [np.where(plane < BACKGROUND, 0, plane) for plane in blurred]


@lru_cache(maxsize=len(ATLAS))
def _atlas(name: str, data: Path | None) -> tuple[list[Planes], list[Planes]]:
    """Pairs of a set of the Whole Brain Atlas, spread evenly over its names."""
    from medfuse.io.pictures import is_picture, read_picture

    if data is None:
        raise ValueError(f"{name} needs the folder of real pictures")
    folders = [data / "wba" / name / folder for folder in ATLAS[name]]
    first, second = ({path.stem: path for path in sorted(folder.iterdir()) if is_picture(path)} for folder in folders)
    common = sorted(first.keys() & second.keys())
    chosen = [common[index * len(common) // VARIETY] for index in range(min(VARIETY, len(common)))]
    return tuple([read_picture(paths[stem]).luminance for stem in chosen] for paths in (first, second))
