"""The driver of a search: Ray Tune trains what the proposer proposes, one fold of a setting each.

The same call again resumes a search by replaying it. The folds proposed before are proposed again,
in their order, and finished ones are found and not trained again.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from ray import tune
from ray.tune.search import Searcher

from melanoma.arrays import FloatArray
from melanoma.config import TrainConfig
from melanoma.evidence.objective import Objective
from melanoma.executor import Counted, silently
from melanoma.io.files import read_json, read_parquet, write_json, write_parquet
from melanoma.io.storage import AnyPath, as_file_system, remove_folder
from tune.columns import (
    BASE,
    DEVIATION,
    EPOCHS,
    ERROR,
    EXPECTED,
    FAILED,
    FINISHED,
    FOLD,
    LEAD,
    METRIC,
    PLAIN,
    RECORDED,
    SETTING,
    STATUS,
)
from tune.proposer import Proposal, Proposer
from tune.space import Sample, SearchSpace, plain
from tune.trial import MAX_FAILURES, Study, run_trial

TRIALS, PROPOSALS = "trials.parquet", "proposals.json"


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """What a search is, before anything is known of where it runs.

    Attributes:
        run_dir: OUT/RUN.
        base: the settings that are not searched.
        weights: start weights: none, imagenet, or a path.
        space: what is searched.
        objective: what is maximised.
        num_trials: folds to train, besides those of the base and of plain cross-entropy.
    """

    run_dir: AnyPath
    base: TrainConfig
    weights: str
    space: SearchSpace
    objective: Objective
    num_trials: int

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

    def given(self) -> dict[str, TrainConfig]:
        """Return the settings that are always trained on all folds: base and plain cross-entropy.

        If the two are the same, there is only the base.
        """
        base = self.study.base
        return {BASE: base} if plain(base) == base else {BASE: base, PLAIN: plain(base)}

    @property
    def num_trials(self) -> int:
        """Number of all trials, those of the given settings among them."""
        return len(self.given()) * self.study.num_folds + self.plan.num_trials

    def proposer(self, interrupted: Sequence[Proposal] = ()) -> Proposer:
        """Return a new proposer, which first repeats the proposals of an interrupted search."""
        space, study = self.plan.space, self.study
        given = [space.sample_of(config) for config in self.given().values()]
        return Proposer(
            space, given, num_folds=study.num_folds, seed=study.base.seed, interrupted=interrupted
        )


def run_search(search: Search, *, counted: Counted = silently) -> pd.DataFrame:
    """Train the proposed folds and write trials.parquet; a finished search is only read.

    Returns:
        The table of trials.parquet, one row for each trial.

    Raises:
        FloatingPointError: if the loss of the base setting does not stay finite, because then there
            is nothing to compare with.
        RuntimeError: if the base setting fails in another way, or not all trials were run.
        Exception: what ended a trial in every attempt, such as a full disk or a node that is lost.
            The same call tries that trial again.
    """
    path = search.plan.run_dir / TRIALS
    if path.is_file():
        return read_parquet(path)
    searcher = _FoldSearcher(search)
    with counted("search", "trials") as on_trial:
        results = _tuner(search, searcher, on_trial).fit()
    if results.errors:
        raise results.errors[0]
    if searcher.base_error:
        raise _base_failed(searcher.base_error)
    if len(searcher.proposals) != search.num_trials:
        raise RuntimeError(
            f"The search must end with {search.num_trials} trials; it ended with"
            f" {len(searcher.proposals)}. Run the same command again."
        )
    trials = _trials(search, searcher)
    write_parquet(path, trials)
    return trials


def _tuner(
    search: Search, searcher: "_FoldSearcher", on_trial: Callable[[int, int], None]
) -> tune.Tuner:
    # Tune's newer output goes to stdout. Its own signal handler would make Ctrl-C look like the end
    # of the search.
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    # What ends a search is raised, and trials.parquet has one sentence on each failed trial.
    for name in ("ray.tune.execution.tune_controller", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    remove_folder(search.plan.run_dir / "search")  # a resumed search gives its trials new names
    study = search.study
    storage_path, file_system = as_file_system(search.plan.run_dir)
    trainable = tune.with_parameters(run_trial, study=study, objective=search.plan.objective)
    return tune.Tuner(
        tune.with_resources(trainable, resources=study.resources()),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=search.num_trials,
            max_concurrent_trials=study.at_once,
            search_alg=searcher,
            reuse_actors=True,  # a new process would import torch for every fold
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=storage_path,
            storage_filesystem=file_system,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[_Progress(on_trial, search.num_trials)],
            verbose=0,
        ),
    )


def _base_failed(error: str) -> Exception:
    if error.startswith(FloatingPointError.__name__):
        return FloatingPointError(
            "The loss of the base setting must stay finite on every fold; it did not. Lower"
            " optim.lr."
        )
    return RuntimeError(f"The base setting must train on every fold; it did not. {error}")


class _FoldSearcher(Searcher):  # type: ignore[misc]  # Ray Tune has no types
    """Gives Ray Tune the folds that a proposer proposes, and tells the proposer their objectives.

    Every proposal is kept in proposals.json before its trial starts. After a trial that raised in
    every attempt, or a base that failed, nothing is proposed any more.

    Attributes:
        proposals: the trials that were started, by number.
        values: what finished trials reported, by number.
        errors: why trials failed, by number.
    """

    def __init__(self, search: Search) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._path, self._num_folds = search.plan.run_dir / PROPOSALS, search.study.num_folds
        kept = read_json(self._path) if self._path.is_file() else []
        self._proposer = search.proposer([Proposal(**one) for one in kept])
        self._numbers: dict[str, int] = {}
        self._has_raised = False
        self.proposals: list[Proposal] = []
        self.values: dict[int, dict[str, float]] = {}
        self.errors: dict[int, str] = {}

    @property
    def base_error(self) -> str:
        """Why the base setting could not be trained on a fold; empty if it could."""
        return next((self.errors[n] for n in range(self._num_folds) if n in self.errors), "")

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of the next trial, or that there is none."""
        if self._has_raised or self.base_error:
            return Searcher.FINISHED
        self._numbers[trial_id] = len(self.proposals)
        self.proposals.append(self._proposer.propose())
        write_json(self._path, [dataclasses.asdict(one) for one in self._proposer.proposals])
        return {**self.proposals[-1].sample, FOLD: self.proposals[-1].fold}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record how a trial ended."""
        number = self._numbers[trial_id]
        if error or result is None:
            self._has_raised = True
        elif result[ERROR]:
            self.errors[number] = result[ERROR]
            self._proposer.tell(self.proposals[number], None)
        else:
            self.values[number] = {name: result[name] for name in RECORDED}
            self._proposer.tell(self.proposals[number], result[METRIC])

    def save(self, checkpoint_path: str) -> None:
        """Do nothing; proposals.json and the finished folds are what a search resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as in `save`."""


class _Progress(tune.Callback):  # type: ignore[misc]
    """Shows how many trials have ended."""

    def __init__(self, on_trial: Callable[[int, int], None], num_trials: int) -> None:
        self._on_trial, self._num_trials, self._num_ended = on_trial, num_trials, 0

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        self._num_ended += 1
        self._on_trial(self._num_ended, self._num_trials)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks, and a progress bar cannot be pickled


def _trials(search: Search, searcher: _FoldSearcher) -> pd.DataFrame:
    """Return one row for each trial, in the order of the proposals."""
    names = {_key(search.plan.space.sample_of(c)): name for name, c in search.given().items()}
    rows = []
    for number, proposal in enumerate(searcher.proposals):
        name = names.setdefault(_key(proposal.sample), f"setting {len(names) + 1}")
        rows.append(
            {
                SETTING: name,
                FOLD: proposal.fold,
                **proposal.sample,
                STATUS: FINISHED if number in searcher.values else FAILED,
                ERROR: searcher.errors.get(number, ""),
                EPOCHS: search.study.base.optim.epochs if number in searcher.values else 0,
                **dict.fromkeys(RECORDED, float("nan")),
                **searcher.values.get(number, {}),
            }
        )
    trials = pd.DataFrame(rows)
    of_base = trials[: search.study.num_folds].set_index(FOLD)[METRIC]
    trials[LEAD] = trials[METRIC] - trials[FOLD].map(of_base)
    trials[EXPECTED], trials[DEVIATION] = expected_leads(
        search, trials, [proposal.sample for proposal in searcher.proposals]
    )
    return trials


def expected_leads(
    search: Search, trials: pd.DataFrame, samples: Sequence[Sample]
) -> tuple[FloatArray, FloatArray]:
    """Return the expected lead over the base of any settings and its standard deviation, ``(M,)``.

    Args:
        search: the search.
        trials: its trials.
        samples: M settings, tried or not.
    """
    proposer = search.proposer()
    for trial in trials.to_dict("records"):
        sample = {name: trial[name] for name in search.plan.space.ranges}
        value = trial[METRIC] if trial[STATUS] == FINISHED else None
        proposer.tell(Proposal(sample, trial[FOLD]), value)
    return proposer.leads(samples)


def _key(sample: Sample) -> tuple[float, ...]:
    return tuple(sample.values())
