"""Mirrored and turned copies of a picture, averaged at prediction time: a lesion has no up or down."""

import torch
from torch import Tensor, nn

from melanoma.config import NUM_VIEWS
from melanoma.networks import features, head


def turn(images: Tensor, view: int) -> Tensor:
    """Return view 0..7 of ``(..., H, W)``: bit 0 mirrors left-right, bit 1 top-bottom, bit 2 swaps height and width."""
    dims = [dim for bit, dim in ((1, -1), (2, -2)) if view & bit]
    images = images.flip(dims) if dims else images
    return images.transpose(-1, -2) if view & 4 else images


def turn_back(maps: Tensor, view: int) -> Tensor:
    """Undo `turn` on ``(..., h, w)`` maps."""
    maps = maps.transpose(-1, -2) if view & 4 else maps
    dims = [dim for bit, dim in ((1, -1), (2, -2)) if view & bit]
    return maps.flip(dims) if dims else maps


def view_features(model: nn.Module, images: Tensor, views: int) -> list[Tensor]:
    """Return the feature map ``(N, K, h, w)`` of each of the first views of ``(N, 3, H, W)`` images."""
    if views not in NUM_VIEWS:
        raise ValueError(f"views must be one of {NUM_VIEWS}, got {views}.")
    turned = (turn(images, view).contiguous(memory_format=torch.channels_last) for view in range(views))
    return [features(model, images) for images in turned]


def predict_views(model: nn.Module, images: Tensor, views: int) -> Tensor:
    """Return logits ``(N, C)`` averaged over views."""
    return torch.stack([head(model, feature_map) for feature_map in view_features(model, images, views)]).mean(dim=0)
