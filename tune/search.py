"""The driver of a search: settings are drawn, tried and halved by Ray Tune; the same call again goes on where it was.

A search goes on by being played again: the samples it had drawn are tried first, in their order,
and every finished fold is found done. Tune's own restore would forget the scheduler's rungs, so
that later trials pass halvings which they should fail.
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
# One fold is too little to drop a setting for: benchmarks/search_efficiency.py compares the rungs.
FIRST_RUNG, HALVING = 2, 2
NUM_STARTUP = 6  # random draws before TPE has enough to go by


@dataclasses.dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        run_dir: OUT/RUN.
        study: what all trials share.
        space: what is searched.
        objective: what is maximised.
        num_trials: settings to try, the base setting and plain cross-entropy among them.
        searcher: tpe (Optuna, every other sample at random) with halving, or random without, for
            comparison.
    """

    run_dir: AnyPath
    study: Study
    space: SearchSpace
    objective: Objective
    num_trials: int
    searcher: str = "tpe"

    def anchors(self) -> dict[str, TrainConfig]:
        """Return the settings that are always tried, on all folds: the base and plain cross-entropy, one if they are the same."""
        base = self.study.base
        return {"base": base} if plain(base) == base else {"base": base, "plain": plain(base)}


def run_search(search: Search, *, counted: Counted = silently) -> pd.DataFrame:
    """Try the settings and return one row a trial, as kept in trials.parquet; a finished search is only read.

    Raises:
        FloatingPointError: if the base setting's loss does not stay finite: there is nothing to
            compare with.
    """
    path = search.run_dir / TRIALS
    if path.is_file():
        return read_parquet(path)
    anchors = search.anchors()
    trained = train_all_folds(
        search.study, list(anchors.values()), what=" and ".join(anchors), counted=counted
    )
    folds = dict(zip(anchors, trained, strict=True))
    if folds["base"] is None:
        raise FloatingPointError(
            "the base setting must keep a finite loss on every fold, it did not; lower optim.lr."
        )
    reached = search.objective.score(folds["base"])
    rows = [_anchor_row(search, name, folds[name], base_score=reached) for name in anchors]
    if search.num_trials > len(rows):
        rows += _trial_rows(search, _run_tune(search, rows))
    trials = pd.DataFrame(rows)
    write_parquet(path, trials)
    return trials


def _run_tune(search: Search, anchors: list[dict[str, Any]]) -> ResultGrid:
    # Tune's newer output goes to stdout and takes no reporter; its own handler would let Ctrl-C
    # pass for the end of the search.
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    # Failed trials are told in the result, in a sentence each.
    for name in ("ray.tune.execution.tune_controller", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for made_anew in (
        "search",
        "tensorboard",
    ):  # a search that goes on is played again under new names
        remove_folder(search.run_dir / made_anew)
    num_trials = search.num_trials - len(anchors)
    results = _tuner(search, anchors, num_trials).fit()
    if len(results) != num_trials:
        raise RuntimeError(
            f"a search must end with {num_trials} trials, it ended with {len(results)}; run the"
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
        space: what is drawn.
        base: the settings that are not searched; its seed is the searcher's.
        kind: tpe or random.
        known: samples that were tried already, with their lead.
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
    """Gives some samples first and then draws by (seed, number of the trial, trials so far): a search can be played again."""

    def __init__(self, kind: str, seed: int, *, offset: int, first: list[dict[str, float]]) -> None:
        self._kind, self._seed = kind, seed
        self._given = {offset + index: sample for index, sample in enumerate(first)}

    def _sampler(self, number: int, name: str = "") -> BaseSampler:
        seed = int(
            np.random.SeedSequence([self._seed, number, *name.encode()]).generate_state(1)[0]
        )
        # Every other sample is drawn without looking: TPE alone can stay beside the best region for
        # good.
        if self._kind == "tpe" and number % 2:
            return TPESampler(seed=seed, n_startup_trials=NUM_STARTUP, multivariate=True)
        return RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        if trial.number in self._given:
            return {}  # each setting is then asked for by itself
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
        # A seed for each setting, or all of a trial's would be given the same draw.
        sampler = self._sampler(trial.number, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def make_scheduler(num_folds: int) -> AsyncHyperBandScheduler:
    """Return asynchronous halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020) with folds as rungs."""
    return AsyncHyperBandScheduler(
        time_attr="folds",
        max_t=num_folds,
        grace_period=min(FIRST_RUNG, num_folds),
        reduction_factor=HALVING,
    )


def _tuner(search: Search, anchors: list[dict[str, Any]], num_trials: int) -> tune.Tuner:
    study = search.study
    storage_path, file_system = as_file_system(search.run_dir)
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, study=study, objective=search.objective),
        resources=study.resources(),
    )
    kept = search.run_dir / SAMPLES
    given = read_json(kept) if kept.is_file() else []
    known = [
        (search.space.sample_of(config), row[LEAD])
        for config, row in zip(search.anchors().values(), anchors, strict=True)
        if row["status"] == "finished"
    ]
    searcher = make_searcher(
        search.space,
        study.base,
        kind=search.searcher,
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
            scheduler=make_scheduler(study.num_folds) if search.searcher == "tpe" else None,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=storage_path,
            storage_filesystem=file_system,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            progress_reporter=_Reporter(search.objective, num_trials),
            callbacks=[_Keeper(search.run_dir, given)],
            verbose=1,
        ),
    )


