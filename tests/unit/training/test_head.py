import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

from melanoma.bundle.bundle import load_bundle
from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData
from melanoma.errors import DataError
from melanoma.training import head
from melanoma.training.engine import fit, predict, start_state
from melanoma.training.plan import Training
from melanoma.training.run import train


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
    oracle = LogisticRegression(
        C=1 / (head.strength(4) * len(learned)), max_iter=2000, tol=1e-8
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
