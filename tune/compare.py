"""Is the gain real? The winner against the base setting: fresh seeds on the same folds, and one comparison on test."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import ray

from melanoma.config import TrainConfig
from melanoma.errors import DataError
from melanoma.evidence.metrics import Predicted
from melanoma.evidence.out_of_fold import (
    Difference,
    FoldScores,
    Objective,
    choose_fold_scores,
    paired_difference,
)
from melanoma.task import Task
from tune.trial import MAX_FAILURES, Study, fold_predictions, fold_scores

NUM_SEEDS = 3
Folds = list[FoldScores]
Counted = Callable[[str, str], contextlib.AbstractContextManager[Callable[[int, int], None]]]
"""(what, unit) -> a block in which progress (done, total) is shown."""


@contextlib.contextmanager
def silently(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show no progress."""
    yield lambda done, total: None


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
    runs: Sequence[Folds]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the report."""
        return {"by_seed": self.by_seed, "by_fold": self.by_fold}


def train_all_folds(
    study: Study, configs: Sequence[TrainConfig], *, what: str = "", counted: Counted = silently
) -> list[Folds | None]:
    """Return the scores of every fold of each setting, None for one whose loss does not stay finite.

    What is not kept yet is trained, each fold once even where settings are the same, as many at a
    time as there are trials at a time; what for, progress says.
    """
    resources = study.resources()
    task = ray.remote(
        num_cpus=resources.get("CPU", 0.0),
        num_gpus=resources.get("GPU", 0.0),
        max_retries=MAX_FAILURES,
    )(_keep_fold)
    wanted = [(config, fold) for config in configs for fold in range(study.num_folds)]
    waiting = list({study.fold_dir(*each): each for each in wanted}.values())
    running: list[Any] = []
    with counted(what, "folds") as on_fold:
        for done in range(len(waiting)):
            while len(running) < study.at_once and done + len(running) < len(waiting):
                running.append(task.remote(study, *waiting[done + len(running)]))
            ready, running = ray.wait(running)
            ray.get(ready)
            on_fold(done + 1, len(waiting))
    return [_kept_folds(study, config) for config in configs]


def _keep_fold(study: Study, config: TrainConfig, fold: int) -> None:
    with contextlib.suppress(
        FloatingPointError
    ):  # kept with the fold, where `_kept_folds` finds it
        fold_predictions(study, config, fold)


def _kept_folds(study: Study, config: TrainConfig) -> Folds | None:
    try:
        return [fold_scores(study, config, fold) for fold in range(study.num_folds)]
    except FloatingPointError:
        return None


def repeat(
    study: Study,
    winner: TrainConfig,
    objective: Objective,
    *,
    num_seeds: int = NUM_SEEDS,
    counted: Counted = silently,
) -> tuple[Arm, Arm]:
    """Train the winner and the base with fresh seeds on the same folds; the search's own seed has chosen the winner.

    A seed on which either loss does not stay finite is left out of both.

    Raises:
        DataError: if no seed is left.
    """
    seeds = [study.base.seed + more for more in range(1, num_seeds + 1)]
    settings = [
        dataclasses.replace(config, seed=seed) for config in (winner, study.base) for seed in seeds
    ]
    trained = train_all_folds(
        study, settings, what="winner and base with fresh seeds", counted=counted
    )
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(trained[:num_seeds], trained[num_seeds:], strict=True)
        if ours is not None and theirs is not None
    ]
    if not pairs:
        raise DataError(
            "the winner and the base must both train with some seed, none keeps a finite loss;"
            " lower optim.lr."
        )
    return _arm(objective, [ours for ours, _ in pairs]), _arm(
        objective, [theirs for _, theirs in pairs]
    )


def _arm(objective: Objective, runs: list[Folds]) -> Arm:
    by_fold = np.mean([[objective.score([fold]) for fold in run] for run in runs], axis=0)
    return Arm([objective.score(run) for run in runs], by_fold.tolist(), runs)


def compare_arms(objective: Objective, winner: Arm, base: Arm) -> Difference:
    """Return the paired difference of two arms over the same folds and seeds."""
    return paired_difference(objective, winner.runs, base.runs)


def compare_predictions(
    objective: Objective, task: Task, winner: pd.DataFrame, base: pd.DataFrame
) -> Difference:
    """Return the paired difference of two bundles on the same images; tables as in predictions.parquet."""
    return paired_difference(objective, [[_scores(task, winner)]], [[_scores(task, base)]])


def _scores(task: Task, table: pd.DataFrame) -> FoldScores:
    ordered = table.sort_values("image_id")
    probabilities = ordered[[f"probability_{name}" for name in task.classes]].to_numpy()
    units = Predicted(task, ordered["label"].to_numpy(), probabilities)
    return choose_fold_scores(units, ordered["group"].to_numpy(dtype=str))


def verdict(difference: Difference) -> str:
    """Say in words what a comparison on test shows."""
    if not difference.shown:
        return "No difference shown"
    return "The winner is better" if difference.low > 0 else "The winner is worse"
