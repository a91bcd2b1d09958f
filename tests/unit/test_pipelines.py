"""The whole way in this process, without Ray: prepare, train, evaluate, score; seven classes and
two."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from melanoma.bundle.bundle import load_bundle, verify_bundle
from melanoma.config import TrainConfig
from melanoma.data.dataset import ImageDataset, PreparedData, open_prepared
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.errors import DataError, SettingError
from melanoma.evaluation import evaluate
from melanoma.executor import Item, LocalExecutor, Row
from melanoma.imaging.preprocess import Preprocess
from melanoma.io.files import read_json
from melanoma.scorecard import write_scorecard
from melanoma.scoring import CHUNK, SCORES, _duration, score
from melanoma.task import TASKS
from melanoma.training.checkpoints import HASH, STATE
from melanoma.training.engine import predict
from melanoma.training.ensemble import networks_of
from melanoma.training.job import TrainJob
from melanoma.training.run import RESULT, run_job, train
from melanoma.training.teacher import OUT_OF_FOLD, read_teacher

pytestmark = pytest.mark.usefixtures("without_onnx")  # but the bundles of fixtures have it
BINARY = TASKS["binary"]


@pytest.fixture(scope="module")
def quick(tiny_config: TrainConfig) -> TrainConfig:
    return tiny_config.with_overrides(["optim.epochs=3"])


@pytest.fixture(scope="module")
def run_dir(
    prepared: PreparedData, quick: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(prepared.folder, folder, quick)
    return folder


def test_a_training_in_this_process_leaves_a_whole_run(run_dir: Path, quick: TrainConfig) -> None:
    result = read_json(run_dir / RESULT)
    assert result["bundle"] == "bundle"  # no absolute path: a run may be moved
    assert str(run_dir) not in (run_dir / RESULT).read_text()
    history = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert (
        result["best_epochs"][0]
        == max(history, key=lambda row: (row["within_source_auroc"], row["epoch"]))["epoch"]
    )
    assert load_bundle(run_dir / "bundle").manifest.training_config == quick


def test_a_finished_run_is_only_reported(
    prepared: PreparedData, run_dir: Path, quick: TrainConfig
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    again = train(prepared.folder, run_dir, quick)
    assert again.bundle == run_dir / "bundle"
    assert {
        path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()
    } == before


class _CutError(Exception):
    pass


def test_a_run_cut_short_ends_like_one_left_alone(
    prepared: PreparedData,
    run_dir: Path,
    quick: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from melanoma.training.local import LocalSession

    report, threads = LocalSession.report, torch.get_num_threads()

    def cut(self: LocalSession, state: dict[str, object]) -> None:
        report(self, state)
        raise _CutError

    monkeypatch.setattr(LocalSession, "report", cut)
    for _ in range(2):
        with pytest.raises(_CutError):
            train(prepared.folder, tmp_path / "run", quick)
    monkeypatch.setattr(LocalSession, "report", report)
    train(prepared.folder, tmp_path / "run", quick)
    assert torch.get_num_threads() == threads
    ours, theirs = (
        load_bundle(folder / "bundle").manifest for folder in (tmp_path / "run", run_dir)
    )
    assert ours.weights_sha256 == theirs.weights_sha256
    assert ours.operating_point == theirs.operating_point


def test_of_a_damaged_checkpoint_the_run_goes_on_from_what_is_whole(
    prepared: PreparedData, run_dir: Path, quick: TrainConfig, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run_dir, tmp_path / "run"))
    shutil.rmtree(folder / "bundle")
    (folder / RESULT).unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        (checkpoint / STATE).write_bytes((checkpoint / STATE).read_bytes()[:-1])
        assert (checkpoint / HASH).is_file()
    train(prepared.folder, folder, quick)
    assert any((folder / "checkpoints.damaged-1").iterdir())
    assert (
        load_bundle(folder / "bundle").manifest.weights_sha256
        == load_bundle(run_dir / "bundle").manifest.weights_sha256
    )


def test_other_settings_do_not_take_a_run_over(
    prepared: PreparedData, run_dir: Path, quick: TrainConfig
) -> None:
    with pytest.raises(DataError, match=r"config\.seed"):
        train(prepared.folder, run_dir, quick.with_overrides(["seed=9"]))


def test_several_workers_need_another_executor(
    prepared: PreparedData, quick: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="Several workers need an executor"):
        run_job(TrainJob(prepared.folder, tmp_path / "run", quick, num_workers=2), LocalExecutor())


@pytest.fixture(scope="module")
def ensemble_dir(
    prepared: PreparedData, quick: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ensemble"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("melanoma.bundle.packing._export", lambda *_: None)
        train(prepared.folder, folder, quick, all_folds=True)
    return folder


def test_an_ensemble_holds_a_network_for_each_fold(
    prepared: PreparedData, ensemble_dir: Path
) -> None:
    bundle = load_bundle(ensemble_dir / "bundle")
    num_folds = prepared.manifest.num_folds
    assert bundle.manifest.num_networks == num_folds
    assert bundle.manifest.operating_point.contract.basis == "split"
    findings = verify_bundle(ensemble_dir / "bundle")
    assert len(findings) == (bundle.operating_point.contract.status != "met")
    assert "times test_convnext" in bundle.model_card
    assert read_json(ensemble_dir / RESULT)["best_epochs"] == list(bundle.manifest.best_epochs)
    histories = [
        (ensemble_dir / f"fold_{fold}" / "history.jsonl").read_text() for fold in range(num_folds)
    ]
    assert len(set(histories)) == num_folds


def test_an_ensemble_leaves_a_teacher_that_has_not_seen_its_images(
    prepared: PreparedData, ensemble_dir: Path, quick: TrainConfig
) -> None:
    teacher = read_teacher(ensemble_dir / OUT_OF_FOLD, prepared)
    network = networks_of(load_bundle(ensemble_dir / "bundle").model)[1]
    rows = prepared.rows("train", fold=1)
    seen = predict(
        network,
        ImageDataset(prepared, rows),
        Preprocess(prepared.stored_shape, quick.data),
        tta=quick.data.tta,
    )
    calibrator = load_bundle(ensemble_dir / "bundle").manifest.calibrator
    assert np.allclose(teacher.loc[rows["image_id"]], calibrator(seen.logits), atol=1e-5)


def test_the_heatmaps_of_an_ensemble_get_a_scorecard(
    prepared: PreparedData, phantom_source: Path, ensemble_dir: Path, tmp_path: Path
) -> None:
    data, bundle, out = tmp_path / "dataset", ensemble_dir / "bundle", tmp_path / "evidence"
    shutil.copytree(prepared.folder, data)  # the access is logged beside the data
    evaluate(bundle, data, out)
    found = write_scorecard(bundle, data, out, masks=phantom_source / "masks")
    assert found["bundle"]["weights_sha256"] == load_bundle(bundle).manifest.weights_sha256
    for method in found["methods"].values():
        assert all(method["measures"].values())
        for check in ("random_similarity", "shuffled_similarity"):
            assert method["measures"][check]["value"] < method["measures"]["stability"]["value"]


def test_an_ensemble_can_teach_one_network(
    prepared: PreparedData, ensemble_dir: Path, run_dir: Path, quick: TrainConfig, tmp_path: Path
) -> None:
    train(prepared.folder, tmp_path / "run", quick, teacher=ensemble_dir / OUT_OF_FOLD)
    student = load_bundle(tmp_path / "run" / "bundle").manifest
    assert student.num_networks == 1
    assert student.weights_sha256 != load_bundle(run_dir / "bundle").manifest.weights_sha256
    with pytest.raises(DataError, match="teacher"):
        train(prepared.folder, tmp_path / "run", quick)


def test_a_small_calibration_split_makes_an_ensembles_contract_approximate(
    prepared: PreparedData, quick: TrainConfig, tmp_path: Path
) -> None:
    assert isinstance(prepared.folder, Path)
    folder = Path(shutil.copytree(prepared.folder, tmp_path / "data"))
    strict = quick.with_overrides(["target_sensitivity=0.98"])  # 182 targets at the first access
    before = open_prepared(folder).accesses("calibration")
    train(folder, tmp_path / "run", strict, all_folds=True)
    contract = load_bundle(tmp_path / "run" / "bundle").operating_point.contract
    groups = prepared.rows("train").query("dx == 'mel'")["group"].nunique()
    assert contract.basis == "out_of_fold"
    assert contract.num_target + contract.num_target_unassessed == groups
    card = (tmp_path / "run" / "bundle" / "MODEL_CARD.md").read_text()
    assert "| basis | approximate: held-out images of the folds" in card
    assert open_prepared(folder).accesses("calibration") == before


def test_an_evaluation_in_this_process(
    bundle_dir: Path, prepared: PreparedData, tmp_path: Path
) -> None:
    report = evaluate(bundle_dir, prepared.folder, tmp_path / "out")
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert len(predictions) == len(prepared.rows("test"))
    assessed = predictions[predictions["decision"] != "cannot_assess"]
    assert report["image"]["num"] == len(assessed) > 0.8 * len(predictions)
    assert report["task"] == prepared.task.as_dict()


def test_scores_of_a_folder(bundle_dir: Path, phantom_source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    (folder / "deep").mkdir(parents=True)
    for number, path in enumerate(sorted((phantom_source / "images").iterdir())[:6]):
        shutil.copy(path, folder / ("deep" if number % 2 else ".") / path.name)
    (folder / "broken.jpg").write_bytes(b"no image")
    progress: list[tuple[int, int]] = []
    table = score(
        bundle_dir,
        folder,
        tmp_path / "out",
        progress=lambda done, total: progress.append((done, total)),
    )
    assert len(table) == 7
    broken = table.set_index("path").loc["broken.jpg"]
    assert (broken["decision"], broken["reason"]) == ("cannot_assess", "image_unreadable")
    assert progress[-1] == (7, 7)
    assert sorted(
        path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")
    ) == [
        "run.json",
        SCORES,
    ]
    again = score(bundle_dir, folder, tmp_path / "out")
    pd.testing.assert_frame_equal(table, again)
    (folder / "one_more.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="images"):
        score(bundle_dir, folder, tmp_path / "out")


def test_a_scoring_cut_short_goes_on(
    bundle_dir: Path, phantom_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("melanoma.scoring.CHUNK", 4)
    folder = tmp_path / "archive"
    folder.mkdir()
    for path in sorted((phantom_source / "images").iterdir())[:10]:
        shutil.copy(path, folder / path.name)
    scored: list[int] = []

    class Cut(LocalExecutor):
        def map(self, work, items: list[Item], **options: object) -> list[Row]:  # type: ignore[no-untyped-def,override]
            scored.extend(item["start"] for item in items)
            rows = super().map(work, items[:1], **options)  # type: ignore[arg-type]
            if len(items) > 2:
                raise _CutError
            return rows + super().map(work, items[1:], **options)  # type: ignore[arg-type]

    with pytest.raises(_CutError):
        score(bundle_dir, folder, tmp_path / "out", executor=Cut())
    table = score(bundle_dir, folder, tmp_path / "out", executor=Cut())
    assert scored == [0, 4, 8, 4, 8]
    assert table["path"].tolist() == sorted(path.name for path in folder.iterdir())
    assert CHUNK > 4


def test_a_long_scoring_says_how_long_it_takes(
    bundle_dir: Path,
    phantom_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("melanoma.scoring.CHUNK", 2)
    folder = tmp_path / "archive"
    folder.mkdir()
    for path in sorted((phantom_source / "images").iterdir())[:6]:
        shutil.copy(path, folder / path.name)
    with caplog.at_level("INFO"):
        score(bundle_dir, folder, tmp_path / "out")
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "6 images to score."
    assert [text for text in said if text.startswith("The other 4 images will take about ")]
    assert len(said) == 2
    assert [_duration(seconds) for seconds in (0.1, 119.5, 121, 7300)] == [
        "1 seconds",
        "120 seconds",
        "3 minutes",
        "3 hours",
    ]


def test_a_folder_without_images_is_refused(bundle_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FOLDER must hold"):
        score(bundle_dir, tmp_path, tmp_path / "out")


def _as_binary(source: Path, out: Path) -> Path:
    """Write the same lesions with two labels instead of seven."""
    shutil.copytree(source, out)
    table = pd.read_csv(out / "metadata.csv")
    table["dx"] = np.where(table["dx"].isin(["mel", "bcc", "akiec"]), "malignant", "benign")
    table.to_csv(out / "metadata.csv", index=False)
    return out


def test_the_same_lesions_as_two_classes(
    phantom_source: Path, prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    source = _as_binary(phantom_source, tmp_path / "source")
    config = PrepareConfig(
        task=BINARY, size=96, calibration_fraction=0.45, num_folds=3, population="phantom lesions"
    )
    manifest = prepare(source, tmp_path / "dataset", config)
    assert manifest.task == BINARY
    data = open_prepared(tmp_path / "dataset", verify=True)
    assert len(data.records) == len(prepared.records)
    settings = tiny_config.with_overrides(["optim.epochs=4"])
    result = train(tmp_path / "dataset", tmp_path / "run", settings)
    assert result.contract.targets == ("malignant",)
    assert result.contract.status == "met"
    assert "of malignant lesions are referred" in result.contract_sentence
    assert "(phantom lesions, " in result.contract_sentence
    assert verify_bundle(result.bundle) == []
    report = evaluate(result.bundle, tmp_path / "dataset", tmp_path / "evidence")
    assert np.array(report["confusion"]).shape == (2, 2)
    assert "malignant lesions were referred" in report["contract"]["sentence"]
    columns = pd.read_parquet(tmp_path / "evidence" / "predictions.parquet").columns
    assert {"probability_benign", "probability_malignant"} <= set(columns)
    card = (tmp_path / "run" / "bundle" / "MODEL_CARD.md").read_text()
    assert "benign, malignant (binary); malignant must be referred." in card
    # A table of seven classes is read as two where a bundle says so.
    external = evaluate(result.bundle, phantom_source, tmp_path / "external")
    assert external["flow"]["images"] == len(prepared.records)


def test_images_of_other_formats_are_counted_and_not_scored(
    run_dir: Path, phantom_source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = min((phantom_source / "images").iterdir())
    shutil.copy(first, tmp_path / first.name)
    (tmp_path / "photo.heic").write_bytes(b"x")
    with caplog.at_level("INFO"):
        table = score(run_dir / "bundle", tmp_path, tmp_path / "out")
    assert len(table) == 1
    assert "1 with other suffixes are not scored" in caplog.text
