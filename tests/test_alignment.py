"""Which alignment is believed, what becomes of one that is not trusted, and what moves along with it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from phantoms import BODY, moved, phantom
from verdicts import REASON, SHIFT, registration

from medfuse import alignment
from medfuse.align import Registration, Transform
from medfuse.align.verdict import Trust
from medfuse.alignment import Alignment, align, check_ride, refuse_failed, ride_along, told_evidence
from medfuse.errors import GeometryError, MedfuseWarning, NoOverlap, RegistrationError
from medfuse.volume import Modality, Volume

FRAME, OTHER_FRAME = "1.2.826.0.1.999.1", "1.2.826.0.1.999.2"
Find = Callable[..., None]


@pytest.fixture
def mr() -> Volume:
    return phantom(Modality.MR, (12, 18, 20), FRAME)


@pytest.fixture
def pet() -> Volume:
    return phantom(Modality.PT, (9, 10, 12), FRAME)


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Find:
    """Let every registration find `SHIFT`, with such a verdict."""

    def let(trust: str, uncertainty_mm: float = 0.4) -> None:
        def run(_fixed: Volume, _moving: Volume, kind: str, **_options: object) -> Registration:
            return registration(trust, kind, uncertainty_mm)

        monkeypatch.setattr(alignment, "run_registration", run)

    return let


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No registration may be run."""
    monkeypatch.setattr(alignment, "run_registration", None)


def in_frames(mr: Volume, pet: Volume, frames: tuple[str | None, str | None]) -> tuple[Volume, Volume]:
    return moved(mr, (0, 0, 0), frames[0]), moved(pet, (0, 0, 0), frames[1])


ONE, TWO, NONE = (FRAME, FRAME), (FRAME, OTHER_FRAME), (None, None)
HALF = ((FRAME, None), (None, FRAME))


# Without a registration


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("frames", "register", "reason"),
    [
        (ONE, "auto", "one frame of reference"),
        (ONE, "none", "one frame of reference"),
        (TWO, "none", "header, as asked, though the frames differ"),
        (NONE, "none", "header, as asked, though no frame is stated"),
        (HALF[0], "none", "header, as asked, though no frame is stated"),
    ],
)
def test_the_header_is_taken(
    mr: Volume, pet: Volume, frames: tuple[str | None, str | None], register: str, reason: str
) -> None:
    found = align(*in_frames(mr, pet, frames), register)
    assert (found.reason, found.registration, found.trust, found.is_registered) == (reason, None, None, False)
    assert np.array_equal(found.transform.moving_from_fixed, np.eye(4))


@pytest.mark.usefixtures("never")
def test_one_grid_is_one_world(mr: Volume) -> None:
    pet = phantom(Modality.PT, mr.grid.shape)
    assert align(moved(mr, (0, 0, 0)), pet).reason == "one grid"


@pytest.mark.usefixtures("never")
def test_a_path_or_a_matrix_is_no_transform(mr: Volume, pet: Volume) -> None:
    for given in ("t.tfm", np.eye(4)):
        with pytest.raises(TypeError, match=f"expected a transform, got {type(given).__name__}"):
            align(mr, pet, transform=given)  # type: ignore[arg-type]


@pytest.mark.usefixtures("never")
def test_a_given_registration_is_judged_like_any(mr: Volume, pet: Volume) -> None:
    apart = in_frames(mr, pet, TWO)
    found = align(*apart, transform=registration("trusted"))
    assert (found.transform is SHIFT, found.trust, found.is_registered) == (True, Trust.TRUSTED, True)
    with pytest.warns(MedfuseWarning, match="rigid registration, doubtful"):
        assert align(*apart, transform=registration("doubtful")).is_registered
    with pytest.warns(MedfuseWarning, match="header, for the rigid registration is doubtful"):
        assert not align(*in_frames(mr, pet, ONE), transform=registration("doubtful")).is_registered
    with pytest.raises(RegistrationError, match="the rigid one failed"):
        align(*apart, transform=registration("failed"))
    with pytest.warns(MedfuseWarning, match="rigid registration, failed"):
        assert align(*apart, transform=registration("failed"), accept_untrusted=True).trust is Trust.FAILED


@pytest.mark.usefixtures("never")
def test_a_given_transform_is_taken_as_it_is(mr: Volume, pet: Volume) -> None:
    found = align(mr, pet, "rigid", SHIFT)
    assert found.transform is SHIFT
    assert (found.reason, found.trust, found.is_registered) == ("a given transform", None, False)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("register", ["auto", "none"])
