import pytest

from melanoma.config import TrainConfig
from melanoma.presets import smoke
from tune.space import SearchSpace, plain, to_config

BASE = smoke()


def test_a_sample_changes_the_loss_and_nothing_else() -> None:
    config = to_config({"gamma": 2.5, "tau": 0.75, "target_factor": 3.0}, BASE)
    assert (config.loss.gamma, config.loss.tau, config.loss.target_factor) == (2.5, 0.75, 3.0)
    assert config.with_overrides(["loss.gamma=0", "loss.tau=0.5", "loss.target_factor=1"]) == BASE


def test_below_one_gamma_is_zero() -> None:
    assert to_config({"gamma": 0.99, "tau": 0.5, "target_factor": 1.0}, BASE).loss.gamma == 0


def test_every_corner_of_the_space_is_a_valid_setting() -> None:
    space = SearchSpace(lr=True, drop_path=True)
    drawn = space.distributions(BASE)
    for end in ("low", "high"):
        to_config({name: getattr(distribution, end) for name, distribution in drawn.items()}, BASE)


@pytest.mark.parametrize("config", [BASE, plain(BASE)])
def test_a_setting_is_found_again_by_its_sample(config: TrainConfig) -> None:
    space = SearchSpace(lr=True, drop_path=True)
    assert to_config(space.sample_of(config), BASE) == config
