import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from melanoma.bundle.packing import pack
from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData

pytestmark = pytest.mark.usefixtures("without_onnx")


def _manifest(
    model: torch.nn.Module, config: TrainConfig, data: PreparedData, folder: Path
) -> dict:  # type: ignore[type-arg]
    folder.mkdir()
    pack(model, config, data, folder, best_epoch=1)
    manifest: dict = json.loads((folder / "manifest.json").read_text())  # type: ignore[type-arg]
    return manifest


def _shuffle_labels(data: PreparedData, chosen: pd.Series) -> PreparedData:
    """Give the images of some rows each other's labels."""
    records = data.records.copy()
    order = np.random.default_rng(0).permutation(np.flatnonzero(chosen))
    records.loc[chosen, ["label", "dx"]] = data.records.loc[order, ["label", "dx"]].to_numpy()
    return dataclasses.replace(data, records=records.astype({"label": int}))


def test_calibration_moves_the_operating_point_and_nothing_else(
    trained: torch.nn.Module, tiny_config: TrainConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    """The contract is valid only while nothing else is chosen by looking at the calibration
    split."""
    plain = _manifest(trained, tiny_config, prepared, tmp_path / "plain")
    other = _shuffle_labels(prepared, prepared.records["split"] == "calibration")
    moved = _manifest(trained, tiny_config, other, tmp_path / "moved")
    assert moved["calibrator"] == plain["calibrator"]
    assert moved["files"]["model.safetensors"] == plain["files"]["model.safetensors"]
    assert moved["operating_point"]["threshold"] != plain["operating_point"]["threshold"]


def test_validation_moves_the_calibrator_and_test_moves_nothing(
    trained: torch.nn.Module, tiny_config: TrainConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    plain = _manifest(trained, tiny_config, prepared, tmp_path / "plain")
    validation = _shuffle_labels(
        prepared, (prepared.records["split"] == "train") & (prepared.records["fold"] == 0)
    )
    assert (
        _manifest(trained, tiny_config, validation, tmp_path / "validation")["calibrator"]
        != plain["calibrator"]
    )
    test = _shuffle_labels(prepared, prepared.records["split"] == "test")
    assert (
        _manifest(trained, tiny_config, test, tmp_path / "test")["operating_point"]
        == plain["operating_point"]
    )
