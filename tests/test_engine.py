"""The engine: slices in batches, colour carried past the network, memory bounded, words refused."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from medfuse.color import Window
from medfuse.devices import choose_device
from medfuse.errors import WeightsError
from medfuse.fusion import READY, Display, Engine, display_of
from medfuse.fusion.flight import Lane
from medfuse.fusion.methods import METHODS, RULES, Method
from medfuse.fusion.networks import FUSERS, TRAINABLE
from medfuse.fusion.settings import _legacy_precisions, _set_legacy_precisions, one_thread
from medfuse.fusion.strategies import STRATEGIES
from medfuse.fusion.weights import read_weights
from medfuse.grid import Grid
from medfuse.pipeline import fuse
from medfuse.process import Setting
from medfuse.stages import profiled
from medfuse.volume import Modality, Pair, Source, Unit, Volume

AS_IT_IS = Display(None, None)
UNIT_WINDOW = Display(Window(0, 1), None)


def grid_of(shape: tuple[int, ...]) -> Grid:
    k, j, i = shape[:3]
    return Grid.from_axes((k, j, i), (0, 0, 0), (3, 1, 2), np.eye(3)[:, ::-1], "1.2.3")


def grey(array: np.ndarray, modality: Modality = Modality.MR) -> Volume:
    return Volume(array.astype(np.float32), grid_of(array.shape), modality)


def color(array: np.ndarray) -> Volume:
    return Volume(array, grid_of(array.shape), Modality.PT, Unit.RGB)


def random(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def random_rgb(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.fixture(scope="module")
def dilran() -> Engine:
    return Engine("dilran", device="cpu")


@pytest.mark.parametrize("size", [(24, 30), (17, 23), (1, 9), (8, 1)])
def test_a_slice_is_the_same_to_the_bit_alone_and_among_seven(dilran: Engine, size: tuple[int, int]) -> None:
    structural, functional = random((7, *size), 1), random((7, *size), 2)
    together = dilran.fuse(Pair(grey(structural), grey(functional)), UNIT_WINDOW, UNIT_WINDOW).array
    for index in range(7):
        pair = Pair(grey(structural[index : index + 1]), grey(functional[index : index + 1]))
        alone = dilran.fuse(pair, UNIT_WINDOW, UNIT_WINDOW).array
        np.testing.assert_array_equal(alone[0], together[index])


def test_a_slice_does_not_care_where_in_the_volume_it_lies(dilran: Engine) -> None:
    structural, functional = random((5, 20, 18), 1), random((5, 20, 18), 2)
    forward = dilran.fuse_planes(structural, functional)
    backward = dilran.fuse_planes(structural[::-1], functional[::-1])
    np.testing.assert_array_equal(backward[::-1], forward)


@pytest.mark.parametrize("modality", [Modality.CT, Modality.PT, Modality.NM, Modality.OTHER])
def test_a_method_is_told_the_modality_of_the_functional_scan(modality: Modality, device: str) -> None:
    engine = Engine("duet", device=device)
    structural, functional = random((2, 40, 36), 1), random((2, 40, 36), 2)
    expected = Method("duet")(*(torch.from_numpy(one)[:, None] for one in (structural, functional)), modality)[:, 0]
    fused = engine.fuse(Pair(grey(structural), grey(functional, modality)), UNIT_WINDOW, UNIT_WINDOW).array
    np.testing.assert_allclose(fused, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(engine.fuse_planes(structural, functional, modality=modality), fused, rtol=0, atol=1e-5)


def test_beside_a_ct_the_weights_for_all_serve() -> None:
    engine = Engine("duet", device="cpu")
    structural, functional = random((2, 40, 36), 1), random((2, 40, 36), 2)
    pair = Pair(grey(structural, Modality.CT), grey(functional, Modality.PT))
    fused = engine.fuse(pair, UNIT_WINDOW, UNIT_WINDOW).array
    np.testing.assert_array_equal(fused, engine.fuse_planes(structural, functional))
    assert np.abs(fused - engine.fuse_planes(structural, functional, modality=Modality.PT)).mean() > 0.001


@pytest.mark.parametrize("batch", [2, 3, 7, 16])
def test_nor_how_many_go_at_a_time(batch: int, device: str) -> None:
    engine = Engine("dilran", device=device)
    structural, functional = random((7, 20, 18), 1), random((7, 20, 18), 2)
    found = engine.fuse_planes(structural, functional, batch)
    assert found.shape == (7, 20, 18)
    np.testing.assert_allclose(found, engine.fuse_planes(structural, functional, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", READY)
def test_every_device_gives_what_the_cpu_gives(method: str, device: str) -> None:
    planes = random((3, 20, 18), 1), random((3, 20, 18), 2)
    np.testing.assert_allclose(
        Engine(method, device=device).fuse_planes(*planes), Engine(method, device="cpu").fuse_planes(*planes), atol=1e-4
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), st.sampled_from(("average", "maximum")))
def test_the_rules_are_what_they_say_pixel_by_pixel(count: int, height: int, width: int, method: str) -> None:
    structural, functional = random((count, height, width), 1), random((count, height, width), 2)
    pair = Pair(grey(structural), grey(functional))
    fused = Engine(method, device="cpu").fuse(pair, UNIT_WINDOW, UNIT_WINDOW)
    expected = np.maximum(structural, functional) if method == "maximum" else (structural + functional) / 2
    np.testing.assert_allclose(fused.array, expected, atol=1e-7)


@pytest.mark.parametrize("method", ["average", "maximum"])
@pytest.mark.parametrize("shown", [UNIT_WINDOW, Display(Window(0, 1), "HOT_IRON"), Display(Window(0, 1), "GREY")])
def test_background_of_both_stays_exactly_black(method: str, shown: Display, device: str) -> None:
    structural, functional = random((3, 9, 8), 1), random((3, 9, 8), 2)
    structural[:, :4], functional[:, :4] = 0, -1
    pair = Pair(grey(structural), grey(functional, Modality.PT))
    fused = Engine(method, device=device).fuse(pair, UNIT_WINDOW, shown).array
    assert not fused[:, :4].any()
    assert fused[:, 4:].any()


def test_background_of_both_stays_nearly_black_through_the_network(dilran: Engine) -> None:
    black = np.zeros((1, 20, 20), np.float32)
    assert dilran.fuse_planes(black, black).max() < 0.02


def test_color_goes_past_the_network_untouched(device: str) -> None:
    """With a black structural volume, the larger of the two luminances is the functional one: its RGB comes back."""
    rgb = random_rgb((4, 11, 13), 3)
    pair = Pair(grey(np.zeros((4, 11, 13))), color(rgb))
    fused = Engine("maximum", device=device).fuse(pair, UNIT_WINDOW, AS_IT_IS)
    assert fused.unit is Unit.RGB
    assert fused.array.dtype == np.uint8
    assert np.abs(fused.array.astype(int) - rgb).max() <= 1


@pytest.mark.parametrize("method", READY)
def test_the_fused_color_has_the_chroma_of_the_functional(method: str) -> None:
    """Wherever nothing was clipped: Cb and Cr by the matrix of the standard, written out here."""
    chroma = np.array([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    rgb = random_rgb((2, 16, 16), 4) // 4 + 96  # far from both ends
    structural = random((2, 16, 16), 5) * 0.2 + 0.4
    fused = Engine(method, device="cpu").fuse(Pair(grey(structural), color(rgb)), UNIT_WINDOW, AS_IT_IS).array
    kept = (fused > 0).all(axis=-1) & (fused < 255).all(axis=-1)
    assert kept.mean() > 0.9
    assert (fused != rgb).any()
    np.testing.assert_allclose(fused[kept] @ chroma.T, rgb[kept] @ chroma.T, atol=1)


def test_the_grey_palette_gives_a_grey_result() -> None:
    pet = Volume(random((3, 9, 8), 2) * 20, grid_of((3, 9, 8)), Modality.PT, Unit.SUV)
    mr = grey(random((3, 9, 8), 1) * 700)
    shown = display_of(mr, functional=False), display_of(pet, functional=True, palette="GREY")
    fused = Engine("maximum", device="cpu").fuse(Pair(mr, pet), *shown)
    assert fused.unit is Unit.ARBITRARY
    assert fused.array.shape == (3, 9, 8)
    assert fused.array.dtype == np.float32
    assert (fused.array >= np.clip(pet.array / 10, 0, 1) - 1e-6).all()
    colored = Engine("maximum", device="cpu").fuse(Pair(mr, pet), shown[0], display_of(pet, functional=True))
    assert colored.array.shape == (3, 9, 8, 3)


def test_what_comes_out_knows_where_it_lies_and_what_it_came_from(dilran: Engine) -> None:
    mr = Volume(random((2, 9, 8), 1), grid_of((2, 9, 8)), Modality.MR, source=Source("dicom"))
    pet = Volume(random((2, 9, 8), 2), grid_of((2, 9, 8)), Modality.PT, source=Source("nifti"))
    fused = dilran.fuse(Pair(mr, pet), UNIT_WINDOW, UNIT_WINDOW)
    assert fused.grid is mr.grid
    assert fused.modality is Modality.FUSED
    assert fused.source.format == "dicom"
    assert fused.source.also == (pet.source,)
    assert fused.array.min() >= 0
    assert fused.array.max() <= 1


def test_progress_is_told(device: str) -> None:
    calls: list[tuple[int, int]] = []
    pair = Pair(grey(random((5, 6, 7), 1)), grey(random((5, 6, 7), 2)))
    Engine("average", device=device).fuse(pair, UNIT_WINDOW, UNIT_WINDOW, lambda *call: calls.append(call))
    assert calls[-1] == (5, 5)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert device != "cpu" or len(calls) == 5


@pytest.fixture
def torch_threads() -> Iterator[None]:
    found = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(found)


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("method", ["dilran", "msrpan", "average"])
def test_the_number_of_threads_changes_no_bit(method: str) -> None:
    pair = Pair(grey(random((7, 40, 34), 1)), grey(random((7, 40, 34), 2), Modality.PT))
    shown = UNIT_WINDOW, Display(Window(0, 1), "HOT_IRON")
    one, three = (Engine(method, device="cpu", threads=threads).fuse(pair, *shown).array for threads in (1, 3))
    assert one.std() > 0
    np.testing.assert_array_equal(three, one)


@pytest.mark.usefixtures("torch_threads")
def test_torch_has_one_thread_in_each_worker_and_its_own_for_a_single_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """And gets back what it had."""
    seen = []

    def watched(structural: torch.Tensor, functional: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return torch.maximum(structural, functional)

    monkeypatch.setitem(RULES, "maximum", watched)
    engine = Engine("maximum", device="cpu", threads=3)
    for count, expected in ((5, [1] * 5), (1, [2]), (3, [1] * 3)):
        seen.clear()
        engine.fuse_planes(random((count, 6, 7), 1), random((count, 6, 7), 2))
        assert seen == expected
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 2


@pytest.mark.usefixtures("torch_threads")
def test_every_thread_has_its_own_count_of_torch_threads_back() -> None:
    """Whoever ends first, and also one that began while another had a single one."""
    begun, ended = threading.Event(), threading.Event()

    def hold() -> list[int]:
        counts = [torch.get_num_threads()]
        with one_thread():
            counts.append(torch.get_num_threads())
            begun.set()
            ended.wait(10)
        return [*counts, torch.get_num_threads()]

    with ThreadPoolExecutor(1) as other:
        with one_thread():
            held = other.submit(hold)
            assert begun.wait(10)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        ended.set()
        assert held.result() == [2, 1, 2]
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 2


def test_nothing_is_read_of_a_setting_before_it_is_wanted() -> None:
    Setting(pytest.fail, pytest.fail)


def test_a_torch_without_switches_of_float32_is_set_by_its_older_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("highest")
    with Setting(_legacy_precisions, _set_legacy_precisions).at(("high", False)):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", False)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", True)


def test_settings_are_put_back_by_the_last_that_holds_them() -> None:
    kept = ["found"]
    setting = Setting(lambda: kept[-1], kept.append)
    first, second = setting.at("one"), setting.at("one")
    first.__enter__()
    second.__enter__()
    with ThreadPoolExecutor(1) as other:

        def wait() -> str:
            with setting.at("another"):
                return kept[-1]

        waiting = other.submit(wait)
        first.__exit__(None, None, None)
        time.sleep(0.02)
        assert not waiting.done()
        assert kept == ["found", "one"]
        second.__exit__(None, None, None)
        assert waiting.result() == "another"
    assert kept == ["found", "one", "found", "another", "found"]


def test_no_more_slices_are_in_flight_than_threads_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    running: set[int] = set()
    most = []

    def watched(structural: torch.Tensor, functional: torch.Tensor) -> torch.Tensor:
        running.add(threading.get_ident())
        time.sleep(0.01)
        most.append(len(running))
        running.remove(threading.get_ident())
        return torch.maximum(structural, functional)

    monkeypatch.setitem(RULES, "maximum", watched)
    planes = random((9, 32, 32), 1), random((9, 32, 32), 2)
    for arguments, expected in (({"threads": 3}, 3), ({"threads": 1}, 1), ({"threads": 3, "memory_mib": 6}, 2)):
        most.clear()
        fused = Engine("maximum", device="cpu", **arguments).fuse_planes(*planes)
        np.testing.assert_array_equal(fused, np.maximum(*planes))
        assert len(most) == 9
        assert max(most) == expected


def test_a_failure_in_a_worker_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(structural: torch.Tensor, functional: torch.Tensor) -> torch.Tensor:
        raise MemoryError("no more")

    monkeypatch.setitem(RULES, "maximum", broken)
    engine = Engine("maximum", device="cpu", threads=2)
    for _ in range(2):  # lanes are given back
        with pytest.raises(MemoryError, match="no more"):
            engine.fuse_planes(random((9, 6, 7), 1), random((9, 6, 7), 2))


@pytest.mark.parametrize(("method", "strategy"), [("dilran", "nuclear"), ("dilran", "average"), ("msrpan", "energy")])
def test_weights_that_make_nan_of_images_are_refused(method: str, strategy: str, tmp_path: Path, device: str) -> None:
    """Rather than shown as black, which NaN is in 8 bits."""
    network = TRAINABLE[method]()
    read_weights(network, method)
    large = {
        key: 1e8 * tensor if tensor.is_floating_point() else tensor for key, tensor in network.state_dict().items()
    }
    save_file(large, tmp_path / "large.safetensors")
    engine = Engine(method, strategy, device, tmp_path / "large.safetensors", threads=2)
    images = random((2, 40, 40), 1), random((2, 40, 40), 2)
    with pytest.raises(WeightsError, match=f"expected weights of {method} that give an image, found .* NaN"):
        engine.fuse(Pair(grey(images[0]), grey(images[1], Modality.PT)), UNIT_WINDOW, Display(Window(0, 1), "HOT_IRON"))
    with pytest.raises(WeightsError):
        engine.fuse_planes(*images)


def test_nan_of_the_images_is_not_blamed_on_the_weights() -> None:
    images = random((1, 20, 20), 1), random((1, 20, 20), 2)
    images[1][0, 3, 4] = np.nan
    assert np.isnan(Engine("dilran", "average", "cpu").fuse_planes(*images)).any()
    with pytest.raises(torch.linalg.LinAlgError):
        Engine("dilran", device="cpu").fuse_planes(*images)


def test_no_slices_are_none() -> None:
    assert Engine("average", device="cpu").fuse_planes(np.zeros((0, 4, 5)), np.zeros((0, 4, 5))).shape == (0, 4, 5)


def test_too_little_memory_for_a_slice_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="expected at least 10 MiB of memory for slices of 64 × 64, got 9"):
        Engine("average", device=device, memory_mib=9).fuse_planes(random((2, 64, 64), 1), random((2, 64, 64), 2))


@pytest.mark.parametrize("word", ["threads", "memory_mib"])
def test_numbers_below_one_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"expected at least one (thread|MiB of memory), got 0"):
        Engine("average", device="cpu", **{word: 0})


def body(seed: int, size: tuple[int, int] = (96, 80)) -> np.ndarray:
    """An ellipse with texture and noise, black around."""
    row, column = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    waves = np.sin((9 + seed) * row * column) + np.cos((7 + 3 * seed) * column)
    texture = 0.5 + 0.2 * waves + 0.05 * np.random.default_rng(seed).normal(size=size)
    return (np.clip(texture, 0, 1) * (row**2 + 1.4 * column**2 < 0.8))[None].astype(np.float32)


def exact_result(method: str, *planes: np.ndarray) -> np.ndarray:
    """Of the plain network in float64."""
    images = [torch.from_numpy(plane)[:, None].double() for plane in planes]
    network = TRAINABLE[method]()
    read_weights(network, method)
    network.eval().double()
    with torch.inference_mode():
        if method in FUSERS:
            fused = network(*images)
        else:
            fused = network.decode(STRATEGIES[METHODS[method].strategies[0]](*(network.encode(one) for one in images)))
    return fused.clamp(0, 1)[:, 0].numpy()


@pytest.mark.parametrize(
    ("method", "most", "rounding"),
    [
        ("duet", 0.08, 5e-5),  # where a difference from a source goes from one whole number of levels to the next
        ("dilran", 0.01, 1e-5),
        ("eh-dran", 0.01, 1e-5),
        ("msrpan", 0.01, 1e-5),
        ("msdra", 0.12, 1e-5),
    ],
)
def test_bfloat16_errs_by_what_is_stated(method: str, most: float, rounding: float, device: str) -> None:
    """Against the plain network in float64; and so does float32."""
    for planes in ((body(1), body(2)), (random((1, 48, 40), 1), random((1, 48, 40), 2))):
        exact = exact_result(method, *planes)
        error = np.abs(Engine(method, device=device, precision="bfloat16").fuse_planes(*planes) - exact)
        assert error.max() < most
        assert error.mean() < 0.003
        assert error.max() > 1e-4  # it is bfloat16 that was asked for
        assert np.abs(Engine(method, device=device).fuse_planes(*planes) - exact).max() < rounding


def rounded() -> list[bool]:
    """Whether products of matrices and convolutions may be rounded to TF32 now."""
    backends = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return [torch.get_float32_matmul_precision() != "highest", backends.cudnn.allow_tf32]
    switches = backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv
    return [switch.fp32_precision == "tf32" for switch in switches]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[bool]]:
    """What `rounded` says whenever the maximum is taken."""
    seen: list[list[bool]] = []

    def watched(structural: torch.Tensor, functional: torch.Tensor) -> torch.Tensor:
        seen.append(rounded())
        return torch.maximum(structural, functional)

    monkeypatch.setitem(RULES, "maximum", watched)
    return seen


def test_float32_is_exact_whatever_the_switches_of_torch(
    monkeypatch: pytest.MonkeyPatch, seen: list[list[bool]]
) -> None:
    """And they stay as they were found."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    try:
        torch.set_float32_matmul_precision("high")
        before = rounded()
        assert before[:2] == [True, True]
        Engine("maximum", device="cpu").fuse_planes(random((1, 6, 7), 1), random((1, 6, 7), 2))
        assert len(seen) == 1
        assert not any(seen[0])
        assert rounded() == before
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has no such switches")
@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("", [True, True, True, True]),
        ("cudnn", [True, True, False, False]),
        ("cuda.matmul", [True, False, False, False]),
        ("cudnn.conv", [False, True, False, False]),
        ("mkldnn.conv", [False, False, False, True]),
    ],
)
def test_the_newer_switches_of_torch_stay_as_they_were_found(
    place: str, expected: list[bool], seen: list[list[bool]]
) -> None:
    """And where one follows another, it still does."""
    below = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul]
    switches = [*below, torch.backends.mkldnn.conv, torch.backends.cudnn, torch.backends]
    found = [switch.fp32_precision for switch in switches]
    switch = attrgetter(place)(torch.backends) if place else torch.backends
    try:
        for one in switches:
            one.fp32_precision = "none"
        switch.fp32_precision = "tf32"
        assert rounded() == expected
        Engine("maximum", device="cpu").fuse_planes(random((1, 6, 7), 1), random((1, 6, 7), 2))
        assert not any(seen[0])
        assert rounded() == expected
        switch.fp32_precision = "none"
        assert not any(rounded())
    finally:
        for one, precision in zip(switches, found, strict=True):
            one.fp32_precision = precision


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dilran", "float16"), "expected a precision of float32, tf32, bfloat16, got 'float16'"),
        (("dilran", "tf32"), "expected a CUDA device for a precision of tf32, got cpu"),
        (("average", "bfloat16"), "expected a precision of float32 for average, got 'bfloat16'"),
        (("shearlet-cnn", "bfloat16"), "expected a precision of float32 for shearlet-cnn, got 'bfloat16'"),
    ],
)
def test_a_precision_that_is_not_there_is_refused(arguments: tuple[str, str], message: str) -> None:
    method, precision = arguments
    with pytest.raises(ValueError, match=message):
        Engine(method, device="cpu", precision=precision)


