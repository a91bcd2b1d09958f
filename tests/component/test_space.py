import numpy as np
import pytest

from melanoma.config import TrainConfig
from melanoma.errors import SettingError
from melanoma.presets import smoke
from tune.space import SearchSpace, plain, to_config

BASE = smoke()
SPACE = SearchSpace.around(BASE, also=("lr", "drop_path"))


def test_a_sample_changes_the_loss_and_nothing_else() -> None:
    config = to_config({"gamma": 2.5, "tau": 0.75, "target_factor": 3.0}, BASE)
    assert (config.loss.gamma, config.loss.tau, config.loss.target_factor) == (2.5, 0.75, 3.0)
    assert config.with_overrides(["loss.gamma=0", "loss.tau=0.5", "loss.target_factor=1"]) == BASE


def test_below_one_gamma_is_zero() -> None:
    gamma = SPACE.ranges["gamma"]
    assert [gamma.value_at(place) for place in (0.0, 0.19, 0.2, 1.0)] == [0.0, 0.0, 1.0, 5.0]


def test_every_random_sample_is_a_valid_setting_that_is_found_again() -> None:
    samples = SPACE.draw(np.random.default_rng(0), 200)
    for sample in samples:
        config = to_config(sample, BASE)
        assert SPACE.sample_of(config) == sample
    places = np.array([SPACE.places_of(sample) for sample in samples])
    assert places.min() >= 0
    assert places.max() <= 1
    # A fifth of the gammas is 0; the other settings are uniform over their ranges.
    assert np.mean(places[:, 0] == 0) == pytest.approx(0.2, abs=0.08)
    assert places[:, 1:].mean(axis=0) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("place", [0.0, 1.0])
def test_every_corner_of_the_space_is_a_valid_setting(place: float) -> None:
    to_config({name: range_.value_at(place) for name, range_ in SPACE.ranges.items()}, BASE)


@pytest.mark.parametrize("config", [BASE, plain(BASE)])
def test_a_setting_is_found_again_by_its_sample(config: TrainConfig) -> None:
    assert to_config(SPACE.sample_of(config), BASE) == config


def test_a_frozen_backbone_has_no_learning_rate_to_search() -> None:
    frozen = smoke().with_overrides(["optim.head_only=true"])
    assert "lr" not in SearchSpace.around(frozen).ranges
    with pytest.raises(SettingError, match="--also lr must be left out"):
        SearchSpace.around(frozen, also=["lr"])
