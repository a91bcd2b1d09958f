"""Files of weights as training scripts leave them."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from melanoma.config import ModelConfig
from melanoma.errors import SettingError
from melanoma.training.networks import build_model
from melanoma.training.weights import load_weights
from tests.tasks import CLASSES

TINY = ModelConfig(backbone="test_convnext", layer_scale=0.5)
State = dict[str, Tensor]


def _official(name: str) -> str:
    """Return a name of timm's ConvNeXt as Meta's release spells it."""
    name = re.sub(r"^stem\.(\d)", r"downsample_layers.0.\1", name)
    name = re.sub(r"^stages\.(\d)\.downsample\.(\d)", r"downsample_layers.\1.\2", name)
    name = re.sub(r"^stages\.(\d)\.blocks\.(\d)\.", r"stages.\1.\2.", name)
    for ours, theirs in (
        ("conv_dw", "dwconv"),
        ("mlp.fc1", "pwconv1"),
        ("mlp.fc2", "pwconv2"),
        ("head.norm", "norm"),
        ("head.fc", "head"),
    ):
        name = name.replace(ours, theirs)
    return name


def _named(state: State, rename: Callable[[str], str]) -> State:
    return {rename(name): value for name, value in state.items()}


WRAPPED: dict[str, Callable[[State], Mapping[str, object]]] = {
    "plain": lambda state: state,
    "DDP": lambda state: {"state_dict": _named(state, "module.{}".format), "epoch": 3},
    "compiled": lambda state: {"model": _named(state, "_orig_mod.{}".format)},
    "Lightning": lambda state: {"state_dict": _named(state, "model.{}".format), "loops": {}},
    "nested wrappers": lambda state: {
        "net": _named(state, "module._orig_mod.model.backbone.{}".format)
    },
    "compiled within": lambda state: _named(
        state, lambda name: name.replace("stages.", "stages._orig_mod.")
    ),
    "an encoder with a projection head": lambda state: {
        **_named(state, "encoder.{}".format),
        **{f"projector.{i}.weight": torch.zeros(2) for i in range(40)},
    },
    "Meta's names": lambda state: {"model": _named(state, _official)},
    "Meta's names in DDP": lambda state: {
        "model_state_dict": _named(state, lambda name: f"module.{_official(name)}")
    },
    "two holders deep": lambda state: {"state": 1, "model": {"state_dict": state}},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_and_other_names_are_taken_off(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    donor = build_model(TINY, len(CLASSES))
    state = {
        name: value for name, value in donor.state_dict().items() if not name.startswith("head.fc")
    }
    state |= {"head.fc.weight": torch.zeros(1000, 64), "head.fc.bias": torch.zeros(1000)}
    torch.save(WRAPPED[kind](state), tmp_path / "w.pth")
    model = build_model(TINY, len(CLASSES))
    report = load_weights(model, tmp_path / "w.pth")
    assert report.missing == ["head.fc.bias", "head.fc.weight"]
    for name, value in model.state_dict().items():
        assert name in report.missing or torch.equal(value, donor.state_dict()[name]), name


def test_another_size_of_the_network_is_named_as_the_cause(tmp_path: Path) -> None:
    torch.save(
        build_model(
            ModelConfig(backbone="convnext_atto", layer_scale=None), len(CLASSES)
        ).state_dict(),
        tmp_path / "atto.pth",
    )
    with pytest.raises(
        SettingError,
        match=r"stem\.0\.weight is \(40, 3, 4, 4\) there and \(24, 3, 4, 4\) here.*another size",
    ):
        load_weights(build_model(TINY, len(CLASSES)), tmp_path / "atto.pth")


def test_foreign_names_are_shown_beside_ours(tmp_path: Path) -> None:
    state = _named(
        build_model(TINY, len(CLASSES)).state_dict(),
        lambda name: name.replace("stages.", "layers_"),
    )
    torch.save(state, tmp_path / "foreign.pth")
    with pytest.raises(
        SettingError,
        match=(r"8 tensors of foreign\.pth match .*The file has layers_.*network has stem\.0"),
    ):
        load_weights(build_model(TINY, len(CLASSES)), tmp_path / "foreign.pth")


def test_a_whole_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(build_model(TINY, len(CLASSES)), tmp_path / "whole.pth")
    with pytest.raises(SettingError, match=r"save model\.state_dict\(\)"):
        load_weights(build_model(TINY, len(CLASSES)), tmp_path / "whole.pth")
