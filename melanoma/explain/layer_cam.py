"""LayerCAM from an earlier stage: a map twice as fine as Grad-CAM's.

Each value of a feature map is weighted by its own positive gradient (Jiang et al., LayerCAM:
Exploring Hierarchical Class Activation Maps for Localization, 2021). That works in earlier stages
too, where one weight for each channel, as in Grad-CAM, mixes regions.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from melanoma.arrays import FloatArray, Uint8Array
from melanoma.errors import SettingError
from melanoma.explain.subject import Subject
from melanoma.imaging.tta import flip
from melanoma.training.ensemble import networks_of
from melanoma.training.networks import head


class LayerCamExplainer:
    """Computes LayerCAM of the targets at half the stride of the last feature map.

    It keeps no state between calls and installs no hooks, so threads may share it.

    Raises:
        SettingError: if the network does not return the feature map of an earlier stage.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._networks = networks_of(subject.model.to(subject.device))
        self._stage = earlier_stage(self._networks[0])

    def explain(self, images: Sequence[Uint8Array], heatmaps: Sequence[FloatArray]) -> FloatArray:
        """Return the LayerCAM of stored images, averaged over copies and networks, ``(N, h, w)``.

        Args:
            images: N stored images, ``(H, W, 3)`` uint8 each.
            heatmaps: not used.
        """
        subject = self._subject
        inputs = subject.preprocess(torch.from_numpy(np.stack(images)).to(subject.device))
        copies = [
            flip(layer_cam_map(network, flip(inputs, copy), self._stage, subject.targets), copy)
            for copy in range(subject.tta)
            for network in self._networks
        ]
        maps: FloatArray = torch.stack(copies).mean(dim=0).cpu().numpy()
        return maps


def earlier_stage(model: nn.Module) -> int:
    """Return the index of the last stage whose stride is below that of the last feature map.

    Raises:
        SettingError: if the network has none, or does not return its feature map.
    """
    strides = [int(stage["reduction"]) for stage in getattr(model, "feature_info", [])]
    earlier = [index for index, stride in enumerate(strides) if stride < strides[-1]]
    if not earlier or not hasattr(model, "forward_intermediates"):
        raise SettingError(
            f"layer_cam needs the feature map of an earlier stage; {type(model).__name__} does not"
            " return one. Ask for grad_cam."
        )
    return earlier[-1]


def layer_cam_map(
    model: nn.Module, images: Tensor, stage: int, class_indices: Sequence[int]
) -> Tensor:
    """Return the LayerCAM ``(N, h, w)`` of the sum of some classes' logits, at least 0.

    Args:
        model: the network in eval mode.
        images: ``(N, 3, H, W)``, normalised.
        stage: index of the stage whose feature map is weighted.
        class_indices: the classes to explain.
    """
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        last, (feature_map,) = cast(Any, model).forward_intermediates(leaf, indices=[stage])
        logits = head(model, last)
        (gradient,) = torch.autograd.grad(logits[:, list(class_indices)].sum(), feature_map)
    return F.relu((F.relu(gradient) * feature_map.detach()).sum(dim=1))
