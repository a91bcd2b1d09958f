import dataclasses
from pathlib import Path

import pytest
import torch

from melanoma.config import ModelConfig, TrainConfig
from melanoma.data.dataset import PreparedData
from melanoma.errors import DataError
from melanoma.io.files import locked
from melanoma.training.job import TrainJob
from melanoma.training.networks import build_model
from melanoma.training.run import check_data, check_network
from ray_jobs.arguments import BAD_INPUT
from ray_jobs.cli import main
from tests.tasks import CLASSES


def _job(prepared: PreparedData, config: TrainConfig, **changes: object) -> TrainJob:
    return dataclasses.replace(TrainJob(prepared.folder, Path("unused"), config), **changes)  # type: ignore[arg-type]


def test_a_batch_that_cannot_be_filled_is_refused_before_training(
    prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    config = tiny_config.with_overrides(["optim.batch_size=100000"])
    with pytest.raises(DataError, match=r"optim\.batch_size"):
        check_data(_job(prepared, config), prepared)
    with pytest.raises(DataError, match="number of workers"):
        check_data(_job(prepared, tiny_config, num_workers=64), prepared)


def test_a_fold_that_is_not_there_is_refused_before_training(
    prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    with pytest.raises(DataError, match="fold 9"):
        check_data(_job(prepared, tiny_config.with_overrides(["data.validation_fold=9"])), prepared)


def test_calibration_without_melanomas_is_refused_before_training(
    prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    data = dataclasses.replace(
        prepared,
        manifest=dataclasses.replace(prepared.manifest, counts={"calibration": {"mel": 0}}),
    )
    with pytest.raises(DataError, match="must hold melanomas"):
        check_data(_job(prepared, tiny_config), data)


def test_an_unreachable_hub_is_one_sentence(
    prepared: PreparedData, tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(
        config: ModelConfig, num_classes: int, *, pretrained: bool = False
    ) -> torch.nn.Module:
        if pretrained:
            raise ConnectionError("no route to host")
        return build_model(config, num_classes)

    monkeypatch.setattr("melanoma.training.run.build_model", offline)
    with pytest.raises(DataError, match="--weights imagenet needs timm's hub"):
        check_network(_job(prepared, tiny_config, weights="imagenet"), len(CLASSES))


def test_weights_that_nobody_publishes_are_not_asked_for(
    prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    config = tiny_config.with_overrides(
        ["model.backbone=convnextv2_small", "model.layer_scale=null"]
    )
    with pytest.raises(DataError, match="timm publishes no weights"):
        check_network(_job(prepared, config, weights="imagenet"), len(CLASSES))


def test_batch_norms_are_not_spread_over_workers(
    prepared: PreparedData, tiny_config: TrainConfig
) -> None:
    config = tiny_config.with_overrides(
        ["model.backbone=test_efficientnet", "model.layer_scale=null"]
    )
    check_network(_job(prepared, config), len(CLASSES))
    with pytest.raises(DataError, match="--workers 1"):
        check_network(_job(prepared, config, num_workers=2), len(CLASSES))


def test_random_layers_are_not_frozen(prepared: PreparedData, tiny_config: TrainConfig) -> None:
    with pytest.raises(DataError, match="pass --weights"):
        check_network(
            _job(prepared, tiny_config.with_overrides(["optim.frozen_layers=3"])), len(CLASSES)
        )


@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_second_command_in_a_run_folder_is_refused(
    command: str, prepared: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path / "run"):
        code = main(
            [
                command,
                str(prepared.folder),
                str(tmp_path),
                "--preset",
                "smoke",
                "--name",
                "run",
                "--set",
                "optim.batch_size=8",
            ]
        )
    assert code == BAD_INPUT
    assert "is locked by another process" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]
