"""The search space: the range of each setting, and the TrainConfig that a sample stands for.

Knows nothing of trials, or of how samples are chosen.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping

import numpy as np

from melanoma.arrays import FloatArray
from melanoma.config import TrainConfig
from melanoma.errors import SettingError

GAMMA, TAU, FACTOR, LR, DROP_PATH = "gamma", "tau", "target_factor", "lr", "drop_path"
MAX_DROP_PATH = 0.3
Sample = Mapping[str, float]
"""The value of each searched setting, by name."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a setting may take.

    Attributes:
        low: the smallest.
        high: the largest.
        log: whether ratios count rather than differences.
        least: whatever is smaller means ``low``.
    """

    low: float
    high: float
    log: bool = False
    least: float = 0.0

    def place_of(self, value: float) -> float:
        """Return the place of a value in the range, in [0, 1]."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def value_at(self, place: float) -> float:
        """Return the value at a place in [0, 1]."""
        if self.log:
            return float(self.low * (self.high / self.low) ** place)
        value = self.low + place * (self.high - self.low)
        return value if value >= self.least else self.low


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The settings that a search may change.

    Gamma has one axis from 0 to 5, on which every value below 1 means 0, because the loss has no
    gamma between 0 and 1. A fifth of all random samples is therefore cross-entropy. It lies on the
    same axis as focal loss, next to the smallest gamma, rather than in a category of its own.

    Attributes:
        ranges: the range of each setting, by name.
    """

    ranges: Mapping[str, Range]

    @staticmethod
    def around(base: TrainConfig, *, also: Collection[str] = ()) -> "SearchSpace":
        """Return the space of a search that starts from some settings.

        Args:
            base: the settings that are not searched.
            also: lr, drop_path or both. The learning rate is searched within a factor of 3 of the
                base; the drop path rate from 0 to 0.3, or to the rate of the base if that is
                higher.

        Raises:
            SettingError: if the backbone is frozen and more than the loss is to be searched.
        """
        if base.optim.head_only and also:
            raise SettingError(
                f"--also {' '.join(sorted(also))} must be left out with optim.head_only: the head"
                " of a frozen backbone has neither a learning rate nor drop paths."
            )
        ranges = {
            GAMMA: Range(0.0, 5.0, least=1.0),
            TAU: Range(0.0, 1.0),
            FACTOR: Range(1.0, 8.0, log=True),
        }
        if LR in also:
            ranges[LR] = Range(base.optim.lr / 3, base.optim.lr * 3, log=True)
        if DROP_PATH in also:
            ranges[DROP_PATH] = Range(0.0, max(MAX_DROP_PATH, base.model.drop_path))
        return SearchSpace(ranges)

    def places_of(self, sample: Sample) -> FloatArray:
        """Return where a sample lies in the unit cube, ``(D,)``."""
        return np.array([range_.place_of(sample[name]) for name, range_ in self.ranges.items()])

    def draw(self, rng: np.random.Generator, num: int) -> list[Sample]:
        """Return random samples, uniform in the unit cube."""
        return [
            {
                name: range_.value_at(float(place))
                for (name, range_), place in zip(self.ranges.items(), places, strict=True)
            }
            for places in rng.random((num, len(self.ranges)))
        ]

    def sample_of(self, config: TrainConfig) -> Sample:
        """Return the sample that stands for a configuration."""
        values = {
            GAMMA: config.loss.gamma,
            TAU: config.loss.tau,
            FACTOR: config.loss.target_factor,
            LR: config.optim.lr,
            DROP_PATH: config.model.drop_path,
        }
        return {name: values[name] for name in self.ranges}


def to_config(sample: Sample, base: TrainConfig) -> TrainConfig:
    """Return the base with the settings of a sample."""
    return dataclasses.replace(
        base,
        loss=dataclasses.replace(
            base.loss, gamma=sample[GAMMA], tau=sample[TAU], target_factor=sample[FACTOR]
        ),
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
