"""From a search to a bundle and a verdict.

The steps: search, repeat with new seeds, train the winner and make its contract, score test once.
Callers pass in functions that train a network and score test; this package starts no jobs or
evaluations itself.
"""

import dataclasses
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from melanoma.bundle.bundle import fetch_bundle
from melanoma.bundle.manifest import MANIFEST, read_manifest
from melanoma.config import TrainConfig
from melanoma.data.dataset import open_prepared
from melanoma.executor import Counted, silently
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
from tune.columns import EPOCHS, EXPECTED, FAILED, FINISHED, SETTING, STATUS
from tune.compare import (
    Arm,
    Folds,
    compare_arms,
    compare_predictions,
    repeat,
    train_all_folds,
    verdict,
)
from tune.report import Findings, write_report
from tune.search import Search, SearchPlan, expected_leads, run_search
from tune.space import to_config
from tune.trial import PREDICTIONS, fold_predictions, fold_scores

NUM_VALUES = 41  # of each setting, on the page
TrainBundle = Callable[[TrainConfig, AnyPath], TrainResult]
"""(settings, run folder) -> the result of the run; the same call again resumes it."""
ScoreTest = Callable[[AnyPath, AnyPath], AnyPath]
"""(bundle, folder) -> path of predictions.parquet for test; the access is logged."""


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
    winner = best_config(trials, search, counted=counted)
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


def best_config(
    trials: pd.DataFrame, search: Search, *, counted: Counted = silently
) -> TrainConfig:
    """Return the setting with the highest expected lead over the base, and train all its folds.

    The highest figure seen would mostly be the luckiest. A setting that fails on a fold is passed
    over. If no expected lead is above 0, the best is the base.
    """
    sound = trials[~trials[SETTING].isin(trials.loc[trials[STATUS] == FAILED, SETTING])]
    ranked = sound.drop_duplicates(SETTING).sort_values(EXPECTED, ascending=False, kind="stable")
    for _, best in ranked[list(search.plan.space.ranges)].iterrows():
        config = to_config(dict(best), search.study.base)
        [folds] = train_all_folds(
            search.study, [config], what="other folds of the best setting", counted=counted
        )
        if folds is not None:
            return config
    raise AssertionError("The base setting has trained on all folds.")


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
        folder for folder in search.study.folds_dir.iterdir() if (folder / PREDICTIONS).is_file()
    ]
    num_compared = len(kept) - int((trials[STATUS] == FINISHED).sum())
    return {
        "objective": str(search.plan.objective),
        "num_trials": len(trials),
        "num_settings": trials[SETTING].nunique(),
        "by_status": trials[STATUS].value_counts().to_dict(),
        "epochs_of_search": int(trials[EPOCHS].sum()),
        "epochs_of_comparison": num_compared * search.study.base.optim.epochs,
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
    def folds_of(config: TrainConfig) -> Folds:
        return [fold_scores(search.study, config, fold) for fold in range(search.study.num_folds)]

    sound = {
        name: config
        for name, config in {**search.given(), "winner": winner}.items()
        if not ((trials[SETTING] == name) & (trials[STATUS] == "failed")).any()
    }
    return Findings(
        trials=trials,
        result=result,
        slices=slices(search, trials, winner),
        folds={name: folds_of(config) for name, config in sound.items()},
    )


def slices(search: Search, trials: pd.DataFrame, winner: TrainConfig) -> dict[str, pd.DataFrame]:
    """Return the expected lead over the base when one setting of the winner changes.

    Returns:
        For each searched setting a table with the columns value, lead and sd.
    """
    at = search.plan.space.sample_of(winner)
    tables = {}
    for name, range_ in search.plan.space.ranges.items():
        values = sorted({range_.value_at(place) for place in np.linspace(0, 1, NUM_VALUES)})
        lead, sd = expected_leads(search, trials, [{**at, name: value} for value in values])
        tables[name] = pd.DataFrame({"value": values, "lead": lead, "sd": sd})
    return tables


def describe_search(result: dict[str, Any], folder: AnyPath) -> str:
    """Return the content of a search's result.json as lines of text."""
    loss, test = result["loss"]["winner"], result["test_difference"]
    lines = (
        (
            f"{result['num_trials']} trials of {result['num_settings']} settings for"
            f" {result['objective']}: best gamma {loss['gamma']:.2f}, tau {loss['tau']:.2f},"
            f" target factor {loss['target_factor']:.2f}"
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
