"""Searches over surfaces whose best region is planted: the search's own searcher, scheduler and
choice, on known figures."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.search_efficiency import Table, play
from tune.space import FACTOR, GAMMA, TAU, Sample

SEEDS, NUM_FOLDS, NUM_TRIALS = 20, 5, 16
FOLD_NOISE, SETTING_NOISE = (
    0.04,
    0.01,
)  # of one fold's objective: what all settings share there, and what each has of its own


def _table(surface: Callable[[float, float, float], float], seed: int) -> Table:
    """Return a grid of figures: the surface, folds that are hard or easy for all, and noise of each
    setting on each fold."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, FOLD_NOISE, NUM_FOLDS)
    rows = []
    for gamma, tau, factor in itertools.product(
        (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0), np.linspace(0, 1, 6), 8 ** np.linspace(0, 1, 5)
    ):
        folds = surface(gamma, tau, factor) + hard + rng.normal(0, SETTING_NOISE, NUM_FOLDS)
        rows += [
            {
                GAMMA: gamma,
                TAU: tau,
                FACTOR: factor,
                "folds": done,
                "objective": folds[:done].mean(),
            }
            for done in range(1, NUM_FOLDS + 1)
        ]
    return Table(pd.DataFrame(rows))


def _chosen(table: Table, seed: int) -> Sample:
    finished = [
        tried
        for tried in play(table, kind="tpe", seed=seed, num_trials=NUM_TRIALS)
        if tried.finished
    ]
    return max(finished, key=lambda tried: tried.figure).sample


def test_a_planted_region_is_found() -> None:
    """Heavy melanomas and a moderate gamma are best, far from both anchors; the further away, the
    worse."""

    def surface(gamma: float, tau: float, factor: float) -> float:
        return (
            0.75
            - 0.1 * ((gamma - 2) / 5) ** 2
            - 0.15 * (tau - 0.8) ** 2
            - 0.15 * (math.log(factor, 8) - 0.7) ** 2
        )

    best = [_chosen(_table(surface, seed), seed) for seed in range(SEEDS)]
    reached = [surface(s[GAMMA] if s[GAMMA] >= 1 else 0.0, s[TAU], s[FACTOR]) for s in best]
    assert np.mean(reached) > 0.75 - 0.02
    assert np.mean(reached) > surface(0, 0.5, 1) + 0.04  # the base
    assert sum(value > surface(0, 0.5, 1) for value in reached) == SEEDS


def test_where_focal_loss_hurts_gamma_is_zero() -> None:
    def surface(gamma: float, tau: float, factor: float) -> float:
        return 0.75 - 0.03 * gamma - 0.08 * (tau - 1) ** 2 - 0.1 * (math.log(factor, 8) - 0.7) ** 2

    best = [_chosen(_table(surface, seed), seed) for seed in range(SEEDS)]
    assert sum(sample[GAMMA] < 1 for sample in best) >= SEEDS - 1
    # Not because the anchors, which have gamma 0, win by themselves: the best weights are far from
    # theirs.
    reached = [surface(0.0, sample[TAU], sample[FACTOR]) for sample in best]
    assert np.mean(reached) > max(surface(0, 0.5, 1), surface(0, 0, 1)) + 0.03


def test_settings_that_are_dropped_cost_less_than_all_folds() -> None:
    table = _table(lambda gamma, tau, factor: 0.7 - 0.05 * gamma, 0)
    *_, last = play(table, kind="tpe", seed=0, num_trials=NUM_TRIALS)
    assert last.spent < 0.8 * NUM_TRIALS * NUM_FOLDS
    *_, whole = play(table, kind="random", seed=0, num_trials=NUM_TRIALS)
    assert whole.spent == NUM_TRIALS * NUM_FOLDS
