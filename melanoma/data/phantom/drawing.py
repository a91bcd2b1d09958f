"""Draws one synthetic dermoscopic image and its true lesion mask.

Nothing here models biology. It draws the signs that dermatologists look for (asymmetry, border,
colours, veil, network), so that methods can be tested against a known truth. The strengths of the
signs of melanoma overlap between the classes.

Knows nothing of data sets, files or splits.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from melanoma.arrays import Uint8Array
from melanoma.data.phantom.camera import (
    HEIGHT_PX,
    WIDTH_PX,
    X_PX,
    Y_PX,
    Camera,
    Field,
    add_artefacts,
    blend,
    noise,
    photograph,
)

_SKINS = np.array(
    [[236, 196, 180], [224, 178, 152], [214, 164, 140], [196, 146, 116]], dtype=np.float32
)
_BROWNS = np.array([[168, 118, 84], [142, 92, 62], [112, 70, 48], [86, 52, 38]], dtype=np.float32)
_MELANOMA_COLOURS = np.array(
    [[46, 32, 30], [150, 70, 60], [108, 114, 136], [206, 180, 170], [84, 48, 34]], dtype=np.float32
)


@dataclasses.dataclass(frozen=True)
class Lesion:
    """What stays the same in every image of one lesion.

    Attributes:
        dx: class name.
        strength: how strongly signs of melanoma show, in [0, 1].
        skin: position on the scale of skin colours, in [0, 1].
        seed: of the generator that draws everything else.
    """

    dx: str
    strength: float
    skin: float
    seed: int


@dataclasses.dataclass(frozen=True)
class _Coordinates:
    """Where each pixel lies on the lesion; all fields are ``(H, W)``.

    Attributes:
        u: distance from the centre along one axis of the lesion, in radii.
        v: the same along the other axis, in radii.
        radius_px: the lesion's radius, px.
        distance: distance from the centre. `_outline` gives it in units of the border; before
            that it is in radii.
    """

    u: Field
    v: Field
    radius_px: float
    distance: Field


def draw(lesion: Lesion, camera: Camera, view: int) -> tuple[Uint8Array, NDArray[np.bool_]]:
    """Draw one view of a lesion.

    Args:
        lesion: what stays the same in every view.
        camera: the source that takes the image.
        view: number of the view, from 0. It seeds all that differs between two views.

    Returns:
        The image, ``(150, 200, 3)`` uint8, and the true lesion mask, ``(150, 200)`` bool.
    """
    shape_rng = np.random.default_rng([lesion.seed, 0])
    view_rng = np.random.default_rng([lesion.seed, 1, view])
    at = _lesion_coordinates(shape_rng, view_rng)
    cover, distance = _outline(lesion, at, shape_rng)
    at = dataclasses.replace(at, distance=distance)
    pixels = _skin(lesion, view_rng)
    inside = _inside(lesion, at, shape_rng)
    pixels = pixels * (1 - cover[..., None]) + inside * cover[..., None]
    pixels = add_artefacts(pixels, view_rng)
    return photograph(pixels, camera, view_rng), cover > 0.5


def _lesion_noise(
    at: _Coordinates, rng: np.random.Generator, frequency: float, terms: int = 5
) -> Field:
    """Return smooth noise ``(H, W)`` with deviation near 1 that moves with the lesion.

    `noise` of the camera is fixed to the frame instead.
    """
    angles, phases = rng.uniform(0, 2 * np.pi, (2, terms))
    rates = frequency * rng.uniform(0.6, 1.5, terms)
    total = np.zeros_like(at.u)
    for angle, phase, rate in zip(angles.tolist(), phases.tolist(), rates.tolist(), strict=True):
        total += np.cos((rate * math.cos(angle)) * at.u + (rate * math.sin(angle)) * at.v + phase)
    # A cosine of random phase has variance 1/2, so the sum of all has terms / 2.
    return total * math.sqrt(2 / terms)


def _lesion_coordinates(
    shape_rng: np.random.Generator, view_rng: np.random.Generator
) -> _Coordinates:
    scale = shape_rng.uniform(27, 48) * view_rng.uniform(0.88, 1.14)
    angle = view_rng.uniform(0, 2 * np.pi)
    x = (X_PX - WIDTH_PX / 2 - view_rng.uniform(-17, 17)) / scale
    y = (Y_PX - HEIGHT_PX / 2 - view_rng.uniform(-11, 11)) / scale
    # Scalars of Python keep float32; those of numpy would turn all fields to float64, whose cosines
    # take several times as long.
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    return _Coordinates(u, v, scale, np.hypot(u, v))


def _sign(lesion: Lesion, rng: np.random.Generator) -> float:
    """Return how plainly one sign shows, in [0, 1].

    Noise is added to the lesion's strength, because no melanoma shows every sign. The curve is
    steep: a sign is mostly present or absent, and a lesion between the classes stays between them.
    """
    return float(1 / (1 + np.exp(-9 * (lesion.strength + rng.normal(0, 0.08) - 0.5))))


def _outline(lesion: Lesion, at: _Coordinates, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw the outline of a lesion.

    Returns:
        How much of each pixel the lesion covers, ``(H, W)`` in [0, 1], and the distance of each
        pixel from the lesion's centre, ``(H, W)`` in units of its border.
    """
    asymmetry, irregularity = _sign(lesion, rng), _sign(lesion, rng)
    u = at.u * rng.uniform(1.0, 1.35)
    theta = np.arctan2(at.v, u)
    border = np.ones_like(u)
    for harmonic in (1, 2, 3):
        border += (
            (0.03 + 0.15 * asymmetry)
            * rng.normal(0, 0.55)
            * np.cos(harmonic * theta + rng.uniform(0, 2 * np.pi))
        )
    for harmonic in range(5, 14):
        border += (
            (0.008 + 0.055 * irregularity)
            * rng.normal(0, 0.6)
            * np.cos(harmonic * theta + rng.uniform(0, 2 * np.pi))
        )
    border = np.maximum(border, 0.35)
    distance = np.hypot(u, at.v) / border
    softness = {
        "nv": 0.09,
        "mel": 0.09,
        "bkl": 0.04,
        "akiec": 0.16,
        "bcc": 0.12,
        "df": 0.2,
        "vasc": 0.05,
    }[lesion.dx]
    # The border is soft over at least two pixels.
    softness = max(softness * rng.uniform(0.6, 1.4), 2.0 / at.radius_px)
    return 1 / (1 + np.exp(np.clip((distance - 1) / (0.4 * softness), -30, 30))), distance


