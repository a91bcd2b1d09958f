"""The winner of a search against the base setting.

Both are trained with new seeds on the same folds, and compared once on test.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import ray

from melanoma.config import TrainConfig
from melanoma.errors import DataError
from melanoma.evidence.metrics import Predicted
from melanoma.evidence.objective import FoldScores, Objective
from melanoma.evidence.out_of_fold import Difference, choose_fold_scores, paired_difference
from melanoma.executor import Counted, silently
from melanoma.task import Task
from tune.trial import MAX_FAILURES, Study, fold_predictions, fold_scores

NUM_SEEDS = 3
Folds = list[FoldScores]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting, trained with several seeds on all folds.

    Attributes:
        by_seed: the objective of each seed over all folds.
        by_fold: the objective of each fold, averaged over seeds; its spread is between groups.
        runs: for each seed, the scores of all folds.
    """

    by_seed: list[float]
    by_fold: list[float]
    runs: Sequence[Folds]

    def as_dict(self) -> dict[str, Any]:
        """Return the objectives as plain values for the report."""
        return {"by_seed": self.by_seed, "by_fold": self.by_fold}


def train_all_folds(
    study: Study, configs: Sequence[TrainConfig], *, what: str = "", counted: Counted = silently
) -> list[Folds | None]:
    """Train settings on all folds, except for folds that are finished already.

    A fold is trained once, even if several settings are the same. As many folds are trained at a
    time as the study allows trials.

    Args:
        study: the study.
        configs: the settings.
        what: what the progress display calls this work.
        counted: shows the progress.

    Returns:
        For each setting the scores of all folds, or None if its loss did not stay finite.
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
    # The failure is kept in the folder of the fold, where `_kept_folds` finds it.
    with contextlib.suppress(FloatingPointError):
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
    """Train the winner and the base with new seeds on the same folds.

    The seed of the search is not used, because it has chosen the winner. A seed with which either
    loss does not stay finite is left out of both.

    Args:
        study: the study.
        winner: the settings of the winner.
        objective: the number to compare.
        num_seeds: number of new seeds.
        counted: shows the progress.

    Returns:
        The winner and the base.

    Raises:
        DataError: if no seed is left.
    """
    seeds = [study.base.seed + more for more in range(1, num_seeds + 1)]
    settings = [
        dataclasses.replace(config, seed=seed) for config in (winner, study.base) for seed in seeds
    ]
    trained = train_all_folds(
        study, settings, what="winner and base with new seeds", counted=counted
    )
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(trained[:num_seeds], trained[num_seeds:], strict=True)
        if ours is not None and theirs is not None
    ]
    if not pairs:
        raise DataError(
            "The winner and the base must both train with at least one seed; with none of"
            f" {num_seeds} do both losses stay finite. Lower optim.lr."
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
    """Return the paired difference of two bundles on the same images.

    Args:
        objective: the number to compare.
        task: what the classes mean.
        winner: the predictions of the winner, as in predictions.parquet.
        base: those of the base.
    """
    return paired_difference(objective, [[_scores(task, winner)]], [[_scores(task, base)]])


def _scores(task: Task, table: pd.DataFrame) -> FoldScores:
    ordered = table.sort_values("image_id")
    probabilities = ordered[[f"probability_{name}" for name in task.classes]].to_numpy()
    units = Predicted(task, ordered["label"].to_numpy(), probabilities)
    groups, sources = (ordered[name].to_numpy(dtype=str) for name in ("group", "source"))
    return choose_fold_scores(units, groups, sources)


def verdict(difference: Difference) -> str:
    """Return in words what a comparison on test shows."""
    if not difference.shown:
        return "No difference shown"
    better = "better" if difference.low > 0 else "worse"
    return f"The winner's network is {better} than the base's"
