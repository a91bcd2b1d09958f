"""The camera's share of a synthetic image: hair, ruler, ink, gel, light, focus and sensor noise.

Knows nothing of lesions.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from melanoma.arrays import Uint8Array

HEIGHT_PX, WIDTH_PX = 150, 200
Field = NDArray[np.floating]

Y_PX, X_PX = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Camera:
    """What one source does to its images.

    Attributes:
        tint: gain of each colour channel.
        vignette: how dark the corners get, in [0, 1].
    """

    tint: tuple[float, float, float]
    vignette: float


def noise(rng: np.random.Generator, cell_px: float) -> Field:
    """Return smooth noise ``(H, W)`` with mean 0 and deviation near 1.

    Args:
        rng: the source of randomness.
        cell_px: the distance over which the noise varies, px.
    """
    shape = (int(HEIGHT_PX / cell_px) + 4, int(WIDTH_PX / cell_px) + 4)
    coarse = Image.fromarray(rng.standard_normal(shape).astype(np.float32))
    # Interpolation lowers the deviation; 1.4 brings it back near 1.
    return np.asarray(coarse.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)) * 1.4


def blend(pixels: Field, colour: NDArray[np.floating], weight: Field) -> Field:
    """Return pixels ``(H, W, 3)`` blended with a colour by a weight ``(H, W)`` in [0, 1]."""
    pixels = pixels.astype(np.float32, copy=False)
    blended = colour.astype(np.float32) - pixels
    blended *= weight.astype(np.float32)[..., None]
    blended += pixels
    return blended


def add_artefacts(pixels: Field, rng: np.random.Generator) -> Field:
    """Add artefacts of real images that say nothing of the lesion: hair, ruler, ink, bubbles."""
    if rng.random() < 0.45:
        for _ in range(rng.integers(1, 14)):
            pixels = blend(
                pixels, np.array([44.0, 34, 30]) + rng.normal(0, 8, 3), 0.85 * _hair(rng)
            )
    if rng.random() < 0.12:
        pixels = blend(pixels, np.array([40.0, 40, 44]), 0.85 * _ruler(rng))
    if rng.random() < 0.10:
        edge = (X_PX, WIDTH_PX - X_PX, Y_PX, HEIGHT_PX - Y_PX)[rng.integers(4)]
        stroke = np.exp(-(((edge - rng.uniform(6, 24)) / rng.uniform(4, 9)) ** 4)) * (
            noise(rng, 40) > -0.3
        )
        pixels = blend(pixels, np.array([92.0, 70, 150]), 0.7 * gaussian_filter(stroke, 1.2))
    if rng.random() < 0.25:
        for _ in range(rng.integers(1, 8)):
            away = np.hypot(X_PX - rng.uniform(0, WIDTH_PX), Y_PX - rng.uniform(0, HEIGHT_PX))
            radius = rng.uniform(3, 9)
            pixels = blend(
                pixels, np.array([246.0, 244, 240]), 0.6 * np.exp(-(((away - radius) / 1.1) ** 2))
            )
    return pixels


def _hair(rng: np.random.Generator) -> Field:
    angle, bend = rng.uniform(0, np.pi), rng.normal(0, 0.002)
    x, y = X_PX - rng.uniform(0, WIDTH_PX), Y_PX - rng.uniform(0, HEIGHT_PX)
    cos, sin = math.cos(angle), math.sin(angle)
    along, across = cos * x + sin * y, cos * y - sin * x
    width, length = rng.uniform(0.45, 0.95), rng.uniform(30, 130)
    return np.asarray(
        np.exp(-(((across - bend * along**2) / width) ** 2)) * (np.abs(along) < length)
    )


def _ruler(rng: np.random.Generator) -> Field:
    pitch, base = rng.uniform(7, 11), rng.uniform(4, 10)
    top = Y_PX if rng.random() < 0.5 else HEIGHT_PX - Y_PX
    index = np.round(X_PX / pitch)
    length = np.where(index % 5 == 0, 15, 9)
    ticks = (np.abs(X_PX - index * pitch) < 0.7) & (top > base) & (top < base + length)
    return np.asarray(ticks.astype(np.float64))


def photograph(pixels: Field, camera: Camera, rng: np.random.Generator) -> Uint8Array:
    """Apply light, tint, vignette, focus and sensor noise."""
    corner = np.hypot((X_PX - WIDTH_PX / 2) / WIDTH_PX, (Y_PX - HEIGHT_PX / 2) / HEIGHT_PX)
    light = rng.uniform(0.9, 1.08) * (1 - camera.vignette * np.clip(2.2 * (corner - 0.38), 0, 1))
    pixels = pixels.astype(np.float32) * np.array(camera.tint, np.float32) * light[..., None]
    pixels = gaussian_filter(pixels, (rng.uniform(0.2, 0.9),) * 2 + (0,))
    grain = 2.2 * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)