def test_the_header_is_not_believed_where_nothing_overlaps(mr: Volume, pet: Volume, register: str) -> None:
    with pytest.raises(NoOverlap, match=r"nothing of one lies inside the other.*--register rigid"):
        align(mr, moved(pet, (500, 0, 0), FRAME), register)


def test_an_unknown_way_to_register(mr: Volume, pet: Volume) -> None:
    with pytest.raises(ValueError, match="register of auto, rigid, affine, deformable, none, got 'magic'"):
        align(mr, pet, "magic")


# A registration that is trusted


@pytest.mark.parametrize(
    ("frames", "register", "uncertainty_mm", "is_registered"),
    [
        (NONE, "auto", 2.95, False),
        (NONE, "auto", 2.85, True),
        (HALF[0], "auto", 2.95, False),
        (HALF[1], "auto", 2.85, True),
        (TWO, "auto", 50, True),
        (ONE, "rigid", 50, True),
        (ONE, "affine", 50, True),
        (NONE, "deformable", 50, True),
    ],
)
def test_a_trusted_registration_is_used_unless_it_stays_near_a_header_that_may_hold(
    mr: Volume,
    pet: Volume,
    find: Find,
    frames: tuple[str | None, str | None],
    register: str,
    uncertainty_mm: float,
    is_registered: bool,
) -> None:
    find("trusted", uncertainty_mm)
    found = align(*in_frames(mr, pet, frames), register)
    kind = "rigid" if register == "auto" else register
    assert found.reason == (
        f"{kind} registration, trusted (agreement {uncertainty_mm:.1f} mm)"
        if is_registered
        else "header, from which a trusted registration did not clearly lead away"
    )
    assert (found.trust, found.is_registered) == (Trust.TRUSTED, is_registered)
    expected = SHIFT if is_registered else Transform.identity()
    assert np.array_equal(found.transform.moving_from_fixed, expected.moving_from_fixed)
    said = json.loads(json.dumps(found.to_json()))
    assert (said["reason"], said["trust"], said["registered"]) == (found.reason, "trusted", is_registered)
    assert (said["registration"]["kind"], said["registration"]["reasons"]) == (kind, [])
    assert said["moving_from_fixed"] == expected.moving_from_fixed.tolist()


def test_a_header_that_leaves_the_two_apart_is_no_choice(mr: Volume, pet: Volume, find: Find) -> None:
    far = moved(pet, (500, 0, 0))
    find("trusted", 50)
    assert align(moved(mr, (0, 0, 0)), far).is_registered
    find("doubtful")
    with pytest.warns(MedfuseWarning, match="rigid registration, doubtful"):
        assert align(moved(mr, (0, 0, 0)), far).is_registered


# A registration that is not


@pytest.mark.parametrize(
    ("frames", "register", "is_registered"),
    [
        (ONE, "rigid", False),
        (ONE, "deformable", False),
        (TWO, "auto", True),
        (TWO, "affine", True),
        (NONE, "auto", False),
        (HALF[0], "auto", False),
        (NONE, "rigid", True),
    ],
)
def test_a_doubtful_registration_yields_to_the_header_where_there_is_one(
    mr: Volume, pet: Volume, find: Find, frames: tuple[str | None, str | None], register: str, is_registered: bool
) -> None:
    find("doubtful")
    kind = "rigid" if register == "auto" else register
    reason = f"{kind} registration, doubtful" if is_registered else f"header, for the {kind} registration is doubtful"
    with pytest.warns(MedfuseWarning, match=f"{reason}.*Look at the result"):
        found = align(*in_frames(mr, pet, frames), register)
    assert found.reason == f"{reason} ({REASON})"
    assert (found.trust, found.is_registered) == (Trust.DOUBTFUL, is_registered)
    assert found.to_json()["registration"]["reasons"] == [REASON]
    assert (found.transform is SHIFT) == is_registered


def test_one_grid_is_a_header_to_fall_back_on(mr: Volume, find: Find) -> None:
    find("doubtful")
    with pytest.warns(MedfuseWarning, match="header, for the rigid"):
        assert not align(moved(mr, (0, 0, 0)), phantom(Modality.PT, mr.grid.shape), "rigid").is_registered


@pytest.mark.parametrize("frames", [ONE, TWO, NONE])
def test_a_failed_registration_is_refused_with_its_numbers(
    mr: Volume, pet: Volume, find: Find, frames: tuple[str | None, str | None]
) -> None:
    find("failed", np.inf)
    match = (
        rf"the rigid one failed \({REASON}\): independent runs: no agreement \(start lost, inverse lost\).*"
        r"alignment; normalized mutual information 1.020 before, 1.190 after; overlap 81% before, 99% after"
    )
    with pytest.raises(RegistrationError, match=match) as refused:
        align(*in_frames(mr, pet, frames), "rigid")
    assert refused.value.exit_code == 5
    assert all(f"--{way}" in refused.value.hint for way in ("register none", "transform", "accept-untrusted"))


