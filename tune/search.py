"""The driver of a search: settings are drawn, tried and halved by Ray Tune; the same call again goes on where it was."""

import dataclasses
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.result_grid import ResultGrid
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from torch.utils.tensorboard import SummaryWriter

from melanoma.config import TrainConfig
from melanoma.evidence.out_of_fold import Objective
from tune.space import SearchSpace, plain
from tune.trial import Study, run_trial

TRIALS = "trials.parquet"
METRIC = "objective"
HALVING = 3
SEARCHERS = ("tpe", "random")
MAX_FAILURES = 2  # of a trial whose process or node is lost; a loss that is not finite fails at once again


@dataclasses.dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        run_dir: OUT/RUN.
        study: what all trials share.
        space: what is searched.
        objective: what is maximised.
        num_trials: settings to try, the plain and the base setting among them.
        searcher: tpe (Optuna) with halving, or random without, for comparison.
        at_once: trials at a time.
    """

    run_dir: Path
    study: Study
    space: SearchSpace
    objective: Objective
    num_trials: int
    searcher: str = "tpe"
    at_once: int = 1


def run_search(search: Search) -> pd.DataFrame:
    """Try the settings and return one row a trial, as kept in trials.parquet; a finished search is only read."""
    path = search.run_dir / TRIALS
    if path.is_file():
        return pd.read_parquet(path)
    trials = _table(search, _tuner(search).fit())
    partial = path.with_suffix(".partial")
    trials.to_parquet(partial, index=False)
    os.replace(partial, path)
    return trials


def make_searcher(space: SearchSpace, base: TrainConfig, *, kind: str, seed: int) -> Searcher:
    """Return the seeded searcher, which starts with the base's own setting and with plain cross-entropy."""
    sampler: optuna.samplers.BaseSampler = (
        optuna.samplers.TPESampler(seed=seed, n_startup_trials=6, multivariate=True)
        if kind == "tpe"
        else optuna.samplers.RandomSampler(seed=seed)
    )
    return OptunaSearch(
        space=space.distributions(base),
        metric=METRIC,
        mode="max",
        sampler=sampler,
        points_to_evaluate=[space.sample_of(base), space.sample_of(plain(base))],
    )


def make_scheduler(num_folds: int) -> AsyncHyperBandScheduler:
    """Return asynchronous halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020) with folds as rungs."""
    return AsyncHyperBandScheduler(time_attr="folds", max_t=num_folds, grace_period=1, reduction_factor=HALVING)


def _tuner(search: Search) -> tune.Tuner:
    study = search.study
    # A trial of several workers only waits for them; counted as a CPU, it would take the one its worker needs.
    resources = {"CPU": 0.0 if study.num_workers > 1 else study.num_cpus}
    if study.use_gpu and study.num_workers == 1:
        resources["GPU"] = 1 / search.at_once
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, study=study, objective=search.objective), resources=resources
    )
    place = search.run_dir / "search"
    if tune.Tuner.can_restore(str(place)):
        return tune.Tuner.restore(str(place), trainable=trainable, resume_unfinished=True)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=search.num_trials,
            max_concurrent_trials=search.at_once,
            search_alg=make_searcher(search.space, study.base, kind=search.searcher, seed=study.base.seed),
            scheduler=make_scheduler(study.num_folds) if search.searcher == "tpe" else None,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=place.name,
            storage_path=str(search.run_dir.resolve()),
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            progress_reporter=_Reporter(search),
            callbacks=[_TensorBoard(search.run_dir / "tensorboard")],
            verbose=1,
        ),
    )


def _folder_name(trial: Trial) -> str:
    return str(trial.trial_id)


def _table(search: Search, results: ResultGrid) -> pd.DataFrame:
    """Return what the search saw: settings, figures, folds done, and whether a trial finished, was dropped or failed."""
    rows: list[dict[str, Any]] = []
    for result in (results[index] for index in range(len(results))):
        metrics: dict[str, Any] = result.metrics or {}
        folds = int(metrics.get("folds", 0))
        status = "failed" if result.error else "finished" if folds == search.study.num_folds else "dropped"
        kept = {name: value for name, value in metrics.items() if isinstance(value, float | int) and "/" not in name}
        own = {
            name: kept[name]
            for name in kept
            if name in {METRIC, "folds", "epochs", "spread"} or "@" in name or "auroc" in name
        }
        rows.append(
            {
                "trial": Path(result.path).name,
                **(result.config or {}),
                "status": status,
                "error": _sentence(result.error),
                "folds": 0,
                "epochs": 0,
                METRIC: float("nan"),
                **own,
            }
        )
    return pd.DataFrame(rows)


def _sentence(error: BaseException | None) -> str:
    """Return the last line of what a trial died of."""
    lines = str(error).strip().splitlines() if error else []
    return lines[-1] if lines else ""


class _Reporter(tune.CLIReporter):
    """Tune's live table, on stderr: stdout is for the result."""

    def __init__(self, search: Search) -> None:
        names = {METRIC: str(search.objective)[:18], "folds": "folds", "spread": "spread"}
        super().__init__(metric_columns=names, max_report_frequency=30, max_progress_rows=search.num_trials)

    def report(self, trials: Iterable[Trial], done: bool, *sys_info: Any) -> None:
        print(self._progress_str(list(trials), done, *sys_info), file=sys.stderr, flush=True)


class _TensorBoard(tune.Callback):
    """Writes each trial's figures after each fold, one run a trial."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        with SummaryWriter(str(self._folder / str(trial.trial_id))) as writer:
            for name in (METRIC, "auroc", "spread"):
                writer.add_scalar(name, result[name], result["folds"])
