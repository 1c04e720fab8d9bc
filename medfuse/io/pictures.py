"""2-D pictures of 8 bits to and from luminance and chroma: PNG, TIFF, JPEG and BMP in, PNG out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medfuse.color import rgb_with_luminance, ycbcr_from_rgb
from medfuse.errors import InputError, UnreadableFile, UnsupportedImage

SUFFIXES = {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp"}
_FORMATS = ("PNG", "TIFF", "JPEG", "BMP")
#: Pillow's modes of 8 bits and less.
_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture, grey or in colour.

    Args:
        luminance: (H, W) float32 in [0, 1]; of colour the luma of ITU-R BT.601.
        chroma: Cb and Cr, (H, W, 2) float32 in [-0.5, 0.5]; None where every pixel is grey.
    """

    luminance: NDArray[np.float32]
    chroma: NDArray[np.float32] | None = None

    @property
    def size(self) -> str:
        """Columns and rows, for messages."""
        return f"{self.luminance.shape[1]} × {self.luminance.shape[0]}"


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def pictures_by_name(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names without suffix, in the order of their file names.

    Raises:
        InputError: Two have one name.
    """
    paths = sorted(path for path in folder.iterdir() if is_picture(path))
    pictures = {path.stem: path for path in paths}
    if len(pictures) < len(paths):
        raise InputError(
            f"expected one image a name in {folder.name}, found names with several suffixes", "Take one out"
        )
    return pictures


def read_picture(path: Path) -> Picture:
    """Read one picture of 8 bits a channel, turned as its EXIF orientation says.

    Raises:
        UnreadableFile: It is not there, is no picture, or is damaged.
        UnsupportedImage: It has more than 8 bits a channel, other colours than RGB, several pages, or is transparent.
    """
    try:
        # Of a path, Pillow maps the pixels of some TIFFs into memory, and scrambles those that lie on their side.
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            # Pillow cuts RGB of 16 bits off at 8 without a word; what it unpacks from says so.
            is_deep = image.mode not in _MODES or ";16" in repr(image.tile)
            found = f"mode {image.mode}" if image.mode not in _MODES else "16 bits"
            pages = getattr(image, "n_frames", 1)
            rgba = np.asarray(_upright(image).convert("RGBA")) if not is_deep else None
    except Exception as error:  # of what Pillow raises on damaged files there is no list
        raise UnreadableFile(f"expected an image, cannot read {path.name}", "Take it out, or replace it") from error
    if rgba is None:
        raise UnsupportedImage(
            f"expected an image of 8 bits a channel, grey or RGB, found {found} in {path.name}", "Convert it"
        )
    if pages > 1:
        raise UnsupportedImage(f"expected one image, found {pages} pages in {path.name}", "Save each page as a file")
    if rgba[..., 3].min() < 255:
        raise UnsupportedImage(f"expected an opaque image, found {path.name} transparent", "Save it without alpha")
    return _to_picture(rgba[..., :3])


def _upright(image: Image.Image) -> Image.Image:
    """A picture as viewers show it. EXIF that cannot be read says nothing."""
    image.load()
    try:
        return image if image.format == "TIFF" else ImageOps.exif_transpose(image)  # Pillow has turned a TIFF
    except Exception:
        return image


def write_picture(path: Path, luminance: NDArray[np.float32], chroma: NDArray[np.float32] | None = None) -> None:
    """Write a PNG: grey, or RGB where there is chroma.

    Args:
        path: The file to write.
        luminance: (H, W) in [0, 1], rounded to 8 bits.
        chroma: (H, W, 2) as in `Picture`.
    """
    pixels = to_eight_bits(luminance) if chroma is None else rgb_with_luminance(luminance, chroma)
    Image.fromarray(pixels).save(path, format="PNG")


def to_eight_bits(luminance: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values in [0, 1] as the grey levels 0-255 that a picture holds, rounded and clipped; the same shape."""
    levels: NDArray[np.uint8] = np.rint(np.clip(luminance, 0, 1) * 255).astype(np.uint8)
    return levels


def _to_picture(rgb: NDArray[np.uint8]) -> Picture:
    if (rgb == rgb[..., :1]).all():
        return Picture(np.asarray(rgb[..., 0] / 255, np.float32))
    ycbcr = ycbcr_from_rgb(rgb)
    return Picture(np.ascontiguousarray(ycbcr[..., 0]), np.ascontiguousarray(ycbcr[..., 1:]))
