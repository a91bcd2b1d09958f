"""The letterbox: an image fitted into the stored frame with its aspect ratio kept.

This is the only definition of it, for shards, evaluation and server. Imports no torch: a
worker of `prepare` decodes thousands of images in the time that torch takes to load.
"""

import numpy as np
from PIL import Image

from melanoma.arrays import Uint8Array

# Padding is near the mean of natural images, so that it is close to zero after normalisation and no
# edge attracts the network.
PADDING_RGB = (124, 116, 104)


def letterbox_shape(size: int) -> tuple[int, int]:
    """Return (height, width), px, of a stored image: 4:3, as in dermoscopy, and ``size`` wide."""
    return round(size * 3 / 4), size


def letterbox(image: Image.Image, shape: tuple[int, int]) -> Uint8Array:
    """Fit an image into a letterbox: aspect ratio kept, centred on neutral padding.

    Args:
        image: upright RGB.
        shape: (H, W) of the frame, px.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    height, width = shape
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    fitted = image.resize(size, Image.Resampling.BILINEAR)
    if size == (width, height):
        return np.asarray(fitted)
    framed = Image.new("RGB", (width, height), PADDING_RGB)
    framed.paste(fitted, letterbox_box(image.size, shape)[:2])
    return np.asarray(framed)


def letterbox_box(image_size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the box of an image in a letterbox.

    Args:
        image_size: (width, height) of the image, px.
        shape: (H, W) of the letterbox, px.

    Returns:
        (left, top, right, bottom), px.
    """
    height, width = shape
    scale = min(width / image_size[0], height / image_size[1])
    fitted = max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale))
    left, top = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    return left, top, left + fitted[0], top + fitted[1]
