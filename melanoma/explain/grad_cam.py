"""Exact Grad-CAM through the head alone: no hooks, no state, no backward pass through the backbone.

Grad-CAM (Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization, 2017) weights the last feature map by the mean gradient of a logit. That gradient
needs only the head, which is a pooling, a norm and a linear layer. The feature map itself comes
from the prediction.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melanoma.arrays import Uint8Array
from melanoma.imaging.tta import flip
from melanoma.training.networks import head


@dataclasses.dataclass(frozen=True)
class Explained:
    """Logits and heatmaps of one batch.

    Attributes:
        logits: ``(N, C)`` float32, averaged over tta.
        heatmaps: ``(N, h, w)`` float32, at least 0, in units of the logit's gradient. They are not
            scaled, so they are comparable between images.
    """

    logits: Tensor
    heatmaps: Tensor


def grad_cam_map(
    model: nn.Module, feature_map: Tensor, class_indices: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the logits ``(N, C)`` and the Grad-CAM maps ``(N, h, w)`` of some classes.

    Args:
        model: the network.
        feature_map: ``(N, K, h, w)``. It may come from `torch.no_grad`, but not from
            `torch.inference_mode`, whose tensors autograd does not accept.
        class_indices: the classes to explain; the map is that of the sum of their logits.
    """
    with torch.enable_grad():
        leaf = feature_map.detach().requires_grad_()
        logits = head(model, leaf)
        # One sum over the batch is enough: the images do not interact in the head, so each gets its
        # own gradient.
        (gradient,) = torch.autograd.grad(logits[:, list(class_indices)].sum(), leaf)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return logits.detach(), F.relu((weights * feature_map).sum(dim=1))


def explain_feature_maps(
    model: nn.Module, feature_maps: Sequence[Tensor], *, class_indices: Sequence[int]
) -> Explained:
    """Predict and explain from the feature maps of mirrored copies.

    Args:
        model: the network.
        feature_maps: one ``(N, K, h, w)`` for each copy, in the order of `tta_features`.
        class_indices: the classes to explain.

    Returns:
        The logits and the heatmaps, averaged over the copies; each heatmap is mirrored back first.
    """
    logits, heatmaps = zip(
        *(grad_cam_map(model, feature_map.float(), class_indices) for feature_map in feature_maps),
        strict=True,
    )
    upright = [flip(heatmap, copy) for copy, heatmap in enumerate(heatmaps)]
    return Explained(torch.stack(list(logits)).mean(dim=0), torch.stack(upright).mean(dim=0))


@dataclasses.dataclass(frozen=True)
class Heatmap:
    """One heatmap, scaled for display.

    Attributes:
        peak: the largest value of the map, in units of the logit's gradient; 0 if it is empty.
        values: ``(H, W)`` uint8, the upscaled map divided by its peak; all 0 if it is empty.
    """

    peak: float
    values: Uint8Array


def render_heatmap(heatmap: Tensor, size: tuple[int, int]) -> Heatmap:
    """Upscale one ``(h, w)`` map to a size (H, W), px, and divide it by its peak."""
    peak = float(heatmap.max())
    if not peak > 0:
        return Heatmap(0.0, torch.zeros(size, dtype=torch.uint8).numpy())
    large = F.interpolate(
        heatmap[None, None] / peak, size=size, mode="bilinear", align_corners=False
    )[0, 0]
    return Heatmap(peak, (large.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
