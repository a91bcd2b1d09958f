"""timm backbones behind one seam: features and head. Knows nothing of data, losses or loops."""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from melanoma.config import CLASSES, ModelConfig, OptimConfig
from melanoma.errors import SettingError
from melanoma.stochastic_depth import install_stochastic_depth
from melanoma.storage import Place, place


def build_model(config: ModelConfig, *, pretrained: bool = False) -> nn.Module:
    """Build a timm network with one output a class.

    Args:
        config: backbone, drop path and layer scale.
        pretrained: fetch timm's published weights; needs its hub.

    Raises:
        SettingError: if timm has no such network, or it does not take these settings.
        OSError: if the hub cannot be reached.
    """
    if not timm.is_model(config.backbone):
        near = timm.list_models(f"*{config.backbone.split('.')[0][:8]}*")[:3]
        hint = f"; near are {', '.join(near)}" if near else ""
        raise SettingError(f"model.backbone must be a timm model name, got {config.backbone!r}{hint}.")
    options: dict[str, Any] = {"drop_path_rate": config.drop_path}
    if config.layer_scale is not None:
        options["ls_init_value"] = config.layer_scale
    try:
        model = timm.create_model(config.backbone, pretrained=pretrained, num_classes=len(CLASSES), **options)
    except TypeError as error:
        raise SettingError(f"model.backbone {config.backbone} must take the settings of model.*; {error}.") from error
    install_stochastic_depth(model)
    return model


def start_model(config: ModelConfig, *, weights: str, seed: int, device: torch.device) -> nn.Module:
    """Return the network a run starts from, on its device and laid out for it; the same on every rank.

    Args:
        config: what to build.
        weights: none (drawn from the seed), imagenet, a path or an address.
        seed: of whatever is drawn.
        device: where it goes.
    """
    torch.manual_seed(seed)
    model = build_model(config, pretrained=weights == "imagenet")
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if weights not in ("none", "imagenet"):
        load_weights(model, place(weights))
    return model


def check_feature_map(model: nn.Module) -> None:
    """Raise SettingError unless the network's features are a map ``(N, K, h, w)``, which Grad-CAM needs."""
    model.eval()
    with torch.no_grad():
        shape = tuple(features(model, torch.zeros(1, 3, 96, 128)).shape)
    if len(shape) != 4 or shape[1] != getattr(model, "num_features", shape[1]):
        raise SettingError(
            f"model.backbone must give a feature map (N, channels, height, width), it gives {shape}; choose a convolutional network."
        )


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the last feature map ``(N, K, h, w)`` of ``(N, 3, H, W)`` images."""
    return cast(Tensor, cast(Any, model).forward_features(images))


def head(model: nn.Module, feature_map: Tensor) -> Tensor:
    """Return the logits ``(N, C)`` of a feature map ``(N, K, h, w)``."""
    return cast(Tensor, cast(Any, model).forward_head(feature_map))


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: no decay on norms and biases, lower rates away from the head."""
    if config.layer_decay < 1:
        groups = param_groups_layer_decay(model, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    else:
        groups = param_groups_weight_decay(model, weight_decay=config.weight_decay)
    return [{**group, "lr_scale": group.get("lr_scale", 1.0)} for group in groups]


def freeze(model: nn.Module, num_layers: int) -> None:
    """Keep the layers nearest the picture out of the training, counted as timm counts them for its layer decay.

    Raises:
        SettingError: if timm does not count this network's layers, or no layer but the head would be left.
    """
    if num_layers == 0:
        return
    if not hasattr(model, "group_matcher"):
        raise SettingError(
            f"optim.frozen_layers must be 0 for {type(model).__name__}, whose layers timm does not count."
        )
    layer_of = group_parameters(model, cast(Any, model).group_matcher(coarse=False), reverse=True)
    last = max(layer_of.values())
    if num_layers >= last:
        raise SettingError(f"optim.frozen_layers must be less than {last} for this network, got {num_layers}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layer_of[name] >= num_layers)


def train_mode(model: nn.Module) -> None:
    """Set training mode, but for frozen parts: their batch statistics stay and their stochastic depth is off."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


@dataclasses.dataclass(frozen=True)
class WeightsReport:
    """What of a file of weights fitted the network: names of tensors."""

    matched: list[str]
    missing: list[str]
    unused: list[str]

    def __str__(self) -> str:
        shown = (
            f"; not in the file: {', '.join(self.missing[:4])}{' ...' if len(self.missing) > 4 else ''}"
            if self.missing
            else ""
        )
        return f"{len(self.matched)} tensors matched, {len(self.missing)} kept their start values, {len(self.unused)} were not used{shown}"


def load_weights(model: nn.Module, path: Place) -> WeightsReport:
    """Load a local state dict (.safetensors, or a tensors-only torch file) as far as names and shapes match.

    Raises:
        SettingError: if the file is missing, holds anything but tensors, or nothing matches.
    """
    if not path.is_file():
        raise SettingError(f"--weights must be none, imagenet or a file, {path} is not a file.")
    given = read_state_dict(path)
    own = model.state_dict()
    matched = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    if not matched:
        raise SettingError(
            f"--weights must fit {type(model).__name__}, no tensor of {path.name} has a name and shape of it."
        )
    model.load_state_dict(matched, strict=False)
    return WeightsReport(sorted(matched), sorted(set(own) - set(matched)), sorted(set(given) - set(matched)))


def read_state_dict(path: Place) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file or of a torch file, which may hold nothing else.

    Raises:
        SettingError: if it holds anything but tensors.
    """
    if path.suffix == ".safetensors":
        try:
            return load_tensors(path.read_bytes())
        except SafetensorError as error:
            raise SettingError(f"--weights must be a whole safetensors file, {path.name} is not ({error}).") from error
    try:
        loaded = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no common base for damaged and for unsafe files
        raise SettingError(
            f"--weights must be safetensors or a tensors-only torch file, {path.name} is not."
        ) from error
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in ("state_dict", "model") if isinstance(loaded.get(key), Mapping)), loaded)
    tensors = (
        {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
        if isinstance(loaded, Mapping)
        else {}
    )
    if not tensors:
        raise SettingError(f"--weights must hold named tensors, {path.name} holds none.")
    return tensors
