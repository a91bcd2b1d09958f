import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from melanoma.data.dataset import PreparedData
from melanoma.errors import DataError
from melanoma.evidence.metrics import METRICS
from ray_jobs.cli import BAD_INPUT, DONE, FOUND, main

pytestmark = pytest.mark.ray
SETTINGS = [
    "--preset", "smoke", "--workers", "2", "--set", "optim.epochs=4", "--set", "data.input_height=48", "--set", "data.input_width=64",
    "--set", "optim.batch_size=16", "--set", "min_specificity=0",
]  # fmt: skip


def _train(data: PreparedData, out: Path, *more: str, wait: bool = True) -> "subprocess.Popen[bytes]":
    """Run `melanoma train` in a process, and a Ray, of its own, as a person would."""
    command = [sys.executable, "-m", "ray_jobs.cli", "train", str(data.folder), str(out), *SETTINGS, *more]
    process = subprocess.Popen(command, start_new_session=True)
    if wait:
        assert process.wait(300) == 0
    return process


def _history(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_seconds")} for row in rows]


def _wait_for(condition, seconds: float = 120) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def _epochs(run: Path) -> int:
    path = run / "history.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.fixture(scope="module")
def undisturbed(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    _train(prepared, out)
    return out / "smoke"


def _same_end(run: Path, undisturbed: Path) -> None:
    assert _history(run) == _history(undisturbed)
    files = [
        json.loads((folder / "bundle" / "manifest.json").read_text())["files"]["model.safetensors"]
        for folder in (run, undisturbed)
    ]
    assert files[0] == files[1]


def test_a_run_leaves_what_it_promises(undisturbed: Path) -> None:
    assert {"bundle", "history.jsonl", "checkpoints", "tensorboard"} <= {path.name for path in undisturbed.iterdir()}
    assert [row["epoch"] for row in _history(undisturbed)] == [1, 2, 3, 4]
    kept = [path for path in (undisturbed / "checkpoints").iterdir() if path.name.startswith("checkpoint_2")]
    assert 1 <= len(kept) <= 2  # the best and the last
    best = json.loads((undisturbed / "result.json").read_text())["best_epoch"]
    assert best == max(_history(undisturbed), key=lambda row: row["auroc"])["epoch"]


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_run_killed_at_any_moment_ends_like_one_left_alone(
    epochs: int, prepared: PreparedData, undisturbed: Path, tmp_path: Path
) -> None:
    """Killed in the first epoch, before there is any checkpoint, and later on, between or in the middle of two."""
    process = _train(prepared, tmp_path, wait=False)
    _wait_for(lambda: (tmp_path / "smoke" / "progress.json").is_file() and _epochs(tmp_path / "smoke") >= epochs)
    os.killpg(process.pid, signal.SIGKILL)  # the driver, and what is left of its Ray dies with it
    process.wait()
    _wait_for(lambda: not _workers_of(tmp_path))
    assert not (tmp_path / "smoke" / "bundle").exists()
    _train(prepared, tmp_path)
    _same_end(tmp_path / "smoke", undisturbed)


def _workers_of(run: Path) -> list[int]:
    """Return the training workers that write into a run: progress.json names their process."""
    path = run / "smoke" / "progress.json"
    if not path.is_file():
        return []
    pid = json.loads(path.read_text())["pid"]
    return [pid] if Path(f"/proc/{pid}").exists() else []


@pytest.mark.drill
def test_a_run_killed_again_and_again_ends_like_one_left_alone(
    prepared: PreparedData, undisturbed: Path, tmp_path: Path
) -> None:
    """Killed at moments nobody chose: while starting, in mid-epoch, while a checkpoint or the bundle is written."""
    rng = np.random.default_rng(0)
    for _ in range(8):
        process = _train(prepared, tmp_path, wait=False)
        time.sleep(rng.uniform(4, 30))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _wait_for(lambda: not _workers_of(tmp_path))
    _train(prepared, tmp_path)
    _same_end(tmp_path / "smoke", undisturbed)


def test_a_worker_that_dies_is_replaced_and_the_run_goes_on(
    prepared: PreparedData, undisturbed: Path, tmp_path: Path
) -> None:
    process = _train(prepared, tmp_path, wait=False)
    _wait_for(lambda: _epochs(tmp_path / "smoke") >= 1 and _workers_of(tmp_path))
    os.kill(_workers_of(tmp_path)[0], signal.SIGKILL)
    assert process.wait(300) == 0
    _same_end(tmp_path / "smoke", undisturbed)


def test_half_a_record_of_checkpoints_costs_epochs_and_no_more(
    prepared: PreparedData, undisturbed: Path, tmp_path: Path
) -> None:
    """Ray writes that file in place: a kill may leave half of it, and then nobody knows which checkpoint is whole."""
    process = _train(prepared, tmp_path, wait=False)
    _wait_for(lambda: _epochs(tmp_path / "smoke") >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _wait_for(lambda: not _workers_of(tmp_path))
    snapshot = tmp_path / "smoke" / "checkpoints" / "checkpoint_manager_snapshot.json"
    snapshot.write_text(snapshot.read_text()[:40])
    _train(prepared, tmp_path)
    _same_end(tmp_path / "smoke", undisturbed)


def test_a_finished_run_is_only_reported(
    prepared: PreparedData, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (undisturbed / "bundle" / "manifest.json").stat().st_mtime
    assert main(["train", str(prepared.folder), str(undisturbed.parent), *SETTINGS, "--json"]) == DONE
    out, err = capsys.readouterr()
    assert "nothing is left to do" in err
    assert json.loads(out)["contract"]["status"] == "met"
    assert (undisturbed / "bundle" / "manifest.json").stat().st_mtime == before


def test_a_run_folder_is_never_shared_by_other_settings(
    prepared: PreparedData, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["train", str(prepared.folder), str(undisturbed.parent), *SETTINGS, "--set", "loss.gamma=2"]) == BAD_INPUT
    )
    assert "choose another --name" in capsys.readouterr().err


def test_a_run_killed_while_its_bundle_is_made_is_finished_later(
    prepared: PreparedData, undisturbed: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "smoke"))
    shutil.rmtree(run / "bundle")
    (run / "result.json").unlink()
    _train(prepared, tmp_path)
    _same_end(run, undisturbed)


@pytest.mark.usefixtures("ray_cluster")
def test_evidence_is_written_and_follows_from_the_predictions(
    prepared: PreparedData, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence"
    looks = len(prepared.log_access("test", {"by": "the test itself"}))
    code = main(["evaluate", str(undisturbed / "bundle"), str(prepared.folder), str(out), "--workers", "2", "--json"])
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
        "confusion.png",
    } == {path.name for path in out.iterdir()}
    table = pd.read_parquet(out / "predictions.parquet")
    test = prepared.rows("test")
    assert table["image_id"].tolist() == test["image_id"].tolist()
    probabilities = table[[name for name in table.columns if name.startswith("probability_")]].to_numpy()
    for name, metric in METRICS.items():
        value = report["image"][name]
        assert value["value"] == pytest.approx(
            metric(table["label"].to_numpy(), probabilities, pd.Series(1.0, test.index).to_numpy())
        )
        assert value["low"] <= value["value"] <= value["high"]
    assert report["image"]["num"] == len(test)
    assert report["lesion"]["num"] == test["lesion_id"].nunique()
    assert sum(map(sum, report["confusion"])) == len(test)


@pytest.mark.usefixtures("ray_cluster")
def test_a_folder_of_pictures_is_scored_as_external_data(undisturbed: Path, source: Path, tmp_path: Path) -> None:
    from ray_jobs.evaluate import evaluate

    report = evaluate(undisturbed / "bundle", source, tmp_path / "evidence")
    assert (report["split"], report["image"]["num"], report["accesses"]) == ("external", 48, [])
    assert not report["same_splits_as_training"]
    (source / "images" / "IMG_001_0.jpg").write_bytes((source / "images" / "IMG_009_0.jpg").read_bytes())
    evaluate(undisturbed / "bundle", source, tmp_path / "copied")
    group = pd.read_parquet(tmp_path / "copied" / "predictions.parquet").set_index("image_id")["group"]
    assert group["IMG_001_0"] == group["IMG_009_0"]
    (source / "images" / "IMG_003_0.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(DataError, match="IMG_003_0"):
        evaluate(undisturbed / "bundle", source, tmp_path / "again")


@pytest.mark.usefixtures("ray_cluster")
def test_the_pictures_a_bundle_came_from_cannot_judge_it(undisturbed: Path, source: Path, tmp_path: Path) -> None:
    from ray_jobs.evaluate import evaluate

    own = source.rename(tmp_path / "phantom")  # the name of the data the bundle was trained on
    assert evaluate(undisturbed / "bundle", own, tmp_path / "evidence")["contract"]["status"] == "none"


@pytest.mark.usefixtures("ray_cluster")
def test_calibration_cannot_confirm_its_own_contract(prepared: PreparedData, undisturbed: Path, tmp_path: Path) -> None:
    from ray_jobs.evaluate import evaluate

    report = evaluate(undisturbed / "bundle", prepared.folder, tmp_path / "evidence", split="calibration")
    assert report["contract"]["bundle_status"] == "met"
    assert report["contract"]["status"] == "none"
    assert "No verdict" in report["contract"]["sentence"]


@pytest.mark.usefixtures("ray_cluster")
def test_data_without_melanomas_are_described_too(undisturbed: Path, source: Path, tmp_path: Path) -> None:
    from ray_jobs.evaluate import describe_evaluation, evaluate

    table = pd.read_csv(source / "metadata.csv")
    table.assign(dx="nv").to_csv(source / "metadata.csv", index=False)
    report = evaluate(undisturbed / "bundle", source, tmp_path / "evidence")
    assert report["image"]["auroc"]["value"] is None
    assert "undefined here" in describe_evaluation(report, tmp_path)
