"""Prediction and Grad-CAM of a batch of network inputs in one call, as the predictor makes them."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from melanoma.explain.grad_cam import Explained, explain_feature_maps
from melanoma.imaging.tta import tta_features
from melanoma.training.networks import features


def explain_batch(
    model: nn.Module, images: Tensor, *, class_indices: Sequence[int], tta: int = 1
) -> Explained:
    with torch.no_grad():
        feature_maps = tta_features(partial(features, model), images, tta)
        return explain_feature_maps(model, feature_maps, class_indices=class_indices)
