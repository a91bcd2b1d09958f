"""Is the gain real? The winner against the base setting: more seeds on the same folds, and one comparison on test."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import ray

from melanoma.config import CLASSES, TrainConfig
from melanoma.evidence.out_of_fold import Difference, FoldScores, Objective, choose_fold_scores, paired_difference
from tune.trial import Study, fold_predictions, fold_scores

NUM_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting, trained with several seeds on all folds.

    Attributes:
        by_seed: the objective of each seed over all folds.
        by_fold: the objective of each fold, averaged over seeds: the spread between patients.
        runs: by seed, the scores of each fold.
    """

    by_seed: list[float]
    by_fold: list[float]
    runs: Sequence[Sequence[FoldScores]]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the report."""
        return {"by_seed": self.by_seed, "by_fold": self.by_fold}


def train_all_folds(study: Study, configs: Sequence[TrainConfig]) -> list[list[FoldScores]]:
    """Return the scores of every fold of each setting; what is not kept yet is trained, several at a time.

    Raises:
        FloatingPointError: if a setting's loss does not stay finite.
    """
    # A fold of several workers only waits for them.
    num_cpus, num_gpus = (0.0, 0) if study.num_workers > 1 else (study.num_cpus, int(study.use_gpu))
    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=2)(_keep_fold)
    ray.get([task.remote(study, config, fold) for config in configs for fold in range(study.num_folds)])
    return [[fold_scores(study, config, fold) for fold in range(study.num_folds)] for config in configs]


def _keep_fold(study: Study, config: TrainConfig, fold: int) -> None:
    fold_predictions(study, config, fold)


def repeat(study: Study, config: TrainConfig, objective: Objective, *, num_seeds: int = NUM_SEEDS) -> Arm:
    """Train a setting with several seeds on the same folds; the search's own seed comes first and is there already."""
    runs = train_all_folds(study, [dataclasses.replace(config, seed=config.seed + more) for more in range(num_seeds)])
    by_fold = np.mean([[objective.score([fold]) for fold in run] for run in runs], axis=0)
    return Arm([objective.score(run) for run in runs], by_fold.tolist(), runs)


def compare_arms(objective: Objective, winner: Arm, base: Arm) -> Difference:
    """Return the paired difference of two arms over the same folds and seeds."""
    return paired_difference(objective, winner.runs, base.runs)


def compare_predictions(objective: Objective, winner: pd.DataFrame, base: pd.DataFrame) -> Difference:
    """Return the paired difference of two bundles on the same pictures; tables as in predictions.parquet."""
    return paired_difference(objective, [[_scores(winner)]], [[_scores(base)]])


def _scores(table: pd.DataFrame) -> FoldScores:
    ordered = table.sort_values("image_id")
    probabilities = ordered[[f"probability_{name}" for name in CLASSES]].to_numpy()
    return choose_fold_scores(ordered["label"].to_numpy(), probabilities, ordered["group"].to_numpy(dtype=str))


def verdict(difference: Difference) -> str:
    """Say in words what a comparison on test shows."""
    if not difference.shown:
        return "No difference shown"
    return "The winner is better" if difference.low > 0 else "The winner is worse"
