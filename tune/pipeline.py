"""From a search to a bundle and a verdict.

The steps: search, repeat with new seeds, train the winner and make its contract, score test once.
Callers pass in functions that train a network and score test; this package starts no jobs or
evaluations itself.
"""

import dataclasses
import shutil
from collections.abc import Callable
from typing import Any

import pandas as pd

from melanoma.bundle.bundle import fetch_bundle
from melanoma.bundle.manifest import MANIFEST, read_manifest
from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.errors import DataError
from melanoma.evidence.out_of_fold import Objective
from melanoma.io.files import (
    claim_folder,
    new_folder,
    read_json,
    read_parquet,
    write_json,
    write_parquet,
)
from melanoma.io.storage import AnyPath
from melanoma.training.run import RESULT, TrainResult
from tune.compare import Arm, Counted, Folds, compare_arms, compare_predictions, repeat, verdict
from tune.report import Findings, write_report
from tune.search import Search, SearchPlan, run_search
from tune.space import METRIC, to_config
from tune.trial import PREDICTIONS, fold_predictions, fold_scores

TrainBundle = Callable[[TrainConfig, AnyPath], TrainResult]
"""(settings, run folder) -> the result of the run; the same call again resumes it."""
ScoreTest = Callable[[AnyPath, AnyPath], AnyPath]
"""(bundle, folder) -> path of predictions.parquet for test; the access is logged."""


def check_verdict(data: PreparedData) -> None:
    """Check, before hours of search, that test holds what a verdict needs: targets and others.

    Raises:
        DataError: if it does not.
    """
    rows, nouns = data.rows("test"), data.task.noun[1]
    num_target = int(rows["dx"].isin(data.task.targets).sum())
    if not 0 < num_target < len(rows):
        raise DataError(
            f"The test split must hold {nouns} and others for a verdict; {num_target} of its"
            f" {len(rows)} images are {nouns}. Prepare the data set with a larger test fraction."
        )


def usual_objective(data: PreparedData) -> Objective:
    """Return the objective of a search for which none is named.

    It is the recall of the targets at a specificity of 0.8, within sources if more than one source
    of the training split holds both targets and others.
    """
    rows = data.rows("train")
    is_target = rows["dx"].isin(data.task.targets)
    kinds = is_target.groupby(rows["source"]).nunique()
    return Objective("melanoma_recall", 0.8, within_source=int((kinds == 2).sum()) > 1)


def claim_search(plan: SearchPlan, *, content: str) -> dict[str, Any] | None:
    """Claim the run folder for this search of this data.

    Args:
        plan: the search.
        content: the content hash of the data set.

    Returns:
        The content of result.json if the search is finished, else None.

    Raises:
        DataError: if the folder holds another search or something else.
    """
    described = {
        "base": dataclasses.asdict(plan.base),
        "weights": plan.weights,
        "content": content,
        "space": dataclasses.asdict(plan.space),
        "objective": str(plan.objective),
        "num_trials": plan.num_trials,
        "searcher": plan.searcher,
    }
    claim_folder(plan.run_dir, described)
    plan.folds_dir.mkdir(exist_ok=True)
    if not (plan.run_dir / RESULT).is_file():
        return None
    values: dict[str, Any] = read_json(plan.run_dir / RESULT)
    return values


def tune_run(
    search: Search, *, train: TrainBundle, score: ScoreTest, counted: Counted
) -> dict[str, Any]:
    """Run or resume a claimed search until it is finished.

    Args:
        search: the search.
        train: trains a setting and packs its bundle.
        score: scores a bundle on test.
        counted: shows the progress.

    Returns:
        The content of result.json.

    Raises:
        DataError: if the winner and the base cannot be compared with any seed.
        FloatingPointError: if the loss of the base setting does not stay finite.
    """
    folder, objective = search.plan.run_dir, search.plan.objective
    trials = run_search(search, counted=counted)
    winner = best_config(trials, search)
    write_json(folder / "best.json", dataclasses.asdict(winner))
    ours, theirs = repeat(search.study, winner, objective, counted=counted)
    _keep_out_of_fold(search, winner)
    trained = train(winner, folder / "final" / "winner")
    on_test = {"winner": _score(folder, "winner", trained, score)}
    on_test["base"] = (
        on_test["winner"]
        if winner == search.study.base
        else _score(folder, "base", train(search.study.base, folder / "final" / "base"), score)
    )
    result = {
        **_search_result(search, trials, winner),
        **_comparison(search, {"winner": ours, "base": theirs}, on_test),
        "contract": dataclasses.asdict(trained.contract),
        "contract_sentence": trained.contract_sentence,
        "bundle": "bundle",
        "best": "best.json",
    }
    with new_folder(folder / "bundle", replace_if=MANIFEST) as work:
        bundle = fetch_bundle(trained.bundle)
        for name in (MANIFEST, *read_manifest(bundle).files):
            shutil.copyfile(bundle / name, work / name)
    write_report(_findings(search, trials, winner, result), folder / "report.html")
    write_json(folder / RESULT, result)
    return result