def test_a_batch_goes_to_the_device_and_back(device: str) -> None:
    """Short batches are filled up, buffers are used again, and what was given back is not overwritten."""
    where = torch.device(device)
    lane = Lane(
        lambda one, other, _: torch.maximum(one, other),
        where,
        torch.cuda.Stream(where) if where.type == "cuda" else None,
    )
    planes = [random((3, 6, 7), seed) for seed in range(4)]
    first = lane(planes[0], planes[1], 5, Modality.OTHER)
    second = lane(planes[2].astype(np.float64), planes[3], 3, Modality.OTHER)
    np.testing.assert_array_equal(first, np.maximum(planes[0], planes[1]))
    np.testing.assert_array_equal(second, np.maximum(planes[2], planes[3]))


def test_the_history_says_the_precision() -> None:
    """Of a result that an engine made, and of one that was asked for in words."""
    mr, pet = grey(random((2, 9, 8), 1)), grey(random((2, 9, 8), 2), Modality.PT)
    engine = Engine("msrpan", device="cpu", precision="bfloat16")
    by_engine = fuse(mr, pet, register="none", engine=engine)
    by_words = fuse(mr, pet, register="none", method="msrpan", device="cpu", precision="bfloat16", memory_mib=99)
    exact = fuse(mr, pet, register="none", method="msrpan", device="cpu")
    assert [volume.history[-1].parameters["precision"] for volume in (by_engine, by_words, exact)] == [
        "bfloat16",
        "bfloat16",
        "float32",
    ]
    np.testing.assert_array_equal(by_engine.array, by_words.array)
    assert (by_engine.array != exact.array).any()


