"""timm networks behind one interface, features and head. Knows nothing of data or losses."""

import os
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
from melanoma.training.embedded import EmbeddingHead
from melanoma.training.stochastic_depth import install_stochastic_depth
from melanoma.training.weights import load_weights

# MKL reads this at its first product. Without it, two processes that trained the same run on an AMD
# processor ended with other weights.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def build_model(config: ModelConfig, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """Build a timm network with one output for each class.

    Args:
        config: backbone, drop path and layer scale.
        num_classes: number of outputs.
        pretrained: whether to fetch timm's published weights from its hub.

    Raises:
        SettingError: if timm has no such network, if it takes images of one size only, or if it
            does not take these settings.
        OSError: if the hub cannot be reached.
    """
    if config.embedding_size:
        return EmbeddingHead(config.embedding_size, num_classes)
    if not timm.is_model(config.backbone):
        near = timm.list_models(f"*{config.backbone.split('.')[0][:8]}*")[:3]
        hint = f"Similar names are {', '.join(near)}." if near else "See timm.list_models()."
        raise SettingError(
            f"model.backbone must be a timm model name; it is {config.backbone!r}. {hint}"
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
        # A network without a feature map is the more serious fault, so it is reported first.
        check_feature_map(timm.create_model(config.backbone, num_classes=num_classes))
        raise SettingError(
            f"{unknown[0]} must be {unknown[1]} for model.backbone {config.backbone}, which does"
            f" not have this setting. Pass --set {'='.join(unknown)}."
        ) from error
    install_stochastic_depth(model)
    return model


def _check_any_size(backbone: str) -> None:
    """Check that a network takes images of any size; most transformers do not.

    Raises:
        SettingError: if it takes images of one size only.
    """
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
    """Return the network from which a run starts, the same on every rank.

    Args:
        config: the network to build.
        num_classes: number of outputs.
        weights: none (drawn from the seed), imagenet, or the path or address of a file.
        seed: seed of the random weights.
        device: device on which the network is placed, in channels-last memory format.
    """
    torch.manual_seed(seed)
    model = build_model(config, num_classes, pretrained=weights == "imagenet")
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if weights not in ("none", "imagenet"):
        load_weights(model, to_path(weights))
    return model


def check_feature_map(model: nn.Module) -> None:
    """Check that the network returns a feature map ``(N, K, h, w)``, which Grad-CAM needs.

    Raises:
        SettingError: if it does not, or if it does not take images of 128 x 96 px.
    """
    model.eval()
    remedy = "Choose a convolutional network, such as convnext_tiny"
    try:
        with torch.no_grad():
            shape = tuple(features(model, torch.zeros(1, 3, 96, 128)).shape)
    # Networks have no common error for an image size that they do not take.
    except (AssertionError, RuntimeError, ValueError) as error:
        raise SettingError(
            f"model.backbone must take images of any size; {type(model).__name__} does not take 128"
            f" x 96 px ({error}). {remedy}."
        ) from error
    if len(shape) != 4 or shape[1] != getattr(model, "num_features", shape[1]):
        raise SettingError(
            "model.backbone must return a feature map (N, channels, height, width);"
            f" {type(model).__name__} returns {shape}. {remedy}."
        )


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the last feature map ``(N, K, h, w)`` of ``(N, 3, H, W)`` images."""
    images = images.contiguous(memory_format=torch.channels_last)
    return cast(Tensor, cast(Any, model).forward_features(images))


def head(model: nn.Module, feature_map: Tensor) -> Tensor:
    """Return the logits ``(N, C)`` of a feature map ``(N, K, h, w)``."""
    return cast(Tensor, cast(Any, model).forward_head(feature_map))


def tta_logits(
    model: nn.Module, images: Tensor, tta: int, *, extract: FeatureExtractor | None = None
) -> Tensor:
    """Return logits ``(N, C)`` averaged over mirrored copies of ``(N, 3, H, W)`` images.

    Args:
        model: the network.
        images: ``(N, 3, H, W)``, normalised.
        tta: number of mirrored copies to average.
        extract: computes the feature maps in place of the network; the head stays the network's.
    """
    return average_logits(model, tta_features(extract or partial(features, model), images, tta))


def average_logits(model: nn.Module, feature_maps: Sequence[Tensor]) -> Tensor:
    """Return logits ``(N, C)`` averaged over the feature maps of the mirrored copies."""
    return torch.stack([head(model, feature_map) for feature_map in feature_maps]).mean(dim=0)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups.

    Norms and biases have no weight decay. With layer decay, the learning rate falls with the
    distance from the head.
    """
    if config.layer_decay < 1:
        groups = param_groups_layer_decay(
            model, weight_decay=config.weight_decay, layer_decay=config.layer_decay
        )
    else:
        groups = param_groups_weight_decay(model, weight_decay=config.weight_decay)
    return [{**group, "lr_scale": group.get("lr_scale", 1.0)} for group in groups]


def freeze(model: nn.Module, num_layers: int) -> None:
    """Freeze the layers nearest the image, numbered as timm does for its layer decay.

    Args:
        model: the network, changed in place.
        num_layers: number of layers to freeze, from 0.

    Raises:
        SettingError: if timm does not number the layers of this network, or if only the head would
            be left to train.
    """
    if num_layers == 0:
        return
    if not hasattr(model, "group_matcher"):
        raise SettingError(
            f"optim.frozen_layers must be 0 for {type(model).__name__}, because timm does not"
            f" number its layers; it is {num_layers}. Pass --set optim.frozen_layers=0."
        )
    layer_of = group_parameters(model, cast(Any, model).group_matcher(coarse=False), reverse=True)
    last = max(layer_of.values())
    if num_layers >= last:
        raise SettingError(
            f"optim.frozen_layers must be less than {last} for this network; it is {num_layers}."
            " Lower it."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layer_of[name] >= num_layers)


def train_mode(model: nn.Module) -> None:
    """Set training mode, except for modules whose parameters are all frozen.

    Those stay in evaluation mode: their batch statistics do not change, and their stochastic depth
    is off.
    """
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()
