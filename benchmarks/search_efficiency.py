"""Measures how many folds a search trains until what it recommends is nearly the best.

Two searches are compared on a grid of settings. The search trains one fold of a setting at a time
and recommends the setting with the highest expected lead. Random search trains all folds of random
settings and recommends the one with the highest mean. As `melanoma tune` does, both start with all
folds of the base and of plain cross-entropy.

`surfaces` replays both on drawn surfaces, where the true value of each setting is known, and so is
the regret of a recommendation: how far it lies below the best setting.

`record` trains every setting of the grid on all folds with three seeds. `replay` runs both searches
on the results of one seed and scores their recommendations by the mean of the other seeds.

    python -m benchmarks.search_efficiency surfaces [--keep]
    python -m benchmarks.search_efficiency record DATASET table.parquet
    python -m benchmarks.search_efficiency replay table.parquet
"""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.figures import keep, write_pages
from melanoma.arrays import FloatArray
from melanoma.config import TrainConfig
from melanoma.data.dataset import open_prepared
from melanoma.evidence.objective import Objective
from melanoma.io.files import claim_folder, write_parquet
from melanoma.presets import smoke
from ray_jobs.cluster import connect
from ray_jobs.progress import counted
from tune.compare import train_all_folds
from tune.proposer import Proposer
from tune.space import FACTOR, GAMMA, TAU, SearchSpace, plain, to_config
from tune.trial import Study

GRID = {GAMMA: (0.0, 1.0, 2.0, 3.5, 5.0), TAU: (0.0, 0.5, 1.0), FACTOR: (1.0, 2.8, 8.0)}
SAMPLES = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
OBJECTIVE = Objective("melanoma_recall", 0.8)
GOAL = 0.02
NUM_FOLDS, NUM_SEEDS = 5, 3
SPACE = SearchSpace.around(TrainConfig())
BASE, PLAIN = (
    SAMPLES.index(dict(SPACE.sample_of(config))) for config in (TrainConfig(), plain(TrainConfig()))
)
SETTING_SPREAD, FOLD_SPREAD = 0.045, 0.05
"""Standard deviations of the drawn values of settings and of folds."""
NOISES = (0.02, 0.04)
"""Standard deviation of one training, which another seed would change."""
SHOWN = (10, 20, 30, 40, 60, 80, 120)

Recommended = list[int]
"""The setting that a search recommends after each training, by its number in the grid."""


def propose_folds(values: FloatArray, *, seed: int, num_trained: int) -> Recommended:
    """Run the project's search on known values ``(S, K)`` of all settings and folds."""
    proposer = Proposer(
        SPACE,
        [SAMPLES[BASE], SAMPLES[PLAIN]],
        num_folds=values.shape[1],
        seed=seed,
        draw=lambda rng: [SAMPLES[index] for index in rng.permutation(len(SAMPLES))],
    )
    tried, recommended = [BASE], Recommended()
    for _ in range(min(num_trained, values.size)):
        proposal = proposer.propose()
        setting = SAMPLES.index(dict(proposal.sample))
        proposer.tell(proposal, float(values[setting, proposal.fold]))
        if setting not in tried:
            tried.append(setting)
        leads, _ = proposer.leads([SAMPLES[index] for index in tried])
        recommended.append(tried[int(leads.argmax())])
    return recommended


def try_all_folds(values: FloatArray, *, seed: int, num_trained: int = 0) -> Recommended:
    """Run random search on known values ``(S, K)``; the best mean seen is recommended.

    It costs nothing here, so it always tries the whole grid.
    """
    others = np.delete(np.arange(len(values)), [BASE, PLAIN])
    num_folds, best, recommended = values.shape[1], BASE, Recommended()
    for setting in [BASE, PLAIN, *np.random.default_rng(seed).permutation(others)]:
        recommended += [best] * (num_folds - 1)
        best = max(best, int(setting), key=lambda index: float(values[index].mean()))
        recommended.append(best)
    return recommended


SEARCHES = {"random, all folds": try_all_folds, "one fold at a time": propose_folds}


