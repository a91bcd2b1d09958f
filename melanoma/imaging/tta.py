"""Test-time augmentation: mirrored copies of an image, averaged, because a lesion has no up or down.

Rotated copies are left out. On the small last feature map of a 4:3 image, a ConvNeXt's 7 x 7
kernels never learn the offsets that a 3:4 image needs, so rotated copies score far worse than
mirrored ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from melanoma.config import TTA_COPIES

MAX_PASS = 8  # images: a CPU gains nothing from more at once, and a GPU gets as many by its batch

FeatureExtractor = Callable[[Tensor], Tensor]
"""From ``(N, 3, H, W)`` images to their last feature map ``(N, K, h, w)``."""


def flip(images: Tensor, copy: int) -> Tensor:
    """Return copy 0..3 of ``(..., H, W)``: bit 0 mirrors left-right, bit 1 top-bottom. The same call undoes it."""
    dims = [dim for bit, dim in ((1, -1), (2, -2)) if copy & bit]
    return images.flip(dims) if dims else images


def tta_features(extract: FeatureExtractor, images: Tensor, tta: int) -> list[Tensor]:
    """Return the feature map ``(N, K, h, w)`` of each mirrored copy of ``(N, 3, H, W)`` images.

    Copies of few images share a pass through the network.
    """
    if tta not in TTA_COPIES:
        raise ValueError(f"tta must be one of {TTA_COPIES}, got {tta}.")
    mirrored = [flip(images, copy) for copy in range(tta)]
    at_once = max(1, MAX_PASS // max(1, len(images)))
    passes = [mirrored[start : start + at_once] for start in range(0, tta, at_once)]
    return [
        feature_map
        for part in passes
        for feature_map in extract(
            torch.cat(part).contiguous(memory_format=torch.channels_last)
        ).chunk(len(part))
    ]
