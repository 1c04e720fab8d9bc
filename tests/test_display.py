"""How volumes are shown: default windows, palettes, and the chroma that goes past the network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medfuse.color import CT_WINDOWS, PALETTES, Percentiles, Window
from medfuse.defaults import PALETTE
from medfuse.fusion.display import Display, display_of, slices_whitened
from medfuse.grid import Grid
from medfuse.volume import Modality, Unit, Volume

GRID = Grid.from_axes((4, 6, 5), (0, 0, 0), (3, 1, 2), np.eye(3)[:, ::-1])
BT601 = np.array([0.299, 0.587, 0.114])


def volume(modality: Modality, unit: Unit, scale: float = 1, seed: int = 4) -> Volume:
    """Background 0 in half of the voxels, the rest rising to `scale`, hotter slice by slice."""
    rng = np.random.default_rng(seed)
    array = rng.random(GRID.shape) * np.linspace(0.2, 1, 4)[:, None, None] * scale
    array[:, :, :2] = 0
    array[-1, -1, -1] = scale
    return Volume(array.astype(np.float32), GRID, modality, unit)


@pytest.mark.parametrize("functional", [True, False])
def test_ct_is_shown_in_the_soft_tissue_window(functional: bool) -> None:
    display = display_of(volume(Modality.CT, Unit.HU, 1000), functional=functional)
    assert display == Display(Window(-160, 240), None)
    assert display.window == CT_WINDOWS["soft-tissue"]


@pytest.mark.parametrize("functional", [True, False])
def test_mr_is_shown_by_percentiles_of_the_whole_volume_without_its_background(functional: bool) -> None:
    mr = volume(Modality.MR, Unit.ARBITRARY, 800)
    display = display_of(mr, functional=functional)
    inside = mr.array[mr.array > 0]
    assert display.window is not None
    assert (display.window.lower, display.window.upper) == pytest.approx(np.percentile(inside, (0.5, 99.5)), rel=1e-6)
    assert display.palette is None
    assert not display.is_color


def test_a_window_is_never_read_off_a_slice() -> None:
    """A slice shown alone is shown as in its volume, however dark it is itself."""
    for scan in (volume(Modality.MR, Unit.ARBITRARY, 800), volume(Modality.PT, Unit.BQML, 5e4)):
        display = display_of(scan, functional=True)
        together, _ = display.show(scan.array)
        alone = [display.show(scan.array[index : index + 1])[0][0] for index in range(4)]
        np.testing.assert_array_equal(together, alone)
        if scan.modality is Modality.MR:
            assert together[0].max() < 0.4 < 0.9 < together[-1].max()


def test_pet_in_suv_is_shown_from_0_to_10() -> None:
    assert display_of(volume(Modality.PT, Unit.SUV, 25), functional=True) == Display(Window(0, 10), PALETTE)


def test_pet_in_bqml_is_shown_by_percentiles() -> None:
    pet = volume(Modality.PT, Unit.BQML, 5e4)
    window = display_of(pet, functional=True).window
    inside = pet.array[pet.array > 0]
    assert window is not None
    assert (window.lower, window.upper) == pytest.approx((inside.min(), np.percentile(inside, 99.9)), rel=1e-6)


@pytest.mark.parametrize("below", [[-2.0], [-2.0, -1.9], [-2.0, -1.9, -0.1]])
def test_what_a_reconstruction_left_below_zero_is_no_uptake(below: list[float]) -> None:
    """Or two voxels would colour every place without uptake."""
    scan = volume(Modality.NM, Unit.COUNTS, 12)
    array = scan.array.copy()
    array[0, 0, : len(below)] = below
    scan = replace(scan, array=array)
    display = display_of(scan, functional=True)
    assert display.window is not None
    assert 0 <= display.window.lower < 1 < display.window.upper
    luminance, _ = display.show(np.zeros((1, 1, 1), np.float32))
    assert luminance.max() == 0
    chosen = display_of(scan, functional=True, window=Percentiles(0, 99.9)).window
    assert chosen is not None
    assert len(below) == 1 or chosen.lower < 0


@pytest.mark.parametrize(
    ("modality", "unit", "scale", "is_suv"),
    [
        (Modality.PT, Unit.ARBITRARY, 12, True),
        (Modality.PT, Unit.ARBITRARY, 1, False),
        (Modality.PT, Unit.ARBITRARY, 30_000, False),
        (Modality.PT, Unit.COUNTS, 12, False),
        (Modality.NM, Unit.ARBITRARY, 12, False),
        (Modality.NM, Unit.COUNTS, 900, False),
        (Modality.OTHER, Unit.ARBITRARY, 12, False),
    ],
)
def test_uptake_without_units_is_coloured_and_suv_only_by_its_range(
    modality: Modality, unit: Unit, scale: float, is_suv: bool
) -> None:
    display = display_of(volume(modality, unit, scale), functional=True)
    assert display.palette == PALETTE
    assert (display.window == Window(0, 10)) is is_suv


def test_a_scan_of_unknown_kind_is_grey_in_the_structural_place() -> None:
    assert not display_of(volume(Modality.OTHER, Unit.ARBITRARY), functional=False).is_color


def test_the_users_window_goes_before_the_default() -> None:
    pet = volume(Modality.PT, Unit.SUV, 25)
    assert display_of(pet, functional=True, window=Window(1, 4)).window == Window(1, 4)
    chosen = display_of(pet, functional=True, window=Percentiles(10, 90)).window
    inside = pet.array[pet.array > 0]
    assert chosen is not None
    assert (chosen.lower, chosen.upper) == pytest.approx(np.percentile(inside, (10, 90)), rel=1e-6)


def test_a_constant_volume_is_black_and_no_error() -> None:
    flat = Volume(np.full(GRID.shape, 7, np.float32), GRID, Modality.MR)
    luminance, chroma = display_of(flat, functional=False).show(flat.array)
    assert not luminance.any()
    assert chroma is None


def test_rgb_is_shown_as_it_is() -> None:
    rgb = np.random.default_rng(5).integers(0, 256, (*GRID.shape, 3), np.uint8)
    scan = Volume(rgb, GRID, Modality.PT, Unit.RGB)
    display = display_of(scan, functional=True, window=Window(3, 4), palette="PET")
    assert display == Display(None, None)
    assert display.is_color
    luminance, chroma = display.show(scan.array)
    assert chroma is not None
    np.testing.assert_allclose(luminance, rgb / 255 @ BT601, atol=1e-6)
    np.testing.assert_allclose(chroma[..., 0], (rgb[..., 2] / 255 - rgb / 255 @ BT601) / 1.772, atol=1e-6)
    np.testing.assert_allclose(chroma[..., 1], (rgb[..., 0] / 255 - rgb / 255 @ BT601) / 1.402, atol=1e-6)


@pytest.mark.parametrize("palette", PALETTES)
def test_every_palette_shows_nothing_as_black_and_the_most_as_bright(palette: str) -> None:
    display = Display(Window(0, 255), palette)
    luminance, chroma = display.show(np.arange(256, dtype=np.float32).reshape(1, 16, 16))
    assert luminance.dtype == np.float32
    assert luminance.shape == (1, 16, 16)
    assert luminance[0, 0, 0] == pytest.approx(0, abs=0.02)
    assert luminance[0, -1, -1] > 0.9
    assert luminance.min() >= 0
    assert luminance.max() <= 1 + 1e-6
    assert display.is_color == (palette != "GREY") == (chroma is not None)


def test_the_default_palette_rises_in_luminance_with_uptake() -> None:
    """So that what the network sees as brighter is what took up more."""
    assert PALETTE == "HOT_IRON"
    luminance, _ = Display(Window(0, 255), "HOT_IRON").show(np.arange(256, dtype=np.float32).reshape(1, 1, 256))
    assert (np.diff(luminance[0, 0].astype(float)) >= -1e-7).all()
    assert luminance[0, 0, 0] == 0
    assert luminance[0, 0, -1] == pytest.approx(1)


def test_grey_shows_the_window_itself() -> None:
    pet = volume(Modality.PT, Unit.SUV, 25)
    luminance, chroma = display_of(pet, functional=True, palette="GREY").show(pet.array)
    assert chroma is None
    np.testing.assert_allclose(luminance, np.clip(pet.array / 10, 0, 1), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64, np.float32])
def test_every_dtype_is_shown_alike(dtype: type) -> None:
    array = np.arange(120).reshape(GRID.shape)
    scan = replace(volume(Modality.MR, Unit.ARBITRARY), array=array.astype(dtype))
    luminance, _ = display_of(scan, functional=False, window=Window(0, 119)).show(scan.array)
    np.testing.assert_allclose(luminance, array / 119, atol=1e-6)


def test_an_unknown_palette_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a palette of HOT_IRON, PET, .*, got 'RAINBOW'"):
        display_of(volume(Modality.PT, Unit.SUV), functional=True, palette="RAINBOW")


@pytest.mark.parametrize("in_colour", [False, True])
@pytest.mark.parametrize(("white", "whitened"), [(0, 0), (20, 0), (21, 1), (200, 1)])
def test_a_slice_is_whitened_where_a_tenth_of_its_colours_is_white(white: int, whitened: int, in_colour: bool) -> None:
    """In a slice 200 of 400 pixels are red, a third of the window, in another 20; the others are black, or white."""
    grid = Grid.from_axes((2, 20, 20), (0, 0, 0), (1, 1, 1), np.eye(3)[:, ::-1])
    uptake = np.zeros(grid.shape, np.float32)
    uptake[0, :10] = uptake[1, :1] = 10 / 3
    red = np.where(uptake[..., None] > 0, np.uint8([170, 0, 0]), np.uint8(0))
    fused = red.copy()
    fused[0].reshape(-1, 3)[:white] = fused[1, 0, 1:] = 250
    fused[:, 18:] = 255
    functional = Volume(red, grid, Modality.PT, Unit.RGB) if in_colour else Volume(uptake, grid, Modality.PT, Unit.SUV)
    result = Volume(fused, grid, Modality.FUSED, Unit.RGB)
    assert slices_whitened(result, functional, display_of(functional, functional=True)) == whitened
    fused[fused == 250] = 249
    assert slices_whitened(result, functional, display_of(functional, functional=True)) == 0


def test_what_is_white_in_the_palette_has_no_colour_to_lose() -> None:
    uptake = np.full(GRID.shape, 10, np.float32)
    functional = Volume(uptake, GRID, Modality.PT, Unit.SUV)
    fused = Volume(np.full((*GRID.shape, 3), 255, np.uint8), GRID, Modality.FUSED, Unit.RGB)
    assert slices_whitened(fused, functional, display_of(functional, functional=True)) == 0
