"""Which workers a cluster has room for, and how many CPUs and GPUs each gets; nodes are plain
numbers here."""

import os
from pathlib import Path

import pytest
import ray
from ray.train.torch import TorchTrainer

from melanoma.errors import DataError
from melanoma.presets import preset
from melanoma.training.job import TrainJob
from ray_jobs import cluster
from ray_jobs.cluster import Bundle, cpus_per_worker, gpus_per_trial, num_placeable, wait_for_room
from ray_jobs.local_ray import INSECURE, allow_insecure_ray, safe_defaults
from ray_jobs.trainer import CLEANER, Trainer, worker_bundle

HEAD = {"CPU": 4.0}
GPU_NODE = {"CPU": 16.0, "GPU": 8.0}


def _job(**values: object) -> TrainJob:
    return TrainJob(Path("data"), Path("run"), preset("smoke"), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "bundle", "expected"),
    [
        ([HEAD], Bundle(1), 4),
        ([HEAD, HEAD], Bundle(3), 2),  # eight CPUs in all, and no room for a third
        ([HEAD, GPU_NODE], Bundle(2, 1.0), 8),
        ([HEAD, GPU_NODE], Bundle(4, 1.0), 4),
        ([HEAD, {"CPU": 1.0, "GPU": 4.0}], Bundle(2, 1.0), 0),
        ([], Bundle(1), 0),
    ],
)
def test_bundles_are_placed_whole(
    nodes: list[dict[str, float]], bundle: Bundle, expected: int
) -> None:
    assert num_placeable(nodes, bundle) == expected


@pytest.mark.parametrize(
    ("nodes", "num_workers", "gpus", "expected"),
    [
        ([HEAD], 2, 0.0, 2),
        ([HEAD], 3, 0.0, 1),
        ([HEAD, {"CPU": 8.0}], 3, 0.0, 4),
        (
            [{"CPU": 64.0}, GPU_NODE],
            2,
            1.0,
            2,
        ),  # sized over the node that holds the GPUs, not over the larger one
        ([GPU_NODE, {"CPU": 8.0, "GPU": 8.0}], 2, 1.0, 1),
        ([GPU_NODE], 1, 0.5, 1),
        ([HEAD], 9, 0.0, 1),
    ],
)
def test_cpus_are_shared_on_the_nodes_that_workers_use(
    nodes: list[dict[str, float]], num_workers: int, gpus: float, expected: int
) -> None:
    assert cpus_per_worker(nodes, num_workers, gpus=gpus) == expected


def test_an_elastic_run_uses_every_gpu_of_one_node() -> None:
    bundle = worker_bundle(_job(min_workers=2, num_workers=8, use_gpu=True), [HEAD, GPU_NODE])
    assert bundle == Bundle(2, 1.0)
    assert num_placeable([HEAD, GPU_NODE], bundle) == 8


def test_cpus_can_be_named() -> None:
    assert worker_bundle(_job(num_workers=2, cpus_per_worker=3), [{"CPU": 16.0}]) == Bundle(3)


@pytest.mark.parametrize(
    ("num_gpus", "num_trials", "expected"), [(2, 2, 1.0), (1, 2, 0.5), (2, 3, 0.5), (0, 2, 0.0)]
)
def test_trials_that_train_alone_may_share_a_gpu(
    num_gpus: int, num_trials: int, expected: float
) -> None:
    assert gpus_per_trial([HEAD, {"CPU": 8.0, "GPU": float(num_gpus)}], num_trials) == expected


def test_a_wait_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "node_resources", lambda: [HEAD, {"CPU": 1.0, "GPU": 2.0}])
    with pytest.raises(
        DataError,
        match=r"room for 2 workers of 2 CPUs and 1 GPU each; it has room for 0",
    ):
        wait_for_room(Bundle(2, 1.0), 2)


def test_a_cluster_that_does_not_grow_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    removed = []

    class Group:
        def wait(self, seconds: float) -> bool:
            return seconds != cluster.GROWTH_SECONDS

    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(cluster, "node_resources", lambda: [HEAD])
    monkeypatch.setattr(cluster, "placement_group", lambda bundles: Group())
    monkeypatch.setattr(cluster, "remove_placement_group", removed.append)
    with pytest.raises(TimeoutError, match=r"after 30 minutes\. Add nodes"):
        wait_for_room(Bundle(8), 1)
    assert len(removed) == 1
    assert "waiting up to 30 minutes" in capsys.readouterr().err


def test_cpus_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container sees all CPUs of its machine; a limit is where joblib and Ray look for it."""
    told: dict[str, object] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: told.update(options))
    monkeypatch.setattr(cluster, "keep_memory", lambda: None)
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    cluster.connect()
    assert told["num_cpus"] == 3
    cluster.connect(num_workers=5)
    assert told["num_cpus"] == 5


def test_no_module_counts_the_machines_cpus() -> None:
    root = Path(__file__).parents[2]
    wrong = [
        str(path.relative_to(root))
        for package in ("melanoma", "ray_jobs", "serve", "tune", "benchmarks")
        for path in (root / package).rglob("*.py")
        if "cpu_count" in path.read_text().replace("joblib.cpu_count", "")
    ]
    assert not wrong


def test_ray_without_a_token_must_be_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INSECURE, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(DataError, match="--insecure-ray"), safe_defaults():
        pass
    monkeypatch.setenv(INSECURE, "")
    allow_insecure_ray()
    with safe_defaults():
        assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_a_local_cluster_gets_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
    with safe_defaults():
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
        assert "RAY_AUTH_MODE" not in os.environ
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_token_that_is_named_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/somewhere/token")
    with safe_defaults():
        assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("there", [True, False])
def test_a_run_does_not_wait_for_a_dashboard_that_is_not_there(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the first assertion fails, Ray has changed and `Trainer` may go."""
    monkeypatch.setattr("ray_jobs.trainer.has_dashboard", lambda: there)

    def kinds(trainer: type[TorchTrainer]) -> set[str]:
        made = trainer(lambda: None)._create_default_callbacks()  # type: ignore[attr-defined]
        return {type(callback).__name__ for callback in made}

    assert CLEANER in kinds(TorchTrainer)
    assert kinds(TorchTrainer) - kinds(Trainer) == (set() if there else {CLEANER})
