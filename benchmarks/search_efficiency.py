"""Measures how many epochs a search needs to come within 0.01 of the best setting.

Compares the search with random search without halving. `record` trains every setting of a grid on
all folds once, without pruning. `replay` runs the search's own searcher and scheduler on that table
with many seeds. Each drawn sample is replaced by the nearest setting of the grid.

    python -m benchmarks.search_efficiency record DATASET table.parquet
    python -m benchmarks.search_efficiency replay table.parquet
"""

import argparse
import dataclasses
import itertools
import math
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pandas as pd

from melanoma.config import TrainConfig
from melanoma.data.dataset import open_prepared
from melanoma.evidence.out_of_fold import Objective
from melanoma.io.files import claim_folder, write_parquet
from melanoma.presets import smoke
from ray_jobs.cluster import connect
from ray_jobs.progress import counted
from tune.compare import train_all_folds
from tune.search import make_scheduler, make_searcher
from tune.space import FACTOR, GAMMA, LEAD, TAU, Sample, SearchSpace, plain, to_config
from tune.trial import Study

GRID = {GAMMA: (0.0, 1.0, 2.0, 3.5, 5.0), TAU: (0.0, 0.5, 1.0), FACTOR: (1.0, 2.8, 8.0)}
OBJECTIVE = Objective("melanoma_recall", 0.8)
TOLERANCE, MAX_TRIALS = 0.01, 200
SPACE = SearchSpace()


def record(dataset: Path, table: Path, *, at_once: int) -> None:
    """Train the whole grid, and write one row for each setting and rung."""
    connect()
    folds_dir, data = table.with_suffix(".folds"), open_prepared(dataset)
    claim_folder(folds_dir, {"content": data.content_hash})
    study = Study(
        dataset.resolve(),
        data.task,
        folds_dir.resolve(),
        smoke(),
        data.manifest.num_folds,
        at_once=at_once,
    )
    samples = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    trained = train_all_folds(
        study, [to_config(sample, study.base) for sample in samples], what="grid", counted=counted
    )
    rows = [
        {**sample, "folds": done, "objective": OBJECTIVE.score(folds[:done])}
        for sample, folds in zip(samples, trained, strict=True)
        if folds is not None
        for done in range(1, study.num_folds + 1)
    ]
    write_parquet(table, pd.DataFrame(rows))


class Table:
    """A grid of recorded figures.

    Calling it with a sample returns the objectives of the nearest setting after 1 to K folds.

    Args:
        table: columns gamma, tau, target_factor, folds (1 to K) and objective, one row for each
            setting and rung.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        wide = table.pivot(index=list(GRID), columns="folds", values="objective")
        self.figures = wide.to_numpy()
        self._places = np.array(
            [self._place(dict(zip(GRID, index, strict=True))) for index in wide.index]
        )

    @staticmethod
    def _place(sample: Sample) -> tuple[float, float, float]:
        """Return the position of a sample in the unit cube, in which distances are measured."""
        gamma = sample[GAMMA] if sample[GAMMA] >= 1 else 0.0
        return gamma / 5, sample[TAU], math.log(sample[FACTOR], 8)

    def __call__(self, sample: Sample) -> np.ndarray:
        return self.figures[np.abs(self._places - self._place(sample)).sum(axis=1).argmin()]


@dataclasses.dataclass(frozen=True)
class Tried:
    """One trial of a replayed search.

    Attributes:
        sample: the sample that was tried.
        finished: whether the trial trained all folds.
        figure: its objective over the folds it trained.
        spent: number of folds that the search has trained so far, this trial included.
    """

    sample: Sample
    finished: bool
    figure: float
    spent: int


def play(table: Table, *, kind: str, seed: int, num_trials: int = MAX_TRIALS) -> Iterator[Tried]:
    """Run the search's own searcher and scheduler on a table, one trial at a time.

    The anchors come first, as in a real search.

    Args:
        table: the recorded figures.
        kind: tpe (with halving) or random (without).
        seed: seed of the searcher.
        num_trials: number of trials, the anchors included.
    """
    base, num_folds = TrainConfig.from_dict({"seed": seed}), table.figures.shape[1]
    of_base, spent = table(SPACE.sample_of(base)), 0
    known = []
    for anchor in (SPACE.sample_of(base), SPACE.sample_of(plain(base))):
        figure, spent = float(table(anchor)[-1]), spent + num_folds
        known.append((anchor, figure - float(of_base[-1])))
        yield Tried(anchor, True, figure, spent)
    searcher, scheduler = (
        make_searcher(SPACE, base, kind=kind, known=known, first=[]),
        make_scheduler(num_folds),
    )
    scheduler.set_search_properties(LEAD, "max")
    for number in range(num_trials - len(known)):
        trial = types.SimpleNamespace(trial_id=str(number))
        sample = searcher.suggest(trial.trial_id)
        assert sample is not None
        figures = table(sample)
        scheduler.on_trial_add(None, trial)
        for done in range(1, num_folds + 1):
            spent += 1
            lead = {
                LEAD: float(figures[done - 1] - of_base[done - 1]),
                "folds": done,
                "training_iteration": done,
            }
            if (
                kind == "tpe"
                and done < num_folds
                and scheduler.on_trial_result(None, trial, lead) == "STOP"
            ):
                break
        searcher.on_trial_complete(trial.trial_id, lead)
        yield Tried(sample, done == num_folds, float(figures[done - 1]), spent)


def folds_needed(table: Table, *, kind: str, seed: int) -> tuple[int, bool]:
    """Return how many folds one search trains until it succeeds, and whether it does.

    It succeeds when a trial that trained all folds comes within the tolerance of the best setting.
    """
    goal = table.figures[:, -1].max() - TOLERANCE
    for tried in play(table, kind=kind, seed=seed):
        if tried.finished and tried.figure >= goal:
            return tried.spent, True
    return tried.spent, False


def replay(path: Path, *, num_seeds: int) -> None:
    """Print the number of epochs that each search needs."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table, epochs = Table(pd.read_parquet(path)), smoke().optim.epochs
    print(
        f"{len(table.figures)} settings on {table.figures.shape[1]} folds, {num_seeds} seeds, to"
        f" within {TOLERANCE} of the best"
    )
    needed = {}
    for kind, name in (("random", "random, no halving"), ("tpe", "TPE with halving")):
        runs = [folds_needed(table, kind=kind, seed=seed) for seed in range(num_seeds)]
        needed[kind] = np.array([folds for folds, _ in runs]) * epochs
        quartiles = ", ".join(f"{value:.0f}" for value in np.percentile(needed[kind], [25, 50, 75]))
        missed = sum(not reached for _, reached in runs)
        print(
            f"{name:20} epochs, mean {needed[kind].mean():7.1f}   quartiles {quartiles}   never"
            f" reached: {missed}"
        )
    print(f"ratio of means {needed['tpe'].mean() / needed['random'].mean():.2f}")


def main() -> None:
    """Record or replay."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("record", "replay"))
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=100)
    args = parser.parse_args()
    if args.step == "record":
        record(*args.paths, at_once=args.at_once)
    else:
        replay(*args.paths, num_seeds=args.seeds)


if __name__ == "__main__":
    main()