def _alike(length: float, places: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw a surface on which settings at this distance in the unit cube are still alike."""
    squared = ((places[:, None] - places[None]) ** 2).sum(axis=2)
    drawn: FloatArray = rng.multivariate_normal(
        np.zeros(len(places)), np.exp(-0.5 * squared / length**2)
    )
    return drawn


def _ridge(places: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw a surface that the model of the search does not expect: a sharp ridge and a step."""
    direction, at = rng.normal(size=places.shape[1]), places[rng.integers(len(places))]
    values = -np.abs((places - at) @ direction) - 0.5 * (places[:, rng.integers(3)] > 0.5)
    ridge: FloatArray = (values - values.mean()) / values.std()
    return ridge


SURFACES: dict[str, Callable[[FloatArray, np.random.Generator], FloatArray]] = {
    "smooth": functools.partial(_alike, 0.7),
    "rough": functools.partial(_alike, 0.25),
    "ridge": _ridge,
}


def draw_surface(name: str, noise: float, rng: np.random.Generator) -> tuple[FloatArray, ...]:
    """Draw true values ``(S,)`` of all settings, and what trainings show of them ``(S, K)``."""
    places = np.array([SPACE.places_of(sample) for sample in SAMPLES])
    true = SETTING_SPREAD * SURFACES[name](places, rng)
    folds = rng.normal(0.0, FOLD_SPREAD, NUM_FOLDS)
    shown = true[:, None] + folds + rng.normal(0.0, noise, (len(SAMPLES), NUM_FOLDS))
    return true, shown


def surfaces(*, num_replays: int, num_trained: int) -> list[dict[str, str]]:
    """Print the mean regret of both searches on drawn surfaces, and return a row for each kind."""
    rows = []
    for name, noise in itertools.product(SURFACES, NOISES):
        rng = np.random.default_rng(0)
        drawn = [draw_surface(name, noise, rng) for _ in range(num_replays)]
        print(f"\n{name} surface, noise {noise} a fold, {num_replays} surfaces: mean regret after")
        needed = {}
        for search, run in SEARCHES.items():
            regret = np.mean(
                [
                    (true.max() - true)[run(shown, seed=seed, num_trained=num_trained)]
                    for seed, (true, shown) in enumerate(drawn)
                ],
                axis=0,
            )
            reached = np.flatnonzero(regret <= GOAL)
            needed[search] = int(reached[0]) + 1 if len(reached) else None
            print(_row(search, regret), f"  to {GOAL}: {needed[search] or 'not reached'}")
        of_random, ours = needed.values()
        rows.append(
            {
                "surface": name,
                "noise of a fold": f"{noise:g}",
                **{search: str(num or "not reached") for search, num in needed.items()},
                "ratio": f"{ours / of_random:.2f}" if ours and of_random else "-",
            }
        )
    return rows


def _row(name: str, values: FloatArray) -> str:
    shown = (f"{n}: {values[n - 1]:+.3f}" for n in SHOWN if n <= len(values))
    return f"{name:28} {'  '.join(shown)}"


def record(dataset: Path, table: Path, *, at_once: int) -> None:
    """Train the whole grid, and write one row for each setting, seed and fold."""
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
    rows = []
    for seed in range(NUM_SEEDS):
        configs = [
            dataclasses.replace(to_config(sample, study.base), seed=seed) for sample in SAMPLES
        ]
        trained = train_all_folds(study, configs, what=f"grid, seed {seed}", counted=counted)
        rows += [
            {**sample, "seed": seed, "fold": fold, "objective": OBJECTIVE.score([scores])}
            for sample, folds in zip(SAMPLES, trained, strict=True)
            for fold, scores in enumerate(folds or [])
        ]
    write_parquet(table, pd.DataFrame(rows))


def replay(path: Path, *, num_replays: int, num_trained: int) -> None:
    """Print what both searches gain on a recorded grid."""
    table = pd.read_parquet(path)
    wide = table.set_index(["seed", *GRID, "fold"])["objective"].unstack("fold")
    order = [tuple(sample.values()) for sample in SAMPLES]
    values = np.stack([wide.loc[seed].reindex(order).to_numpy() for seed in range(NUM_SEEDS)])
    if np.isnan(values).any():
        raise ValueError(
            "Every setting must have trained on every fold with every seed; one has not."
        )
    noise = float(np.mean(values.std(axis=0, ddof=1)))
    by_seed = values.mean(axis=2)
    print(
        f"{values.shape[1]} settings, {values.shape[2]} folds, {NUM_SEEDS} seeds: noise"
        f" {noise:.3f} a fold, spread of the settings' means {np.std(by_seed.mean(axis=0)):.3f},"
        f" their correlation between seeds {_mean_correlation(by_seed):.2f}"
    )
    print(f"means over {num_replays} replays of the {NUM_SEEDS} seeds in turn, after")
    for name, run in SEARCHES.items():
        leads, regrets = [], []
        for index, (lead, shown) in zip(range(num_replays), _splits(values), strict=False):
            recommended = run(shown, seed=index, num_trained=num_trained)
            leads.append(lead[recommended])
            regrets.append((lead.max() - lead)[recommended])
        print(_row(f"{name}: lead", np.mean(leads, axis=0)))
        print(_row(f"{name}: regret", np.mean(regrets, axis=0)))
    best = [
        lead[shown.mean(axis=1).argmax()] for lead, shown in itertools.islice(_splits(values), 3)
    ]
    print(
        f"lead of the best mean of all {values[0].size} trainings of a seed: {np.mean(best):+.3f}"
    )


def _splits(values: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield, for each seed in turn, the leads on the other seeds and what the seed shows."""
    for seed in itertools.cycle(range(NUM_SEEDS)):
        others = np.mean(np.delete(values, seed, axis=0), axis=(0, 2))
        lead: FloatArray = others - others[BASE]
        yield lead, values[seed]


def _mean_correlation(by_seed: FloatArray) -> float:
    return float(np.corrcoef(by_seed)[np.triu_indices(NUM_SEEDS, 1)].mean())


def main() -> None:
    """Replay on surfaces, record, or replay what was recorded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("surfaces", "record", "replay"))
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="put the table into the documentation")
    parser.add_argument("--replays", type=int, default=100)
    parser.add_argument("--trained", type=int, default=80, help="folds that our search trains")
    args = parser.parse_args()
    if args.step == "surfaces":
        rows = surfaces(num_replays=args.replays, num_trained=args.trained)
        if args.keep:
            keep("search-efficiency", rows)
            write_pages()
    elif args.step == "record":
        record(*args.paths, at_once=args.at_once)
    else:
        replay(*args.paths, num_replays=args.replays, num_trained=args.trained)


if __name__ == "__main__":
    main()