@pytest.mark.parametrize("trust", ["doubtful", "failed"])
@pytest.mark.parametrize(("frames", "register"), [(ONE, "rigid"), (NONE, "auto"), (TWO, "auto")])
def test_what_is_not_trusted_can_be_accepted_and_stays_labelled(
    mr: Volume, pet: Volume, find: Find, trust: str, frames: tuple[str | None, str | None], register: str
) -> None:
    find(trust)
    with pytest.warns(MedfuseWarning, match=f"rigid registration, {trust}"):
        found = align(*in_frames(mr, pet, frames), register, accept_untrusted=True)
    assert (found.is_registered, found.to_json()["trust"]) == (True, trust)
    assert found.reason == f"rigid registration, {trust} ({REASON})"


def test_only_a_failed_registration_is_refused() -> None:
    refuse_failed(registration("trusted"))
    refuse_failed(registration("doubtful"))
    with pytest.raises(RegistrationError, match="the affine one failed"):
        refuse_failed(registration("failed", "affine"))


def test_the_evidence_is_told_in_words() -> None:
    assert told_evidence(registration("trusted", "deformable").verdict) == (
        "independent runs: agreement 0.4 mm (start 0.2 mm, inverse 0.4 mm)",
        "body moved by 5.8 mm (at most 5.8 mm), turned by 0.0°, from the header's alignment",
        "normalized mutual information 1.020 before, 1.190 after",
        "overlap 81% before, 99% after",
        "the best alignment elsewhere scores 60% as high",
        "folded in 0.10% of the space; nothing else is judged of the bending",
    )


# Progress and threads


def test_threads_and_progress_reach_the_registration(mr: Volume, pet: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_pair: object, progress: Callable[[int, int], None], threads: int) -> Registration:
        progress(threads, 5)
        return registration("trusted")

    monkeypatch.setattr(alignment, "run_registration", run)
    calls: list[tuple[str, int, int]] = []
    align(mr, pet, "rigid", progress=lambda *call: calls.append(call), threads=3)
    assert calls == [("registering", 3, 5)]


@pytest.mark.parametrize("frame", [None, OTHER_FRAME])
def test_a_displaced_scan_is_found_again(mr: Volume, frame: str | None) -> None:
    shift = np.array((17.0, -12.0, 9.0))
    fixed = phantom(Modality.MR, (18, 30, 32), None if frame is None else FRAME)
    pet = moved(phantom(Modality.PT, (18, 22, 24)), shift, frame)
    calls: list[tuple[str, int, int]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MedfuseWarning)  # the verdict is not the point here
        found = align(fixed, pet, progress=lambda *call: calls.append(call), accept_untrusted=True)
    around = BODY + 10 * np.vstack([np.eye(3), -np.eye(3)])
    assert np.linalg.norm(found.transform.apply(around) - around - shift, axis=1).mean() < 2
    assert found.reason.startswith("rigid registration, ")
    assert {what for what, _, _ in calls} == {"registering"}
    assert calls[-1][1] == calls[-1][2] == len(calls)


# What rides along


@pytest.mark.parametrize("basis", ["frame", "grid"])
def test_what_shares_the_frame_or_the_grid_rides_along(pet: Volume, basis: str) -> None:
    ct = phantom(Modality.CT, (12, 15, 16), FRAME)
    also = pet if basis == "frame" else replace(ct, grid=moved(ct, (0, 0, 0)).grid, modality=Modality.PT)
    rode = ride_along(Alignment(SHIFT, "rigid registration, trusted", registration("trusted")), ct, also)
    words = {"frame": "one frame of reference", "grid": "one grid"}
    assert rode.reason == f"with the CT, {words[basis]}: rigid registration, trusted"
    assert rode.transform is SHIFT
    assert (rode.trust, rode.is_registered) == (Trust.TRUSTED, True)


@pytest.mark.parametrize("frame", [None, OTHER_FRAME])
def test_what_may_lie_elsewhere_does_not_ride_along(pet: Volume, frame: str | None) -> None:
    ct = phantom(Modality.CT, (12, 15, 16), FRAME)
    with pytest.raises(GeometryError, match=r"expected a series to ride along .*--save-transform"):
        check_ride(ct, moved(pet, (0, 0, 0), frame))
