"""The parts of the digital head: of what tissue each one is, and where.

Positions are those of the unbent head, LPS millimetres about the middle of the brain, the nose towards -y. A pair is
given for the left, and what is not alike on both sides one by one. Later layers cover earlier ones.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from medfuse.sample.shapes import Ellipsoid, Solid, Tube
from medfuse.volume import Modality


class Tissue(enum.IntEnum):
    """What the head is made of, and three lesions."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    MUCOSA = 4
    BONE = 5  #: compact
    MARROW = 6  #: spongy bone: diploe, vertebrae
    ENAMEL = 7
    VITREOUS = 8
    LENS = 9
    DURA = 10
    CSF = 11
    GREY = 12
    WHITE = 13
    FOLIA = 14  #: grey matter of the cerebellum
    STEM = 15
    FOCUS = 16  #: lesion, takes up much tracer
    OEDEMA = 17  #: lesion, dark in T1
    CALCIUM = 18  #: lesion, bright in CT


Layer: TypeAlias = tuple[Tissue, Solid]


@dataclass(frozen=True)
class Lesion:
    """A finding that one modality shows and the others do not.

    Args:
        tissue: What it is made of.
        solid: Where it lies in the unbent head; `tissue_at` says where that is in the real one.
        seen_by: The modality that shows it.
    """

    tissue: Tissue
    solid: Ellipsoid
    seen_by: Modality


LESIONS = (
    Lesion(Tissue.FOCUS, Ellipsoid((30, -24, 19), (8, 8, 9)), Modality.PT),
    Lesion(Tissue.OEDEMA, Ellipsoid((-28, 14, 26), (8, 10, 7)), Modality.MR),
    Lesion(Tissue.CALCIUM, Ellipsoid((-26, -39, 18), (4, 5, 4.5)), Modality.CT),
)


def _pair(tissue: Tissue, solid: Solid, right_scale: float = 1.0) -> tuple[Layer, Layer]:
    """A layer on the left and its image on the right."""
    return (tissue, solid), (tissue, solid.mirrored(right_scale))


# Cranial cavity and face.
CEREBRUM = Ellipsoid((0, 2, 17), (67, 85, 61))
TEMPORAL = Ellipsoid((41, -3, -19), (25, 42, 27), -8)
FOSSA = Ellipsoid((0, 47, -30), (55, 39, 33))
CANAL = Tube(((0, 26, -40), (0, 31, -75), (0, 36, -190)), (16, 12, 11))
PETROUS = Tube(((62, 24, -33), (34, 12, -29), (15, 2, -27)), (12, 8, 5))
CLIVUS = Tube(((0, -22, -21), (0, 0, -30), (0, 14, -52)), (7, 8, 6))
FACE = Ellipsoid((0, -43, -58), (57, 51, 66))
NECK = Tube(((0, 22, -40), (0, 30, -110), (0, 34, -220)), (54, 54, 60))
NOSE = Tube(((0, -89, -20), (1, -104, -46), (1, -92, -54)), (7, 9, 14))
CHIN = Ellipsoid((0, -80, -112), (26, 17, 17))
CHEEK = Ellipsoid((41, -62, -48), (22, 26, 26))
JAW = Ellipsoid((43, -18, -68), (22, 38, 44))
EAR = Ellipsoid((80, 22, -22), (4.5, 16, 29), 22)