def _skin(lesion: Lesion, rng: np.random.Generator) -> Field:
    place = lesion.skin * (len(_SKINS) - 1)
    low = min(int(place), len(_SKINS) - 2)
    base = _SKINS[low] + (_SKINS[low + 1] - _SKINS[low]) * (place - low)
    texture = 4 * noise(rng, 48) + 2.5 * noise(rng, 9) + 2.5 * noise(rng, 3)
    redness = 2.5 * noise(rng, 30)
    return np.asarray(
        base
        + texture[..., None]
        + redness[..., None] * np.array([0.4, -0.8, -0.6], dtype=np.float32)
    )


def _inside(lesion: Lesion, at: _Coordinates, rng: np.random.Generator) -> Field:
    """Return the colours inside the outline, ``(H, W, 3)``."""
    painter = {"bcc": _bcc, "akiec": _akiec, "bkl": _bkl, "df": _df, "vasc": _vasc}.get(
        lesion.dx, _melanocytic
    )
    pixels = painter(lesion, at, rng)
    shade = 5 * _lesion_noise(at, rng, 7) + 4 * _lesion_noise(at, rng, 19)
    return np.asarray(pixels + shade[..., None])


def _brown(rng: np.random.Generator) -> NDArray[np.floating]:
    place = rng.uniform(0, len(_BROWNS) - 1.001)
    low = int(place)
    return np.asarray(
        _BROWNS[low] + (_BROWNS[low + 1] - _BROWNS[low]) * (place - low) + rng.normal(0, 5, 3)
    )


