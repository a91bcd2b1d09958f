"""The same work in this process and on Ray gives the same bytes."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData
from melanoma.data.prepare import prepare
from melanoma.data.prepare_config import PrepareConfig
from melanoma.evaluation import evaluate
from melanoma.executor import Executor, LocalExecutor
from melanoma.io.files import sha256_of
from melanoma.scoring import score
from melanoma.training.job import TrainJob
from melanoma.training.run import run_job
from ray_jobs.cluster import has_dashboard
from ray_jobs.executor import RayExecutor
from ray_jobs.memory import KEPT

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
EXECUTORS: dict[str, Executor] = {"local": LocalExecutor(), "ray": RayExecutor()}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Both compute with two threads: with another number sums round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder that holds no times."""
    paths = [
        path for path in folder.rglob("*") if path.is_file() and path.name != "access_log.jsonl"
    ]
    return {str(path.relative_to(folder)): sha256_of(path) for path in paths}


def test_prepared_data_sets_are_the_same(source: Path, tmp_path: Path) -> None:
    (source / "images" / "IMG_000_0.jpg").write_bytes(b"not an image")
    config = PrepareConfig(size=64, num_folds=2, skip_bad=True)
    for name, executor in EXECUTORS.items():
        progress: list[tuple[int, int]] = []
        prepare(
            source,
            tmp_path / name,
            config,
            executor=executor,
            progress=lambda *done, seen=progress: seen.append(done),
        )
        assert progress[-1] == (48, 48)
    assert _hashes(tmp_path / "local") == _hashes(tmp_path / "ray")


def test_a_local_cluster_has_no_dashboard() -> None:
    assert not has_dashboard()


def test_trained_bundles_are_the_same(
    prepared: PreparedData, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    config = tiny_config.with_overrides(["optim.epochs=2"])
    jobs = {
        name: TrainJob(prepared.folder, tmp_path / name, config, cpus_per_worker=2)
        for name in EXECUTORS
    }
    results = {name: run_job(job, EXECUTORS[name]) for name, job in jobs.items()}
    local, ray = (
        dataclasses.replace(results[name], bundle=Path("bundle")) for name in ("local", "ray")
    )
    assert local == ray
    for file in ("model.safetensors", "calibration.parquet", "manifest.json", "features.onnx"):
        # The exporter writes the order in which it met things into the model, so only its outputs
        # are the same.
        same = sha256_of(tmp_path / "local" / "bundle" / file) == sha256_of(
            tmp_path / "ray" / "bundle" / file
        )
        assert same or file in ("features.onnx", "manifest.json"), file


def test_evaluations_and_scores_are_the_same(
    bundle_dir: Path, prepared: PreparedData, phantom_source: Path, tmp_path: Path
) -> None:
    for name, executor in EXECUTORS.items():
        evaluate(bundle_dir, prepared.folder, tmp_path / name / "evidence", executor=executor)
        score(bundle_dir, phantom_source / "images", tmp_path / name / "scores", executor=executor)
    for table in ("evidence/predictions.parquet", "scores/scores.parquet"):
        local, ray = (pd.read_parquet(tmp_path / name / table) for name in EXECUTORS)
        pd.testing.assert_frame_equal(local, ray, check_exact=True)


def test_the_processes_of_a_local_cluster_keep_their_memory() -> None:
    rows = RayExecutor().map(
        lambda _: [{name: os.environ.get(name) for name in KEPT}], [{"item": 1}], num_workers=1
    )
    assert rows == [{name: os.environ[name] for name in KEPT}]