@pytest.mark.parametrize(("threads", "stages"), [(1, {"other", "network", "colour"}), (2, {"other", "network"})])
def test_the_time_of_network_and_colour_is_told(threads: int, stages: set[str]) -> None:
    pair = Pair(grey(random((4, 9, 8), 1)), grey(random((4, 9, 8), 2)))
    engine = Engine("average", device="cpu", threads=threads)
    with profiled() as profile:
        engine.fuse(pair, UNIT_WINDOW, Display(Window(0, 1), "HOT_IRON"))
    assert set(profile.seconds) == stages


def test_planes_of_any_kind_of_array_are_taken(dilran: Engine) -> None:
    """Read-only ones, views, and double precision."""
    structural, functional = random((2, 9, 8), 1), random((2, 9, 8), 2)
    expected = dilran.fuse_planes(structural, functional)
    frozen = structural.copy()
    frozen.setflags(write=False)
    view = np.stack([functional, functional], axis=-1)[..., 1]
    np.testing.assert_array_equal(dilran.fuse_planes(frozen, view), expected)
    found = dilran.fuse_planes(structural.astype(np.float64), functional)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("functional", "batch", "message"),
    [
        (np.zeros((3, 9, 8)), None, r"expected planes \(N, H, W\) of one shape, got \(2, 9, 8\) and \(3, 9, 8\)"),
        (np.zeros((1, 9, 8)), None, r"got \(2, 9, 8\) and \(1, 9, 8\)"),
        (np.zeros((2, 9, 1)), None, r"got \(2, 9, 8\) and \(2, 9, 1\)"),
        (np.zeros((2, 9, 8), np.uint8), None, r"expected luminances in \[0, 1\] in floating point, got uint8"),
        (np.zeros((2, 9, 8)), 0, "expected a batch of at least one plane, got 0"),
        (np.zeros((2, 9, 8)), -1, "expected a batch of at least one plane, got -1"),
    ],
)
def test_planes_that_do_not_go_together_are_refused(functional: np.ndarray, batch: int | None, message: str) -> None:
    engine = Engine("average", device="cpu")
    with pytest.raises(ValueError, match=message):
        engine.fuse_planes(random((2, 9, 8), 1), functional, batch)
    with pytest.raises(ValueError, match=r"got \(9, 8\) and \(9, 8\)"):
        engine.fuse_planes(random((9, 8), 1), random((9, 8), 2))


