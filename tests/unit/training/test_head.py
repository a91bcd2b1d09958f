import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

from melanoma.bundle.bundle import load_bundle
from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.errors import DataError
from melanoma.evidence.metrics import validation_scores
from melanoma.training import head
from melanoma.training.distributed import World
from melanoma.training.engine import fit, predict, predict_validation, start_state
from melanoma.training.networks import build_model
from melanoma.training.plan import Training
from melanoma.training.run import train
from melanoma.training.selection import selection_score
from tests.clusters import free_ports
from tests.tasks import CLASSES


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MELANOMA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tiny_config: TrainConfig) -> TrainConfig:
    return tiny_config.with_overrides(
        ["optim.head_only=true", "optim.epochs=5", "loss.tau=0", "data.tta=2"]
    )


def _fitted(config: TrainConfig, data: PreparedData, model: torch.nn.Module):  # type: ignore[no-untyped-def]
    training, state = Training.on(config, data), start_state(model, config)
    fit(training, model, state, lambda _: None)
    return training, state


def test_the_head_is_that_of_a_logistic_regression(
    config: TrainConfig, prepared: PreparedData, trained: torch.nn.Module
) -> None:
    training, state = _fitted(config, prepared, copy.deepcopy(trained))
    known = head.frozen_features(training, state.model)
    learned, seen = (
        np.stack([known[name] for name in images.image_ids]).astype(np.float64)
        for images in (training.train, training.validation)
    )
    mean, deviation = learned.mean(axis=0), learned.std(axis=0, ddof=1)
    best = int(np.argmax([selection_score(row) for row in state.history]))
    oracle = LogisticRegression(
        C=1 / (head.strength(best) * len(learned)), max_iter=2000, tol=1e-8
    ).fit((learned - mean) / deviation, training.train.labels.numpy())
    expected = oracle.predict_proba((seen - mean) / deviation)
    logits = predict(state.model, training.validation, training.preprocess, tta=2).logits
    ours = torch.softmax(torch.from_numpy(logits), dim=1).numpy()[:, oracle.classes_]
    assert np.abs(ours - expected).max() < 2e-3


def test_only_the_last_layer_changes(
    config: TrainConfig, prepared: PreparedData, trained: torch.nn.Module
) -> None:
    model = copy.deepcopy(trained)
    _fitted(config, prepared, model)
    changed = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, trained.state_dict()[name])
    }
    assert changed == {"head.fc.weight", "head.fc.bias"}


def test_features_are_computed_once_for_all_folds_and_settings(
    config: TrainConfig,
    prepared: PreparedData,
    trained: torch.nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _fitted(config, prepared, copy.deepcopy(trained))
    monkeypatch.setattr(head, "_extract", lambda *_: pytest.fail("computed again"))
    other = config.with_overrides(["data.validation_fold=1", "loss.gamma=2", "seed=5"])
    _fitted(other, prepared, copy.deepcopy(trained))
    assert len(list((tmp_path / "cache").glob("features-*.npy"))) == 1
    changed = copy.deepcopy(trained)
    with torch.no_grad():
        next(changed.parameters()).add_(0.1)
    with pytest.raises(pytest.fail.Exception):
        _fitted(config, prepared, changed)


def test_the_validation_fold_is_predicted_without_the_backbone(
    prepared: PreparedData, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training.on(config, prepared)
    model = build_model(config.model, len(CLASSES))
    state = fit(training, model, start_state(model, config), lambda _: None)
    expected = predict(model, training.validation, training.preprocess, tta=config.data.tta)

    def refuse(*_: object) -> None:
        raise AssertionError("the backbone ran again")

    monkeypatch.setattr(head, "_extract", refuse)
    found = predict_validation(training, state)
    assert found.image_ids == expected.image_ids
    assert np.allclose(found.logits, expected.logits, atol=1e-4)


def test_a_head_becomes_a_bundle_that_predicts_from_images(
    config: TrainConfig,
    prepared: PreparedData,
    trained: torch.nn.Module,
    tmp_path: Path,
    without_onnx: None,
) -> None:
    weights = {name: value for name, value in trained.state_dict().items() if "head.fc" not in name}
    save_file(weights, tmp_path / "weights.safetensors")
    result = train(
        prepared.folder, tmp_path / "run", config, weights=str(tmp_path / "weights.safetensors")
    )
    assert load_bundle(result.bundle).manifest.training_config.optim.head_only
    assert result.validation["auroc"] > 0.6


def test_random_features_are_refused(
    config: TrainConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"optim\.head_only must be false"):
        train(prepared.folder, tmp_path / "run", config)


def test_features_that_are_not_finite_stop_the_run(
    config: TrainConfig, prepared: PreparedData, trained: torch.nn.Module
) -> None:
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="must be finite"):
        _fitted(config, prepared, broken)


def test_the_network_ends_with_the_best_head(
    config: TrainConfig, prepared: PreparedData, trained: torch.nn.Module
) -> None:
    training, state = _fitted(config, prepared, copy.deepcopy(trained))
    best = max(selection_score(row) for row in state.history)
    seen = predict(state.model, training.validation, training.preprocess, tta=2)
    scores = validation_scores(prepared.task, seen.labels, seen.logits, training.validation.sources)
    assert selection_score(scores) == pytest.approx(best, abs=1e-3)


def _extract_on_a_rank(rank: int, folder: str, model: str, config: TrainConfig, port: int) -> None:
    """Rank 0 has the features already; rank 1 has another cache, as on another node."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "MELANOMA_CACHE": f"{model}.cache{rank}",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    data, network = open_prepared(Path(folder)), build_model(config.model, len(CLASSES))
    network.load_state_dict(torch.load(model, weights_only=True))
    training = Training.on(config, data, world=World.current())
    first = head.frozen_features(training, network)
    if rank == 1:
        for path in Path(f"{model}.cache1").iterdir():
            path.unlink()
    again = head.frozen_features(training, network)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    dist.destroy_process_group()


def test_workers_with_different_caches_do_not_wait_for_each_other(
    config: TrainConfig, prepared: PreparedData, trained: torch.nn.Module, tmp_path: Path
) -> None:
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    mp.set_forkserver_preload([__name__])
    arguments = (str(prepared.folder), str(tmp_path / "model.pt"), config, free_ports(1)[0])
    mp.start_processes(_extract_on_a_rank, arguments, nprocs=2, start_method="forkserver")
