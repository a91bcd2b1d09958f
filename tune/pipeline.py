"""From a search to a bundle and a verdict: search, repeat with more seeds, train the winner, contract it, look at test once.

How a network is trained and how test is scored is handed in; this package starts neither jobs nor evaluations of its own.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from melanoma.config import TrainConfig
from melanoma.errors import DataError
from melanoma.files import claim_folder, new_folder, write_json
from tune.compare import Arm, compare_arms, compare_predictions, repeat, train_all_folds, verdict
from tune.report import Findings, write_report
from tune.search import METRIC, TRIALS, Search, run_search
from tune.space import plain, to_config
from tune.trial import fold_predictions

TrainBundle = Callable[[TrainConfig, Path], Path]
"""(settings, run folder) -> the bundle's folder; the same call again resumes."""
ScoreTest = Callable[[Path, Path], Path]
"""(bundle, folder) -> predictions.parquet of test, a look that is logged."""


def tune_run(search: Search, *, split_hash: str, train: TrainBundle, score: ScoreTest) -> dict[str, Any]:
    """Run or resume a search to its end and return result.json.

    Raises:
        DataError: if the run folder holds another search, or no trial finished.
    """
    study, folder = search.study, search.run_dir
    described = {
        "base": dataclasses.asdict(study.base), "weights": study.weights, "split_hash": split_hash,
        "space": dataclasses.asdict(search.space), "objective": str(search.objective), "num_trials": search.num_trials,
        "searcher": search.searcher,
    }  # fmt: skip
    claim_folder(folder, described)
    study.folds_dir.mkdir(exist_ok=True)
    if (folder / "result.json").is_file():
        return _read(folder / "result.json")
    trials = run_search(search)
    winner = best_config(trials, search)
    write_json(folder / "best.json", dataclasses.asdict(winner))
    arms = {"winner": repeat(study, winner, search.objective), "base": repeat(study, study.base, search.objective)}
    (plain_folds,) = train_all_folds(study, [plain(study.base)])
    _keep_out_of_fold(search, winner)
    on_test = {"winner": _final(folder, "winner", winner, train, score)}
    on_test["base"] = on_test["winner"] if winner == study.base else _final(folder, "base", study.base, train, score)
    result = _result(search, trials, winner, arms, search.objective.score(plain_folds), on_test)
    with new_folder(folder / "bundle", replace_if="manifest.json") as work:
        shutil.copytree(folder / "final" / "winner" / "bundle", work, dirs_exist_ok=True)
    write_report(Findings(search, trials, winner, arms, plain_folds, result), folder / "report.html")
    write_json(folder / "result.json", result)
    return result


def _final(folder: Path, name: str, config: TrainConfig, train: TrainBundle, score: ScoreTest) -> Path:
    """Train and contract a setting and score it on test, unless that is done; return its predictions."""
    bundle = train(config, folder / "final" / name)
    predictions = folder / "test" / name / "predictions.parquet"
    return predictions if predictions.is_file() else score(bundle, predictions.parent)


def best_config(trials: pd.DataFrame, search: Search) -> TrainConfig:
    """Return the setting of the best trial among those that saw every fold.

    Raises:
        DataError: if there is none.
    """
    finished = trials[trials["status"] == "finished"]
    if finished.empty:
        raise DataError(f"a search needs a trial that finishes all folds, none did; see {search.run_dir / TRIALS}.")
    best = finished.sort_values(METRIC, kind="stable").iloc[-1]
    return to_config(
        {name: float(best[name]) for name in search.space.distributions(search.study.base)}, search.study.base
    )


def _keep_out_of_fold(search: Search, winner: TrainConfig) -> None:
    """Write the winner's predictions of every fold by the network that had not seen it."""
    parts = [fold_predictions(search.study, winner, fold).assign(fold=fold) for fold in range(search.study.num_folds)]
    with new_folder(search.run_dir / "out_of_fold", replace_if="predictions.parquet") as work:
        pd.concat(parts, ignore_index=True).to_parquet(work / "predictions.parquet", index=False)


def _result(
    search: Search,
    trials: pd.DataFrame,
    winner: TrainConfig,
    arms: dict[str, Arm],
    plain_score: float,
    on_test: dict[str, Path],
) -> dict[str, Any]:
    objective = search.objective
    out_of_fold = compare_arms(objective, arms["winner"], arms["base"])
    tables = {name: pd.read_parquet(path) for name, path in on_test.items()}
    test = compare_predictions(objective, tables["winner"], tables["base"])
    return {
        "objective": str(objective),
        "num_trials": len(trials),
        "by_status": trials["status"].value_counts().to_dict(),
        "epochs": int(trials["epochs"].sum()),
        "winner": {
            "loss": dataclasses.asdict(winner.loss),
            "same_as_base": winner == search.study.base,
            **arms["winner"].as_dict(),
        },
        "base": {"loss": dataclasses.asdict(search.study.base.loss), **arms["base"].as_dict()},
        "plain_cross_entropy": plain_score,
        "out_of_fold_difference": dataclasses.asdict(out_of_fold),
        "test_difference": dataclasses.asdict(test),
        "verdict": verdict(test),
        "bundle": str(search.run_dir / "bundle"),
        "best": str(search.run_dir / "best.json"),
    }


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values
