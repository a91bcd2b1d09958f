"""The units that an objective compares, and the difference between two sets of their predictions.

Knows nothing of networks or searches.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from melanoma.arrays import FloatArray
from melanoma.evidence.metrics import Predicted
from melanoma.evidence.objective import FoldScores, Objective
from melanoma.evidence.operating_point import choose_units


def choose_fold_scores(
    units: Predicted, groups: NDArray[np.str_], sources: NDArray[np.str_], *, seed: int = 0
) -> FoldScores:
    """Return the scores of one random target image and one other image of each group.

    Args:
        units: the predictions of one fold.
        groups: ``(N,)``, the group of each image.
        sources: ``(N,)``, the source of each image.
        seed: seed of the draw.
    """
    targets, others = choose_units(
        units.is_target, np.unique(groups, return_inverse=True)[1], seed=seed
    )
    chosen = np.concatenate([targets, others])
    return FoldScores(
        units.is_target[chosen], units.scores[chosen], groups[chosen], sources[chosen]
    )


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much better one setting is than another on the same units.

    Attributes:
        value: mean over seeds of the paired difference.
        low: lower end of its 95 % interval over groups.
        high: upper end of that interval.
        by_seed: the difference of each seed.
    """

    value: float
    low: float
    high: float
    by_seed: list[float]

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def paired_difference(
    objective: Objective,
    ours: Sequence[Sequence[FoldScores]],
    theirs: Sequence[Sequence[FoldScores]],
    *,
    num_draws: int = 1000,
    seed: int = 0,
) -> Difference:
    """Return the difference between two settings over the same seeds and folds.

    The percentile interval draws groups within each fold, the same groups for both settings, and
    seeds: a setting is more than the networks that some seeds made of it.

    Args:
        objective: the number to compare.
        ours: for each seed, the folds of one setting.
        theirs: for each seed, the same folds with the same units for the other setting.
        num_draws: number of bootstrap draws.
        seed: seed of the draws.

    Raises:
        ValueError: if the two sides do not have the same units.
    """
    for mine, other in zip(
        [fold for run in ours for fold in run],
        [fold for run in theirs for fold in run],
        strict=True,
    ):
        if not (
            np.array_equal(mine.groups, other.groups)
            and np.array_equal(mine.is_target, other.is_target)
        ):
            raise ValueError(
                "A paired difference needs the same units on both sides; these differ. Use the same"
                " folds."
            )
    rng = np.random.default_rng(seed)
    members = [np.unique(fold.groups, return_inverse=True)[1] for fold in ours[0]]

    def mean_difference(weights: Sequence[FloatArray]) -> float:
        drawn = np.bincount(rng.integers(0, len(ours), len(ours)), minlength=len(ours))
        pairs = zip(ours, theirs, drawn, strict=True)
        differences = [
            times * (objective.score_weighted(a, weights) - objective.score_weighted(b, weights))
            for a, b, times in pairs
            if times
        ]
        return float(np.sum(differences) / len(ours))

    drawn = []
    for _ in range(num_draws):
        counts = [
            np.bincount(rng.integers(0, m.max() + 1, m.max() + 1), minlength=m.max() + 1)[m]
            for m in members
        ]
        drawn.append(mean_difference([count.astype(np.float64) for count in counts]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    by_seed = [objective.score(a) - objective.score(b) for a, b in zip(ours, theirs, strict=True)]
    return Difference(float(np.mean(by_seed)), float(low), float(high), by_seed)
