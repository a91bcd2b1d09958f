import dataclasses
import json

import pytest

from melanoma.config import DataConfig, LossConfig, TrainConfig
from melanoma.errors import SettingError
from melanoma.presets import PRESETS, preset


def test_unknown_settings_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        SettingError, match=r"loss\.gama is not a setting\. Did you mean loss\.gamma"
    ):
        TrainConfig().with_overrides(["loss.gama=2"])


@pytest.mark.parametrize("gamma", [0.5, -1, 6, 0.999])
def test_gamma_outside_its_range_is_refused(gamma: float) -> None:
    with pytest.raises(SettingError, match=r"loss\.gamma must be 0 or in \[1, 5\]"):
        LossConfig(gamma=gamma)


def test_images_may_not_be_squashed() -> None:
    with pytest.raises(SettingError, match="4:3"):
        DataConfig(input_height=224, input_width=224)


@pytest.mark.parametrize(
    "override",
    [
        "optim.epochs=0",
        "optim.lr=true",
        "optim.progressive_resizing=[[0.9,0.5],[0.2,0.5]]",
        "model=1",
        "seed=-1",
    ],
)
def test_values_that_break_their_rule_are_refused(override: str) -> None:
    with pytest.raises(SettingError, match="must be"):
        TrainConfig().with_overrides([override])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_the_way_to_a_worker(name: str) -> None:
    config = preset(name)
    assert TrainConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_overrides_change_what_they_name_and_nothing_else() -> None:
    config = TrainConfig().with_overrides(["loss.gamma=2", "model.layer_scale=0.1"])
    assert (config.loss.gamma, config.model.layer_scale) == (2.0, 0.1)
    assert (
        dataclasses.replace(config, loss=LossConfig(), model=TrainConfig().model) == TrainConfig()
    )