def test_what_is_fused_is_not_changed(dilran: Engine) -> None:
    structural, functional = random((2, 9, 8), 1), random((2, 9, 8), 2)
    dilran.fuse_planes(structural, functional)
    np.testing.assert_array_equal(structural, random((2, 9, 8), 1))
    np.testing.assert_array_equal(functional, random((2, 9, 8), 2))


MEMORY = """
import resource, sys
import numpy as np
from medfuse.color import Window
from medfuse.fusion import Display, Engine
from medfuse.grid import Grid
from medfuse.volume import Modality, Pair, Volume

def fuse(count):
    volume = Volume(
        np.random.default_rng(1).random((count, 32, 32), np.float32),
        Grid.from_axes((count, 32, 32), (0, 0, 0), (1, 1, 1), np.eye(3)),
        Modality.MR,
    )
    engine.fuse(Pair(volume, volume), Display(Window(0, 1), None), Display(Window(0, 1), "HOT_IRON"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)

engine = Engine("dilran", "average", device="cpu")
few = fuse(8)
print(fuse(160) - few)
"""


def test_memory_does_not_grow_with_the_number_of_slices() -> None:
    """All 160 slices at once would take 380 MiB more than 8 do; both volumes and the result take 2."""
    pytest.importorskip("resource", reason="peak memory is read through the module resource")
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60


