"""Light, colour and sharpness of an image as numbers, without any network.

They tell a skin photograph taken through a dermatoscope from other pictures, and a usable one from
a blurred or badly exposed one. Knows nothing of what is usual.
"""

import numpy as np
from PIL import Image

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.imaging.letterbox import PADDING_RGB

WIDTH, HEIGHT = 64, 48
SCALES, NUM_DESCRIPTORS = 3, 21
DARK, BRIGHT = 0.1, 0.95
_TINY = 1e-5


def descriptors(stored: Uint8Array) -> FloatArray:
    """Return the descriptors of a stored image.

    They are taken at 64 x 48 px, so that the resolution of the camera matters little.

    Args:
        stored: ``(H, W, 3)`` uint8; its padding is left out.

    Returns:
        ``(K,)`` float64: mean and standard deviation of each colour; the energy of a Laplacian at
        three scales (log); three quantiles of the brightness; mean and standard deviation of the
        saturation and of red minus blue; shares of dark and of bright pixels; the variances along
        the principal colours (log).
    """
    small = Image.fromarray(without_padding(stored)).resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    # One plane for each colour: numpy is several times as fast along long rows as along rows of 3.
    planes = np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1), dtype=np.float64) / 255
    red, green, blue = planes
    grey = (red + green + blue) / 3
    saturation = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    warmth = red - blue
    flat = planes.reshape(3, -1)
    means = flat.mean(axis=1)
    offsets = flat - means[:, None]
    covariance = offsets @ offsets.T / (offsets.shape[1] - 1)
    variances = np.linalg.eigvalsh(covariance)
    return np.array(
        [
            *means,
            *np.sqrt((offsets * offsets).mean(axis=1)),
            *_sharpness(grey),
            *np.quantile(grey, [0.05, 0.5, 0.95]),
            *(saturation.mean(), saturation.std()),
            *(warmth.mean(), warmth.std()),
            *((grey < DARK).mean(), (grey > BRIGHT).mean()),
            *np.log(np.maximum(variances, 0.0) + _TINY),
        ]
    )


def _sharpness(grey: FloatArray) -> list[float]:
    """Return the log variance of the Laplacian at full, half and quarter size."""
    found = []
    for _ in range(SCALES):
        laplacian = (
            4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2]
        ) - grey[1:-1, 2:]
        found.append(float(np.log(laplacian.var() + _TINY / 100)))
        height, width = grey.shape
        grey = grey.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    return found


def without_padding(stored: Uint8Array) -> Uint8Array:
    """Return the part of a stored image inside the padding of the letterbox."""
    red, green, blue = PADDING_RGB
    edges = (stored[0], stored[-1], stored[:, 0], stored[:, -1])
    if all((edge != PADDING_RGB).any() for edge in edges):
        return stored  # Its box is the whole; most images fill the frame.
    content = (stored[..., 0] != red) | (stored[..., 1] != green) | (stored[..., 2] != blue)
    rows, columns = np.flatnonzero(content.any(axis=1)), np.flatnonzero(content.any(axis=0))
    if not len(rows):
        return stored
    return stored[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