ALVEOLI = ((-22, -60, -74), (-14, -79, -74), (0, -85, -74), (14, -79, -74), (22, -60, -74))
MUSCLES: tuple[Layer, ...] = (
    *_pair(Tissue.MUSCLE, Ellipsoid((66, -24, -6), (9, 27, 36), 6)),
    *_pair(Tissue.MUSCLE, Ellipsoid((55, -24, -74), (6, 17, 30))),
    *_pair(Tissue.MUSCLE, Ellipsoid((33, -22, -68), (9, 15, 24))),
    *_pair(Tissue.MUSCLE, Tube(((58, 34, -50), (46, 6, -130), (30, -14, -200)), (9, 10, 10))),
    *_pair(Tissue.MUSCLE, Tube(((22, 66, -62), (20, 62, -200)), (17, 18))),
    (Tissue.MUSCLE, Ellipsoid((1, -50, -92), (23, 29, 20))),
)
BONES: tuple[Layer, ...] = (
    (Tissue.BONE, Ellipsoid((1, -80, -6), (32, 13, 15))),
    *_pair(Tissue.BONE, Tube(((58, 8, -34), (62, -20, -37), (56, -54, -38), (38, -72, -36)), (4, 4, 4.5, 6))),
    *_pair(Tissue.BONE, Ellipsoid((59, 31, -43), (12, 15, 19))),
    *_pair(Tissue.BONE, Ellipsoid((28, -62, -50), (15, 17, 17.5))),
    (Tissue.BONE, Tube(ALVEOLI, (6,) * 5)),
    (Tissue.MARROW, Tube(ALVEOLI, (4,) * 5)),
    *_pair(Tissue.BONE, Tube(((50, -4, -44), (47, -12, -72), (43, -24, -98), (26, -66, -110), (0, -84, -113)),
                             (5, 5.5, 6.5, 7, 8))),
    *_pair(Tissue.MARROW, Tube(((43, -24, -98), (26, -66, -110), (0, -84, -113)), (3.5, 3.5, 4.5))),
    (Tissue.BONE, Ellipsoid((1, -20, -29), (17, 14, 13))),
    (Tissue.BONE, Tube(((0, 6, -58), (0, 8, -80)), (6, 8))),
    (Tissue.MARROW, Tube(((0, 6, -58), (0, 8, -80)), (4, 6))),
    (Tissue.BONE, Tube(((0, 9, -90), (0, 13, -200)), (11, 12))),
    (Tissue.MARROW, Tube(((0, 9, -90), (0, 13, -200)), (9, 10))),
)  # fmt: skip
TEETH: tuple[Layer, ...] = tuple(
    (Tissue.ENAMEL, Ellipsoid((24 * np.sin(a), -61 - 25 * np.cos(a), z), (2.9, 2.9, 6)))
    for z in (-84.0, -96.0)
    for a in np.radians(np.arange(-80, 75, 17))
)
AIRWAYS: tuple[Layer, ...] = (
    *_pair(Tissue.MUCOSA, Ellipsoid((28, -62, -50), (13.4, 15.4, 15.9))),
    (Tissue.AIR, Ellipsoid((29, -62, -49), (11.6, 14, 14.4))),
    (Tissue.AIR, Ellipsoid((-28, -60, -47), (11, 12.4, 10.5))),
    (Tissue.AIR, Ellipsoid((4, -20, -29), (11, 12, 10.5))),
    (Tissue.AIR, Ellipsoid((-10, -21, -30), (4, 9, 8))),
    (Tissue.AIR, Ellipsoid((11, -84, -4), (12, 4.5, 9))),
    (Tissue.AIR, Ellipsoid((-9, -84, -7), (8, 4, 6))),
    (Tissue.MUCOSA, Ellipsoid((0, -62, -46), (12, 36, 24))),
    (Tissue.AIR, Ellipsoid((6, -60, -46), (3.6, 34, 20))),
    (Tissue.AIR, Ellipsoid((-5, -61, -47), (2.7, 33, 19))),
    (Tissue.AIR, Tube(((5, -88, -54), (6, -98, -58), (6, -99, -70)), (3.5, 3.5, 3.5))),
    (Tissue.AIR, Tube(((-4, -88, -54), (-5, -98, -58), (-5, -99, -70)), (3, 3, 3))),
    (Tissue.AIR, Tube(((0, -30, -48), (0, -16, -66), (0, -13, -100), (0, -15, -200)), (8, 8, 7, 9))),
    *_pair(Tissue.AIR, Tube(((92, 14, -31), (66, 14, -32), (48, 10, -31)), (3.4, 2.6, 3.4)), 0.9),
)
ORBIT = Ellipsoid((31, -60, -21), (18.5, 27, 17.5), 16)
EYES: tuple[Layer, ...] = (
    *_pair(Tissue.MUSCLE, Tube(((34, -76, -8), (26, -56, -9), (11, -31, -17)), (1.5, 2.6, 1.8))),
    *_pair(Tissue.MUSCLE, Tube(((34, -76, -36), (26, -56, -33), (11, -31, -20)), (1.5, 2.6, 1.8))),
    *_pair(Tissue.MUSCLE, Tube(((20, -75, -22), (16, -56, -21), (9, -31, -18)), (1.5, 2.4, 1.8))),
    *_pair(Tissue.MUSCLE, Tube(((46, -74, -22), (38, -54, -21), (13, -31, -18)), (1.5, 2.4, 1.8))),
    *_pair(Tissue.DURA, Tube(((32, -62, -22), (22, -44, -21), (9, -26, -17)), (2.6, 2.4, 2.2))),
    *_pair(Tissue.WHITE, Tube(((32, -62, -22), (22, -44, -21), (9, -26, -17), (1, -17, -14)), (1.7, 1.6, 1.6, 1.8))),
    *_pair(Tissue.DURA, Ellipsoid((33, -74, -22), (12.8, 12.4, 12.8)), 0.97),
    *_pair(Tissue.VITREOUS, Ellipsoid((33, -74, -22), (11.6, 11.2, 11.6)), 0.97),
    *_pair(Tissue.LENS, Ellipsoid((33, -82.5, -22), (4.8, 2.1, 4.8))),
)

