"""What is searched: a sample -> a TrainConfig, a pure function. Knows nothing of trials or how samples are drawn."""

import dataclasses
from collections.abc import Mapping

from optuna.distributions import BaseDistribution, FloatDistribution

from melanoma.config import TrainConfig

GAMMA, TAU, FACTOR, LR, DROP_PATH = "gamma", "tau", "target_factor", "lr", "drop_path"
DRAWN_GAMMA = "gamma_drawn"
MAX_DROP_PATH = 0.3
METRIC, LEAD = "objective", "lead"
"""A trial's objective over its folds so far, and by how much it leads the base setting on the same folds."""
Sample = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The settings that a search may change.

    Gamma lives on one axis from 0 to 5, on which all of [0, 1) means 0: the loss has no gamma
    between, and so a fifth of all draws try cross-entropy, next to the gentlest focal loss and not
    in a category of its own.

    Attributes:
        lr: also search the learning rate, a factor of 3 to either side of the base.
        drop_path: also search the drop path rate, from 0 to 0.3, or to the base's where that is
            higher.
    """

    lr: bool = False
    drop_path: bool = False

    def distributions(self, base: TrainConfig) -> dict[str, BaseDistribution]:
        """Return where each setting is drawn from."""
        drawn: dict[str, BaseDistribution] = {
            GAMMA: FloatDistribution(0.0, 5.0),
            TAU: FloatDistribution(0.0, 1.0),
            FACTOR: FloatDistribution(1.0, 8.0, log=True),
        }
        if self.lr:
            drawn[LR] = FloatDistribution(base.optim.lr / 3, base.optim.lr * 3, log=True)
        if self.drop_path:
            drawn[DROP_PATH] = FloatDistribution(0.0, max(MAX_DROP_PATH, base.model.drop_path))
        return drawn

    def sample_of(self, config: TrainConfig) -> dict[str, float]:
        """Return the sample that stands for a configuration."""
        sample = {GAMMA: config.loss.gamma, TAU: config.loss.tau, FACTOR: config.loss.target_factor}
        if self.lr:
            sample[LR] = config.optim.lr
        if self.drop_path:
            sample[DROP_PATH] = config.model.drop_path
        return sample


def to_config(sample: Sample, base: TrainConfig) -> TrainConfig:
    """Return the base with a sample's settings in place of its own."""
    gamma = sample[GAMMA]
    loss = dataclasses.replace(
        base.loss, gamma=0.0 if gamma < 1 else gamma, tau=sample[TAU], target_factor=sample[FACTOR]
    )
    return dataclasses.replace(
        base,
        loss=loss,
        optim=dataclasses.replace(base.optim, lr=sample.get(LR, base.optim.lr)),
        model=dataclasses.replace(
            base.model, drop_path=sample.get(DROP_PATH, base.model.drop_path)
        ),
    )


def plain(base: TrainConfig) -> TrainConfig:
    """Return the base with plain cross-entropy: no focusing, no class weights. It is always evaluated."""
    return dataclasses.replace(
        base, loss=dataclasses.replace(base.loss, gamma=0.0, tau=0.0, target_factor=1.0)
    )