FORKED = """
import os, signal, sys
import numpy as np
import torch
from medfuse.fusion import Engine

torch.set_num_threads(2)
engine = Engine("duet", device="cpu", threads=2)
planes = np.random.default_rng(1).random((int(sys.argv[1]), 128, 128), np.float32)
fused = engine.fuse_planes(planes, planes / 2)
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if np.array_equal(fused, engine.fuse_planes(planes, planes / 2)) else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's own libraries do not go through a fork")
@pytest.mark.parametrize("count", [1, 4])
def test_a_warm_engine_goes_through_a_fork(count: int) -> None:
    """Whose child has none of its threads, nor of torch's."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(count)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:99", "meta", "xpu"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected a device of auto, cpu, cuda|this machine has no device"):
        choose_device(name)
    with pytest.raises(ValueError, match=r"expected a device of auto, cpu, cuda|this machine has no device"):
        Engine("average", device=name)


def test_auto_takes_what_there_is(device: str) -> None:
    assert choose_device(device) == torch.device(device)
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "sharpest"}, "expected a method of"),
        ({"method": "dilran", "strategy": "median"}, "expected a strategy of"),
        ({"method": "maximum", "strategy": "nuclear"}, "expected no strategy for maximum"),
        ({"method": "average", "weights": Path("own.safetensors")}, "average has no weights to replace"),
    ],
)
def test_unknown_words_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(**arguments, device="cpu")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"found those of another network in other\.safetensors"):
        Engine("dilran", device="cpu", weights=tmp_path / "other.safetensors")