# Brain.
VENTRICLES: tuple[Layer, ...] = tuple(
    (Tissue.CSF, solid)
    for solid in (
        Tube(((7, -35, 9), (9, -24, 15), (10, -6, 22), (15, 18, 20), (25, 34, 9)), (3.6, 5.6, 5.2, 5.4, 8.4)),
        Tube(((25, 34, 9), (23, 48, 6), (17, 62, 4)), (8, 6, 3)),
        Tube(((25, 34, 9), (34, 20, -9), (33, -4, -17)), (7, 3.4, 2.4)),
        Tube(((-7, -33, 10), (-8, -23, 16), (-9, -6, 22), (-14, 18, 20), (-23, 33, 10)), (2.6, 3.8, 3.6, 3.8, 5.6)),
        Tube(((-23, 33, 10), (-21, 44, 8)), (5.2, 2.2)),
        Tube(((-23, 33, 10), (-32, 20, -9), (-31, 0, -17)), (5, 2.2, 1.6)),
        Ellipsoid((0.6, 3, 1), (2.6, 14, 10)),
        Tube(((0, 18, -4), (0, 28, -16)), (1.2, 1.2)),
        Ellipsoid((0, 32, -25), (6, 4.5, 9)),
    )
)
NUCLEI: tuple[Layer, ...] = (
    *_pair(Tissue.GREY, Ellipsoid((10, 9, 5), (7.5, 14, 8.5), 14), 0.95),
    *_pair(Tissue.GREY, Ellipsoid((14, -23, 11), (6, 10, 9), -8)),
    *_pair(Tissue.GREY, Tube(((15, -16, 18), (17, 6, 25), (22, 22, 20)), (3.5, 2.5, 1.8))),
    *_pair(Tissue.GREY, Ellipsoid((26, -4, 3), (5, 17, 10.5), -12), 1.06),
    *_pair(Tissue.STEM, Ellipsoid((19.5, -1, 1), (3.6, 9, 7), -12)),
    *_pair(Tissue.GREY, Tube(((24, -14, -19), (29, -2, -21), (27, 20, -12)), (6, 4, 2.5))),
)
STEM: tuple[Layer, ...] = (
    (Tissue.STEM, Tube(((0, 14, -2), (0, 18, -14), (0, 16, -24), (0, 25, -40), (0, 31, -62), (0, 36, -190)),
                       (9, 12, 14, 9, 6, 5))),
    (Tissue.STEM, Ellipsoid((0, 14, -25), (15, 11, 13))),
    *_pair(Tissue.WHITE, Tube(((8, 16, -25), (24, 38, -30)), (8, 9))),
)  # fmt: skip
CEREBELLUM = Ellipsoid((25, 51, -29), (33, 32, 30), -14)
VERMIS = Ellipsoid((0, 52, -25), (17, 27, 27))
CORE = Ellipsoid((0, 4, 8), (38, 54, 30))
