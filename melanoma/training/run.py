"""One training run from a prepared data set to a bundle: check, train, pack. The same call again resumes a run cut short."""

import dataclasses
import json
import logging
from typing import Any

import timm
import torch

from melanoma.bundle.manifest import MANIFEST, BundleManifest, read_manifest
from melanoma.bundle.packing import pack
from melanoma.config import TrainConfig
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.errors import DataError
from melanoma.evidence.operating_point import Contract
from melanoma.executor import Executor, Item, LocalExecutor, Row
from melanoma.io.files import claim_folder, locked, new_folder, write_json
from melanoma.io.storage import AnyPath, to_path
from melanoma.training.checkpoints import read_state
from melanoma.training.job import TrainJob
from melanoma.training.networks import build_model, check_feature_map, freeze
from melanoma.training.weights import load_weights

RESULT = "result.json"
"""Written last: a run, or a search, that has it is finished."""
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a finished run came to.

    Attributes:
        bundle: the folder of the bundle.
        best_epoch: the epoch that is shipped.
        validation: its scores on the validation fold; flattered, because they chose it.
        threshold: on the probability of the targets.
        contract: what the bundle promises.
        contract_sentence: the same in words.
    """

    bundle: AnyPath
    best_epoch: int
    validation: dict[str, float]
    threshold: float
    contract: Contract
    contract_sentence: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**dataclasses.asdict(self), "bundle": str(self.bundle)}


def train(
    dataset: str | AnyPath,
    run_dir: str | AnyPath,
    config: TrainConfig | None = None,
    *,
    weights: str = "none",
    executor: Executor | None = None,
) -> TrainResult:
    """Train a network on a prepared data set and write its bundle; the same call again resumes.

    Example:
        >>> config = preset("smoke").with_overrides(["optim.epochs=1", "optim.warmup_epochs=0"])
        >>> result = train(dataset, tmp_path / "run", config)
        >>> result.best_epoch, result.contract.target_sensitivity
        (1, 0.9)

    Args:
        dataset: folder of the prepared data set.
        run_dir: folder of the run, new or of the same run.
        config: its settings; None takes the defaults.
        weights: none (random), imagenet, or a file of weights.
        executor: where it runs; None: in this process.

    Raises:
        DataError: if the data set or the run folder does not fit.
        SettingError: if a setting does not fit.
    """
    job = TrainJob(to_path(dataset), to_path(run_dir), config or TrainConfig(), weights=weights)
    return run_job(job, executor or LocalExecutor())


def run_job(job: TrainJob, executor: Executor) -> TrainResult:
    """Train, pack the best epoch and return the result; a finished run is only reported. Raises as `train` does."""
    data = open_prepared(job.dataset)
    check_data(job, data)
    with locked(job.run_dir):
        finished = (job.run_dir / RESULT).is_file()
        if not finished:
            data.check_writable()
            check_network(
                job, data.task.num_classes
            )  # before the folder is claimed: a mistyped setting must not take its name
        _claim(job, content=data.content_hash)
        if not finished:
            if not (job.bundle_dir / MANIFEST).is_file():
                checkpoint = executor.launch(job)
                executor.map(Pack(job, str(checkpoint)), [{}], num_workers=1)
            result = _result(job, read_manifest(job.bundle_dir))
            write_json(job.run_dir / RESULT, {**result.as_dict(), "bundle": job.bundle_dir.name})
    return _result(job, read_manifest(job.bundle_dir))


def _result(job: TrainJob, manifest: BundleManifest) -> TrainResult:
    point = manifest.operating_point
    return TrainResult(
        bundle=job.bundle_dir,
        best_epoch=manifest.best_epoch,
        validation=manifest.validation,
        threshold=point.threshold,
        contract=point.contract,
        contract_sentence=point.contract.sentence(manifest.task),
    )


def _claim(job: TrainJob, *, content: str) -> None:
    described = {
        "config": dataclasses.asdict(job.config),
        "weights": job.weights,
        "content": content,
    }
    if not claim_folder(job.run_dir, described):
        return
    if (job.run_dir / RESULT).is_file():
        log.info("%s is finished; nothing is left to do.", job.run_dir)
    elif job.history_path.is_file():
        epochs = [json.loads(line)["epoch"] for line in job.history_path.read_text().splitlines()]
        log.info(
            "Resuming %s after epoch %d of %d.",
            job.run_dir,
            max(epochs, default=0),
            job.config.optim.epochs,
        )


@dataclasses.dataclass(frozen=True)
class Pack:
    """Packs the best checkpoint of a run; on a cluster this runs there, because the caller's machine may be small.

    On CPUs, in float32, so that scores are those that a CPU server gives.
    """

    job: TrainJob
    checkpoint: str

    def __call__(self, item: Item) -> list[Row]:
        """Write the bundle; the item says nothing."""
        job, data = self.job, open_prepared(self.job.dataset)
        state = read_state(to_path(self.checkpoint), "cpu")
        model = build_model(job.config.model, data.task.num_classes)
        model.load_state_dict(state["ema"] or state["model"])
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with new_folder(job.bundle_dir, replace_if=MANIFEST) as work:
            pack(model, job.config, data, work, best_epoch=state["epoch"])
        return [{"bundle": str(job.bundle_dir)}]


def check_data(job: TrainJob, data: PreparedData) -> None:
    """Raise DataError, before hours of training, unless the data can carry them: the folds, the batch, the contract."""
    fold, batch_size, nouns = (
        job.config.data.validation_fold,
        job.config.optim.batch_size,
        data.task.noun[1],
    )
    if not data.rows("train", fold=fold)["dx"].isin(data.task.targets).any():
        raise DataError(
            f"Validation fold {fold} must hold {nouns}; it has none. Choose another"
            " data.validation_fold or fewer folds."
        )
    num_train = len(data.rows("train", without_fold=fold))
    if not job.num_workers <= batch_size <= num_train:
        raise DataError(
            f"optim.batch_size must be from the number of workers ({job.num_workers}) to that of"
            f" training images ({num_train}); it is {batch_size}."
        )
    if not data.manifest.num_targets("calibration"):
        raise DataError(
            f"The calibration split must hold {nouns}; it has none. Prepare the data set with a"
            " larger --calibration-fraction, or with more rows of split calibration in the file of"
            " --splits."
        )


def check_network(job: TrainJob, num_classes: int) -> None:
    """Raise SettingError, before any worker starts, unless the network and its weights can be had; say what of them fits."""
    model = build_model(job.config.model, num_classes)
    check_feature_map(model)
    freeze(model, job.config.optim.frozen_layers)
    if job.config.optim.frozen_layers and job.weights == "none":
        raise DataError(
            "optim.frozen_layers must be 0 with random start weights, because those layers would"
            " learn nothing; pass --weights."
        )
    if job.num_workers > 1 and any(
        isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()
    ):
        raise DataError(
            f"{job.config.model.backbone} has batch norms, whose statistics several workers would"
            " not share; use --workers 1."
        )
    if job.weights == "none" or job.history_path.is_file():
        return
    if job.weights == "imagenet":
        if not timm.is_model_pretrained(job.config.model.backbone):
            raise DataError(
                f"timm publishes no weights for {job.config.model.backbone}; pass --weights none or"
                " a file."
            )
        try:
            build_model(job.config.model, num_classes, pretrained=True)
        except Exception as error:  # the hub's client raises whatever its transport raises
            raise DataError(
                "--weights imagenet needs timm's hub, it could not be reached"
                f" ({type(error).__name__}); pass --weights FILE or connect."
            ) from error
    else:
        log.info("weights: %s", load_weights(model, to_path(job.weights)))
