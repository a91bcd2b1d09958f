import contextlib
import dataclasses
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.errors import root_cause
from melanoma.evidence.objective import OBJECTIVES, Objective
from melanoma.io.files import write_json
from ray_jobs.arguments import BAD_INPUT, DONE
from ray_jobs.cli import main
from tune.compare import train_all_folds
from tune.pipeline import best_config
from tune.proposer import Proposal
from tune.search import Search, SearchPlan, run_search
from tune.space import SearchSpace, to_config
from tune.trial import FAILURE, Study, fold_predictions, fold_scores

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
SETTINGS = [
    "--preset",
    "smoke",
    "--set",
    "optim.epochs=1",
    "--set",
    "data.input_height=48",
    "--set",
    "data.input_width=64",
    "--trials",
    "2",
]


def _result(run: Path) -> dict[str, Any]:
    """Return what a finished search prints: result.json, whose paths are those below its folder."""
    result = json.loads((run / "result.json").read_text())
    assert (result["bundle"], result["best"]) == ("bundle", "best.json")
    return {**result, "bundle": str(run / "bundle"), "best": str(run / "best.json")}


def _study(data: PreparedData, config: TrainConfig, folder: Path) -> Study:
    quick = config.with_overrides(["optim.epochs=1", "optim.warmup_epochs=0", "data.tta=1"])
    (folder / "folds").mkdir(parents=True)
    return Study(
        data.folder, data.task, folder / "folds", quick, data.manifest.num_folds, at_once=2
    )


def _search(study: Study, folder: Path, *, num_trials: int = 2) -> Search:
    space = SearchSpace.around(study.base)
    plan = SearchPlan(folder, study.base, study.weights, space, Objective("auroc"), num_trials)
    return Search(plan, study)


