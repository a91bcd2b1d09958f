import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from melanoma.config import ModelConfig, OptimConfig
from melanoma.errors import SettingError
from melanoma.training.networks import (
    build_model,
    check_feature_map,
    features,
    freeze,
    head,
    parameter_groups,
)
from melanoma.training.weights import load_weights
from tests.tasks import CLASSES

TINY = ModelConfig(backbone="test_convnext")


def test_features_and_head_make_the_whole() -> None:
    model = build_model(TINY, len(CLASSES)).eval()
    images = torch.randn(2, 3, 72, 96)
    with torch.no_grad():
        assert torch.equal(head(model, features(model, images)), model(images))


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(SettingError, match="timm model name"):
        build_model(ModelConfig(backbone="convnext_gigantic"), len(CLASSES))


def test_layers_far_from_the_head_learn_more_slowly() -> None:
    model = build_model(TINY, len(CLASSES))
    groups = parameter_groups(model, OptimConfig(layer_decay=0.5))
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    assert scale[id(model.head.fc.weight)] == 1  # type: ignore[union-attr]
    assert scale[id(model.stem[0].weight)] < 0.3  # type: ignore[index,union-attr]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_load_as_far_as_they_match(suffix: str, tmp_path: Path) -> None:
    donor, path = build_model(TINY, len(CLASSES)), tmp_path / f"weights{suffix}"
    state = {**donor.state_dict(), "head.fc.weight": torch.zeros(1000, 64), "extra": torch.zeros(3)}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    model = build_model(TINY, len(CLASSES))
    report = load_weights(model, path)
    assert report.missing == ["head.fc.weight"]
    assert report.unused == ["extra", "head.fc.weight"]
    assert torch.equal(model.stem[0].weight, donor.stem[0].weight)  # type: ignore[index,union-attr]
    assert f"{len(report.matched)} tensors matched" in str(report)


def test_counters_of_batches_are_not_called_missing(tmp_path: Path) -> None:
    config = ModelConfig("tf_efficientnet_lite0", layer_scale=None)
    state = build_model(config, 1000).state_dict()
    weights = {name: value for name, value in state.items() if "num_batches_tracked" not in name}
    save_file(weights, tmp_path / "weights.safetensors")
    report = load_weights(build_model(config, 7), tmp_path / "weights.safetensors")
    assert report.missing == ["classifier.bias", "classifier.weight"]


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"w": Bomb()}))
    with pytest.raises(SettingError, match="tensors-only"):
        load_weights(build_model(TINY, len(CLASSES)), tmp_path / "weights.pth")
    assert not marker.exists()


def test_half_a_file_of_weights_is_refused(tmp_path: Path) -> None:
    save_file(build_model(TINY, len(CLASSES)).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:5000])
    with pytest.raises(SettingError, match="whole safetensors file"):
        load_weights(build_model(TINY, len(CLASSES)), tmp_path / "w.safetensors")


def test_layers_are_frozen_only_where_timm_counts_them() -> None:
    model = torch.nn.Linear(2, 2)
    freeze(model, 0)
    with pytest.raises(SettingError, match="must be 0 for Linear"):
        freeze(model, 1)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"nothing.like.it": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(SettingError, match="no tensor of"):
        load_weights(build_model(TINY, len(CLASSES)), tmp_path / "w.safetensors")


@pytest.mark.parametrize("layer_scale", [None, 1e-6])
@pytest.mark.parametrize(
    "backbone",
    [
        "test_vit",
        "vit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "naflexvit_base_patch16_gap",
    ],
)
def test_networks_without_a_feature_map_of_any_size_are_refused(
    backbone: str, layer_scale: float | None
) -> None:
    with pytest.raises(SettingError, match=r"(Choose|must be) a convolutional network"):
        check_feature_map(
            build_model(ModelConfig(backbone=backbone, layer_scale=layer_scale), len(CLASSES))
        )


def test_convolutional_networks_are_taken() -> None:
    check_feature_map(build_model(TINY, len(CLASSES)))
    check_feature_map(build_model(ModelConfig(backbone="resnet18", layer_scale=None), len(CLASSES)))


def test_a_setting_that_a_network_does_not_take_is_named() -> None:
    with pytest.raises(
        SettingError, match=r"model\.layer_scale must be null for model\.backbone resnet18"
    ):
        build_model(ModelConfig(backbone="resnet18", layer_scale=1e-6), len(CLASSES))
    with pytest.raises(SettingError, match=r"model\.drop_path must be 0 for model\.backbone vgg11"):
        build_model(ModelConfig(backbone="vgg11", layer_scale=None, drop_path=0.1), len(CLASSES))