def best_config(trials: pd.DataFrame, search: Search) -> TrainConfig:
    """Return the setting of the best trial among those that trained all folds.

    Of equal trials it is the first; the base comes before all others.
    """
    finished = trials[trials["status"] == "finished"]
    best = finished.sort_values(METRIC, ascending=False, kind="stable").iloc[0]
    return _config_of(best, search)


def _config_of(trial: "pd.Series[Any]", search: Search) -> TrainConfig:
    names = search.plan.space.distributions(search.study.base)
    return to_config({name: float(trial[name]) for name in names}, search.study.base)


def _score(folder: AnyPath, name: str, trained: TrainResult, score: ScoreTest) -> AnyPath:
    """Score a bundle on test unless that is done, and return the path of its predictions.

    The report is written after the predictions, so it shows that they are complete.
    """
    predictions = folder / "test" / name / "predictions.parquet"
    return (
        predictions
        if (predictions.parent / "report.json").is_file()
        else score(trained.bundle, predictions.parent)
    )


def _keep_out_of_fold(search: Search, winner: TrainConfig) -> None:
    """Write out_of_fold.parquet: the winner's predictions for every fold.

    The network that predicts a fold was trained on the other folds only.
    """
    parts = [
        fold_predictions(search.study, winner, fold).assign(fold=fold)
        for fold in range(search.study.num_folds)
    ]
    write_parquet(search.plan.run_dir / "out_of_fold.parquet", pd.concat(parts, ignore_index=True))


def _search_result(search: Search, trials: pd.DataFrame, winner: TrainConfig) -> dict[str, Any]:
    kept = [
        folder for folder in search.study.folds_dir.iterdir() if not folder.name.startswith(".")
    ]
    confirmed = sum((folder / PREDICTIONS).is_file() for folder in kept) - int(
        trials["folds"].sum()
    )
    return {
        "objective": str(search.plan.objective),
        "num_trials": len(trials),
        "by_status": trials["status"].value_counts().to_dict(),
        "epochs_of_search": int(trials["epochs"].sum()),
        "epochs_of_comparison": max(0, confirmed) * search.study.base.optim.epochs,
        "winner_is_base": winner == search.study.base,
        "loss": {
            "winner": dataclasses.asdict(winner.loss),
            "base": dataclasses.asdict(search.study.base.loss),
        },
    }


def _comparison(
    search: Search, arms: dict[str, Arm], on_test: dict[str, AnyPath]
) -> dict[str, Any]:
    tables = {name: read_parquet(path) for name, path in on_test.items()}
    test = compare_predictions(
        search.plan.objective, search.study.task, tables["winner"], tables["base"]
    )
    return {
        "arms": {name: arm.as_dict() for name, arm in arms.items()},
        "out_of_fold_difference": dataclasses.asdict(
            compare_arms(search.plan.objective, arms["winner"], arms["base"])
        ),
        "test_difference": dataclasses.asdict(test),
        "verdict": verdict(test),
        "num_test_accesses": len(open_prepared(search.study.dataset).accesses("test")),
    }


def _findings(
    search: Search, trials: pd.DataFrame, winner: TrainConfig, result: dict[str, Any]
) -> Findings:
    labels = open_prepared(search.study.dataset).rows("train")["dx"].value_counts()
    task = search.study.task
    commonest = str(labels.drop(list(task.targets)).idxmax())

    def folds_of(config: TrainConfig) -> Folds:
        return [fold_scores(search.study, config, fold) for fold in range(search.study.num_folds)]

    finished = trials[trials["status"] == "finished"]
    folds = [folds_of(_config_of(trial, search)) for _, trial in finished.iterrows()]
    anchors = {
        name: kept
        for name, kept in zip(finished["trial"], folds, strict=True)
        if name in search.anchors()
    }
    return Findings(
        trials=trials,
        result=result,
        space=search.plan.space.distributions(search.study.base),
        full_epochs=len(trials) * search.study.num_folds * search.study.base.optim.epochs,
        finished=folds,
        anchors={**anchors, "winner": folds_of(winner)},
        commonest=commonest,
        others_per_target=float(labels[commonest]) / float(labels[list(task.targets)].sum()),
    )


def describe_search(result: dict[str, Any], folder: AnyPath) -> str:
    """Return the content of a search's result.json as lines of text."""
    loss, test = result["loss"]["winner"], result["test_difference"]
    lines = (
        (
            f"{result['num_trials']} trials for {result['objective']}: best gamma"
            f" {loss['gamma']:.2f}, tau {loss['tau']:.2f}, target factor"
            f" {loss['target_factor']:.2f}"
        ),
        (
            f"{result['verdict']} on test: winner minus base {test['value']:+.3f}"
            f" [{test['low']:+.3f}, {test['high']:+.3f}]"
        ),
        f"contract {result['contract']['status']}: {result['contract_sentence']}",
        f"settings {folder / result['best']}",
        f"bundle {folder / result['bundle']}",
    )
    return "\n".join(lines)