@pytest.fixture(scope="module")
def finished(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A search run to its end on a copy that no other test looks into: (data set, run folder)."""
    folder = tmp_path_factory.mktemp("tuned")
    dataset = Path(
        shutil.copytree(
            prepared.folder, folder / "dataset", ignore=shutil.ignore_patterns("*.jsonl")
        )
    )
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert (
            main(
                [
                    "tune",
                    str(dataset),
                    str(folder / "runs"),
                    *SETTINGS,
                    "--name",
                    "search",
                    "--json",
                ]
            )
            == DONE
        )
    run = folder / "runs" / "search"
    assert json.loads(out.getvalue()) == _result(run)
    return dataset, run


def test_a_search_leaves_what_it_promises(finished: tuple[Path, Path]) -> None:
    dataset, run = finished
    assert {
        "best.json",
        "trials.parquet",
        "report.html",
        "bundle",
        "out_of_fold.parquet",
        "proposals.json",
    } <= {path.name for path in run.iterdir()}
    result = json.loads((run / "result.json").read_text())
    trials = pd.read_parquet(run / "trials.parquet")
    num_folds = open_prepared(dataset).manifest.num_folds
    assert len(trials) == 2 * num_folds + 2 == result["num_trials"]
    assert (
        trials["setting"].tolist()[: 2 * num_folds] == ["base"] * num_folds + ["plain"] * num_folds
    )
    assert (trials["status"] == "finished").all()
    assert (trials["lead"][:num_folds] == 0).all()
    of_base = dict(zip(trials["fold"][:num_folds], trials["objective"][:num_folds], strict=True))
    last = trials.iloc[-1]
    assert last["lead"] == last["objective"] - of_base[last["fold"]]
    best = trials.sort_values("expected_lead", ascending=False, kind="stable").iloc[0]
    winner = TrainConfig.from_dict(json.loads((run / "best.json").read_text()))
    found = {
        "gamma": winner.loss.gamma,
        "tau": winner.loss.tau,
        "target_factor": winner.loss.target_factor,
    }
    assert found == best[list(found)].to_dict()
    assert {*OBJECTIVES, "objective", "lead", "expected_lead", "epochs"} <= set(trials)
    assert len(result["arms"]["winner"]["by_seed"]) == 3
    assert result["verdict"] in (
        "No difference shown",
        "The winner's network is better than the base's",
        "The winner's network is worse than the base's",
    )
    table = pd.read_parquet(run / "out_of_fold.parquet")
    assert sorted(table["image_id"]) == sorted(open_prepared(dataset).rows("train")["image_id"])


def test_training_takes_the_settings_a_search_found(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, run = finished
    command = [
        "train",
        str(dataset),
        str(tmp_path),
        "--set-file",
        str(run / "best.json"),
        "--name",
        "best",
    ]
    assert main(command) == DONE
    settings = json.loads((tmp_path / "best" / "bundle" / "manifest.json").read_text())[
        "training_config"
    ]
    assert settings == json.loads((run / "best.json").read_text())


def test_a_trial_may_be_several_workers(
    prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    alone = dataclasses.replace(
        _study(prepared, tiny_config, tmp_path), num_folds=2
    )  # two are enough to be compared
    search = _search(alone, tmp_path, num_trials=1)
    train_all_folds(
        alone, list(search.given().values())
    )  # a fold is the same by however many it was trained
    together = dataclasses.replace(alone, num_workers=2, at_once=1)
    trials = run_search(dataclasses.replace(search, study=together))
    assert trials["status"].tolist() == ["finished"] * 5


def test_test_is_looked_at_once_for_each_of_two(finished: tuple[Path, Path]) -> None:
    dataset, run = finished
    same = json.loads((run / "result.json").read_text())["winner_is_base"]
    looks = [json.loads(line) for line in (dataset / "access_log.jsonl").read_text().splitlines()]
    assert len([look for look in looks if look["split"] == "test"]) == (1 if same else 2)


def test_a_finished_search_is_only_reported(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, run = finished
    before = sorted(path.stat().st_mtime for path in run.rglob("*"))
    assert (
        main(["tune", str(dataset), str(run.parent), *SETTINGS, "--name", "search", "--json"])
        == DONE
    )
    assert json.loads(capsys.readouterr().out) == _result(run)
    assert sorted(path.stat().st_mtime for path in run.rglob("*")) == before
    other = [
        "tune",
        str(dataset),
        str(run.parent),
        *SETTINGS,
        "--name",
        "search",
        "--objective",
        "auroc",
    ]
    assert main(other) == BAD_INPUT
    assert "another --name" in capsys.readouterr().err


def test_calibration_and_test_are_never_read(
    prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    dataset = Path(shutil.copytree(prepared.folder, tmp_path / "dataset"))
    (dataset / "shards" / "calibration-00000.arrow").unlink()
    (dataset / "shards" / "test-00000.arrow").unlink()
    trials = run_search(
        _search(_study(open_prepared(dataset), tiny_config, tmp_path / "run"), tmp_path / "run")
    )
    assert (trials["status"] == "finished").all()


def test_a_failed_trial_is_reported_and_the_others_go_on(
    prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    study = _study(prepared, tiny_config, tmp_path)
    search = _search(study, tmp_path, num_trials=2)
    # An interrupted search had proposed one more trial, which is known to have failed.
    proposer = search.proposer()
    first = [proposer.propose() for _ in range(2 * study.num_folds)]
    broken = Proposal({"gamma": 2.0, "tau": 0.5, "target_factor": 2.0}, 0)
    write_json(tmp_path / "proposals.json", [dataclasses.asdict(one) for one in [*first, broken]])
    folder = study.fold_dir(to_config(broken.sample, study.base), 0)
    folder.mkdir()
    write_json(folder / FAILURE, {"error": "the loss must stay finite, it was nan in epoch 1."})
    trials = run_search(search)
    assert trials["setting"].tolist()[-2:] == ["setting 3", "setting 4"]
    assert trials["status"].tolist()[-2:] == ["failed", "finished"]
    assert trials["gamma"].iloc[-2] == 2.0
    assert "must stay finite" in trials["error"].iloc[-2]
    assert math.isnan(trials["objective"].iloc[-2])
    assert trials["epochs"].iloc[-2] == 0


def test_what_ends_a_trial_ends_the_search_which_can_be_resumed(
    prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    """Storage that takes no files: here a file stands where a fold is to be kept."""
    study = _study(prepared, tiny_config, tmp_path)
    search, taken = _search(study, tmp_path, num_trials=1), study.fold_dir(study.base, 1)
    taken.write_text("")
    with pytest.raises(Exception, match="trial") as caught:
        run_search(search)
    assert isinstance(root_cause(caught.value), FileExistsError)
    assert not (tmp_path / "trials.parquet").exists()
    taken.unlink()
    assert (run_search(search)["status"] == "finished").all()


def test_a_setting_that_fails_on_another_fold_is_not_the_best(
    prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    study = _study(prepared, tiny_config, tmp_path)
    search = _search(study, tmp_path, num_trials=1)
    trials = run_search(search)
    last = trials.iloc[-1]
    trials["expected_lead"] = (trials.index == len(trials) - 1).astype(float)
    winner = to_config({name: last[name] for name in search.plan.space.ranges}, study.base)
    assert best_config(trials, search) == winner
    other = study.fold_dir(winner, (int(last["fold"]) + 1) % study.num_folds)
    shutil.rmtree(other)
    other.mkdir()
    write_json(other / FAILURE, {"error": "nan"})
    assert best_config(trials, search) == study.base


def test_a_base_that_cannot_be_trained_ends_the_search(
    prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    study = _study(prepared, tiny_config, tmp_path)
    study.fold_dir(study.base, 1).mkdir()
    write_json(study.fold_dir(study.base, 1) / FAILURE, {"error": "nan"})
    with pytest.raises(FloatingPointError, match="base setting"):
        run_search(_search(study, tmp_path))
    assert len(list(study.folds_dir.iterdir())) <= 4, "trials went on without a base"


def test_a_broken_loss_is_kept_and_not_tried_again(
    prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    study = _study(prepared, tiny_config, tmp_path)
    broken = dataclasses.replace(
        study.base, optim=dataclasses.replace(study.base.optim, optimizer="adamw", lr=1e30)
    )
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="finite"):
            fold_predictions(study, broken, 0)
    assert [path.name for path in study.fold_dir(broken, 0).iterdir()] == [FAILURE]


def test_a_finished_fold_is_not_trained_again(
    prepared: PreparedData,
    tiny_config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = _study(prepared, tiny_config, tmp_path)
    first = fold_predictions(study, study.base, 1)
    monkeypatch.setattr("tune.trial.fit", lambda *_: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(fold_predictions(study, study.base, 1), first)


def test_the_same_setting_twice_is_trained_once(
    prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    """As when the winner is the base: a second training of a fold under way would be in its way."""
    study, counts = _study(prepared, tiny_config, tmp_path), []
    counted = contextlib.nullcontext(lambda done, total: counts.append((done, total)))
    first, second = train_all_folds(
        study, [study.base, study.base], counted=lambda what, unit: counted
    )
    assert counts == [(done, study.num_folds) for done in range(1, study.num_folds + 1)]
    assert len(list(study.folds_dir.iterdir())) == study.num_folds
    assert first is not None
    assert second is not None
    assert [fold.scores.tolist() for fold in first] == [fold.scores.tolist() for fold in second]


def test_a_fold_that_another_trial_kept_meanwhile_may_be_written_again(
    prepared: PreparedData,
    tiny_config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = _study(prepared, tiny_config, tmp_path)
    first = fold_predictions(study, study.base, 0)
    with monkeypatch.context() as patch:
        patch.setattr("tune.trial.is_kept", lambda _: False)
        pd.testing.assert_frame_equal(fold_predictions(study, study.base, 0), first)
    monkeypatch.setattr("tune.trial.fit", lambda *_: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(fold_predictions(study, study.base, 0), first)


@pytest.mark.drill
def test_two_workers_train_the_same_fold_as_one(
    prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    one = _study(prepared, tiny_config.with_overrides(["optim.optimizer=adamw"]), tmp_path / "one")
    two = dataclasses.replace(one, folds_dir=tmp_path / "two", num_workers=2)
    two.folds_dir.mkdir()
    alone, shared = fold_scores(one, one.base, 0), fold_scores(two, two.base, 0)
    assert torch.allclose(torch.tensor(alone.scores), torch.tensor(shared.scores), atol=1e-4)