def _folder_name(trial: Trial) -> str:
    return str(trial.trial_id)


def _anchor_row(
    search: Search, name: str, folds: list[FoldScores] | None, *, base_score: float
) -> dict[str, Any]:
    config = search.anchors()[name]
    row = {"trial": name, **search.space.sample_of(config), DRAWN_GAMMA: config.loss.gamma}
    if folds is None:
        return {**row, **_nothing("failed", "the loss did not stay finite")}
    metrics = rung_metrics(folds, search.objective, config)
    return {**row, **_nothing("finished", ""), **metrics, LEAD: metrics[METRIC] - base_score}


def _nothing(status: str, error: str) -> dict[str, Any]:
    return {
        "status": status,
        "error": error,
        "folds": 0,
        "epochs": 0,
        METRIC: float("nan"),
        LEAD: float("nan"),
    }


def _trial_rows(search: Search, results: ResultGrid) -> list[dict[str, Any]]:
    """Return what the search saw, in the order drawn: settings, figures, folds done, and whether a trial finished, was pruned or failed."""
    drawn = read_json(search.run_dir / SAMPLES)
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
                **search.space.sample_of(to_config(sample, search.study.base)),
                DRAWN_GAMMA: sample[GAMMA],
                **_nothing(
                    "failed" if result.error else "finished" if done else "pruned",
                    _sentence(result.error),
                ),
                **metrics,
            }
        )
    return rows


def _sentence(error: BaseException | None) -> str:
    """Return the last line of what a trial died of."""
    lines = str(error).strip().splitlines() if error else []
    return lines[-1] if lines else ""


class _Reporter(tune.CLIReporter):
    """Tune's live table, on stderr: stdout is for the result."""

    def __init__(self, objective: Objective, num_trials: int) -> None:
        names = {METRIC: str(objective)[:18], LEAD: "lead over base", "folds": "folds"}
        super().__init__(
            metric_columns=names, max_report_frequency=30, max_progress_rows=num_trials
        )

    def report(self, trials: Iterable[Trial], done: bool, *sys_info: Any) -> None:
        print(self._progress_str(list(trials), done, *sys_info), file=sys.stderr, flush=True)


class _Keeper(tune.Callback):
    """Keeps the samples in the order they were drawn, and each trial's figures for TensorBoard."""

    def __init__(self, run_dir: AnyPath, given: list[dict[str, float]]) -> None:
        self._run_dir, self._given = run_dir, given
        self._tensorboard = SyncedFolder(run_dir / "tensorboard")

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        # Neither the list nor the starts keep the order; the tag begins with the number of the
        # draw.
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
