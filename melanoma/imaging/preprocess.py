"""Preprocessing: from a stored image to the network's input, for training, evaluation and server.

This is the only definition of it. Knows nothing of networks or data sets.
"""

import dataclasses

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from melanoma.arrays import Uint8Array
from melanoma.config import DataConfig
from melanoma.imaging.letterbox import letterbox
from melanoma.io.typed import Strict


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

    def __call__(self, images: Tensor, *, in_planes: bool = False) -> Tensor:
        """Resize and normalise ``(N, H, W, 3)`` uint8 images.

        Args:
            images: the images.
            in_planes: whether to keep each colour of an image together in memory, as ONNX Runtime
                takes it, and not the colours of each pixel. The values are the same.

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
            resize(
                to_float(images, in_planes=in_planes),
                (self.data.input_height, self.data.input_width),
            )
        )

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise ``(N, 3, H, W)`` images in [0, 1]."""
        mean = torch.tensor(self.data.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.data.std, device=images.device).view(1, 3, 1, 1)
        return (images - mean).div_(std)


def to_float(images: Tensor, *, in_planes: bool = False) -> Tensor:
    """Turn ``(N, H, W, 3)`` uint8 into ``(N, 3, H, W)`` float32 in [0, 1]."""
    planes = images.permute(0, 3, 1, 2)
    return (planes.contiguous() if in_planes else planes).float() / 255


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images to (h, w), antialiased.

    Args:
        images: ``(N, C, H, W)``, float, or uint8 on a CPU; returned as they are if they fit.
        size: (h, w) of the result, px.
    """
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