def _melanocytic(lesion: Lesion, at: _Coordinates, rng: np.random.Generator) -> Field:
    """Paint a nevus or a melanoma; the two differ only in the strength of the signs."""
    base = _brown(rng)
    centre = rng.uniform(-26, 26)  # darker or lighter towards the centre
    pixels = base + (centre * (1 - np.clip(at.distance, 0, 1)))[..., None]
    pixels = _colours(pixels, _sign(lesion, rng), at, rng)
    pixels = _network(pixels, _sign(lesion, rng), at, rng)
    pixels = _globules(pixels, _sign(lesion, rng), at, rng)
    return _veil(pixels, _sign(lesion, rng), at, rng)


def _colours(pixels: Field, sign: float, at: _Coordinates, rng: np.random.Generator) -> Field:
    """Add patches of further colours: more of them, and plainer, if the sign is strong."""
    for colour in rng.permutation(_MELANOMA_COLOURS)[: 1 + round(3 * sign)]:
        patch = 1 / (1 + np.exp(-4 * (_lesion_noise(at, rng, 2.6) - 0.5)))
        pixels = blend(pixels, colour + rng.normal(0, 6, 3), patch * (0.10 + 0.75 * sign**1.5))
    return pixels


def _network(pixels: Field, sign: float, at: _Coordinates, rng: np.random.Generator) -> Field:
    """Add a pigment network: a honeycomb, warped and patchy if the sign is strong."""
    rate = rng.uniform(32, 46)
    warp = 0.02 + 0.11 * sign
    wu, wv = at.u + warp * _lesion_noise(at, rng, 4), at.v + warp * _lesion_noise(at, rng, 4)
    angles = rng.uniform(0, np.pi) + np.array([0, np.pi / 3, 2 * np.pi / 3])
    # Three plane waves at 60 degrees to each other add up to a honeycomb.
    waves = [np.cos(rate * (math.cos(a) * wu + math.sin(a) * wv)) for a in angles.tolist()]
    lattice = (waves[0] + waves[1] + waves[2]) / 3
    lines = np.clip(0.35 - lattice, 0, 1)
    patchy = np.clip(1 + sign * 1.8 * _lesion_noise(at, rng, 3), 0, 2.2)
    depth = rng.uniform(14, 36) * lines * patchy * np.clip(1.35 - 0.5 * at.distance, 0, 1)
    return np.asarray(pixels - depth[..., None] * np.array([1.0, 0.9, 0.75], dtype=np.float32))


def _globules(pixels: Field, sign: float, at: _Coordinates, rng: np.random.Generator) -> Field:
    """Add dots: scattered up to the border and of uneven size if the sign is strong."""
    for _ in range(rng.integers(0, 4) + round(rng.uniform(0, 12) * sign)):
        reach, angle = rng.uniform(0, 0.5 + 0.5 * sign), rng.uniform(0, 2 * np.pi)
        size = rng.uniform(0.025, 0.035 + 0.05 * sign)
        dot = np.exp(
            -(
                ((at.u - reach * math.cos(angle)) ** 2 + (at.v - reach * math.sin(angle)) ** 2)
                / size**2
            )
        )
        pixels = blend(pixels, np.array([52.0, 34, 30]), 0.8 * dot)
    return pixels


def _veil(pixels: Field, sign: float, at: _Coordinates, rng: np.random.Generator) -> Field:
    """Lay a blue-white veil over part of the lesion."""
    centre, size = rng.uniform(-0.45, 0.45, 2).tolist(), rng.uniform(0.3, 0.55)
    shape = np.exp(-((((at.u - centre[0]) ** 2 + (at.v - centre[1]) ** 2) / size**2) ** 2))
    amount = 0.85 * max(0.0, sign - 0.35) / 0.65
    return blend(
        pixels,
        np.array([126.0, 138, 168]) + rng.normal(0, 6, 3),
        amount * shape * (0.8 + 0.2 * _lesion_noise(at, rng, 5)).clip(0, 1),
    )


def _spots(
    at: _Coordinates, rng: np.random.Generator, num: int, size: tuple[float, float]
) -> Field:
    """Return ``num`` soft round spots as a weight in [0, 1]."""
    weight = np.zeros_like(at.u)
    for _ in range(num):
        distance, angle, radius = (
            0.85 * math.sqrt(rng.random()),
            rng.uniform(0, 2 * np.pi),
            rng.uniform(*size),
        )
        u, v = at.u - distance * math.cos(angle), at.v - distance * math.sin(angle)
        spot = np.sqrt(u * u + v * v) / radius
        weight = np.maximum(weight, 1 / (1 + np.exp(np.clip(8 * (spot - 1), -30, 30))))
    return weight


