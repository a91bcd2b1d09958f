"""Several networks of one architecture that predict as one. Knows nothing of folds or bundles."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from melanoma.config import ModelConfig
from melanoma.training.networks import build_model


class Ensemble(nn.Module):
    """Networks whose logits are averaged, behind timm's interface of features and head.

    Its feature map is those of the networks side by side, and its head averages their heads. All
    that works on features and head (mirrored copies, Grad-CAM, export, drift) thus takes an
    ensemble as it takes a network: Grad-CAM of the averaged logits is the average of the maps.

    Args:
        networks: K networks of one architecture.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.num_classes: int = cast(Any, networks[0]).num_classes

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the feature maps ``(N, K * F, h, w)`` of ``(N, 3, H, W)`` images."""
        return torch.cat(
            [cast(Any, network).forward_features(images) for network in self.networks], dim=1
        )

    def forward_head(self, feature_map: Tensor) -> Tensor:
        """Return the logits ``(N, C)`` of feature maps ``(N, K * F, h, w)``."""
        parts = feature_map.tensor_split(len(self.networks), dim=1)
        logits = [
            cast(Any, network).forward_head(part)
            for network, part in zip(self.networks, parts, strict=True)
        ]
        return torch.stack(logits).mean(dim=0)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, C)`` of ``(N, 3, H, W)`` images."""
        return self.forward_head(self.forward_features(images))


def build_networks(config: ModelConfig, num_classes: int, *, num: int) -> nn.Module:
    """Build one network, or an ensemble of several with random weights.

    Args:
        config: the architecture of each.
        num_classes: number of outputs.
        num: number of networks, at least 1.

    Raises:
        SettingError: if timm has no such network.
    """
    networks = [build_model(config, num_classes) for _ in range(num)]
    return networks[0] if num == 1 else Ensemble(networks)


def networks_of(model: nn.Module) -> list[nn.Module]:
    """Return the networks of an ensemble, or a network alone."""
    return list(model.networks) if isinstance(model, Ensemble) else [model]
