import dataclasses
import json
import re
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
    pack(model, config, data, folder, best_epochs=(1,))
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


def test_a_network_that_knows_nothing_on_validation_promises_nothing(
    trained: torch.nn.Module, tiny_config: TrainConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    """However well it does on the calibration split."""
    validation = _shuffle_labels(
        prepared, (prepared.records["split"] == "train") & (prepared.records["fold"] == 0)
    )
    manifest = _manifest(trained, tiny_config, validation, tmp_path / "bundle")
    contract = manifest["operating_point"]["contract"]
    assert (contract["status"], contract["reason"]) == ("unmet", "uninformative")
    assert contract["difference_low"] == min(
        found["difference_low"] for found in manifest["reference_models"]
    )


def test_the_access_is_logged_before_calibration_is_read(
    trained: torch.nn.Module,
    tiny_config: TrainConfig,
    prepared: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = PreparedData.rows

    def crash(self: PreparedData, split: str, **folds: int) -> pd.DataFrame:
        if split == "calibration":
            raise OSError("the disk is gone")
        return rows(self, split, **folds)

    before = len(prepared.accesses("calibration"))
    monkeypatch.setattr(PreparedData, "rows", crash)
    with pytest.raises(OSError, match="gone"):
        _manifest(trained, tiny_config, prepared, tmp_path / "bundle")
    assert len(prepared.accesses("calibration")) == before + 1


def test_the_same_network_keeps_its_number(
    trained: torch.nn.Module, tiny_config: TrainConfig, prepared: PreparedData, tmp_path: Path
) -> None:
    numbers = [
        _manifest(trained, tiny_config, prepared, tmp_path / name)["operating_point"]["contract"][
            "access"
        ]
        for name in ("once", "twice")
    ]
    assert numbers[0] == numbers[1]


def test_the_card_holds_the_figures_of_the_manifest(
    bundle_dir: Path, prepared: PreparedData
) -> None:
    manifest = json.loads((bundle_dir / "manifest.json").read_text())
    card = (bundle_dir / "MODEL_CARD.md").read_text()
    contract = manifest["operating_point"]["contract"]
    for line in (
        f"| basis | calibration split, on which this is network number {contract['access']} |",
        f"| targets, others | {contract['num_target']}, {contract['num_other']} |",
        f"| misses allowed | {contract['misses_allowed']} |",
        f"| expected sensitivity | {contract['sensitivity_expected']:.3f} |",
        f"over all images {manifest['validation']['auroc']:.3f}",
        "| source: ",
        "Start weights: none, the network began at random.",
        f"| {len(prepared.rows('train'))} | {prepared.manifest.num_targets('train')} |",
        *(f"| {each['difference_low']:+.3f} |" for each in manifest["reference_models"]),
    ):
        assert line in card, line
    items = [line for line in card.splitlines() if re.match(r"\| \d+ ", line)]
    assert len(items) == 27
    assert sum("not done" in line for line in items) > 5
