"""Mirrored copies of a picture, averaged at prediction time: a lesion has no up or down.

Copies on their side are left out: on the last, small feature map of a 4:3 picture a ConvNeXt's 7 x 7 kernels never learn the
offsets that a 3:4 picture asks for, and such views are far worse than the upright ones.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from melanoma.config import NUM_VIEWS
from melanoma.networks import features, head

MAX_PASS = 8  # images: a CPU gains nothing from more at once, and a GPU gets as many by its batch

FeatureExtractor = Callable[[Tensor], Tensor]
"""From ``(N, 3, H, W)`` images to their last feature map ``(N, K, h, w)``."""


def mirror(images: Tensor, view: int) -> Tensor:
    """Return view 0..3 of ``(..., H, W)``: bit 0 mirrors left-right, bit 1 top-bottom; the same call undoes it."""
    dims = [dim for bit, dim in ((1, -1), (2, -2)) if view & bit]
    return images.flip(dims) if dims else images


def view_features(extract: FeatureExtractor, images: Tensor, views: int) -> list[Tensor]:
    """Return the feature map ``(N, K, h, w)`` of each of the first views of ``(N, 3, H, W)`` images.

    Views of few images share a pass.
    """
    if views not in NUM_VIEWS:
        raise ValueError(f"views must be one of {NUM_VIEWS}, got {views}.")
    mirrored = [mirror(images, view) for view in range(views)]
    at_once = max(1, MAX_PASS // max(1, len(images)))
    passes = [mirrored[start : start + at_once] for start in range(0, views, at_once)]
    return [
        feature_map
        for part in passes
        for feature_map in extract(torch.cat(part).contiguous(memory_format=torch.channels_last)).chunk(len(part))
    ]


def predict_views(model: nn.Module, images: Tensor, views: int, *, extract: FeatureExtractor | None = None) -> Tensor:
    """Return logits ``(N, C)`` averaged over views; something else than the network itself may give the feature maps."""
    return views_logits(model, view_features(extract or partial(features, model), images, views))


def views_logits(model: nn.Module, feature_maps: Sequence[Tensor]) -> Tensor:
    """Return logits ``(N, C)`` averaged over the feature maps of some views."""
    return torch.stack([head(model, feature_map) for feature_map in feature_maps]).mean(dim=0)