def _bkl(lesion: Lesion, at: _Coordinates, rng: np.random.Generator) -> Field:
    """Paint a benign keratosis: stuck-on, waxy, with pale cysts and dark plugs."""
    pixels = _brown(rng) + np.array([14.0, 8, -4]) + (12 * _lesion_noise(at, rng, 9))[..., None]
    pixels = _colours(pixels, 0.6 * _sign(lesion, rng), at, rng)
    pixels = blend(
        pixels,
        np.array([232.0, 214, 178]),
        0.75 * _spots(at, rng, int(rng.integers(3, 12)), (0.03, 0.07)),
    )
    return blend(
        pixels,
        np.array([58.0, 38, 28]),
        0.7 * _spots(at, rng, int(rng.integers(2, 9)), (0.03, 0.08)),
    )


def _bcc(lesion: Lesion, at: _Coordinates, rng: np.random.Generator) -> Field:
    """Paint a basal cell carcinoma: translucent pink, branching vessels, blue-grey nests."""
    pixels: Field = np.array([214.0, 156, 146]) + rng.normal(0, 8, 3) + np.zeros((*at.u.shape, 1))
    nests = _spots(at, rng, int(rng.integers(2, 7)), (0.08, 0.22))
    pixels = blend(pixels, np.array([96.0, 98, 122]), (0.5 + 0.3 * _sign(lesion, rng)) * nests)
    for _ in range(rng.integers(3, 7)):
        angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(2, 5)
        along, across = (
            math.cos(angle) * at.u + math.sin(angle) * at.v,
            math.cos(angle) * at.v - math.sin(angle) * at.u,
        )
        across = across - rng.uniform(-0.5, 0.5) - 0.1 * np.sin(bend * along + rng.uniform(0, 6))
        pixels = blend(
            pixels,
            np.array([176.0, 48, 52]),
            0.7 * np.exp(-((across / 0.022) ** 2)) * (np.abs(along) < rng.uniform(0.4, 0.9)),
        )
    return pixels


def _akiec(lesion: Lesion, at: _Coordinates, rng: np.random.Generator) -> Field:
    """Paint an actinic keratosis: red between pale follicles, with scale."""
    pixels: Field = (
        np.array([204.0, 132, 116])
        + rng.normal(0, 9, 3)
        + (9 * _lesion_noise(at, rng, 12))[..., None]
    )
    pixels = _colours(pixels, 0.4 * _sign(lesion, rng), at, rng)
    pixels = blend(
        pixels,
        np.array([236.0, 206, 186]),
        0.6 * _spots(at, rng, int(rng.integers(10, 26)), (0.03, 0.06)),
    )
    return blend(pixels, np.array([240.0, 230, 214]), 0.6 * (_lesion_noise(at, rng, 14) > 1.3))


def _df(lesion: Lesion, at: _Coordinates, rng: np.random.Generator) -> Field:
    """Paint a dermatofibroma: a white centre in a delicate pale network."""
    pixels: Field = (
        _BROWNS[0] + np.array([18.0, 16, 14]) + rng.normal(0, 7, 3) + np.zeros((*at.u.shape, 1))
    )
    pixels = _network(pixels, 0.3 * _sign(lesion, rng), at, rng)
    centre = np.exp(-((at.distance / rng.uniform(0.35, 0.55)) ** 4))
    return blend(pixels, np.array([226.0, 200, 186]), (0.85 - 0.3 * _sign(lesion, rng)) * centre)


def _vasc(lesion: Lesion, at: _Coordinates, rng: np.random.Generator) -> Field:
    """Paint a vascular lesion: red to purple lacunae."""
    pixels: Field = np.array([186.0, 110, 108]) + rng.normal(0, 8, 3) + np.zeros((*at.u.shape, 1))
    colour = np.array([146.0, 34, 48]) + rng.uniform(0, 1) * np.array([-50.0, -6, 26])
    return blend(pixels, colour, 0.9 * _spots(at, rng, int(rng.integers(7, 16)), (0.14, 0.3)))
