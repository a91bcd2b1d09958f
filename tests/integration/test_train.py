import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from melanoma.data.dataset import PreparedData
from melanoma.errors import DataError
from melanoma.evidence.metrics import METRICS, Predicted
from ray_jobs.arguments import BAD_INPUT, DONE, FOUND
from ray_jobs.cli import main
from tests.runs import SETTINGS, Run

pytestmark = pytest.mark.ray


def test_a_run_leaves_what_it_promises(undisturbed: Run) -> None:
    folder = undisturbed.folder
    assert {"bundle", "history.jsonl", "checkpoints", "tensorboard"} <= {
        path.name for path in folder.iterdir()
    }
    assert [row["epoch"] for row in undisturbed.history()] == [1, 2, 3, 4]
    kept = [
        path for path in (folder / "checkpoints").iterdir() if path.name.startswith("checkpoint_2")
    ]
    assert 1 <= len(kept) <= 2  # the best and the last
    best = json.loads((folder / "result.json").read_text())["best_epochs"][0]
    assert best == max(undisturbed.history(), key=lambda row: row["within_source_auroc"])["epoch"]


def test_a_finished_run_is_only_reported(
    prepared: PreparedData, undisturbed: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (undisturbed.folder / "bundle" / "manifest.json").stat().st_mtime
    assert main(["train", str(prepared.folder), str(undisturbed.out), *SETTINGS, "--json"]) == DONE
    out, err = capsys.readouterr()
    assert "is already finished" in err
    kept = json.loads((undisturbed.folder / "result.json").read_text())
    assert json.loads(out)["contract"] == kept["contract"]
    assert (undisturbed.folder / "bundle" / "manifest.json").stat().st_mtime == before


def test_a_run_folder_is_never_shared_by_other_settings(
    prepared: PreparedData, undisturbed: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "train",
                str(prepared.folder),
                str(undisturbed.out),
                *SETTINGS,
                "--set",
                "loss.gamma=2",
            ]
        )
        == BAD_INPUT
    )
    assert "another --name" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_cluster")
def test_all_folds_train_side_by_side_and_resume(
    prepared: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SETTINGS, "--set", "optim.epochs=1", "--set", "optim.warmup_epochs=0"]
    settings[settings.index("--workers") + 1] = "1"
    command = ["train", str(prepared.folder), str(tmp_path), *settings, "--cpus-per-worker", "1"]
    assert main([*command, "--folds", "all", "--json"]) == DONE
    out, err = capsys.readouterr()
    assert "Training 3 networks, 3 at a time, on one worker with 1 CPU." in err
    assert all(f"fold {fold}: epoch 1 of 1" in err for fold in range(3))
    assert json.loads(out)["best_epochs"] == [1, 1, 1]
    run = tmp_path / "smoke"
    weights = (run / "bundle" / "model.safetensors").read_bytes()
    states = {path: path.stat().st_mtime_ns for path in run.glob("fold_*/checkpoints/*/state.pt")}
    shutil.rmtree(run / "bundle")
    (run / "result.json").unlink()
    assert main([*command, "--folds", "all", "--json"]) == DONE
    assert "Epochs trained, of 1: 1 (fold 0), 1 (fold 1), 1 (fold 2)." in capsys.readouterr().err
    assert (run / "bundle" / "model.safetensors").read_bytes() == weights
    assert states == {path: path.stat().st_mtime_ns for path in states}
    assert states


