"""A run that takes as many workers as there is room for: nodes come and go, and the result stays that of one left alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from melanoma.data.dataset import PreparedData
from tests.clusters import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.drill, pytest.mark.timeout(1200)]
EPOCHS = 20
SETTINGS = [
    "--preset", "smoke", "--set", "data.input_height=96", "--set", "data.input_width=128", "--set", "min_specificity=0",
    "--set", "optim.batch_size=16", "--set", "optim.optimizer=adamw", "--set", "model.drop_path=0", "--set", f"optim.epochs={EPOCHS}",
    "--set", "model.backbone=convnext_atto",  # epochs of some seconds: Ray looks for room every half minute
]  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that computes nothing and one node with one CPU."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def _train(data: PreparedData, out: Path, *more: str, **environment: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "ray_jobs.cli", "train", str(data.folder), str(out), *SETTINGS, *more]
    return subprocess.Popen(command, env=os.environ | environment)


def _history(out: Path) -> list[dict[str, Any]]:
    path = out / "smoke" / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_training_node_comes_and_is_lost(
    prepared: PreparedData, cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    alone = tmp_path / "alone"
    assert _train(prepared, alone).wait(900) == 0
    out = tmp_path / "elastic"
    process = _train(prepared, out, "--workers", "1-2", RAY_ADDRESS=cluster.address)
    wait_for(lambda: len(_history(out)) >= 1)
    second = cluster.add_node(num_cpus=1)
    # Two epochs of two workers: the first may be done again by one, if its checkpoint was not counted yet.
    wait_for(lambda: sum(row["workers"] == 2 for row in _history(out)) >= 2 or process.poll() is not None, seconds=300)
    cluster.remove_node(second, allow_graceful=False)
    started, had = time.monotonic(), len(_history(out))
    wait_for(lambda: len(_history(out)) > had or process.poll() is not None, seconds=300)
    record_property("back_seconds", time.monotonic() - started)
    assert process.wait(900) == 0
    history = _history(out)
    assert {row["workers"] for row in history} == {1, 2}
    assert [row["epoch"] for row in history] == list(range(1, EPOCHS + 1))
    for name in ("loss", "auroc"):
        ours, theirs = ([row[name] for row in rows] for rows in (history, _history(alone)))
        np.testing.assert_allclose(ours, theirs, atol=2e-3, err_msg=name)
    record_property("lost", "nothing; the epochs under way again")
