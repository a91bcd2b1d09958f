"""A run that takes as many workers as there is room for: nodes come and go, and the result stays
that of one left alone."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from melanoma.data.dataset import PreparedData
from tests.clusters import wait_for
from tests.runs import Run

pytestmark = [pytest.mark.ray, pytest.mark.drill, pytest.mark.timeout(1200)]
EPOCHS = 20
SETTINGS = [
    "--preset",
    "smoke",
    "--set",
    "data.input_height=96",
    "--set",
    "data.input_width=128",
    "--set",
    "optim.batch_size=16",
    "--set",
    "optim.optimizer=adamw",
    "--set",
    "model.drop_path=0",
    "--set",
    f"optim.epochs={EPOCHS}",
    "--set",
    "model.backbone=convnext_atto",  # epochs of some seconds: Ray looks for room every half minute
]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that computes nothing and one node with one CPU."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_a_training_node_comes_and_is_lost(
    prepared: PreparedData,
    cluster: Cluster,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    alone, shared = (
        Run(prepared, tmp_path / name, tmp_path / name, SETTINGS) for name in ("alone", "shared")
    )
    assert alone.start().wait(900) == 0
    process = shared.start("--workers", "1-2", RAY_ADDRESS=cluster.address)
    wait_for(lambda: len(shared.history()) >= 1)
    second = cluster.add_node(num_cpus=1)
    # Two epochs of two workers: the first may be done again by one, if its checkpoint was not
    # counted yet.
    wait_for(
        lambda: (
            sum(row["workers"] == 2 for row in shared.history()) >= 2 or process.poll() is not None
        ),
        seconds=300,
    )
    cluster.remove_node(second, allow_graceful=False)
    started, had = time.monotonic(), len(shared.history())
    wait_for(lambda: len(shared.history()) > had or process.poll() is not None, seconds=300)
    record_property("back_seconds", time.monotonic() - started)
    assert process.wait(900) == 0
    history = shared.history()
    assert {row["workers"] for row in history} == {1, 2}
    assert [row["epoch"] for row in history] == list(range(1, EPOCHS + 1))
    for name in ("loss", "auroc"):
        ours, theirs = ([row[name] for row in rows] for rows in (history, alone.history()))
        np.testing.assert_allclose(ours, theirs, atol=2e-3, err_msg=name)
    record_property("lost", "nothing; the epochs under way again")
