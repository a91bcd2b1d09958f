"""Test-time augmentation: averages mirrored copies of an image.

A lesion has no up or down, so a mirrored copy is as good as the image. Rotated copies are not: on
the small last feature map of a 4:3 image, a ConvNeXt's 7 x 7 kernels never learn the offsets that a
3:4 image needs, so rotated copies score far worse.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from melanoma.config import TTA_COPIES

MAX_PASS = 32
"""Mirrored copies in one call of the network: enough to share them out among the threads of a CPU.
A GPU gets as many through its batch."""

FeatureExtractor = Callable[[Tensor], Tensor]
"""From ``(N, 3, H, W)`` images to their last feature map ``(N, K, h, w)``."""


def flip(images: Tensor, copy: int) -> Tensor:
    """Return a mirrored copy of images ``(..., H, W)``.

    Args:
        images: the images, or feature maps of them.
        copy: 0 to 3; bit 0 mirrors left and right, bit 1 top and bottom. The same call undoes it.
    """
    dims = [dim for bit, dim in ((1, -1), (2, -2)) if copy & bit]
    return images.flip(dims) if dims else images


def tta_features(extract: FeatureExtractor, images: Tensor, tta: int) -> list[Tensor]:
    """Return the feature map ``(N, K, h, w)`` of each mirrored copy of some images.

    If there are few images, several copies share a pass through the network.

    Args:
        extract: the network up to its last feature map.
        images: ``(N, 3, H, W)`` network input.
        tta: number of copies, 1, 2 or 4.

    Raises:
        ValueError: if tta is another number.
    """
    if tta not in TTA_COPIES:
        raise ValueError(f"tta must be one of {TTA_COPIES}; it is {tta}.")
    mirrored = [flip(images, copy) for copy in range(tta)]
    at_once = max(1, MAX_PASS // max(1, len(images)))
    passes = [mirrored[start : start + at_once] for start in range(0, tta, at_once)]
    return [
        feature_map for part in passes for feature_map in extract(torch.cat(part)).chunk(len(part))
    ]
