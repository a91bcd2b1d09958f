"""The search space: its distributions, and the TrainConfig that a sample stands for.

Knows nothing of trials, or of how samples are drawn.
"""

import dataclasses
from collections.abc import Mapping

from optuna.distributions import BaseDistribution, FloatDistribution

from melanoma.config import TrainConfig

GAMMA, TAU, FACTOR, LR, DROP_PATH = "gamma", "tau", "target_factor", "lr", "drop_path"
DRAWN_GAMMA = "gamma_drawn"
MAX_DROP_PATH = 0.3
METRIC, LEAD = "objective", "lead"
"""A trial's objective over its folds so far, and its lead over the base setting on those folds."""
Sample = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The settings that a search may change.

    Gamma is drawn from [0, 5], and every draw in [0, 1) means 0, because the loss has no gamma
    between 0 and 1. A fifth of all draws is therefore cross-entropy. It lies on the same axis as
    focal loss, next to the smallest gamma, rather than in a category of its own.

    Attributes:
        lr: whether to search the learning rate too, within a factor of 3 of the base.
        drop_path: whether to search the drop path rate too, from 0 to 0.3 or to the rate of the
            base if that is higher.
    """

    lr: bool = False
    drop_path: bool = False

    def distributions(self, base: TrainConfig) -> dict[str, BaseDistribution]:
        """Return the distribution of each setting, by name."""
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
    """Return the base with the settings of a sample."""
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
    """Return the base with plain cross-entropy: no focusing and no class weights."""
    return dataclasses.replace(
        base, loss=dataclasses.replace(base.loss, gamma=0.0, tau=0.0, target_factor=1.0)
    )
