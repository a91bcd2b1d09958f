"""Preprocessing: from a decoded image to the network's input, for shards, evaluation and server.

`letterbox` fits an image into the stored frame with its aspect ratio kept. `Preprocess` turns a
batch of stored images into network input. This is the only definition of both. Knows nothing of
networks or data sets.
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from melanoma.arrays import Uint8Array
from melanoma.config import DataConfig
from melanoma.io.typed import Strict

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
    framed = Image.new("RGB", (width, height), PADDING_RGB)
    framed.paste(
        image.resize(size, Image.Resampling.BILINEAR), letterbox_box(image.size, shape)[:2]
    )
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


@dataclasses.dataclass(frozen=True)
class Preprocess(Strict):
    """Turns stored images into network input.

    Attributes:
        stored_shape: (H, W) of the stored image, px.
        data: input size, mean and deviation.
    """

    stored_shape: tuple[int, int]
    data: DataConfig

    def stored(self, image: Image.Image) -> Uint8Array:
        """Return the ``(H, W, 3)`` uint8 image that prepare would store and `__call__` takes."""
        return letterbox(image, self.stored_shape)

    def __call__(self, images: Tensor) -> Tensor:
        """Resize and normalise ``(N, H, W, 3)`` uint8 images.

        Returns:
            Network input, ``(N, 3, h, w)`` float32.

        Raises:
            ValueError: if the images do not have the stored shape.
        """
        if tuple(images.shape[1:]) != (*self.stored_shape, 3):
            raise ValueError(
                f"images must be (N, {self.stored_shape[0]}, {self.stored_shape[1]}, 3); they are"
                f" {tuple(images.shape)}."
            )
        return self.normalise(
            resize(to_float(images), (self.data.input_height, self.data.input_width))
        )

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise ``(N, 3, H, W)`` images in [0, 1]."""
        mean = torch.tensor(self.data.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.data.std, device=images.device).view(1, 3, 1, 1)
        return (images - mean) / std


def to_float(images: Tensor) -> Tensor:
    """Turn ``(N, H, W, 3)`` uint8 into ``(N, 3, H, W)`` float32 in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(N, 3, H, W)`` images to (h, w), antialiased."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