@pytest.mark.usefixtures("ray_cluster")
def test_evidence_is_written_and_follows_from_the_predictions(
    prepared: PreparedData, undisturbed: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence"
    looks = len(prepared.log_access("test", {"by": "the test itself"}))
    code = main(
        [
            "evaluate",
            str(undisturbed.folder / "bundle"),
            str(prepared.folder),
            str(out),
            "--workers",
            "2",
            "--json",
        ]
    )
    report = json.loads(capsys.readouterr().out)
    assert code == (FOUND if report["contract"]["status"] == "refuted" else DONE)
    assert len(report["accesses"]) == looks + 1
    assert {
        "predictions.parquet",
        "report.html",
        "report.json",
        "report.pdf",
        "roc.png",
        "precision_recall.png",
        "reliability.png",
        "decision_curve.png",
        "confusion.png",
    } == {path.name for path in out.iterdir()}
    table = pd.read_parquet(out / "predictions.parquet")
    test = prepared.rows("test")
    assert table["image_id"].tolist() == test["image_id"].tolist()
    assessed = (table["decision"] != "cannot_assess").to_numpy()
    table, test = table[assessed], test[assessed]
    probabilities = table[
        [name for name in table.columns if name.startswith("probability_")]
    ].to_numpy()
    units = Predicted(prepared.task, table["label"].to_numpy(), probabilities)
    for name, metric in METRICS.items():
        value = report["image"][name]
        assert value["value"] == pytest.approx(metric.value(units, np.ones(len(table))))
        assert value["low"] is None or value["low"] <= value["value"] <= value["high"]
    assert report["reference_models"][-1]["columns"]
    assert report["image"]["num"] == len(test)
    assert report["lesion"]["num"] == test["lesion_id"].nunique()
    assert sum(map(sum, report["confusion"])) == len(test)


@pytest.mark.usefixtures("ray_cluster")
def test_a_folder_of_images_is_scored_as_external_data(
    undisturbed: Run, drawn_source: Path, tmp_path: Path
) -> None:
    from melanoma.evaluation import evaluate

    report = evaluate(undisturbed.folder / "bundle", drawn_source, tmp_path / "evidence")
    assert (report["split"], report["flow"]["images"], report["accesses"]) == ("external", 48, [])
    assert not report["same_splits_as_training"]
    (drawn_source / "images" / "IMG_001_0.jpg").write_bytes(
        (drawn_source / "images" / "IMG_009_0.jpg").read_bytes()
    )
    evaluate(undisturbed.folder / "bundle", drawn_source, tmp_path / "copied")
    group = pd.read_parquet(tmp_path / "copied" / "predictions.parquet").set_index("image_id")[
        "group"
    ]
    assert group["IMG_001_0"] == group["IMG_009_0"]
    (drawn_source / "images" / "IMG_003_0.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DataError, match="IMG_003_0"):
        evaluate(undisturbed.folder / "bundle", drawn_source, tmp_path / "again")


@pytest.mark.usefixtures("ray_cluster")
def test_the_images_a_bundle_came_from_cannot_judge_it(
    prepared: PreparedData, undisturbed: Run, phantom_source: Path, tmp_path: Path
) -> None:
    """Whatever the folder is called, and although every file was written again."""
    from melanoma.evaluation import evaluate

    copy = tmp_path / "another clinic"
    (copy / "images").mkdir(parents=True)
    shutil.copy(phantom_source / "metadata.csv", copy)
    for path in (phantom_source / "images").iterdir():
        Image.open(path).save(copy / "images" / path.name, quality=60)
    report = evaluate(undisturbed.folder / "bundle", copy, tmp_path / "evidence")
    known = len(prepared.records)  # test too: as external images it would be opened unlogged
    assert report["flow"]["known_to_the_bundle"] == known
    assert report["contract"]["status"] == "none"
    page = (tmp_path / "evidence" / "report.html").read_text()
    assert f"{known} of {known} images are of lesions or patients" in page
    assert "they prove nothing" in page


@pytest.mark.usefixtures("ray_cluster")
def test_calibration_cannot_confirm_its_own_contract(
    prepared: PreparedData, bundle_dir: Path, tmp_path: Path
) -> None:
    from melanoma.evaluation import evaluate

    report = evaluate(bundle_dir, prepared.folder, tmp_path / "evidence", split="calibration")
    assert report["contract"]["bundle_status"] == "met"
    assert report["contract"]["status"] == "none"
    assert "No verdict" in report["contract"]["sentence"]


@pytest.mark.usefixtures("ray_cluster")
def test_data_without_melanomas_are_described_too(
    undisturbed: Run, drawn_source: Path, tmp_path: Path
) -> None:
    from melanoma.evaluation import evaluate
    from melanoma.evidence.summary import describe_evaluation

    table = pd.read_csv(drawn_source / "metadata.csv")
    table.assign(dx="nv").to_csv(drawn_source / "metadata.csv", index=False)
    report = evaluate(undisturbed.folder / "bundle", drawn_source, tmp_path / "evidence")
    assert report["image"]["auroc"]["value"] is None
    assert "undefined here" in describe_evaluation(report, tmp_path)
