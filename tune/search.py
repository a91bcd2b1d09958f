"""The driver of a search: Ray Tune draws settings, tries them and prunes them by halving.

The same call again resumes a search by replaying it. The samples drawn before are tried first, in
their order, and finished folds are not trained again. Tune's own restore would forget the rungs of
the scheduler, and later trials would then survive halvings that should prune them.
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.result_grid import ResultGrid
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from torch.utils.tensorboard import SummaryWriter

from melanoma.config import TrainConfig
from melanoma.evidence.out_of_fold import FoldScores, Objective
from melanoma.io.files import read_json, read_parquet, write_json, write_parquet
from melanoma.io.storage import AnyPath, SyncedFolder, as_file_system, remove_folder
from tune.compare import Counted, silently, train_all_folds
from tune.space import DRAWN_GAMMA, GAMMA, LEAD, METRIC, Sample, SearchSpace, plain, to_config
from tune.trial import MAX_FAILURES, RECORDED, Study, run_trial, rung_metrics

TRIALS = "trials.parquet"
SAMPLES = "samples.json"
# One fold is not enough to prune a setting; benchmarks/search_efficiency.py compares the rungs.
FIRST_RUNG, HALVING = 2, 2
NUM_STARTUP = 6  # random draws before TPE has enough trials to learn from


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """What a search is, before anything is known of where it runs.

    Attributes:
        run_dir: OUT/RUN.
        base: the settings that are not searched.
        weights: start weights: none, imagenet, or a path.
        space: what is searched.
        objective: what is maximised.
        num_trials: settings to try, with the base setting and plain cross-entropy among them.
        searcher: tpe (Optuna, every other sample at random) with halving, or random without, for
            comparison.
    """

    run_dir: AnyPath
    base: TrainConfig
    weights: str
    space: SearchSpace
    objective: Objective
    num_trials: int
    searcher: str = "tpe"

    @property
    def folds_dir(self) -> AnyPath:
        """Where finished folds are kept."""
        return self.run_dir / "folds"


@dataclasses.dataclass(frozen=True)
class Search:
    """One search on a cluster.

    Attributes:
        plan: what it is.
        study: what all its trials share.
    """

    plan: SearchPlan
    study: Study

    def anchors(self) -> dict[str, TrainConfig]:
        """Return the settings that are always tried on all folds: the base and plain cross-entropy.

        If the two are the same, there is only the base.
        """
        base = self.study.base
        return {"base": base} if plain(base) == base else {"base": base, "plain": plain(base)}


def run_search(search: Search, *, counted: Counted = silently) -> pd.DataFrame:
    """Try the settings and write trials.parquet; a finished search is only read.

    Returns:
        The table of trials.parquet, one row for each trial.

    Raises:
        FloatingPointError: if the loss of the base setting does not stay finite, because then there
            is nothing to compare with.
    """
    path = search.plan.run_dir / TRIALS
    if path.is_file():
        return read_parquet(path)
    anchors = search.anchors()
    trained = train_all_folds(
        search.study, list(anchors.values()), what=" and ".join(anchors), counted=counted
    )
    folds = dict(zip(anchors, trained, strict=True))
    if folds["base"] is None:
        raise FloatingPointError(
            "The loss of the base setting must stay finite on every fold; it did not. Lower"
            " optim.lr."
        )
    reached = search.plan.objective.score(folds["base"])
    rows = [_anchor_row(search, name, folds[name], base_score=reached) for name in anchors]
    if search.plan.num_trials > len(rows):
        rows += _trial_rows(search, _run_tune(search, rows))
    trials = pd.DataFrame(rows)
    write_parquet(path, trials)
    return trials


def _run_tune(search: Search, anchors: list[dict[str, Any]]) -> ResultGrid:
    # Tune's newer output goes to stdout and takes no reporter. Its own signal handler would make
    # Ctrl-C look like the end of the search.
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    # The result reports each failed trial in one sentence.
    for name in ("ray.tune.execution.tune_controller", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A resumed search is replayed, and its trials get new names.
    for name in ("search", "tensorboard"):
        remove_folder(search.plan.run_dir / name)
    num_trials = search.plan.num_trials - len(anchors)
    results = _tuner(search, anchors, num_trials).fit()
    if len(results) != num_trials:
        raise RuntimeError(
            f"The search must end with {num_trials} trials; it ended with {len(results)}. Run the"
            " same command again."
        )
    return results


def make_searcher(
    space: SearchSpace,
    base: TrainConfig,
    *,
    kind: str,
    known: Sequence[tuple[Sample, float]],
    first: list[dict[str, float]],
) -> Searcher:
    """Return the seeded searcher.

    Args:
        space: the settings to draw.
        base: the settings that are not searched; its seed seeds the searcher.
        kind: tpe or random.
        known: samples that were already tried, with their leads.
        first: samples to try before any is drawn.
    """
    sampler = _Replayable(kind, base.seed, offset=len(known), first=first)
    searcher = OptunaSearch(
        space=space.distributions(base), metric=LEAD, mode="max", sampler=sampler
    )
    for sample, lead in known:
        searcher.add_evaluated_point(dict(sample), lead)
    return searcher


class _Replayable(BaseSampler):
    """A sampler that can be replayed.

    It returns the given samples first. Each later draw depends only on the seed, the number of the
    trial and the trials so far.
    """

    def __init__(self, kind: str, seed: int, *, offset: int, first: list[dict[str, float]]) -> None:
        self._kind, self._seed = kind, seed
        self._given = {offset + index: sample for index, sample in enumerate(first)}

    def _sampler(self, number: int, name: str = "") -> BaseSampler:
        seed = int(
            np.random.SeedSequence([self._seed, number, *name.encode()]).generate_state(1)[0]
        )
        # Every other sample is random, because TPE alone can stay outside the best region forever.
        if self._kind == "tpe" and number % 2:
            return TPESampler(seed=seed, n_startup_trials=NUM_STARTUP, multivariate=True)
        return RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if trial.number in self._given:
            return {}  # Optuna then calls sample_independent for each setting
        return self._sampler(trial.number).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler(trial.number).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if trial.number in self._given:
            return self._given[trial.number][param_name]
        # Each setting has its own seed; with a common seed all settings of a trial would get the
        # same draw.
        sampler = self._sampler(trial.number, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def make_scheduler(num_folds: int) -> AsyncHyperBandScheduler:
    """Return a scheduler for asynchronous halving (ASHA) with folds as rungs.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020.
    """
    return AsyncHyperBandScheduler(
        time_attr="folds",
        max_t=num_folds,
        grace_period=min(FIRST_RUNG, num_folds),
        reduction_factor=HALVING,
    )


def _tuner(search: Search, anchors: list[dict[str, Any]], num_trials: int) -> tune.Tuner:
    study = search.study
    storage_path, file_system = as_file_system(search.plan.run_dir)
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, study=study, objective=search.plan.objective),
        resources=study.resources(),
    )
    kept = search.plan.run_dir / SAMPLES
    given = read_json(kept) if kept.is_file() else []
    known = [
        (search.plan.space.sample_of(config), row[LEAD])
        for config, row in zip(search.anchors().values(), anchors, strict=True)
        if row["status"] == "finished"
    ]
    searcher = make_searcher(
        search.plan.space,
        study.base,
        kind=search.plan.searcher,
        known=known,
        first=given,
    )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=LEAD,
            mode="max",
            num_samples=num_trials,
            max_concurrent_trials=study.at_once,
            search_alg=searcher,
            scheduler=make_scheduler(study.num_folds) if search.plan.searcher == "tpe" else None,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=storage_path,
            storage_filesystem=file_system,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            progress_reporter=_Reporter(search.plan.objective, num_trials),
            callbacks=[_Keeper(search.plan.run_dir, given)],
            verbose=1,
        ),
    )


def _folder_name(trial: Trial) -> str:
    return str(trial.trial_id)


def _anchor_row(
    search: Search, name: str, folds: list[FoldScores] | None, *, base_score: float
) -> dict[str, Any]:
    config = search.anchors()[name]
    row = {"trial": name, **search.plan.space.sample_of(config), DRAWN_GAMMA: config.loss.gamma}
    if folds is None:
        return {**row, **_no_figures("failed", "The loss did not stay finite.")}
    metrics = rung_metrics(folds, search.plan.objective, config)
    return {**row, **_no_figures("finished", ""), **metrics, LEAD: metrics[METRIC] - base_score}


def _no_figures(status: str, error: str) -> dict[str, Any]:
    """Return the columns of a trial that has reported nothing; its figures replace them."""
    return {
        "status": status,
        "error": error,
        "folds": 0,
        "epochs": 0,
        METRIC: float("nan"),
        LEAD: float("nan"),
    }


def _trial_rows(search: Search, results: ResultGrid) -> list[dict[str, Any]]:
    """Return one row for each trial, in the order of the draws.

    A row holds the settings, the figures, the number of folds and the status: finished, pruned or
    failed.
    """
    drawn = read_json(search.plan.run_dir / SAMPLES)
    rows: list[dict[str, Any]] = []
    for result in sorted(
        (results[index] for index in range(len(results))), key=lambda one: drawn.index(one.config)
    ):
        sample: Mapping[str, float] = result.config or {}
        metrics = {
            name: value for name, value in (result.metrics or {}).items() if name in RECORDED
        }
        done = metrics.get("folds", 0) == search.study.num_folds
        rows.append(
            {
                "trial": Path(result.path).name,
                **search.plan.space.sample_of(to_config(sample, search.study.base)),
                DRAWN_GAMMA: sample[GAMMA],
                **_no_figures(
                    "failed" if result.error else "finished" if done else "pruned",
                    _sentence(result.error),
                ),
                **metrics,
            }
        )
    return rows


def _sentence(error: BaseException | None) -> str:
    """Return the last line of the error that ended a trial, or an empty string."""
    lines = str(error).strip().splitlines() if error else []
    return lines[-1] if lines else ""


class _Reporter(tune.CLIReporter):
    """Prints Tune's live table to stderr, because stdout is for the result."""

    def __init__(self, objective: Objective, num_trials: int) -> None:
        names = {METRIC: str(objective)[:18], LEAD: "lead over base", "folds": "folds"}
        super().__init__(
            metric_columns=names, max_report_frequency=30, max_progress_rows=num_trials
        )

    def report(self, trials: Iterable[Trial], done: bool, *sys_info: Any) -> None:
        print(self._progress_str(list(trials), done, *sys_info), file=sys.stderr, flush=True)


class _Keeper(tune.Callback):
    """Saves the samples in the order of their draws, and the figures of trials for TensorBoard."""

    def __init__(self, run_dir: AnyPath, given: list[dict[str, float]]) -> None:
        self._run_dir, self._given = run_dir, given
        self._tensorboard = SyncedFolder(run_dir / "tensorboard")

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        # Neither the list nor the starts are in the order of the draws. The experiment tag begins
        # with the number of the draw.
        drawn = sorted(trials, key=lambda other: int(other.experiment_tag.split("_")[0]))
        samples = [dict(other.config) for other in drawn]
        write_json(self._run_dir / SAMPLES, samples + self._given[len(samples) :])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        with SummaryWriter(str(self._tensorboard.folder / str(trial.trial_id))) as writer:
            for name in (METRIC, LEAD, "auroc"):
                writer.add_scalar(name, result[name], result["folds"])
        self._tensorboard.push()
