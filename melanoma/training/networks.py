"""timm backbones behind one seam: features and head. Knows nothing of data, losses or loops."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from melanoma.config import ModelConfig, OptimConfig
from melanoma.errors import SettingError
from melanoma.imaging.tta import FeatureExtractor, tta_features
from melanoma.io.storage import to_path
from melanoma.training.stochastic_depth import install_stochastic_depth
from melanoma.training.weights import load_weights


def build_model(config: ModelConfig, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """Build a timm network with one output a class.

    Args:
        config: backbone, drop path and layer scale.
        num_classes: outputs.
        pretrained: fetch timm's published weights; needs its hub.

    Raises:
        SettingError: if timm has no such network, it takes images of one size only, or it does not
            take these settings.
        OSError: if the hub cannot be reached.
    """
    if not timm.is_model(config.backbone):
        near = timm.list_models(f"*{config.backbone.split('.')[0][:8]}*")[:3]
        hint = f"; near are {', '.join(near)}" if near else ""
        raise SettingError(
            f"model.backbone must be a timm model name, got {config.backbone!r}{hint}."
        )
    _check_any_size(config.backbone)
    options: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    if config.layer_scale is not None:
        options["ls_init_value"] = config.layer_scale
    try:
        model = timm.create_model(
            config.backbone, pretrained=pretrained, num_classes=num_classes, **options
        )
    except TypeError as error:
        names = {
            "ls_init_value": ("model.layer_scale", "null"),
            "drop_path_rate": ("model.drop_path", "0"),
        }
        unknown = next((names[option] for option in options if option in str(error)), None)
        if unknown is None:
            raise
        check_feature_map(
            timm.create_model(config.backbone, num_classes=num_classes)
        )  # the graver fault is told first
        raise SettingError(
            f"{unknown[0]} must be {unknown[1]} for model.backbone {config.backbone}, which does"
            f" not take it; pass --set {'='.join(unknown)}."
        ) from error
    install_stochastic_depth(model)
    return model


def _check_any_size(backbone: str) -> None:
    """Raise SettingError for a network that takes images of one size only, as most transformers do."""
    published = timm.get_pretrained_cfg(backbone)
    if published is not None and published.fixed_input_size:
        height, width = published.input_size[1:]
        raise SettingError(
            "model.backbone must be a convolutional network, which takes images of any size;"
            f" {backbone} takes {width} x {height} px only. Choose another, such as convnext_tiny."
        )


def start_model(
    config: ModelConfig, num_classes: int, *, weights: str, seed: int, device: torch.device
) -> nn.Module:
    """Return the network a run starts from, on its device and laid out for it; the same on every rank.

    Args:
        config: what to build.
        num_classes: outputs.
        weights: none (drawn from the seed), imagenet, a path or an address.
        seed: of whatever is drawn.
        device: where it goes.
    """
    torch.manual_seed(seed)
    model = build_model(config, num_classes, pretrained=weights == "imagenet")
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if weights not in ("none", "imagenet"):
        load_weights(model, to_path(weights))
    return model


def check_feature_map(model: nn.Module) -> None:
    """Raise SettingError unless the network gives, for images of any size, a map ``(N, K, h, w)``, which Grad-CAM needs."""
    model.eval()
    remedy = "choose a convolutional network, such as convnext_tiny"
    try:
        with torch.no_grad():
            shape = tuple(features(model, torch.zeros(1, 3, 96, 128)).shape)
    except (
        AssertionError,
        RuntimeError,
        ValueError,
    ) as error:  # each network says in its own way that a size does not suit it
        raise SettingError(
            f"model.backbone must take images of any size, {type(model).__name__} does not take 128"
            f" x 96 px ({error}); {remedy}."
        ) from error
    if len(shape) != 4 or shape[1] != getattr(model, "num_features", shape[1]):
        raise SettingError(
            "model.backbone must give a feature map (N, channels, height, width),"
            f" {type(model).__name__} gives {shape}; {remedy}."
        )


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the last feature map ``(N, K, h, w)`` of ``(N, 3, H, W)`` images."""
    return cast(Tensor, cast(Any, model).forward_features(images))


def head(model: nn.Module, feature_map: Tensor) -> Tensor:
    """Return the logits ``(N, C)`` of a feature map ``(N, K, h, w)``."""
    return cast(Tensor, cast(Any, model).forward_head(feature_map))


def tta_logits(
    model: nn.Module, images: Tensor, tta: int, *, extract: FeatureExtractor | None = None
) -> Tensor:
    """Return logits ``(N, C)`` averaged over mirrored copies; ``extract`` may stand in for all but the head."""
    return average_logits(model, tta_features(extract or partial(features, model), images, tta))


def average_logits(model: nn.Module, feature_maps: Sequence[Tensor]) -> Tensor:
    """Return logits ``(N, C)`` averaged over the feature maps of the mirrored copies."""
    return torch.stack([head(model, feature_map) for feature_map in feature_maps]).mean(dim=0)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: no decay on norms and biases, lower rates away from the head."""
    if config.layer_decay < 1:
        groups = param_groups_layer_decay(
            model, weight_decay=config.weight_decay, layer_decay=config.layer_decay
        )
    else:
        groups = param_groups_weight_decay(model, weight_decay=config.weight_decay)
    return [{**group, "lr_scale": group.get("lr_scale", 1.0)} for group in groups]


def freeze(model: nn.Module, num_layers: int) -> None:
    """Keep the layers nearest the image out of the training, counted as timm counts them for its layer decay.

    Raises:
        SettingError: if timm does not count this network's layers, or no layer but the head would
            be left.
    """
    if num_layers == 0:
        return
    if not hasattr(model, "group_matcher"):
        raise SettingError(
            f"optim.frozen_layers must be 0 for {type(model).__name__}, whose layers timm does not"
            " count."
        )
    layer_of = group_parameters(model, cast(Any, model).group_matcher(coarse=False), reverse=True)
    last = max(layer_of.values())
    if num_layers >= last:
        raise SettingError(
            f"optim.frozen_layers must be less than {last} for this network, got {num_layers}."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layer_of[name] >= num_layers)


def train_mode(model: nn.Module) -> None:
    """Set training mode, but for frozen parts: their batch statistics stay and their stochastic depth is off."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()
